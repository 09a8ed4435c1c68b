# Whatever happens at the same time - a misbehaving API, killed processes, a
# crashing server, changing settings, a DBA at work - the set of events that
# arrived, are in dead_letter or are pending is the set that was committed, and
# in the end each event is in one of these sets alone.  Nothing that was rolled back
# arrives, what comes again comes with the same bytes, no process of the server
# ends that nobody killed, no purchase waits for a lock that we hold, and in
# the end the outbox is small and the counters are right.
#
# Which disturbances come in which order, and what the sessions do, follows from
# a seed that the test prints: ONSIDE_TEST_SEED=n repeats it.
#
# ONSIDE_TEST_SCALE=full goes on for five minutes.

use List::Util qw(min sum0);
use OnsideTest;
use OnsideChaos;
use OnsideLoad;

my $seed = $ENV{ONSIDE_TEST_SEED} // (time() ^ $$ << 12) % 100_000_000;
diag("ONSIDE_TEST_SEED=$seed");

my @databases = qw(shop store market);
my @credentials = ('chaos', "secret$seed.$$");
my $arrivals = PostgreSQL::Test::Utils::tempdir() . '/arrivals';

# It always refuses what is poisoned: whether an event is bad is not a matter of
# when it is sent.
sub start_sandbox
{
	my ($port) = @_;
	return OnsideSandbox->start(
		port => $port,
		user => $credentials[0],
		password => $credentials[1],
		poison => $OnsideLoad::poison,
		log => $arrivals);
}

my $sandbox = start_sandbox(0);
my $node = onside_node('main', conf => <<'CONF');
max_prepared_transactions = 200
max_connections = 60
max_worker_processes = 16
shared_buffers = 32MB
log_connections = on
log_lock_waits = on
deadlock_timeout = 100ms
log_autovacuum_min_duration = 0
autovacuum_naptime = 1s
onside_attribution.segment_size = 64
onside_attribution.request_timeout = '2s'
CONF
send_to($node, $sandbox, @credentials);
$node->reload;

my $load = OnsideLoad->new(
	node => $node,
	databases => \@databases,
	sessions => 4,
	seed => $seed);
foreach my $database (@databases)
{
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	create_extension($node, $database);
	$load->set_up($database);
}
$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', 'CREATE TABLE ledger (event_id uuid)');

my $chaos = OnsideChaos->new(
	node => $node,
	load => $load,
	sandbox => $sandbox,
	start_sandbox => \&start_sandbox,
	credentials => \@credentials,
	databases => \@databases,
	other_database => 'other',
	seed => $seed);

# ---------------------------------------------------------------------------
# Chaos
# ---------------------------------------------------------------------------

# Once through the deck, and in full as often as five minutes allow.
my $end = time() + scale(0, 300);
$load->start;
1 while $chaos->turn > 0 || time() < $end;
$load->stop;
$chaos->heal;

# ---------------------------------------------------------------------------
# Afterwards
# ---------------------------------------------------------------------------

# { event_id => [ how often it arrived, checksums ] }
sub arrived
{
	my %arrived;
	$chaos->sandbox->report;	# which flushes the log
	open(my $fh, '<', $arrivals) or die "could not open $arrivals: $!";
	while (<$fh>)
	{
		my (undef, $id, $crc) = split;
		$arrived{$id}[0]++;
		$arrived{$id}[1]{$crc} = 1;
	}
	return \%arrived;
}

sub ids_in
{
	my ($database, $relation) = @_;
	return { map { $_ => 1 } @{ committed($node, $database,
		"SELECT event_id FROM onside_attribution.$relation") } };
}

# If all that is left is bad, the API would seem to refuse everything; a good one
# shows that it does not.
sub flush_ok
{
	my ($database, $what) = @_;
	$node->safe_psql($database, "SELECT buy('good')");
	wait_for_flush($node, $database, "$database: $what: all is settled");
	return;
}

my %all;	# event_ids of all databases: where they come from

# Tests that each committed event is in one place.
sub compare
{
	my ($database, $what, $alive, $may_come_again) = @_;
	my $ledger = $load->ledger($database);
	my %place = (
		arrived => $alive,
		dead_letter => ids_in($database, 'dead_letter'),
		pending => ids_in($database, 'pending'));
	my (@lost, @twice);

	$all{$_} = $database foreach keys %$ledger;
	foreach my $id (sort keys %$ledger)
	{
		my @in = grep { $place{$_}{$id} } sort keys %place;
		push @lost, "$id ($ledger->{$id})" if !@in;

		# It may be sent again, if the answer or what was noted of it was lost.
		next if $may_come_again && "@in" eq 'arrived pending';
		push @twice, "$id ($ledger->{$id}): @in" if @in > 1;
	}
	my @invented = grep { !$ledger->{$_} } map { keys %{ $place{$_} } } qw(dead_letter pending);
	is_deeply(\@lost, [], "$database: $what: nothing is lost");
	is_deeply(\@twice, [], "$database: $what: nothing is in two places");
	is_deeply(committed($node, $database, <<'SQL'), [], "$database: $what: nothing is dead twice");
SELECT event_id FROM onside_attribution.dead_letter GROUP BY 1 HAVING count(*) > 1
SQL
	is_deeply(\@invented, [], "$database: $what: nothing is there that was not committed");
	note("$database: $what: " . keys(%$ledger) . ' committed, '
		  . keys(%{ $place{dead_letter} }) . ' dead, ' . keys(%{ $place{pending} }) . ' pending');
	return;
}

foreach my $database (@databases)
{
	$node->safe_psql($database, "SELECT onside_attribution.pause('the end')");
	$load->resolve($database);
	$chaos->counted_right($database);
	compare($database, 'before the end', arrived(), 1);
	$node->safe_psql($database, 'SELECT onside_attribution.resume()');
	flush_ok($database, 'healed');
}
my $before = arrived();
compare($_, 'healed', $before) foreach @databases;

# Had the sessions done what they should, there is all of that.
my %kinds = map { $_ => 1 } map { values %{ $load->ledger($_) } } @databases;
is_deeply([ grep { /never/ } sort keys %kinds ], [], 'what was rolled back is not noted');
cmp_ok(scalar keys %kinds, '>=', 20, 'events of many kinds are noted');

# What was bad is good now, except for what was never sent.
$chaos->sandbox->poison(undef);
foreach my $database (@databases)
{
	$node->safe_psql($database, 'SELECT onside_attribution.retry_dead_letters()');
	flush_ok($database, 'dead letters put back');
}
my $arrived = arrived();
foreach my $database (@databases)
{
	compare($database, 'dead letters put back', $arrived);
	is_deeply(ids_in($database, 'dead_letter'), $load->never_sent($database),
		"$database: only what is no event is still in dead_letter");
	is(scalar keys %{ ids_in($database, 'pending') }, 0, "$database: nothing is pending");
	my $row = poll_status($node, $database,
		{ state => 'idle', pending => 0, in_flight => 0, oldest_pending_age => undef },
		"$database: status says so");
	note("$database: $row->{delivered} delivered, $row->{dead_lettered} dead-lettered, "
		  . "$row->{requests} requests, $row->{retries} retries");
}
$all{$_} = 'other' foreach @{ committed($node, 'other', 'SELECT event_id FROM ledger') };
is_deeply([ grep { !$all{$_} } sort keys %$arrived ], [], 'nothing arrived that was not committed');
is_deeply([ grep { keys %{ $arrived->{$_}[1] } > 1 } sort keys %$arrived ],
	[], 'what came again came with the same bytes');

foreach my $database (@databases)
{
	ok(wait_until(sub { outbox_size($node, $database) < 1024 * 1024 }),
		"$database: the outbox is small");
	note("$database: " . outbox_size($node, $database) . ' bytes');
}
my $replayed = sum0(map { $node->safe_psql($_, 'SELECT coalesce(sum(n), 0) FROM replayed') } @databases);
my $requests = $chaos->requests;
$node->stop;

# ---------------------------------------------------------------------------
# The server's log
# ---------------------------------------------------------------------------

# Errors that the sessions make on purpose, or that come with what was done.
my $expected = qr{
	^division\ by\ zero$
	| ^invalid\ event:\ event_name\ must\ not\ be\ empty\ or\ blank$
	| ^invalid\ event:\ payload.amount\ must\ not\ be\ NaN
	| ^current\ transaction\ is\ aborted
	| ^prepared\ transaction\ with\ identifier\ .*\ (does\ not\ exist|is\ busy)$
	| ^cannot\ PREPARE\ a\ transaction\ that\ has\ operated\ on\ temporary\ objects$
	# what who is still authenticating says when the server is stopped
	| ^canceling\ authentication\ due\ to\ timeout$
	| ^terminating\ (connection|background\ worker|autovacuum\ process|logical\ replication\ launcher|walreceiver)\b
	| ^the\ database\ system\ is\ (starting\ up|shutting\ down|in\ recovery\ mode|not\ yet\ accepting\ connections)
	| ^canceling\ statement\ due\ to\ lock\ timeout$
	| ^canceling\ autovacuum\ task$
	| ^source\ database\ ".*"\ is\ being\ accessed\ by\ other\ users$
}x;

my (%is_client, %is_ours, %is_ddl, @crashes, @errors, @waits);
my $log = slurp_file($node->logfile);
my @lines = map { /^\S+ \S+ \S+ \[(\d+)\] (.*?) ([A-Z0-9]+):  (.*)/ ? [ $1, $2, $3, $4 ] : () } split /\n/, $log;
cmp_ok(scalar @lines, '>', 100, 'the log can be read');
foreach my $i (0 .. $#lines)
{
	my ($pid, $type, $level, $text) = @{ $lines[$i] };
	$is_client{$pid} = 1 if $text =~ /^connection received/ || $type =~ /^autovacuum/;
	$is_ddl{$pid} = 1 if $text =~ /^statement: (REINDEX|VACUUM)/;
	$is_ours{$pid} = 1 if $type =~ /^onside_attribution/;
	push @crashes, $text
	  if $text =~ /\(PID (\d+)\) was terminated by signal (\d+)/
	  && !($chaos->killed->{$1} && $2 == 9)
	  || $text =~ /exited with exit code (?![01]$)/
	  || $level eq 'PANIC';
	push @errors, "$type: $level: $text"
	  if $level =~ /^(ERROR|FATAL)$/
	  && $text !~ $expected
	  # that of a copy which was dropped when a worker had just been started for it
	  && "$type: $text" !~ /^(autovacuum|onside_attribution) worker *: database \d+ does not exist$/;
	push @waits, [ $pid, $i ] if $text =~ /^process \d+ still waiting for/;
}
ok(scalar keys %is_ours, 'and has lines of our processes');
push @crashes, grep { /TRAP:/ } split /\n/, $log;
is_deeply(\@crashes, [], 'no process ended that was not killed');
is_deeply(\@errors, [], 'the log has no error that was not made on purpose');

# Who waited more than 100 ms for a lock, and it is one of our processes that had
# it?  A REINDEX or VACUUM FULL has to wait for any reader, and others wait behind
# it; and process 0 is a prepared transaction.
my (@because_of_us, $because_of_ddl);
foreach my $wait (@waits)
{
	my ($pid, $i) = @$wait;
	my @own = map { $_->[3] } grep { $_->[0] == $pid } @lines[ $i .. min($i + 8, $#lines) ];
	my ($holders, $queue) = "@own" =~ /holding the locks?: ([\d, ]+)\. Wait queue: ([\d, ]+)/;
	my @ours = grep { $_ != 0 && ($is_ours{$_} || !$is_client{$_}) } split /, /, $holders // '';

	next if !@ours || $is_ours{$pid};
	if (grep { $is_ddl{$_} } split /, /, $queue)
	{
		$because_of_ddl++;
		next;
	}
	push @because_of_us, join "\n", @own;
}
note(scalar(@waits) . ' waits for a lock of more than 100 ms, '
	  . ($because_of_ddl // 0) . ' of them in a queue with DDL');
is_deeply(\@because_of_us, [], 'no session waited for a lock of an extension process');

my $sent = sum0(map { $_->[0] } values %$arrived);
my $done = $chaos->done;
my $disturbances = sum0(values %$done);
my $kills = sum0(map { $done->{$_} } grep { /TERM|KILL|stop/ } keys %$done);
diag(sprintf '%d events committed, %d arrived in %d requests, %d of them again (%d replayed); '
	  . '%d disturbances, %d of them kills and stops (%d by SIGKILL)',
	scalar keys %all, scalar keys %$arrived, $requests, $sent - keys %$arrived, $replayed,
	$disturbances, $kills, scalar keys %{ $chaos->killed });

done_testing();
