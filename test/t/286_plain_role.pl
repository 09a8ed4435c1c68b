# A role that has no more than EXECUTE on what is for applications, and so a role
# that has nothing, cannot hold up or change what others do: not by advisory
# locks on whatever numbers, not by LOCK TABLE, SELECT FOR UPDATE, an open
# transaction or an attempt at DDL, all of which it keeps open.  Others record,
# deliver, pause, resume, replay and flush; segments are emptied.  And two
# replay() at once record each event once.

use OnsideTest;

my $installation = $OnsideTest::installation;
my $sandbox = OnsideSandbox->start(keep_events => 0, poison => 'counterfeit');
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
deadlock_timeout = '1h'
max_locks_per_transaction = 256
onside_attribution.segment_size = '64kB'
onside_attribution.retention = '1h'
CONF
create_extension($node, 'postgres');

$node->safe_psql('postgres', <<'SQL');
CREATE TABLE noted (event_id uuid);
CREATE TABLE shop (n integer);
GRANT SELECT ON shop TO PUBLIC;
CREATE ROLE nobody_at_all LOGIN;
CREATE ROLE app LOGIN;
GRANT USAGE ON SCHEMA onside_attribution TO app;
GRANT EXECUTE ON FUNCTION onside_attribution.track(text, uuid, jsonb, timestamptz, uuid) TO app;
GRANT CREATE ON SCHEMA public TO app, nobody_at_all;
CREATE ROLE operator LOGIN;
GRANT USAGE ON SCHEMA onside_attribution TO operator;
GRANT EXECUTE ON FUNCTION onside_attribution.flush(interval), onside_attribution.pause(text), onside_attribution.resume(),
	onside_attribution.replay(timestamptz, timestamptz), onside_attribution.retry_dead_letters(uuid[]) TO operator;
SQL
my $note = "INSERT INTO noted SELECT onside_attribution.track('e', '$installation', '{}')";

# Every number that somebody could find in the catalog: OIDs of our objects and
# their classes, in both forms and orders, shared and exclusive.
my $numbers = <<'SQL';
SELECT format('%s %s', d.classid::bigint, d.objid::bigint)
FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
WHERE e.extname = 'onside_attribution' AND d.deptype = 'e'
UNION
SELECT format('%s %s', 'pg_class'::regclass::oid::bigint, c.oid::bigint) FROM pg_class c
WHERE c.relnamespace = 'onside_attribution'::regnamespace
UNION
SELECT format('%s %s', 'pg_namespace'::regclass::oid::bigint, 'onside_attribution'::regnamespace::oid::bigint)
UNION
SELECT format('%s %s', 'pg_extension'::regclass::oid::bigint, e.oid::bigint) FROM pg_extension e
UNION
SELECT format('%s %s', 'pg_database'::regclass::oid::bigint, d.oid::bigint) FROM pg_database d
UNION
SELECT format('%s %s', hashtext(s), 0) FROM unnest('{onside,onside_attribution,outbox,onside_attribution.outbox,replay,onside_attribution.replay}'::text[]) s
SQL
my @numbers = map { [split] } split /\n/, $node->safe_psql('postgres', $numbers);
my @advisory = map {
	my ($class, $object) = @$_;
	my $both = ($class << 32) | $object;
	"SELECT pg_advisory_lock($class, $object)", "SELECT pg_advisory_lock($object, $class)",
	  "SELECT pg_advisory_lock($object)", "SELECT pg_advisory_lock($class)",
	  ($class >= 0 ? "SELECT pg_advisory_lock($both)" : ())
} @numbers;
cmp_ok(scalar @advisory, '>', 200, 'there are many numbers to lock');

my @tables = split /\n/, $node->safe_psql('postgres', <<'SQL');
SELECT format('onside_attribution.%I', relname) FROM pg_class
WHERE relnamespace = 'onside_attribution'::regnamespace AND relkind IN ('r', 'p', 'v')
SQL
my @attempts = (
	[ 'advisory locks', \@advisory ],
	[ 'shared advisory locks', [ map { s/advisory_lock/advisory_lock_shared/r } @advisory ] ],
	[ 'advisory locks of a transaction', [ map { s/advisory_lock/advisory_xact_lock/r } @advisory ], 'BEGIN' ],
	[ 'LOCK TABLE', [ map { my $table = $_; map { "LOCK TABLE $table IN $_ MODE" } 'ACCESS SHARE', 'SHARE ROW EXCLUSIVE', 'ACCESS EXCLUSIVE' } @tables ], 'BEGIN' ],
	[ 'SELECT FOR UPDATE', [ map { ("SELECT * FROM $_ FOR UPDATE", "SELECT * FROM $_ FOR KEY SHARE", "SELECT count(*) FROM $_") } @tables ], 'BEGIN' ],
	[ 'an open snapshot', ['SELECT count(*) FROM shop'], 'BEGIN ISOLATION LEVEL REPEATABLE READ' ],
	[ 'a serializable transaction', ['SELECT count(*) FROM shop'], 'BEGIN ISOLATION LEVEL SERIALIZABLE' ],
	[ 'a transaction with an id', ['SELECT pg_current_xact_id()'], 'BEGIN' ],
	[ 'a cursor WITH HOLD', ['DECLARE c CURSOR WITH HOLD FOR SELECT * FROM shop'], 'BEGIN' ],
	[ 'DDL', [
		q{COMMENT ON EXTENSION onside_attribution IS 'x'}, 'ALTER EXTENSION onside_attribution UPDATE', 'DROP EXTENSION onside_attribution',
		'DROP EXTENSION onside_attribution CASCADE', 'ALTER EXTENSION onside_attribution ADD TABLE shop', 'DROP SCHEMA onside_attribution CASCADE',
		'ALTER SCHEMA onside_attribution RENAME TO mine', 'COMMENT ON SCHEMA onside_attribution IS NULL',
		q{SECURITY LABEL ON SCHEMA onside_attribution IS 'x'},
		map { ("DROP TABLE $_", "TRUNCATE $_", "ALTER TABLE $_ ADD COLUMN x int", "CREATE INDEX ON $_ ((1))", "COMMENT ON TABLE $_ IS 'x'",
			"CREATE TRIGGER t AFTER INSERT ON $_ EXECUTE FUNCTION nothing()", "CREATE RULE r AS ON INSERT TO $_ DO NOTHING",
			"CREATE TABLE child () INHERITS ($_)", "CREATE TABLE refers (e uuid REFERENCES $_)", "CREATE VIEW over AS SELECT * FROM $_",
			"VACUUM $_", "ANALYZE $_", "CLUSTER $_", "REINDEX TABLE $_", "CREATE STATISTICS s ON event_id, event_name FROM $_",
			"CREATE POLICY p ON $_", "GRANT SELECT ON $_ TO PUBLIC", "REFRESH MATERIALIZED VIEW $_") } @tables ] ],
	[ 'DDL in a transaction', [ map { ("DROP TABLE $_", "ALTER TABLE $_ ADD COLUMN x int", "CREATE INDEX ON $_ ((1))") } @tables ], 'BEGIN' ],
	[ 'settings', [
		map { ("SET onside_attribution.$_->[0] = '$_->[1]'", "ALTER ROLE CURRENT_USER SET onside_attribution.$_->[0] = '$_->[1]'",
			"ALTER DATABASE postgres SET onside_attribution.$_->[0] = '$_->[1]'") }
		  [ enabled => 'off' ], [ endpoint => 'http://127.0.0.1:1/' ], [ credentials_file => '/etc/passwd' ], [ current_segment => '7' ] ] ],
	[ 'signals', [
		'SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE backend_type ~ $$onside$$',
		'SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type ~ $$onside$$',
		'SELECT pg_log_backend_memory_contexts(pid) FROM pg_stat_activity', 'SELECT pg_reload_conf()' ] ],
	[ 'notifications', [ 'LISTEN onside_attribution', map { "NOTIFY onside_attribution, '$_'" } 1 .. 10 ], 'BEGIN' ],
	[ 'temporary objects of the same names', [ map { my ($name) = /\.(.*)/; "CREATE TEMP TABLE $name (n int)" } @tables ], 'BEGIN' ]);

# Without a wait: who would have to wait for the role says so instead.
sub at_once
{
	my ($role, $sql) = @_;
	my ($ret, $stdout, $stderr) = $node->psql('postgres',
		"SET lock_timeout = '2s'; SET statement_timeout = '" . patience() . "s';\n$sql", extra_params => [ '-U', $role ]);
	return $ret == 0 ? $stdout : "error: $stderr";
}

my $superuser = $node->safe_psql('postgres', 'SELECT current_user');
my $role = 'app';
foreach my $attempt (@attempts)
{
	my ($name, $statements, $begin) = @$attempt;
	my $what = "$role, $name";
	my $started = $node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()');
	my $before = $node->safe_psql('postgres', "$note RETURNING event_id");
	wait_for_flush($node, 'postgres');
	my $worker = worker_pid($node, 'postgres');

	# What fails leaves its transaction as it was, with what it has got.
	my $session = $node->background_psql('postgres', on_error_stop => 0, timeout => 10 * patience(), extra_params => [ '-U', $role ]);
	$session->query("SET lock_timeout = '1s'");
	$session->query('\\set ON_ERROR_ROLLBACK on');
	$session->query($begin) if $begin;
	$session->query(join ";\n", @$statements);
	$session->{stderr} = '';
	like($session->query(q{SELECT 'still ' || 'there'}), qr/still there/, "$what: it keeps what it got");

	# What others do meanwhile.
	is(at_once('app', "SELECT count(onside_attribution.track('e', '$installation', '{}'))"), 1, "$what: others record");
	is(at_once($superuser, "$note FROM generate_series(1, 200)"), '', "$what: many");
	is(at_once('operator', "SELECT onside_attribution.flush('@{[ patience() ]} s')"), 't', "$what: they are delivered, and flush() says so");
	is(at_once('operator', "SELECT onside_attribution.pause('x')"), '', "$what: pause()");
	poll_status($node, 'postgres', { state => 'paused' }, "$what: paused");
	is(at_once('operator', 'SELECT onside_attribution.resume()'), '', "$what: resume()");
	like(at_once('operator', "SELECT onside_attribution.replay(now() - interval '1 minute')"), qr/^[1-9]/, "$what: replay()");
	like(at_once('operator', 'SELECT onside_attribution.retry_dead_letters()'), qr/^\d/, "$what: retry_dead_letters()");
	at_once($superuser, "SELECT onside_attribution.track('e', '$installation', '{\"x\": \"counterfeit\"}')");
	is(at_once('operator', "SELECT onside_attribution.flush('@{[ patience() ]} s')"), 't', "$what: all is settled");
	cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.dead_letter'), '>=', 1, "$what: a dead letter is written");
	$node->safe_psql('postgres', 'DELETE FROM onside_attribution.dead_letter');
	is(worker_pid($node, 'postgres'), $worker, "$what: by the same worker");
	is($node->safe_psql('postgres', 'SELECT pg_postmaster_start_time()'), $started, "$what: of the same server");
	eval { $session->query('ROLLBACK') };
	eval { $session->quit };
}

# ---------------------------------------------------------------------------
# Emptying
# ---------------------------------------------------------------------------

# What is kept open here is no lock on a segment, so all of it goes.
$node->append_conf('postgresql.conf', "onside_attribution.retention = 0");
$node->reload;
my @sessions = map { $node->background_psql('postgres', on_error_stop => 0, timeout => 10 * patience(), extra_params => [ '-U', 'nobody_at_all' ]) } 1 .. 3;
$sessions[0]->query(join ";\n", @advisory);
$sessions[1]->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM shop');
$sessions[2]->query('BEGIN; SELECT pg_current_xact_id()');
my $first = $node->safe_psql('postgres', "$note RETURNING event_id");
ok( wait_until(
		sub {
			$node->safe_psql('postgres', "$note FROM generate_series(1, 600)");
			$node->safe_psql('postgres', 'SELECT onside_attribution.flush()');
			return $node->safe_psql('postgres', "SELECT count(*) FROM onside_attribution.outbox WHERE event_id = '$first'") == 0;
		}),
	'segments are emptied beside all of that');
$_->quit foreach @sessions;

# ---------------------------------------------------------------------------
# replay() twice at once
# ---------------------------------------------------------------------------

$node->append_conf('postgresql.conf', "onside_attribution.retention = '1h'\nonside_attribution.segment_size = '64MB'");
$node->restart;
poll_worker($node, 'postgres');
wait_for_flush($node, 'postgres');
my $since = $node->safe_psql('postgres', 'SELECT clock_timestamp()');
$node->safe_psql('postgres', "$note FROM generate_series(1, 500)");
wait_for_flush($node, 'postgres');
$node->safe_psql('postgres', 'SELECT onside_attribution.pause()');
poll_status($node, 'postgres', { state => 'paused', pending => 0 }, 'nothing is pending');

# Each in a transaction that stays open over the other's start.
foreach my $isolation ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	my @replays = map { $node->background_psql('postgres', on_error_stop => 0, timeout => 10 * patience(), extra_params => [ '-U', 'operator' ]) } 1 .. 3;
	$_->query("BEGIN ISOLATION LEVEL $isolation; SELECT pg_backend_pid()") foreach @replays;
	$replays[0]->query("SELECT 'recorded ' || onside_attribution.replay('$since')");
	foreach my $session (@replays[ 1, 2 ])
	{
		$session->{stdin} .= "SELECT 'recorded ' || onside_attribution.replay('$since');\nCOMMIT;\nSELECT 'ended';\n";
		$session->{run}->pump_nb;
	}
	ok( wait_until(
			sub {
				$_->{run}->pump_nb foreach @replays;
				return !grep { $_->{stdout} !~ /ended/ && !replay_waits() } @replays[ 1, 2 ];
			}),
		"$isolation: the others wait, or have ended");
	$replays[0]->query_safe('COMMIT');
	foreach my $session (@replays[ 1, 2 ])
	{
		ok(wait_until(sub { $session->{run}->pump_nb; $session->{stdout} =~ /ended/ }), "$isolation: they end");
		$session->{stdout} = $session->{stderr} = '';
	}
	$_->quit foreach @replays;
	is( $node->safe_psql('postgres', <<'SQL'),
SELECT count(*) || ' ' || count(DISTINCT event_id) FROM onside_attribution.pending
SQL
		'500 500', "$isolation: each event is recorded once");
	$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
	wait_for_flush($node, 'postgres');
	$node->safe_psql('postgres', 'SELECT onside_attribution.pause()');
	poll_status($node, 'postgres', { state => 'paused', pending => 0 }, "$isolation: it is sent");
}

sub replay_waits
{
	return $node->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE usename = 'operator' AND wait_event_type = 'Lock'") > 0;
}

my $lost = $node->safe_psql('postgres', 'SELECT array_agg(event_id) FROM noted') =~ s/[{}]//gr;
my $events = $sandbox->events;
is(scalar(grep { !$events->{$_} } split /,/, $lost), 0, 'everything has arrived');

$node->stop;
done_testing();
