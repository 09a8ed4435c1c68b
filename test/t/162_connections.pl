# Recovery depends on nothing that failed.  A connection on which anything but
# 204, 400, 413 or 429 was answered is not used again, and neither is one from
# before a reload or one older than five minutes; the others are kept, so that a
# failure under load costs one new connection.  A new connection goes where the
# name leads now: at once after a failure, within five minutes without any.
# Requests that libcurl repeats by itself are counted.

use OnsideTest;
use OnsideMachine;
use OnsidePeer;
use OnsideTls;

plan skip_all => 'openssl is not installed' unless OnsideTls::available();

my $tls = OnsideTls->new;
my $ca = $tls->authority('test');
my ($cert, $key) = $tls->certificate($ca, host => 'moving.test');
my $wire = OnsidePeer->start(tls_cert => $cert, tls_key => $key);
my $elsewhere = OnsidePeer->start(host => '127.0.0.2', port => $wire->port,
	tls_cert => $cert, tls_key => $key);
my $machine = OnsideMachine->new or plan skip_all => 'NOT TESTED: gcc cannot make faults.so';
$machine->set_address('127.0.0.1');

my $node = onside_node('main', start => 0,
	conf => "onside_attribution.ca_file = '$ca->{cert}'\n"
	  . "onside_attribution.endpoint = '" . $wire->url('moving.test') . "'\n"
	  . "onside_attribution.max_in_flight = 1\n"
	  . "onside_attribution.retry_initial_delay = '10ms'\n"
	  . "onside_attribution.retry_max_delay = '20ms'\n");
$node->append_conf('postgresql.conf',
	"onside_attribution.credentials_file = '" . write_credentials($node, "u:p\n") . "'\n");
$node->start;
create_extension($node, 'postgres');

sub deliver
{
	my ($what, $events) = @_;
	$events //= 1;
	$node->safe_psql('postgres', <<SQL);
SELECT onside_attribution.track('x', '$OnsideTest::installation', '{}') FROM generate_series(1, $events)
SQL
	wait_for_flush($node, 'postgres', "$what: delivered");
	return;
}

# The connections of the requests since behave().
sub used { return map { $_->{connection} } @{ $wire->requests } }

sub answer
{
	my ($status, @headers) = @_;
	return join("\r\n", "HTTP/1.1 $status X", 'Content-Length: 0', @headers, '', '');
}

# ---------------------------------------------------------------------------
# Which answers end a connection
# ---------------------------------------------------------------------------

deliver('before anything');
foreach my $status (204, 400, 429, 413)
{
	$wire->behave;
	deliver("before $status");
	my ($connection) = used();
	$wire->behave({ times => 1, answer => answer($status) });

	# A request of two events, whose halves go on.
	deliver($status, 2);
	my @used = used();
	cmp_ok(scalar @used, '>', 1, "$status: something was sent after it") if $status != 204;
	is_deeply([ grep { $_ != $connection } @used ], [], "$status: all over one connection");
}

foreach my $case (
	(map { [ $_, answer($_) ] } 200, 302, 401, 404, 408, 503),
	[ '503 with Retry-After', answer(503, 'Retry-After: 0') ],
	[ 'an answer without end', "HTTP/1.1 500 No\r\nContent-Length: 100000\r\n\r\n" . 'x' x 100_000 ],
	[ 'no HTTP', "hello\r\n\r\n" ],
	[ '204, and the server closes', "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n" ])
{
	my ($what, $answer) = @$case;
	$wire->behave({ times => 1, answer => $answer });
	deliver($what);
	deliver("after $what");
	my @used = used();
	cmp_ok(scalar(grep { $_ == $used[0] } @used), '==', 1, "$what: its connection is not used again");
	is_deeply([ grep { $_ != $used[1] } @used[ 1 .. $#used ] ], [], "$what: the next one is kept");
}

# ---------------------------------------------------------------------------
# What libcurl repeats by itself
# ---------------------------------------------------------------------------

{
	$wire->behave;
	deliver('before a connection that dies');
	my ($connection) = used();
	my $before = status($node, 'postgres');
	$wire->behave({ times => 1, answer => '', then => 'close' });
	deliver('a connection that dies');
	my @used = used();
	is($used[0], $connection, 'a connection that dies: it was the kept one');
	is(scalar @used, 2, 'a connection that dies: there were two requests');
	poll_status($node, 'postgres',
		{ requests => $before->{requests} + 2, retries => $before->{retries} },
		'a connection that dies: both are counted, and none is a failure');
}

# ---------------------------------------------------------------------------
# A reload, age, and a name that leads elsewhere
# ---------------------------------------------------------------------------

$wire->behave;
deliver('before a reload');
$node->reload;
deliver('after a reload') foreach 1 .. 3;
{
	# The reload may be noticed only after the first of them.
	my @used = used();
	isnt($used[-1], $used[0], 'a reload: a new connection');
}

{
	$wire->behave;
	deliver('an old connection');

	# One that is idle for two minutes is closed by libcurl anyway.
	foreach my $seconds (100, 200, 290, 310, 315)
	{
		$machine->set_monotonic_clock($seconds);
		deliver("an old connection, $seconds s later");
	}
	my @used = used();
	is(scalar @used, 6, 'an old connection: no request failed');
	is_deeply([ @used[ 1 .. 3 ] ], [ ($used[0]) x 3 ], 'an old connection: it is used for nearly five minutes');
	isnt($used[4], $used[0], 'an old connection: and not any longer');
	is($used[5], $used[4], 'an old connection: the new one is kept');
}

$machine->set_address('127.0.0.2');
{
	$wire->behave;
	deliver('the name has moved');
	is_deeply($elsewhere->requests, [], 'the name has moved: the connection is kept');
	foreach my $seconds (400, 500, 600)
	{
		$machine->set_monotonic_clock($seconds);
		deliver("the name has moved, at $seconds s");
	}
	$machine->set_monotonic_clock(620);
	deliver('the name has moved, five minutes ago');
	is(scalar @{ $elsewhere->requests }, 1, 'the name has moved: followed after five minutes');
	is(scalar @{ $wire->requests }, 4, 'the name has moved: and without a failure');
}
$machine->set_address('127.0.0.1');
{
	$elsewhere->behave({ answer => answer(500) });
	$wire->behave;
	deliver('the name has moved away from one that fails');
	is(scalar @{ $elsewhere->requests }, 1, 'after a failure: followed at once');
	cmp_ok(scalar @{ $wire->requests }, '>', 0, 'after a failure: to where the name leads');
}

# ---------------------------------------------------------------------------
# One failure under load
# ---------------------------------------------------------------------------

$node->append_conf('postgresql.conf', "onside_attribution.max_in_flight = 4\n"
	  . "onside_attribution.batch_max_events = 1\n");
$node->reload;

sub load
{
	$node->safe_psql('postgres', <<SQL);
SELECT onside_attribution.track('x', '$OnsideTest::installation', '{}') FROM generate_series(1, 300)
SQL
	wait_for_flush($node, 'postgres', $_[0]);
	return map { $_ => 1 } used();
}

{
	my %before;
	ok(wait_until(sub { $wire->behave; %before = load('load'); keys %before == 4 }),
		'four connections under load');
	$wire->behave({ times => 1, answer => answer(500) });
	my %after = load('load with one failure');
	is(scalar(grep { !$before{$_} } keys %after), 1, 'one failure under load: one new connection');
}

is($node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.dead_letter'),
	0, 'nothing is in dead_letter');

$node->stop;
done_testing();
