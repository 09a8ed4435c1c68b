# A connection that breaks at any moment of a request (before it, while the
# body is sent, after it, after the batch was taken but before the answer) or
# between two requests costs no event, dead-letters none and does not end the
# worker.  What was taken without our knowing it comes again with the same
# event_id and the same bytes.

use JSON::PP ();
use OnsideTest;
use OnsideFault;

my ($node, $sandbox) = sending_node(conf => "onside_attribution.request_timeout = '60s'");
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);

$fault->settled('before anything');

# ---------------------------------------------------------------------------
# Resets
# ---------------------------------------------------------------------------

my %backing_off = (
	state => 'backing_off',
	state_reason => qr/cannot be reached or fails/,
	last_error => qr/\w/,
	last_error_at => qr/\d/,
	retries => qr/^[1-9]/,
	next_attempt_at => qr/\d/);

foreach my $rule (
	{ fault => 'reset_before_read' },
	{ fault => 'reset_during_upload', bytes => 400 },
	{ fault => 'reset_after_upload' },
	{ fault => 'close_no_answer' })
{
	my $name = join ' ', map { $rule->{$_} } reverse sort keys %$rule;
	$fault->survived(
		$name,
		begin => sub { $sandbox->behave($rule) },
		while => \%backing_off,
		during => sub {
			is($node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.pending'),
				3, "$name: the events are pending meanwhile");
			ok($sandbox->report->{by_fault}{ $rule->{fault} } > 0, "$name: it was that fault");
		},
		end => sub { $sandbox->behave });
}

# In the middle of a large body, which does not fit the socket's buffers.
my $large = '{"filler": "' . 'x' x 300_000 . '"}';
$fault->survived(
	'reset during the upload of a large body',
	begin => sub { $sandbox->behave({ fault => 'reset_during_upload', bytes => 200_000 }) },
	while => \%backing_off,
	events => 3,
	payload => $large,
	end => sub { $sandbox->behave });

# Taken, and then no answer: what came must come again.
foreach my $how (qw(reset_after_upload close_no_answer))
{
	$fault->survived(
		"$how when the batch was taken",
		begin => sub { $sandbox->behave({ fault => $how, accept => JSON::PP::true() }) },
		while => \%backing_off,
		end => sub { $sandbox->behave },
		again => 1);
}

# Every second request fails: it goes on, and ends.
$fault->survived(
	'flapping',
	begin => sub { $sandbox->behave({ fault => 'flap' }) },
	events => 100);
$sandbox->behave;

# ---------------------------------------------------------------------------
# Kept-alive connections that are not alive any more
# ---------------------------------------------------------------------------

# The server closes while nothing is under way: nobody notices it.
{
	my $retries = status($node, 'postgres')->{retries};

	# A reload closes what is kept of the cases before, perhaps several.
	$node->reload;
	wait_until(sub { $sandbox->report->{open_connections} == 0 })
	  or die 'the worker has not closed its connections';
	$sandbox->behave({ fault => 'stale_keepalive', after => 0 });
	foreach my $round (1 .. 10)
	{
		$fault->record(1);
		wait_for_flush($node, 'postgres', "closed between requests: round $round");
		wait_until(sub { $sandbox->report->{open_connections} == 0 })
		  or die 'the sandbox has not closed its connection';
	}
	$fault->settled('closed between requests');
	is(status($node, 'postgres')->{retries}, $retries,
		'closed between requests: which is no failure');
	$sandbox->behave;
}

# The server closes at the first byte of the next request: it was not taken.
{
	$sandbox->behave({ fault => 'stale_keepalive', when => 'next_request' });
	foreach my $round (1 .. 10)
	{
		$fault->record(1);
		wait_for_flush($node, 'postgres', "closed at the next request: round $round");
	}
	$sandbox->behave;
	$fault->settled('closed at the next request');
	cmp_ok($sandbox->report->{by_fault}{stale_keepalive}, '>', 10,
		'closed at the next request: that happened');
}

# The server goes away and comes back at its address.
{
	my $port = $sandbox->port;
	my @before = $fault->record;
	wait_for_flush($node, 'postgres');
	arrived_ok($sandbox, $fault->{recorded}, 'the server restarts: all arrived before');

	# What arrived there is forgotten with it.
	$fault->{recorded} = [];
	$fault->{sandboxes} = [];
	$fault->survived(
		'the server restarts',
		begin => sub { $sandbox->stop },
		while => \%backing_off,
		end => sub { $fault->sandbox($sandbox = OnsideSandbox->start(port => $port)) });
}

$node->stop;
done_testing();
