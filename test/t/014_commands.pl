# Administration beside a worker whose request hangs: commands that want its
# database for themselves (DROP, RENAME, SET TABLESPACE, CREATE ... TEMPLATE)
# succeed for superusers and for plain owners, from wherever they are run, and
# afterwards there is a worker where there should be one; after a command that
# fails or is cut off the worker is back; and nothing that maintains, copies or
# dumps the database waits for the worker, nor the worker's purchases for that.

use File::Spec ();
use OnsideTest;

my $sandbox = OnsideSandbox->start;

# A request may hang for an hour: whatever waits for one fails.
my $node = onside_node('main', sandbox => $sandbox,
	init => { allows_streaming => 1 }, conf => <<'CONF');
onside_attribution.request_timeout = '1h'
onside_attribution.max_databases = 4
CONF
my $installation = $OnsideTest::installation;
my $track = "SELECT onside_attribution.track('e', '$installation', '{}')";
my @ids;

mkdir $node->basedir . '/space' or die;
my $space = File::Spec->rel2abs($node->basedir . '/space');
$node->safe_psql('postgres', "CREATE TABLESPACE space LOCATION '$space'");
$node->safe_psql('postgres', 'CREATE ROLE keeper LOGIN CREATEDB; GRANT CREATE ON TABLESPACE space TO keeper');
$node->safe_psql('postgres', 'CREATE DATABASE plain');
create_extension($node, 'postgres');

# Leaves the worker with a request that is never answered; the next one will be.
sub hang
{
	my ($database) = @_;
	poll_worker($node, $database);
	push @ids, track_and_hang($node, $sandbox, $database);
	return worker_pid($node, $database);
}

# ---------------------------------------------------------------------------
# Commands on the database
# ---------------------------------------------------------------------------

my $rename = 'ALTER DATABASE shop RENAME TO store';
my $back = 'ALTER DATABASE store RENAME TO shop';
my $move = 'ALTER DATABASE shop SET TABLESPACE space';
my $copy = 'CREATE DATABASE copy TEMPLATE shop STRATEGY wal_log';
my $copy_files = 'CREATE DATABASE copy TEMPLATE shop STRATEGY file_copy';
my $superuser = $node->safe_psql('postgres', 'SELECT current_user');
my $bystander = worker_pid($node, 'postgres');

# With max_databases = 4, this cannot go well if slots leak.
foreach my $case (
	[ $superuser, 'plain', $rename, $back, $move, $copy, $copy_files ],
	[ 'keeper', 'plain', $rename, $back, $copy_files ],
	[ 'keeper', 'postgres', $move, $copy ])
{
	my ($role, $from, @commands) = @$case;
	my $run = sub {
		my ($sql) = @_;
		$node->safe_psql($from, $sql, extra_params => [ '-U', $role ]);
		return pass("$role in $from: $sql");
	};
	$run->('CREATE DATABASE shop');
	create_extension($node, 'shop');
	my $name = 'shop';
	foreach my $command (@commands)
	{
		my $worker = hang($name);
		$run->($command);
		$name = $1 if $command =~ /RENAME TO (\w+)/;
		poll_worker($node, $name, $worker);
		wait_for_flush($node, $name, 'the worker is back and sends');
		if ($command =~ /copy TEMPLATE/)
		{
			my $copied = hang('copy');
			$run->('DROP DATABASE copy');
			ok(wait_for_exit($copied), 'its worker is gone');
			pop @ids;
		}
	}
	my $worker = hang('shop');

	# An owner may not terminate a superuser's session that is about to end.
	ok( wait_until(
			sub {
				$node->safe_psql('postgres',
					"SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop' AND pid <> $worker") == 0;
			}),
		'only the worker is connected');
	$run->('DROP DATABASE shop WITH (FORCE)');
	ok(wait_for_exit($worker), 'its worker is gone');
	pop @ids;
}
is(worker_pid($node, 'postgres'), $bystander, 'the worker of another database has not noticed all this');
arrived_ok($sandbox, \@ids, 'what a dropped database had not sent is gone with it, all else arrived');

# A worker at rest has its cursor written before it goes.
$node->safe_psql('postgres', 'CREATE DATABASE shop OWNER keeper');
create_extension($node, 'shop');
push @ids, track($node, 'shop');
wait_for_flush($node, 'shop', 'at rest');
my $worker = worker_pid($node, 'shop');
my $duplicates = $sandbox->report->{duplicates};
$node->safe_psql('postgres', $_) foreach $rename, $back;
poll_worker($node, 'shop', $worker);
push @ids, track($node, 'shop');
wait_for_flush($node, 'shop', 'renamed at rest: it sends');
is($sandbox->report->{duplicates}, $duplicates, 'and nothing twice');

# A new database from a template with the extension
$node->safe_psql('template1', 'CREATE EXTENSION onside_attribution');
$node->safe_psql('postgres', 'CREATE DATABASE fresh');
poll_worker($node, 'fresh');
push @ids, track($node, 'fresh');
wait_for_flush($node, 'fresh', 'a new database that came with the extension sends');
ok(wait_until(sub { !defined worker_pid($node, 'template1') }), 'no worker stays in a template');
$node->safe_psql('postgres', 'DROP DATABASE fresh');
$node->safe_psql('template1', 'DROP EXTENSION onside_attribution');

# ---------------------------------------------------------------------------
# Commands that fail
# ---------------------------------------------------------------------------

$worker = hang('shop');
foreach my $command (
	'DROP DATABASE shop',
	'CREATE DATABASE copy TEMPLATE shop',
	'ALTER DATABASE shop SET TABLESPACE space')
{
	my ($ret, $stdout, $stderr) = $node->psql('postgres', "BEGIN; $command");
	like($stderr, qr/cannot run inside a transaction block/, "$command in a transaction fails");
}
my ($ret, $stdout, $stderr);
$node->safe_psql('postgres', 'CREATE ROLE maker LOGIN CREATEDB');
foreach my $command ('DROP DATABASE shop', $rename, 'ALTER DATABASE shop SET TABLESPACE pg_default', $copy)
{
	($ret, $stdout, $stderr) = $node->psql('postgres', $command, extra_params => [ '-U', 'maker' ]);
	like($stderr, qr/must be owner of database|permission denied/, "$command is not for others");
}
is(worker_pid($node, 'shop'), $worker, 'the worker has not noticed');

foreach my $command (
	[ 'ALTER DATABASE shop RENAME TO plain', qr/already exists/ ],
	[ 'CREATE DATABASE plain TEMPLATE shop', qr/already exists/ ],
	[ 'ALTER DATABASE shop SET TABLESPACE nowhere', qr/does not exist/ ])
{
	($ret, $stdout, $stderr) = $node->psql('postgres', $command->[0]);
	like($stderr, $command->[1], "$command->[0] fails");
	poll_worker($node, 'shop');
	wait_for_flush($node, 'shop', 'the worker is back and sends');
}

# In a transaction, RENAME keeps workers out until its end.
$worker = hang('shop');
my $session = $node->background_psql('postgres', on_error_stop => 0);
$session->query_safe('BEGIN; ALTER DATABASE shop RENAME TO store');
ok(wait_for_exit($worker), 'RENAME that has not committed: the worker is gone');
$session->query_safe('ROLLBACK');
poll_worker($node, 'shop');
wait_for_flush($node, 'shop', 'rolled back: it is back and sends');

# The session that runs the command ends midway: it waits for another one.
foreach my $how (qw(pg_cancel_backend pg_terminate_backend))
{
	foreach my $command ('DROP DATABASE shop', 'CREATE DATABASE copy TEMPLATE shop')
	{
		$worker = hang('shop');
		my $connected = $node->background_psql('shop', on_error_stop => 0);
		$connected->query_safe('SELECT 1');
		my $pid = $session->query_safe('SELECT pg_backend_pid()');
		$session->{stdin} .= "$command;\n";
		$session->{run}->pump_nb;
		ok(wait_for_exit($worker), "$command waits for another session");
		$node->safe_psql('postgres', "SELECT $how($pid)");
		poll_worker($node, 'shop');
		wait_for_flush($node, 'shop', "$how: the worker is back and sends");
		$connected->quit;
		eval { $session->quit };
		$session = $node->background_psql('postgres', on_error_stop => 0);
	}
}

# ---------------------------------------------------------------------------
# Maintenance
# ---------------------------------------------------------------------------

$worker = hang('shop');
my $connstr = $node->connstr('shop');
$node->safe_psql('shop', 'CLUSTER onside_attribution.outbox_1 USING outbox_1_xid_id_idx');
foreach my $sql (
	'VACUUM', 'VACUUM FULL', 'ANALYZE', 'ANALYZE onside_attribution.outbox',
	'CLUSTER', 'REINDEX DATABASE shop', 'REINDEX DATABASE CONCURRENTLY shop',
	'REINDEX SYSTEM shop',
	'REINDEX TABLE onside_attribution.outbox',
	'REINDEX TABLE CONCURRENTLY onside_attribution.outbox',
	'REINDEX INDEX CONCURRENTLY onside_attribution.outbox_1_xid_id_idx',
	'LOCK TABLE onside_attribution.outbox, onside_attribution.delivery_cursor',
	'CHECKPOINT', 'REASSIGN OWNED BY keeper TO keeper', 'DROP OWNED BY keeper',
	'SELECT pg_switch_wal()')
{
	$node->safe_psql('shop', $sql =~ /^LOCK/ ? "BEGIN; $sql; COMMIT" : $sql);
	pass($sql);
	push @ids, $node->safe_psql('shop', "SET lock_timeout = '10s'; $track");
}
$node->safe_psql('shop', "ALTER SYSTEM SET work_mem = '5MB'");
$node->reload;
command_ok([ 'pg_dump', '-f', $node->basedir . '/dump', '-d', $connstr ], 'pg_dump');
$node->backup('copy', backup_options => ["--tablespace-mapping=$space=$space-copied"]);
pass('a base backup');
is(worker_pid($node, 'shop'), $worker, 'all of it beside the same worker');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
poll_worker($node, 'shop', $worker);
wait_for_flush($node, 'shop', 'the next one finds everything');
arrived_ok($sandbox, \@ids, 'all arrived');

# The same while events pass: nothing is lost, and no worker meets an error.
my $position = log_position($node);
my $shopper = $node->background_psql('shop', on_error_stop => 0);
foreach my $i (1 .. 3)
{
	foreach my $sql ('VACUUM FULL', 'REINDEX DATABASE shop',
		'REINDEX TABLE CONCURRENTLY onside_attribution.outbox',
		'CLUSTER onside_attribution.outbox_1')
	{
		push @ids, split /\n/, $shopper->query_safe(
			"SELECT onside_attribution.track('e', '$installation', '{}') FROM generate_series(1, 200)");
		$node->safe_psql('shop', $sql);
	}
}
wait_for_flush($node, 'shop', 'maintained while events pass');
arrived_ok($sandbox, \@ids, 'all arrived');
unlike(log_since($node, $position), qr/onside_attribution worker .*(ERROR|FATAL|PANIC):/,
	'no worker met an error');

# Discarding the backlog while a request hangs.
$worker = hang('shop');
pop @ids;
push @ids, track($node, 'postgres');
$node->safe_psql('shop', 'TRUNCATE onside_attribution.outbox');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
poll_worker($node, 'shop', $worker);
push @ids, track($node, 'shop');
wait_for_flush($node, 'shop', 'after TRUNCATE it sends what comes then');
poll_status($node, 'shop', { pending => 0, state => 'idle' }, 'and nothing is pending');
wait_for_flush($node, 'postgres');
arrived_ok($sandbox, \@ids, 'what was discarded has not arrived, all else has');

$_->quit foreach $shopper, $session;
$node->stop;
done_testing();
