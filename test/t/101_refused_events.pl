# A 400 costs the events that earned it and no other: the batch is taken apart
# until they stand alone, the good ones are delivered, the bad ones go to
# dead_letter with the API's words.  A 400 that passes costs nothing.  While
# the API refuses everything and has accepted nothing, it is the contract and
# not the events: state "refusing", and nothing is dead-lettered.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use JSON::PP ();
use PostgreSQL::Test::Utils;
use Test::More;

use OnsideSandbox;
use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox);

# Records events in one transaction, bad ones where $bad has them (from 1 on).
# Returns the ids of the good and those of the bad ones.
sub record
{
	my ($n, @bad) = @_;
	my @rows = split /\n/, $node->safe_psql('postgres', <<SQL);
SELECT i = ANY ('{@{[join ',', @bad]}}'), onside_attribution.track(
    CASE WHEN i = ANY ('{@{[join ',', @bad]}}') THEN 'bad' ELSE 'good' END,
    gen_random_uuid(), jsonb_build_object('i', i))
FROM generate_series(1, $n) i
SQL
	my (@good, @refused);
	foreach (@rows)
	{
		my ($is_bad, $id) = split /\|/;
		push @{ $is_bad eq 't' ? \@refused : \@good }, $id;
	}
	return (\@good, \@refused);
}

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

sub start_over
{
	$sandbox->behave;
	$sandbox->poison(undef);
	$sandbox->reset;
	$node->safe_psql('postgres', 'DELETE FROM onside_attribution.dead_letter');
	return;
}

# ---------------------------------------------------------------------------
# The first event ever is refused
# ---------------------------------------------------------------------------

create_extension($node, 'postgres');
my $worker = worker_pid($node, 'postgres');

$sandbox->poison('"bad"');
my ($good, $bad) = record(1, 1);
my $row = poll_status(
	$node,
	'postgres',
	{   state => 'refusing',
		state_reason => qr/endpoint/,
		last_error => qr/HTTP 400: .*events\[0\]/,
		next_attempt_at => qr/./,
		pending => 1
	},
	'first event refused: that may be the endpoint');
ok($sandbox->wait_requests($sandbox->report->{requests} + 3, patience())->{reached},
	'first event refused: it is tried again');
is($node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.dead_letter'),
	0, 'first event refused: it is not given up');
is(status($node, 'postgres')->{state}, 'refusing', 'first event refused: still refusing');

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
cmp_ok($letter->{attempts}, '>=', 3, 'dead letter: attempts counts what was tried');
cmp_ok($letter->{attempts}, '<', $requests, 'dead letter: and no more than that');
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

foreach my $where (1, 2, 5, 10)
{
	start_over();
	$sandbox->poison('"bad"');
	($good, $bad) = record(10, $where);
	settled_ok("number $where of 10 is bad", $worker, $good, $bad);
}

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
$sandbox->behave({ status => 400, times => 15 });
($good) = record(1000);
settled_ok('a 400 that passes after fifteen requests', $worker, $good, []);

start_over();
$sandbox->behave({ status => 400, body => '{"error": "unknown version"}' });
($good) = record(5000);
poll_status($node, 'postgres',
	{ state => 'refusing', state_reason => qr/./, last_error => qr/unknown version/, next_attempt_at => qr/./ },
	'all of 5000 are refused: refusing');
$sandbox->wait_requests($sandbox->report->{requests} + 10, patience());
is($node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.dead_letter'),
	0, 'all of 5000 are refused: none is given up');
$sandbox->behave;
settled_ok('all of 5000 were refused', $worker, $good, []);

# The same for as many as fit into one small batch, when nothing is known of
# the API yet.
start_over();
$node->restart;
$worker = poll_worker($node, 'postgres', $worker);
$sandbox->behave({ status => 400 });
($good) = record(20);
poll_status($node, 'postgres', { state => 'refusing', pending => 20 },
	'all of 20 are refused: refusing');
is($node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.dead_letter'),
	0, 'all of 20 are refused: none is given up');
$sandbox->behave;
settled_ok('all of 20 were refused', $worker, $good, []);

$node->stop;
done_testing();
