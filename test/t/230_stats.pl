# The view stats counts what delivery has done, and agrees with what the API
# saw: events, bytes, connections, requests and how each of them ended, and how
# long they took.  The counters survive a restart of worker and server, begin
# anew after a crash and with stats_reset(), which leaves status alone, and end
# with the extension.

use JSON::PP ();
use List::Util qw(sum0);
use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
onside_attribution.max_databases = 3
CONF
create_extension($node, 'postgres');

my @ends = qw(responses_204 responses_other_2xx responses_3xx responses_400
  responses_401_403 responses_408_425 responses_413 responses_429
  responses_other_4xx responses_503 responses_other_5xx timeouts
  connection_failures malformed);

sub stats
{
	my ($database) = @_;
	return JSON::PP::decode_json(
		$node->safe_psql($database // 'postgres',
			'SELECT row_to_json(s) FROM onside_attribution.stats s'));
}

# Columns that differ between two rows, except times.
sub growth
{
	my ($before, $after) = @_;
	return {
		map { $_ => $after->{$_} - $before->{$_} }
		grep { !/_ms_|^stats_reset$/ && $after->{$_} != $before->{$_} }
		keys %$after
	};
}

sub deliver
{
	my ($what) = @_;
	track($node, 'postgres');
	return wait_for_flush($node, 'postgres', $what);
}

# ---------------------------------------------------------------------------
# What was done
# ---------------------------------------------------------------------------

my $since = stats();
is(sum0(map { $since->{$_} } grep { !/_ms_|^stats_reset$/ } keys %$since), 0,
	'all is zero at first');
is($since->{delivery_ms_p50}, undef, 'and no time is known');

$node->safe_psql('postgres', <<'SQL');
SELECT onside_attribution.track('a', gen_random_uuid(), '{}') FROM generate_series(1, 50);
SQL
wait_for_flush($node, 'postgres', 'fifty events');
my $stats = stats();
my $report = $sandbox->report;
is($stats->{$_}, 50, "$_: as many as were recorded")
  foreach qw(recorded delivered events_sent delivery_count);
is($stats->{requests}, $report->{requests}, 'requests');
is($stats->{responses_204}, $report->{requests}, 'each of them was answered');
is($stats->{request_count}, $report->{requests}, 'and timed');
is($stats->{connections}, $report->{connections}, 'connections');
is($stats->{bytes_sent}, sum0(map { $_->{body_bytes} } @{ $sandbox->requests }),
	'bytes');
is($stats->{$_}, 0, "no $_") foreach qw(skipped dead_lettered retries back_offs);

# Rows of people who have no app.
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE purchase (id int, installation uuid);
SELECT onside_attribution.attach('purchase', 'bought', 'installation', '{"id": "id"}');
INSERT INTO purchase SELECT i, CASE WHEN i > 3 THEN gen_random_uuid() END FROM generate_series(1, 5) i;
SQL
wait_for_flush($node, 'postgres', 'rows of a table');
is(stats()->{skipped}, 3, 'rows without an installation_id');
is(stats()->{recorded}, 52, 'are not recorded');

# ---------------------------------------------------------------------------
# How requests ended
# ---------------------------------------------------------------------------

my %cases = (
	responses_other_2xx => { status => 200 },
	responses_3xx => { fault => 'redirect', location => '/' },
	responses_401_403 => { status => 403 },
	responses_408_425 => { status => 425 },
	responses_429 => { status => 429 },
	responses_other_4xx => { status => 404 },
	responses_503 => { status => 503 },
	responses_other_5xx => { status => 502 },
	timeouts => { fault => 'black_hole' },
	connection_failures => { fault => 'reset_after_upload' },
	malformed => { fault => 'garbage' });

sub request_timeout
{
	my ($server, $value) = @_;
	$server->safe_psql('postgres', "ALTER SYSTEM SET onside_attribution.request_timeout = '$value'");
	$server->reload;
	return;
}

foreach my $column (sort keys %cases)
{
	my $before = stats();

	# resume() has the first request go on a new connection, and a failure the
	# next one, so libcurl finds no kept one dead, where it would try once more by
	# itself.
	$sandbox->behave({ %{ $cases{$column} }, times => 2 });
	request_timeout($node, $column eq 'timeouts' ? '1s' : '30s');
	$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
	deliver("$column: delivered in the end");
	my $growth = growth($before, stats());

	# On a slow machine the healthy answer may be late, too.
	if ($column eq 'timeouts')
	{
		my $late = delete $growth->{timeouts};
		cmp_ok($late, '>=', 2, 'timeouts: counted');
		is($growth->{requests}, $late + $growth->{responses_204}, 'timeouts: and nowhere else');
		next;
	}
	is_deeply(
		{ map { $_ => $growth->{$_} } grep { $growth->{$_} } @ends },
		{ $column => 2, responses_204 => 1 },
		"$column: counted there and nowhere else");
	is($growth->{requests}, 3, "$column: requests");
	is($growth->{retries}, 2, "$column: retries");
	is($growth->{back_offs}, 2, "$column: back-offs");
	is($growth->{events_sent}, 3, "$column: the event was sent three times");
	is($growth->{delivered}, 1, "$column: and delivered once");
}

# 400 and 413: what is refused for good.
my $before = stats();
$sandbox->poison('rotten');
$node->safe_psql('postgres', <<'SQL');
SELECT onside_attribution.track(CASE i WHEN 5 THEN 'rotten' ELSE 'good' END, gen_random_uuid(), '{}') FROM generate_series(1, 8) i;
SQL
wait_for_flush($node, 'postgres', 'one of eight is refused');
$sandbox->poison(undef);
my $growth = growth($before, stats());
is($growth->{dead_lettered}, 1, '400: one is dead-lettered');
is($growth->{delivered}, 7, '400: the others are delivered');
is($growth->{delivery_count}, 7, '400: and timed, each once');
cmp_ok($growth->{responses_400}, '>=', 2, '400: counted');
is($growth->{requests}, $growth->{responses_400} + $growth->{responses_204},
	'400: and nothing else');

$before = stats();
$sandbox->limits(max_events => 2);
$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
$node->safe_psql('postgres', <<'SQL');
SELECT onside_attribution.track('a', gen_random_uuid(), '{}') FROM generate_series(1, 4);
SQL
wait_for_flush($node, 'postgres', 'two at once');
$sandbox->limits(max_events => 1000);
$growth = growth($before, stats());
cmp_ok($growth->{responses_413} // 0, '>=', 1, '413: counted')
  or diag(JSON::PP::encode_json($growth));

$stats = stats();
my $status = status($node, 'postgres');
is($stats->{$_}, $status->{$_}, "$_: as status has it")
  foreach qw(delivered dead_lettered requests retries);
is(sum0(map { $stats->{$_} } @ends), $stats->{requests},
	'each request ended in one way');
is($stats->{request_count},
	$stats->{requests} - $stats->{timeouts} - $stats->{connection_failures} - $stats->{malformed},
	'those with an answer were timed');
# A dead letter that its second chance delivers is not timed.
cmp_ok($stats->{delivered} - $stats->{delivery_count}, '<=', $stats->{dead_lettered}, 'and every delivered event');

# ---------------------------------------------------------------------------
# How long it took
# ---------------------------------------------------------------------------

$node->safe_psql('postgres', 'SELECT onside_attribution.stats_reset()');
$sandbox->behave({ delay => 0.3, times => 1 });
deliver('a slow answer');
$stats = stats();
cmp_ok($stats->{request_ms_max}, '>=', 300, 'the request took as long as the API');
cmp_ok($stats->{delivery_ms_max}, '>=', $stats->{request_ms_max} - 1,
	'and the event at least as long');
foreach my $metric (qw(delivery request))
{
	is($stats->{"${metric}_ms_sum"}, $stats->{"${metric}_ms_max"}, "$metric: the sum of one");
	cmp_ok($stats->{"${metric}_ms_$_"}, '>=', 240, "$metric: $_") foreach qw(p50 p90 p99);
	cmp_ok($stats->{"${metric}_ms_$_"}, '<=', $stats->{"${metric}_ms_max"}, "$metric: $_ is no more than was seen")
	  foreach qw(p50 p90 p99);
}
is($node->safe_psql('postgres', <<'SQL'), "delivery|0|1\nrequest|0|1", 'and so has the histogram');
SELECT metric, max(count) FILTER (WHERE le < 300), min(count) FILTER (WHERE le >= s.delivery_ms_max)
FROM onside_attribution.stats_histogram, onside_attribution.stats s GROUP BY 1 ORDER BY 1
SQL

$node->safe_psql('postgres', 'SELECT onside_attribution.track(\'a\', gen_random_uuid(), \'{}\') FROM generate_series(1, 2000)');
wait_for_flush($node, 'postgres', 'many');
is($node->safe_psql('postgres', <<'SQL'), "delivery|t|t|t|t\nrequest|t|t|t|t", 'buckets are cumulative and end with all');
SELECT metric, bool_and(count >= before), max(le) = 'Infinity',
       max(count) = max(CASE metric WHEN 'delivery' THEN delivery_count ELSE request_count END),
       count(*) = count(DISTINCT le)
FROM (SELECT *, lag(count, 1, 0::bigint) OVER (PARTITION BY metric ORDER BY le) AS before
      FROM onside_attribution.stats_histogram) h, onside_attribution.stats
GROUP BY 1 ORDER BY 1
SQL

# ---------------------------------------------------------------------------
# Reset
# ---------------------------------------------------------------------------

$before = status($node, 'postgres');
$stats = stats();
$node->safe_psql('postgres', 'SELECT onside_attribution.stats_reset()');
my $after = stats();
is(sum0(map { $after->{$_} } grep { !/_ms_|^stats_reset$/ } keys %$after), 0,
	'stats_reset() zeroes them all');
isnt($after->{stats_reset}, $stats->{stats_reset}, 'and says when');
$status = status($node, 'postgres');
is($status->{$_}, $before->{$_}, "$_ of status goes on")
  foreach qw(pending delivered dead_lettered requests retries);
deliver('after the reset');
is(stats()->{$_}, 1, "$_ counts again") foreach qw(recorded delivered requests);

# ---------------------------------------------------------------------------
# Restarts
# ---------------------------------------------------------------------------

# What was counted is what stays, exactly.
sub kept_ok
{
	my ($what, $restart, $database) = @_;
	my $old = stats($database);
	$restart->();
	poll_worker($node, $database // 'postgres');
	is_deeply(stats($database), $old, $what);
	return;
}

my $pid = worker_pid($node, 'postgres');
kept_ok('they survive the worker',
	sub { kill 'TERM', $pid; wait_for_exit($pid) });

$node->safe_psql('postgres', 'CREATE DATABASE other');
create_extension($node, 'other');
track($node, 'other');
track($node, 'other');
wait_for_flush($node, 'other', 'another database');
is(stats('other')->{delivered}, 2, 'each database has its own');
is(stats()->{delivered}, 1, 'indeed');

kept_ok('they survive a restart of the server', sub { $node->restart });
is(stats('other')->{delivered}, 2, 'in each database');
$node->restart;
kept_ok('and another one', sub { $node->restart }, 'other');
deliver('after the restart');
is(stats()->{$_}, 2, "$_ goes on from there") foreach qw(recorded delivered requests);
is(stats()->{connections}, 1, 'with a new connection');

# Nothing old may come back after a crash.  The cursor is on disk first: what it
# does not cover would be sent again, and counted.
$node->safe_psql('postgres', 'CHECKPOINT');
$pid = worker_pid($node, 'postgres');
kill 'KILL', $pid;
wait_for_exit($pid);
ok(wait_until(sub { eval { (stats()->{recorded} // 1) == 0 } }), 'a crash');
poll_worker($node, 'postgres');
is(stats()->{$_}, 0, "a crash begins $_ anew") foreach qw(recorded delivered requests);
isnt(stats()->{stats_reset}, $after->{stats_reset}, 'and stats_reset says so');

# A file that is none.
deliver('once more');
$node->stop;
my $file = $node->data_dir . '/pg_stat/onside_attribution.stat';
ok(-f $file, 'the file is where the other statistics are');
my $saved = slurp_file($file);
substr($saved, 100, 1) = chr(ord(substr($saved, 100, 1)) ^ 1);
open(my $fh, '>:raw', $file) or die $!;
print $fh $saved;
close $fh;
my $position = log_position($node);
$node->start;
poll_worker($node, 'postgres');
wait_for_log_line($node, qr/ignoring invalid data in file "pg_stat\/onside_attribution.stat"/, $position,
	'a damaged file is ignored, and the log says so');
is(stats()->{delivered}, 0, 'and not believed');
ok(!-e $file, 'the file is gone while the server runs');

# ---------------------------------------------------------------------------
# Extensions and databases come and go
# ---------------------------------------------------------------------------

track($node, 'other');
wait_for_flush($node, 'other', 'in the other database');
$node->safe_psql('postgres', 'CREATE DATABASE copy TEMPLATE other');
poll_worker($node, 'copy');
is(stats('copy')->{delivered}, 0, 'a copy of a database begins at zero');
$node->safe_psql('postgres', 'DROP DATABASE copy');
$node->safe_psql('other', 'DROP EXTENSION onside_attribution');
ok(wait_until(sub { !defined worker_pid($node, 'other') }), 'without the extension there is no worker');
create_extension($node, 'other');
is(stats('other')->{delivered}, 0, 'a new extension begins at zero');
$node->restart;
poll_worker($node, 'other');
is(stats('other')->{delivered}, 0, 'and so it stays');

# A database that is dropped leaves its place to another.
$node->safe_psql('postgres', 'DROP DATABASE other');
$node->restart;
foreach my $name (qw(b c))
{
	$node->safe_psql('postgres', "CREATE DATABASE $name");
	create_extension($node, $name);
}
pass('as many databases as max_databases allows, after others were dropped');

# ---------------------------------------------------------------------------
# Without preloading
# ---------------------------------------------------------------------------

$node->adjust_conf('postgresql.conf', 'shared_preload_libraries', "''");
$node->restart;
is($node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.stats WHERE stats IS NULL'), 1,
	'without preloading nothing is known');
is($node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.stats_histogram'), 0, 'nor the histogram');
$node->safe_psql('postgres', 'SELECT onside_attribution.stats_reset()');
pass('and stats_reset() has nothing to do');

$node->stop;
done_testing();
