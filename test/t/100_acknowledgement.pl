# A 204 is the one acknowledgement.  Whatever else says "success" (a portal, a
# proxy, a wrong address) settles nothing: state "misconfigured", slow probes,
# two after each wait, and all is sent once the API is back.  What a peer puts around
# a 204, before or behind it, neither loses nor repeats anything.

use JSON::PP ();
use OnsideTest;
use OnsideFault;

my ($node, $sandbox) = sending_node();
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);

# ---------------------------------------------------------------------------
# Success, but not this one
# ---------------------------------------------------------------------------

foreach (
	[ 200, '' ],
	[ 200, '{"status": "ok"}' ],
	[ 200, '<!DOCTYPE html><title>Welcome to the free Wi-Fi</title>' ],
	[ 200, '{"status": 204}' ],
	[ 201, '' ],
	[ 201, '{}' ],
	[ 202, '' ],
	[ 202, 'queued' ],
	[ 203, 'changed on its way' ],
	[ 205, '' ],
	[ 206, 'a part' ],
	[ 207, '<multistatus/>' ],
	[ 299, '' ])
{
	my ($status, $body) = @$_;
	my $case = $status . ($body eq '' ? ' without a body' : " with \"$body\"");
	my $delivered = status($node, 'postgres')->{delivered};

	$fault->survived(
		$case,
		begin => sub { $sandbox->behave({ status => $status, body => $body }) },
		while => {
			state => 'misconfigured',
			state_reason => qr/onside_attribution\.endpoint/,
			last_error => $body eq '' ? "HTTP $status" : qr/^HTTP $status: \Q$body\E$/,
			pending => 3,
			delivered => $delivered,
			next_attempt_at => qr/./
		},
		during => sub {
			ok(wait_until(sub { $sandbox->used >= 4 }), "$case: it is tried again");
			is(status($node, 'postgres')->{delivered}, $delivered, "$case: nothing counts as delivered");
		},
		end => sub { $sandbox->behave });
}

# A peer that keeps the events and then says another word than it should have
# gets them again, the same.
$fault->survived(
	'a 200 from one who has kept the events',
	begin => sub { $sandbox->behave({ status => 200, accept => JSON::PP::true() }) },
	while => { state => 'misconfigured', pending => 3 },
	end => sub { $sandbox->behave },
	again => 1);

# ---------------------------------------------------------------------------
# Slow probes: once it is plain that it is the endpoint, two after each wait
# ---------------------------------------------------------------------------

$fault->configure(batch_max_events => 10);
wait_for_flush($node, 'postgres', 'many batches: nothing else is pending');
$fault->survived(
	'many batches',
	begin => sub { $sandbox->behave({ status => 200, delay => 0.02 }) },
	events => 300,
	while => { state => 'misconfigured', pending => 300 },
	during => sub {
		# A hundred failures, and a hundred of events that had never been sent,
		# come first.
		ok($sandbox->wait_requests($sandbox->report->{requests} + 210, patience())->{reached},
			'many batches: they are looked into');
		my $from = $sandbox->report->{requests} + 4;
		ok($sandbox->wait_requests($from + 10, patience())->{reached},
			'many batches: probes go on');
		my @probes = @{ $sandbox->requests }[ $from .. $from + 9 ];
		my $overlaps = grep { $probes[$_]{time} < $probes[ $_ - 2 ]{time} + 0.02 } 2 .. $#probes;
		is($overlaps, 0, 'many batches: two probes at a time');
	},
	end => sub { $sandbox->behave });

$fault->configure(retry_initial_delay => '10ms', retry_max_delay => '1h');
poll_status($node, 'postgres', { state => 'idle' }, 'default pace: begins idle');
foreach my $end ('resume()', 'a reload')
{
	$fault->survived(
		"ended by $end",
		begin => sub { $sandbox->behave({ status => 200 }) },
		while => { state => 'misconfigured', next_attempt_at => qr/./, in_flight => 0 },
		during => sub {
			# The events' own waits double from a second on.
			ok( $node->poll_query_until('postgres', <<'SQL'), "ended by $end: the next probe is seconds away");
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
# What can be around a 204
# ---------------------------------------------------------------------------

my $duplicates = $sandbox->report->{duplicates};

$fault->survived('1xx before the answer',
	begin => sub { $sandbox->behave({ fault => 'continue_first' }) },
	events => 5);
$fault->survived('1xx before a 503',
	begin => sub { $sandbox->behave({ status => 503, times => 2 }, { fault => 'continue_first' }) });
$fault->survived('a 204 without Date',
	begin => sub { $sandbox->behave({ fault => 'no_date' }) });
$fault->survived('a 204 with headers that mean nothing',
	begin => sub {
		$sandbox->behave({ headers => { 'Retry-After' => '3600', Location => 'http://127.0.0.1:1/', Refresh => '0' } });
	});

# A body on a 204 must not be taken for the next answer, whatever it says: the
# batch behind it meets a 503, which acknowledges nothing.
foreach my $body (
	'surprise',
	"HTTP/1.1 204 No Content\r\n\r\n",
	"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
	'x' x 200_000)
{
	my $case = '204 with a body, ' . (length $body > 100 ? 'a long one' : $body =~ s/\r\n.*//sr);
	$fault->survived(
		$case,
		begin => sub {
			$sandbox->behave({ fault => 'body_on_204', body => $body, times => 1 }, { status => 503, times => 1 });
		},
		events => 1,
		end => sub { wait_for_flush($node, 'postgres', "$case: it acknowledges") });
	is($sandbox->used, 1, "$case: it was sent");
	$fault->survived("$case, and what comes next");
	is($sandbox->rules->[1]{used}, 1, "$case: the next batch has met its own answer");
}
is($sandbox->report->{duplicates}, $duplicates, 'nothing was sent again because of what is around a 204');

$node->stop;
done_testing();
