# backfill records the rows that a table held before its event was attached, and
# no row twice: not what the trigger has recorded or records meanwhile, not by a
# second call, by two at a time, or after a crash in the middle.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use OnsideTest;

my $node = onside_node('main', conf => "onside_attribution.enabled = off");
create_extension($node, 'postgres');

sub sql { return $node->safe_psql('postgres', $_[0]) }

sub table
{
	my ($name, $rows, %with) = @_;
	my $event_id = $with{event_id} ? ', event_id uuid DEFAULT gen_random_uuid()' : '';
	sql(<<SQL);
CREATE TABLE $name (id bigint PRIMARY KEY, install_id uuid DEFAULT '0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9',
                    total numeric DEFAULT 9.90, note text$event_id);
INSERT INTO $name (id) SELECT n FROM generate_series(1, $rows) AS n;
SQL
	return;
}

sub attach
{
	my ($name, $rest) = @_;
	return sql("SELECT onside_attribution.attach('$name', 'bought $name', 'install_id', '{\"id\": \"id\"}'" . ($rest // '') . ')');
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

# Once with event_ids that backfill has to make, and once with the rows' own.
foreach my $name ('live', 'live_with_ids')
{
	table($name, 5000, event_id => $name eq 'live_with_ids');
	attach($name, $name eq 'live_with_ids' ? ", event_id => 'event_id'" : '');

	# Keys among those of the old rows and behind them; some are rolled back,
	# and some are changed later.
	my $busy = $node->background_psql('postgres', on_error_stop => 1);
	$busy->query_safe("INSERT INTO $name (id) SELECT -n FROM generate_series(1, 300) AS n");
	$busy->query_safe('BEGIN');
	$busy->query_safe("INSERT INTO $name (id) SELECT 100000 + n FROM generate_series(1, 300) AS n");
	unlike(call($name), qr/ERROR/, "$name: backfill beside an open transaction");
	$busy->query_safe('COMMIT');
	$busy->query_safe("INSERT INTO $name (id) SELECT 200000 + n FROM generate_series(1, 300) AS n");
	$busy->quit;

	# What is there with an event_id of its own may be recorded again, under it.
	is(sql("SELECT count(DISTINCT event_id), count(DISTINCT payload -> 'id') FROM onside_attribution.outbox WHERE event_name = 'bought $name'"),
		'5900|5900', "$name: each row is one event");
	my $before = recorded($name);
	like(call($name), qr/NOTICE:.*has come to its end/, "$name: a second call has nothing to do");
	is(recorded($name), $before, "$name: and records nothing");
}
is(recorded('live'), '5900|5900|5900', 'live: each row was recorded once');
is(sql("SELECT count(*) FROM onside_attribution.outbox WHERE event_name = 'bought live_with_ids' AND event_id NOT IN (SELECT event_id FROM live_with_ids)"),
	0, 'live_with_ids: each event has its row\'s event_id');

# ---------------------------------------------------------------------------
# Transactions that were under way when the event was attached
# ---------------------------------------------------------------------------

# Both have a number before the trigger is there, one of them that of a
# subtransaction, and write to the table afterwards.  What has committed
# meanwhile, with a younger number, was there before.
table('overlap', 2500);
sql('CREATE TABLE elsewhere (a int)');
my @open = map { $node->background_psql('postgres', on_error_stop => 1) } 1 .. 2;
$_->query_safe('BEGIN') foreach @open;
$open[0]->query_safe('INSERT INTO elsewhere VALUES (1)');
$open[1]->query_safe('SAVEPOINT s; INSERT INTO elsewhere VALUES (2)');
sql('INSERT INTO overlap (id) VALUES (2501)');
attach('overlap');
sql('INSERT INTO overlap (id) VALUES (0)');
$open[$_]->query_safe("INSERT INTO overlap (id) VALUES (-1 - $_)") foreach 0, 1;
$_->query_safe('COMMIT') foreach @open;
$_->quit foreach @open;
like(call('overlap'), qr/2501 events recorded in all/, 'overlap: all that was there before');
is(recorded('overlap'), '2504|2504|2504', 'overlap: each row was recorded once');

# A table that is dropped leaves nothing behind for another one.
sql('DROP TABLE overlap');
table('next', 1);
attach('next');
is(sql(<<'SQL'), '0|0', 'a dropped table is forgotten');
SELECT (SELECT count(*) FROM onside_attribution.attachment WHERE event_name = 'bought overlap'),
       (SELECT count(*) FROM onside_attribution.backfill_state WHERE event_name = 'bought overlap')
SQL

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
is(sql("SELECT recorded, position, finished_at IS NULL FROM onside_attribution.backfill_progress WHERE source = 'crash'::regclass"),
	'3000|{3000}|t', 'crash: backfill_progress says so');
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
$_->query_until(qr/started/, "\\echo started\nCALL onside_attribution.backfill('two', 'bought two');\n\\echo ended\n") foreach @sessions;
$_->query_until(qr/ended/, '') foreach @sessions;
$_->quit foreach @sessions;
is(recorded('two'), '8000|8000|8000', 'two at a time: each row was recorded once');

# ---------------------------------------------------------------------------
# The end of what was committed is lost, and repeated
# ---------------------------------------------------------------------------

table('again', 1500);
attach('again');
call('again');
my $ids = sql("SELECT md5(string_agg(event_id::text, ' ' ORDER BY event_id)) FROM onside_attribution.outbox WHERE event_name = 'bought again'");
sql("TRUNCATE onside_attribution.outbox; DELETE FROM onside_attribution.backfill_state WHERE source = 'again'::regclass");
call('again');
is(sql("SELECT md5(string_agg(event_id::text, ' ' ORDER BY event_id)) FROM onside_attribution.outbox WHERE event_name = 'bought again'"),
	$ids, 'a repetition has the same event_ids');

$node->stop;
done_testing();
