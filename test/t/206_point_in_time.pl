# Point-in-time recovery to a moment before the cursor's position: what the
# restored server has and what was settled after that moment is sent again, with
# the same bytes, and nothing else; what was pending then is sent, and what came
# later is not there.  A target inside of a burst of deliveries loses nothing
# either, and a target that is later than all is like a restart.

use OnsideTest;
use OnsideTopology;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox,
	init => { has_archiving => 1, allows_streaming => 1 },
	conf => "onside_attribution.segment_size = '1MB'");
create_extension($node, 'postgres');
record($node, 'postgres', 20, 'backup');
wait_for_flush($node, 'postgres');
$node->backup('base');

# ---------------------------------------------------------------------------
# A history
# ---------------------------------------------------------------------------

sub mark
{
	my ($name) = @_;
	$node->safe_psql('postgres', "SELECT pg_create_restore_point('$name')");
	return;
}

# A: settled, and the cursor says so.
record($node, 'postgres', 20, 'a');
wait_for_flush($node, 'postgres');
mark('all_settled');

# B: pending at the target, and settled after it.
$sandbox->behave({ status => 503 });
my @b = @{ record($node, 'postgres', 30, 'b') };
poll_status($node, 'postgres', { state => 'backing_off', pending => 30 }, 'the API is away');
mark('pending');
$sandbox->behave();
wait_for_flush($node, 'postgres', 'it is back');

# C: a burst, and the target somewhere in it, with segments that are emptied.
my @sessions = map { $node->background_psql('postgres') } 1 .. 3;
foreach my $i (0 .. 2)
{
	$sessions[$i]->query_until(qr/started/, <<"SQL");
\\echo started
DO \$\$
BEGIN
	FOR i IN 1..300 LOOP
		INSERT INTO noted
		SELECT onside_attribution.track('c', gen_random_uuid(), jsonb_build_object('x', repeat('y', 3000))), 'c';
		COMMIT;
		IF i = 150 AND $i = 0 THEN
			PERFORM pg_create_restore_point('burst');
		END IF;
	END LOOP;
END
\$\$;
SQL
}
$_->quit foreach @sessions;
wait_for_flush($node, 'postgres');

# D: after everything.
record($node, 'postgres', 10, 'd');
wait_for_flush($node, 'postgres');
mark('end');
arrived_ok($sandbox, recorded($node, 'postgres'), 'all arrived');
nothing_came_twice($sandbox, 'once');
$node->safe_psql('postgres', 'SELECT pg_switch_wal()');
$node->stop;

# ---------------------------------------------------------------------------
# Restored
# ---------------------------------------------------------------------------

# A server as of a restore point, while sending is off; it is promoted.
sub restored
{
	my ($name) = @_;
	my $restored = PostgreSQL::Test::Cluster->new($name);
	$restored->init_from_backup($node, 'base', has_restoring => 1, standby => 0);
	$restored->append_conf('postgresql.conf', <<CONF);
recovery_target_name = '$name'
recovery_target_action = promote
archive_mode = off
onside_attribution.enabled = off
CONF
	my $requests = $sandbox->report->{requests};
	$restored->start;
	$restored->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()')
	  or die 'recovery did not end';
	poll_worker($restored, 'postgres');
	poll_status($restored, 'postgres', { state => 'disabled' }, "$name: it is off");
	is($sandbox->report->{requests}, $requests, "$name: and has sent nothing");
	return $restored;
}

sub pending
{
	my ($restored) = @_;
	return committed($restored, 'postgres', 'SELECT event_id FROM onside_attribution.pending');
}

# Lets it send.  Returns the events that came again, sorted.
sub send_again
{
	my ($restored, $name) = @_;
	my $before = $sandbox->events;
	$restored->append_conf('postgresql.conf', 'onside_attribution.enabled = on');
	$restored->reload;
	record($restored, 'postgres', 3, "after_$name");
	wait_for_flush($restored, 'postgres', "$name: it sends");
	my $now = $sandbox->events;
	my @again = sort grep { $now->{$_} > ($before->{$_} // 0) && $before->{$_} } keys %$now;
	my @new = sort grep { !$before->{$_} } keys %$now;
	is_deeply(\@new, [ sort @{ recorded($restored, 'postgres', "after_$name") } ],
		"$name: what is recorded there arrives, and nothing else is new");
	is($sandbox->report->{mismatched}, 0, "$name: what came again came with the same bytes");
	my @missing = grep { !$now->{$_} } @{ recorded($restored, 'postgres') };
	is("@missing", '', "$name: nothing is lost");
	return \@again;
}

my $restored = restored('all_settled');
is_deeply(pending($restored), [], 'all_settled: nothing is pending');
is(status($restored, 'postgres')->{delivered}, 40, 'all_settled: as many are delivered as then');
is_deeply(send_again($restored, 'all_settled'), [], 'all_settled: nothing is sent again');
is_deeply(recorded($restored, 'postgres', 'b'), [], 'all_settled: what came later is not there');
$restored->stop;

$restored = restored('pending');
is_deeply([ sort @{ pending($restored) } ], [ sort @b ], 'pending: what was pending is pending');
is_deeply(send_again($restored, 'pending'), [ sort @b ],
	'pending: what was settled later is sent again, and nothing else');
is(status($restored, 'postgres')->{delivered}, 40 + 30 + 3, 'pending: and is counted');
$restored->stop;

$restored = restored('burst');
my @due = sort @{ pending($restored) };
my %there = map { $_ => 1 } @{ recorded($restored, 'postgres', 'c') };
my $n = keys %there;
note(scalar(@due) . " of $n were pending");
is(scalar(grep { !$there{$_} } @due), 0, 'burst: what is pending is of the burst');
cmp_ok($n, '>=', 150, 'burst: there is some of it');
cmp_ok($n, '<=', 750, 'burst: but not all');
is_deeply(send_again($restored, 'burst'), \@due,
	'burst: what was settled later is sent again, and nothing else');
$restored->stop;

$restored = restored('end');
is_deeply(send_again($restored, 'end'), [], 'end: nothing is sent again');
$restored->stop;

$sandbox->stop;
done_testing();
