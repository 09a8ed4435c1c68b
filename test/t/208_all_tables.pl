# On a publisher of all tables, with slots that are read, whatever the extension
# does works as anywhere else: each of its functions, each statement of the
# worker, and what a person does to its tables by hand.  A subscriber that
# publishes nothing itself gets the events and the dead letters.

use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('publisher', sandbox => $sandbox,
	init => { allows_streaming => 'logical' },
	conf => <<'CONF');
onside_attribution.retention = '1h'
onside_attribution.on_invalid_event = dead_letter
CONF

sub sql { return $node->safe_psql('postgres', $_[0]) }

# The SQLSTATE of a statement, or what it returns.
sub try
{
	my ($ret, $out, $error) = $node->psql('postgres', $_[0], extra_params => [ '-v', 'VERBOSITY=sqlstate' ]);
	return $error =~ /ERROR:\s+(\w{5})/ ? $1 : $out;
}

# With the publication first: the install script runs on a publisher, too.
sql('CREATE PUBLICATION everything FOR ALL TABLES');
sql("SELECT pg_create_logical_replication_slot('text', 'test_decoding'), pg_create_logical_replication_slot('output', 'pgoutput')");
create_extension($node, 'postgres');

my $reader = IPC::Run::start(
	[ 'pg_recvlogical', '-d', $node->connstr('postgres'), '--slot', 'output', '--start', '--no-loop',
		'-o', 'proto_version=1', '-o', 'publication_names=everything',
		'-f', $node->basedir . '/received', '-F', '0' ],
	'2>', $node->basedir . '/receiving');

subtest 'every table has a replica identity' => sub {
	is(sql(<<'SQL'), '', 'of the extension');
SELECT c.oid::regclass FROM pg_class c
WHERE relnamespace = 'onside_attribution'::regnamespace AND relkind IN ('r', 'p') AND relreplident <> 'f'
    AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
SQL
};

subtest 'functions' => sub {
	sql(<<'SQL');
CREATE TABLE shop (n int PRIMARY KEY, id uuid DEFAULT gen_random_uuid(), install uuid DEFAULT gen_random_uuid(), total numeric DEFAULT 1);
INSERT INTO shop SELECT n FROM generate_series(1, 3) AS n;
SELECT onside_attribution.attach('shop', 'sold', 'install', '{"total": "total"}', event_id => 'id');
CALL onside_attribution.backfill('shop', 'sold');
INSERT INTO shop SELECT n FROM generate_series(4, 6) AS n;
INSERT INTO shop (n, total) VALUES (7, 'NaN');
SELECT onside_attribution.track('tracked', gen_random_uuid(), '{}');
SELECT onside_attribution.track_purchase(gen_random_uuid(), 1, 'USD');
SELECT onside_attribution.track_batch('[{"event_name": "b", "payload": {}, "event_datetime": "2026-05-05T12:00:00Z", "installation_id": "550e8400-e29b-41d4-a716-446655440000"}]');
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id) VALUES ('inserted', '{}', gen_random_uuid());
SQL
	wait_for_flush($node, 'postgres', 'flush');
	is($sandbox->report->{distinct}, 10, 'track and its like, attach, backfill');
	is(sql('SELECT recorded FROM onside_attribution.backfill_progress'), 3, 'backfill has kept its progress');
	is(try("SELECT onside_attribution.pause('x')"), '', 'pause');
	poll_status($node, 'postgres', { state => 'paused' }, 'it is paused');
	is(try('SELECT onside_attribution.resume()'), '', 'resume');
	poll_status($node, 'postgres', { state => 'idle' }, 'it is not any more');
	is(try("SELECT onside_attribution.replay('-infinity')"), 10, 'replay');
	is(try("SELECT count(*) > 5 FROM onside_attribution.doctor()"), 't', 'doctor');
	is(try('SELECT onside_attribution.stats_reset()'), '', 'stats_reset');
	is(try("SELECT onside_attribution.detach('shop', 'sold')"), 't', 'detach');
	wait_for_flush($node, 'postgres', 'flush');
	is($sandbox->report->{events_accepted}, 20, 'replayed: they have come again');
};

subtest 'dead letters' => sub {
	sql('DELETE FROM onside_attribution.dead_letter');
	$sandbox->poison('"bad"');
	my @bad = map { track($node, 'postgres', 'bad') } 1 .. 3;
	wait_for_flush($node, 'postgres', 'refused');
	is(sql('SELECT count(*) FROM onside_attribution.dead_letter'), 3, 'the worker has put them there');
	sql('UPDATE onside_attribution.dead_letter SET retry_at = NULL');
	$sandbox->poison(undef);
	is(try("UPDATE onside_attribution.dead_letter SET payload = payload || '{\"a\": 1}' WHERE event_id = '$bad[0]'"), '', 'UPDATE by hand');
	is(try("DELETE FROM onside_attribution.dead_letter WHERE event_id = '$bad[1]'"), '', 'DELETE by hand');
	is(try("SELECT onside_attribution.retry_dead_letters('{$bad[2]}')"), 1, 'retry_dead_letters of one');
	is(try('SELECT onside_attribution.retry_dead_letters()'), 1, 'retry_dead_letters of all');
	wait_for_flush($node, 'postgres', 'they are sent');
	is(join(' ', map { $sandbox->events->{$_} // 0 } @bad), '1 0 1', 'and arrive');
	is(sql('SELECT count(*) FROM onside_attribution.dead_letter'), 0, 'none is left');
};

subtest 'the outbox, by hand' => sub {
	sql('SELECT onside_attribution.pause()');
	poll_status($node, 'postgres', { state => 'paused' }, 'paused');
	my @ids = map { track($node, 'postgres', 'withdrawn', '{"long": "' . ('x' x 5000) . '"}') } 1 .. 2;
	foreach my $table (qw(outbox outbox_1 outbox_2 outbox_3))
	{
		my $there = sql("SELECT count(*) FROM onside_attribution.$table WHERE event_id IN ('$ids[0]', '$ids[1]')");
		is(try("UPDATE onside_attribution.$table SET payload = '{}' WHERE event_id = '$ids[0]'"),
			$there ? '55000' : '', "UPDATE of $table is refused as ever");
	}
	is(try("WITH d AS (DELETE FROM onside_attribution.outbox WHERE event_id = '$ids[0]' RETURNING 1) SELECT count(*) FROM d"),
		1, 'DELETE withdraws an event');
	sql('SELECT onside_attribution.resume()');
	wait_for_flush($node, 'postgres', 'the other one is sent');
	is(join(' ', map { $sandbox->events->{$_} // 0 } @ids), '0 1', 'and the first is not');
	is(try('TRUNCATE onside_attribution.outbox, onside_attribution.aside, onside_attribution.dead_letter'), '', 'TRUNCATE');

	# Or the worker might send it first.
	sql('SELECT onside_attribution.pause()');
	poll_status($node, 'postgres', { state => 'paused', in_flight => 0 }, 'paused again');
	is(try("INSERT INTO onside_attribution.aside (event_name, payload, event_datetime, installation_id, error) VALUES ('aside', '{}', now(), '$OnsideTest::installation', 'no')"), '', 'INSERT into aside');
	is(try("SELECT onside_attribution.forget('$OnsideTest::installation')"), 1, 'forget');
	sql('SELECT onside_attribution.resume()');
};

subtest 'the worker empties segments' => sub {
	set_for_database($node, 'postgres', 'retention', '0');
	set_for_database($node, 'postgres', 'segment_size', '64kB');
	my $first = track($node, 'postgres', 'more');
	ok( wait_until(
			sub {
				sql(<<'SQL');
SELECT onside_attribution.track('more', gen_random_uuid(), jsonb_build_object('x', repeat('y', 1000))) FROM generate_series(1, 200)
SQL
				sql('SELECT onside_attribution.flush()');
				return sql("SELECT count(*) FROM onside_attribution.outbox WHERE event_id = '$first'") == 0;
			}), 'one is emptied');
};

# What a reader of the slots has seen of all that.
sub changes
{
	return sql("SELECT data FROM pg_logical_slot_get_changes('text', NULL, NULL)");
}

subtest 'the slots' => sub {
	my $changes = changes();
	like($changes, qr/table onside_attribution\.outbox_\d: INSERT: .*'tracked'/, 'test_decoding has the events');
	like($changes, qr/table onside_attribution\.dead_letter: INSERT: .*'bad'/, 'and the dead letters');
	my @deleted = $changes =~ /table onside_attribution\.dead_letter: DELETE: (.*)/g;
	is(scalar @deleted, 4, 'and that these went');
	is(scalar(grep { /^id\[uuid\]:/ } @deleted), 4, 'by their ids');
	like($changes, qr/table onside_attribution\.outbox_\d: DELETE: event_id.*'withdrawn'/, 'and what was withdrawn, in full');

	my $lsn = sql('SELECT pg_current_wal_flush_lsn()');
	sql('CHECKPOINT');
	ok( $node->poll_query_until('postgres',
			"SELECT confirmed_flush_lsn >= '$lsn' FROM pg_replication_slots WHERE slot_name = 'output'"),
		'pgoutput has been read to the end');
	is(sql("SELECT active FROM pg_replication_slots WHERE slot_name = 'output'"), 't', 'without an error');
};

$reader->signal('TERM');
$reader->finish;
$node->stop;
done_testing();
