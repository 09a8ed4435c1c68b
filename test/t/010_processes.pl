# Whatever ends a worker or the launcher, another one goes on where it stopped,
# and neither keeps the server from stopping.  What cannot be started says so
# in status, and starts when there is room.

use Time::HiRes ();
use OnsideTest;

# A request may hang for an hour: whatever waits for one fails.
my ($node, $sandbox) = sending_node(conf => <<'CONF');
onside_attribution.request_timeout = '1h'
CONF
my @ids = track($node, 'postgres');
wait_for_flush($node, 'postgres');

# ---------------------------------------------------------------------------
# Signals
# ---------------------------------------------------------------------------

my $worker = worker_pid($node, 'postgres');
$node->safe_psql('postgres', "SELECT pg_cancel_backend($worker)");
push @ids, track($node, 'postgres');
wait_for_flush($node, 'postgres', 'pg_cancel_backend: it sends');
is(worker_pid($node, 'postgres'), $worker, 'and is the same worker');

$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
my $next = poll_worker($node, 'postgres', $worker);
push @ids, track($node, 'postgres');
wait_for_flush($node, 'postgres', 'pg_terminate_backend: another one sends');
arrived_ok($sandbox, \@ids, 'all arrived');
nothing_came_twice($sandbox, 'once: the cursor was saved on the way out');

my $launcher = launcher_pid($node);
$node->safe_psql('postgres', "SELECT pg_cancel_backend($launcher)");
$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher)");
ok( wait_until(
		sub { my $pid = launcher_pid($node); $pid && $pid != $launcher }),
	'a terminated launcher comes back');
is(worker_pid($node, 'postgres'), $next, 'its worker has not noticed');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($next)");
$worker = poll_worker($node, 'postgres', $next);
ok($worker, 'the new launcher restarts a worker of its predecessor');

# Both at once.
$launcher = launcher_pid($node);
$node->safe_psql('postgres',
	"SELECT pg_terminate_backend($launcher), pg_terminate_backend($worker)");
$next = poll_worker($node, 'postgres', $worker);
push @ids, track($node, 'postgres');
wait_for_flush($node, 'postgres', 'both terminated: it sends again');

# A worker that ends again and again waits, for longer each time, until resume().  Of two
# databases the one whose worker has ended last would get the next one last.
$node->safe_psql('postgres', 'CREATE DATABASE second');
$node->safe_psql('second', 'CREATE EXTENSION onside_attribution');
my %worker = map { $_ => poll_worker($node, $_) } qw(postgres second);
foreach my $times (1 .. 4)
{
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker{$_})") foreach qw(postgres second);
	last if $times == 4;
	$worker{$_} = poll_worker($node, $_, $worker{$_}) foreach qw(postgres second);
}
ok(wait_for_exit($worker{$_}), "the worker of $_ has ended four times") foreach qw(postgres second);
$node->safe_psql('second', 'SELECT onside_attribution.resume()');
poll_worker($node, $_, $worker{$_}) foreach qw(postgres second);
is($node->safe_psql('postgres', q{SELECT string_agg(datname, ' ' ORDER BY backend_start) FROM pg_stat_activity WHERE backend_type = 'onside_attribution worker' AND datname IN ('postgres', 'second')}),
	'second postgres', 'resume() starts the next one at once');
$node->safe_psql('second', 'DROP EXTENSION onside_attribution');
$node->safe_psql('postgres', 'DROP DATABASE second');

push @ids, track_and_hang($node, $sandbox, 'postgres');
$worker = worker_pid($node, 'postgres');
my $start = Time::HiRes::time();
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
ok(wait_for_exit($worker), 'a hanging request does not keep a worker from ending');
note(sprintf 'it took %.3f s', Time::HiRes::time() - $start);
$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
poll_worker($node, 'postgres', $worker);
wait_for_flush($node, 'postgres', 'its event is sent again');
arrived_ok($sandbox, \@ids, 'all arrived');

# SIGKILL: PostgreSQL restarts all processes, as with any of its own.
push @ids, track_and_hang($node, $sandbox, 'postgres');
$worker = worker_pid($node, 'postgres');
my $position = log_position($node);
kill 'KILL', $worker;
wait_for_log_line($node, qr/all server processes terminated; reinitializing/,
	$position, 'SIGKILL of a worker: the server restarts its processes');
poll_worker($node, 'postgres', $worker);
push @ids, track($node, 'postgres');
wait_for_flush($node, 'postgres', 'it sends again');
arrived_ok($sandbox, \@ids, 'all arrived');

$node->stop;

# ---------------------------------------------------------------------------
# No room for a worker
# ---------------------------------------------------------------------------

# One for each launcher, one for a worker.
$node->append_conf('postgresql.conf', 'max_worker_processes = 3');
$node->start;
poll_worker($node, 'postgres');
$position = log_position($node);
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION onside_attribution');
push @ids, track($node, 'other');
poll_status($node, 'other',
	{ state => 'not_running', state_reason => qr/max_worker_processes/, pending => 1 },
	'no free background worker: status says so');
wait_for_log_line($node, qr/no free background worker.*\n.*HINT:.*max_worker_processes/,
	$position, 'and the log, with a hint');

$node->safe_psql('postgres', 'DROP EXTENSION onside_attribution');
poll_worker($node, 'other');
wait_for_flush($node, 'other', 'room that comes free is taken');
arrived_ok($sandbox, \@ids, 'its event arrived');
$node->stop;

# ---------------------------------------------------------------------------
# No room for a database
# ---------------------------------------------------------------------------

$node->append_conf('postgresql.conf', <<'CONF');
max_worker_processes = 8
onside_attribution.max_databases = 1
CONF
$node->start;
poll_worker($node, 'other');
$node->safe_psql('postgres', 'CREATE EXTENSION onside_attribution');
push @ids, track($node, 'postgres');
poll_status($node, 'postgres',
	{ state => 'not_running', state_reason => qr/max_databases/, pending => 1 },
	'max_databases used up: status says so');
push @ids, track($node, 'other');
wait_for_flush($node, 'other', 'the other database sends');

$node->safe_psql('other', 'DROP EXTENSION onside_attribution');
poll_worker($node, 'postgres');
wait_for_flush($node, 'postgres', 'room that comes free is taken');

# The same by DROP DATABASE.
$node->safe_psql('other', 'CREATE EXTENSION onside_attribution');
$node->safe_psql('postgres', 'CREATE DATABASE third');
$node->safe_psql('postgres', 'DROP EXTENSION onside_attribution');
poll_worker($node, 'other');
$node->safe_psql('third', 'CREATE EXTENSION onside_attribution');
push @ids, track($node, 'third');
poll_status($node, 'third',
	{ state => 'not_running', state_reason => qr/max_databases/, pending => 1 },
	'used up again');
$node->safe_psql('postgres', 'DROP DATABASE other');
poll_worker($node, 'third');
wait_for_flush($node, 'third', 'room that a dropped database leaves is taken');
arrived_ok($sandbox, \@ids, 'all arrived');

$node->stop;
done_testing();
