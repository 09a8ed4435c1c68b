# A 429 asks everybody to wait, and is never evidence against what was sent: an
# event that is answered 429 for ever lets the others go and is not given up; and
# one 429 in the middle of a drain costs the others no more than the wait.

use OnsideTest;
use OnsideWire;

my $wire = OnsideWire->new('main');
my $node = $wire->node;

subtest 'one event, for ever' => sub {
	$wire->behave(on({ event_name => 'throttled' }, { status => 429 }));
	my @before = $wire->record('good', 100);
	my ($throttled) = $wire->record('throttled');
	my @behind = $wire->record('good', 100);
	$wire->arrive([ @before, @behind ], 20, '200 others');
	foreach my $round (1 .. 10)
	{
		$wire->arrive([ $wire->record('good', 3) ], 10, "those of round $round");
	}
	is(scalar keys %{ $wire->dead }, 0, 'nothing is given up for it');
	is($wire->said->{pending}, 1, 'it is pending') if wait_until(sub { $wire->said->{pending} == 1 }, 10);
	my $came = $wire->sandbox->history->{$throttled}{came};
	cmp_ok($came, '<=', 30, "and it is not tried all the time ($came times)");
	$wire->behave;
	$wire->arrive([$throttled], patience(), 'taken at last: it');
};

subtest 'one event, with Retry-After' => sub {
	$wire->behave(on({ event_name => 'throttled' }, { status => 429, headers => { 'Retry-After' => '1' } }));
	my ($throttled) = $wire->record('throttled');
	my @others = $wire->record('good', 200);

	# Until it is alone, each try is a second for everybody.
	$wire->arrive(\@others, 40, '200 others');
	$wire->behave;
	$wire->arrive([$throttled], patience(), 'it');
};

subtest 'a single 429' => sub {
	$node->append_conf('postgresql.conf', 'onside_attribution.batch_max_events = 10');
	$node->reload;
	$wire->sql('SELECT onside_attribution.pause()');
	poll_status($node, 'postgres', { state => 'paused', in_flight => 0 }, 'held back until all is there');
	$wire->record('good', 1000);
	$wire->sandbox->reset;
	$wire->{good} = [];
	$wire->behave({ status => 429, skip => 20, times => 1 });
	$wire->sql('SELECT onside_attribution.resume()');
	wait_for_flush($node, 'postgres', 'a thousand, in batches of ten');
	my $requests = $wire->sandbox->report->{requests};
	is($wire->sandbox->report->{by_status}{429}, 1, 'one was answered 429');

	# A hundred, the halves of the one, and what probes with after the wait.
	cmp_ok($requests, '<=', 125, "few requests more than without it ($requests)");
};

$wire->healed('in the end');
$wire->clean('in the end');
$node->stop;
done_testing();
