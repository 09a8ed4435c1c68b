# What packaging/ offers for containers fits the extension: the files are YAML,
# the settings that they name exist, the files that they mount are there, what is
# mounted in one place is what is read in the other, and the compose file's
# database can be set up.  (Whether the manifests fit the operator's schemas was
# looked at when they were written: docs/containers.md.)

use FindBin;
use OnsideTest;
use OnsideFiles;

my $tree = "$FindBin::RealBin/../..";
my $packaging = "$tree/packaging";

plan skip_all => 'there is no python3-yaml here' unless has_yaml();
ok(!eval { yaml('-', "a: [\n") }, 'what is no YAML is noticed');

my %documents;
foreach my $file (glob("$packaging/*.yaml $packaging/*/*.yaml $packaging/*/*.yml"))
{
	$documents{ $file =~ s{^\Q$packaging/}{}r } = eval { [ yaml($file) ] };
	is($@, '', $file =~ s{^\Q$tree/}{}r . ' is YAML');
}

# ---------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------

my $node = onside_node('main');
$node->safe_psql('postgres', 'CREATE DATABASE shop');
my %setting = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', <<'SQL');
SELECT name FROM pg_settings WHERE name LIKE 'onside\_attribution.%'
SQL
foreach my $file (glob("$packaging/* $packaging/*/*"), "$tree/docs/containers.md")
{
	next unless -f $file;
	my @named = slurp_file($file) =~ /\b(onside_attribution\.(?!so\b|spec\b|json\b|yaml\b|control\b)[a-z_]+)/g;
	is(join(' ', grep { !$setting{$_} } @named), '', "$file: settings") if @named;
}

# ---------------------------------------------------------------------------
# compose.yaml
# ---------------------------------------------------------------------------

my ($compose) = @{ $documents{'compose.yaml'} };
my $services = $compose->{services};
my %mounted;
foreach my $name (sort keys %$services)
{
	foreach my $volume (@{ $services->{$name}{volumes} // [] })
	{
		my ($from, $to) = split /:/, $volume;
		$mounted{"$name:$to"} = $from;
		ok($from =~ m{^\.} ? -f "$packaging/$from" : exists $compose->{volumes}{$from}, "$name: $from is there");
	}
	my $build = $services->{$name}{build} or next;
	ok(-f "$packaging/$build->{context}/$build->{dockerfile}", "$name: the Containerfile is there");
}
my ($prometheus) = @{ $documents{'compose/prometheus.yml'} };
is($mounted{"prometheus:/etc/prometheus/$prometheus->{rule_files}[0]"}, '../monitoring/alerts.yaml', 'Prometheus has the alerts');
my ($dashboards) = @{ $documents{'compose/grafana-dashboards.yaml'} };
is($mounted{"grafana:$dashboards->{providers}[0]{options}{path}/onside_attribution.json"},
	'../monitoring/dashboard.json', 'Grafana has the dashboard');
my ($queries) = grep { /^--extend\.query-path=/ } @{ $services->{exporter}{command} };
is($mounted{'exporter:' . $queries =~ s/.*=//r}, '../monitoring/queries.yaml', 'the exporter has the queries');

my $set_up = slurp_file("$packaging/compose/shop.sql");
$node->safe_psql('shop', $set_up);
poll_status($node, 'shop',
	{ state => 'misconfigured', state_reason => qr{could not open credentials_file "/run/secrets/onside"} },
	'the database wants the secret where compose mounts it');
is_deeply($services->{shop}{secrets}, ['onside'], 'whose name is that');
is($node->safe_psql('shop', "SELECT pg_has_role('$services->{exporter}{environment}{DATA_SOURCE_USER}', 'pg_monitor', 'usage')"),
	't', 'the exporter may look');

# The sandbox knows the user of the file, and is where the endpoint says.
my %option = @{ $services->{sandbox}{command} }[ 0 .. 7 ];
like($set_up, qr{http://127\.0\.0\.1:$option{'--port'}/attribution-api/v1/events}, 'the endpoint is the sandbox');
my $credentials = "packaging/" . $compose->{secrets}{onside}{file} =~ s{^\./}{}r;
like(slurp_file("$packaging/compose.yaml"),
	qr{^#   echo $option{'--user'}:$option{'--password'} \|.* -m 440 \S+ \Q$credentials\E$}m, 'which knows the credentials');
is(join(' ', grep { -f "$tree/$_" && slurp_file("$tree/$_") !~ m{^/?\Q$credentials\E$}m } '.dockerignore', '.gitignore'), '',
	'and are kept out of images and commits');
ok(-f "$tree/.dockerignore", 'which .dockerignore does');
my $sandbox = OnsideSandbox->start(user => $option{'--user'}, password => $option{'--password'});
my $file = write_credentials($node, "$option{'--user'}:$option{'--password'}\n");
$node->safe_psql('shop', <<SQL);
BEGIN;
ALTER DATABASE shop SET onside_attribution.endpoint = '${\ $sandbox->url}';
ALTER DATABASE shop SET onside_attribution.credentials_file = '$file';
COMMIT;
SELECT pg_reload_conf();
SQL
track($node, 'shop');
wait_for_flush($node, 'shop', 'and then it sends');

# ---------------------------------------------------------------------------
# CloudNativePG
# ---------------------------------------------------------------------------

my ($secret) = @{ $documents{'cloudnativepg/secret.yaml'} };
my $version = $node->safe_psql('postgres',
	"SELECT default_version FROM pg_available_extensions WHERE name = 'onside_attribution'");
my $containerfile = slurp_file("$packaging/Containerfile");
my $text = slurp_file("$tree/docs/containers.md");
foreach my $name ('cluster.yaml', 'cluster-18.yaml')
{
	my ($cluster, $database) = @{ $documents{"cloudnativepg/$name"} };
	my $postgresql = $cluster->{spec}{postgresql};
	is_deeply($postgresql->{shared_preload_libraries}, ['onside_attribution'], "$name: it is preloaded");
	my $volume = $cluster->{spec}{projectedVolumeTemplate};
	is(sprintf('%04o', $volume->{defaultMode}), '0440', "$name: the secret's mode");
	my $source = $volume->{sources}[0]{secret};
	is($source->{name}, $secret->{metadata}{name}, "$name: the secret's name");
	my $item = $source->{items}[0];
	like($secret->{stringData}{ $item->{key} }, qr/^[^:]+:.*$/, "$name: its key");
	my $initdb = $cluster->{spec}{bootstrap}{initdb};
	$node->safe_psql('postgres', "DROP DATABASE IF EXISTS $initdb->{database} WITH (FORCE)");
	$node->safe_psql('postgres', "CREATE DATABASE $initdb->{database}");
	$node->safe_psql($initdb->{database}, $_) foreach @{ $initdb->{postInitApplicationSQL} };
	is($node->safe_psql($database->{spec}{name}, 'SHOW onside_attribution.credentials_file'),
		"/projected/$item->{path}", "$name: credentials_file is where it is mounted");
	is($node->safe_psql('postgres', 'SHOW onside_attribution.credentials_file'), '', "$name: for that database alone");
	is($database->{spec}{cluster}{name}, $cluster->{metadata}{name}, "$name: the database is the cluster's");
	is_deeply($database->{spec}{extensions}, [ { name => 'onside_attribution', version => $version } ],
		"$name: the extension's version");
	my $metrics = $cluster->{spec}{monitoring}{customQueriesConfigMap}[0];
	like($text, qr/create configmap \Q$metrics->{name}\E --from-file=\Q$metrics->{key}\E=/, "$name: the queries");

	my ($extension) = @{ $postgresql->{extensions} // [] } or next;
	my ($system) = @{ $extension->{ld_library_path} };
	is($postgresql->{parameters}{'onside_attribution.ca_file'},
		"/extensions/$extension->{name}/$system/ca-certificates.crt", "$name: ca_file is in the extension's image");
	like($containerfile, qr{^ *cp \S*/ca-certificates\.crt /files/\Q$system\E/$}m, 'where the Containerfile puts it');
}

# The command that makes the config map of the queries.
my ($sed) = $text =~ /^(sed '.*' monitoring\/queries\.yaml) \|$/m;
my ($made) = yaml('-', scalar `cd $tree && $sed`);
my ($plain) = yaml("$tree/monitoring/queries.yaml");
foreach my $query (sort keys %$plain)
{
	is_deeply($made->{$query}, { %{ $plain->{$query} }, target_databases => ['shop'] }, "$query runs in the shop's database");
}

$node->stop;
done_testing();
