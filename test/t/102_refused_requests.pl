# What it costs to single out k bad ones of 1000 events: at most about
# 2 k' log2(1000 / k') + 5 k + 20 requests, k' being k or 368, whichever is less,
# wherever they stand, as the API counts them.  (test/sim's days nasty_k*.day count
# what the sender does.)
# A refused batch never becomes a storm.

use OnsideTest;

my ($node, $sandbox) = sending_node();
my $worker = worker_pid($node, 'postgres');
$sandbox->poison('"bad"');

# Places are drawn, so say from what.
my $seed = $ENV{ONSIDE_TEST_SEED} // int(rand(1 << 30));
srand($seed);
note("seed $seed: ONSIDE_TEST_SEED=$seed draws the same places");

sub drawn
{
	my ($k) = @_;
	my %places;
	$places{ 1 + int(rand(1000)) } = 1 while keys %places < $k;
	return sort { $a <=> $b } keys %places;
}

# A batch of 1000 with bad ones at these places; tests what it comes to and
# returns how many requests it took.
sub cost_ok
{
	my ($case, @places) = @_;
	my $k = @places;
	my $spread = $k < 368 ? $k : 368;
	my $allowed = int(2 * $spread * log(1000 / $spread) / log(2) + 5 * $k + 20);

	$node->safe_psql('postgres', 'DELETE FROM onside_attribution.dead_letter');
	$sandbox->reset;
	my ($good, $bad) = track_some_bad($node, 'postgres', 1000, @places);

	# Who is refused while nothing else is accepted may have to wait for that.
	my $later = 0;
	until ($node->safe_psql('postgres', "SELECT onside_attribution.flush('2500 ms')") eq 't' || $later == 12)
	{
		push @$good, track($node, 'postgres', 'good', '{}');
		$later++;
	}
	$allowed += 2 * $later;
	wait_for_flush($node, 'postgres', "$case: all is settled");
	arrived_ok($sandbox, $good, "$case: what is good has arrived");
	is( $node->safe_psql('postgres', 'SELECT event_id FROM onside_attribution.dead_letter ORDER BY 1'),
		join("\n", sort @$bad), "$case: what is bad is in dead_letter");
	my $report = $sandbox->report;
	is($report->{duplicates}, 0, "$case: nothing arrived twice");
	cmp_ok($report->{requests}, '<=', $allowed, "$case: at most $allowed requests")
	  || diag("places: @places");
	note("$case: $report->{requests} requests of $allowed");
	return;
}

# The first batch that the worker ever sends, too: it knows nothing of the API.
cost_ok('1 bad, nothing accepted before', drawn(1));

cost_ok('5 bad, drawn', drawn(5));
cost_ok('20 bad in a row', 1 .. 20);
cost_ok('400 bad, drawn', drawn(400));

$node->restart;
$worker = poll_worker($node, 'postgres', $worker);
cost_ok('20 bad, drawn, by a fresh worker', drawn(20));
is(worker_pid($node, 'postgres'), $worker, 'the worker is the same process');

$node->stop;
done_testing();
