# Whatever keeps a connection from being made (nobody listens, nobody answers,
# one of two addresses is dead) makes events wait and nothing else: "status"
# says backing_off and why, and all arrives when somebody is there.

use Socket qw(AF_INET AF_INET6 INADDR_LOOPBACK SOCK_STREAM);
use OnsideTest;
use OnsideFault;

my $path = '/attribution-api/v1/events';
my ($node, $sandbox) = sending_node();
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);

my %backing_off = (
	state => 'backing_off',
	state_reason => qr/cannot be reached or fails/,
	last_error_at => qr/\d/,
	retries => qr/^[1-9]/,
	next_attempt_at => qr/\d/,
	oldest_pending_age => qr/\d/);

# A server that is there and answers no connection: its queue is full.  Linux
# drops what comes then, as a dead network does.
sub dead_server
{
	my ($domain, $address) = @_;
	my ($server, @queue);

	socket($server, $domain, SOCK_STREAM, 0) or return;
	bind($server, $address) or return;
	listen($server, 0) or return;
	my $name = getsockname($server);
	foreach my $i (1 .. 20)
	{
		socket(my $client, $domain, SOCK_STREAM, 0) or return;
		$client->blocking(0);
		push @queue, $client;
		next if connect($client, $name);
		vec(my $wanted = '', fileno $client, 1) = 1;
		my $connected = select(undef, $wanted, undef, 0.5);
		return ($name, $server, @queue) if !$connected;
	}
	return;
}

# ---------------------------------------------------------------------------
# Nobody listens
# ---------------------------------------------------------------------------

my $closed = PostgreSQL::Test::Cluster::get_free_port();
$fault->survived(
	'connection refused',
	begin => sub { $fault->configure(endpoint => "http://127.0.0.1:$closed$path") },
	while => { %backing_off, last_error => qr/connect.*127\.0\.0\.1.*$closed/i },
	during => sub {
		my $retries = status($node, 'postgres')->{retries};
		poll_status($node, 'postgres', { retries => sub { $_[0] >= $retries + 5 } },
			'connection refused: it is tried again');
		is($sandbox->report->{requests}, 0, 'connection refused: and nowhere else');
	},
	end => sub { $fault->configure(endpoint => $sandbox->url) });

# As a DBA would end it, who knows that the peer is there again: resume().
$fault->configure(retry_initial_delay => '1h', retry_max_delay => '1h');
$fault->survived(
	'connection refused, and the next attempt far away',
	begin => sub { $fault->configure(endpoint => "http://127.0.0.1:$closed$path") },
	while => { %backing_off, retries => qr/./ },
	end => sub {
		my $there = OnsideSandbox->start(port => $closed);
		$fault->sandbox($there);
		$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
	});
$fault->configure(retry_initial_delay => '20ms', retry_max_delay => '200ms',
	endpoint => $sandbox->url);

# ---------------------------------------------------------------------------
# Nobody answers
# ---------------------------------------------------------------------------

SKIP:
{
	my ($name, @sockets) = dead_server(AF_INET,
		Socket::pack_sockaddr_in(0, INADDR_LOOPBACK));
	skip 'this kernel connects however full the queue is' unless $name;
	my ($port) = Socket::unpack_sockaddr_in($name);

	# A request may take longer (30 s); a connection may not.
	$fault->survived(
		'nobody answers',
		begin => sub {
			$fault->configure(endpoint => "http://127.0.0.1:$port$path", connect_timeout => '2s');
		},
		while => { state => 'sending', in_flight => qr/^[1-9]/, state_reason => undef },
		during => sub {
			poll_status($node, 'postgres',
				{ %backing_off, last_error => qr/tim(?:e|ed )out/i },
				'nobody answers: a failure when connect_timeout is over');
			$fault->configure(connect_timeout => '100ms');
			my $retries = status($node, 'postgres')->{retries};
			poll_status($node, 'postgres', { retries => sub { $_[0] >= $retries + 3 } },
				'nobody answers: it is tried again');
		},
		end => sub {
			@sockets = ();
			$fault->configure(endpoint => $sandbox->url, connect_timeout => '10s');
		});
}

# ---------------------------------------------------------------------------
# A dead address beside a live one
# ---------------------------------------------------------------------------

# localhost is 127.0.0.1 and ::1; the sandbox listens at the first.
$fault->survived(
	'::1 refuses, 127.0.0.1 answers',
	begin => sub {
		$fault->configure(endpoint => 'http://localhost:' . $sandbox->port . $path);
	});
is(status($node, 'postgres')->{state_reason}, undef, '::1 refuses: which is no failure');

SKIP:
{
	my ($name, @sockets) = dead_server(AF_INET6,
		Socket::pack_sockaddr_in6($sandbox->port, Socket::inet_pton(AF_INET6, '::1')));
	skip 'no IPv6 here, or this kernel connects however full the queue is' unless $name;

	# The connection that is open is at the live one: a new one is needed.
	my $retries = status($node, 'postgres')->{retries};
	$sandbox->behave({ headers => { Connection => 'close' } });
	foreach my $round (1 .. 5)
	{
		$fault->record(1);
		wait_for_flush($node, 'postgres', "::1 does not answer, 127.0.0.1 does: round $round");
	}
	$sandbox->behave;
	is(status($node, 'postgres')->{retries}, $retries, '::1 does not answer: which is no failure');
	$fault->settled('::1 does not answer, 127.0.0.1 does');
}

# The other way round.
SKIP:
{
	my $six = eval { OnsideSandbox->start(host => '::1') };
	skip 'no IPv6 here' unless $six;
	$fault->sandbox($six);
	$fault->survived(
		'127.0.0.1 refuses, ::1 answers',
		begin => sub { $fault->configure(endpoint => 'http://localhost:' . $six->port . $path) });
	$fault->survived('[::1]',
		begin => sub { $fault->configure(endpoint => $six->url) });
	is($six->report->{distinct}, 6, 'it was there');
}

$node->stop;
done_testing();
