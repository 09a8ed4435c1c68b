# Whatever ALTER SYSTEM, ALTER DATABASE or ALTER ROLE sets for everybody, and so
# for the launcher and the workers, too: they deliver, move dead letters and
# empty the outbox, after a reload and when they are started anew, without an
# error.  (220_hijack.pl goes through all settings of a database's owner.)

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use OnsideSandbox;
use OnsideTest;

# What is set, and what a session needs to be left alone by it.
my %settings = (
	backtrace_functions => [ 'LWLockAcquire', '' ],
	commit_delay => [ 100000, 0 ],
	debug_parallel_query => [ 'regress', 'off' ],
	debug_print_plan => [ 'on', 'off' ],
	default_table_access_method => [ 'heap', 'heap' ],
	default_tablespace => [ 'elsewhere', '' ],
	default_transaction_deferrable => [ 'on', 'off' ],
	default_transaction_isolation => [ 'serializable', 'read\\ committed' ],
	default_transaction_read_only => [ 'on', 'off' ],
	exit_on_error => [ 'on', 'off' ],
	force_parallel_mode => [ 'regress', 'off' ],
	idle_in_transaction_session_timeout => [ 1, 0 ],
	idle_session_timeout => [ 1, 0 ],
	jit_above_cost => [ 0, -1 ],
	lock_timeout => [ 1, 0 ],
	log_statement => [ 'all', 'none' ],
	max_parallel_workers_per_gather => [ 8, 2 ],
	role => [ 'stranger', 'none' ],
	row_security => [ 'off', 'on' ],
	search_path => [ 'evil, pg_catalog', 'public' ],
	session_authorization => [ 'stranger', 'postgres' ],
	session_replication_role => [ 'local', 'origin' ],
	statement_timeout => [ 1, 0 ],
	synchronous_commit => [ 'remote_apply', 'on' ],
	temp_file_limit => [ 0, -1 ],
	temp_tablespaces => [ 'elsewhere', '' ],
	transaction_timeout => [ 50, 0 ],    # with less, psql's own connecting fails now and then
	vacuum_cost_delay => [ 100, 0 ],
	work_mem => [ 64, 4096 ],
	xmloption => [ 'document', 'content' ],
);

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
allow_in_place_tablespaces = on
onside_attribution.segment_size = 64
CONF
my $me = $node->safe_psql('postgres', 'SELECT current_user');
$settings{session_authorization}[1] = $me;
$node->safe_psql('postgres', $_) foreach split /\n/, <<'SQL';
CREATE ROLE stranger
CREATE TABLESPACE elsewhere LOCATION ''
CREATE DATABASE shop
SQL
create_extension($node, 'shop');
$sandbox->poison('"rotten"');

my %known = map { $_ => 1 } split /\n/, $node->safe_psql('postgres', <<'SQL');
SELECT name FROM pg_settings UNION VALUES ('role'), ('session_authorization')
SQL
my @names = grep { $known{$_} } sort keys %settings;

# Sessions have settings of their own, which come after all others.
$ENV{PGOPTIONS} = join ' ', map { "-c $_=$settings{$_}[1]" }
  grep { $settings{$_}[1] ne '' } @names;

my (@good, $dead);

# A purchase arrives, an event that is refused becomes a dead letter, and the
# outbox gets empty.
sub works
{
	my ($what) = @_;
	push @good, track($node, 'shop');
	$node->safe_psql('shop',
		qq{SELECT onside_attribution.track('rotten', '$OnsideTest::installation', '{"a": 1}')});
	wait_for_flush($node, 'shop', "$what: all is settled");
	is($node->safe_psql('shop', 'SELECT count(*) FROM onside_attribution.dead_letter'),
		++$dead, "$what: what is refused is a dead letter");
	return;
}
works('to begin with');

# The statements that set something, by where they set it.
my %places = (
	'ALTER SYSTEM' => 'ALTER SYSTEM',
	'ALTER DATABASE' => 'ALTER DATABASE shop',
	'ALTER ROLE ALL' => 'ALTER ROLE ALL',
	'ALTER ROLE' => "ALTER ROLE \"$me\"",
	'ALTER ROLE IN DATABASE' => "ALTER ROLE \"$me\" IN DATABASE shop",
);

sub restart_processes
{
	my ($worker, $launcher) = (poll_worker($node, 'shop'), launcher_pid($node));
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher), pg_terminate_backend($worker)");
	poll_worker($node, 'shop', $worker);
	return;
}

sub set
{
	my ($place, $name) = @_;
	my $value = $settings{$name}[0];
	$value = "'$value'" if $name ne 'search_path';
	my ($ret, undef, $err) = $node->psql('postgres', "$places{$place} SET $name = $value");
	return 1 if $ret == 0;
	like($err, qr/cannot be changed/, "$place SET $name is not possible");
	return 0;
}

foreach my $place (sort keys %places)
{
	my $position = log_position($node);
	my @set;

	foreach my $name (@names)
	{
		next unless set($place, $name);
		push @set, $name;
		$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
		works("$place SET $name, reload");
		$node->safe_psql('postgres', "$places{$place} RESET $name");
	}
	cmp_ok(scalar @set, '>', 20, "$place sets much");
	set($place, $_) foreach @set;
	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
	works("$place, all of them, reload");
	restart_processes();
	works("$place, all of them, processes started anew");
	$node->restart;
	poll_worker($node, 'shop');
	works("$place, all of them, server started anew");
	unlike(log_since($node, $position),
		qr/onside_attribution (worker|launcher)[^\n]* (ERROR|FATAL):  (?!terminating background worker)/,
		"$place: no error of ours");
	$node->safe_psql('postgres', "$places{$place} RESET ALL");
	$node->safe_psql('postgres', 'SELECT pg_reload_conf()');
}

ok(wait_until(sub { $node->safe_psql('shop',
		'SELECT count(*) FROM onside_attribution.pending') eq '0' }), 'nothing is pending');
$sandbox->poison(undef);
arrived_ok($sandbox, \@good, 'all arrived');

$node->stop;
$sandbox->stop;
done_testing();
