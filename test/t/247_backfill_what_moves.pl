# Every row that a table has when backfill begins becomes an event, under one
# event_id, whatever happens to the table until it ends: rows that are updated and
# get a place where backfill has been, or move to a partition that it has read;
# partitions that are attached, detached, dropped; a table that is rewritten.
# And no partition is read twice.
#
# Each case is stopped in its second chunk, changed, and called again.

use OnsideTest;

my $node = onside_node('main', conf => "onside_attribution.enabled = off\nautovacuum = off");
create_extension($node, 'postgres');

sub sql { return $node->safe_psql('postgres', $_[0]) }

# Stops where the setting says.  Rows of a table have 1 to 3500 as n, in their order.
sql(<<'SQL');
CREATE FUNCTION stops(int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF $1 = current_setting('t.stop', true)::int THEN RAISE 'stopped at %', $1; END IF;
    RETURN true;
END
$$;
SQL

sub call
{
	my ($table, $stop) = @_;
	my ($out, $err) = ('', '');
	$node->psql('postgres', 'SET t.stop = ' . ($stop // 0) . "; CALL onside_attribution.backfill('$table', 'e')",
		stdout => \$out, stderr => \$err);
	return $err;
}

my $columns = 'part int NOT NULL, n int NOT NULL, note text, inst uuid DEFAULT gen_random_uuid()';

# The table and its partitions; 1, 2 and 3 have a thousand rows each, the default 500.
sub make
{
	my ($kind) = @_;
	return "CREATE TABLE t ($columns)" if $kind eq 'plain';
	return <<"SQL";
CREATE TABLE late ($columns);
CREATE TABLE t ($columns) PARTITION BY LIST (part);
CREATE TABLE t_1 PARTITION OF t FOR VALUES IN (1) PARTITION BY RANGE (n);
CREATE TABLE t_1_a PARTITION OF t_1 FOR VALUES FROM (0) TO (500);
CREATE TABLE t_1_b PARTITION OF t_1 FOR VALUES FROM (500) TO (100000);
CREATE TABLE t_2 PARTITION OF t FOR VALUES IN (2);
CREATE TABLE t_3 PARTITION OF t FOR VALUES IN (3);
CREATE TABLE t_d PARTITION OF t DEFAULT;
SQL
}

# name, kind of table, at which row it is stopped, what is done then, how many events are
# recorded in all, and what has to be true after the changes
my @cases = (
	[ 'nothing happens', 'plain', 1500, '', 3500 ],
	[ 'nothing happens', 'partitioned', 1500, '', 3500 ],
	[ 'a row gets a place at the beginning', 'plain', 1500,
		[ 'DELETE FROM t WHERE n <= 20', 'VACUUM t', "UPDATE t SET note = 'moved' WHERE n = 3400" ],
		3500, "SELECT ctid < '(1,0)' FROM t WHERE n = 3400" ],
	[ 'a row gets a place at the end', 'plain', 1500, "UPDATE t SET note = 'moved' WHERE n = 10", 3501 ],
	[ 'all rows are updated', 'plain', 1500, "UPDATE t SET note = 'all'", 4500 ],
	[ 'rows in a subtransaction', 'plain', 1500,
		[ 'DELETE FROM t WHERE n <= 20', 'VACUUM t', "BEGIN; SAVEPOINT a; UPDATE t SET note = 'moved' WHERE n = 3400; RELEASE a; COMMIT" ], 3500 ],
	[ 'a row moves to a partition that was read', 'partitioned', 2500, 'UPDATE t SET part = 1 WHERE n IN (2900, 3450)', 3500 ],
	[ 'a row moves to a partition that was not read', 'partitioned', 1500, 'UPDATE t SET part = 3 WHERE n IN (1, 3450)', 3501 ],
	[ 'a partition is attached', 'partitioned', 1500,
		[ "INSERT INTO late (part, n) SELECT 4, n FROM generate_series(4000, 4099) AS n", 'ALTER TABLE t ATTACH PARTITION late FOR VALUES IN (4)' ], 3600 ],
	[ 'a partition is made', 'partitioned', 1500,
		[ 'CREATE TABLE t_4 PARTITION OF t FOR VALUES IN (4)', 'INSERT INTO t (part, n) SELECT 4, n FROM generate_series(4000, 4099) AS n' ], 3600 ],
	[ 'the partition that is being read is detached', 'partitioned', 1500, 'ALTER TABLE t DETACH PARTITION t_2', 2500 ],
	[ 'and attached again', 'partitioned', 1500,
		[ 'ALTER TABLE t DETACH PARTITION t_2', 'ALTER TABLE t ATTACH PARTITION t_2 FOR VALUES IN (2)' ], 3500 ],
	[ 'a partition that was read is attached again', 'partitioned', 2500,
		[ 'ALTER TABLE t DETACH PARTITION t_1', 'ALTER TABLE t ATTACH PARTITION t_1 FOR VALUES IN (1)' ], 3500 ],
	[ 'one that was not read is detached', 'partitioned', 1500, 'ALTER TABLE t DETACH PARTITION t_3', 2500 ],
	[ 'one that was read is dropped', 'partitioned', 2500, 'DROP TABLE t_1', 3500 ],
	[ 'one that is being read is dropped', 'partitioned', 1500, 'DROP TABLE t_2', 2500 ],
	[ 'a sub-partition is detached', 'partitioned', 400, 'ALTER TABLE t_1 DETACH PARTITION t_1_b', 2999 ],
	[ 'VACUUM FULL', 'plain', 1500, [ 'DELETE FROM t WHERE n = 1', 'VACUUM FULL t' ], 4499 ],
	[ 'a rewrite', 'plain', 1500, 'ALTER TABLE t ALTER note TYPE varchar(99)', 4500 ],
	[ 'a rewrite of what was read', 'partitioned', 2500, 'ALTER TABLE t ALTER note TYPE varchar(99)', 5500 ],
	[ 'TRUNCATE and new rows', 'plain', 1500, [ 'TRUNCATE t', 'INSERT INTO t (part, n) VALUES (1, 1), (1, 4711)' ], 1002 ],
);

foreach my $case (@cases)
{
	my ($name, $kind, $stop, $changes, $count, $check) = @$case;

	subtest "$name ($kind)" => sub {
		sql(make($kind));
		sql('INSERT INTO t (part, n) SELECT CASE WHEN n <= 3000 THEN (n + 999) / 1000 ELSE 99 END, n FROM generate_series(1, 3500) AS n');
		$node->safe_psql('postgres', "SELECT onside_attribution.attach('t', 'e', 'inst', '{\"n\": \"n\"}', event_id => 'n', condition => 'stops(NEW.n)')");
		# Nothing but backfill records, also where a row that moves is inserted.
		sql('ALTER TABLE t DISABLE TRIGGER USER');
		like(call('t', $stop), qr/stopped at $stop/, 'it is stopped');
		sql($_) foreach ref $changes ? @$changes : $changes eq '' ? () : $changes;
		is(sql($check), 't', 'the row is there') if defined $check;
		unlike(call('t'), qr/ERROR/, 'called again, it comes to its end');
		is(sql("SELECT count(*) FROM t WHERE NOT EXISTS (SELECT FROM onside_attribution.outbox WHERE payload ->> 'n' = t.n::text)"),
			0, 'every row is an event');
		is(sql("SELECT count(*) FROM (SELECT FROM onside_attribution.outbox GROUP BY payload HAVING count(DISTINCT event_id) > 1) AS several"),
			0, 'and one');
		is(sql('SELECT count(*) FROM onside_attribution.outbox'), $count, "as many were recorded as the changes make necessary");
		sql('TRUNCATE onside_attribution.outbox; DROP TABLE t; DROP TABLE IF EXISTS late, t_1_b, t_2, t_3');
	};
}

# ---------------------------------------------------------------------------
# Open transactions
# ---------------------------------------------------------------------------

# What began before backfill and commits in its midst: a row whose update it did not
# see, at a place that it has read by then.
foreach my $how ('a transaction', 'a subtransaction', 'a prepared transaction')
{
	subtest "$how that is open when it begins" => sub {
		sql(make('plain'));
		sql('INSERT INTO t (part, n) SELECT 1, n FROM generate_series(1, 3500) AS n; DELETE FROM t WHERE n <= 20');
		sql('VACUUM t');
		sql("SELECT onside_attribution.attach('t', 'e', 'inst', '{\"n\": \"n\"}', event_id => 'n', condition => 'stops(NEW.n)')");
		my $open = $node->background_psql('postgres', on_error_stop => 1);
		$open->query_safe('BEGIN');
		$open->query_safe('SAVEPOINT a') if $how eq 'a subtransaction';
		$open->query_safe("UPDATE t SET note = 'moved' WHERE n = 3400");
		$open->query_safe("PREPARE TRANSACTION 'open'") if $how eq 'a prepared transaction';
		like(call('t', 1500), qr/stopped at 1500/, 'it is stopped');
		$open->query_safe($how eq 'a prepared transaction' ? "COMMIT PREPARED 'open'" : 'COMMIT');
		$open->quit;
		is(sql("SELECT ctid < '(1,0)' FROM t WHERE n = 3400"), 't', 'the row is at a place that was read');
		unlike(call('t'), qr/ERROR/, 'called again, it comes to its end');
		is(sql('SELECT count(*), count(DISTINCT event_id) FROM onside_attribution.outbox'), '3480|3480', 'every row is an event, once');
		sql('TRUNCATE onside_attribution.outbox; DROP TABLE t');
	};
}

# ---------------------------------------------------------------------------
# What is read
# ---------------------------------------------------------------------------

# A wide column that is not mapped lies in the TOAST table, and stays there.
sql(<<'SQL');
CREATE TABLE wide (id int PRIMARY KEY, inst uuid DEFAULT gen_random_uuid(), body text);
ALTER TABLE wide ALTER body SET STORAGE EXTERNAL;
INSERT INTO wide (id, body) SELECT n, repeat(n::text, 2500) FROM generate_series(1, 2000) AS n;
SELECT onside_attribution.attach('wide', 'columns', 'inst', '{"id": "id"}', event_id => 'id');
CREATE FUNCTION mapper(w wide) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS
    $$SELECT w.inst, '{}'::jsonb, '2026-05-05 12:00+00'::timestamptz, onside_attribution.event_id('wide', w.id::text)$$;
SELECT onside_attribution.attach('wide', 'mapper', mapper => 'mapper');
SQL
my $blocks = sql("SELECT pg_relation_size('wide') / 8192");
foreach my $event (qw(columns mapper))
{
	# The statistics are told when a session ends.
	sql('SELECT pg_stat_reset()');
	sql("CALL onside_attribution.backfill('wide', '$event')");
	$node->poll_query_until('postgres', "SELECT heap_blks_read + heap_blks_hit > 0 FROM pg_statio_user_tables WHERE relname = 'wide'")
	  or die 'no statistics';
	my ($heap, $toast) = split /\|/, sql("SELECT heap_blks_read + heap_blks_hit, toast_blks_read + toast_blks_hit + tidx_blks_read + tidx_blks_hit FROM pg_statio_user_tables WHERE relname = 'wide'");
	note("$event: $heap blocks of $blocks, and $toast of TOAST");
	is($toast, 0, "$event: nothing is read of a column that is not mapped");
	cmp_ok($heap, '<=', 3 * $blocks + 3, "$event: and each block three times");
}

$node->stop;
done_testing();
