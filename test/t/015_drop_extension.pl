# The worker is there exactly while the extension is, whatever is rolled back in
# between.  DROP EXTENSION does not take events along that are still to be sent:
# in every form it is an error that says how many there are and what to do, and
# it works once they are delivered or were discarded with TRUNCATE.

use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
onside_attribution.request_timeout = '1h'
CONF
my $installation = $OnsideTest::installation;
my $track = "SELECT onside_attribution.track('e', '$installation', '{}')";
my $installed = "SELECT count(*) FROM pg_extension WHERE extname = 'onside_attribution'";

sub registered
{
	return $node->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'onside_attribution worker'");
}

# psql's standard error, with SQLSTATEs.
sub error_of
{
	my ($database, $sql) = @_;
	my ($ret, $stdout, $stderr) =
	  $node->psql($database, "\\set VERBOSITY verbose\n$sql", on_error_stop => 1);
	return $stderr;
}

# ---------------------------------------------------------------------------
# In flight and rolled back
# ---------------------------------------------------------------------------

my $session = $node->background_psql('postgres', on_error_stop => 0);
$session->query_safe('BEGIN; CREATE EXTENSION onside_attribution');
$node->safe_psql('postgres', 'CREATE DATABASE other');
create_extension($node, 'other');
is(registered(), 1, 'CREATE EXTENSION that has not committed has no worker');
$session->query_safe('ROLLBACK');
is($node->safe_psql('postgres', $installed), 0, 'rolled back');

$session->query_safe('BEGIN; SAVEPOINT a; CREATE EXTENSION onside_attribution; ROLLBACK TO a; COMMIT');
$session->query_safe('BEGIN; CREATE EXTENSION onside_attribution; DROP EXTENSION onside_attribution; COMMIT');
ok(wait_until(sub { registered() == 1 }), 'nor has one that a savepoint took back');

$session->query_safe('BEGIN; SAVEPOINT a; CREATE EXTENSION onside_attribution; RELEASE a; COMMIT');
my $worker = poll_worker($node, 'postgres');
my @ids = track($node, 'postgres');
wait_for_flush($node, 'postgres', 'committed: it sends');

$session->query_safe('BEGIN; DROP EXTENSION onside_attribution; ROLLBACK');
$session->query_safe('BEGIN; SAVEPOINT a; DROP EXTENSION onside_attribution; ROLLBACK TO a; COMMIT');
push @ids, track($node, 'postgres');
wait_for_flush($node, 'postgres', 'DROP EXTENSION rolled back: it sends');
is(worker_pid($node, 'postgres'), $worker, 'and is the same worker');

$session->query_safe('BEGIN; DROP EXTENSION onside_attribution; CREATE EXTENSION onside_attribution; COMMIT');
$worker = poll_worker($node, 'postgres', $worker);
push @ids, track($node, 'postgres');
wait_for_flush($node, 'postgres', 'dropped and made in one transaction: a new worker sends');
is(status($node, 'postgres')->{delivered}, 1, 'with new counters');
arrived_ok($sandbox, \@ids, 'all arrived');

# A prepared transaction has no session that could have its commit noticed.
$session->query_safe("BEGIN; DROP EXTENSION onside_attribution; PREPARE TRANSACTION 'drop'");
ok(process_exists($worker), 'DROP EXTENSION that is prepared: the worker stays');
$node->safe_psql('postgres', "COMMIT PREPARED 'drop'");
ok(wait_for_exit($worker), 'committed: it goes');
$session->query_safe("BEGIN; CREATE EXTENSION onside_attribution; PREPARE TRANSACTION 'create'");
$node->safe_psql('postgres', "COMMIT PREPARED 'create'");
poll_worker($node, 'postgres');
push @ids, track($node, 'postgres');
wait_for_flush($node, 'postgres', 'CREATE EXTENSION that was prepared: it sends');
$session->quit;

# ---------------------------------------------------------------------------
# Events that are still to be sent
# ---------------------------------------------------------------------------

# Each right after the last event has been acknowledged, when the cursor may not
# have been written: that is not pending.
foreach my $i (1 .. 20)
{
	push @ids, track($node, 'postgres');
	$sandbox->wait_distinct(scalar(@ids), patience());
	wait_until(sub { status($node, 'postgres')->{pending} == 0 });
	is(error_of('postgres', 'DROP EXTENSION onside_attribution; CREATE EXTENSION onside_attribution'),
		'', 'what is delivered is no obstacle');
	poll_worker($node, 'postgres');
}

$sandbox->behave({ fault => 'black_hole' });
track($node, 'postgres') foreach 1 .. 3;
ok(wait_until(sub { $sandbox->used }), 'a request hangs');
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE owner SUPERUSER;
CREATE TABLE bought (installation_id uuid);
SELECT onside_attribution.attach('bought', 'e', 'installation_id', '{}');
SQL

my $refused = qr/ERROR: +55006: cannot drop extension onside_attribution because it has pending events/;
my $hint = qr/HINT: .*onside_attribution\.flush\(\).*TRUNCATE onside_attribution\.outbox/;
like(error_of('postgres', 'DROP EXTENSION onside_attribution'),
	qr/2BP01.*trigger onside_e on table bought/s, 'an attached table wants CASCADE, as ever');
my $error = error_of('postgres', 'DROP EXTENSION onside_attribution CASCADE');
like($error, $refused, 'DROP EXTENSION CASCADE with pending events is refused');
like($error, qr/DETAIL: .*not been delivered: 3\./, 'with their number');
like($error, $hint, 'and what to do');
like(error_of('postgres', 'DROP SCHEMA onside_attribution CASCADE'),
	qr/2BP01.*extension onside_attribution requires it/s, 'its schema is no way around');
is(status($node, 'postgres')->{pending}, 3, 'the events are there');

# What this transaction has recorded counts; what it has discarded does not.
like(
	error_of('postgres', "BEGIN; $track; $track; DROP EXTENSION onside_attribution CASCADE; COMMIT"),
	qr/not been delivered: 5\./, 'the events of the transaction itself count');
like(
	error_of('postgres', "BEGIN; SAVEPOINT a; $track; ROLLBACK TO a; DROP EXTENSION onside_attribution CASCADE; COMMIT"),
	qr/not been delivered: 3\./, 'those that it has rolled back do not');
like(
	error_of('postgres', "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1; $track; DROP EXTENSION onside_attribution CASCADE"),
	qr/not been delivered: 4\./, 'in REPEATABLE READ likewise');

like(
	error_of('postgres', "DELETE FROM onside_attribution.dead_letter; INSERT INTO onside_attribution.dead_letter (error, attempts, recorded_at, failed_at) VALUES ('x', 1, now(), now()), ('y', 1, now(), now()); DROP EXTENSION onside_attribution CASCADE"),
	qr/not been delivered: 3; dead letters: 2\./, 'dead letters are mentioned');

# pg_restore --clean
my $dump = $node->basedir . '/dump';
command_ok(
	[ 'pg_dump', '-Fc', '-f', $dump, '-h', $node->host, '-p', $node->port, 'postgres' ],
	'pg_dump beside a hanging request');
command_checks_all(
	[ 'pg_restore', '--clean', '-1', '-d', $node->connstr('postgres'), $dump ],
	1, [], [qr/cannot drop extension onside_attribution because it has pending events/],
	'pg_restore --clean stops there');
is(status($node, 'postgres')->{pending}, 3, 'and the events are still there');

# Many: the count is bounded.
$node->safe_psql('postgres', <<SQL);
SELECT onside_attribution.track('e', '$installation', '{}') FROM generate_series(1, 10001);
SQL
like(error_of('postgres', 'DROP EXTENSION onside_attribution CASCADE'),
	qr/not been delivered: more than 10000;/, 'many are not counted to the end');

# Discarding them.
$worker = worker_pid($node, 'postgres');
unlike(
	error_of('postgres',
		'BEGIN; TRUNCATE onside_attribution.outbox; DROP EXTENSION onside_attribution CASCADE; COMMIT'),
	qr/ERROR/, 'TRUNCATE and DROP EXTENSION beside a hanging request');
ok(wait_for_exit($worker), 'the worker is gone');
is($node->safe_psql('postgres', $installed), 0, 'so is the extension');
$sandbox->behave;

# Dead letters alone are no obstacle, but are not dropped silently.
$node->safe_psql('postgres', 'SET ROLE owner; CREATE EXTENSION onside_attribution');
poll_worker($node, 'postgres');
$node->safe_psql('postgres', <<'SQL');
INSERT INTO onside_attribution.dead_letter (error, attempts, recorded_at, failed_at) VALUES ('x', 1, now(), now())
SQL
like(error_of('postgres', 'BEGIN; DROP EXTENSION onside_attribution; ROLLBACK'),
	qr/NOTICE: .*1 dead letter$/m, 'dead letters alone: a notice');

# DROP OWNED
$sandbox->behave({ fault => 'black_hole' });
track($node, 'postgres');
like(error_of('postgres', 'DROP OWNED BY owner CASCADE'),
	$refused, 'DROP OWNED with pending events is refused');
$node->safe_psql('postgres', 'REASSIGN OWNED BY owner TO CURRENT_USER');
pass('REASSIGN OWNED beside a hanging request');
like(error_of('postgres', 'DROP EXTENSION onside_attribution'), $refused, 'the new owner is told as well');

# A damaged cursor cannot be read, and does not make the extension stay for ever.
$node->safe_psql('postgres',
	'TRUNCATE onside_attribution.outbox; DELETE FROM onside_attribution.delivery_cursor');
$node->safe_psql('postgres', 'DROP EXTENSION onside_attribution');
pass('dropped without its cursor');

# DROP DATABASE is not concerned.
track($node, 'other');
$node->safe_psql('postgres', 'DROP DATABASE other');
pass('DROP DATABASE takes pending events along');
$node->stop;

# ---------------------------------------------------------------------------
# Without preloading
# ---------------------------------------------------------------------------

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION onside_attribution');
like(
	error_of('postgres', "$track; DROP EXTENSION onside_attribution"),
	$refused, 'not preloaded: a session that has loaded the library is told');
like(
	error_of('postgres', "LOAD 'onside_attribution'; DROP EXTENSION onside_attribution"),
	$refused, 'however it did that');
$node->stop;
done_testing();
