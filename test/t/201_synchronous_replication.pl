# With a synchronous standby, an event leaves no earlier than its transaction is
# where the commit has to be: what has arrived is on the standby (on), and can
# be read there (remote_apply).  While the standby is away, commits hang and
# their events wait; the worker does neither: it sends, settles and dead-letters
# what others commit, and rests when there is nothing.  A commit whose wait is
# cancelled, or ended by a crash of the primary, is visible there alone, and its
# event is sent.

use Time::HiRes ();
use OnsideTest;
use OnsideTopology;

my $sandbox = OnsideSandbox->start;
my $primary = onside_node('primary', sandbox => $sandbox,
	init => { allows_streaming => 1 });
create_extension($primary, 'postgres');
record($primary, 'postgres', 1);
my $standby = make_standby($primary, 'standby', 'first');
$standby->append_conf('postgresql.conf', "wal_retrieve_retry_interval = '100ms'");
$standby->reload;
$primary->append_conf('postgresql.conf', "synchronous_standby_names = 'standby'");
$primary->reload;
ok( wait_until(
		sub {
			$primary->safe_psql('postgres',
				"SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") eq '1';
		}),
	'the standby is synchronous');
wait_for_flush($primary, 'postgres');

my $note = q{INSERT INTO noted SELECT onside_attribution.track('purchase_completed', gen_random_uuid(), '{}')};

# Has a session run something, and does not wait for it.
sub start
{
	my ($session, $sql) = @_;
	$session->query_until(qr/started/, "\\echo started\n$sql;\n");
	return;
}

# ---------------------------------------------------------------------------
# The standby is there
# ---------------------------------------------------------------------------

foreach my $mode (qw(on remote_apply))
{
	my $there = 0;
	my $session = $primary->background_psql('postgres');
	$session->query_safe("SET synchronous_commit = $mode");
	foreach my $i (1 .. 10)
	{
		my $before = $sandbox->report->{distinct};
		my $insert = $primary->safe_psql('postgres', 'SELECT pg_current_wal_insert_lsn()');

		# Not waiting for the session: the event may come before its answer.
		start($session, $note);
		$sandbox->wait_distinct($before + 1)->{reached} or last;
		my $arrived = join(',', map { "'$_'" } keys %{ $sandbox->events });
		$there++
		  if $standby->safe_psql('postgres',
			$mode eq 'on'
			? "SELECT pg_last_wal_receive_lsn() > '$insert'"
			: "SELECT count(*) = $before + 1 FROM noted WHERE event_id IN ($arrived)") eq 't';
		$session->query_safe('SELECT 1');
	}
	$session->quit;
	is($there, 10, "$mode: an event that arrives has its purchase on the standby");
}

# The standby is killed the moment that one arrives, and has it.
my $before = $sandbox->report->{distinct};
$primary->safe_psql('postgres', $note);
ok($sandbox->wait_distinct($before + 1)->{reached}, 'another one');
crash($standby);
$standby->start;
my $arrived = join(',', map { "'$_'" } keys %{ $sandbox->events });
ok( wait_until(
		sub {
			$standby->safe_psql('postgres',
				"SELECT count(*) FROM noted WHERE event_id IN ($arrived)") == $before + 1;
		}),
	'a crash of the standby does not lose a purchase that was reported');

# ---------------------------------------------------------------------------
# The standby is away
# ---------------------------------------------------------------------------

sub waiting
{
	return $primary->safe_psql('postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
}

$standby->stop;
$before = $sandbox->events;
my $worker = worker_pid($primary, 'postgres');
my @hanging = map { $primary->background_psql('postgres') } 1, 2;
start($_, $note) foreach @hanging;
ok(wait_until(sub { waiting() == 2 }), 'the standby is away: commits hang');

my $local = $primary->background_psql('postgres');
$local->query_safe('SET synchronous_commit = local');
$local->query_safe($note) foreach 1 .. 10;
$sandbox->poison('poison');
my $dead = $local->query_safe(
	q{SELECT onside_attribution.track('poison', gen_random_uuid(), '{}')});
is( $local->query_safe(q{SELECT onside_attribution.flush('60 s')}),
	't', 'the worker sends what others have committed');
poll_status($primary, 'postgres',
	{ dead_lettered => 1, pending => 0, state => 'idle' },
	'and it settles, and writes dead letters, without the standby');
is($local->query_safe('SELECT event_id FROM onside_attribution.dead_letter'),
	$dead, 'the dead letter is there');
my $now = $sandbox->events;
is_deeply(
	[ sort grep { !$before->{$_} } keys %$now ],
	[ sort @{ recorded($primary, 'postgres') }[ -10 .. -1 ] ],
	'what hangs is not sent');

# What a process does in a second or two must not depend on the machine's load:
# a worker that spins would wake up thousands of times.
my $switches = context_switches($worker);
Time::HiRes::sleep(1.5);
cmp_ok(context_switches($worker) - $switches, '<', 100, 'the worker rests');
is(worker_pid($primary, 'postgres'), $worker, 'and is the same one');

# pause() and resume() are commits like others.
$local->query_safe('SELECT onside_attribution.pause()');
poll_status($primary, 'postgres', { state => 'paused' }, 'it is paused without the standby');
$local->query_safe($note);
$local->query_safe('SELECT onside_attribution.resume()');
is($local->query_safe(q{SELECT onside_attribution.flush('60 s')}), 't', 'and resumed');

# One of the two does not want to wait any more.
my $n = $sandbox->report->{distinct};
my $cancelled = $primary->safe_psql('postgres', <<'SQL');
SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' LIMIT 1
SQL
$primary->safe_psql('postgres', "SELECT pg_cancel_backend($cancelled)");
ok($sandbox->wait_distinct($n + 1)->{reached},
	'a commit whose wait was cancelled has committed here: its event is sent');
is(waiting(), 1, 'the other one still hangs');
wait_for_flush($primary, 'postgres');
is($sandbox->report->{distinct}, $n + 1, 'and is not sent');

# Another worker does no better and no worse.
$primary->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
ok(wait_for_exit($worker), 'the worker ends without the standby');
poll_worker($primary, 'postgres', $worker);
$local->query_safe($note);
is($local->query_safe(q{SELECT onside_attribution.flush('60 s')}), 't', 'and another one sends');

$standby->start;
ok($sandbox->wait_distinct($n + 3)->{reached},
	'the standby is back: the commit ends, and its event is sent');
$_->quit foreach @hanging, $local;
wait_for_flush($primary, 'postgres');
arrived_ok($sandbox, recorded($primary, 'postgres'), 'all arrived');
nothing_came_twice($sandbox, 'once');

# A restart ends the wait as well: the commit is there, on the primary alone.
$standby->stop;
$n = $sandbox->report->{distinct};
my $session = $primary->background_psql('postgres', on_error_stop => 0);
start($session, $note);
ok(wait_until(sub { waiting() == 1 }), 'a commit hangs again');
is($sandbox->report->{distinct}, $n, 'and is not sent');
crash($primary);
eval { $session->quit };
$primary->start;
ok($sandbox->wait_distinct($n + 1)->{reached}, 'after a crash of the primary it is visible and sent');
poll_worker($primary, 'postgres');
wait_for_flush($primary, 'postgres');
arrived_ok($sandbox, recorded($primary, 'postgres'), 'all arrived');

# Stopping must not wait for a standby either.
$primary->stop;
$sandbox->stop;
done_testing();
