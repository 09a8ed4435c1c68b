# A template and a database that does not allow connections have no worker, and
# status says that this is why; their worker goes at once when they become one,
# and one comes at once when that ends, with the events recorded meanwhile.

use OnsideTest;

my ($node, $sandbox) = sending_node(conf => <<'CONF');
onside_attribution.request_timeout = '1h'
CONF
$node->safe_psql('postgres', 'CREATE DATABASE shop');

# Until here it is known to be without the extension.
create_extension($node, 'shop');
my @ids = track($node, 'shop');
wait_for_flush($node, 'shop');

my $session = $node->background_psql('shop', on_error_stop => 0);
my $track = "SELECT onside_attribution.track('e', '$OnsideTest::installation', '{}')";
my $why = 'SELECT state, state_reason FROM onside_attribution.status';

foreach my $case (
	[ 0, 'IS_TEMPLATE true', 'IS_TEMPLATE false', qr/^not_running\|this database is a template/ ],
	[ 1, 'ALLOW_CONNECTIONS false', 'ALLOW_CONNECTIONS true',
		qr/^not_running\|this database does not allow connections/ ])
{
	my ($hanging, $on, $off, $reason) = @$case;
	my $name = $on . ($hanging ? ' beside a hanging request' : '');
	my $worker = poll_worker($node, 'shop');
	if ($hanging)
	{
		$sandbox->behave({ fault => 'black_hole', times => 1 });
		push @ids, $session->query_safe($track);
		ok(wait_until(sub { $sandbox->used }), 'a request hangs');
	}
	$node->safe_psql('postgres', "BEGIN; ALTER DATABASE shop $on; ROLLBACK");
	is(worker_pid($node, 'shop'), $worker, "$name, rolled back: the worker stays");
	$node->safe_psql('postgres', "ALTER DATABASE shop $on");
	ok(wait_for_exit($worker), "$name: the worker goes");
	ok(wait_until(sub { $session->query_safe($why) =~ $reason }), "$name: status says why")
	  or diag($session->query_safe($why));
	push @ids, $session->query_safe($track);
	$node->safe_psql('postgres', 'CREATE DATABASE passing');
	$node->safe_psql('postgres', 'DROP DATABASE passing');
	ok(!defined worker_pid($node, 'shop'), "$name: none comes");

	# A launcher that never saw it otherwise.
	my $launcher = launcher_pid($node);
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher)");
	ok(wait_until(sub { my $pid = launcher_pid($node); $pid && $pid != $launcher }),
		'another launcher');
	ok(wait_until(sub { $session->query_safe($why) =~ $reason }), "$name: it agrees");

	$node->safe_psql('postgres', "ALTER DATABASE shop $off");
	poll_worker($node, 'shop', $worker);
	wait_for_flush($node, 'shop', "$off: it sends");
	arrived_ok($sandbox, \@ids, 'what was recorded meanwhile has arrived');
}

# The worker is none of the connections that are counted.
$node->safe_psql('postgres', 'CREATE ROLE somebody LOGIN');
foreach my $limit (0, 1)
{
	my $worker = poll_worker($node, 'shop');
	$session->quit;
	$node->safe_psql('postgres', "ALTER DATABASE shop CONNECTION LIMIT $limit");
	ok(wait_until(
			sub {
				$node->safe_psql('postgres',
					"SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop' AND backend_type = 'client backend'") == 0;
			}),
		'nobody else is connected');
	my ($ret) = $node->psql('shop', 'SELECT 1', extra_params => [ '-U', 'somebody' ]);
	is($ret, $limit ? 0 : 2, "CONNECTION LIMIT $limit lets as many in");
	$session = $node->background_psql('shop', on_error_stop => 0);
	push @ids, $session->query_safe($track);
	is($session->query_safe("SELECT onside_attribution.flush()"), 't', 'and it sends');
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
	poll_worker($node, 'shop', $worker);
	pass('a worker can start');
}

# An interrupted DROP DATABASE leaves this behind.  It can only be dropped.
my $worker = worker_pid($node, 'shop');
$session->quit;
$node->safe_psql('postgres',
	"UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'shop'");
$node->safe_psql('postgres', 'CREATE DATABASE passing');
ok(wait_for_exit($worker), 'an invalid database has no worker');
my $position = log_position($node);
$node->restart;
$node->safe_psql('postgres', 'DROP DATABASE passing');
push @ids, track($node, 'postgres');
wait_for_flush($node, 'postgres');
$node->safe_psql('postgres', 'DROP DATABASE shop');
pass('it can be dropped');
unlike(log_since($node, $position), qr/invalid database/, 'nobody tried to connect to it');

arrived_ok($sandbox, \@ids, 'all arrived');
$node->stop;
done_testing();
