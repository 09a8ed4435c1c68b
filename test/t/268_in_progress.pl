# Tens of thousands of events (millions with ONSIDE_TEST_SCALE=full) that are not
# committed, rolled back, or prepared by another session cost nobody else anything:
# what a purchase, a flush(), a look at status makes the worker and the caller read
# follows what has become visible, not what is in progress.  This is counted (rows
# and blocks that are read), not timed.  Nor does COMMIT PREPARED of a large
# transaction while the API is away have its backlog read over and over.

use Time::HiRes ();
use OnsideTest;

my $n = scale(50_000, 2_000_000);
my $purchases = 100;

my $sandbox = OnsideSandbox->start(keep_events => 0);
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
autovacuum = off
shared_buffers = 256MB
CONF
create_extension($node, 'postgres');
$node->safe_psql('postgres', 'CREATE TABLE noted (event_id uuid)');
my $installation = $OnsideTest::installation;
my $note = "INSERT INTO noted SELECT onside_attribution.track('e', '$installation', '{}')";
my $many = "SELECT count(onside_attribution.track('many', '$installation', '{}')) FROM generate_series(1, $n)";

# What has been read of the segments: index entries, rows by the index and by
# scans, and blocks.
my $counters = <<'SQL';
SELECT (SELECT sum(idx_tup_read) FROM pg_stat_all_indexes WHERE schemaname = 'onside_attribution' AND relname ~ '^outbox'),
	(SELECT sum(idx_tup_fetch + seq_tup_read) FROM pg_stat_all_tables WHERE schemaname = 'onside_attribution' AND relname ~ '^outbox'),
	(SELECT sum(idx_blks_hit + idx_blks_read + heap_blks_hit + heap_blks_read) FROM pg_statio_all_tables WHERE schemaname = 'onside_attribution' AND relname ~ '^outbox')
SQL

sub counters
{
	return split /\|/, $node->safe_psql('postgres', $counters);
}

# A process reports what it has read when it is idle, at most once a second; so
# the worker gets something to do until all that comes along is that.  Where each
# of these reads more than that, it never comes to rest, and counts as it is.
sub have_read
{
	my @last = counters();
	my $rests = 0;
	foreach my $i (1 .. 20)
	{
		$node->safe_psql('postgres', "$note; SELECT onside_attribution.flush()");
		Time::HiRes::sleep(0.6);
		my @now = counters();
		$rests = $now[0] <= $last[0] + 10 ? $rests + 1 : 0 if $now[0] != $last[0];
		@last = @now;
		last if $rests >= 2;
	}
	return @last;
}

# Without looking at status, which counts by itself where there is no worker.
sub wait_for_worker
{
	my $pid;
	wait_until(sub { $pid = worker_pid($node, 'postgres') }) or die 'no worker came up';
	return $pid;
}

# The worker's own is there when it has ended, at the latest.
sub have_read_without_worker
{
	my $worker = wait_for_worker();
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
	wait_for_exit($worker) or die 'the worker does not end';
	return counters();
}

# Runs something and tests that no more than $limit was read for it, by anybody.
sub reads_ok
{
	my ($limit, $what, $code, $read) = @_;
	$read //= \&have_read;
	my @before = $read->();
	wait_for_worker();
	$code->();
	my @after = $read->();
	my @read = map { $after[$_] - $before[$_] } 0 .. 2;
	note("$what: @read entries, rows, blocks");
	cmp_ok($read[0], '<', $limit, "$what: index entries");
	cmp_ok($read[1], '<', $limit, "$what: rows");
	cmp_ok($read[2], '<', $limit, "$what: blocks");
	return;
}

sub buy
{
	$node->safe_psql('postgres', "DO \$\$ BEGIN FOR i IN 1..$purchases LOOP $note; COMMIT; PERFORM pg_sleep(0.005); END LOOP; END \$\$");
	return;
}

# What others do, each of it up to $purchases times; a few dozen entries and blocks
# for each purchase, with all the rest, would be generous.
my $generous = $purchases * 100;

sub others_ok
{
	my ($what) = @_;
	reads_ok($generous, "$what, purchases, flush(), status, reloads", sub {
		buy();
		$node->safe_psql('postgres', "$note; SELECT onside_attribution.flush();\n" x ($purchases / 4));
		$node->safe_psql('postgres', "SELECT * FROM onside_attribution.status;\n" x $purchases);
		foreach my $i (1 .. 5)
		{
			$node->reload;
			$node->safe_psql('postgres', "$note; SELECT onside_attribution.flush()");
		}
	});
	arrived_ok($sandbox, committed($node, 'postgres', 'SELECT event_id FROM noted'), "$what: others' events have arrived");
	poll_status($node, 'postgres', { pending => 0 }, "$what: nothing is pending");
	return;
}

$node->safe_psql('postgres', $note);
wait_for_flush($node, 'postgres');
others_ok('with nothing in progress');

# ---------------------------------------------------------------------------
# Not committed
# ---------------------------------------------------------------------------

# While they are written others buy: what is in progress is passed over, and not
# read even once.  (Blocks count for the writing, too.)
my $session = $node->background_psql('postgres', timeout => 10 * patience());
{
	my @before = have_read();
	$session->query_safe('BEGIN');
	foreach my $i (1 .. 10)
	{
		$session->query_safe($many =~ s/, $n\)/, $n \/ 10)/r);
		$node->safe_psql('postgres', "$note; SELECT onside_attribution.flush()");
	}
	my @read = have_read();
	$read[$_] -= $before[$_] foreach 0 .. 2;
	note("$n rows are written: @read entries, rows, blocks");
	cmp_ok($read[0], '<', $generous, "$n rows are written: index entries");
	cmp_ok($read[1], '<', $generous, "$n rows are written: rows");
}
others_ok("$n open rows");
is($node->safe_psql('postgres', 'SELECT count(*) FROM noted'), $sandbox->report->{distinct}, 'nothing of them has arrived');

reads_ok($generous, "$n open rows, another worker", sub {
	my $worker = poll_worker($node, 'postgres');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
	poll_worker($node, 'postgres', $worker);
	poll_status($node, 'postgres', { state => 'idle', pending => 0 }, 'another worker');
});
others_ok("$n open rows, another worker");

$session->query_safe('ROLLBACK');
others_ok("$n rows rolled back");
$session->query_safe("BEGIN; SAVEPOINT a; $many; ROLLBACK TO a; $note");
others_ok("$n rows rolled back in an open transaction");
$session->query_safe('COMMIT');
wait_for_flush($node, 'postgres');
# While the API is away, what is pending lies behind what is in progress.
$session->query_safe("BEGIN; $many");
$sandbox->behave({ status => 503 });
$node->safe_psql('postgres', $note);
poll_status($node, 'postgres', { state => 'backing_off', pending => 1 }, "$n open rows, the API is away");
reads_ok($n / 2, "$n open rows, the API is away, others", sub {
	buy();
	$node->safe_psql('postgres', "SELECT * FROM onside_attribution.status; SELECT onside_attribution.flush('10 ms');\n" x $purchases);
	poll_status($node, 'postgres', { pending => $purchases + 1 }, 'all of it is pending');
}, \&have_read_without_worker);
$sandbox->behave();
wait_for_worker();
wait_for_flush($node, 'postgres', "$n open rows, the API is back");
$session->query_safe('ROLLBACK');
$session->quit;

# ---------------------------------------------------------------------------
# Prepared
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', "BEGIN; $many; PREPARE TRANSACTION 'large'");
others_ok("$n prepared rows");

# Committed while the API is away: its events are counted, once by each worker,
# and what comes after it does not have them read again.
$sandbox->behave({ status => 503 });
$node->safe_psql('postgres', $note);
my $pending = 1;
poll_status($node, 'postgres', { state => 'backing_off', pending => 1 }, 'the API is away');

sub pending_ok
{
	my ($more, $what) = @_;
	$pending += $more;
	return poll_status($node, 'postgres', { pending => $pending }, "$what: status.pending is exact");
}

my $few_times = 4 * $n;
reads_ok($few_times, 'COMMIT PREPARED', sub {
	pending_ok(0, 'before COMMIT PREPARED');
	$node->safe_psql('postgres', "COMMIT PREPARED 'large'");
	pending_ok($n, 'COMMIT PREPARED');
}, \&have_read_without_worker);
reads_ok($few_times, 'a backlog, purchases', sub {
	pending_ok(0, 'a backlog, another worker');
	foreach my $i (1 .. 10)
	{
		buy();
		pending_ok($purchases, "a backlog, purchases, $i");
	}
}, \&have_read_without_worker);
reads_ok($few_times, 'a backlog, status and flush()', sub {
	pending_ok(0, 'a backlog, another worker again');
	$node->safe_psql('postgres', "SELECT * FROM onside_attribution.status; SELECT onside_attribution.flush('10 ms');\n" x $purchases);
	pending_ok(0, 'a backlog, status and flush()');
}, \&have_read_without_worker);

# Small transactions, prepared and committed by the dozen, as Citus does.
reads_ok($few_times, 'a backlog, 20 times COMMIT PREPARED', sub {
	pending_ok(0, 'a backlog, another worker once more');
	foreach my $i (1 .. 20)
	{
		$node->safe_psql('postgres', "BEGIN; $note; PREPARE TRANSACTION 'small'");
		$node->safe_psql('postgres', "COMMIT PREPARED 'small'");
		pending_ok(1, "COMMIT PREPARED, $i");
	}
}, \&have_read_without_worker);

$sandbox->behave();
wait_for_flush($node, 'postgres', 'the API is back');
is($sandbox->report->{distinct}, $n + $node->safe_psql('postgres', 'SELECT count(*) FROM noted'), 'all have arrived');

$node->stop;
done_testing();
