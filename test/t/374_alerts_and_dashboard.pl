# Whoever is woken by an alert is led to what to do: each has a runbook_url whose
# heading docs/troubleshooting.md has, a silent exporter is an alert, too, and the
# rules pass their own tests.  Every state has a heading, and what the page tells
# one to execute can be executed.  The dashboard is of a current schema.

use FindBin;
use JSON::PP ();
use OnsideTest;
use OnsideExamples;
use OnsideFiles;

my $tree = "$FindBin::RealBin/../..";

# ---------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------

my $node = onside_node('main');
create_extension($node, 'postgres');
my $text = OnsideExamples->new($node, 'postgres', "$tree/docs/troubleshooting.md");
my @examples = $text->examples;
cmp_ok(scalar @examples, '>=', 4, 'it has examples');
$text->example_ok($_) foreach @examples;

my %heading = %{ anchors($text->content) };
my $states = $node->safe_psql('postgres', <<'SQL');
SELECT col_description(attrelid, attnum) FROM pg_attribute
WHERE attrelid = 'onside_attribution.status'::regclass AND attname = 'state'
SQL
my @states = split /, | or /, $states;
is(join(' ', grep { !$heading{$_} } @states), '', 'every state has a heading');
is(join(' ', grep { !$heading{$_} } $text->content =~ /\]\(#([^)]*)\)/g), '', 'what it links to is there');
$node->stop;

# ---------------------------------------------------------------------------
# The alerts
# ---------------------------------------------------------------------------

SKIP:
{
	skip 'there is no python3-yaml here', 1 unless has_yaml();
	my ($document) = eval { yaml("$tree/monitoring/alerts.yaml") };
	is($@, '', 'alerts.yaml is YAML');
	my @alerts = map { @{ $_->{rules} } } @{ $document->{groups} };
	cmp_ok(scalar @alerts, '>=', 13, 'it has alerts');
	foreach my $alert (@alerts)
	{
		# What $labels.name can be stands in the expression.
		my ($names) = $alert->{expr} =~ /\{name=~?"([^"]*)"\}/;
		my $url = $alert->{annotations}{runbook_url} // '';
		foreach my $name (split /\|/, $url =~ /\{\{/ ? $names // '' : 'none')
		{
			my $place = $url =~ s/\{\{ \$labels\.name \}\}/$name/r;
			my ($anchor) = $place =~ m{^docs/troubleshooting\.md#(.*)$};
			ok($heading{ $anchor // '' }, "$alert->{alert}: $place is there");
		}
		cmp_ok(length($url), '>', 0, "$alert->{alert} has a runbook_url");
	}
	ok((grep { $_->{expr} =~ /^absent\(/ } @alerts), 'an exporter that is silent is an alert');

	my $listed = slurp_file("$tree/monitoring/README.md");
	is( join(' ', grep { $listed !~ /^\| `\Q$_\E` \|/m } map { $_->{alert} } @alerts),
		'', 'README.md lists them');
	foreach my $link ($listed =~ m{\(\.\./docs/troubleshooting\.md#([^)]*)\)}g)
	{
		ok($heading{$link}, "and leads to $link");
	}

	# Its command for the address.
	my ($sed) = $listed =~ /^(sed -i .*)$/m;
	my $dir = PostgreSQL::Test::Utils::tempdir();
	is((run('sh', '-c', "cp $tree/monitoring/alerts.yaml $dir && cd $dir && $sed"))[0], 0, 'an address is put in front');
	my @urls = slurp_file("$dir/alerts.yaml") =~ /runbook_url: '([^']*)'/g;
	is(scalar(grep { m{^https://\S+/docs/troubleshooting\.md#} } @urls), scalar @alerts, 'of each');
}

SKIP:
{
	skip 'there is no promtool here', 1 if (run('sh', '-c', 'command -v promtool'))[0];
	my ($rc, $out, $err) = run('sh', '-c', "cd $tree/monitoring && promtool test rules alerts_test.yaml");
	is($rc, 0, 'the rules pass their tests') or diag("$out$err");
}

# ---------------------------------------------------------------------------
# The dashboard
# ---------------------------------------------------------------------------

# Grafana alters what is of an older schema when it loads it: 37 wants showLegend,
# 40 a text for refresh, 41 no time_options.
my $dashboard = JSON::PP::decode_json(slurp_file("$tree/monitoring/dashboard.json"));
cmp_ok($dashboard->{schemaVersion}, '>=', 41, 'its schema');
like($dashboard->{refresh}, qr/^\d+[sm]$/, 'refresh is a text');
ok(!exists(($dashboard->{timepicker} // {})->{time_options}), 'there are no time_options');
my %id;
foreach my $panel (@{ $dashboard->{panels} })
{
	ok(!$id{ $panel->{id} }++, "$panel->{title}: its id is its own");
	is($panel->{datasource}{uid}, '${datasource}', "$panel->{title}: the data source is chosen");
	my $legend = $panel->{options}{legend};
	ok(JSON::PP::is_bool($legend->{showLegend}), "$panel->{title}: showLegend") if $legend;
	isnt(($legend // {})->{displayMode} // '', 'hidden', "$panel->{title}: displayMode");
}

done_testing();
