# A 204 is the one acknowledgement.  Whatever else says "success", or what the API
# never says, comes from somebody else: state "misconfigured", slow probes, nothing
# lost, nothing dead-lettered, and all is sent once the API is back.  A redirect is
# never followed: whatever an answer names, nobody but the endpoint is contacted.
# A body that a peer puts behind a 204 is not taken for the next answer.
# (test/unit/test_answer.c has each status, and what can be around a 204.)

use JSON::PP ();

use OnsideTest;
use OnsideFault;

my $other = OnsideSandbox->start;
my ($node, $sandbox) = sending_node();
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);
my $elsewhere = '127.0.0.1:' . $other->port . '/attribution-api/v1/events';

# ---------------------------------------------------------------------------
# Who is not the API
# ---------------------------------------------------------------------------

# What answers so, and what status.last_error says of it.
foreach (
	[ 'a 200 with a body', { status => 200, body => '<title>Free Wi-Fi</title>' }, 'HTTP 200: <title>Free Wi-Fi</title>' ],
	[ 'a 201 without one', { status => 201, body => '' }, 'HTTP 201' ],

	# Who keeps the events and says another word gets them again, the same.
	[ 'a 200 from who has kept the events', { status => 200, accept => JSON::PP::true() }, qr{^HTTP 200} ],
	[ 'a redirect', { fault => 'redirect', status => 307, location => "http://sandbox:sandbox\@$elsewhere" }, qr/^HTTP 307/ ],
	[ 'a redirect without a scheme', { fault => 'redirect', location => "//$elsewhere" }, qr/^HTTP 302/ ],
	[   'a 404 with every header that leads elsewhere',
		{   status => 404,
			headers => {
				'Alt-Svc' => 'http/1.1="127.0.0.1:' . $other->port . '"; ma=3600',
				'Content-Location' => "http://$elsewhere",
				Link => "<http://$elsewhere>; rel=preload",
				Location => "http://$elsewhere",
				Refresh => "0; url=http://$elsewhere",
				'Set-Cookie' => 'a=b'
			}
		},
		qr/^HTTP 404/
	],
	[ 'a 407 by nobody\'s proxy', { status => 407, headers => { 'Proxy-Authenticate' => 'Basic realm="x"' } }, qr/^HTTP 407/ ])
{
	my ($case, $rule, $error) = @$_;
	my $delivered = status($node, 'postgres')->{delivered};
	$fault->survived(
		$case,
		begin => sub { $sandbox->behave($rule) },
		while => {
			state => 'misconfigured',
			state_reason => qr/onside_attribution\.endpoint/,
			last_error => $error,
			pending => 3,
			delivered => $delivered,
			next_attempt_at => qr/./
		},
		during => sub {
			ok(wait_until(sub { $sandbox->used >= 4 }), 'it is tried again');
			is(status($node, 'postgres')->{delivered}, $delivered, 'nothing counts as delivered');
		},
		end => sub { $sandbox->behave },
		again => $rule->{accept});
}

# The API itself under another path.
$fault->survived(
	'another path',
	begin => sub { $fault->configure(endpoint => 'http://127.0.0.1:' . $sandbox->port . '/Attribution-API/v1/events') },
	while => { state => 'misconfigured', state_reason => qr/endpoint/, last_error => qr/^HTTP 404/ },
	end => sub { $fault->configure(endpoint => $sandbox->url) });

is($other->report->{connections}, 0, 'the other server was never contacted');
my %asked = map { ("$_->{method} $_->{path}" => 1) } @{ $sandbox->requests };
is_deeply([ sort keys %asked ], [ 'POST /Attribution-API/v1/events', 'POST /attribution-api/v1/events' ],
	'nor was the endpoint asked for anything else');

# ---------------------------------------------------------------------------
# Slow probes, at the pace that is the default
# ---------------------------------------------------------------------------

$fault->configure(batch_max_events => 10, retry_initial_delay => '10ms', retry_max_delay => '1h');
foreach my $end ('resume()', 'a reload')
{
	$fault->survived(
		"ended by $end",
		begin => sub { $sandbox->behave({ status => 200 }) },
		while => { state => 'misconfigured', next_attempt_at => qr/./, in_flight => 0 },
		during => sub {
			# The events' own waits double from a second on.
			ok($node->poll_query_until('postgres', <<'SQL'), 'the next probe is seconds away');
SELECT next_attempt_at - last_error_at BETWEEN '2 s' AND '1 h' FROM onside_attribution.status
SQL
			$sandbox->behave;
			$end eq 'a reload'
			  ? $fault->configure(batch_max_events => 20)
			  : $node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
		});
}
$fault->configure(retry_initial_delay => '20ms', retry_max_delay => '200ms', batch_max_events => 1000);

# ---------------------------------------------------------------------------
# A body behind a 204
# ---------------------------------------------------------------------------

# The batch behind it meets a 503, which acknowledges nothing.
my $duplicates = $sandbox->report->{duplicates};
foreach my $body ("HTTP/1.1 204 No Content\r\n\r\n", 'x' x 200_000)
{
	my $case = '204 with a body of ' . length $body;
	$fault->survived(
		$case,
		begin => sub {
			$sandbox->behave({ fault => 'body_on_204', body => $body, times => 1 }, { status => 503, times => 1 });
		},
		events => 1,
		end => sub { wait_for_flush($node, 'postgres', 'it acknowledges') });
	is($sandbox->used, 1, "$case: it was sent");
	$fault->survived("$case, and what comes next");
	is($sandbox->rules->[1]{used}, 1, "$case: the next batch has met its own answer");
}
is($sandbox->report->{duplicates}, $duplicates, 'nothing was sent again because of what is around a 204');

$node->stop;
done_testing();
