# Library and SQL objects can be of different versions, for a while after a new
# package was installed: then nothing is sent, status, doctor() and the log say
# so, and recording goes on.  ALTER EXTENSION ... UPDATE works beside a running
# worker, which notices at once, and when both are the same again, events are
# sent without a restart.

use OnsideTest;

# The next version, and the way back, in the directory of the server that the
# tests have for themselves.  It has one object more.
my ($sharedir) = PostgreSQL::Test::Utils::run_command([ 'pg_config', '--sharedir' ]);
my $directory = "$sharedir/extension";
plan skip_all => "$directory cannot be written to" unless -w $directory;
my %scripts = (
	"$directory/onside_attribution--1.0--1.1.sql" =>
	  "CREATE FUNCTION onside_attribution.next_version() RETURNS integer LANGUAGE sql AS 'SELECT 11';\n",
	"$directory/onside_attribution--1.1--1.0.sql" =>
	  "DROP FUNCTION onside_attribution.next_version();\n");
END { unlink keys %scripts }
foreach my $script (keys %scripts)
{
	unlink $script;
	append_to_file($script, $scripts{$script});
}

my ($node, $sandbox) = sending_node();
$node->safe_psql('postgres', 'CREATE DATABASE other');
create_extension($node, 'other');
my @ids = track($node, 'postgres');
wait_for_flush($node, 'postgres', 'of one version, events are sent');

my $differs = qr/the library is version 1\.0 and the extension's objects in this database are version 1\.1: .*restart the server.*ALTER EXTENSION/;
sub idles
{
	my ($what, $position) = @_;
	my $row = poll_status($node, 'postgres', { state => 'misconfigured', state_reason => $differs },
		"$what: status says that the versions differ");
	is($row->{pending}, undef, "$what: tables that may have any shape are not looked at");
	like($node->safe_psql('postgres', q{SELECT ok, detail, hint FROM onside_attribution.doctor() WHERE check_name = 'version'}),
		qr/^f\|$differs.*\|.*ALTER EXTENSION/, "$what: so does doctor()");
	wait_for_log_line($node, qr/database "postgres" is now misconfigured\n.*DETAIL:  $differs/, $position,
		"$what: and the log");
	push @ids, track($node, 'postgres');
	is($node->safe_psql('postgres', q{SELECT onside_attribution.flush('100 ms')}), 'f', "$what: events are recorded, and not sent");
	is($sandbox->report->{distinct}, $_[2], "$what: none was");
	return;
}

# An update that is rolled back, and one that commits.
my $worker = worker_pid($node, 'postgres');
my $position = log_position($node);
$node->safe_psql('postgres', "BEGIN; ALTER EXTENSION onside_attribution UPDATE TO '1.1'; ROLLBACK");
push @ids, track($node, 'postgres');
wait_for_flush($node, 'postgres', 'an update that is rolled back changes nothing');
is(worker_pid($node, 'postgres'), $worker, 'and the worker goes on');
$node->safe_psql('postgres', "ALTER EXTENSION onside_attribution UPDATE TO '1.1'");
idles('objects of the next version', $position, 2);
is($node->safe_psql('postgres', 'SELECT onside_attribution.next_version()'), '11', 'the update has taken place');

push @ids, track($node, 'other');
wait_for_flush($node, 'other', 'other databases are not concerned');

# It lasts over a restart, as long as the library is the old one.
$position = log_position($node);
$node->restart;
idles('after a restart', $position, 3);

$node->safe_psql('postgres', "ALTER EXTENSION onside_attribution UPDATE TO '1.0'");
wait_for_flush($node, 'postgres', 'of one version again, all that was recorded is sent, without a restart');
arrived_ok($sandbox, \@ids, 'every event arrived, and nothing else');
nothing_came_twice($sandbox, 'and each of them once');

$node->stop;
done_testing();
