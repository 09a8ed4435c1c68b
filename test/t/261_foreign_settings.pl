# Whatever ALTER SYSTEM, ALTER DATABASE or ALTER ROLE sets for everybody, and so
# for the launcher and the workers, too: they deliver, move dead letters and
# empty the outbox, after a reload and when they are started anew, without an
# error.  (220_hijack.pl goes through all settings of a database's owner.)
#
# Each setting is set alone in one of these places, and with all the others in each
# of them.

use List::Util qw(first);
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

# The statements that set something, by where they set it.
my %places = (
	'ALTER SYSTEM' => sub { 'ALTER SYSTEM' },
	'ALTER DATABASE' => sub { 'ALTER DATABASE shop' },
	'ALTER ROLE ALL' => sub { 'ALTER ROLE ALL' },
	'ALTER ROLE' => sub { "ALTER ROLE \"$_[0]\"" },
	'ALTER ROLE IN DATABASE' => sub { "ALTER ROLE \"$_[0]\" IN DATABASE shop" },
);

# Each place has a server of its own, so that their waits are at the same time:
# an event is refused twice, 2 s apart, before it is a dead letter.
sub server
{
	my ($place) = @_;
	my $sandbox = OnsideSandbox->start;
	my $node = onside_node($place =~ tr/A-Z /a-z_/r, sandbox => $sandbox, conf => <<'CONF');
allow_in_place_tablespaces = on
onside_attribution.segment_size = 64
CONF
	$node->safe_psql('postgres', $_) foreach split /\n/, <<'SQL';
CREATE ROLE stranger
CREATE TABLESPACE elsewhere LOCATION ''
CREATE DATABASE shop
SQL
	create_extension($node, 'shop');
	$sandbox->poison('"rotten"');
	my $me = $node->safe_psql('postgres', 'SELECT current_user');
	return { place => $place, node => $node, sandbox => $sandbox, me => $me,
		alter => $places{$place}->($me), good => [], dead => 0, alone => [] };
}
my @servers = map { server($_) } sort keys %places;
$settings{session_authorization}[1] = $servers[0]{me};

my %known = map { $_ => 1 } split /\n/, $servers[0]{node}->safe_psql('postgres', <<'SQL');
SELECT name FROM pg_settings UNION VALUES ('role'), ('session_authorization')
SQL
my @names = grep { $known{$_} } sort keys %settings;

# Sessions have settings of their own, which come after all others.
$ENV{PGOPTIONS} = join ' ', map { "-c $_=$settings{$_}[1]" }
  grep { $settings{$_}[1] ne '' } @names;

# A purchase arrives, an event that is refused becomes a dead letter, and the
# outbox gets empty: on each of these servers.
sub work
{
	my ($what, @on) = @_;
	foreach my $server (@on)
	{
		push @{ $server->{good} }, track($server->{node}, 'shop');
		$server->{node}->safe_psql('shop',
			qq{SELECT onside_attribution.track('rotten', '$OnsideTest::installation', '{"a": 1}')});
	}
	foreach my $server (@on)
	{
		my $case = "$server->{place}, " . ($what =~ s/alone/$server->{alone}[-1]/r);
		wait_for_flush($server->{node}, 'shop', "$case: all is settled");
		is($server->{node}->safe_psql('shop', 'SELECT count(*) FROM onside_attribution.dead_letter'),
			++$server->{dead}, "$case: what is refused is a dead letter");
	}
	return;
}

sub reload
{
	$_->{node}->safe_psql('postgres', 'SELECT pg_reload_conf()') foreach @_;
	return;
}

sub restart_processes
{
	my ($node) = @_;
	my ($worker, $launcher) = (poll_worker($node, 'shop'), launcher_pid($node));
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher), pg_terminate_backend($worker)");
	poll_worker($node, 'shop', $worker);
	return;
}

# Sets these in one session; returns how many cannot be set there.
sub set
{
	my ($server, @set) = @_;
	my $script = '';
	foreach my $name (@set)
	{
		my $value = $settings{$name}[0];
		$value = "'$value'" if $name ne 'search_path';
		$script .= "$server->{alter} SET $name = $value;\n";
	}
	my (undef, undef, $err) = $server->{node}->psql('postgres', $script, on_error_stop => 0);
	my @errors = $err =~ /ERROR: .*/g;
	is(join("\n", grep { !/cannot be changed/ } @errors), '', "$server->{place} SET, or it is not possible");
	return scalar @errors;
}

work('to begin with', @servers);
$_->{position} = log_position($_->{node}) foreach @servers;

# At any time each server has another one; what cannot be set there, the next sets.
my @left = @names;
while (@left)
{
	my @on;
	foreach my $server (@servers)
	{
		my $name = first { set($server, $_) == 0 } @left;
		next unless defined $name;
		@left = grep { $_ ne $name } @left;
		push @on, $server;
		push @{ $server->{alone} }, $name;
	}
	die "nowhere can one set @left" unless @on;
	reload(@on);
	work('SET alone, reload', @on);
	$_->{node}->safe_psql('postgres', "$_->{alter} RESET $_->{alone}[-1]") foreach @on;
}
foreach my $server (@servers)
{
	cmp_ok(@names - set($server, @names), '>', 20, "$server->{place} sets much");
}
reload(@servers);
work('all of them, reload', @servers);
restart_processes($_->{node}) foreach @servers;
work('all of them, processes started anew', @servers);
foreach my $server (@servers)
{
	$server->{node}->restart;
	poll_worker($server->{node}, 'shop');
}
work('all of them, server started anew', @servers);

foreach my $server (@servers)
{
	my ($place, $node, $sandbox) = @{$server}{qw(place node sandbox)};
	unlike(log_since($node, $server->{position}),
		qr/onside_attribution (worker|launcher)[^\n]* (ERROR|FATAL):  (?!terminating background worker)/,
		"$place: no error of ours");
	$node->safe_psql('postgres', "$server->{alter} RESET ALL");
	reload($server);
	ok(wait_until(sub { $node->safe_psql('shop',
			'SELECT count(*) FROM onside_attribution.pending') eq '0' }), "$place: nothing is pending");
	arrived_ok($sandbox, $server->{good}, "$place: all arrived");
	$node->stop;
	$sandbox->stop;
}
done_testing();
