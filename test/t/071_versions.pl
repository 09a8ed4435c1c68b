# A new package takes effect in two steps, the library at a restart and the SQL
# objects at ALTER EXTENSION ... UPDATE, and the old ones may meet the new ones
# in between, either way round: then nothing is sent, status and the log say
# which step is missing, and recording goes on.  An updated extension ends in
# the same catalog as a fresh one.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use Test::More;

use OnsideSandbox;
use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox);
my @ids;

# Everything in the catalogs that the extension's script decides on, one object
# or property a line, without OIDs.
my $catalog = <<'SQL';
SELECT format('%s: %s', kind, line) FROM (
    SELECT 'member', pg_describe_object(classid, objid, objsubid)
    FROM pg_depend
    WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
      AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'onside_attribution')
    UNION ALL
    SELECT 'function', format('%s %s kind=%s cost=%s secdef=%s strict=%s volatile=%s parallel=%s owner=%s acl=%s',
        pg_get_function_identity_arguments(oid), pg_get_functiondef(oid), prokind, procost, prosecdef,
        proisstrict, provolatile, proparallel, proowner = 10, proacl)
    FROM pg_proc WHERE pronamespace = 'onside_attribution'::regnamespace
    UNION ALL
    SELECT 'relation', format('%s kind=%s persistence=%s options=%s toast=%s acl=%s rls=%s partition=%s key=%s view=%s',
        oid::regclass, relkind, relpersistence, reloptions,
        (SELECT reloptions FROM pg_class t WHERE t.oid = c.reltoastrelid), relacl, relrowsecurity,
        pg_get_expr(relpartbound, oid),
        CASE relkind WHEN 'p' THEN pg_get_partkeydef(oid) END,
        CASE relkind WHEN 'v' THEN pg_get_viewdef(oid) END)
    FROM pg_class c WHERE relnamespace = 'onside_attribution'::regnamespace
    UNION ALL
    SELECT 'column', format('%s.%s number=%s type=%s notnull=%s default=%s acl=%s storage=%s stats=%s',
        attrelid::regclass, attname, attnum, format_type(atttypid, atttypmod), attnotnull,
        (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef d WHERE d.adrelid = attrelid AND d.adnum = attnum),
        attacl, attstorage, attstattarget)
    FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
    WHERE relnamespace = 'onside_attribution'::regnamespace AND attnum > 0
    UNION ALL
    SELECT 'constraint', format('%s.%s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
    FROM pg_constraint WHERE connamespace = 'onside_attribution'::regnamespace
    UNION ALL
    SELECT 'index', pg_get_indexdef(indexrelid)
    FROM pg_index JOIN pg_class c ON c.oid = indexrelid
    WHERE relnamespace = 'onside_attribution'::regnamespace
    UNION ALL
    SELECT 'trigger', format('%s enabled=%s', pg_get_triggerdef(t.oid), tgenabled)
    FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid
    WHERE relnamespace = 'onside_attribution'::regnamespace
    UNION ALL
    SELECT 'type', format('%s %s', typname, typtype)
    FROM pg_type WHERE typnamespace = 'onside_attribution'::regnamespace
    UNION ALL
    SELECT 'comment', format('%s: %s', pg_describe_object(classoid, objoid, objsubid), description)
    FROM pg_description
    WHERE pg_describe_object(classoid, objoid, objsubid) LIKE '%onside_%'
    UNION ALL
    SELECT 'schema', format('%s acl=%s', nspname, nspacl)
    FROM pg_namespace WHERE nspname = 'onside_attribution'
    UNION ALL
    SELECT 'dump', format('%s %s', c::regclass, w)
    FROM pg_extension, unnest(extconfig, extcondition) AS u(c, w)
    WHERE extname = 'onside_attribution'
    UNION ALL
    SELECT 'extension', format('version=%s schema=%s relocatable=%s', extversion, extnamespace::regnamespace, extrelocatable)
    FROM pg_extension WHERE extname = 'onside_attribution'
) AS lines(kind, line)
ORDER BY 1
SQL

sub record
{
	my ($database) = @_;
	push @ids, track($node, $database);
	return;
}

# ---------------------------------------------------------------------------
# The new library, the old objects
# ---------------------------------------------------------------------------

create_extension($node, 'postgres');
$node->safe_psql('postgres', 'CREATE DATABASE updated');

my $position = log_position($node);
$node->safe_psql('updated', "CREATE EXTENSION onside_attribution VERSION '0.9'");
poll_status($node, 'updated',
	{ state => 'misconfigured', state_reason => qr/ALTER EXTENSION onside_attribution UPDATE/ },
	'with objects of 0.9 the worker idles and says what is missing');
wait_for_log_line($node, qr/database "updated" is now misconfigured/, $position,
	'and so does the log');

record('updated');
my $status = poll_status($node, 'updated', { pending => 1 }, 'events are recorded and counted');
like($status->{oldest_pending_age}, qr/^00:/, 'with their age');
is($sandbox->report->{distinct}, 0, 'none was sent');

my $before = $node->safe_psql('updated',
	'SELECT count(*) FROM onside_attribution.outbox');
$node->safe_psql('updated', 'ALTER EXTENSION onside_attribution UPDATE');
poll_worker($node, 'updated');
wait_for_flush($node, 'updated', 'after the update they are sent, without a restart');
is($before, 1, 'the one that was recorded before');

is($node->safe_psql('updated', $catalog), $node->safe_psql('postgres', $catalog),
	'an updated extension is what a fresh one is');

# ---------------------------------------------------------------------------
# The old library, the new objects
# ---------------------------------------------------------------------------

# This library has to pass for the old one: only the version tells.
$position = log_position($node);
$node->safe_psql('updated', <<'SQL');
UPDATE pg_extension SET extversion = '1.10' WHERE extname = 'onside_attribution';
SQL
$node->restart;
$status = poll_status($node, 'updated',
	{ state => 'misconfigured', state_reason => qr/version 1\.10 .* restart the server/ },
	'with objects newer than the library the worker idles and says what is missing');
is($status->{pending}, undef, 'it does not look into tables that it may not know');
wait_for_log_line($node, qr/database "updated" is now misconfigured/, $position,
	'and so does the log');

record('updated');
is($sandbox->report->{distinct}, 1, 'events are recorded and not sent');
record('postgres');
wait_for_flush($node, 'postgres', 'other databases are not concerned');

$node->safe_psql('updated', <<'SQL');
UPDATE pg_extension SET extversion = '1.0' WHERE extname = 'onside_attribution';
SQL
$node->restart;
wait_for_flush($node, 'updated', 'with the library that belongs to them they are sent');

# ---------------------------------------------------------------------------
# Beside a working worker
# ---------------------------------------------------------------------------

# As ALTER EXTENSION ... UPDATE does it, which would need a script of a version
# that there is not.
$node->safe_psql('updated', <<'SQL');
CREATE TABLE member ();
BEGIN;
UPDATE pg_extension SET extversion = '1.10' WHERE extname = 'onside_attribution';
ALTER EXTENSION onside_attribution ADD TABLE member;
COMMIT;
SQL
poll_status($node, 'updated', { state => 'misconfigured', state_reason => qr/version 1\.10/ },
	'a worker notices at once that the objects have changed under it');
$node->safe_psql('updated', <<'SQL');
BEGIN;
UPDATE pg_extension SET extversion = '1.0' WHERE extname = 'onside_attribution';
ALTER EXTENSION onside_attribution DROP TABLE member;
COMMIT;
SQL
record('updated');
wait_for_flush($node, 'updated', 'and that they are what they were');

arrived_ok($sandbox, \@ids, 'every event arrived, and nothing else');
nothing_came_twice($sandbox, 'and each of them once');

done_testing();
