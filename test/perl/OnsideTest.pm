# OnsideTest: what the TAP tests of onside_attribution have in common.
#
# A test starts a sandbox API and a server that sends to it, lets things
# happen, and then asks one question above all: is what arrived what was
# committed?  This module makes the server, asks the view "status", waits with
# a deadline, and answers that question.
#
# Nothing in here sleeps for a state: every wait polls a condition, gives up
# after a limit (PG_TEST_TIMEOUT_DEFAULT, 180 s) and then says what it saw last.
#
#   use OnsideTest;       # brings strict, warnings, Test::More and OnsideSandbox
#
#   my ($node, $sandbox) = sending_node();
#   my $id = track($node, 'postgres', 'purchase_completed');
#   wait_for_flush($node, 'postgres');
#   arrived_ok($sandbox, [$id], 'the event arrived');

package OnsideTest;

use strict;
use warnings;

use Errno      ();
use Exporter   ();
use File::Spec ();
use JSON::PP   ();
use Test::More;
use Time::HiRes ();

use PostgreSQL::Test::Cluster ();
use PostgreSQL::Test::Utils   ();

use OnsideQuery;
use OnsideSandbox;

our @EXPORT = qw(
  scale full_scale patience
  onside_node sending_node send_to write_credentials preload
  create_extension set_for_database
  status poll_status poll_worker watch_worker worker_pid launcher_pid postmaster_pid
  outbox_size
  wait_until process_exists wait_for_exit memory_of context_switches
  track track_and_hang track_some_bad wait_for_flush
  committed arrived_ok nothing_came_twice
  log_position log_since wait_for_log_line
);

# What every test uses comes along.
sub import
{
	strict->import;
	warnings->import;
	local $Exporter::ExportLevel = 1;
	$_->Exporter::import() foreach qw(Test::More PostgreSQL::Test::Utils OnsideTest);
	return;
}

# The installation_id that the tests use where it does not matter.
our $installation = '11111111-2222-4333-8444-555555555555';

# scale($small, $full), full_scale
# How much a test does: the first value, or the second one when the environment
# says ONSIDE_TEST_SCALE=full, which is how the acceptance figures are made.
sub full_scale { return ($ENV{ONSIDE_TEST_SCALE} // 'small') eq 'full' }

sub scale
{
	my ($small, $full) = @_;
	return full_scale() ? $full : $small;
}

# patience
# How many seconds a wait lasts at most.
sub patience
{
	return $PostgreSQL::Test::Utils::timeout_default || 180;
}

# onside_node($name, %options)
# Makes a server with the extension's library preloaded and starts it.  The
# settings are such that tests are quick (retries after 20 to 200 ms) and that a
# crash is what it is in production (restart_after_crash = on).  Options:
#
#   sandbox   an OnsideSandbox: endpoint and credentials point there
#   conf      more lines for postgresql.conf; they win
#   preload   0 leaves shared_preload_libraries alone
#   start     0 does not start it
#   install_path  another PostgreSQL than the one in PATH
#   init      { ... } for PostgreSQL::Test::Cluster->init, e.g. extra => [...]
sub onside_node
{
	my ($name, %options) = @_;
	my @install_path =
	  $options{install_path} ? (install_path => $options{install_path}) : ();
	my $node = PostgreSQL::Test::Cluster->new($name, @install_path);

	_init($node, @install_path, %{ $options{init} // {} });
	$node->append_conf('postgresql.conf', <<'CONF');
log_line_prefix = '%m [%p] %b %d '
log_statement = none
restart_after_crash = on
max_prepared_transactions = 20
max_connections = 40
shared_buffers = 16MB
onside_attribution.retry_initial_delay = '20ms'
onside_attribution.retry_max_delay = '200ms'
CONF
	preload($node) if $options{preload} // 1;
	send_to($node, $options{sandbox}) if $options{sandbox};
	$node->append_conf('postgresql.conf', $options{conf}) if $options{conf};
	$node->start if $options{start} // 1;
	return $node;
}

# initdb takes a second of CPU, in each of a hundred tests: what it would make is
# copied, unless it is to be different.
sub _init
{
	my ($node, %params) = @_;
	my $template = $ENV{ONSIDE_INITDB_TEMPLATE};
	my $differs = delete $params{install_path} || $params{extra};
	my $run = \&PostgreSQL::Test::Utils::system_or_bail;

	no warnings 'redefine';
	local *PostgreSQL::Test::Utils::system_or_bail = sub {
		return $run->($_[0] eq 'initdb' ? ('cp', '-RPp', $template, $node->data_dir) : @_);
	} if $template && !$differs;
	$node->init(%params);
	return;
}

# sending_node(%options)
# A sandbox, and a server "main" that sends to it and has the extension in the
# database "postgres".  Returns both, the server first.
sub sending_node
{
	my (%options) = @_;
	my $sandbox = OnsideSandbox->start;
	my $node = onside_node('main', sandbox => $sandbox, %options);
	create_extension($node, 'postgres');
	return ($node, $sandbox);
}

# preload($node)
# Adds the library to shared_preload_libraries; a restart is up to the caller.
sub preload
{
	my ($node) = @_;
	$node->append_conf('postgresql.conf',
		"shared_preload_libraries = 'onside_attribution'");
	return;
}

# send_to($node, $sandbox, [$user, $password])
# Writes endpoint and credentials_file into postgresql.conf.  A running server
# has to be reloaded.
sub send_to
{
	my ($node, $sandbox, $user, $password) = @_;
	my $file = write_credentials($node,
		($user // 'sandbox') . ':' . ($password // 'sandbox') . "\n");

	$node->append_conf('postgresql.conf',
		"onside_attribution.endpoint = '" . $sandbox->url . "'");
	$node->append_conf('postgresql.conf',
		"onside_attribution.credentials_file = '$file'");
	return;
}

# write_credentials($node, $content, [$mode, $name])
# Writes a credentials file beside the data directory and returns its full path.
# The mode is 0600; the name, by default "credentials", allows for several.
sub write_credentials
{
	my ($node, $content, $mode, $name) = @_;

	# The server's working directory is another one.
	my $file = File::Spec->rel2abs(
		File::Spec->catfile($node->basedir, $name // 'credentials'));

	# Never readable for others, not even for a moment.
	my $umask = umask 0077;
	open(my $fh, '>', $file) or die "could not write $file: $!";
	print $fh $content;
	close($fh) or die "could not write $file: $!";
	umask $umask;
	chmod($mode // 0600, $file) or die "could not chmod $file: $!";
	return $file;
}

# create_extension($node, $database)
# CREATE EXTENSION, and waits until its worker is there.
sub create_extension
{
	my ($node, $database) = @_;
	$node->safe_psql($database, 'CREATE EXTENSION onside_attribution');
	poll_worker($node, $database);
	return;
}

# set_for_database($node, $database, $setting, $value)
# ALTER DATABASE ... SET onside_attribution.$setting (RESET if $value is undef),
# and a reload.
sub set_for_database
{
	my ($node, $database, $setting, $value) = @_;
	my $action =
	  defined $value
	  ? "SET onside_attribution.$setting = '$value'"
	  : "RESET onside_attribution.$setting";

	# The library must be loaded for the name to be known.
	$node->safe_psql($database,
		"LOAD 'onside_attribution'; ALTER DATABASE \"$database\" $action");
	$node->safe_psql($database, 'SELECT pg_reload_conf()');
	return;
}

# status($node, $database)
# The row of the view "status" as a hash reference.
sub status
{
	my ($node, $database) = @_;
	return JSON::PP::decode_json(
		$node->safe_psql(
			$database, 'SELECT row_to_json(s) FROM onside_attribution.status s'));
}

# poll_status($node, $database, \%wanted, $what)
# Waits until the status row has the wanted values, tests that with the name
# $what, and returns the last row.  A value is a string, undef for NULL, a
# regular expression, or a function that is called with the column's value.
#
#   poll_status($node, 'postgres', { state => 'misconfigured', state_reason => qr/0600/ },
#       'a file that others can read is refused');
sub poll_status
{
	my ($node, $database, $wanted, $what) = @_;
	my $row;
	my $found = wait_until(
		sub {
			$row = eval { status($node, $database) } // return 0;
			foreach my $column (keys %$wanted)
			{
				die "there is no column $column in status"
				  unless exists $row->{$column};
				return 0 unless _matches($row->{$column}, $wanted->{$column});
			}
			return 1;
		});
	ok($found, $what // 'status');
	diag('status was: ' . _json($row)) unless $found;
	return $row;
}

sub _matches
{
	my ($value, $wanted) = @_;
	return $wanted->($value) if ref $wanted eq 'CODE';
	return !defined $value unless defined $wanted;
	return 0 unless defined $value;
	return $value =~ $wanted if ref $wanted eq 'Regexp';
	return $value eq $wanted;
}

sub _json
{
	my ($value) = @_;
	return JSON::PP->new->canonical->allow_nonref->encode($value);
}

# worker_pid($node, $database), launcher_pid($node), postmaster_pid($node)
# A process id, or undef.
sub worker_pid
{
	my ($node, $database) = @_;
	my $pid = $node->safe_psql('postgres', <<SQL);
SELECT pid FROM pg_stat_activity
WHERE backend_type = 'onside_attribution worker' AND datname = '$database'
SQL
	return $pid eq '' ? undef : $pid;
}

sub launcher_pid
{
	my ($node) = @_;
	my $pid = $node->safe_psql('postgres', <<'SQL');
SELECT pid FROM pg_stat_activity
WHERE backend_type = 'onside_attribution launcher'
SQL
	return $pid eq '' ? undef : $pid;
}

sub postmaster_pid
{
	my ($node) = @_;
	my ($pid) = split /\n/,
	  PostgreSQL::Test::Utils::slurp_file($node->data_dir . '/postmaster.pid');
	return $pid;
}

# poll_worker($node, $database, [$not_this_pid])
# Waits until a worker (another one than $not_this_pid) says in the status row
# that it serves the database.  Returns its process id; dies if none comes, since
# no test can go on then.
sub poll_worker
{
	my ($node, $database, $other) = @_;
	my ($pid, $row);
	wait_until(
		sub {
			# A crash of the server takes the connection along.
			$row = eval { status($node, $database) } // return 0;
			$pid = $row->{worker_pid} // return 0;
			return !defined $other || $pid != $other;
		})
	  or die "no worker for $database came up; status: " . _json($row);
	return $pid;
}

# watch_worker($node, $database, [$not_this_pid])
# The same by an operator who watches: where none is started because too many have
# crashed, calls resume().
sub watch_worker
{
	my ($node, $database, $other) = @_;
	wait_until(
		sub {
			my $row = eval { status($node, $database) } // return 0;
			my $pid = $row->{worker_pid};
			return 1 if defined $pid && $pid != ($other // 0);
			return 0 if ($row->{state_reason} // '') !~ /has crashed/;
			return defined eval { $node->safe_psql($database, 'SELECT onside_attribution.resume()') };
		});
	return poll_worker($node, $database, $other);
}

# outbox_size($node, $database)
# Bytes that the outbox takes, indexes and TOAST included.
sub outbox_size
{
	my ($node, $database) = @_;
	return $node->safe_psql($database, <<'SQL');
SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits
WHERE inhparent = 'onside_attribution.outbox'::regclass
SQL
}

# wait_until($condition, [$seconds, $interval])
# Calls a function until it returns true.  Returns false if that does not happen
# in time.  Without an interval it is called less often the longer it takes: most
# ask by a psql, and several tests that do so all the time keep a machine busy.
sub wait_until
{
	my ($condition, $seconds, $interval) = @_;
	my $began = Time::HiRes::time();
	for (;;)
	{
		return 1 if $condition->();
		my $waited = Time::HiRes::time() - $began;
		return 0 if $waited >= ($seconds // patience());
		Time::HiRes::sleep($interval // ($waited < 0.5 ? 0.05 : $waited < 2.5 ? $waited / 10 : 0.25));
	}
}

# process_exists($pid), wait_for_exit($pid)
# One that has ended and that its parent has yet to take note of has ended.
sub process_exists
{
	my ($pid) = @_;
	return 0 unless kill(0, $pid) || $!{EPERM};
	open(my $fh, '<', "/proc/$pid/stat") or return kill(0, $pid) ? 1 : 0;
	my $stat = <$fh> // '';
	return $stat =~ /\) [ZX] / ? 0 : 1;
}

sub wait_for_exit
{
	my ($pid) = @_;
	return wait_until(sub { !process_exists($pid) });
}

# memory_of($pid)
# { VmRSS => kB, RssAnon => kB, ... } from /proc; empty if the process is gone.
# RssAnon is what a process has for itself; VmRSS counts the pages of
# shared_buffers that it has touched, too.
sub memory_of
{
	my ($pid) = @_;
	open(my $fh, '<', "/proc/$pid/status") or return {};
	my %memory;
	while (<$fh>)
	{
		$memory{$1} = $2 if /^(\w+):\s+(\d+) kB/;
	}
	return \%memory;
}

# context_switches($pid)
# How often the process has gone to sleep by itself: an upper bound of how often
# it woke up.
sub context_switches
{
	my ($pid) = @_;
	my $status = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status");
	return $status =~ /^voluntary_ctxt_switches:\s+(\d+)/m ? $1 : undef;
}

# track($node, $database, [$event_name, $payload])
# Records one event and returns its event_id.
sub track
{
	my ($node, $database, $name, $payload) = @_;
	$name //= 'purchase_completed';
	$payload //= '{"currency": "USD", "amount": "9.99"}';
	return $node->safe_psql($database,
		"SELECT onside_attribution.track('$name', '$installation', '$payload')");
}

# track_and_hang($node, $sandbox, $database)
# Records one event whose request the API does not answer, and waits until it is
# there; the next request is answered.  Returns its event_id.
sub track_and_hang
{
	my ($node, $sandbox, $database) = @_;
	$sandbox->behave({ fault => 'black_hole', times => 1 });
	my $id = track($node, $database);
	ok(wait_until(sub { $sandbox->used }), 'a request hangs');
	return $id;
}

# track_some_bad($node, $database, $n, @places)
# Records n events in one transaction, those at these places (from 1 on) with the
# event_name "bad" and the others "good".  Returns the ids of either kind.
sub track_some_bad
{
	my ($node, $database, $n, @places) = @_;
	my $bad = "i = ANY ('{" . join(',', @places) . "}')";
	my %ids = (t => [], f => []);
	foreach (split /\n/, $node->safe_psql($database, <<SQL))
SELECT $bad, onside_attribution.track(CASE WHEN $bad THEN 'bad' ELSE 'good' END,
    '$installation', jsonb_build_object('i', i))
FROM generate_series(1, $n) i
SQL
	{
		my ($is_bad, $id) = split /\|/;
		push @{ $ids{$is_bad} }, $id;
	}
	return @ids{qw(f t)};
}

# wait_for_flush($node, $database, [$what, $seconds])
# Tests that flush() returns true.
sub wait_for_flush
{
	my ($node, $database, $what, $seconds) = @_;
	$seconds //= patience();
	my $result = $node->safe_psql($database,
		"SELECT onside_attribution.flush('$seconds s')",
		timeout => $seconds + 60);
	my $ok = is($result, 't', $what // 'flush');
	diag('status was: ' . _json(status($node, $database))) unless $ok;
	return $ok;
}

# committed($node, $database, $query)
# The first column of a query, as an array reference: the event_ids that were
# committed, as the test has noted them in the same transactions.
sub committed
{
	my ($node, $database, $query) = @_;
	return [ split /\n/, $node->safe_psql($database, $query) ];
}

# arrived_ok($sandbox, \@event_ids, $name)
# Tests that the set of events that the sandbox has accepted is exactly this one,
# and that whatever came more than once came with the same bytes.  Several
# sandboxes in an array reference count as one.
sub arrived_ok
{
	my ($sandboxes, $ids, $name) = @_;
	my (%arrived, $mismatched);
	foreach my $sandbox (ref $sandboxes eq 'ARRAY' ? @$sandboxes : $sandboxes)
	{
		my $events = $sandbox->events;
		$arrived{$_} += $events->{$_} foreach keys %$events;
		$mismatched += $sandbox->report->{mismatched};
	}
	my %committed = map { $_ => 1 } @$ids;
	my @lost = grep { !$arrived{$_} } sort keys %committed;
	my @invented = grep { !$committed{$_} } sort keys %arrived;

	my $ok = ok(!@lost && !@invented && !$mismatched, $name);
	diag(
		sprintf '%d committed, %d arrived, %d came again with other bytes',
		scalar keys %committed,
		scalar keys %arrived, $mismatched) unless $ok;
	diag(_some('committed and did not arrive', @lost)) if @lost;
	diag(_some('arrived and was not committed', @invented)) if @invented;
	return $ok;
}

sub _some
{
	my ($what, @ids) = @_;
	my $last = $#ids < 4 ? $#ids : 4;
	return scalar(@ids) . " $what: @ids[0 .. $last]" . ($last < $#ids ? ' ...' : '');
}

# nothing_came_twice($sandbox, $name)
# Tests that no event was sent more than once.
sub nothing_came_twice
{
	my ($sandbox, $name) = @_;
	return is($sandbox->report->{duplicates}, 0, $name);
}

# log_position($node), log_since($node, $position)
# The server's log from a moment on.
sub log_position
{
	my ($node) = @_;
	return -s $node->logfile;
}

sub log_since
{
	my ($node, $position) = @_;
	return PostgreSQL::Test::Utils::slurp_file($node->logfile, $position);
}

# wait_for_log_line($node, $regexp, $position, $what)
# Tests that a line comes up in the server's log.
sub wait_for_log_line
{
	my ($node, $regexp, $position, $what) = @_;
	return ok(wait_until(sub { log_since($node, $position) =~ $regexp }), $what);
}

1;
