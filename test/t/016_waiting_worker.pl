# A worker never waits for somebody's lock: while a DROP EXTENSION has not
# committed, or a table of ours is locked, it says so in pg_stat_activity, ends
# when it is told to, serves other sessions' barriers, leaves when a command wants
# its database, does not keep the workers of other databases from starting, and
# no purchase waits for it.

use OnsideTest;

my $sandbox = OnsideSandbox->start;

# Whoever waits in vain fails, since these timeouts are far beyond patience().
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
onside_attribution.request_timeout = '1h'
deadlock_timeout = '1h'
CONF
my $installation = $OnsideTest::installation;
create_extension($node, 'postgres');
$node->safe_psql('postgres', 'CREATE DATABASE shop');
create_extension($node, 'shop');
$node->safe_psql('shop', 'CREATE TABLE bought (installation_id uuid)');

my $drop = 'BEGIN; TRUNCATE onside_attribution.outbox; DROP EXTENSION onside_attribution';

# It has met the lock, and waits in no queue.
sub meets_lock
{
	my ($pid) = @_;
	my $waits;
	my $met = wait_until(
		sub {
			my $row = $node->safe_psql('postgres',
				"SELECT (SELECT count(*) FROM pg_locks WHERE pid = $pid AND NOT granted), "
				  . "query LIKE '%is locked by another session%' FROM pg_stat_activity WHERE pid = $pid");
			$waits ||= $row =~ /^[1-9]/;
			return $row =~ /t$/;
		});
	return $met && !$waits;
}

# Has an old snapshot keep the versions of the cursor, so that it is written
# seldom, and waits until the worker has noticed.
sub hold_snapshot
{
	my $session = $node->background_psql('shop', on_error_stop => 0);
	$session->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM bought');
	ok( wait_until(
			sub {
				my $id = track($node, 'shop');
				wait_until(sub { $sandbox->events->{$id} }) or return 0;
				return !wait_until(
					sub {
						$node->safe_psql('shop',
							'SELECT count(*) FROM onside_attribution.pending') == 0;
					},
					0.5);
			}),
		'the cursor is written seldom');
	return $session;
}

# ---------------------------------------------------------------------------
# DROP EXTENSION that has not committed
# ---------------------------------------------------------------------------

# The worker gets an acknowledgement that it will write down two seconds after
# the last one, and is told to end before that.
my $dropping = $node->background_psql('shop', on_error_stop => 0);
my $telling = $node->background_psql('postgres', on_error_stop => 0);
my $old_snapshot = hold_snapshot();
my $worker = poll_worker($node, 'shop');
$sandbox->behave({ delay => 0.5, skip => 1, times => 1 });
$dropping->query_safe("SELECT onside_attribution.track('e', '$installation', '{}')");
$dropping->query_safe('SELECT onside_attribution.flush()');
$dropping->query_safe("SELECT onside_attribution.track('e', '$installation', '{}')");
ok(wait_until(sub { $sandbox->report->{in_progress} == 1 }, undef, 0.001), 'an answer is under way');
$dropping->query_safe($drop);
ok(wait_until(sub { $sandbox->report->{in_progress} == 0 }, undef, 0.001), 'it has come');
$telling->query_safe("SELECT pg_terminate_backend($worker)");
ok(wait_for_exit($worker), 'a worker with a cursor to write ends when it is told to');
$dropping->query_safe('ROLLBACK');
wait_for_flush($node, 'shop', 'rolled back: a new one sends');
$telling->quit;
$old_snapshot->quit;

$worker = poll_worker($node, 'shop');
$dropping->query_safe($drop);
$node->reload;
ok(meets_lock($worker), 'a worker finds the extension locked');
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('postgres', 'DROP DATABASE other');
$node->safe_psql('postgres', 'CHECKPOINT');
pass('other sessions do not wait for it');
is($node->safe_psql('postgres', "SELECT pg_terminate_backend($worker, " . 1000 * patience() . ')'),
	't', 'it ends when it is told to');

# Its successors, in two databases, cannot start.
$node->safe_psql('postgres', "CREATE DATABASE shop2");
create_extension($node, 'shop2');
$worker = worker_pid($node, 'shop2');
my $dropping2 = $node->background_psql('shop2', on_error_stop => 0);
$dropping2->query_safe($drop);
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
ok(wait_for_exit($worker), 'another worker ends');
ok( wait_until(
		sub {
			my @pids = grep { defined } map { worker_pid($node, $_) } qw(shop shop2);
			return @pids == 2 && !grep { !meets_lock($_) } @pids;
		}),
	'the next ones of both databases find it locked, too');
$node->safe_psql('postgres', 'CREATE DATABASE other');
create_extension($node, 'other');
pass('a third one starts beside them');
my $id = track($node, 'other');
wait_for_flush($node, 'other', 'and sends');

# A command on their database.
$worker = worker_pid($node, 'shop2');
my ($ret, $stdout, $stderr) = $node->psql('postgres', 'ALTER DATABASE shop2 RENAME TO shop3');
like($stderr, qr/1 other session using the database/,
	'a command on its database counts the session and not the worker');
$node->safe_psql('postgres', 'DROP DATABASE shop2 WITH (FORCE)');
ok(wait_for_exit($worker), 'DROP DATABASE ... WITH (FORCE)');
eval { $dropping2->quit };

$dropping->query_safe('COMMIT');
ok(wait_until(sub { !defined worker_pid($node, 'shop') }), 'committed: the waiting worker goes');
$dropping->quit;
create_extension($node, 'shop');

# ---------------------------------------------------------------------------
# Locked tables
# ---------------------------------------------------------------------------

# A purchase in another session, with a limit on what it waits for.
sub purchase_ok
{
	my ($what) = @_;
	$node->safe_psql('shop', "SET lock_timeout = '10s'; SELECT onside_attribution.track('e', '$installation', '{}')");
	return pass("$what: a purchase does not wait");
}

foreach my $table (qw(delivery_cursor control dead_letter))
{
	$worker = poll_worker($node, 'shop');
	my $locking = $node->background_psql('shop', on_error_stop => 0);
	$locking->query_safe("BEGIN; LOCK TABLE onside_attribution.$table");
	purchase_ok("$table locked") for 1 .. 3;
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
	ok(wait_for_exit($worker), "$table locked: the worker ends when it is told to");
	purchase_ok("$table locked, no worker");
	poll_status($node, 'shop', { state_reason => qr/could not read delivery_cursor: .*delivery_cursor is locked by another session/ },
		"$table locked: its successor says why it does not start")
	  if $table eq 'delivery_cursor';
	$node->safe_psql('postgres', 'CREATE DATABASE passing');
	$node->safe_psql('postgres', 'DROP DATABASE passing');
	pass("$table locked: DROP DATABASE of another database");
	$locking->query_safe('ROLLBACK');
	$locking->quit;
	wait_for_flush($node, 'shop', "$table unlocked: it sends");
}

# The worker has the extension locked when it comes to a table, and the other
# one a table when it comes to the extension: with this deadlock_timeout nobody
# would ever find out.
foreach my $table (qw(outbox delivery_cursor dead_letter control))
{
	my $session = $node->background_psql('shop', on_error_stop => 0);
	$session->query_safe("BEGIN; TRUNCATE onside_attribution.outbox; LOCK TABLE onside_attribution.$table");
	$node->reload;
	ok(meets_lock(worker_pid($node, 'shop')), "$table locked: the worker finds that");
	$session->query_safe('DROP EXTENSION onside_attribution; ROLLBACK');
	pass('who has locked it can drop the extension');
	$session->quit;
}

my $locking = $node->background_psql('shop', on_error_stop => 0);
$locking->query_safe('BEGIN; LOCK TABLE onside_attribution.outbox');
$locking->query_safe("SELECT onside_attribution.track('e', '$installation', '{}')");
pass('who has locked the outbox can record');
$locking->query_safe('COMMIT');
$locking->quit;
wait_for_flush($node, 'shop', 'outbox unlocked: it sends');

# ---------------------------------------------------------------------------
# Stopping
# ---------------------------------------------------------------------------

$dropping = $node->background_psql('shop', on_error_stop => 0);
$dropping->query_safe($drop);
$node->reload;
ok(meets_lock(worker_pid($node, 'shop')), 'the worker finds the extension locked');
{
	local $ENV{PGCTLTIMEOUT} = patience();
	ok($node->stop('fast', fail_ok => 1), 'the server stops');
}
eval { $dropping->quit };
$sandbox->stop;
done_testing();
