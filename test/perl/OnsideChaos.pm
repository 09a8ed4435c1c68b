# OnsideChaos: everything that can go wrong at the same time, drawn from a deck.
#
# A disturbance is something that happens to the API, to a process, to the
# server or to a database while sessions record events (OnsideLoad).  Each turn
# through the deck brings every one of them once, in an order that follows from
# the seed.  Whatever a disturbance begins, it ends itself, or heal() does.
#
#   my $chaos = OnsideChaos->new(node => $node, load => $load, sandbox => $sandbox,
#       start_sandbox => sub { OnsideSandbox->start(port => $_[0]) },
#       databases => [qw(a b c)], seed => 42);
#   $chaos->turn while ...;
#   $chaos->heal;

package OnsideChaos;

use strict;
use warnings;

use JSON::PP    ();
use Time::HiRes ();

use OnsideLoad;
use OnsideTest;
use Test::More;

# How the API can fail so that it heals by itself, or when the next one comes.
my $true = JSON::PP::true();
my @faults = (
	[ { status => 500, times => 6 } ],
	[ { status => 502, times => 4, skip => 2, body => '<html>Bad gateway</html>' } ],
	[ { status => 503, times => 2, headers => { 'Retry-After' => '1' } } ],
	[ { status => 503, times => 3, accept => $true } ],
	[ { status => 504, times => 3, delay => 0.3 } ],
	[ { status => 429, times => 3, headers => { 'Retry-After' => '1' } } ],
	[ { status => 429, times => 3 } ],
	[ { status => 408, times => 3 } ],
	[ { status => 425, times => 3 } ],
	[ { fault => 'black_hole', times => 3 } ],
	[ { fault => 'black_hole', times => 3, accept => $true } ],
	[ { fault => 'reset_before_read', times => 5 } ],
	[ { fault => 'reset_during_upload', bytes => 700, times => 5 } ],
	[ { fault => 'reset_after_upload', times => 5 } ],
	[ { fault => 'reset_after_upload', times => 5, accept => $true } ],
	[ { fault => 'close_no_answer', times => 5 } ],
	[ { fault => 'close_no_answer', times => 5, accept => $true } ],
	[ { fault => 'truncated_body', times => 4 } ],
	[ { fault => 'bad_chunk', times => 4 } ],
	[ { fault => 'garbage', times => 4 } ],
	[ { fault => 'slow_loris', times => 2 } ],
	[ { fault => 'flap', times => 20 } ],
	[ { fault => 'stale_keepalive', times => 20, when => 'next_request' } ],
	[ { fault => 'continue_first', times => 20 } ],
	[ { fault => 'body_on_204', times => 5, body => 'well done' } ],
	[ { delay => 0.5, times => 10 } ],
	[
		{ status => 500, times => 2 },
		{ fault => 'reset_after_upload', times => 2, accept => $true },
		{ status => 503, times => 1, headers => { 'Retry-After' => '1' } },
		{ fault => 'close_no_answer', times => 2 }
	],
);

my @settings = (
	[ batch_max_events => 7, 100, 1000 ],
	[ batch_max_bytes => '8kB', '64kB', '1000000B' ],
	[ max_in_flight => 1, 2, 4, 16 ],
	[ linger => 0, 0, '20ms', '200ms' ],
	[ request_timeout => '500ms', '1s', '2s' ],
	[ retry_max_delay => '50ms', '200ms', '1s' ],
	[ retention => 0, 0, '1s' ],
	[ segment_size => 64, 128, 512 ],
);

my %disturbance = (
	(map { ("fault $_" => \&_fault) } 1 .. 6),
	limits => \&_limits,
	unauthorized => \&_unauthorized,
	'sandbox restart' => \&_restart_sandbox,
	(map { ("settings $_" => \&_settings) } 1 .. 3),
	'database settings' => \&_database_settings,
	'worker TERM' => sub { _kill($_[0], 'worker', 'TERM') },
	'worker TERM again' => sub { _kill($_[0], 'worker', 'TERM') },
	'worker KILL' => sub { _kill($_[0], 'worker', 'KILL') },
	'launcher TERM' => sub { _kill($_[0], 'launcher', 'TERM') },
	'launcher KILL' => sub { _kill($_[0], 'launcher', 'KILL') },
	'backend TERM' => sub { _kill($_[0], 'backend', 'TERM') },
	'backend KILL' => sub { _kill($_[0], 'backend', 'KILL') },
	'stop fast' => sub { _restart($_[0], 'fast') },
	'stop immediate' => sub { _restart($_[0], 'immediate') },
	checkpoint => sub { $_[0]->sql('postgres', 'CHECKPOINT') },
	maintenance => \&_maintenance,
	rename => \&_rename,
	copy => \&_copy,
	extension => \&_extension,
	count => \&_count,
);

# This one takes long.
$disturbance{'refused copy'} = \&_refused_copy if full_scale();

# OnsideChaos->new(%options)
# start_sandbox is called with a port and returns a sandbox that writes to the
# same log as the one before.
sub new
{
	my ($class, %options) = @_;
	my $self = bless {
		dice => OnsideLoad::dice($options{seed}),
		deck => [],
		killed => {},
		done => {},
		requests => 0,
		%options
	}, $class;
	return $self;
}

# turn
# The next disturbance.  Returns how many are left in the deck.
sub turn
{
	my ($self) = @_;
	$self->_shuffle unless @{ $self->{deck} };
	my $name = pop @{ $self->{deck} };

	# Let the load run for a while: this is no wait for a state.
	Time::HiRes::sleep($self->{dice}->(800) / 1000);
	note(sprintf '%.3f %s', Time::HiRes::time() - $^T, $name);
	$disturbance{$name}->($self);
	$self->{done}{$name}++;
	return scalar @{ $self->{deck} };
}

sub _shuffle
{
	my ($self) = @_;
	my @names = sort keys %disturbance;
	push @{ $self->{deck} }, splice @names, $self->{dice}->(scalar @names), 1 while @names;
	return;
}

sub _pick { return $_[1 + $_[0]->{dice}->(@_ - 1)] }

# sql($database, $sql)
# Runs it; while the server is restarting, again and again.  Returns what it says.
sub sql
{
	my ($self, $database, $sql) = @_;
	my ($ret, $stdout, $stderr);
	my $done = wait_until(
		sub {
			($ret, $stdout, $stderr) = eval { $self->{node}->psql($database, $sql) };
			return defined $ret && $ret == 0;
		});
	die "$database: $sql: " . ($stderr // $@) unless $done;
	return $stdout;
}

# killed, done, restarts, requests
# killed has the process ids that got SIGKILL, done how often which
# disturbance took place, requests how many requests the API has seen.
sub killed { return $_[0]{killed} }
sub done { return $_[0]{done} }

sub requests
{
	my ($self) = @_;
	return $self->{requests} + $self->{sandbox}->report->{requests};
}

sub sandbox { return $_[0]{sandbox} }

# ----------
# The API
# ----------

sub _fault
{
	my ($self) = @_;
	$self->{sandbox}->behave(@{ $self->_pick(@faults) });
	return;
}

# Each event is smaller than that.
sub _limits
{
	my ($self) = @_;
	$self->{sandbox}->limits(
		max_body => 20_000 + $self->{dice}->(100_000),
		max_events => 20 + $self->{dice}->(500));
	return;
}

sub _no_limits
{
	my ($self) = @_;
	$self->{sandbox}->limits(max_body => 1_000_000, max_events => 1000);
	return;
}

sub _unauthorized
{
	my ($self) = @_;
	my $sandbox = $self->{sandbox};
	my $before = $sandbox->report->{by_status}{401} // 0;

	$sandbox->behave;
	$sandbox->credentials('changed', 'changed');
	ok( wait_until(sub { ($sandbox->report->{by_status}{401} // 0) > $before }),
		'credentials are refused');
	$sandbox->credentials(@{ $self->{credentials} });
	$self->_resume;
	return;
}

sub _resume
{
	my ($self) = @_;
	$self->sql($_, 'SELECT onside_attribution.resume()') foreach @{ $self->{databases} };
	return;
}

sub _restart_sandbox
{
	my ($self) = @_;
	my $port = $self->{sandbox}->port;

	$self->{requests} += $self->{sandbox}->report->{requests};
	$self->{sandbox}->stop;
	Time::HiRes::sleep($self->{dice}->(1000) / 1000);

	# Somebody else's connection may have the port for a moment.
	wait_until(sub { $self->{sandbox} = eval { $self->{start_sandbox}->($port) } })
	  or die $@;
	return;
}

# ----------
# Settings
# ----------

sub _configure
{
	my ($self, %settings) = @_;
	$self->{node}->append_conf('postgresql.conf',
		"onside_attribution.$_ = '$settings{$_}'") foreach sort keys %settings;
	$self->{node}->reload;
	return;
}

sub _settings
{
	my ($self) = @_;
	my %settings;
	foreach my $i (1 .. 3)
	{
		my ($name, @values) = @{ $self->_pick(@settings) };
		$settings{$name} = $self->_pick(@values);
	}
	$self->_configure(%settings);
	return;
}

# The worker of such a database is replaced.
sub _database_settings
{
	my ($self) = @_;
	my $database = $self->_pick(@{ $self->{databases} });
	my ($name, @values) = @{ $self->_pick(@settings) };
	my $value = $self->_pick(@values);

	$self->sql($database, <<SQL);
LOAD 'onside_attribution';
ALTER DATABASE $database SET onside_attribution.$name = '$value';
SELECT pg_reload_conf();
SQL
	return;
}

# ----------
# Processes and the server
# ----------

sub _kill
{
	my ($self, $what, $signal) = @_;
	my $type = $what eq 'backend' ? 'client backend' : "onside_attribution $what";
	my $among = join ', ', map { "'$_'" } @{ $self->{databases} };
	my $where = $what eq 'launcher' ? '' : "AND datname IN ($among)";
	my @pids;

	wait_until(
		sub {
			@pids = split /\n/, $self->sql('postgres',
				"SELECT pid FROM pg_stat_activity WHERE backend_type = '$type' $where ORDER BY 1");
			return scalar @pids;
		}) or die "there is no $what";
	my $pid = $self->_pick(@pids);
	my $position = log_position($self->{node});
	$self->{killed}{$pid} = $what if $signal eq 'KILL';
	kill $signal, $pid;
	return if $signal ne 'KILL';

	# Until it has noticed, the server would take a command and cut it off.  It
	# may be that the process had ended by itself just before.
	wait_until(sub { log_since($self->{node}, $position) =~ /; reinitializing$/m }, 10)
	  or delete $self->{killed}{$pid};
	$self->sql('postgres', 'SELECT 1');
	watch_worker($self->{node}, $_) foreach @{ $self->{databases} };
	return;
}

sub _restart
{
	my ($self, $mode) = @_;
	$self->{node}->stop($mode);
	Time::HiRes::sleep($self->{dice}->(300) / 1000);
	$self->{node}->start;
	return;
}

# ----------
# Administration
# ----------

# What is refused here is refused because of a lock that somebody has.  In the
# log can be seen which process it was.
sub _maintenance
{
	my ($self) = @_;
	my $database = $self->_pick(@{ $self->{databases} });
	my $segment = 'onside_attribution.outbox_' . (1 + $self->{dice}->(3));

	$self->sql($database, 'VACUUM ANALYZE');
	$self->sql($database, "VACUUM $segment");
	$self->sql($database, 'ANALYZE onside_attribution.outbox');
	foreach my $command (
		'VACUUM FULL onside_attribution.delivery_cursor',
		'REINDEX TABLE onside_attribution.dead_letter',
		'REINDEX TABLE onside_attribution.delivery_cursor',
		"REINDEX INDEX ${segment}_xid_id_idx",
		"VACUUM FULL $segment")
	{
		eval { $self->{node}->psql($database,
			"SET log_statement = 'all'; SET lock_timeout = '200ms'; $command") };
	}
	return;
}

sub _rename
{
	my ($self) = @_;
	my $database = $self->_pick(@{ $self->{databases} });

	$self->{load}->hold($database) or die "$database is not left";
	$self->sql('postgres', "ALTER DATABASE $database RENAME TO renamed");
	$self->sql('renamed', "SELECT buy('renamed', 10)");
	$self->sql('postgres', "ALTER DATABASE renamed RENAME TO $database");
	$self->{load}->release($database);
	return;
}

# What the copy sends before it is dropped comes twice, with the same event_id.
# A copy of a paused one sends nothing.
sub _copy
{
	my ($self) = @_;
	my $database = $self->_pick(@{ $self->{databases} });
	my $paused = $self->{dice}->(2);

	$self->{load}->hold($database) or die "$database is not left";
	$self->sql($database, "SELECT onside_attribution.pause('to be copied')") if $paused;
	$self->sql($database, "SELECT buy('copied', 100)");
	my $strategy = $self->_pick('wal_log', 'file_copy');
	$self->sql('postgres', "CREATE DATABASE copy TEMPLATE $database STRATEGY $strategy");
	$self->sql($database, 'SELECT onside_attribution.resume()') if $paused;
	$self->{load}->release($database);

	poll_worker($self->{node}, 'copy');
	if ($paused)
	{
		my $row = status($self->{node}, 'copy');
		is($row->{state}, 'paused', 'the copy of a paused database is paused');
		cmp_ok($row->{pending}, '>=', 100, 'and has not sent what was pending');
	}
	$self->sql('postgres', 'DROP DATABASE copy');
	return;
}

# While sessions are connected, the server waits 5 s for them to leave and gives
# up; the worker has left by then and comes back.
sub _refused_copy
{
	my ($self) = @_;
	my $database = $self->_pick(@{ $self->{databases} });
	my ($ret) = $self->{node}->psql('postgres', "CREATE DATABASE copy TEMPLATE $database");

	$self->sql('postgres', 'DROP DATABASE copy') if $ret == 0;
	poll_worker($self->{node}, $database);
	return;
}

# A database whose extension comes and goes.  What is pending then is discarded,
# without which it could not be dropped.
sub _extension
{
	my ($self) = @_;
	my $database = $self->{other_database};
	my $call = "SELECT onside_attribution.track('other', gen_random_uuid(), '{}')";
	my $drop = 'TRUNCATE onside_attribution.outbox; DROP EXTENSION onside_attribution';

	$self->sql($database, 'CREATE EXTENSION IF NOT EXISTS onside_attribution');
	$self->sql($database, "INSERT INTO ledger $call FROM generate_series(1, 5)");
	poll_worker($self->{node}, $database);
	$self->sql($database, "BEGIN; $drop; ROLLBACK");
	$self->sql($database, "INSERT INTO ledger $call");
	$self->sql($database, "BEGIN; $drop CASCADE; COMMIT");
	$self->sql($database, "CREATE EXTENSION onside_attribution; INSERT INTO ledger $call");

	# The next time, it is there or not.
	$self->sql($database, "BEGIN; $drop; COMMIT") if $self->{dice}->(2);
	return;
}

# The count that costs nothing is that of the rows.
sub _count
{
	my ($self) = @_;
	my $database = $self->_pick(@{ $self->{databases} });

	$self->{load}->hold($database) or die "$database is not left";
	$self->sql($database, "SELECT onside_attribution.pause('to count')");
	$self->sql($database, "SELECT buy('counted', 10)");
	$self->sql($database, <<'SQL');
BEGIN; SELECT buy('counted, prepared', 10); PREPARE TRANSACTION 'COMMIT counted'; COMMIT PREPARED 'COMMIT counted'
SQL
	$self->counted_right($database);
	$self->sql($database, 'SELECT onside_attribution.resume()');
	$self->{load}->release($database);
	return;
}

# counted_right($database)
# Tests that status.pending is what the view "pending" has.  Nothing may be
# recorded or sent.
sub counted_right
{
	my ($self, $database) = @_;
	my $said;
	my $right = wait_until(
		sub {
			$said = $self->sql($database, <<'SQL');
SELECT worker_pid IS NOT NULL AND in_flight = 0, pending,
	(SELECT count(*) FROM onside_attribution.pending) FROM onside_attribution.status
SQL
			return $said =~ /^t\|(\d+)\|\1$/;
		}, 60);
	ok($right, "$database: status.pending is the number of pending events");
	diag("running and nothing in flight, status.pending, count(*): $said") unless $right;
	return;
}

# heal
# Ends whatever is under way, so that everything can be delivered.
sub heal
{
	my ($self) = @_;
	$self->{sandbox}->behave;
	$self->_no_limits;
	$self->sql('postgres', "ALTER DATABASE $_ RESET ALL") foreach @{ $self->{databases} };
	$self->_configure(
		batch_max_events => 1000,
		batch_max_bytes => '1000000B',
		max_in_flight => 4,
		linger => 0,
		request_timeout => '30s',
		retry_max_delay => '200ms',
		retention => 0,
		segment_size => 64);
	$self->_resume;
	return;
}

1;
