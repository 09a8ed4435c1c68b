# More databases than there is room for: those with room send, each of the
# others says in status which limit it is, the log says it once, and room that
# comes free is taken.  Databases without the extension, and workers that fail
# or hang at their start, keep nobody's place.

use Time::HiRes ();
use OnsideTest;

my $many = 20;
my $room = 5;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
onside_attribution.max_databases = 64
max_worker_processes = 60
autovacuum = off
fsync = off
CONF
my @names = map { "shop$_" } 1 .. $many;
my %ids;

# One that all are copies of, each with an event to send.
$node->safe_psql('postgres', 'CREATE DATABASE original');
create_extension($node, 'original');
$node->safe_psql('original', "SELECT onside_attribution.pause()");
$node->safe_psql('postgres', "CREATE DATABASE $_ TEMPLATE original") foreach @names;
$node->safe_psql('postgres', 'DROP DATABASE original');
my @plain = map { "plain$_" } 1 .. 5;
$node->safe_psql('postgres', "CREATE DATABASE $_") foreach @plain;

my $running = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'onside_attribution worker'";

sub running { return $node->safe_psql('postgres', $running) }

sub with_worker
{
	return grep { defined worker_pid($node, $_) } @names;
}

# Waits until n workers run, and tells those with one from the others.
sub settle
{
	my ($n, $what) = @_;
	ok(wait_until(sub { running() == $n }), $what) or diag(running() . " workers");
	my %has = map { $_ => 1 } with_worker();
	return ([ grep { $has{$_} } @names ], [ grep { !$has{$_} } @names ]);
}

sub told
{
	my ($position, $line) = @_;
	my @lines = log_since($node, $position) =~ /$line/g;
	return scalar @lines;
}

# ---------------------------------------------------------------------------
# Room for all
# ---------------------------------------------------------------------------

$node->restart;
my $start = Time::HiRes::time();
settle($many, 'all are found at a start');
note(sprintf 'the first look at %d databases took %.1f s', $many + @plain, Time::HiRes::time() - $start);
foreach my $name (@names)
{
	$ids{$name} = track($node, $name);
}

# ---------------------------------------------------------------------------
# max_worker_processes
# ---------------------------------------------------------------------------

# One is PostgreSQL's own launcher for logical replication, one is ours.
my $position = log_position($node);
$node->append_conf('postgresql.conf', 'max_worker_processes = ' . ($room + 2));
$node->restart;
my ($with, $without) = settle($room, "max_worker_processes has room for $room");
$node->safe_psql($_, 'SELECT onside_attribution.resume()') foreach @$with;
wait_for_flush($node, $with->[0], 'one that has a worker sends');
foreach my $name (@$without[ 0, -1 ])
{
	poll_status($node, $name,
		{ state => 'not_running', state_reason => qr/increase max_worker_processes/, pending => 1 },
		"$name says why it has none");
}

# Woken often, it says that no more often.
foreach my $i (1 .. 5)
{
	$node->safe_psql('postgres', 'CREATE DATABASE passing');
	$node->safe_psql('postgres', 'DROP DATABASE passing');
}
foreach my $name (@$without[ 0, -1 ])
{
	is(told($position, qr/no free background worker for database "$name"/), 1,
		"the log says so once for $name");
}

# Each that goes makes room for another one, which is not long in coming.
$node->safe_psql('postgres', "DROP DATABASE $with->[0]");
delete $ids{ $with->[0] };
@names = grep { $_ ne $with->[0] } @names;
($with, $without) = settle($room, 'DROP DATABASE: another one takes its place');
$node->safe_psql($with->[0], 'TRUNCATE onside_attribution.outbox; DROP EXTENSION onside_attribution');
delete $ids{ $with->[0] };
@names = grep { $_ ne $with->[0] } @names;
($with, $without) = settle($room, 'DROP EXTENSION: likewise');

# A worker that fails gives its place away only for as long as it takes.
my $worker = worker_pid($node, $with->[0]);
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
($with, $without) = settle($room, 'as many as before');

# ---------------------------------------------------------------------------
# max_databases
# ---------------------------------------------------------------------------

$position = log_position($node);
$node->append_conf('postgresql.conf', <<CONF);
max_worker_processes = 60
onside_attribution.max_databases = $room
CONF
$node->restart;
($with, $without) = settle($room, "max_databases has room for $room");
foreach my $name (@$without[ 0, -1 ])
{
	poll_status($node, $name,
		{ state => 'not_running', state_reason => qr/onside_attribution\.max_databases/, pending => sub { $_[0] =~ /^[01]$/ } },
		"$name says why it has none");
}
$node->safe_psql('postgres', 'CREATE DATABASE passing');
$node->safe_psql('postgres', 'DROP DATABASE passing');
is(told($position, qr/as many as onside_attribution\.max_databases allows/), 1, 'the log says so, once');

$node->safe_psql('postgres', "DROP DATABASE $with->[0]");
@names = grep { $_ ne $with->[0] } @names;
($with, $without) = settle($room, 'DROP DATABASE: another one takes its place');
$node->safe_psql($with->[0], 'TRUNCATE onside_attribution.outbox; DROP EXTENSION onside_attribution');
@names = grep { $_ ne $with->[0] } @names;
($with, $without) = settle($room, 'DROP EXTENSION: likewise');

# ---------------------------------------------------------------------------
# Workers that fail before they know whether there is the extension
# ---------------------------------------------------------------------------

# Room for one, and the first two that the launcher finds cannot be connected
# to: their directories are gone.
my $broken = $node->safe_psql('postgres', <<'SQL');
SELECT string_agg(oid || '|' || datname, ',' ORDER BY oid) FROM
	(SELECT oid, datname FROM pg_database WHERE datname LIKE 'shop%' ORDER BY oid LIMIT 2) d
SQL
my %broken = map { reverse split /\|/ } split /,/, $broken;
my @whole = grep { !$broken{$_} } @names;
$node->stop;
foreach my $oid (values %broken)
{
	rename($node->data_dir . "/base/$oid", $node->data_dir . "/base/away$oid") or die;
}
$node->append_conf('postgresql.conf', 'onside_attribution.max_databases = 1');
$position = log_position($node);
$node->start;
foreach my $name (grep { $_ ne $whole[0] } @whole)
{
	$node->safe_psql($name, 'TRUNCATE onside_attribution.outbox; DROP EXTENSION onside_attribution');
}
poll_worker($node, $whole[0]);
pass('workers that cannot connect keep no place from one that can');
$node->safe_psql($whole[0], 'SELECT onside_attribution.resume()');
wait_for_flush($node, $whole[0], 'which sends');
cmp_ok(told($position, qr/FATAL:/), '<', 40, 'and they have not tried all the time');

$node->stop('immediate');
$sandbox->stop;
done_testing();
