# The rows of our own state are found to be gone, or changed by somebody's SQL: by
# UPDATE, DELETE and TRUNCATE, with triggers disabled, in a server that has not
# loaded the library, by a rewrite of the table, by transaction ids that are set
# back.  A cursor that the worker has not written itself is not believed, and a
# missing row is made again: one WARNING, no error, and nothing that is pending
# is lost or called delivered.  What only moves the row (VACUUM FULL, FREEZE,
# CLUSTER) sends nothing twice.

use OnsideTest;
use OnsideTopology;

my $sandbox = OnsideSandbox->start(keep_events => 0);
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
max_worker_processes = 40
onside_attribution.max_databases = 20
CONF

# The answer, or the error.
sub answer
{
	my ($database, $sql) = @_;
	return eval { $node->safe_psql($database, $sql) } // $@;
}

sub another_worker
{
	my ($database) = @_;
	my $worker = worker_pid($node, $database);
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)") if $worker;
	return eval { poll_worker($node, $database, $worker) };
}

# What the two rows say.
sub state_of
{
	my ($database) = @_;
	return map { $node->safe_psql($database, "SELECT array_agg(t) FROM onside_attribution.$_ t") } qw(delivery_cursor control);
}

# Lines of the log about a database.
sub lines
{
	my ($database, $position, $regexp) = @_;
	return grep { /\] [a-z_ ]+ \Q$database\E .*$regexp|\"$database\".*$regexp|$regexp.*\"$database\"/ }
	  split /\n/, log_since($node, $position);
}

my $triggers_off = 'ALTER TABLE onside_attribution.%1$s DISABLE TRIGGER ALL; %2$s; ALTER TABLE onside_attribution.%1$s ENABLE TRIGGER ALL';
my $far = q{UPDATE onside_attribution.delivery_cursor SET settled = '4000000000:4000000000:', settled_window = NULL, settled_xid = NULL, settled_id = NULL};
my $now = q{UPDATE onside_attribution.delivery_cursor SET settled = pg_current_snapshot(), settled_window = NULL, settled_xid = NULL, settled_id = NULL};
my $window = q{UPDATE onside_attribution.delivery_cursor SET settled_window = '4000000000:4000000000:', settled_xid = '3999999999', settled_id = 1};
my $nonsense = q{UPDATE onside_attribution.delivery_cursor SET settled = '10:2000000000:11,1999999999', settled_window = NULL, settled_xid = NULL, settled_id = NULL, segment = 7, delivered = -5, dead_lettered = -1};
my $again = <<'SQL';
CREATE TEMP TABLE kept AS SELECT * FROM onside_attribution.delivery_cursor;
UPDATE kept SET settled = pg_current_snapshot(), settled_window = NULL, settled_xid = NULL, settled_id = NULL;
DELETE FROM onside_attribution.delivery_cursor;
INSERT INTO onside_attribution.delivery_cursor SELECT * FROM kept
SQL

my @damages = (
	[ 'far ahead', $far ],
	[ 'far ahead, as a replica', "SET session_replication_role = replica; $far" ],
	[ 'far ahead, triggers disabled', sprintf($triggers_off, 'delivery_cursor', $far) ],
	[ 'all is settled, triggers disabled', sprintf($triggers_off, 'delivery_cursor', $now) ],
	[ 'a window far ahead, triggers disabled', sprintf($triggers_off, 'delivery_cursor', $window) ],
	[ 'nonsense, triggers disabled', sprintf($triggers_off, 'delivery_cursor', $nonsense) ],
	[ 'a row that somebody has kept', sprintf($triggers_off, 'delivery_cursor', $again) ],
	[ 'a rewritten table', sprintf($triggers_off, 'delivery_cursor', "$now; ALTER TABLE onside_attribution.delivery_cursor SET UNLOGGED; ALTER TABLE onside_attribution.delivery_cursor SET LOGGED") ],
	[ 'cursor deleted', 'DELETE FROM onside_attribution.delivery_cursor' ],
	[ 'cursor deleted, triggers disabled', sprintf($triggers_off, 'delivery_cursor', 'DELETE FROM onside_attribution.delivery_cursor') ],
	[ 'cursor truncated', 'TRUNCATE onside_attribution.delivery_cursor' ],
	[ 'control deleted', 'DELETE FROM onside_attribution.control' ],
	[ 'control deleted, triggers disabled', sprintf($triggers_off, 'control', 'DELETE FROM onside_attribution.control') ],
	[ 'control truncated', 'TRUNCATE onside_attribution.control' ],
	[ 'both truncated', 'TRUNCATE onside_attribution.delivery_cursor, onside_attribution.control' ]);

# Each damage in a database of its own, in which some events are delivered and
# others wait.
sub prepare
{
	my (@cases) = @_;
	$sandbox->behave();
	foreach my $case (@cases)
	{
		$node->safe_psql('postgres', "CREATE DATABASE $case->{database}");
		create_extension($node, $case->{database});
		record($node, $case->{database}, 5, 'before');
		wait_for_flush($node, $case->{database});
	}
	$sandbox->behave({ status => 503 });
	foreach my $case (@cases)
	{
		record($node, $case->{database}, 20, 'waiting');
		poll_status($node, $case->{database}, { state => 'backing_off', pending => 20 },
			"$case->{what}: 20 events are pending");
		$case->{position} = log_position($node);
	}
	return;
}

# The library may refuse it, in plain words.
sub damage
{
	my ($case) = @_;
	my ($database, $what) = @{$case}{qw(database what)};
	my @before = state_of($database);
	my ($ret, $stdout, $stderr) = $node->psql($database, "BEGIN; $case->{sql}; COMMIT");
	my @after = state_of($database);
	like($stderr, $case->{library} ? qr/^$|ERROR:.*onside_attribution|NOTICE:.*is left as it is/ : qr/^$|NOTICE:.*is left as it is/, "$what: done, or refused");
	note("$what: ", "@after" eq "@before" ? 'changes nothing' : "now @after");
	$case->{changed} = grep { $before[$_] ne $after[$_] } 0 .. 1;
	$case->{gone} = grep { $_ eq '' } @after;
	return;
}

sub pending_ok
{
	my ($case, $what) = @_;
	my $database = $case->{database};
	is(answer($database, "SELECT onside_attribution.flush('200 ms')"), 'f', "$what: flush() is false");
	is( answer($database, q{SELECT count(DISTINCT event_id) FROM onside_attribution.pending
			WHERE event_id IN (SELECT event_id FROM noted WHERE name = 'waiting')}),
		20, "$what: all that waits is pending");
	poll_status($node, $database, { state => 'backing_off', pending => sub { $_[0] >= 20 } }, "$what: status counts it");
	like(answer($database, 'SELECT count(*) FROM onside_attribution.doctor()'), qr/^\d+$/, "$what: doctor() looks");
	return;
}

# While the API is away, and before and after another worker has read the row.
sub check_while_away
{
	my ($case) = @_;
	my ($database, $what) = @{$case}{qw(database what)};

	$sandbox->behave({ status => 503 });
	pending_ok($case, $what);
	ok(another_worker($database), "$what: another worker");
	pending_ok($case, "$what, another worker");
	foreach my $table (qw(delivery_cursor control))
	{
		ok(wait_until(sub { answer($database, "SELECT count(*) FROM onside_attribution.$table") eq '1' }),
			"$what: $table has its row");
	}
	poll_status($node, $database,
		{ pending => sub { $_[0] eq answer($database, 'SELECT count(*) FROM onside_attribution.pending') } },
		"$what: status and the view agree");
	return;
}

# The API is there again, for all databases.
sub check_afterwards
{
	my ($case) = @_;
	my ($database, $what) = @{$case}{qw(database what)};

	$sandbox->behave();
	is(answer($database, "SELECT onside_attribution.flush('@{[ patience() ]} s')"), 't', "$what: flush() is true in the end");
	my $events = $sandbox->events;
	is(scalar(grep { !$events->{$_} } @{ recorded($node, $database) }), 0, "$what: everything has arrived");
	poll_status($node, $database, { state => 'idle', pending => 0 }, "$what: all is well");

	# A worker that knows better may have written the row before anybody read it.
	my @warnings = lines($database, $case->{position}, qr/WARNING:.*(?:cursor|control)/);
	cmp_ok(scalar @warnings, '<=', $case->{changed}, "$what: one WARNING at most") or diag("@warnings");
	cmp_ok(scalar @warnings, '>=', $case->{library} ? $case->{gone} : $case->{changed}, "$what: one WARNING");
	is( scalar lines($database, $case->{position}, qr/(?:ERROR|FATAL|PANIC):(?!  terminating|  cannot change table|  .*onside_attribution\.(?:delivery_cursor|control)" (?:cannot|must|is))/),
		0, "$what: and no error");
	$node->psql('postgres', "DROP DATABASE $database WITH (FORCE)");
	return;
}

sub cases
{
	my ($library) = @_;
	my $i = 0;
	return map {
		{
			what => $_->[0] . ($library ? '' : ', without the library'),
			sql => $_->[1],
			library => $library,
			database => 'case_' . ($library ? 'with_' : 'without_') . $i++
		}
	} @damages;
}

# ---------------------------------------------------------------------------
# While the worker runs
# ---------------------------------------------------------------------------

my @cases = cases(1);
prepare(@cases);
damage($_) foreach @cases;
check_while_away($_) foreach @cases;
check_afterwards($_) foreach @cases;

# ---------------------------------------------------------------------------
# In a server without the library, and so without a worker
# ---------------------------------------------------------------------------

@cases = cases(0);
prepare(@cases);
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
damage($_) foreach @cases;
preload($node);
$node->restart;
check_while_away($_) foreach @cases;
check_afterwards($_) foreach @cases;
$sandbox->behave();

# ---------------------------------------------------------------------------
# What only moves the row
# ---------------------------------------------------------------------------

$sandbox->reset;
create_extension($node, 'postgres');
record($node, 'postgres', 20);
wait_for_flush($node, 'postgres');
my $position = log_position($node);
foreach my $command (
	'VACUUM onside_attribution.delivery_cursor',
	'VACUUM FREEZE onside_attribution.delivery_cursor',
	'VACUUM FULL onside_attribution.delivery_cursor',
	'VACUUM (FULL, FREEZE) onside_attribution.delivery_cursor',
	'CLUSTER onside_attribution.delivery_cursor USING delivery_cursor_pkey',
	'REINDEX TABLE onside_attribution.delivery_cursor',
	'ANALYZE onside_attribution.delivery_cursor',
	'ALTER TABLE onside_attribution.delivery_cursor ADD COLUMN note_of_a_dba text',
	'VACUUM FREEZE',
	'VACUUM FULL')
{
	my $worker = poll_worker($node, 'postgres');
	$node->psql('postgres', $command);
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
	poll_worker($node, 'postgres', $worker);
	record($node, 'postgres', 1);
	wait_for_flush($node, 'postgres', "$command: it sends");
	$node->psql('postgres', $command);
	$node->restart;
	poll_worker($node, 'postgres');
	poll_status($node, 'postgres', { pending => 0, state => 'idle' }, "$command, restart: nothing is pending");
	wait_for_flush($node, 'postgres');
	nothing_came_twice($sandbox, "$command: nothing came twice");
}
arrived_ok($sandbox, recorded($node, 'postgres'), 'all arrived');
is(scalar lines('postgres', $position, qr/WARNING/), 0, 'and nothing is to be warned of');

# Nor does it hold if the row is much older than all transactions that are left.
$node->stop;
advance_xids($node, 1_500_000_000);
$node->start;
poll_worker($node, 'postgres');
poll_status($node, 'postgres', { pending => 0 }, 'after 1,500,000,000 transactions: nothing is pending');
$node->safe_psql('template1', 'VACUUM FREEZE');
$node->safe_psql('postgres', 'VACUUM FREEZE');
$node->restart;
poll_worker($node, 'postgres');
record($node, 'postgres', 1);
wait_for_flush($node, 'postgres');
nothing_came_twice($sandbox, 'after 1,500,000,000 transactions: nothing came twice');
arrived_ok($sandbox, recorded($node, 'postgres'), 'after 1,500,000,000 transactions: all arrived');

$node->stop;
done_testing();
