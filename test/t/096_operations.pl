# What docs/operations.md and docs/settings.md say is so: every SQL example runs, in the
# order in which they are read, and shows the output that is printed below it; the
# grants of the examples are enough and no more than that; a restored dump sends what was
# pending; and the last example removes the extension.

use FindBin;
use OnsideTest;
use OnsideExamples;

my $tree = "$FindBin::RealBin/../..";

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', conf => "onside_attribution.endpoint = '" . $sandbox->url . "'\n");
my $credentials = write_credentials($node, "sandbox:sandbox\n");
$node->safe_psql('postgres', 'CREATE DATABASE shop');
create_extension($node, 'shop');
set_for_database($node, 'shop', 'credentials_file', $credentials);

# A shop.
$node->safe_psql('shop', <<'SQL');
CREATE TABLE sales (id bigint PRIMARY KEY, installation_id uuid, total numeric);
SELECT onside_attribution.attach('sales', 'purchase_completed', 'installation_id', '{"amount": "total"}', event_id => 'id');
INSERT INTO sales VALUES (1, '550e8400-e29b-41d4-a716-446655440000', 9.90);
SQL

# ---------------------------------------------------------------------------
# Every example runs
# ---------------------------------------------------------------------------

my @of_operations;
foreach my $page ('settings.md', 'operations.md')
{
	my $text = OnsideExamples->new($node, 'shop', "$tree/docs/$page");
	my ($rc) = $text->run_sql('SELECT 1; SELECT no_such_function(); SELECT 2');
	isnt($rc, 0, "$page: an example that fails would be noticed");
	my @examples = $text->examples;
	cmp_ok(scalar @examples, '>=', $page eq 'settings.md' ? 1 : 12, "$page has examples");
	$text->outputs_follow_ok;

	# The last one removes the extension.
	@of_operations = ($text, pop @examples) if $page eq 'operations.md';
	$text->example_ok($_) foreach @examples;
}
my ($operations, $uninstall) = @of_operations;
like($uninstall->[1], qr/^DROP EXTENSION/m, 'the last example is to uninstall');

# The last but one has left the database enabled.
wait_for_flush($node, 'shop', 'all that is recorded is delivered');
is($node->safe_psql('shop', 'SELECT count(*) FROM onside_attribution.dead_letter'), 0, 'none of it is refused');

my @columns = split /\n/, $node->safe_psql('shop', <<'SQL');
SELECT attname FROM pg_attribute
WHERE attrelid = 'onside_attribution.status'::regclass AND attnum > 0
SQL
my $pages = join '', map { slurp_file("$tree/docs/$_") } qw(operations.md troubleshooting.md);
is(join(' ', grep { $pages !~ /\b$_\b/ && !/^last_|^worker_pid$|^in_flight$/ } @columns),
	'', 'operations.md and troubleshooting.md name the columns of status');

# ---------------------------------------------------------------------------
# Privileges
# ---------------------------------------------------------------------------

# "change a table that is attached: nothing, not even USAGE"
$node->safe_psql('shop', <<'SQL');
CREATE ROLE shop_clerk;
GRANT INSERT ON sales TO shop_clerk;
SET ROLE shop_clerk;
INSERT INTO sales VALUES (2, '0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9', 1.00);
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
	is($node->safe_psql('shop_copy', <<'SQL'), 'purchase_completed', 'the trigger is there');
SELECT string_agg(event_name, ' ' ORDER BY event_name) FROM onside_attribution.attached
SQL
	is(status($node, 'shop')->{state}, 'paused', 'where it was dumped it is still pending');
}
$node->safe_psql('shop', 'SELECT onside_attribution.resume()');

# ---------------------------------------------------------------------------
# The end
# ---------------------------------------------------------------------------

$operations->example_ok($uninstall);

$node->stop;
done_testing();
