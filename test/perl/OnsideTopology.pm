# OnsideTopology: several servers that are one another's copy.
#
# Base backups, standbys, pg_rewind, and clusters whose transaction ids are
# somewhere else altogether.  Beside OnsideTest, which has the rest.
#
#   my $primary = onside_node('primary', sandbox => $sandbox,
#       init => { allows_streaming => 1 });
#   my $standby = make_standby($primary, 'standby');
#   crash($primary);
#   $standby->promote;
#   rewind_to_standby($primary, $standby);      # the old primary follows now

package OnsideTopology;

use strict;
use warnings;

use Exporter   qw(import);
use File::Copy ();
use FindBin    ();
use IPC::Run   ();
use Test::More;

use PostgreSQL::Test::Cluster ();
use PostgreSQL::Test::Utils   ();

use OnsideTest;

our @EXPORT = qw(
  make_standby follow rewind_to_standby crash wait_for_standby
  advance_xids next_xid
  install_recorder record recorded repeated
);

# make_standby($primary, $name, [$backup])
# A running standby of the primary, made by pg_basebackup.
sub make_standby
{
	my ($primary, $name, $backup) = @_;
	my $standby = PostgreSQL::Test::Cluster->new($name);

	$backup //= "for_$name";
	$primary->backup($backup);
	$standby->init_from_backup($primary, $backup, has_streaming => 1);
	$standby->append_conf('postgresql.conf',
		"primary_conninfo = '@{[ $primary->connstr ]} application_name=$name'");
	$standby->start;
	return $standby;
}

# follow($node, $primary)
# Makes a stopped server a standby of another one, and starts it.
sub follow
{
	my ($node, $primary) = @_;
	$node->append_conf('postgresql.conf',
		"primary_conninfo = '@{[ $primary->connstr ]} application_name=@{[ $node->name ]}'");
	$node->set_standby_mode;
	$node->start;
	return;
}

# rewind_to_standby($node, $primary)
# pg_rewind of a stopped old primary, which then follows the new one.
sub rewind_to_standby
{
	my ($node, $primary) = @_;
	my $conf = $node->data_dir . '/postgresql.conf';

	# Until the first checkpoint after promotion, pg_rewind (before 17) takes
	# the other one to be on the old timeline still.
	$primary->safe_psql('postgres', 'CHECKPOINT');

	# pg_rewind brings the other one's configuration along.
	my $own = $node->basedir . '/postgresql.conf.own';
	File::Copy::copy($conf, $own) or die "could not copy $conf: $!";
	$node->command_ok(
		[ 'pg_rewind', '--no-sync', '--target-pgdata', $node->data_dir,
		  '--source-server', $primary->connstr('postgres') ],
		'pg_rewind of ' . $node->name);
	File::Copy::copy($own, $conf) or die "could not copy $own: $!";
	follow($node, $primary);
	return;
}

# crash($node)
# SIGQUIT to the postmaster: nothing is saved on the way out.
sub crash
{
	my ($node) = @_;
	$node->stop('immediate');
	return;
}

# wait_for_standby($primary, $standby)
# Waits until the standby has replayed all that the primary has written.
sub wait_for_standby
{
	my ($primary, $standby) = @_;

	# What was committed asynchronously, as the cursor is, goes with this.
	$primary->safe_psql('postgres', "SELECT pg_logical_emit_message(true, '', '')");
	my $lsn = $primary->lsn('flush');
	wait_until(
		sub {
			$standby->safe_psql('postgres',
				"SELECT pg_last_wal_replay_lsn() >= '$lsn'") eq 't';
		}) or die 'the standby did not catch up';
	return;
}

# advance_xids($node, $xid, [$epoch])
# Has a stopped server go on from this transaction id, as if it had used up all
# those before.
sub advance_xids
{
	my ($node, $xid, $epoch) = @_;

	# The page of the commit log on which it will write next; 32768 a page,
	# 32 pages a file.
	my $segment = sprintf '%s/pg_xact/%04X', $node->data_dir, int($xid / (32768 * 32));
	my $size = 8192 * (1 + int($xid / 32768) % 32);
	open(my $fh, '>>', $segment) or die "could not open $segment: $!";
	binmode $fh;
	my $missing = $size - (-s $segment // 0);
	print $fh "\0" x $missing if $missing > 0;
	close($fh) or die "could not write $segment: $!";

	my @command = ('pg_resetwal', '-x', $xid);
	push @command, '-e', $epoch if defined $epoch;
	$node->command_ok([ @command, $node->data_dir ],
		$node->name . ": goes on from transaction $xid" . (defined $epoch ? " of epoch $epoch" : ''));
	return;
}

# next_xid($node)
# The next transaction id, with its epoch, as a number.
sub next_xid
{
	my ($node) = @_;
	return $node->safe_psql('postgres', 'SELECT pg_snapshot_xmax(pg_current_snapshot())');
}

# install_recorder($node, $database, $role, $test_name)
# Tests that managed/recorder.sql can be installed there by the role, as its header says.
sub install_recorder
{
	my ($node, $database, $role, $test_name) = @_;
	my ($out, $err);
	my $ok = IPC::Run::run(
		[ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '--single-transaction',
			'-f', "$FindBin::RealBin/../../managed/recorder.sql",
			'-d', $node->connstr($database) . " user=$role" ],
		'>', \$out, '2>', \$err);
	ok($ok, $test_name) or diag($err);
	return $ok;
}

# record($node, $database, $n, [$name]), recorded($node, $database)
# Records events and notes their event_ids in the table "noted" (event_id, name),
# each pair in a transaction of its own; and what is noted there.
sub record
{
	my ($node, $database, $n, $name) = @_;
	$name //= 'purchase_completed';
	$node->safe_psql($database, <<SQL);
CREATE TABLE IF NOT EXISTS noted (event_id uuid, name text);
DO \$\$
BEGIN
	FOR i IN 1..$n LOOP
		INSERT INTO noted
		SELECT onside_attribution.track('$name', gen_random_uuid(), '{}'), '$name';
		COMMIT;
	END LOOP;
END
\$\$
SQL
	return recorded($node, $database, $name);
}

sub recorded
{
	my ($node, $database, $name) = @_;
	my $where = defined $name ? "WHERE name = '$name'" : '';
	return committed($node, $database, "SELECT event_id FROM noted $where");
}

# repeated($sandbox)
# The events that it has accepted more than once, sorted, as one string.
sub repeated
{
	my ($sandbox) = @_;
	my $events = $sandbox->events;
	return join(' ', sort grep { $events->{$_} > 1 } keys %$events);
}

1;
