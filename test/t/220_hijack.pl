# Nothing of a user's runs with the rights of the worker or of the extension's
# owner: no trigger that he has put on one of the extension's tables, though he
# has every privilege on them, and nothing that the owner of a database can set
# for it.  Neither stops delivery, nor changes a byte of what is sent.

use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', preload => 0, sandbox => $sandbox);
$node->safe_psql('postgres', 'CREATE EXTENSION onside_attribution');
my @ids;

# ---------------------------------------------------------------------------
# Triggers on the extension's tables
# ---------------------------------------------------------------------------

# GRANT ALL ON ALL TABLES is what somebody types who is in a hurry, and TRIGGER
# is part of it.  The library would refuse such a trigger, so it is not there yet.
my $position = log_position($node);
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE mallory LOGIN;
CREATE SCHEMA AUTHORIZATION mallory;
GRANT USAGE ON SCHEMA onside_attribution TO mallory;
GRANT ALL ON ALL TABLES IN SCHEMA onside_attribution TO mallory;
SET SESSION AUTHORIZATION mallory;
CREATE FUNCTION mallory.hijack() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE LOG 'hijacked % of % as %', TG_OP, TG_TABLE_NAME, current_user;
    IF current_user <> 'mallory' THEN
        ALTER ROLE mallory SUPERUSER;
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END
$$;
DO $$
DECLARE
    target regclass;
    timing text;
BEGIN
    FOR target IN SELECT oid FROM pg_class
        WHERE relnamespace = 'onside_attribution'::regnamespace AND relkind IN ('r', 'p')
    LOOP
        FOREACH timing IN ARRAY '{BEFORE, AFTER}'::text[] LOOP
            EXECUTE format('CREATE TRIGGER %s_statement %1$s INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s
                            FOR EACH STATEMENT EXECUTE FUNCTION mallory.hijack()', timing, target);
            CONTINUE WHEN target = 'onside_attribution.outbox'::regclass;
            EXECUTE format('CREATE TRIGGER %s_row %1$s INSERT OR UPDATE OR DELETE ON %s
                            FOR EACH ROW EXECUTE FUNCTION mallory.hijack()', timing, target);
        END LOOP;
    END LOOP;
END
$$;
-- He does get at his own transactions.
BEGIN;
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id)
VALUES ('e', '{}', gen_random_uuid());
UPDATE onside_attribution.control SET paused = false;
ROLLBACK;
SQL
foreach my $seen ('INSERT of outbox', 'INSERT of outbox_1', 'UPDATE of control')
{
	like(log_since($node, $position), qr/hijacked $seen as mallory/,
		"a trigger is fired by the $seen of its owner");
}

preload($node);
$node->restart;
poll_worker($node, 'postgres');

# Every way in which the extension writes to its tables: recording, the cursor,
# dead letters, segments that are emptied, and its functions.
$position = log_position($node);
push @ids, map { track($node, 'postgres') } 1 .. 3;
wait_for_flush($node, 'postgres', 'events are delivered');
$node->safe_psql('postgres', <<'SQL');
SELECT onside_attribution.pause('hijacked?');
SELECT onside_attribution.resume();
SQL
is($node->safe_psql('postgres', "SELECT onside_attribution.replay('-infinity')"),
	3, 'replay records them again');
$sandbox->poison('rotten');
my $bad = track($node, 'postgres', 'purchase_completed', '{"rotten": true}');
push @ids, $bad, track($node, 'postgres');
wait_for_flush($node, 'postgres', 'one is refused');
is($node->safe_psql('postgres', 'SELECT event_id FROM onside_attribution.dead_letter'),
	$bad, 'and is a dead letter');
$sandbox->poison(undef);
is($node->safe_psql('postgres', 'SELECT onside_attribution.retry_dead_letters()'),
	1, 'which is put back');
wait_for_flush($node, 'postgres', 'and delivered');
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE source (installation_id uuid);
SELECT onside_attribution.attach('source', 'e', 'installation_id', '{}');
SET onside_attribution.on_invalid_event = dead_letter;
INSERT INTO source VALUES (NULL);
SQL

# A small segment is moved on from and emptied as events pass.
set_for_database($node, 'postgres', 'segment_size', '64kB');
my $rows_before = 0;
ok( wait_until(
		sub {
			push @ids, split /\n/, $node->safe_psql('postgres', <<SQL);
SELECT onside_attribution.track('e', '$OnsideTest::installation', jsonb_build_object('text', repeat('x', 1000)))
FROM generate_series(1, 200)
SQL
			my $rows = $node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.outbox');
			my $emptied = $rows < $rows_before;
			$rows_before = $rows;
			return $emptied;
		}),
	'a segment is emptied');
wait_for_flush($node, 'postgres', 'all is delivered');

my $log = log_since($node, $position);
is(join("\n", $log =~ /hijacked .*/g), '', 'no trigger was fired by any of it');
unlike($log, qr/background worker .* exited|terminated by|ERROR: /, 'nothing failed');
is($node->safe_psql('postgres', "SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'"),
	'f', 'and nobody is a superuser now');
arrived_ok($sandbox, \@ids, 'what was recorded arrived');
$node->safe_psql('postgres', 'DROP OWNED BY mallory CASCADE');

# ---------------------------------------------------------------------------
# What a database's owner can set
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'CREATE ROLE landlord LOGIN');
$node->safe_psql('postgres', 'CREATE DATABASE owned OWNER landlord');
create_extension($node, 'owned');

# The last values of numbers, and the first ones; 1 where that is "off".
my %strings = (
	client_encoding => 'SJIS',
	datestyle => 'German, DMY',
	default_tablespace => 'pg_default',
	local_preload_libraries => 'there_is_no_such_library',
	role => 'landlord',
	search_path => 'evil, pg_catalog',
	session_authorization => 'landlord',
	temp_tablespaces => 'pg_default',
	timezone => 'Asia/Kathmandu',
	timezone_abbreviations => 'India');
foreach my $extreme ('max', 'min')
{
	$sandbox->reset;
	$sandbox->behave({ status => 503 });
	my $worker = poll_worker($node, 'owned');
	my $id = $node->safe_psql('owned', <<SQL);
SELECT onside_attribution.track('purchase_completed', '$OnsideTest::installation',
    '{"text": "é", "at": "2026-05-05", "n": 0.10}', '2026-05-05 12:00:00.5+02')
SQL
	my $preview = $node->safe_psql('owned', "SELECT onside_attribution.preview('$id')");

	# From elsewhere: with these settings nobody else can connect.
	my @settings = split /\n/, $node->safe_psql('postgres', <<SQL);
SELECT name || '|' || CASE vartype
    WHEN 'bool' THEN CASE boot_val WHEN 'on' THEN 'off' ELSE 'on' END
    WHEN 'enum' THEN enumvals[CASE '$extreme' WHEN 'min' THEN 1 ELSE array_length(enumvals, 1) END]
    WHEN 'string' THEN coalesce(boot_val, '')
    ELSE CASE WHEN '$extreme' = 'max' THEN max_val WHEN min_val IN ('0', '-1') THEN '1' ELSE min_val END END
FROM pg_settings WHERE context = 'user' AND name NOT LIKE 'onside%'
UNION ALL VALUES ('role|'), ('session_authorization|')
SQL
	my $script = '';
	foreach (@settings)
	{
		my ($name, $value) = split /\|/;
		$value = $strings{ lc $name } // $value;
		$script .= "ALTER DATABASE owned SET $name = '$value';\n";
	}
	$node->psql('postgres', $script, on_error_stop => 0, extra_params => [ '-U', 'landlord' ]);
	my @set = split /\n/, $node->safe_psql('postgres', <<'SQL');
SELECT split_part(unnest(setconfig), '=', 1) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase
WHERE datname = 'owned' AND setrole = 0
SQL
	cmp_ok(scalar @set, '>', 100, "$extreme: the owner of a database sets much for it");
	foreach my $name (qw(role session_authorization search_path local_preload_libraries
		default_transaction_read_only jit statement_timeout))
	{
		ok(scalar(grep { lc $_ eq $name } @set), "$extreme: $name among it");
	}

	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
	ok(wait_for_exit($worker), "$extreme: the worker starts over");
	$position = log_position($node);
	$sandbox->behave;
	$sandbox->wait_distinct(1, patience());
	arrived_ok($sandbox, [$id], "$extreme: the event arrives");
	is($sandbox->kept_text =~ /\Q$preview\E/ ? 'same' : $sandbox->kept_text,
		'same', "$extreme: byte by byte what it was to be");

	$node->safe_psql('postgres', 'ALTER DATABASE owned RESET ALL');
	wait_for_flush($node, 'owned', "$extreme: it is settled");
	unlike(log_since($node, $position), qr/permission denied|exited with exit code 1/,
		"$extreme: nothing failed in the worker");
}

$node->stop;
done_testing();
