# Commands that want a database for themselves succeed beside a connected
# worker, even while it waits for an answer, and afterwards there is a worker
# where there should be one: no other session's DROP DATABASE, RENAME, SET
# TABLESPACE or CREATE DATABASE ... TEMPLATE notices that events are sent.

use File::Spec ();
use OnsideTest;

my $sandbox = OnsideSandbox->start;

# A request may hang for an hour: whatever waits for one fails.
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
onside_attribution.request_timeout = '1h'
onside_attribution.max_databases = 4
CONF
my @ids;

sub sends_ok
{
	my ($database, $what) = @_;
	push @ids, track($node, $database);
	wait_for_flush($node, $database, $what);
	return;
}

sub make
{
	my ($database) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	create_extension($node, $database);
	return;
}

create_extension($node, 'postgres');
make('shop');
my $bystander = worker_pid($node, 'postgres');

# ---------------------------------------------------------------------------
# RENAME
# ---------------------------------------------------------------------------

sends_ok('shop', 'it sends');
my $worker = worker_pid($node, 'shop');
$node->safe_psql('postgres', 'ALTER DATABASE shop RENAME TO store');
poll_worker($node, 'store', $worker);
sends_ok('store', 'renamed: it sends');
nothing_came_twice($sandbox, 'and nothing twice');

push @ids, track_and_hang($node, $sandbox, 'store');
$worker = worker_pid($node, 'store');
$node->safe_psql('postgres', 'ALTER DATABASE store RENAME TO shop');
poll_worker($node, 'shop', $worker);
sends_ok('shop', 'renamed while a request hangs: it sends');
arrived_ok($sandbox, \@ids, 'all arrived');

# ---------------------------------------------------------------------------
# SET TABLESPACE
# ---------------------------------------------------------------------------

mkdir $node->basedir . '/space' or die;
my $space = File::Spec->rel2abs($node->basedir . "/space");
$node->safe_psql('postgres', "CREATE TABLESPACE space LOCATION '$space'");
$worker = worker_pid($node, 'shop');
$node->safe_psql('postgres', 'ALTER DATABASE shop SET TABLESPACE space');
poll_worker($node, 'shop', $worker);
sends_ok('shop', 'in another tablespace: it sends');

# ---------------------------------------------------------------------------
# CREATE DATABASE ... TEMPLATE
# ---------------------------------------------------------------------------

push @ids, track_and_hang($node, $sandbox, 'shop');
$worker = worker_pid($node, 'shop');
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE shop');
poll_worker($node, 'shop', $worker);
poll_worker($node, 'copy');
sends_ok('shop', 'copied: it sends');
sends_ok('copy', 'its copy sends, too');
arrived_ok($sandbox, \@ids, 'all arrived');

$worker = worker_pid($node, 'copy');
$node->safe_psql('postgres', 'CREATE DATABASE copy2 TEMPLATE copy STRATEGY file_copy');
poll_worker($node, 'copy', $worker);
poll_worker($node, 'copy2');
sends_ok('copy2', 'so does a copy of files');

# ---------------------------------------------------------------------------
# DROP DATABASE
# ---------------------------------------------------------------------------

$worker = worker_pid($node, 'copy2');
$node->safe_psql('postgres', 'DROP DATABASE copy2');
ok(wait_for_exit($worker), 'DROP DATABASE: its worker is gone');
$worker = worker_pid($node, 'copy');
$node->safe_psql('postgres', 'DROP DATABASE copy WITH (FORCE)');
ok(wait_for_exit($worker), 'DROP DATABASE ... WITH (FORCE): likewise');

# With max_databases = 4, this cannot go well four times if slots leak.
foreach my $i (1 .. 4)
{
	make("temporary$i");
	sends_ok("temporary$i", "database $i");
	$node->safe_psql('postgres', "DROP DATABASE temporary$i");
}

make('temporary');
push @ids, track_and_hang($node, $sandbox, 'temporary');
my $lost = pop @ids;
$node->safe_psql('postgres', 'DROP DATABASE temporary');
pass('a hanging request does not hold up DROP DATABASE');
push @ids, track_and_hang($node, $sandbox, 'postgres');
make('temporary');
$node->safe_psql('postgres', 'DROP DATABASE temporary');
pass('nor does one of another database');
is(worker_pid($node, 'postgres'), $bystander,
	'the worker of another database has not noticed all this');

# The hanging request of "postgres" goes with its worker.
$node->safe_psql('postgres', "SELECT pg_terminate_backend($bystander)");
poll_worker($node, 'postgres', $bystander);
wait_for_flush($node, 'postgres');

# ---------------------------------------------------------------------------
# Commands that fail
# ---------------------------------------------------------------------------

$worker = worker_pid($node, 'shop');
my $session = $node->background_psql('shop');
$session->query_safe('SELECT 1');
my ($ret, $stdout, $stderr);
foreach my $command (
	'DROP DATABASE shop',
	'ALTER DATABASE shop RENAME TO store',
	'CREATE DATABASE copy TEMPLATE shop')
{
	# PostgreSQL itself waits 5 s for others to leave.
	($ret, $stdout, $stderr) = $node->psql('postgres', $command);
	like($stderr, qr/being accessed by other users/, "$command fails");
}
$session->quit;
poll_worker($node, 'shop', $worker);
sends_ok('shop', 'after that, it sends');

$worker = worker_pid($node, 'shop');
$node->safe_psql('postgres', 'CREATE ROLE no_owner LOGIN');
$node->safe_psql('postgres', 'CREATE ROLE maker LOGIN CREATEDB');
foreach my $command (
	'DROP DATABASE shop',
	'ALTER DATABASE shop RENAME TO store',
	'ALTER DATABASE shop SET TABLESPACE pg_default',
	'CREATE DATABASE copy TEMPLATE shop')
{
	foreach my $role (qw(no_owner maker))
	{
		($ret, $stdout, $stderr) = $node->psql('postgres', $command,
			extra_params => [ '-U', $role ]);
		like(
			$stderr,
			qr/must be owner of database|permission denied/,
			"$command is not for $role");
	}
}
is(worker_pid($node, 'shop'), $worker,
	'who may not run such a command does not disturb the worker');
$node->psql('postgres', 'BEGIN; DROP DATABASE shop');
is(poll_worker($node, 'shop'), worker_pid($node, 'shop'),
	'DROP DATABASE in a transaction fails and leaves a worker');
sends_ok('shop', 'that sends');

# ---------------------------------------------------------------------------
# A new database from a template with the extension
# ---------------------------------------------------------------------------

$node->safe_psql('template1', 'CREATE EXTENSION onside_attribution');
$node->safe_psql('postgres', 'CREATE DATABASE fresh');
poll_worker($node, 'fresh');
sends_ok('fresh', 'a new database that came with the extension sends');
ok( wait_until(sub { !defined worker_pid($node, 'template1') }),
	'no worker stays in a template');
$node->safe_psql('postgres', 'CREATE DATABASE fresh2');
poll_worker($node, 'fresh2');
sends_ok('fresh2', 'the next one, too');

# ---------------------------------------------------------------------------

my %arrived = %{ $sandbox->events };
ok(!$arrived{$lost}, 'what a dropped database had not sent is gone with it');
arrived_ok($sandbox, \@ids, 'everything else arrived');
unlike(slurp_file($node->logfile), qr/onside_attribution worker .*(ERROR|PANIC):/,
	'no worker met an error');

$node->stop;
done_testing();
