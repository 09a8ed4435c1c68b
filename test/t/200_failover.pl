# A standby idles and says why.  Promoted while events are pending and in
# flight, it takes over from the replicated cursor: every event that was
# replicated arrives, and what is sent again is just what was settled after the
# last replicated cursor, with the same event_id and bytes.  What was prepared is
# committed or rolled back there, and its events arrive or never do.  The old
# primary comes back as a standby by pg_rewind and idles, and after a switchover
# in peace, back to it, nothing is sent again.

use OnsideTest;
use OnsideTopology;

my $sandbox = OnsideSandbox->start;

# One small request at a time, so that some are settled and others are not.
my $first = onside_node('first', sandbox => $sandbox,
	init => { allows_streaming => 1 },
	conf => <<'CONF');
wal_log_hints = on
wal_keep_size = '320MB'
wal_receiver_status_interval = '100ms'
wal_retrieve_retry_interval = '100ms'
onside_attribution.batch_max_events = 10
onside_attribution.max_in_flight = 1
onside_attribution.request_timeout = '1h'
CONF
create_extension($first, 'postgres');
record($first, 'postgres', 10);
my $second = make_standby($first, 'second');

# ---------------------------------------------------------------------------
# A standby
# ---------------------------------------------------------------------------

sub idles_ok
{
	my ($node, $what) = @_;
	poll_status($node, 'postgres',
		{ state => 'not_running', state_reason => qr/this server is a standby/, worker_pid => undef },
		"$what: status says that it does not send, and why");
	is(launcher_pid($node), undef, "$what: no launcher");
	is(worker_pid($node, 'postgres'), undef, "$what: no worker");
	return;
}

record($first, 'postgres', 10);
wait_for_flush($first, 'postgres');
wait_for_standby($first, $second);
idles_ok($second, 'standby');
is_deeply(
	[ @{ status($second, 'postgres') }{qw(pending delivered)} ], [ 0, 20 ],
	'standby: status has the primary\'s figures');
my ($ret, $stdout, $stderr) =
  $second->psql('postgres', q{SELECT onside_attribution.track('x', gen_random_uuid(), '{}')});
like($stderr, qr/read-only transaction|during recovery/, 'standby: nothing can be recorded');
($ret, $stdout, $stderr) = $second->psql('postgres', 'SELECT onside_attribution.flush()');
like($stderr, qr/during recovery.*\n.*HINT:.*sent by the primary/s, 'standby: nor flushed');
is(repeated($sandbox), '', 'nothing came twice so far');

# ---------------------------------------------------------------------------
# Failover
# ---------------------------------------------------------------------------

# Ends transactions that were prepared; each of them has an event of its own, and
# another one that a savepoint has taken back.
sub end_prepared
{
	my ($node, %end) = @_;
	$node->safe_psql('postgres', "$end{$_} PREPARED '$_'") foreach sort keys %end;
	return;
}

my $note = q{INSERT INTO noted SELECT onside_attribution.track('prepared', gen_random_uuid(), '{}'), 'prepared'};
sub prepare
{
	my ($node, @names) = @_;
	$node->safe_psql('postgres', "BEGIN; $note; SAVEPOINT a; $note; ROLLBACK TO a; PREPARE TRANSACTION '$_'") foreach @names;
	return;
}
prepare($first, 'p1' .. 'p3');

# All of these are replicated, none is settled.
$sandbox->behave({ status => 503 });
record($first, 'postgres', 40);
poll_status($first, 'postgres', { state => 'backing_off', pending => 40 }, 'the API is away');
wait_for_standby($first, $second);
is(status($second, 'postgres')->{pending}, 40, 'standby: as many are pending there');

# From now on the standby learns nothing more.
$second->append_conf('postgresql.conf', "primary_conninfo = ''");
$second->reload;
ok( wait_until(
		sub {
			$first->safe_psql('postgres', 'SELECT count(*) FROM pg_stat_replication') eq '0';
		}),
	'replication is cut');
my $before = $sandbox->events;

# Some of them arrive, then one request hangs, and the rest waits behind it; one
# for events that have failed may go besides.
$sandbox->behave({ fault => 'black_hole', skip => 2 });
ok(wait_until(sub { $sandbox->used }), 'a request is in flight');
my $after = $sandbox->events;
my $settled = join(' ', sort grep { !$before->{$_} } keys %$after);
my $n_settled = () = $settled =~ /\S+/g;
poll_status($first, 'postgres', { delivered => 20 + $n_settled, in_flight => qr/^[12]$/ },
	"$n_settled are settled, which the standby does not know");
cmp_ok($n_settled, '>', 0, 'some are');
cmp_ok($n_settled, '<', 40, 'others are not');

# A purchase that is on the old primary alone.
my @lost = @{ record($first, 'postgres', 1, 'lost') };

crash($first);
$sandbox->behave();
$second->promote;
poll_worker($second, 'postgres');
end_prepared($second, p2 => 'COMMIT', p1 => 'COMMIT', p3 => 'ROLLBACK');
record($second, 'postgres', 10, 'after_failover');
wait_for_flush($second, 'postgres', 'promoted, it sends');
arrived_ok($sandbox, recorded($second, 'postgres'),
	'all that was replicated arrived, and nothing else');
is(repeated($sandbox), $settled, 'sent again is what was settled behind the standby\'s back');
is($sandbox->report->{duplicates}, $n_settled, 'once');
is(status($second, 'postgres')->{delivered}, 20 + 40 + 2 + 10, 'counted from the replicated cursor on');

# ---------------------------------------------------------------------------
# The old primary
# ---------------------------------------------------------------------------

rewind_to_standby($first, $second);
record($second, 'postgres', 10);
wait_for_flush($second, 'postgres');
wait_for_standby($second, $first);
idles_ok($first, 'old primary');
is_deeply(recorded($first, 'postgres', 'lost'), [], 'the purchase that was lost is gone');

# ---------------------------------------------------------------------------
# Back again
# ---------------------------------------------------------------------------

# Events are pending here, too, and the shutdown is an orderly one.
$second->safe_psql('postgres', 'SELECT onside_attribution.pause()');
poll_status($second, 'postgres', { state => 'paused' }, 'paused');
record($second, 'postgres', 25, 'pending');

# Not before pg_rewind, after which PostgreSQL 18.6 has lost what was prepared.
prepare($second, 'p4' .. 'p6');
wait_for_standby($second, $first);
$second->stop;
$first->promote;
poll_status($first, 'postgres', { state => 'paused', pending => 25 },
	'switched back: paused, as the other one was');
$first->safe_psql('postgres', 'SELECT onside_attribution.resume()');
end_prepared($first, p5 => 'COMMIT', p4 => 'COMMIT', p6 => 'ROLLBACK');
record($first, 'postgres', 10);
wait_for_flush($first, 'postgres', 'it sends');
arrived_ok($sandbox, recorded($first, 'postgres'), 'all arrived');
is(scalar @{ recorded($first, 'postgres', 'prepared') }, 4, 'of what was prepared, what was committed');
ok(!$sandbox->events->{ $lost[0] }, 'but the lost purchase');
is($sandbox->report->{duplicates}, $n_settled, 'and nothing came twice because of that');

follow($second, $first);
record($first, 'postgres', 10);
wait_for_flush($first, 'postgres');
wait_for_standby($first, $second);
idles_ok($second, 'the other one');
is($sandbox->report->{duplicates}, $n_settled, 'nothing came twice');

$second->stop;
$first->stop;
$sandbox->stop;
done_testing();
