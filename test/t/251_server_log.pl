# The server's log is quiet: no line for a batch, however many there are, and one
# for what is refused for good (326_states.pl has outages).  Recording tells its
# client nothing.  In pg_stat_activity a worker shows its state as its query, and
# every process waits in an event that has a name, from PostgreSQL 17 on;
# docs/operations.md has all of them.

use FindBin;
use OnsideTest;

my $tree = "$FindBin::RealBin/../..";

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
onside_attribution.batch_max_events = 10
CONF
create_extension($node, 'postgres');

# What the worker has written since then, without details.
sub worker_lines
{
	my ($position) = @_;
	return map { /\] onside_attribution worker ++(?!DETAIL:)(.*)/ ? $1 : () } split /\n/,
	  log_since($node, $position);
}

sub record
{
	my ($events) = @_;
	my ($rc, $out, $err) = $node->psql('postgres', <<SQL);
SELECT count(onside_attribution.track('a', gen_random_uuid(), '{}')) FROM generate_series(1, $events)
SQL
	is("$rc$err", '0', "recording $events tells the client nothing");
	return;
}

# ---------------------------------------------------------------------------
# The log
# ---------------------------------------------------------------------------

my $position = log_position($node);
record(100) foreach 1 .. 5;
wait_for_flush($node, 'postgres', 'in many batches');
cmp_ok($sandbox->report->{requests}, '>=', 50, 'in fifty of them');
is(join("\n", worker_lines($position)), '', 'no line for a batch');

$position = log_position($node);
$sandbox->poison('counterfeit');
track($node, 'postgres', 'a', '{"note": "counterfeit"}');
wait_for_flush($node, 'postgres', 'one is refused');
is(join("\n", worker_lines($position)),
	'LOG:  onside_attribution: 1 event of database "postgres" was refused for good and moved to dead_letter',
	'a line about a dead letter');

# ---------------------------------------------------------------------------
# pg_stat_activity
# ---------------------------------------------------------------------------

my $worker = "backend_type = 'onside_attribution worker' AND datname = 'postgres'";
my $named = $node->safe_psql('postgres', 'SHOW server_version_num') >= 170000;

sub shows_ok
{
	my ($which, $columns, $wanted, $what) = @_;
	my $shown;
	my $ok = wait_until(
		sub {
			$shown = $node->safe_psql('postgres',
				"SELECT concat_ws(' ', $columns) FROM pg_stat_activity WHERE $which");
			return $shown eq $wanted;
		});
	ok($ok, "pg_stat_activity: $what") or diag("shown: $shown");
	return;
}

sub waits_ok
{
	my ($which, $event, $what) = @_;
	shows_ok($which, 'wait_event_type, wait_event',
		'Extension ' . ($named ? $event : 'Extension'), $what);
	return;
}

shows_ok($worker, 'state, query', 'idle idle', 'an idle worker');
waits_ok($worker, 'OnsideAttributionIdle', 'waits for something to do');
waits_ok("backend_type = 'onside_attribution launcher'",
	'OnsideAttributionLauncher', 'the launcher does, too');

$sandbox->behave({ fault => 'black_hole', times => 1 });
record(1);
shows_ok($worker, 'state, query', 'active sending', 'a worker that sends');
waits_ok($worker, 'OnsideAttributionRequest', 'waits for the API');
my $flush = $node->background_psql('postgres');
$flush->query_until(qr/started/, "\\echo started\nSELECT onside_attribution.flush('1 hour');\n");
waits_ok("query LIKE '%flush(%' AND pid <> pg_backend_pid()",
	'OnsideAttributionFlush', 'flush() waits, too');
$node->safe_psql('postgres', "SELECT onside_attribution.pause('looking')");
shows_ok($worker, 'query', 'paused', 'a worker that is paused');
$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');

# The answer never comes: its connection breaks.
my $port = $sandbox->port;
$sandbox->stop;
$sandbox = OnsideSandbox->start(port => $port);
wait_for_flush($node, 'postgres', 'all is delivered');
$flush->quit;

# ---------------------------------------------------------------------------
# The document
# ---------------------------------------------------------------------------

my %source;
foreach my $file (glob "$tree/src/*.c $tree/src/*/*.c")
{
	$source{$_} = 1 foreach slurp_file($file) =~ /onside_wait_event\("(\w+)"\)/g;
}
my @documented = slurp_file("$tree/docs/operations.md") =~ /^\| `(OnsideAttribution\w+)` \|/mg;
is(join(' ', sort @documented), join(' ', sort keys %source), 'operations.md has every wait event');

$node->stop;
done_testing();
