# A 400 costs the events that earned it and no other: the batch is taken apart
# until they stand alone, the good ones are delivered, the bad ones go to
# dead_letter with the API's words, after two refusals alone, 2 s apart.  A 400
# that passes costs nothing.  While the API refuses everything and accepts nothing,
# it is the contract and not the events: at most ten are given up, then the state
# is "refusing"; and when it accepts again, those come back by themselves.

use JSON::PP ();
use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox);

sub record { return track_some_bad($node, 'postgres', @_) }

# What holds after each case: the good ones have arrived, dead_letter holds the
# bad ones, each once, and nothing else, and all is quiet again with the same
# worker.
sub settled_ok
{
	my ($case, $worker, $good, $bad) = @_;
	wait_for_flush($node, 'postgres', "$case: all is settled");
	arrived_ok($sandbox, $good, "$case: what is good has arrived, and nothing else");
	is( $node->safe_psql('postgres',
			'SELECT event_id FROM onside_attribution.dead_letter ORDER BY 1'),
		join("\n", sort @$bad),
		"$case: what is bad is in dead_letter, once, and nothing else");
	my $row = poll_status($node, 'postgres',
		{ state => 'idle', pending => 0, next_attempt_at => undef }, "$case: idle afterwards");
	is($row->{worker_pid}, $worker, "$case: the worker is the same process");
	return;
}

# At most ten are given up while nothing is accepted; they heal by themselves.
sub few_given_up
{
	my ($case) = @_;
	cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.dead_letter'),
		'<=', 10, "$case: at most ten are given up");
	return;
}

sub healed
{
	my ($case) = @_;
	ok( $node->poll_query_until('postgres',
			q{SELECT count(*) = 0 FROM onside_attribution.dead_letter WHERE event_name = 'good'}),
		"$case: those that were given up come back by themselves");
	return;
}

sub start_over
{
	$sandbox->behave;
	$sandbox->poison(undef);
	$sandbox->reset;
	$node->safe_psql('postgres', 'DELETE FROM onside_attribution.dead_letter');

	# Something is accepted: so many refusals until now count no more.
	track($node, 'postgres', 'good');
	wait_for_flush($node, 'postgres', 'start over');
	$sandbox->reset;
	return;
}

# ---------------------------------------------------------------------------
# The first event ever is refused
# ---------------------------------------------------------------------------

create_extension($node, 'postgres');
my $worker = worker_pid($node, 'postgres');

$sandbox->poison('"bad"');
my ($good, $bad) = record(1, 1);
poll_status(
	$node,
	'postgres',
	{   last_error => qr/HTTP 400: .*events\[0\]/,
		last_success_at => undef
	},
	'first event refused: it is said');

# It may be given up as one of ten, but not before it was refused twice.
ok( $node->poll_query_until('postgres', <<'SQL'), 'first event refused: pending, or refused twice');
SELECT s.pending = 1 OR EXISTS (SELECT FROM onside_attribution.dead_letter WHERE attempts >= 2)
FROM onside_attribution.status s
SQL
ok($sandbox->wait_requests(2, patience())->{reached}, 'first event refused: it is tried again');

my ($good_after) = record(1);
settled_ok('first event refused, the next one accepted', $worker, $good_after, $bad);

my $requests = $sandbox->report->{requests};
my $letter = $node->safe_psql('postgres', <<'SQL');
SELECT row_to_json(d) FROM onside_attribution.dead_letter d
SQL
$letter = JSON::PP::decode_json($letter);
is($letter->{event_name}, 'bad', 'dead letter: event_name');
is_deeply($letter->{payload}, { i => 1 }, 'dead letter: payload');
is($letter->{http_status}, 400, 'dead letter: http_status');
like($letter->{error}, qr/events\[0\]/, 'dead letter: the words of the API');
cmp_ok($letter->{attempts}, '>=', 2, 'dead letter: attempts counts what was tried');
cmp_ok($letter->{attempts}, '<=', $requests, 'dead letter: and no more than that');
is( $node->safe_psql('postgres', <<'SQL'), 't|t|t', 'dead letter: its times');
SELECT event_datetime <= recorded_at, recorded_at < failed_at, failed_at <= now()
FROM onside_attribution.dead_letter
SQL

# ---------------------------------------------------------------------------
# One, ten, all, and one that passes
# ---------------------------------------------------------------------------

start_over();
$sandbox->poison('"bad"');
($good, $bad) = record(1, 1);
settled_ok('a bad one alone', $worker, $good, $bad);

start_over();
$sandbox->poison('"bad"');
($good, $bad) = record(1000, 1, 2, 3, 100, 499, 500, 501, 777, 999, 1000);
settled_ok('ten of 1000 are bad', $worker, $good, $bad);

start_over();
$sandbox->poison('"bad"');
($good, $bad) = record(10, 1 .. 10);
settled_ok('ten of 10 are bad', $worker, $good, $bad);

start_over();
$sandbox->behave({ status => 400, times => 1 });
($good) = record(100);
settled_ok('a 400 that passes', $worker, $good, []);

start_over();
$sandbox->behave({ status => 400, times => 1 });
($good) = record(1);
settled_ok('a 400 that passes, for a single event', $worker, $good, []);

start_over();
$sandbox->behave({ status => 400, body => '{"error": "unknown version"}' });
($good) = record(5000);
poll_status($node, 'postgres',
	{ state => 'refusing', state_reason => qr/./, last_error => qr/unknown version/, next_attempt_at => qr/./ },
	'all of 5000 are refused: refusing');
$sandbox->wait_requests($sandbox->report->{requests} + 10, patience());
few_given_up('all of 5000 are refused');
$sandbox->behave;
healed('all of 5000 were refused');
settled_ok('all of 5000 were refused', $worker, $good, []);

# The same for as many as fit into one small batch, when nothing is known of
# the API yet.
start_over();
$node->restart;
$worker = poll_worker($node, 'postgres', $worker);
$sandbox->behave({ status => 400 });
($good) = record(20);
poll_status($node, 'postgres', { state => 'refusing', pending => sub { $_[0] >= 10 } },
	'all of 20 are refused: refusing');
few_given_up('all of 20 are refused');
$sandbox->behave;
healed('all of 20 were refused');
settled_ok('all of 20 were refused', $worker, $good, []);

$node->stop;
done_testing();
