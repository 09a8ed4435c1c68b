# Batches are what the settings say: never more events or bytes than
# batch_max_events and batch_max_bytes, never more requests under way than
# max_in_flight, never one event_id twice in a request.  A batch that is not
# full goes at once when nothing is under way, unless linger holds it back.  An
# idle server sends nothing and sleeps.

use Time::HiRes ();
use OnsideTest;

my ($node, $sandbox) = sending_node();

# Sets things in postgresql.conf.  That the worker has taken them shows in what
# it says of "enabled", which is turned off and on again.
sub configure
{
	my (%settings) = @_;
	$node->append_conf('postgresql.conf', "onside_attribution.$_ = '$settings{$_}'")
	  foreach sort keys %settings;
	foreach my $state (qw(disabled paused|idle|sending))
	{
		$node->append_conf('postgresql.conf',
			'onside_attribution.enabled = ' . ($state eq 'disabled' ? 'off' : 'on'));
		$node->reload;
		wait_until(sub { status($node, 'postgres')->{state} =~ /^($state)$/ })
		  or die "the worker has not taken the settings";
	}
	return;
}

# Records while paused, then lets it all go.
sub record
{
	my ($sql) = @_;
	$node->safe_psql('postgres', 'SELECT onside_attribution.pause()');
	$node->safe_psql('postgres', $sql);
	$sandbox->reset;
	$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
	return;
}

# At a fixed time, so that each has as many bytes as the others.
my $track = q{onside_attribution.track('purchase_completed', gen_random_uuid(), '{}', '2026-05-05T12:00:00Z')};

# ---------------------------------------------------------------------------
# batch_max_events, batch_max_bytes
# ---------------------------------------------------------------------------

configure(batch_max_events => 7);
record("SELECT $track FROM generate_series(1, 100)");
wait_for_flush($node, 'postgres');
my $report = $sandbox->report;
is($report->{distinct}, 100, 'batch_max_events: all arrived');
is($report->{max_events}, 7, 'never more in a request');
is($report->{requests}, 15, 'and in no more requests than needed');

configure(batch_max_events => 1000, batch_max_bytes => 5000);
record("SELECT $track FROM generate_series(1, 100)");
wait_for_flush($node, 'postgres');
$report = $sandbox->report;
is($report->{distinct}, 100, 'batch_max_bytes: all arrived');
cmp_ok($report->{max_body}, '<', 5000, 'the whole body is smaller than that');
cmp_ok($report->{max_body}, '>', 4500, 'but not by more than an event');

# To the byte: a body may be one byte below the limit.
my @requests = @{ $sandbox->requests };
my %bytes = map { $_->{events} => $_->{body_bytes} } @requests;
my ($most) = sort { $b <=> $a } keys %bytes;
configure(batch_max_bytes => $bytes{$most} + 1);
record("SELECT $track FROM generate_series(1, $most)");
wait_for_flush($node, 'postgres');
is($sandbox->report->{requests}, 1, 'a body one byte below the limit is one request')
  or diag("$most events are $bytes{$most} bytes");
configure(batch_max_bytes => $bytes{$most});
record("SELECT $track FROM generate_series(1, $most)");
wait_for_flush($node, 'postgres');
is($sandbox->report->{requests}, 2, 'a body of the limit would not be below it');

record("SELECT onside_attribution.track('large', gen_random_uuid(), json_build_object('x', repeat('y', 20000))::jsonb), $track, $track");
wait_for_flush($node, 'postgres');
my @sent = map { $_->{events} } @{ $sandbox->requests };
is($sandbox->report->{distinct}, 3, 'an event larger than batch_max_bytes is sent');
is_deeply([ sort @sent ], [ 1, 2 ], 'alone');

# ---------------------------------------------------------------------------
# One event_id
# ---------------------------------------------------------------------------

configure(batch_max_bytes => 1000000);
my $id = '7f2c1de0-4a7b-4a52-9a31-1c2d3e4f5061';
record(<<SQL);
SELECT $track FROM generate_series(1, 3);
SELECT onside_attribution.track('once', gen_random_uuid(), '{}', event_id => '$id');
SELECT $track FROM generate_series(1, 3);
SELECT onside_attribution.track('again', gen_random_uuid(), '{}', event_id => '$id');
SELECT $track FROM generate_series(1, 3);
BEGIN;
SELECT onside_attribution.track('third', gen_random_uuid(), '{}', event_id => '$id');
SELECT onside_attribution.track('fourth', gen_random_uuid(), '{}', event_id => '$id');
COMMIT;
SQL
wait_for_flush($node, 'postgres');
$report = $sandbox->report;
is($report->{events_accepted}, 13, 'one event_id four times: all are sent');
is($sandbox->events->{$id}, 4, 'four times');
is_deeply($report->{by_status}, { 204 => 4 }, 'in four requests, and none was refused');

# ---------------------------------------------------------------------------
# max_in_flight
# ---------------------------------------------------------------------------

configure(batch_max_events => 10, max_in_flight => 3);
$sandbox->behave({ delay => 0.2 });
record("SELECT $track FROM generate_series(1, 120)");
my $row = poll_status($node, 'postgres', { state => 'sending', in_flight => 3 },
	'max_in_flight: status shows three requests under way');
wait_for_flush($node, 'postgres');
is($sandbox->report->{max_concurrent}, 3, 'never more');
is($sandbox->report->{max_events}, 10, 'full batches go beside others');
configure(max_in_flight => 1);
record("SELECT $track FROM generate_series(1, 50)");
wait_for_flush($node, 'postgres');
is($sandbox->report->{max_concurrent}, 1, 'one at a time');

# What comes while a request is under way goes together after it.
configure(max_in_flight => 4, batch_max_events => 1000);
$sandbox->behave({ delay => 1, times => 1 });
$sandbox->reset;
$node->safe_psql('postgres', "SELECT $track");
ok(wait_until(sub { $sandbox->report->{in_progress} == 1 }), 'a request is under way');
$node->safe_psql('postgres', "SELECT $track;\n" x 5);
wait_for_flush($node, 'postgres');
@sent = map { $_->{events} } @{ $sandbox->requests };
is($sent[0], 1, 'the first event has gone at once');
cmp_ok(scalar @sent, '<', 6, 'those behind it went together')
  or diag("events per request: @sent");
$sandbox->behave;

# ---------------------------------------------------------------------------
# linger
# ---------------------------------------------------------------------------

configure(linger => '1h', batch_max_events => 5);
$sandbox->reset;
$node->safe_psql('postgres', "SELECT $track") foreach 1 .. 4;
poll_status($node, 'postgres', { pending => 4 }, 'linger: events are pending');
is($sandbox->report->{requests}, 0, 'nothing is sent');
$node->safe_psql('postgres', "SELECT $track");
poll_status($node, 'postgres', { pending => 0 }, 'a full batch goes at once');
is($sandbox->report->{max_events}, 5, 'it is full');
is($sandbox->report->{requests}, 1, 'it is one');
$node->safe_psql('postgres', "SELECT $track");
poll_status($node, 'postgres', { pending => 1 }, 'another event is held back');
configure(linger => '0');
wait_for_flush($node, 'postgres', 'without linger it goes');
configure(linger => '200ms', batch_max_events => 1000);
$node->safe_psql('postgres', "SELECT $track");
ok($sandbox->wait_distinct(7)->{reached}, 'a short linger ends by itself');
configure(linger => '0');

# ---------------------------------------------------------------------------
# At rest
# ---------------------------------------------------------------------------

wait_for_flush($node, 'postgres');
poll_status($node, 'postgres', { state => 'idle' }, 'idle');

# What is left to do behind the events: the cursor's row, the segments.
my $worker = worker_pid($node, 'postgres');
my $launcher = launcher_pid($node);
my ($slept, $requests, @before);
wait_until(
	sub {
		my $now = context_switches($worker);
		my $still = defined $slept && $now == $slept;
		$slept = $now;
		return $still;
	}, undef, 3);

# A bounded time in which nothing at all happens is what is looked at here.
my $seconds = 6;
@before = map { context_switches($_) } $worker, $launcher;
$requests = $sandbox->report->{requests};
my $cpu = cpu_of($worker);
Time::HiRes::sleep($seconds);
my @after = map { context_switches($_) } $worker, $launcher;
is(worker_pid($node, 'postgres'), $worker, 'at rest: the same worker');
is($sandbox->report->{requests}, $requests, 'at rest: no request');
note(sprintf 'in %d s, the worker slept %d times and the launcher %d times; the worker took %d ticks of CPU',
	$seconds, $after[0] - $before[0], $after[1] - $before[1], cpu_of($worker) - $cpu);
cmp_ok($after[0] - $before[0], '<', $seconds, 'at rest: the worker sleeps');
cmp_ok($after[1] - $before[1], '<', $seconds, 'at rest: the launcher sleeps');

sub cpu_of
{
	my ($pid) = @_;
	my @stat = split ' ', slurp_file("/proc/$pid/stat") =~ s/^.*\) //sr;
	return $stat[11] + $stat[12];
}

$node->stop;
done_testing();
