# doctor() answers whatever is going on: at once while somebody has a table or
# an index of ours locked, and says which and by whom; with the caller's rights
# and no others, so that nothing that another role has put in the way runs, and
# a demoted owner of the extension changes nothing; and it keeps no lock.

use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox);
create_extension($node, 'postgres');
track($node, 'postgres');
wait_for_flush($node, 'postgres', 'an event');

# As a role that may call it and nothing else, or as pg_monitor's.
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE monitor LOGIN IN ROLE pg_monitor;
CREATE ROLE plain LOGIN;
GRANT USAGE ON SCHEMA onside_attribution TO plain;
GRANT EXECUTE ON FUNCTION onside_attribution.doctor() TO plain;
SQL
my $walk = q{SELECT check_name, ok, detail, hint FROM onside_attribution.doctor()};
sub as_role
{
	my ($role, $sql) = @_;
	my ($out, $err) = ('', '');
	my $rc = $node->psql('postgres', "SET statement_timeout = '4s'; $sql", stdout => \$out, stderr => \$err,
		connstr => $node->connstr('postgres') . " user=$role", on_error_stop => 1);
	is("$rc $err", '0 ', "$role: it answers");
	return $out;
}
my $user = $node->safe_psql('postgres', 'SELECT current_user');
foreach my $role ($user, 'monitor', 'plain')
{
	is(as_role($role, "SELECT string_agg(check_name, ' ') FROM onside_attribution.doctor() WHERE ok IS NOT TRUE"), '', "$role: all is well");
}

# ---------------------------------------------------------------------------
# Locks
# ---------------------------------------------------------------------------

my @tables = split /\n/, $node->safe_psql('postgres', <<'SQL');
SELECT relname FROM pg_class WHERE relnamespace = 'onside_attribution'::regnamespace AND relkind IN ('r', 'p') ORDER BY 1
SQL
cmp_ok(scalar @tables, '>', 4, 'there are tables to be locked');

sub walk_locks
{
	my ($how) = @_;
	foreach my $table (@tables)
	{
		my $session = $node->background_psql('postgres');
		my $pid = $session->query_safe("BEGIN; LOCK TABLE ONLY onside_attribution.$table IN ACCESS EXCLUSIVE MODE; SELECT pg_backend_pid()");
		like(as_role('monitor', $walk), qr/^tables\|f\|.*onside_attribution\.$table is locked by process $pid .*\|.*pg_terminate_backend\($pid\)/m,
			"$how: $table is locked, by whom it says");
		like(as_role('plain', $walk), qr/^tables\|f\|.*onside_attribution\.$table is locked/m, "$how: also to a role that sees less");
		$session->query_safe('ROLLBACK');
		$session->quit;
	}
	return;
}
walk_locks('with a worker');

# One who waits for a lock keeps others from it, too.
{
	my $reader = $node->background_psql('postgres');
	$reader->query_safe('BEGIN; SELECT count(*) FROM onside_attribution.control');
	my $waiter = $node->background_psql('postgres');
	$waiter->query_until(qr/waits/, "BEGIN;\n\\echo waits\nLOCK TABLE onside_attribution.control IN ACCESS EXCLUSIVE MODE;\n");
	$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND relation = 'onside_attribution.control'::regclass");
	my $out = as_role('monitor', $walk);
	like($out, qr/^tables\|f\|onside_attribution\.control is locked by process/m, 'a lock that is waited for is one');
	like($out, qr/^paused\|\|table "onside_attribution\.control" is locked/m, 'the check that needs the table says so');
	like($out, qr/^outbox\|t\|/m, 'and the others are made');
	$reader->query_safe('ROLLBACK');
	$_->quit foreach $reader, $waiter;
}

# An index by itself.
{
	my $session = $node->background_psql('postgres');
	$session->query_safe('BEGIN; REINDEX INDEX onside_attribution.outbox_1_xid_id_idx');
	like(as_role('monitor', $walk), qr/^outbox\|\|table "onside_attribution\.outbox_1" is locked/m, 'an index that is locked is noticed');
	$session->query_safe('ROLLBACK');
	$session->quit;
}

# Without a worker, it reads what the worker would have told.
set_for_database($node, 'postgres', 'enabled', 'on');
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
walk_locks('without a worker');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'onside_attribution'");
$node->restart;
poll_worker($node, 'postgres');

# It keeps none: a table that is truncated needs them all.
{
	my $session = $node->background_psql('postgres');
	$session->query_safe("BEGIN; $walk");
	is($session->query_safe(<<'SQL'), '0', 'in its transaction no lock on a table is left');
SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND relation IN
	(SELECT oid FROM pg_class WHERE relnamespace = 'onside_attribution'::regnamespace AND relkind IN ('r', 'p', 't'))
SQL
	$session->quit;
}

# A table without its row is a row, and no error.
$node->safe_psql('postgres', 'CREATE TABLE kept AS SELECT * FROM onside_attribution.control; DELETE FROM onside_attribution.control');
like(as_role('monitor', $walk), qr/^paused\|/m, 'a table that has lost its row does not keep it from answering');
$node->safe_psql('postgres', 'INSERT INTO onside_attribution.control SELECT * FROM kept WHERE NOT EXISTS (SELECT FROM onside_attribution.control)');

# ---------------------------------------------------------------------------
# Rights
# ---------------------------------------------------------------------------

# Operators and functions that fit better than PostgreSQL's, first in the path of
# whoever calls it, and one that a table's owner has put where it is looked at.
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE ran (who name DEFAULT current_user);
GRANT INSERT ON ran TO PUBLIC;
CREATE SCHEMA evil;
GRANT USAGE ON SCHEMA evil TO PUBLIC;
CREATE FUNCTION evil.noted() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.ran DEFAULT VALUES; RETURN true; END $$;
CREATE FUNCTION evil.same(name, text) RETURNS boolean LANGUAGE sql AS 'SELECT evil.noted()';
CREATE FUNCTION evil.same(oid, oid) RETURNS boolean LANGUAGE sql AS 'SELECT evil.noted()';
CREATE FUNCTION evil.same(name, name) RETURNS boolean LANGUAGE sql AS 'SELECT evil.noted()';
CREATE FUNCTION evil.same(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT evil.noted()';
CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = text, FUNCTION = evil.same);
CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = evil.same);
CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = name, FUNCTION = evil.same);
CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.same);
CREATE OPERATOR evil.~~ (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.same);
CREATE FUNCTION evil.format(text, VARIADIC text[]) RETURNS text LANGUAGE sql AS $$ SELECT evil.noted()::text $$;
CREATE FUNCTION evil.count(anyelement) RETURNS bigint LANGUAGE sql AS $$ SELECT evil.noted()::int::bigint $$;
CREATE VIEW evil.pg_settings AS SELECT 'x' AS name, evil.noted() AS setting;
CREATE VIEW evil.pg_class AS SELECT 'x' AS relname, evil.noted() AS relkind;
CREATE TABLE evil.bought (n integer, installation_id uuid);
SELECT onside_attribution.attach('evil.bought', 'bought', 'installation_id', '{"n": "n"}', condition => 'evil.noted()', operation => 'UPDATE');
SQL
foreach my $role ($user, 'monitor', 'plain')
{
	as_role($role, "SET search_path = evil, pg_catalog; $walk");
	as_role($role, "SET search_path = evil, pg_catalog; CREATE TEMP VIEW pg_settings AS SELECT 'x' AS name, evil.noted() AS setting; $walk");
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM ran'), '0', 'nothing of a user has run');
is($node->safe_psql('postgres', q{SELECT bool_or(prosecdef OR proconfig IS NOT NULL) FROM pg_proc WHERE proname = 'doctor'}), 'f',
	'it has the rights and the settings of the caller');

$node->safe_psql('postgres', <<'SQL');
CREATE ROLE creator SUPERUSER LOGIN;
CREATE DATABASE demoted OWNER creator;
SQL
$node->safe_psql('demoted', 'CREATE EXTENSION onside_attribution', connstr => $node->connstr('demoted') . ' user=creator');
$node->safe_psql('postgres', 'ALTER ROLE creator NOSUPERUSER');
poll_worker($node, 'demoted');
is($node->safe_psql('demoted', 'SELECT count(*) FROM onside_attribution.doctor() WHERE ok IS NOT TRUE'), '0',
	'a demoted owner changes nothing');
is($node->safe_psql('demoted', 'SELECT count(*) FROM onside_attribution.doctor() WHERE ok IS NOT TRUE',
		connstr => $node->connstr('demoted') . ' user=monitor'), '0', 'to nobody');

$node->stop;
done_testing();
