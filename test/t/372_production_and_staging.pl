# Production and staging in one server, as docs/operations.md sets them up: each sends to
# its own account.  A database without credentials of its own cannot send: not a
# new one, not a copy of production, and not by what its owner may set.

use FindBin;
use OnsideTest;

my $production = OnsideSandbox->start(user => 'shop', password => 'production');
my $staging = OnsideSandbox->start(user => 'shop', password => 'staging');
my $node = onside_node('main');
my %file = map { $_ => write_credentials($node, "shop:$_\n", 0600, "credentials.$_") } qw(production staging);

# The example, with our endpoints and files.
my ($example) = slurp_file("$FindBin::RealBin/../../docs/operations.md") =~
  /^\*\*Production and staging in one server\*\*.*?\n\n((?:    [^\n]*\n)+)/ms;
$example =~ s{https://onside\.io/\S*?(?=')}{$production->url}e or die 'no endpoint of production';
$example =~ s{http://127\.0\.0\.1:8080/\S*?(?=')}{$staging->url}e or die 'no endpoint of staging';
$example =~ s{/etc/postgresql/onside\.shop\.credentials}{$file{production}} or die 'no file of production';
$example =~ s{/etc/postgresql/onside\.staging\.credentials}{$file{staging}} or die 'no file of staging';

my @databases = qw(shop staging reports);
$node->safe_psql('postgres', "CREATE DATABASE $_") foreach @databases;
$node->safe_psql('postgres', $example);
create_extension($node, $_) foreach @databases;

my %ids;
foreach my $database (@databases)
{
	$ids{$database} = [ map { track($node, $database) } 1 .. 3 ];
}
wait_for_flush($node, 'shop', 'production sends');
wait_for_flush($node, 'staging', 'staging sends');
arrived_ok($production, $ids{shop}, 'the account of production has its events alone');
arrived_ok($staging, $ids{staging}, 'and so has that of staging');
poll_status($node, 'reports', { state => 'disabled', pending => 3 }, 'a database with enabled = off keeps its own');

# Neither what the server nor what another database has is for these.
$node->safe_psql('postgres', 'CREATE ROLE owner LOGIN; CREATE DATABASE test OWNER owner');
create_extension($node, 'test');
ok( wait_until(
		sub { $node->psql('postgres', 'CREATE DATABASE copied TEMPLATE shop OWNER owner') == 0 }),
	'production is copied');
poll_worker($node, 'copied');
foreach my $database (qw(test copied))
{
	$node->safe_psql($database, <<'SQL');
GRANT USAGE ON SCHEMA onside_attribution TO owner;
GRANT EXECUTE ON FUNCTION onside_attribution.track TO owner;
SQL
	foreach my $setting ("credentials_file = '$file{production}'", "endpoint = '" . $production->url . "'",
		"proxy = ''", "ca_file = ''", 'enabled = off', 'retention = 0')
	{
		foreach my $how ("ALTER DATABASE $database SET", 'ALTER ROLE owner SET', "ALTER ROLE owner IN DATABASE $database SET", 'SET')
		{
			my ($rc, undef, $stderr) = $node->psql($database,
				"SET ROLE owner; $how onside_attribution.$setting");
			like($stderr, qr/permission denied to set parameter/, "$database: its owner cannot $how $setting");
		}
	}
	$node->safe_psql($database, 'SELECT pg_reload_conf()');
	track($node, $database) foreach 1 .. 3;
	poll_status($node, $database,
		{ state => 'misconfigured', state_reason => qr/credentials_file is not set/, pending => 3 },
		"$database cannot send");
	is($node->safe_psql($database, "SELECT onside_attribution.flush('50 ms')"), 'f', "$database: nothing is sent");
}
arrived_ok($production, $ids{shop}, 'production has nothing else');
arrived_ok($staging, $ids{staging}, 'nor has staging');
is_deeply([ sort keys %{ $_->report->{by_status} } ], ['204'], 'no credentials were tried anywhere else')
  foreach $production, $staging;

# What docs/operations.md warns of: enabled = off is not copied, either.
ok(wait_until(sub { $node->psql('postgres', 'CREATE DATABASE again TEMPLATE reports') == 0 }), 'the one with enabled = off is copied');
is($node->safe_psql('again', q{LOAD 'onside_attribution'; SHOW onside_attribution.enabled}), 'on', 'its copy has it on');

# They can, when they have their own.
set_for_database($node, 'test', 'endpoint', $staging->url);
set_for_database($node, 'test', 'credentials_file', $file{staging});
wait_for_flush($node, 'test', 'test has credentials now');
$node->safe_psql('reports', 'ALTER DATABASE reports RESET onside_attribution.enabled; SELECT pg_reload_conf()');
poll_status($node, 'reports', { state => 'misconfigured', pending => 3 }, 'enabled alone sends nothing');

$node->stop;
$_->stop foreach $production, $staging;
done_testing();
