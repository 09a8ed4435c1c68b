# Whatever somebody has set for the server, for a database or for the bootstrap
# superuser, whom the launcher and the workers run as: they start, events are
# delivered, and a refused one is written into dead_letter; at once, and after a
# restart.  Several settings at a time, where they do not hide each other.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use OnsideSandbox;
use OnsideTest;

my $installation = $OnsideTest::installation;
my $sandbox = OnsideSandbox->start(poison => 'counterfeit');
my $node = onside_node('main', sandbox => $sandbox);
create_extension($node, 'postgres');
my $version = $node->safe_psql('postgres', 'SHOW server_version_num');
my $superuser = $node->safe_psql('postgres', 'SELECT quote_ident(rolname) FROM pg_roles WHERE oid = 10');

# A role cannot be set in postgresql.conf.  The tablespace is dropped once it is
# set.
my @sets = (
	[ 'read only', { default_transaction_read_only => 'on' } ],
	[ 'serializable', { default_transaction_isolation => 'serializable' } ],
	[ 'serializable, read only, deferrable', {
		default_transaction_isolation => 'serializable',
		default_transaction_read_only => 'on',
		default_transaction_deferrable => 'on' } ],
	[ 'timeouts', {
		statement_timeout => '1ms',
		lock_timeout => '1ms',
		idle_in_transaction_session_timeout => '1ms',
		idle_session_timeout => '1ms',
		$version >= 170000 ? (transaction_timeout => '1ms') : () } ],
	[ 'where things are', {
		search_path => 'evil, public',
		default_tablespace => 'gone',
		temp_tablespaces => 'gone',
		default_table_access_method => 'other_heap' } ],
	[ 'what is done to rows', { row_security => 'off', session_replication_role => 'replica' } ],
	[ 'the other replication role', { session_replication_role => 'local' } ],
	[ 'plans', {
		jit => 'on', jit_above_cost => '0', jit_inline_above_cost => '0', jit_optimize_above_cost => '0',
		($version >= 160000 ? 'debug_parallel_query' : 'force_parallel_mode') => 'on',
		parallel_setup_cost => '0', parallel_tuple_cost => '0', min_parallel_table_scan_size => '0',
		enable_indexscan => 'off', enable_bitmapscan => 'off', enable_sort => 'off',
		plan_cache_mode => 'force_generic_plan', work_mem => '64kB' } ],
	[ 'text', {
		DateStyle => 'SQL, DMY', TimeZone => 'Asia/Kathmandu', IntervalStyle => 'sql_standard',
		extra_float_digits => '-15', bytea_output => 'escape', quote_all_identifiers => 'on',
		standard_conforming_strings => $version >= 190000 ? 'on' : 'off', transform_null_equals => 'on', array_nulls => 'off',
		lc_messages => 'C', lc_numeric => 'C', client_min_messages => 'error' } ],
	[ 'what is logged', {
		log_statement => 'all', log_min_duration_statement => '0', log_duration => 'on', log_min_messages => 'debug2',
		log_parser_stats => 'on', log_planner_stats => 'on', log_executor_stats => 'on',
		debug_print_parse => 'on', debug_print_rewritten => 'on', debug_print_plan => 'on', debug_pretty_print => 'on',
		track_activities => 'off', track_counts => 'off' } ],
	[ 'durability', { synchronous_commit => 'off' } ],
	[ 'role', { role => 'nobody_at_all' }, { not_in_file => 1 } ]);

# What the tests' own sessions have instead.
my %sane = (
	default_transaction_read_only => 'off', default_transaction_isolation => 'read\ committed',
	default_transaction_deferrable => 'off', statement_timeout => '0', lock_timeout => '0',
	idle_in_transaction_session_timeout => '0', idle_session_timeout => '0',
	$version >= 170000 ? (transaction_timeout => '0') : (),
	search_path => 'public', default_tablespace => 'pg_default', default_table_access_method => 'heap',
	row_security => 'on', session_replication_role => 'origin', role => 'none');
my $sane = join ' ', map { "-c $_=$sane{$_}" } sort keys %sane;

$node->safe_psql('postgres', <<'SQL');
CREATE ROLE nobody_at_all;
CREATE TABLE other (n bigint);
CREATE SCHEMA evil;
CREATE ACCESS METHOD other_heap TYPE TABLE HANDLER heap_tableam_handler;
SQL

# Delivers some events and a dead letter; while somebody has a serializable
# transaction open, and after the worker has had to wait for a lock.
my @sent;

sub works_ok
{
	my ($what) = @_;
	local $ENV{PGOPTIONS} = $sane;

	my $worker = eval { poll_worker($node, 'postgres') };
	ok($worker, "$what: the worker is there") or return 0;
	my $position = log_position($node);
	my $open = $node->background_psql('postgres');
	$open->query_safe('BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE; INSERT INTO other SELECT count(*) FROM other');
	my $locking = $node->background_psql('postgres');
	$locking->query_safe('BEGIN; LOCK TABLE onside_attribution.delivery_cursor, onside_attribution.dead_letter, onside_attribution.control');
	push @sent, map { track($node, 'postgres') } 1 .. 3;
	$node->reload;
	ok( wait_until(sub { $node->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE pid = $worker AND NOT granted") > 0 }, 5)
		  || $node->safe_psql('postgres', "SELECT state_reason ~ 'lock' FROM onside_attribution.status") eq 't',
		"$what: the worker has to wait for a lock");
	$locking->query_safe('COMMIT');
	$locking->quit;
	my $refused = track($node, 'postgres', 'refused', '{"x": "counterfeit"}');
	push @sent, track($node, 'postgres');
	my ($ret, $stdout, $stderr) = $node->psql('postgres', "SELECT onside_attribution.flush('@{[ patience() ]} s')");
	my $ok = is($stdout, 't', "$what: events are delivered");
	diag($stderr) unless $ok;
	is( $node->safe_psql('postgres', "SELECT count(*) FROM onside_attribution.dead_letter WHERE event_id = '$refused'"),
		1, "$what: a dead letter is written");
	is(worker_pid($node, 'postgres'), $worker, "$what: it is the same worker");
	unlike(log_since($node, $position), qr/onside_attribution (worker|launcher)\S* (\S+ )?(ERROR|FATAL)/, "$what: without an error");
	$open->quit;
	diag($node->safe_psql('postgres', 'SELECT row_to_json(s) FROM onside_attribution.status s')) unless $ok;
	return $ok;
}

works_ok('as it was');
foreach my $set (@sets)
{
	my ($name, $settings, $options) = @$set;
	my %how = (
		'ALTER SYSTEM' => [ 'ALTER SYSTEM SET %s = %s', 'ALTER SYSTEM RESET %s' ],
		'ALTER DATABASE' => [ 'ALTER DATABASE postgres SET %s = %s', 'ALTER DATABASE postgres RESET %s' ],
		'ALTER ROLE' => [ "ALTER ROLE $superuser SET %s = %s", "ALTER ROLE $superuser RESET %s" ],
		'ALTER ROLE IN DATABASE' => [
			"ALTER ROLE $superuser IN DATABASE postgres SET %s = %s", "ALTER ROLE $superuser IN DATABASE postgres RESET %s" ]);
	delete $how{'ALTER SYSTEM'} if $options->{not_in_file};
	foreach my $how (sort keys %how)
	{
		my $what = "$name, $how";
		my ($set, $reset) = @{ $how{$how} };
		my $values = join '', map {
			my $value = $_ =~ /^(search_path|temp_tablespaces|DateStyle)$/ ? $settings->{$_} : "'$settings->{$_}'";
			$value = "'SQL', 'DMY'" if $_ eq 'DateStyle';
			sprintf("$set;\n", $_, $value)
		} sort keys %$settings;
		$values = "SET allow_in_place_tablespaces = on;\nCREATE TABLESPACE gone LOCATION '';\n${values}DROP TABLESPACE gone;\n"
		  if $settings->{default_tablespace};
		my ($ret, $stdout, $stderr) = $node->psql('postgres', $values);
		is($ret, 0, "$what: set") or diag($stderr);
		$node->reload;
		works_ok("$what, reload");
		{
			# The test's own look at the server, when it starts, is a session, too.
			local $ENV{PGOPTIONS} = '-c role=none -c search_path=public';
			$node->restart;
		}
		works_ok("$what, restart");
		{
			local $ENV{PGOPTIONS} = $sane;
			$node->safe_psql('postgres', join '', map { sprintf("$reset;\n", $_) } sort keys %$settings);
		}
		$node->reload;
	}
}
$node->restart;
works_ok('as it was, again');
arrived_ok($sandbox, \@sent, 'all that was sent has arrived');

$node->stop;
$sandbox->stop;
done_testing();
