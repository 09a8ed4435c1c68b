# A segment is emptied seldom, because standbys replay the lock and end whatever
# reads it there: an idle shop's stays for a day, a larger one goes at 16 MB,
# retention counts from when writing left it, and a query on a standby
# (hot_standby_feedback) that began before that keeps it, until the outbox is as
# large as four segments.

use OnsideTest;
use OnsideMachine;

my $machine = OnsideMachine->new or plan skip_all => 'NOT TESTED: gcc cannot make faults.so';
my $sandbox = OnsideSandbox->start(sink => 1);
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF', init => { allows_streaming => 1 });
hot_standby_feedback = on
wal_receiver_status_interval = '1s'
max_standby_streaming_delay = '1s'
CONF
create_extension($node, 'postgres');

sub sql { return $node->safe_psql('postgres', $_[0]) }

sql(<<'SQL');
CREATE FUNCTION noise(bytes integer) RETURNS jsonb LANGUAGE sql VOLATILE AS $$
    SELECT jsonb_build_object('text', string_agg(md5(random()::text || i), ''))
    FROM generate_series(1, bytes / 32) i
$$
SQL

sub record
{
	my ($n, $bytes) = @_;
	sql("SELECT count(onside_attribution.track('e', '$OnsideTest::installation', noise($bytes))) FROM generate_series(1, $n)");
	wait_for_flush($node, 'postgres', "$n events of $bytes bytes are delivered");
	return;
}

sub segment { return sql('SELECT segment FROM onside_attribution.delivery_cursor') }
sub kept { return sql('SELECT count(*) FROM onside_attribution.outbox') }

# Has the segments looked after, and waits until that has been done: writing
# down a segment's times is part of it.
sub maintained
{
	my $times = "SELECT coalesce(begun_at::text, '') || settled::text FROM onside_attribution.delivery_cursor";
	for (1 .. 2)
	{
		my $was = sql($times);
		track($node, 'postgres');
		$node->reload;
		wait_for_flush($node, 'postgres', 'more is delivered');
		wait_until(sub { sql($times) ne $was });
	}
	return;
}

sub configure
{
	my ($name, $value) = @_;
	sql("ALTER SYSTEM SET onside_attribution.$name = '$value'");
	$node->reload;
	return;
}

subtest 'an idle shop' => sub {
	record(20, 100);
	my $segment = segment();
	$machine->set_clock(23 * 3600);
	maintained();
	is(segment(), $segment, 'after 23 hours writing is where it was');
	ok(kept() >= 20, 'nothing is emptied');
	$machine->set_clock(25 * 3600);
	track($node, 'postgres');
	$node->reload;
	ok(wait_until(sub { kept() == 0 }), 'after a day the segment is emptied');
	isnt(segment(), $segment, 'writing has left it');
};

subtest 'a busy one' => sub {
	my $segment = segment();
	record(15, 950_000);
	my $n = kept();
	ok($n >= 15, 'what is smaller than 16 MB stays');
	record(5, 950_000);

	# Writing may have moved on between two events of the statement.
	ok(wait_until(sub { kept() < 5 }), 'what is larger goes');
	isnt(segment(), $segment, 'writing has left it');
};

subtest 'retention' => sub {
	configure('segment_size', '64kB');
	configure('retention', '1h');
	my $segment = segment();
	record(200, 1000);
	ok(wait_until(sub { segment() != $segment }), 'a segment is full');
	my $n = kept();
	my $now = sql('SELECT now()');
	my $first = "SELECT count(*) FROM onside_attribution.outbox WHERE recorded_at < '$now'";
	$machine->set_clock(25 * 3600 + 3500);
	maintained();
	is(sql($first), $n, 'all of it stays as long as retention says');
	is(sql("SELECT onside_attribution.replay(now() - interval '1 hour')") >= $n, 1, 'and can be replayed');
	wait_for_flush($node, 'postgres', 'it is replayed');
	$machine->set_clock(25 * 3600 + 3700);
	$node->reload;
	ok(wait_until(sub { sql($first) == 0 }), 'then it goes');
	ok(kept() >= $n, 'and what was recorded later does not');
	configure('retention', '0');
	ok(wait_until(sub { kept() < $n }), 'without retention, it does');
};

subtest 'a standby' => sub {
	$node->backup('copy');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'copy', has_streaming => 1);
	$standby->append_conf('postgresql.conf', "max_standby_streaming_delay = '1s'");
	$standby->start;
	$node->wait_for_catchup($standby);

	my $reader = $standby->background_psql('postgres');
	$reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM onside_attribution.outbox');
	my $xmin = $standby->safe_psql('postgres', 'SELECT pg_snapshot_xmin(pg_current_snapshot())');
	record(1, 10);
	ok( wait_until(sub { sql("SELECT backend_xmin::text::bigint <= $xmin FROM pg_stat_replication") eq 't' }),
		'the standby tells of its snapshot');

	my $segment = segment();
	record(200, 1000);
	ok(wait_until(sub { segment() != $segment }), 'a segment is full');
	my $n = kept();
	poll_status($node, 'postgres', { state_reason => qr/kept for a standby/ }, 'status says why it is not emptied');
	is($reader->query_safe('SELECT 1'), 1, 'the query on the standby goes on');

	for (1 .. 10) { record(200, 1000) }
	ok(wait_until(sub { kept() < $n }), 'a crowded outbox is emptied all the same');
	$reader->quit;

	record(200, 1000);
	ok(wait_until(sub { kept() < 400 }), 'without a reader there, segments are emptied');
	$node->wait_for_catchup($standby);
	is($standby->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.outbox'), kept(),
		'the standby has the same');
	$standby->stop;
};

$node->stop;
done_testing();
