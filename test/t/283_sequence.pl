# (xid, id) is an event's place in the log, so it must be unique: within each
# transaction the id counts 1, 2, 3 ... in the order of recording, whatever else
# the transaction is.  It may be prepared while its session goes on, have 10,000
# savepoints, fail in the middle, record in a cursor, in a trigger of a trigger
# or at the commit itself.  status.pending is exact after each, all of it arrives
# once, and a session's memory does not grow with the savepoints that it had.

use OnsideTest;

my $savepoints = 10_000;
my $sandbox = OnsideSandbox->start(keep_events => 0);

# Each open savepoint that has written holds a lock.
my $node = onside_node('main', sandbox => $sandbox, conf => 'max_locks_per_transaction = 512');
create_extension($node, 'postgres');

# note() records an event and notes it beside, with its place in the order of
# recording; what is inserted into "bought" is noted by that.
$node->safe_psql('postgres', <<'SQL');
CREATE SEQUENCE place;
CREATE TABLE noted (place bigint DEFAULT nextval('place'), event_id uuid);
CREATE TABLE bought (
	place bigint DEFAULT nextval('place'),
	event_id uuid DEFAULT gen_random_uuid() UNIQUE,
	installation_id uuid DEFAULT gen_random_uuid(),
	note text);
CREATE TABLE bought_with (LIKE bought INCLUDING ALL);
CREATE TABLE bought_last (LIKE bought INCLUDING ALL);
CREATE VIEW committed AS
	SELECT place, event_id FROM noted
	UNION ALL SELECT place, event_id FROM bought
	UNION ALL SELECT place, event_id FROM bought_with
	UNION ALL SELECT place, event_id FROM bought_last;
CREATE FUNCTION note() RETURNS void LANGUAGE sql AS $$
	INSERT INTO noted (event_id) SELECT onside_attribution.track('noted', gen_random_uuid(), '{}')
$$;
CREATE FUNCTION note(n integer) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
	PERFORM note();
	RETURN n;
END
$$;

-- Two triggers, by name: the row is recorded, and then what goes with it.
CREATE FUNCTION buy_with() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.note = 'nested' THEN
		INSERT INTO bought_with DEFAULT VALUES;
		BEGIN
			INSERT INTO bought_with DEFAULT VALUES;
			RAISE EXCEPTION 'no';
		EXCEPTION WHEN raise_exception THEN
			INSERT INTO bought_with DEFAULT VALUES;
		END;
	END IF;
	RETURN NULL;
END
$$;
CREATE TRIGGER a_records AFTER INSERT ON bought FOR EACH ROW
	EXECUTE FUNCTION onside_attribution.track_row('event_name=bought', 'installation_id=installation_id', 'event_id=event_id');
CREATE TRIGGER b_nests AFTER INSERT ON bought FOR EACH ROW EXECUTE FUNCTION buy_with();
CREATE TRIGGER records AFTER INSERT ON bought_with
	REFERENCING NEW TABLE AS rows FOR EACH STATEMENT
	EXECUTE FUNCTION onside_attribution.track_row('event_name=with', 'installation_id=installation_id', 'event_id=event_id');
CREATE FUNCTION buy_last() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO noted (event_id) SELECT onside_attribution.track('last', gen_random_uuid(), '{}');
	RETURN NULL;
END
$$;
CREATE TRIGGER a_records AFTER INSERT ON bought_last FOR EACH ROW
	EXECUTE FUNCTION onside_attribution.track_row('event_name=last', 'installation_id=installation_id', 'event_id=event_id');
CREATE CONSTRAINT TRIGGER b_at_commit AFTER INSERT ON bought_last
	DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION buy_last();
SELECT onside_attribution.pause('sequence');
SQL
poll_status($node, 'postgres', { state => 'paused' }, 'paused');

# What is wrong with the places in the log: one line for each kind.
my $wrong = <<'SQL';
WITH log AS (
	SELECT o.xid, o.id, c.place, o.event_id,
		row_number() OVER (PARTITION BY o.xid ORDER BY o.id) AS counted,
		row_number() OVER (PARTITION BY o.xid ORDER BY c.place) AS recorded
	FROM onside_attribution.outbox o LEFT JOIN committed c USING (event_id))
SELECT 'not recorded: ' || count(*) FROM committed c
	WHERE NOT EXISTS (SELECT FROM log l WHERE l.event_id = c.event_id) HAVING count(*) > 0
UNION ALL
SELECT 'not committed: ' || count(*) FROM log WHERE place IS NULL HAVING count(*) > 0
UNION ALL
SELECT 'two at one place: ' || count(*)
	FROM (SELECT FROM log GROUP BY xid, id HAVING count(*) > 1) AS twice HAVING count(*) > 0
UNION ALL
SELECT 'does not count from 1: ' || count(*) FROM log WHERE counted = 1 AND id <> 1 HAVING count(*) > 0
UNION ALL
SELECT 'out of order: ' || count(*) FROM log WHERE counted <> recorded HAVING count(*) > 0
SQL

my $so_far = 0;
my $wrong_so_far = '';

# So many more events have been committed, and all is right with them.
sub right_ok
{
	my ($n, $what) = @_;
	my $counted = $node->safe_psql('postgres', 'SELECT count(*) FROM committed');
	is($counted - $so_far, $n, "$what: $n events are committed");
	$so_far = $counted;

	# What was wrong before is not said again.
	my $found = $node->safe_psql('postgres', $wrong);
	is($found, $wrong_so_far, "$what: each has its place in the log");
	$wrong_so_far = $found;
	poll_status($node, 'postgres', { pending => $so_far }, "$what: status.pending is exact");
	return;
}

sub run_ok
{
	my ($n, $what, $script) = @_;
	$node->safe_psql('postgres', $script);
	return right_ok($n, $what);
}

my $note = 'SELECT note()';

# ---------------------------------------------------------------------------
# PREPARE TRANSACTION, and the session goes on
# ---------------------------------------------------------------------------

my $session = $node->background_psql('postgres', on_error_stop => 0);
$session->query_safe("BEGIN; $note; $note; $note; PREPARE TRANSACTION 'first'");
$session->query_safe($note);
right_ok(1, 'one after PREPARE in the same session');
$session->query_safe("BEGIN; $note; SAVEPOINT a; $note; RELEASE a; $note; COMMIT");
right_ok(3, 'several after PREPARE in the same session');
$session->query_safe("BEGIN; $note; SAVEPOINT a; $note; SAVEPOINT b; $note; PREPARE TRANSACTION 'second'");
$session->query_safe("BEGIN; $note; SAVEPOINT a; $note; ROLLBACK TO a; $note; COMMIT");
right_ok(2, 'after PREPARE in the midst of savepoints');
$session->query_safe("BEGIN; $note; SAVEPOINT a; $note; ROLLBACK TO a; PREPARE TRANSACTION 'third'");
$session->query_safe("BEGIN; $note; $note; SAVEPOINT a; $note; ROLLBACK");
$session->query_safe("BEGIN; $note; $note; COMMIT");
right_ok(2, 'after PREPARE and a ROLLBACK');
$node->safe_psql('postgres', "COMMIT PREPARED 'second'");
right_ok(3, 'COMMIT PREPARED in another session');
$session->query_safe("ROLLBACK PREPARED 'third'");
$session->query_safe("BEGIN; $note; $note; COMMIT");
right_ok(2, 'after ROLLBACK PREPARED in the same session');
$session->query_safe("COMMIT PREPARED 'first'");
$session->query_safe($note);
right_ok(4, 'COMMIT PREPARED in the same session, and one more');

# PREPARE that fails ends the transaction as an abort does.
$session->query_safe("BEGIN; $note; PREPARE TRANSACTION 'taken'");
$session->query("BEGIN; $note; SAVEPOINT a; $note; PREPARE TRANSACTION 'taken'");
$session->{stderr} = '';
$session->query_safe("BEGIN; $note; $note; COMMIT");
right_ok(2, 'after PREPARE that has failed');
$session->query_safe("ROLLBACK PREPARED 'taken'");
$session->query_safe("BEGIN; $note; COMMIT AND CHAIN; $note; $note; ROLLBACK AND CHAIN; $note; SAVEPOINT a; $note; COMMIT AND CHAIN; $note; COMMIT");
right_ok(4, 'COMMIT AND CHAIN');

# Many in a row, each of another shape; every other one is committed, later.
my $mixed = 0;
foreach my $i (1 .. 8)
{
	$session->query_safe(join '; ', 'BEGIN', ($note) x $i, "PREPARE TRANSACTION 'many $i'");
	$session->query_safe(join '; ', 'BEGIN', ($note) x (9 - $i), 'COMMIT');
	$mixed += 9 - $i;
}
foreach my $i (reverse 1 .. 8)
{
	my $committed = $i % 2;
	($i % 3 ? $session : $node)->${\ ($i % 3 ? 'query_safe' : 'safe_psql')}
	  ($i % 3 ? () : 'postgres', ($committed ? 'COMMIT' : 'ROLLBACK') . " PREPARED 'many $i'");
	$mixed += $i if $committed;
	$session->query_safe($note);
	$mixed++;
}
right_ok($mixed, 'prepared and not prepared by turns');
$session->quit;

# ---------------------------------------------------------------------------
# Savepoints
# ---------------------------------------------------------------------------

my $many = "$savepoints savepoints";
run_ok($savepoints + 1, "$many, nested",
	join(";\n", 'BEGIN', (map { "SAVEPOINT s$_; $note" } 1 .. $savepoints), $note, 'COMMIT'));
run_ok($savepoints + 1, "$many, released one by one",
	join(";\n", 'BEGIN', ("SAVEPOINT s; $note; RELEASE s") x $savepoints, $note, 'COMMIT'));
run_ok(2, "$many, rolled back one by one",
	join(";\n", 'BEGIN', $note, ("SAVEPOINT s; $note; ROLLBACK TO s; RELEASE s") x $savepoints, $note, 'COMMIT'));
run_ok($savepoints / 2 + 1, "$many, nested, half of them rolled back at once",
	join(";\n", 'BEGIN', (map { "SAVEPOINT s$_; $note" } 1 .. $savepoints),
		'ROLLBACK TO s' . ($savepoints / 2 + 1), $note, 'COMMIT'));
run_ok($savepoints / 2 + 1, "$many, nested, every other one rolled back on the way out",
	join(";\n", 'BEGIN', (map { "SAVEPOINT s$_; $note; SAVEPOINT t$_; $note; ROLLBACK TO t$_" } 1 .. $savepoints / 2),
		(map { "RELEASE s$_" } reverse 1 .. $savepoints / 2), $note, 'COMMIT'));

# All of these with a prepared transaction in the end.
$node->safe_psql('postgres',
	join(";\n", 'BEGIN', (map { "SAVEPOINT s$_; $note; SAVEPOINT t$_; $note; ROLLBACK TO t$_" } 1 .. 500),
		"PREPARE TRANSACTION 'savepoints'", ($note) x 3));
right_ok(3, 'prepared with 1000 savepoints');
$node->safe_psql('postgres', "COMMIT PREPARED 'savepoints'");
right_ok(500, 'and committed');

# ---------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------

# psql goes on after an error here.
sub stumble_ok
{
	my ($n, $what, $script) = @_;
	$node->psql('postgres', $script, on_error_stop => 0);
	return right_ok($n, $what);
}

stumble_ok(3, 'recording in an aborted subtransaction', <<SQL);
BEGIN; $note; SAVEPOINT a; $note; SELECT 1/0; $note; SELECT onside_attribution.track('x', gen_random_uuid(), '{}');
ROLLBACK TO a; $note; RELEASE a; $note; COMMIT;
SQL
stumble_ok(0, 'recording in an aborted transaction', "BEGIN; $note; SELECT 1/0; $note; COMMIT;");
stumble_ok(2, 'an invalid event in a subtransaction', <<SQL);
BEGIN; $note; SAVEPOINT a; $note; SELECT onside_attribution.track('', gen_random_uuid(), '{}'); ROLLBACK TO a; $note; COMMIT;
SQL
run_ok(4, 'EXCEPTION blocks', <<'SQL');
DO $$
BEGIN
	PERFORM note();
	BEGIN
		PERFORM note();
		BEGIN
			PERFORM note();
			RAISE EXCEPTION 'no';
		EXCEPTION WHEN raise_exception THEN
			PERFORM note();
		END;
		BEGIN
			PERFORM note();
			RAISE division_by_zero;
		EXCEPTION WHEN raise_exception THEN
			NULL;
		END;
	EXCEPTION WHEN division_by_zero THEN
		PERFORM note();
		BEGIN
			PERFORM note();
		EXCEPTION WHEN raise_exception THEN
			NULL;
		END;
	END;
	PERFORM note();
END
$$
SQL

# ---------------------------------------------------------------------------
# Cursors
# ---------------------------------------------------------------------------

run_ok(8, 'a cursor beside savepoints', <<SQL);
BEGIN;
DECLARE c CURSOR FOR SELECT note(i) FROM generate_series(1, 20) i;
FETCH 3 FROM c;
SAVEPOINT a; FETCH 2 FROM c; ROLLBACK TO a;
FETCH 2 FROM c; $note;
SAVEPOINT b; FETCH 1 FROM c; SAVEPOINT d; FETCH 4 FROM c; ROLLBACK TO d; RELEASE b;
FETCH 1 FROM c;
COMMIT;
SQL
run_ok(2, 'a cursor that is rolled back', <<SQL);
BEGIN;
$note;
SAVEPOINT a; DECLARE c CURSOR FOR SELECT note(i) FROM generate_series(1, 20) i; FETCH 3 FROM c; ROLLBACK TO a;
$note;
COMMIT;
SQL
run_ok(21, 'a cursor WITH HOLD, which records at the commit', <<SQL);
BEGIN;
$note;
DECLARE c CURSOR WITH HOLD FOR SELECT note(i) FROM generate_series(1, 20) i;
COMMIT;
FETCH 3 FROM c;
SQL
run_ok(6, 'a loop over a cursor, with COMMIT', <<'SQL');
DO $$
DECLARE
	i integer;
BEGIN
	FOR i IN SELECT note(n) FROM generate_series(1, 3) n LOOP
		PERFORM note();
		COMMIT;
	END LOOP;
END
$$
SQL

# ---------------------------------------------------------------------------
# Procedures
# ---------------------------------------------------------------------------

run_ok(25, 'DO with COMMIT and ROLLBACK', <<'SQL');
DO $$
BEGIN
	FOR i IN 1..10 LOOP
		PERFORM note();
		BEGIN
			PERFORM note();
			IF i % 2 = 0 THEN
				RAISE EXCEPTION 'no';
			END IF;
		EXCEPTION WHEN raise_exception THEN
			PERFORM note();
			PERFORM note();
		END;
		COMMIT;
		PERFORM note();
		ROLLBACK;
	END LOOP;
END
$$
SQL
run_ok(10, 'a procedure with COMMIT that calls another one', <<'SQL');
CREATE PROCEDURE inner_one(n integer) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM note();
	COMMIT;
	PERFORM note();
	IF n % 2 = 0 THEN
		ROLLBACK;
	END IF;
END
$$;
CREATE PROCEDURE outer_one() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1..4 LOOP
		CALL inner_one(i);
		PERFORM note();
	END LOOP;
END
$$;
CALL outer_one();
SQL

# ---------------------------------------------------------------------------
# Triggers, direct inserts
# ---------------------------------------------------------------------------

run_ok(3 * 3 + 2, 'a trigger of a trigger', <<SQL);
BEGIN;
$note;
INSERT INTO bought (note) VALUES ('nested');
INSERT INTO bought (note) VALUES ('nested');
SAVEPOINT a; INSERT INTO bought (note) VALUES ('nested'); ROLLBACK TO a;
INSERT INTO bought (note) VALUES ('nested');
$note;
COMMIT;
SQL
run_ok(2 * 3 + 1, 'a deferred trigger', <<SQL);
BEGIN;
INSERT INTO bought_last SELECT FROM generate_series(1, 3);
SAVEPOINT a; INSERT INTO bought_last DEFAULT VALUES; ROLLBACK TO a;
$note;
COMMIT;
SQL
run_ok(7, 'direct inserts and COPY between calls', <<SQL);
BEGIN;
$note;
WITH new AS (INSERT INTO noted (event_id) VALUES (gen_random_uuid()) RETURNING event_id)
	INSERT INTO onside_attribution.outbox (event_name, payload, installation_id, event_id)
	SELECT 'direct', '{}', gen_random_uuid(), event_id FROM new;
SAVEPOINT a;
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id) SELECT 'direct', '{}', gen_random_uuid();
$note;
ROLLBACK TO a;
$note;
COPY onside_attribution.outbox (event_name, payload, installation_id, event_id) FROM STDIN;
copied	{}	550e8400-e29b-41d4-a716-446655440000	3346c9a9-2201-438e-8609-6180e40e5021
copied	{}	550e8400-e29b-41d4-a716-446655440000	3346c9a9-2201-438e-8609-6180e40e5022
\\.
INSERT INTO noted (event_id) VALUES ('3346c9a9-2201-438e-8609-6180e40e5021'), ('3346c9a9-2201-438e-8609-6180e40e5022');
$note;
$note;
COMMIT;
SQL

# A function that only says that it is parallel-safe.
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE wide AS SELECT i FROM generate_series(1, 10000) i;
ANALYZE wide;
CREATE FUNCTION said_to_be_safe(i integer) RETURNS text LANGUAGE sql PARALLEL SAFE AS $$
	SELECT onside_attribution.track('parallel', gen_random_uuid(), jsonb_build_object('i', i))::text
$$;
SQL
my $parallel = <<'SQL';
SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
SET max_parallel_workers_per_gather = 2; SET parallel_leader_participation = off;
SQL
my $started = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');
my ($ret, $stdout, $stderr) = $node->psql('postgres', <<SQL, on_error_stop => 0);
$parallel
EXPLAIN SELECT count(said_to_be_safe(i)) FROM wide;
BEGIN; $note; SAVEPOINT a; SELECT count(said_to_be_safe(i)) FROM wide; ROLLBACK TO a; $note; COMMIT;
SELECT 'still here';
SQL
like($stdout, qr/Gather/, 'parallel workers would record');
like($stderr, qr/ERROR:.*parallel/, 'in a parallel worker: an error');
like($stdout, qr/still here/, 'and no crash');
is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $started, 'of the server');
right_ok(2, 'around it');

# ---------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------

# What 100,000 subtransactions that record leave in the session's memory, beside
# what as many leave that write to another table.
sub growth
{
	my ($body) = @_;
	my $loop = 'DO $$ BEGIN FOR i IN 1..%d LOOP BEGIN %s EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$';
	my $used = 'SELECT sum(used_bytes) FROM pg_backend_memory_contexts';
	my ($before, $after) = split /\n/, $node->safe_psql('postgres',
		join(";\n", 'BEGIN', sprintf($loop, 1000, $body), $used, sprintf($loop, 100_000, $body), $used, 'ROLLBACK'));
	return $after - $before;
}

my $track = q{PERFORM onside_attribution.track('x', '550e8400-e29b-41d4-a716-446655440000', '{}');};
my $insert = q{INSERT INTO wide VALUES (0);};
foreach my $end ([ 'rolled back', q{RAISE EXCEPTION 'no';} ], [ 'released', '' ])
{
	my ($how, $statement) = @$end;
	my $own = growth("$track $statement");
	my $other = growth("$insert $statement");
	note("$how: $own bytes, and $other without recording");
	cmp_ok($own, '<', $other + 1024 * 1024, "100,000 subtransactions that are $how leave nothing in memory");
}
right_ok(0, 'a rollback of all these');

# ---------------------------------------------------------------------------
# Gaps
# ---------------------------------------------------------------------------

# What a savepoint has taken back gives its number back, too.
is( $node->safe_psql('postgres', <<'SQL'),
SELECT count(*) FROM (
	SELECT FROM onside_attribution.outbox GROUP BY xid HAVING max(id) <> count(*)) AS gaps
SQL
	0, 'no transaction has a gap in its numbers');

# ---------------------------------------------------------------------------
# The end
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
wait_for_flush($node, 'postgres');
arrived_ok($sandbox, committed($node, 'postgres', 'SELECT event_id FROM committed'), 'all of it arrived');
nothing_came_twice($sandbox, 'once');
poll_status($node, 'postgres', { pending => 0, delivered => $so_far }, 'status counts it');

$node->stop;
done_testing();
