# What monitoring/ holds works with the real postgres_exporter and the real
# Prometheus, as a role that has pg_monitor and nothing else: every column of the
# views arrives under its name with its value, the latencies as real
# histograms; every alert is silent while all is well and fires when it should;
# every query of the dashboard has figures.

use JSON::PP ();
use OnsideTest;
use OnsideMetrics;

if (my $missing = OnsideMetrics::missing())
{
	# Also without --verbose.
	diag("monitoring/ is not tested: $missing");
	plan skip_all => $missing;
}

my $monitoring = $OnsideMetrics::directory;
my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox, init => { allows_streaming => 1 }, conf => <<'CONF');
onside_attribution.segment_size = '64kB'
CONF
$node->safe_psql('postgres', <<'SQL');
CREATE ROLE onside_monitor LOGIN;
GRANT pg_monitor TO onside_monitor;
SQL
foreach my $database (qw(shop books))
{
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	create_extension($node, $database);
}
my $metrics = OnsideMetrics->start($node, 'onside_monitor', [qw(shop books)]);

# A row of a view, as a hash.
sub row
{
	my ($database, $query) = @_;
	return JSON::PP::decode_json(
		$node->safe_psql($database, "SELECT row_to_json(r) FROM ($query) r"));
}

# ---------------------------------------------------------------------------
# The rules
# ---------------------------------------------------------------------------

command_ok([ 'promtool', 'check', 'rules', "$monitoring/alerts.yaml" ], 'the alert rules are valid');
command_ok([ 'promtool', 'test', 'rules', "$monitoring/alerts_test.yaml" ],
	'the alerts fire when their tests say, and not before');

my %alerts;
foreach my $group (@{ $metrics->api('rules')->{groups} })
{
	# An hour ago there was nothing yet.
	$alerts{ $_->{name} } = $_->{query} =~ s/offset 1h/offset 10s/r foreach @{ $group->{rules} };
}
my %tested;
my $tests = slurp_file("$monitoring/alerts_test.yaml");
$tested{$_}++ foreach $tests =~ /alertname: (\w+)/g;
is(join(' ', sort keys %tested), join(' ', sort keys %alerts), 'each alert has such a test');

# Alerts whose condition holds for this database now, whatever they wait for.
sub firing
{
	my ($database) = @_;
	return join ' ', sort grep {
		grep { ($_->{metric}{datname} // $database) eq $database }
		  @{ $metrics->query($alerts{$_}) }
	} keys %alerts;
}

my %seen;

sub fires_ok
{
	my ($database, $wanted, $what) = @_;
	my $firing;
	my $ok = wait_until(sub { ($firing = firing($database)) eq $wanted }, undef, 0.2);
	ok($ok, "alerts: $what") or diag("firing: $firing");
	$seen{$_}++ foreach split / /, $wanted;
	return;
}

# ---------------------------------------------------------------------------
# The figures
# ---------------------------------------------------------------------------

fires_ok('shop', '', 'silent while all is well');

$sandbox->poison('counterfeit');
$node->safe_psql('shop', <<'SQL');
CREATE TABLE orders (id int, installation uuid);
SELECT onside_attribution.attach('orders', 'bought', 'installation', '{"id": "id"}');
INSERT INTO orders SELECT i, CASE WHEN i > 3 THEN gen_random_uuid() END FROM generate_series(1, 103) i;
SQL
wait_for_flush($node, 'shop', 'some are delivered');
track($node, 'shop', 'bought', '{"note": "counterfeit"}');
track($node, 'shop', 'bought', '{"note": "genuine"}');
wait_for_flush($node, 'shop', 'one is refused');
track($node, 'books');
wait_for_flush($node, 'books', 'another database');
fires_ok('shop', 'OnsideDeadLetters', 'an event was refused');
fires_ok('books', '', 'in this database alone');

my $scraped;

# Sessions may take a moment to report to the cumulative statistics.
ok( wait_until(
		sub {
			$scraped = $metrics->scrape;
			($scraped->{'onside_attribution_dead_letter_inserts_total{datname="shop"}'} // 0) == 1;
		}),
	'the dead letter is counted');
is($scraped->{pg_exporter_last_scrape_error}, 0, 'pg_monitor is all that the exporter needs');

my $status = row('shop', 'SELECT * FROM onside_attribution.status');
my $stats = row('shop', 'SELECT * FROM onside_attribution.stats');
my %expected = (
	pending => 0,
	oldest_pending_age_seconds => 0,
	in_flight => 0,
	dead_letter_rows => 1,
	aside_events => 0,
	aside_oldest_age_seconds => 0,
	dead_letter_inserts_total => 1,
	segment_size_bytes => 64 * 1024,
	outbox_bytes => outbox_size($node, 'shop'),
	next_attempt_timestamp_seconds => 'NaN',
	last_success_timestamp_seconds => $node->safe_psql('shop',
		'SELECT extract(epoch FROM last_success_at) FROM onside_attribution.status'),
	(map { $_ . '_total' => $status->{$_} } qw(delivered dead_lettered)),
	(map { $_ . '_total' => $stats->{$_} }
		  qw(recorded skipped events_sent bytes_sent connections requests retries back_offs)));
is($expected{delivered_total}, 101, 'a hundred rows, and one more, were delivered');
is($expected{skipped_total}, 3, 'three were skipped');

# The outbox can be emptied meanwhile.
cmp_ok(delete $expected{outbox_bytes}, '>', 0, 'the outbox has a size');
like($scraped->{'onside_attribution_outbox_bytes{datname="shop"}'}, qr/^[\d.e+]+$/, 'and shows it');
foreach my $name (sort keys %expected)
{
	my $value = $scraped->{"onside_attribution_$name\{datname=\"shop\"}"} // 'none';
	if ($expected{$name} =~ /^[\d.]+$/ && $value =~ /^[\d.e+-]+$/)
	{
		cmp_ok(abs($value - $expected{$name}), '<=', 1e-6 * $expected{$name}, "$name: $value");
	}
	else
	{
		is($value, $expected{$name}, $name);
	}
}
is($scraped->{'onside_attribution_dead_letter_events{datname="shop",retry="itself"}'}, 1,
	'the dead letter gets another chance by itself');
is($scraped->{'onside_attribution_dead_letter_events{datname="shop",retry="person"}'}, 0, 'and there is no other');
is($scraped->{'onside_attribution_delivered_total{datname="books"}'}, 1,
	'each database has its own');

# Every column of stats but the quantiles, which Prometheus makes itself.
my %response_columns = map { $_ => $stats->{$_} }
  grep { /^responses_|^timeouts$|^connection_failures$|^malformed$/ } keys %$stats;
my %responses;
foreach (keys %$scraped)
{
	next unless /^onside_attribution_responses_total\{datname="shop",response="(.*)"\}$/;
	my ($name, $value) = ($1, $scraped->{$_});
	$name =~ s/ or |\s/_/g;
	$name = "responses_$name" if $name =~ /^\d|^other/;
	$name .= 's' if $name =~ /^timeout|^connection/;
	$responses{$name} = $value;
}
is_deeply(\%responses, \%response_columns, 'requests, by how they ended');
cmp_ok($responses{responses_204} * $responses{responses_400}, '>', 0, 'two ways among them');

# The histograms.
foreach my $name (qw(delivery request))
{
	my $metric = "onside_attribution_${name}_seconds";
	my %bucket = map { split /\|/ } split /\n/, $node->safe_psql('shop', <<SQL);
SELECT le / 1000, count FROM onside_attribution.stats_histogram WHERE metric = '$name'
SQL
	my @wrong = grep {
		/^\Q${metric}\E_bucket\{datname="shop",le="([\d.e+-]+)"\}$/
		  && ($bucket{ $1 + 0 } // -1) != $scraped->{$_}
	} keys %$scraped;
	my @buckets = grep { /^\Q${metric}\E_bucket\{datname="shop",/ } keys %$scraped;
	is("@wrong", '', "$name: the buckets are those of stats_histogram");
	is(scalar @buckets, 26, "$name: all of them that are wanted, and +Inf");
	is($scraped->{"${metric}_bucket{datname=\"shop\",le=\"+Inf\"}"},
		$stats->{"${name}_count"}, "$name: +Inf");
	is($scraped->{"${metric}_count{datname=\"shop\"}"}, $stats->{"${name}_count"}, "$name: count");
	cmp_ok(
		abs($scraped->{"${metric}_sum{datname=\"shop\"}"} - $stats->{"${name}_ms_sum"} / 1000),
		'<', 1e-6, "$name: sum, in seconds");
}

# The states.
my %states = map { /^onside_attribution_worker_state\{datname="shop",name="(.*)"\}$/
	  ? ($1 => $scraped->{$_})
	  : () } keys %$scraped;
my $names = $node->safe_psql('shop', <<'SQL');
SELECT col_description(attrelid, attnum) FROM pg_attribute
WHERE attrelid = 'onside_attribution.status'::regclass AND attname = 'state'
SQL
is(join(' ', sort keys %states), join(' ', sort split /, | or /, $names),
	'the states are those of the view');
is(join(' ', grep { $states{$_} } sort keys %states), 'idle', 'one of them is the one');

# ---------------------------------------------------------------------------
# The alerts
# ---------------------------------------------------------------------------

# Forgotten after 15 minutes; until then, and for shop alone:
my $dead = 'OnsideDeadLetters';

# As after a week of failing.
$node->safe_psql('shop', 'UPDATE onside_attribution.dead_letter SET retry_at = NULL');
fires_ok('shop', "$dead OnsideDeadLettersRemain", 'a dead letter waits for a person');
$node->safe_psql('shop', "UPDATE onside_attribution.dead_letter SET retry_at = now() + interval '1 day'");
fires_ok('shop', $dead, 'and gets another chance again');

# An old snapshot of the outbox, so that its segments cannot be emptied.
my $reader = $node->background_psql('shop');
$reader->query_safe('BEGIN; SELECT count(*) FROM onside_attribution.outbox');

$node->safe_psql('shop', "SELECT onside_attribution.pause('metrics')");
fires_ok('shop', "$dead OnsidePausedForLong", 'paused');
foreach my $pending (9000, 10100)
{
	$node->safe_psql('shop',
		"SELECT onside_attribution.track('many', gen_random_uuid(), '{}') FROM generate_series(1, $pending - "
		  . status($node, 'shop')->{pending} . ')');
	ok( wait_until(
			sub {
				my $now = $metrics->query('onside_attribution_pending{datname="shop"}');
				@$now && $now->[0]{value} == $pending;
			}),
		"$pending are pending");
}
fires_ok('shop', "OnsideBacklogGrows $dead OnsidePausedForLong", 'the backlog grows');
cmp_ok(status($node, 'shop')->{pending}, '==', 10100, 'they are pending');
$node->safe_psql('shop', 'SELECT onside_attribution.resume()');
wait_for_flush($node, 'shop', 'the backlog is delivered');
fires_ok('shop', "$dead OnsideOutboxDoesNotShrink", 'the outbox is kept by a reader');
$reader->quit;

# A segment that is filled sends the worker to look for one that is empty.
$node->safe_psql('shop', <<'SQL');
SELECT count(onside_attribution.track('more', gen_random_uuid(), '{}')) FROM generate_series(1, 1000)
SQL
fires_ok('shop', $dead, 'and shrinks when that has ended');

# The API does not know the password any more.
$sandbox->credentials('sandbox', 'changed');
$node->safe_psql('books', <<'SQL');
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id, recorded_at)
VALUES ('old', '{}', gen_random_uuid(), now() - interval '10 minutes')
SQL
fires_ok('books', 'OnsideEventsWait OnsideSomebodyIsNeeded', 'unauthorized, and an old event');
$node->safe_psql('books', 'SELECT onside_attribution.pause()');
fires_ok('books', 'OnsidePausedForLong', 'while it is paused, waiting is wanted');
$node->safe_psql('books', <<'SQL');
INSERT INTO onside_attribution.aside (event_name, payload, event_datetime, installation_id, recorded_at, error)
SELECT 'failed', '{}', now(), gen_random_uuid(), now() - interval '40 minutes', 'HTTP 500' FROM generate_series(1, 101)
SQL
fires_ok('books', 'OnsideAsideForLong OnsideManyAside OnsidePausedForLong', 'many events are aside, for long');
$node->safe_psql('books', 'DELETE FROM onside_attribution.aside');
fires_ok('books', 'OnsidePausedForLong', 'they are gone');
$sandbox->credentials('sandbox', 'sandbox');
$node->safe_psql('books', 'SELECT onside_attribution.resume()');
fires_ok('books', '', 'all is well again');

# The API is down.
$sandbox->behave({ status => 503 });
track($node, 'books');
fires_ok('books', 'OnsideBackingOffForLong', 'nothing is accepted');
$sandbox->behave;
fires_ok('books', '', 'all is well once more');
wait_for_flush($node, 'books', 'it has arrived');

# A subscription that brings events, and does not.
$node->safe_psql('books', 'CREATE PUBLICATION events FOR TABLE onside_attribution.outbox');
$node->safe_psql('shop', "CREATE SUBSCRIPTION sub CONNECTION '@{[ $node->connstr('books') =~ s/'/''/gr ]}' PUBLICATION events WITH (enabled = false, create_slot = false, slot_name = NONE)");
fires_ok('shop', "$dead OnsideSubscriptionFails", 'a subscription is disabled');
$scraped = $metrics->scrape;
is(join(' ', map { $scraped->{"onside_attribution_subscription_$_\{datname=\"shop\",name=\"sub\"}"} // 'none' }
	  qw(healthy worker errors_total last_message_age_seconds last_message_delay_seconds)), '0 0 0 NaN NaN', 'and has metrics');
$node->safe_psql('shop', 'DROP SUBSCRIPTION sub');
fires_ok('shop', $dead, 'it is gone');

# A server that does not preload the library.
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
fires_ok('books', 'OnsideNotRunning', 'no worker');
$scraped = $metrics->scrape;
is($scraped->{pg_exporter_last_scrape_error}, 0, 'the queries do not fail there');
is($scraped->{'onside_attribution_delivered_total{datname="books"}'}, 3, 'what is known without it is shown');
is($scraped->{'onside_attribution_recorded_total{datname="books"}'}, 'NaN', 'and the rest is not a number');
preload($node);
$node->restart;
fires_ok('books', '', 'a worker again');
fires_ok('shop', $dead, 'in each database');

# ---------------------------------------------------------------------------
# The dashboard
# ---------------------------------------------------------------------------

my $dashboard = JSON::PP::decode_json(slurp_file("$monitoring/dashboard.json"));
foreach my $panel (@{ $dashboard->{panels} })
{
	foreach my $target (@{ $panel->{targets} })
	{
		my $promql = $target->{expr};
		$promql =~ s/\$__rate_interval/15m/g;
		$promql =~ s/\$(datname|instance)\b/.*/g;
		unlike($promql, qr/\$/, "$panel->{title}: no variable is unknown");
		my @series = @{ $metrics->query($promql) };
		cmp_ok(scalar(grep { $_->{value} =~ /^[\d.e+-]+$/ } @series),
			'>=', 1, "$panel->{title} has figures: $target->{legendFormat}");
		foreach my $label ($target->{legendFormat} =~ /\{\{(\w+)\}\}/g)
		{
			ok(!(grep { !defined $_->{metric}{$label} } @series),
				"$panel->{title}: its legend has the label $label");
		}
	}
}

# ---------------------------------------------------------------------------
# No metrics
# ---------------------------------------------------------------------------

$metrics->stop_exporter;
ok(wait_until(sub { firing('shop') =~ /OnsideDatabaseMissing/ }, undef, 0.2), 'alerts: a database is missing');
$seen{OnsideDatabaseMissing}++;
fires_ok('any', 'OnsideMetricsMissing', 'nothing is known');
is(join(' ', sort keys %seen), join(' ', sort keys %alerts), 'each alert has been seen to fire');

$metrics->stop;
$node->stop;
done_testing();
