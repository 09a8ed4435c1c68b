# Restarts of worker and server at any moment, while some events are refused, some
# fail, some hang and answers get lost: every good event arrives, at least once,
# with the same bytes; none of them is dead in the end, and no bad one is lost.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use JSON::PP ();
use Test::More;

use OnsideSandbox;
use OnsideTest;
use OnsideWire;

my $seed = $ENV{ONSIDE_TEST_SEED} // int(rand(1 << 30));
note("seed $seed: ONSIDE_TEST_SEED=$seed draws the same");
srand($seed);

my $wire = OnsideWire->new('main', conf => "onside_attribution.request_timeout = '1s'\n");
my $node = $wire->node;
my @poison = (
	on({ event_name => 'refused' }, { status => 400 }),
	on({ event_name => 'failing' }, { status => 500 }),
	on({ event_name => 'closed' }, { fault => 'close_no_answer' }),
	on({ event_name => 'hanging' }, { fault => 'black_hole' }));
my @names = qw(refused failing closed hanging);
my @lost = ({ seed => $seed, chance => 0.05, one_of => [ { fault => 'close_no_answer', accept => JSON::PP::true() }, { status => 503 } ] });
$wire->behave(@poison, @lost);

my @ends = (
	sub { $node->restart },
	sub { $node->stop('immediate'); $node->start },
	sub { my $pid = worker_pid($node, 'postgres'); kill 'TERM', $pid if $pid },
	sub { my $pid = worker_pid($node, 'postgres'); kill 'KILL', $pid if $pid; watch_worker($node, 'postgres', $pid) });
my @bad;

foreach my $round (1 .. scale(12, 60))
{
	$wire->record('good', 1 + int rand 60);
	foreach my $name (@names)
	{
		push @bad, $wire->record($name, 1 + int rand 2) if rand() < 0.4;
	}
	$wire->record('good', 1 + int rand 200);

	# As many requests later as is drawn.
	$wire->sandbox->wait_requests($wire->sandbox->report->{requests} + int rand 30, 1);
	$ends[ int rand @ends ]->();
	poll_worker($node, 'postgres');
}

$wire->behave(@poison);
$wire->healed('after all of it');
my %known = (%{ $wire->dead }, %{ (eval { $wire->aside }) // +{} });
$known{$_} = 1 foreach split /\n/, $wire->sql('SELECT event_id FROM onside_attribution.pending');
is(scalar(grep { !$known{$_} } @bad), 0, 'each bad one is pending, aside or in dead_letter');
is($wire->sandbox->accepted(@bad), 0, 'none of them was taken');

# The API takes them from now on: there is nothing left to do.
$wire->behave;
$wire->sql('UPDATE onside_attribution.dead_letter SET retry_at = clock_timestamp(); SELECT onside_attribution.resume()');
$wire->arrive(\@bad, patience(), 'when the API takes them, the bad ones, too,');
ok(wait_until(sub { $wire->sql('SELECT count(*) FROM onside_attribution.dead_letter') == 0 }), 'dead_letter is empty');
wait_for_flush($node, 'postgres', 'flush');
poll_status($node, 'postgres', { state => 'idle', pending => 0 }, 'nothing is left');
arrived_ok($wire->sandbox, [ @bad, @{ $wire->{good} } ], 'what was recorded has arrived, and nothing else');

$wire->clean('in the end', crashes => 1);
$node->stop;
done_testing();
