# Whatever an answer holds, no more than 1 kB of it gets into a view, a table
# or the log, as valid and printable UTF-8 on a single line; and the log gets
# at most one line when a state has lasted and one when it ends, none per request.

use OnsideTest;

my ($node, $sandbox) = sending_node();
my $worker = worker_pid($node, 'postgres');

sub settled_ok
{
	my ($case, @ids) = @_;
	wait_for_flush($node, 'postgres', "$case: all is settled");
	arrived_ok($sandbox, \@ids, "$case: what is good has arrived, and nothing else");
	my $row = poll_status($node, 'postgres',
		{ state => 'idle', pending => 0, next_attempt_at => undef }, "$case: idle afterwards");
	is($row->{worker_pid}, $worker, "$case: the worker is the same process");
	return;
}

# Is a text fit to be shown?  The server's own conversion says whether it is
# valid; [[:cntrl:]] does not know the control characters above 127.
sub printable_ok
{
	my ($from, $column, $case) = @_;
	my (undef, $out, $err) = $node->psql('postgres', <<SQL);
SELECT octet_length($column) <= 1024,
       convert_from(convert_to($column, 'UTF8'), 'UTF8') = $column,
       $column !~ U&'[\\0001-\\001F\\007F-\\009F]'
FROM $from
SQL
	is("$out$err", 't|t|t', $case);
	return;
}

# As many bytes as make it end in the middle of a character, wherever it is cut.
my @bodies = (
	[ 'ten megabytes', { fault => 'big_error' } ],
	[ 'two kilobytes', { body => 'x' x 2048 } ],
	[ 'two-byte characters', { body => "\x{e4}" x 1000 } ],
	[ 'two-byte characters, one off', { body => 'x' . "\x{e4}" x 1000 } ],
	[ 'three-byte characters', { body => "\x{20ac}" x 1000 } ],
	[ 'three-byte characters, one off', { body => 'x' . "\x{20ac}" x 1000 } ],
	[ 'three-byte characters, two off', { body => 'xx' . "\x{20ac}" x 1000 } ],
	[ 'four-byte characters', { body => "\x{1f600}" x 1000 } ],
	[ 'terminal escapes', { body => "\e[31mred\e]0;title\a \e[2J\b\b\r\n\tnext line\n" } ],
	[ 'C1 control characters', { body => "a\x{85}b\x{9b}31mc\x{9d}0;title\x{9c}" } ],
	[ 'what looks like a log line', { body => "x\n2026-01-01 00:00:00 UTC [1] LOG:  forged" } ],
	[ 'conversion specifications', { body => '%s%s%s%n%m%d' } ],
	[ 'zero bytes', { body => "before\0after" } ],
	[ 'nothing', { body => '' } ]);

# ---------------------------------------------------------------------------
# As the error of a state
# ---------------------------------------------------------------------------

foreach (@bodies)
{
	my ($what, $rule) = @$_;
	$sandbox->reset;
	$sandbox->behave({ status => 500, %$rule });
	my $from = log_position($node);
	my $id = track($node, 'postgres');
	poll_status($node, 'postgres',
		{ state => 'backing_off', state_reason => qr/./, last_error => qr/./ }, "$what: backing off");
	printable_ok('onside_attribution.status', 'last_error', "$what: last_error is fit to be shown");
	ok($sandbox->wait_requests(3, patience())->{reached}, "$what: it is tried again and again");
	$sandbox->behave;
	settled_ok($what, $id);

	my $log = log_since($node, $from);
	my @changes = $log =~ /LOG:  (onside_attribution: .*)/g;
	cmp_ok(scalar @changes, '<=', 2, "$what: no more than a line in the log when it has lasted, and one when it ends")
	  or diag(join "\n", @changes);
	unlike($log, qr/[\x00-\x08\x0b-\x1f\x7f]|^\d\S+ \S+ UTC \[1\]/m, "$what: nothing strange in the log");
	cmp_ok(length $log, '<', 8192, "$what: the log stays small");
}

# ---------------------------------------------------------------------------
# As the error of a dead letter
# ---------------------------------------------------------------------------

foreach (@bodies)
{
	my ($what, $rule) = @$_;
	$sandbox->reset;
	$sandbox->behave({ status => 400, %$rule, match => { contains => '"bad"' } });
	my $from = log_position($node);
	my $good = track($node, 'postgres', 'good');
	wait_for_flush($node, 'postgres', "$what: the good one is delivered");
	my $bad = track($node, 'postgres', 'bad');
	settled_ok("$what in a 400", $good);
	is($node->safe_psql('postgres', 'SELECT event_id FROM onside_attribution.dead_letter'),
		$bad, "$what in a 400: the bad one is a dead letter");
	printable_ok('onside_attribution.dead_letter', 'error', "$what in a 400: its error is fit to be shown");
	printable_ok('onside_attribution.status', 'last_error', "$what in a 400: so is last_error");
	unlike(log_since($node, $from), qr/[\x00-\x08\x0b-\x1f\x7f]|^\d\S+ \S+ UTC \[1\]/m,
		"$what in a 400: nothing strange in the log");
	$node->safe_psql('postgres', 'DELETE FROM onside_attribution.dead_letter');
}

# ---------------------------------------------------------------------------
# What a DBA says is kept as it was said, as far as it has room
# ---------------------------------------------------------------------------

foreach my $reason ("\x{e4}" x 600, 'x' . "\x{e4}" x 600)
{
	utf8::encode(my $quoted = $reason);
	$node->safe_psql('postgres', "SELECT onside_attribution.pause('$quoted')");
	poll_status($node, 'postgres', { state => 'paused', state_reason => qr/./ }, 'a long reason: paused');
	printable_ok('onside_attribution.status', 'state_reason', 'a long reason: fit to be shown');
}
$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
poll_status($node, 'postgres', { state => 'idle' }, 'a long reason: resumed');

# ---------------------------------------------------------------------------
# A database whose encoding is not UTF-8
# ---------------------------------------------------------------------------

$node->safe_psql('postgres',
	"CREATE DATABASE latin1 ENCODING latin1 LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
create_extension($node, 'latin1');
$sandbox->reset;
$sandbox->behave({ status => 500, body => "\x{e4}\x{20ac}" x 1000 });
my $id = track($node, 'latin1');
poll_status($node, 'latin1', { state => 'backing_off', last_error => qr/^HTTP 500: [ -~]+$/ },
	'LATIN1: what it cannot hold is replaced');
$sandbox->behave;
wait_for_flush($node, 'latin1', 'LATIN1: all is settled');
arrived_ok($sandbox, [$id], 'LATIN1: it has arrived');

$node->stop;
done_testing();
