# A backlog of any size drains at full speed in bounded memory, and leaves
# nothing behind: no dead rows, and an outbox of one segment or less.  That
# somebody holds a snapshot all the while changes none of it.
#
# Default: 100,000 events of 250 bytes and 100 of 400 kB, twice.
# ONSIDE_TEST_SCALE=full: 1,000,000 and 2,000.  note() tells the figures.

use Time::HiRes ();
use OnsideTest;

my $small = scale(100_000, 1_000_000);
my $large = scale(100, 2000);
my $limit = scale(patience(), 1800);
my $segment_size = 8 * 1024 * 1024;

# What one worker may take beyond what it has at the start, whatever the
# backlog.  The bodies under way are 4 MB.
my $memory_limit = 48 * 1024;

my $sandbox = OnsideSandbox->start(keep_events => 0);
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
onside_attribution.segment_size = '8MB'
shared_buffers = 64MB
max_wal_size = 4GB
CONF
create_extension($node, 'postgres');
my $pgstattuple = $node->safe_psql('postgres',
	"SELECT count(*) FROM pg_available_extensions WHERE name = 'pgstattuple'");
$node->safe_psql('postgres', 'CREATE EXTENSION pgstattuple') if $pgstattuple;

# { table => dead rows } of the extension's tables and their TOAST, where there
# are any.
sub dead_rows
{
	my $dead =
	  $pgstattuple
	  ? '(pgstattuple(oid)).dead_tuple_count'
	  : 'pg_stat_get_dead_tuples(oid)';
	return {
		map { split /\|/ } @{
			committed($node, 'postgres', <<SQL) } };
WITH ours AS (
	SELECT oid, reltoastrelid FROM pg_class
	WHERE relnamespace = 'onside_attribution'::regnamespace AND relkind = 'r'),
everything AS (
	SELECT oid FROM ours UNION ALL SELECT reltoastrelid FROM ours WHERE reltoastrelid <> 0),
counted AS MATERIALIZED (SELECT oid::regclass AS name, $dead AS n FROM everything)
SELECT name, n FROM counted WHERE n > 0
SQL
}

# A name that makes the event 250 bytes long.
my $bare = $node->safe_psql('postgres', <<'SQL');
BEGIN;
SELECT onside_attribution.track('x', '11111111-2222-4333-8444-555555555555', '{"n": 100001}') AS id \gset
SELECT length(onside_attribution.preview(:'id')) - length('x');
SQL
my $name = 'x' x (250 - $bare);

sub record_backlog
{
	$node->safe_psql('postgres', "SELECT onside_attribution.pause('filling')");
	foreach my $i (1 .. 10)
	{
		my ($n, $m) = ($small / 10, $large / 10);
		$node->safe_psql('postgres', <<SQL);
SELECT count(onside_attribution.track('$name', '11111111-2222-4333-8444-555555555555',
	json_build_object('n', 100000 + i % 100000)::jsonb)) FROM generate_series(1, $n) i;
SELECT count(onside_attribution.track('large', '11111111-2222-4333-8444-555555555555',
	json_build_object('data', data)::jsonb))
FROM generate_series(1, $m) i,
	LATERAL (SELECT string_agg(md5(i::text || j || random()), '') AS data FROM generate_series(1, 12500) j) d
SQL
	}
	return;
}

# Returns events per second.
sub drain
{
	my ($what) = @_;

	# A worker that has not sent anything yet, for its memory.
	my $worker = worker_pid($node, 'postgres');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
	$worker = poll_worker($node, 'postgres', $worker);

	$sandbox->reset;
	record_backlog();
	my $full = outbox_size($node, 'postgres');
	poll_status($node, 'postgres', { state => 'paused', pending => $small + $large },
		"$what: recorded");

	my $before = memory_of($worker);
	my %most = (RssAnon => 0, VmRSS => 0, RssShmem => 0);
	my $start = Time::HiRes::time();
	$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
	my $drained = wait_until(
		sub {
			my $now = memory_of($worker);
			foreach my $kind (keys %most)
			{
				$most{$kind} = $now->{$kind}
				  if defined $now->{$kind} && $now->{$kind} > $most{$kind};
			}
			return $sandbox->report->{distinct} == $small + $large;
		}, $limit, 0.01);
	my $seconds = Time::HiRes::time() - $start;
	ok($drained, "$what: drained");
	wait_for_flush($node, 'postgres');

	my $report = $sandbox->report;
	note(sprintf '%s: %d events of 250 bytes and %d of 400 kB in %.1f s; %d requests, %d at once',
		$what, $small, $large, $seconds, $report->{requests}, $report->{max_concurrent});
	note(sprintf '%s: worker RssAnon %d kB before, %d kB at most; VmRSS %d kB, %d kB, of it shared memory %d kB',
		$what, $before->{RssAnon}, $most{RssAnon}, $before->{VmRSS},
		$most{VmRSS}, $most{RssShmem});

	is($report->{distinct}, $small + $large, "$what: everything arrived");
	is($report->{duplicates}, 0, "$what: nothing twice");
	cmp_ok($report->{max_body}, '<', 1_000_000, "$what: no body of 1,000,000 bytes");
	is($report->{max_events}, 1000, "$what: 1,000 events in a request, and no more");
	cmp_ok($report->{requests}, '<', 1.2 * ($small / 1000 + $large / 2),
		"$what: batches are full");
	is(worker_pid($node, 'postgres'), $worker, "$what: by one worker");
	cmp_ok($most{RssAnon} - $before->{RssAnon}, '<', $memory_limit,
		"$what: its memory is bounded");

	my $size;
	ok( wait_until(
			sub {
				$size = outbox_size($node, 'postgres');
				return $size <= $segment_size;
			}),
		"$what: the outbox is back to one segment or less");
	note("$what: outbox of $full bytes is $size bytes now");

	my $dead = dead_rows();
	note("$what: dead rows: "
		  . (join(', ', map { "$_ $dead->{$_}" } sort keys %$dead) || 'none'));
	my $cursor = delete $dead->{'onside_attribution.delivery_cursor'} // 0;
	delete $dead->{'onside_attribution.control'};
	is_deeply($dead, {}, "$what: no dead rows");
	return ($cursor, ($small + $large) / $seconds);
}

my ($dead, $rate) = drain('alone');
cmp_ok($dead, '<', 100, 'but a few of the cursor');

# With a snapshot, and an xid, held by somebody who has nothing to do with it.
my $holder = $node->background_psql('postgres');
$holder->query_safe(
	'BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id(); SELECT count(*) FROM pg_class');
my ($held_dead, $held_rate) = drain('snapshot held');
cmp_ok($held_dead, '<', 1000, 'but a few of the cursor');
note(sprintf 'events per second: %.0f alone, %.0f with a snapshot held: %.2f',
	$rate, $held_rate, $held_rate / $rate);

# They go when it does.
$holder->query_safe('COMMIT');
$holder->quit;
track($node, 'postgres');
wait_for_flush($node, 'postgres');
my $left;
wait_until(
	sub {
		# The worker may write the cursor once more in between.
		$node->safe_psql('postgres', 'VACUUM onside_attribution.delivery_cursor, onside_attribution.control');
		$left = dead_rows();
		return !%$left;
	});
is_deeply($left, {}, 'afterwards, the cursor has none either');

$node->stop;
done_testing();
