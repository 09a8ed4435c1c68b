# Events of a prepared transaction are sent when it is committed, by whichever
# session and after whatever restart, and never if it is rolled back; and
# status.pending is exact all the while, whatever was committed, rolled back,
# rolled back to a savepoint, or prepared.

use Time::HiRes ();
use OnsideTest;

my ($node, $sandbox) = sending_node();
$node->safe_psql('postgres', 'CREATE TABLE noted (event_id uuid)');

my $note = q{INSERT INTO noted SELECT onside_attribution.track('purchase_completed', gen_random_uuid(), '{}')};

sub prepare
{
	my ($gid) = @_;
	$node->safe_psql('postgres', <<SQL);
BEGIN;
$note;
SAVEPOINT a;
$note;
SAVEPOINT b;
$note;
ROLLBACK TO b;
RELEASE a;
PREPARE TRANSACTION '$gid';
SQL
	return;
}

sub arrived
{
	my ($what) = @_;
	return arrived_ok($sandbox,
		committed($node, 'postgres', 'SELECT event_id FROM noted'), $what);
}

# Exactly so many are pending: in status, and in the view.
sub pending_ok
{
	my ($n, $what) = @_;
	poll_status($node, 'postgres', { pending => $n }, "$what: $n pending");
	is( $node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.pending'),
		$n, "$what: the view has as many");
	return;
}

# ---------------------------------------------------------------------------
# Sending
# ---------------------------------------------------------------------------

prepare("first $_") foreach 1 .. 3;
prepare('never');
$node->safe_psql('postgres', $note);
wait_for_flush($node, 'postgres', 'flush does not wait for what is only prepared');
arrived('a prepared transaction is not sent');

my $before = $sandbox->report->{distinct};
my $start = Time::HiRes::time();
foreach my $i (1 .. 3)
{
	$node->safe_psql('postgres', "COMMIT PREPARED 'first $i'");
	ok($sandbox->wait_distinct($before + 2 * $i)->{reached},
		"COMMIT PREPARED from another session: it arrives ($i)");
}
my $seconds = Time::HiRes::time() - $start;
note(sprintf 'three COMMIT PREPARED took %.3f s', $seconds);

# By itself the worker looks every 15 s, which would make it two such intervals.
cmp_ok($seconds, '<', 30, 'the commit has woken the worker');
arrived('with what it recorded, and no more');
$node->safe_psql('postgres', "ROLLBACK PREPARED 'never'");
wait_for_flush($node, 'postgres');
arrived('ROLLBACK PREPARED: nothing');

# After a crash, and while there is no worker
prepare($_) foreach qw(crash kill);
$node->stop('immediate');
$node->start;
my $worker = poll_worker($node, 'postgres');
$node->safe_psql('postgres', "COMMIT PREPARED 'crash'");
wait_for_flush($node, 'postgres', 'committed after a crash');
arrived('it arrived');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
$node->safe_psql('postgres', "COMMIT PREPARED 'kill'");
poll_worker($node, 'postgres', $worker);
wait_for_flush($node, 'postgres', 'committed while there is no worker');
arrived('it arrived');

# ---------------------------------------------------------------------------
# Counting
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', "SELECT onside_attribution.pause()");
poll_status($node, 'postgres', { state => 'paused' }, 'paused');
pending_ok(0, 'nothing yet');

my $session = $node->background_psql('postgres');
$session->query_safe("$note; $note");
pending_ok(2, 'commits');
$session->query_safe("BEGIN; $note; $note; ROLLBACK");
pending_ok(2, 'a rollback');
$session->query_safe(<<SQL);
BEGIN;
$note;
SAVEPOINT a; $note; $note; ROLLBACK TO a; $note;
SAVEPOINT b; $note; SAVEPOINT c; $note; RELEASE c; ROLLBACK TO b;
SAVEPOINT d; $note; RELEASE d;
COMMIT;
SQL
pending_ok(5, 'savepoints');
$session->query_safe(<<SQL);
DO \$\$
BEGIN
	$note;
	BEGIN
		$note;
		RAISE EXCEPTION 'no';
	EXCEPTION WHEN raise_exception THEN
		NULL;
	END;
END
\$\$;
SQL
pending_ok(6, 'a caught exception');
$session->query_safe(<<SQL);
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id)
SELECT 'direct', '{}', gen_random_uuid() FROM generate_series(1, 4);
SQL
pending_ok(10, 'direct inserts');
$session->query_safe(q{SELECT onside_attribution.track_batch(jsonb_agg(jsonb_build_object(
	'event_name', 'b', 'payload', '{}'::jsonb, 'event_datetime', now(),
	'event_id', gen_random_uuid(), 'installation_id', gen_random_uuid())))
	FROM generate_series(1, 5)});
pending_ok(15, 'track_batch');

prepare($_) foreach qw(one two three);
$session->query_safe($note);
pending_ok(16, 'prepared: does not count yet');
$node->safe_psql('postgres', "COMMIT PREPARED 'one'");
pending_ok(18, 'COMMIT PREPARED');
$node->safe_psql('postgres', "ROLLBACK PREPARED 'two'");
$session->query_safe($note);
pending_ok(19, 'ROLLBACK PREPARED');
$session->quit;

# A transaction that is open over all of what follows.
my $open = $node->background_psql('postgres');
$open->query_safe("BEGIN; $note; $note");
$worker = worker_pid($node, 'postgres');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
poll_worker($node, 'postgres', $worker);
pending_ok(19, 'another worker');
$open->query_safe('COMMIT');
$open->quit;
pending_ok(21, 'a commit that its start preceded');

$node->restart;
poll_worker($node, 'postgres');
pending_ok(21, 'restart');
$node->safe_psql('postgres', "COMMIT PREPARED 'three'");
pending_ok(23, 'COMMIT PREPARED after a restart');
$node->stop('immediate');
$node->start;
poll_worker($node, 'postgres');
pending_ok(23, 'crash');

my $delivered = status($node, 'postgres')->{delivered};
$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
wait_for_flush($node, 'postgres');
pending_ok(0, 'sent');
is(status($node, 'postgres')->{delivered}, $delivered + 23, 'as many more are delivered');
is(status($node, 'postgres')->{delivered}, $sandbox->report->{distinct},
	'as many as arrived at all');

# pause() and resume() count when they are committed, too.
$node->safe_psql('postgres', "BEGIN; SELECT onside_attribution.pause('prepared'); PREPARE TRANSACTION 'pause'");
is(status($node, 'postgres')->{state}, 'idle', 'prepared, pause() has no effect yet');
$node->safe_psql('postgres', "COMMIT PREPARED 'pause'");
poll_status($node, 'postgres', { state => 'paused' }, 'committed, it has');
$node->safe_psql('postgres', "BEGIN; SELECT onside_attribution.resume(); PREPARE TRANSACTION 'resume'");
is(status($node, 'postgres')->{state}, 'paused', 'prepared, resume() has no effect yet');
$node->safe_psql('postgres', "COMMIT PREPARED 'resume'");
poll_status($node, 'postgres', { state => 'idle' }, 'committed, it has');

$node->stop;
done_testing();
