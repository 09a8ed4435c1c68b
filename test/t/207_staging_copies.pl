# Copies are kept from sending as docs/operations.md says, each in its way: a data
# directory by starting it without the library or without the credentials file,
# a database by a paused template (372_production_and_staging.pl has credentials that
# only the template has), a restored dump by what is set for the database before.
# What docs/operations.md warns of is so: which settings come along with which copy.

use OnsideTest;
use OnsideTopology;

my $sandbox = OnsideSandbox->start;
my $source = onside_node('source', sandbox => $sandbox,
	init => { allows_streaming => 1 });
create_extension($source, 'postgres');
record($source, 'postgres', 5);
wait_for_flush($source, 'postgres');

# Whatever is copied has events pending.
$sandbox->behave({ status => 503 });
record($source, 'postgres', 10);
poll_status($source, 'postgres', { pending => 10, state => 'backing_off' }, 'the source has pending events');

# The copy says why it does not send, records, and makes no request at all; with
# whatever its worker does when it looks around.
sub silent_ok
{
	my ($node, $database, $state, $reason, $what) = @_;
	my $there = OnsideSandbox->start;
	set_for_database($node, $database, 'endpoint', $there->url)
	  if $state ne 'not_running';
	my $row = poll_status($node, $database, { state => $state, state_reason => $reason },
		"$what: it does not send, and says why");
	my $pending = $row->{pending};
	track($node, $database);
	poll_status($node, $database, { state => $state, pending => $pending + 1 }, "$what: it records");
	is($node->safe_psql($database, q{SELECT onside_attribution.flush('100 ms')}), 'f', "$what: nothing is sent");
	is($there->report->{requests}, 0, "$what: no request was made");
	$there->stop;
	return $pending;
}

# ---------------------------------------------------------------------------
# The data directory
# ---------------------------------------------------------------------------

# These win over postgresql.conf, and are copied along.
$source->safe_psql('postgres', <<'SQL');
ALTER SYSTEM SET onside_attribution.enabled = on;
ALTER DATABASE postgres SET onside_attribution.enabled = on;
SQL
$source->backup('base');

# The copy's own sandbox: the source's must not see what a copy sends.
my $elsewhere = OnsideSandbox->start;
my $clone = PostgreSQL::Test::Cluster->new('clone');
$clone->init_from_backup($source, 'base');
$clone->append_conf('postgresql.conf', <<CONF);
onside_attribution.endpoint = '@{[ $elsewhere->url ]}'
onside_attribution.enabled = off
CONF
$clone->start;
ok($elsewhere->wait_distinct(10)->{reached},
	'a copy with credentials sends: ALTER SYSTEM and ALTER DATABASE have been copied and win');
$clone->stop;

my $without = PostgreSQL::Test::Cluster->new('without_library');
$without->init_from_backup($source, 'base');
$without->append_conf('postgresql.conf', "onside_attribution.endpoint = '@{[ $elsewhere->url ]}'");
my $requests = $elsewhere->report->{requests};
$without->command_ok(
	[ 'pg_ctl', 'start', '-w', '-s', '-D', $without->data_dir, '-l', $without->logfile,
	  '-o', '-c shared_preload_libraries=' ],
	'a copy is started without the library');
$without->_update_pid(1);
is(silent_ok($without, 'postgres', 'not_running', qr/not preloaded/, 'without the library'),
	10, 'without the library: it has the pending events');
is($elsewhere->report->{requests}, $requests, 'without the library: no request was made');
$without->stop;

# On another host: the file is not there.
my $host = PostgreSQL::Test::Cluster->new('another_host');
$host->init_from_backup($source, 'base');
$host->append_conf('postgresql.conf', "onside_attribution.credentials_file = '/nonexistent/onside.credentials'");
$host->start;
is(silent_ok($host, 'postgres', 'misconfigured', qr/could not open credentials_file/, 'no credentials file'),
	10, 'no credentials file: it has the pending events');
$host->stop;

# Nothing else has been set here, so postgresql.conf is enough.
$source->safe_psql('postgres', <<'SQL');
ALTER SYSTEM RESET onside_attribution.enabled;
ALTER DATABASE postgres RESET onside_attribution.enabled;
SELECT onside_attribution.pause('for a copy');
SQL
$source->reload;
poll_status($source, 'postgres', { state => 'paused' }, 'the source is paused');
$source->backup('paused');
my $paused = PostgreSQL::Test::Cluster->new('paused');
$paused->init_from_backup($source, 'paused');
$paused->start;
silent_ok($paused, 'postgres', 'paused', qr/for a copy/, 'a copy of a paused one');
$paused->append_conf('postgresql.conf', 'onside_attribution.enabled = off');
$paused->reload;
$paused->safe_psql('postgres', 'SELECT onside_attribution.resume()');
silent_ok($paused, 'postgres', 'disabled', qr/enabled is off/, 'enabled = off');
$paused->stop;

# ---------------------------------------------------------------------------
# CREATE DATABASE ... TEMPLATE
# ---------------------------------------------------------------------------

$source->safe_psql('postgres', 'CREATE DATABASE by_pause TEMPLATE postgres');
poll_worker($source, 'by_pause');
is(silent_ok($source, 'by_pause', 'paused', qr/for a copy/, 'paused template'),
	10, 'paused template: its copy has the pending events');
$source->safe_psql('postgres', 'DROP DATABASE by_pause');

# ---------------------------------------------------------------------------
# A restored dump
# ---------------------------------------------------------------------------

my $dump = $source->basedir . '/dump.sql';
$source->command_ok([ 'pg_dump', '-f', $dump, $source->connstr('postgres') ], 'pg_dump');
$source->safe_psql('postgres', 'CREATE DATABASE restored TEMPLATE template0');
set_for_database($source, 'restored', 'enabled', 'off');
$source->command_ok(
	[ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-o', '/dev/null', '-d', $source->connstr('restored'), '-f', $dump ],
	'restored where it is off');
poll_worker($source, 'restored');
is(silent_ok($source, 'restored', 'disabled', qr/enabled is off/, 'a restored dump'),
	10, 'a restored dump: it has the pending events');
is($source->safe_psql('restored', 'SELECT paused FROM onside_attribution.control'),
	'f', 'a restored dump: it is not paused, as the source is');

# --create: what ALTER DATABASE has set comes along.
$source->safe_psql('postgres', 'CREATE DATABASE made TEMPLATE template0');
set_for_database($source, 'made', 'credentials_file', '/etc/postgresql/made.credentials');
$source->command_ok([ 'pg_dump', '--create', '-f', $dump, $source->connstr('made') ], 'pg_dump --create');
like(slurp_file($dump), qr/ALTER DATABASE made SET "?onside_attribution.credentials_file"? TO '\/etc\/postgresql\/made.credentials'/,
	'which has the settings of the database');

$sandbox->behave();
$source->safe_psql('postgres', 'SELECT onside_attribution.resume()');
wait_for_flush($source, 'postgres', 'the source itself sends');
arrived_ok($sandbox, recorded($source, 'postgres'), 'what it has, and nobody else has sent there');
nothing_came_twice($sandbox, 'once');

$source->stop;
$_->stop foreach $sandbox, $elsewhere;
done_testing();
