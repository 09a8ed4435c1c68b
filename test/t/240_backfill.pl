# backfill records the rows that a table held before its event was attached, each
# under its own event_id, whatever the trigger records meanwhile.  After a crash in
# the middle it goes on where it was, and two at a time share the work.  While too
# much is pending it waits, without a snapshot.

use OnsideTest;

my $node = onside_node('main', conf => "onside_attribution.enabled = off");
create_extension($node, 'postgres');

sub sql { return $node->safe_psql('postgres', $_[0]) }

sub table
{
	my ($name, $rows) = @_;
	sql(<<SQL);
CREATE TABLE $name (id bigint PRIMARY KEY, install_id uuid DEFAULT '0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9',
                    total numeric DEFAULT 9.90, note text, event_id uuid DEFAULT gen_random_uuid());
INSERT INTO $name (id) SELECT n FROM generate_series(1, $rows) AS n;
ANALYZE $name;
SQL
	return;
}

sub attach
{
	my ($name, $rest) = @_;
	return sql("SELECT onside_attribution.attach('$name', 'bought $name', 'install_id', '{\"id\": \"id\"}', event_id => 'event_id'" . ($rest // '') . ')');
}

# How many events of the table there are, how many of them are different rows,
# and how many have different event_ids.
sub recorded
{
	my ($name) = @_;
	return sql(<<SQL);
SELECT count(*), count(DISTINCT payload -> 'id'), count(DISTINCT event_id)
FROM onside_attribution.outbox WHERE event_name = 'bought $name'
SQL
}

sub call
{
	my ($name, $rest) = @_;
	my ($stdout, $stderr) = ('', '');
	$node->psql('postgres', "CALL onside_attribution.backfill('$name', 'bought $name'" . ($rest // '') . ')',
		stdout => \$stdout, stderr => \$stderr);
	return $stderr;
}

# ---------------------------------------------------------------------------
# While purchases come in
# ---------------------------------------------------------------------------

table('live', 5000);
attach('live');

# Keys among those of the old rows and behind them; some are still open when
# backfill reads, and some come after it.
my $busy = $node->background_psql('postgres', on_error_stop => 1);
$busy->query_safe("INSERT INTO live (id) SELECT -n FROM generate_series(1, 300) AS n");
$busy->query_safe('BEGIN');
$busy->query_safe("INSERT INTO live (id) SELECT 100000 + n FROM generate_series(1, 300) AS n");
unlike(call('live'), qr/ERROR/, 'live: backfill beside an open transaction');
$busy->query_safe('COMMIT');
$busy->query_safe("INSERT INTO live (id) SELECT 200000 + n FROM generate_series(1, 300) AS n");
$busy->quit;
is(recorded('live'), '6200|5900|5900', 'live: each row is one event, also the 300 that were recorded twice');
like(call('live'), qr/5900 events recorded in all/, 'live: a second call begins anew');
is(recorded('live'), '12100|5900|5900', 'live: and makes no other events');
is(sql("SELECT count(*) FROM onside_attribution.outbox WHERE event_name = 'bought live' AND event_id NOT IN (SELECT event_id FROM live)"),
	0, "live: each event has its row's event_id");

# ---------------------------------------------------------------------------
# A crash in the middle
# ---------------------------------------------------------------------------

# The row 3500 waits for a lock, when three chunks have been committed.
table('crash', 6000);
sql(<<'SQL');
CREATE FUNCTION wait_here(bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF $1 = 3500 THEN
        PERFORM pg_advisory_xact_lock(4711);
    END IF;
    RETURN true;
END
$$;
SQL
attach('crash', ", condition => 'wait_here(NEW.id)'");
my $lock = $node->background_psql('postgres');
$lock->query_safe('SELECT pg_advisory_lock(4711)');
my $backfill = $node->background_psql('postgres', on_error_stop => 0);
$backfill->query_until(qr/started/, "\\echo started\nCALL onside_attribution.backfill('crash', 'bought crash');\n");
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
  or die 'backfill does not come to row 3500';
is(recorded('crash'), '3000|3000|3000', 'crash: three chunks have been committed');
is(sql("SELECT rows_read, recorded, partition, finished_at IS NULL FROM onside_attribution.backfill_progress WHERE source = 'crash'::regclass"),
	'3000|3000|crash|t', 'crash: backfill_progress says so');
like(sql("SELECT query FROM pg_stat_activity WHERE pid = (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)"),
	qr/^CALL onside_attribution.backfill\('crash', 'bought crash'\); -- 3000 of about 6000 rows read, \d+:\d\d:\d\d left$/,
	'crash: and pg_stat_activity, with the time that is left');
is(sql("SELECT backend_xmin IS NULL FROM pg_stat_activity WHERE pid = (SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted)"),
	't', 'crash: (the session that holds the lock has no snapshot)');

my $pid = sql("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted");
kill 'KILL', $pid;
$node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')")
  or die 'the server does not come back';
eval { $_->quit } foreach $lock, $backfill;
is(recorded('crash'), '3000|3000|3000', 'crash: nothing of the open chunk is left');
like(call('crash'), qr/6000 events recorded in all/, 'crash: the next call goes on');
is(recorded('crash'), '6000|6000|6000', 'crash: each row was recorded once');

# ---------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------

# What the session has, where the second chunk begins and where the last one does.
my $rows = scale(10000, 1000000);
table('memory', $rows);
my $last = $rows - 999;
sql(<<"SQL");
CREATE TABLE memory_at (id bigint, bytes bigint);
CREATE FUNCTION measure(bigint) RETURNS boolean LANGUAGE plpgsql AS \$\$
BEGIN
    IF \$1 IN (1001, $last) THEN
        INSERT INTO memory_at SELECT \$1, sum(total_bytes) FROM pg_backend_memory_contexts;
    END IF;
    RETURN true;
END
\$\$;
SQL
attach('memory', ", condition => 'measure(NEW.id)'");
like(call('memory'), qr/$rows events recorded in all/, 'memory: all rows are recorded');
my ($second, $end) = split /\n/, sql('SELECT bytes FROM memory_at ORDER BY id');
note("the session has $second bytes in the second chunk and $end in the last");
cmp_ok($end, '<', $second + 1024 * 1024, 'memory: a chunk leaves nothing behind');

# ---------------------------------------------------------------------------
# Two at a time
# ---------------------------------------------------------------------------

table('two', 8000);
attach('two');
my @sessions = map { $node->background_psql('postgres', on_error_stop => 0) } 1 .. 2;
$_->query_until(qr/started/, "\\echo started\nCALL onside_attribution.backfill('two', 'bought two');\n") foreach @sessions;
$_->query_until(qr/ended/, "\\echo ended\n") foreach @sessions;
$_->quit foreach @sessions;
is(recorded('two'), '8000|8000|8000', 'two at a time: each row was recorded once');

# ---------------------------------------------------------------------------
# What is written on the table of ours
# ---------------------------------------------------------------------------

# Nobody else writes it: not by SQL, nor where a publication of all tables brings
# the rows of another server, whose tables have other OIDs.
my $before = sql('SELECT count(*), sum(recorded) FROM onside_attribution.backfill_state');
foreach my $role (qw(origin replica))
{
	is(sql(<<"SQL"), $before, "session_replication_role = $role: SQL changes no row of it");
SET client_min_messages = error;
SET session_replication_role = $role;
INSERT INTO onside_attribution.backfill_state (source, event_name, since, until, pass, done, partition, file, place, estimated, rows_read, recorded, skipped, dead_lettered, not_due, started_at, updated_at)
VALUES (1, 'e', '-infinity', 'infinity', 1, '{}', 0, 0, '(0,0)', 0, 0, 0, 0, 0, 0, now(), now());
UPDATE onside_attribution.backfill_state SET recorded = 4711;
DELETE FROM onside_attribution.backfill_state;
SELECT count(*), sum(recorded) FROM onside_attribution.backfill_state;
SQL
}

# Its rows are written whoever owns the table, and for a role that has no privilege
# on it (what fires there is refused, see 225_altered_tables.pl); with an isolation level that sees nothing new, too.
sql(<<'SQL');
CREATE ROLE clerk LOGIN;
ALTER TABLE onside_attribution.backfill_state OWNER TO clerk;
REVOKE ALL ON onside_attribution.backfill_state FROM clerk;
CREATE ROLE shopkeeper LOGIN;
GRANT USAGE ON SCHEMA onside_attribution TO shopkeeper;
GRANT EXECUTE ON PROCEDURE onside_attribution.backfill TO shopkeeper;
SQL
foreach my $isolation ('read committed', 'repeatable read', 'serializable')
{
	(my $name = $isolation) =~ tr/ /_/;
	table($name, 2500);
	attach($name);
	sql("GRANT SELECT ON $name TO shopkeeper");
	my @two = map {
		$node->background_psql('postgres', on_error_stop => 0, extra_params => [ '-U', 'shopkeeper' ])
	} 1 .. 2;
	$_->query_until(qr/started/, <<"SQL") foreach @two;
SET default_transaction_isolation = '$isolation';
\\echo started
CALL onside_attribution.backfill('$name', 'bought $name');
SQL
	$_->query_until(qr/ended/, "\\echo ended\n") foreach @two;
	$_->quit foreach @two;
	like(recorded($name), qr/\|2500\|2500$/, "$isolation: a role without privileges on the table records all rows");
	is(sql("SELECT recorded, finished_at IS NOT NULL FROM onside_attribution.backfill_progress WHERE source = '$name'::regclass"),
		'2500|t', "$isolation: and its progress is written once, past trigger, rule, policy and owner");
}

# ---------------------------------------------------------------------------
# Too much is pending
# ---------------------------------------------------------------------------

table('waits', 1500);
attach('waits');
sql("TRUNCATE onside_attribution.outbox; SELECT count(onside_attribution.track('filler', '$OnsideTest::installation', '{}')) FROM generate_series(1, 100000)");
poll_status($node, 'postgres', { pending => 100000 }, 'as much is pending as may be');
$backfill = $node->background_psql('postgres', on_error_stop => 0);
$backfill->query_until(qr/started/, "\\echo started\nCALL onside_attribution.backfill('waits', 'bought waits');\n\\echo ended\n");
$node->poll_query_until('postgres', "SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE query LIKE 'CALL onside%'")
  or die 'backfill does not wait';
is(sql("SELECT recorded, finished_at IS NULL FROM onside_attribution.backfill_progress WHERE source = 'waits'::regclass"),
	'1000|t', 'too much is pending: it waits behind its first chunk');
is(sql("SELECT backend_xmin IS NULL AND backend_xid IS NULL FROM pg_stat_activity WHERE query LIKE 'CALL onside%'"),
	't', 'without a snapshot and without a transaction number');
sql('TRUNCATE onside_attribution.outbox');
$backfill->query_until(qr/ended/, '');
$backfill->quit;
is(sql("SELECT recorded, finished_at IS NOT NULL FROM onside_attribution.backfill_progress WHERE source = 'waits'::regclass"),
	'1500|t', 'it goes on when there is room');

$node->stop;
done_testing();
