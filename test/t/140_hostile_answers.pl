# Whatever an answer holds, no more than 1 kB of it gets into a view, a table or
# the log, as valid and printable text on a single line, in the database's
# encoding; and the log gets at most one line when a state has lasted and one when
# it ends, none per request.  (test/unit/test_answer.c has all kinds of bytes.)

use OnsideTest;
use OnsidePeer;

my ($node, $sandbox) = sending_node();
my $peer = OnsidePeer->start;
$node->safe_psql('postgres',
	"CREATE DATABASE latin1 ENCODING latin1 LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
create_extension($node, 'latin1');

# Is a text fit to be shown?  The server's own conversion says whether it is
# valid; [[:cntrl:]] does not know the control characters above 127.
sub printable_ok
{
	my ($from, $column, $what) = @_;
	my (undef, $out, $err) = $node->psql('postgres', <<SQL);
SELECT octet_length($column) <= 1024,
       convert_from(convert_to($column, 'UTF8'), 'UTF8') = $column,
       $column !~ U&'[\\0001-\\001F\\007F-\\009F]'
FROM $from
SQL
	is("$out$err", 't|t|t', "$what is fit to be shown");
	return;
}

sub ask
{
	my ($who) = @_;
	$node->append_conf('postgresql.conf', "onside_attribution.endpoint = '" . $who->url . "'");
	$node->reload;
	return;
}

# The end of each is in the middle of a character, or of bytes that are none.
foreach (
	[ 'ten megabytes', 'x' x 10_000_000 ],
	[ 'characters that are cut', 'x' . "\xe2\x82\xac" x 1000 ],
	[ 'bytes that are no characters', "a\xff\xfe\x80" . "\xe2\x82\xac\xff" x 1000 ],
	[ 'what looks like a log line', "\e[31mx\x07\r\n2026-01-01 00:00:00 UTC [1] LOG:  forged %s%n\xc2\x9b31m" ])
{
	my ($what, $body) = @$_;
	subtest $what => sub {
		my $answer = "Whatever\r\nContent-Length: " . length($body) . "\r\nConnection: close\r\n\r\n$body";
		my $from = log_position($node);

		# As the error of a state.
		$peer->behave({ answer => "HTTP/1.1 500 $answer", then => 'close' });
		ask($peer);
		track($node, 'postgres');
		track($node, 'latin1');
		poll_status($node, 'latin1', { state => 'backing_off', last_error => qr/^HTTP 500: [ -~]+$/ },
			'in a database of another encoding');
		poll_status($node, 'postgres', { state => 'backing_off', last_error => qr/^HTTP 500: / }, 'in one of UTF-8');
		printable_ok('onside_attribution.status', 'last_error', 'last_error');
		my $tried = @{ $peer->requests };
		ok(wait_until(sub { @{ $peer->requests } > $tried + 3 }), 'it is tried again and again');
		ask($sandbox);
		wait_for_flush($node, $_, 'it is delivered in the end') foreach qw(postgres latin1);

		# As the error of a dead letter.
		$peer->behave({ answer => "HTTP/1.1 413 $answer", then => 'close' });
		ask($peer);
		track($node, 'postgres', 'dead');
		wait_for_flush($node, 'postgres', 'one that is too large alone');
		printable_ok('onside_attribution.dead_letter', 'error', "a dead letter's error");
		$node->safe_psql('postgres', 'DELETE FROM onside_attribution.dead_letter');
		ask($sandbox);

		my $log = log_since($node, $from);
		my @changes = $log =~ /LOG:  (onside_attribution: .*)/g;
		cmp_ok(scalar @changes, '<=', 2, 'no more than a line in the log when it has lasted, and one when it ends')
		  or diag(join "\n", @changes);
		unlike($log, qr/[\x00-\x08\x0b-\x1f\x7f]|^\d\S+ \S+ UTC \[1\]/m, 'nothing strange in the log');
		ok(utf8::decode($log), 'the log is valid UTF-8');
		cmp_ok(length $log, '<', 16384, 'the log stays small');
	};
}

# What a DBA says is kept as it was said, as far as it has room.
subtest 'a long reason' => sub {
	foreach my $reason ("\x{e4}" x 600, 'x' . "\x{e4}" x 600)
	{
		utf8::encode(my $quoted = $reason);
		$node->safe_psql('postgres', "SELECT onside_attribution.pause('$quoted')");
		poll_status($node, 'postgres', { state => 'paused', state_reason => qr/./ }, 'paused');
		printable_ok('onside_attribution.status', 'state_reason', 'a long reason');
	}
	$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
	poll_status($node, 'postgres', { state => 'idle' }, 'resumed');
};

$node->stop;
done_testing();
