# What README.md says is so: every SQL example runs, in the order in which they
# are read, and shows the output that is printed below it; what the examples
# record arrives; the tables of settings, states and privileges are those of the
# extension; a restored dump sends what was pending.  And every object of the
# extension has a comment.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use OnsideExamples;
use OnsideSandbox;
use OnsideTest;

my $tree = "$FindBin::RealBin/../..";

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', conf => "onside_attribution.endpoint = '" . $sandbox->url . "'\n");
my $credentials = write_credentials($node, "sandbox:sandbox\n");
$node->safe_psql('postgres', 'CREATE DATABASE shop');
my $text = OnsideExamples->new($node, 'shop', "$tree/README.md");
$text->replace('/etc/postgresql/onside.credentials', $credentials);
my $readme = $text->content;

# ---------------------------------------------------------------------------
# Reading README.md
# ---------------------------------------------------------------------------

# The table whose header begins with this cell, as rows of cells.
sub table
{
	my ($first) = @_;
	my ($rows) = $readme =~ /^\| \Q$first\E \|.*\n\|[-|]+\|\n((?:\|.*\n)+)/m
	  or die "no table \"$first\"";
	return map {
		my $row = $_;
		$row =~ s/^\| | \|$//g;
		[ split / \| /, $row ]
	} split /\n/, $rows;
}

# What is between backticks.
sub quoted
{
	my ($cell) = @_;
	return $cell =~ /`([^`]*)`/g;
}

# ---------------------------------------------------------------------------
# Every example runs
# ---------------------------------------------------------------------------

my ($rc) = $text->run_sql('SELECT 1; SELECT no_such_function(); SELECT 2');
isnt($rc, 0, 'an example that fails would be noticed');

my @examples = $text->examples;
cmp_ok(scalar @examples, '>=', 15, 'README.md has examples');
$text->outputs_follow_ok;

# The last one removes the extension.
my $uninstall = pop @examples;
like($uninstall->[1], qr/^DROP EXTENSION/m, 'the last example is to uninstall');

$text->example_ok($_) foreach @examples;

# retention is set by one of them, so the outbox still holds them all.
wait_for_flush($node, 'shop', 'all that they record is delivered');
my $ids = committed($node, 'shop', 'SELECT event_id FROM onside_attribution.outbox');
cmp_ok(scalar @$ids, '>=', 8, 'the examples record events');
arrived_ok($sandbox, $ids, 'they arrive');
is($node->safe_psql('shop', 'SELECT count(*) FROM onside_attribution.dead_letter'),
	0, 'none of them is refused');

# ---------------------------------------------------------------------------
# The tables are those of the extension
# ---------------------------------------------------------------------------

my %effect = (user => 'session', superuser => 'reload', postmaster => 'restart');
my %settings;
foreach my $row (table('name'))
{
	my ($name) = quoted($row->[0]);
	$settings{$name} = {
		default => join('', quoted($row->[1])),
		effect => $row->[3]
	};
}
my %context = map { split /\|/ } split /\n/, $node->safe_psql('shop', <<'SQL');
LOAD 'onside_attribution';
SELECT replace(name, 'onside_attribution.', ''), context FROM pg_settings
WHERE name LIKE 'onside\_attribution.%'
SQL
is(join(' ', sort keys %settings),
	join(' ', sort keys %context), 'the settings are those of the extension');
foreach my $name (sort keys %context)
{
	is($settings{$name}{effect}, $effect{ $context{$name} },
		"$name: when it takes effect");

	# Is the documented default the same value as the real one?
	my $default = $settings{$name}{default};
	my ($set, $value) =
	  $context{$name} eq 'postmaster'
	  ? ('', "'$default'")
	  : ("SET onside_attribution.$name = '$default';", 'setting');
	is($node->safe_psql('shop', <<SQL), 't', "$name: its default");
LOAD 'onside_attribution';
$set
SELECT $value = boot_val FROM pg_settings WHERE name = 'onside_attribution.$name'
SQL
}

my $states = $node->safe_psql('shop', <<'SQL');
SELECT col_description(attrelid, attnum) FROM pg_attribute
WHERE attrelid = 'onside_attribution.status'::regclass AND attname = 'state'
SQL
is(join(' ', sort map { quoted($_->[0]) } table('state')),
	join(' ', sort split /, | or /, $states),
	'the states are those of the view');

my @columns = split /\n/, $node->safe_psql('shop', <<'SQL');
SELECT attname FROM pg_attribute
WHERE attrelid = 'onside_attribution.status'::regclass AND attnum > 0
SQL
is(join(' ', grep { $readme !~ /\b$_\b/ && !/^last_|^worker_pid$|^in_flight$/ } @columns),
	'', 'README.md names the columns of status');

# ---------------------------------------------------------------------------
# Privileges
# ---------------------------------------------------------------------------

# "change a table that is attached: nothing, not even USAGE"
$node->safe_psql('shop', <<'SQL');
CREATE ROLE shop_clerk;
GRANT INSERT ON refunds TO shop_clerk;
SET ROLE shop_clerk;
INSERT INTO refunds VALUES ('0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9', 1.00);
SQL
ok(!run_as('shop_clerk', q{SELECT onside_attribution.track('a', gen_random_uuid(), '{}')}),
	'a role without grants cannot record');
ok(run_as('shop_app', q{SELECT onside_attribution.track('a', gen_random_uuid(), '{}')}),
	'the grants of the example let a role record');
ok(!run_as('shop_app', 'SELECT * FROM onside_attribution.pending'),
	'and not read');

# What the table says is needed to read the two views is enough.
$node->safe_psql('shop', <<'SQL');
GRANT USAGE ON SCHEMA onside_attribution TO shop_clerk;
GRANT SELECT ON onside_attribution.attached, onside_attribution.status TO shop_clerk;
GRANT EXECUTE ON FUNCTION onside_attribution.trigger_mapping(oid),
    onside_attribution.worker_status() TO shop_clerk;
CREATE ROLE shop_monitor IN ROLE pg_monitor;
SQL
ok(run_as('shop_clerk', 'SELECT * FROM onside_attribution.attached'), 'reading attached');
ok(run_as('shop_clerk', 'SELECT * FROM onside_attribution.status'), 'reading status');
ok(run_as('shop_monitor', 'SELECT * FROM onside_attribution.status'),
	'reading status as a member of pg_monitor');

sub run_as
{
	my ($role, $sql) = @_;
	return $node->psql('shop', "SET ROLE $role; $sql", on_error_stop => 1) == 0;
}

# ---------------------------------------------------------------------------
# Comments
# ---------------------------------------------------------------------------

is($node->safe_psql('shop', <<'SQL'), '', 'every object of the extension has a comment');
WITH members AS (
    SELECT classid, objid FROM pg_depend
    WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
      AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'onside_attribution')
), objects AS (
    SELECT classid, objid FROM members
    UNION ALL
    SELECT 'pg_trigger'::regclass, t.oid FROM pg_trigger t
    JOIN members m ON m.classid = 'pg_class'::regclass AND t.tgrelid = m.objid
    WHERE NOT t.tgisinternal
)
SELECT pg_describe_object(classid, objid, 0) FROM objects
WHERE classid NOT IN ('pg_type'::regclass, 'pg_rewrite'::regclass)
  AND obj_description(objid, classid::regclass::name) IS NULL
ORDER BY 1
SQL

# ---------------------------------------------------------------------------
# Backup and restore
# ---------------------------------------------------------------------------

my $dump = "$PostgreSQL::Test::Utils::tmp_check/shop.sql";
$node->safe_psql('shop', 'SELECT onside_attribution.flush()');
my $held = $node->safe_psql('shop', <<'SQL');
DO $$ BEGIN PERFORM onside_attribution.pause('dump'); END $$;
SELECT onside_attribution.track('dumped', '0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9', '{}')
SQL
$sandbox->reset;
SKIP:
{
	ok($node->run_log([ 'pg_dump', '--file', $dump, $node->connstr('shop') ]), 'pg_dump')
	  or skip 'there is no dump', 6;
	$node->safe_psql('postgres', 'CREATE DATABASE shop_copy');
	$node->command_ok(
		[ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('shop_copy') ],
		'and restore');
	poll_status($node, 'shop_copy', { state => 'misconfigured', pending => 1 }, 'the copy has no credentials');
	set_for_database($node, 'shop_copy', 'credentials_file', $credentials);
	wait_for_flush($node, 'shop_copy', 'with some, the restored database sends');
	arrived_ok($sandbox, [$held], 'what was pending, and nothing else');
	is($node->safe_psql('shop_copy', <<'SQL'), 'purchase_completed purchase_completed purchase_completed purchase_refunded', 'the triggers are there');
SELECT string_agg(event_name, ' ' ORDER BY event_name) FROM onside_attribution.attached
SQL
	is(status($node, 'shop')->{state}, 'paused', 'where it was dumped it is still pending');
}
$node->safe_psql('shop', 'SELECT onside_attribution.resume()');

# ---------------------------------------------------------------------------
# The end
# ---------------------------------------------------------------------------

$text->example_ok($uninstall);

$node->stop;
$sandbox->stop;
done_testing();
