# Bytes that are no UTF-8 in an answer's body, which a JSON-speaking server
# never sends and a broken one does, come out as question marks: what "status",
# dead_letter and the log show is valid text of one line, never longer than
# 1 kB, wherever the bytes are cut.

use IO::Select ();
use IO::Socket::INET ();
use POSIX ();
use OnsideTest;

# ---------------------------------------------------------------------------
# A server that answers every request with the same bytes, and ends with us
# ---------------------------------------------------------------------------

my %servers;

sub read_request
{
	my ($client) = @_;
	my ($head, $body) = ('', '');
	while ($head !~ /\r\n\r\n/)
	{
		sysread($client, $head, 4096, length $head) or return 0;
	}
	($head, $body) = split /\r\n\r\n/, $head, 2;
	my ($length) = $head =~ /^Content-Length: (\d+)/mi;
	while (length $body < $length)
	{
		sysread($client, $body, 65536, length $body) or return 0;
	}
	return 1;
}

sub start_server
{
	my ($status, $body) = @_;
	my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 16) or die "could not listen: $@";
	my $port = $listener->sockport;
	my $parent = $$;
	my $pid = fork() // die "could not fork: $!";
	if ($pid == 0)
	{
		# POSIX::_exit, because END is the parent's.
		local $SIG{PIPE} = 'IGNORE';
		local $SIG{TERM} = sub { POSIX::_exit(0) };
		my $select = IO::Select->new($listener);
		while (getppid() == $parent)
		{
			$select->can_read(1) or next;
			my $client = $listener->accept or next;
			next unless read_request($client);
			print $client "HTTP/1.1 $status Whatever\r\nConnection: close\r\nContent-Length: "
			  . length($body) . "\r\n\r\n" . $body;
			close $client;
		}
		POSIX::_exit(0);
	}
	close $listener;
	$servers{$port} = $pid;
	return $port;
}

sub stop_server
{
	my ($port) = @_;
	my $pid = delete $servers{$port} or return;
	local $?;
	kill 'TERM', $pid;
	waitpid $pid, 0;
	return;
}

END { stop_server($_) foreach keys %servers }

# ---------------------------------------------------------------------------

my ($node, $sandbox) = sending_node();
my $worker = worker_pid($node, 'postgres');

sub sql { return $node->safe_psql('postgres', $_[0]) }

sub send_to_port
{
	my ($port) = @_;
	$node->append_conf('postgresql.conf',
		"onside_attribution.endpoint = 'http://127.0.0.1:$port/attribution-api/v1/events'");
	$node->reload;
	return;
}

# The server's own conversion says whether a text is valid.
sub fit_ok
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

sub log_ok
{
	my ($from, $case) = @_;
	my $log = log_since($node, $from);
	unlike($log, qr/[\x00-\x08\x0b-\x1f\x7f]/, "$case: no control characters in the log");
	ok(utf8::decode($log), "$case: the log is valid UTF-8");
	return;
}

my @ids;
foreach (
	[ 'no first byte of a character', "a\xff\xfe\x80\xbfz", '^HTTP 500: a\?\?\?\?z$' ],
	[ 'ISO 8859-1', "Zugriff verweigert f\xfcr M\xfcller", '^HTTP 500: Zugriff verweigert f\?r M\?ller$' ],
	[ 'UTF-16', "\xff\xfe<\0h\0t\0m\0l\0>\0", '^HTTP 500: \?\?<' ],
	[ 'an overlong zero', "a\xc0\x80b", '^HTTP 500: a\?+b$' ],
	[ 'an overlong slash', "a\xe0\x80\xafb\xf0\x80\x80\xafc", '^HTTP 500: a\?+b\?+c$' ],
	[ 'half a surrogate pair', "a\xed\xa0\x80b", '^HTTP 500: a\?+b$' ],
	[ 'beyond Unicode', "a\xf4\x90\x80\x80b\xf5\x80\x80\x80c", '^HTTP 500: a\?+b\?+c$' ],
	[ 'an end within a character', "ab\xe2\x82", '^HTTP 500: ab\?\?$' ],
	[ 'an end after a first byte', "ab\xf0", '^HTTP 500: ab\?$' ],
	[ 'a character cut by a letter', "a\xe2\x82b\xe2c", '^HTTP 500: a\?\?b\?c$' ],
	[ 'C1 control characters', "a\xc2\x85b\xc2\x9b31mc", '^HTTP 500: a\?+b\?+31mc$' ],
	[ 'good characters among bad ones', "\xff\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\xff", "^HTTP 500: \\?\x{e4}\x{20ac}\x{1f600}\\?\$" ],
	[ 'all bytes', join('', map { chr } 1 .. 255) x 8, '^HTTP 500: ' ],
	[ 'bad bytes alone', "\xff" x 3000, '^HTTP 500: \?+$' ],
	(map { [ "a cut after $_ of good and bad", 'x' x $_ . "\xe2\x82\xac\xff" x 400, '^HTTP 500: x' ] } 1 .. 4),
	[ 'an escape within a character', "a\xe2\e[31m\xacb", '^HTTP 500: ' ])
{
	my ($what, $bytes, $seen) = @$_;
	my $from = log_position($node);
	utf8::encode($seen) if utf8::is_utf8($seen);

	# As an error.
	my $port = start_server(500, $bytes);
	send_to_port($port);
	push @ids, track($node, 'postgres');
	poll_status($node, 'postgres', { state => 'backing_off', last_error => qr/^HTTP 500/ }, "$what: backing off");
	fit_ok('onside_attribution.status', 'last_error', "$what: last_error is fit to be shown");
	like(sql('SELECT last_error FROM onside_attribution.status'), qr/$seen/, "$what: what can be shown is");
	stop_server($port);

	send_to_port($sandbox->port);
	wait_for_flush($node, 'postgres', "$what: it is delivered in the end");

	# As a dead letter's: alone, and after something has been accepted.
	$port = start_server(400, $bytes);
	sql('SELECT onside_attribution.pause()');
	poll_status($node, 'postgres', { state => 'paused', in_flight => 0 }, "$what: paused");
	send_to_port($port);
	my $bad = track($node, 'postgres');
	sql('SELECT onside_attribution.resume()');
	poll_status($node, 'postgres', { last_error => qr/^HTTP 400/ },
		"$what in a 400: another endpoint that refuses what it is given");
	fit_ok('onside_attribution.status', 'last_error', "$what in a 400: last_error is fit to be shown");
	push @ids, $bad;
	stop_server($port);
	send_to_port($sandbox->port);
	wait_for_flush($node, 'postgres', "$what in a 400: it is delivered in the end");
	log_ok($from, $what);
}

# ---------------------------------------------------------------------------
# As a dead letter's error: the 413 of a lone event is its own
# ---------------------------------------------------------------------------

foreach (
	[ 'bytes', "a\xff\xfe\x80z", 'a???z' ],
	[ 'many bytes', "\xe2\x82\xac\xff" x 1000, undef ],
	[ 'nothing but bytes', "\x80" x 5000, '?' x 1024 ])
{
	my ($what, $bytes, $seen) = @$_;
	my $from = log_position($node);
	my $port = start_server(413, $bytes);
	send_to_port($port);
	my $bad = track($node, 'postgres');
	wait_for_flush($node, 'postgres', "$what in a 413: settled");
	is(sql('SELECT event_id, http_status FROM onside_attribution.dead_letter'),
		"$bad|413", "$what in a 413: a dead letter");
	fit_ok('onside_attribution.dead_letter', 'error', "$what in a 413: its error is fit to be shown");
	is(sql('SELECT error FROM onside_attribution.dead_letter'), $seen, "$what in a 413: what can be shown is")
	  if defined $seen;
	log_ok($from, "$what in a 413");
	sql('DELETE FROM onside_attribution.dead_letter');
	stop_server($port);
}

send_to_port($sandbox->port);
wait_for_flush($node, 'postgres', 'all is settled');
arrived_ok($sandbox, \@ids, 'what was committed has arrived');
poll_status($node, 'postgres', { state => 'idle', pending => 0, worker_pid => $worker },
	'idle in the end, by the same worker');

$node->stop;
done_testing();
