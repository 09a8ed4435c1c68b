# A backlog that the API refuses for its age does not hold up live purchases:
# they arrive within seconds, while 5,000 old ones (30,000 with
# ONSIDE_TEST_SCALE=full) are still being refused, which all end in dead_letter.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use Test::More;

use OnsideSandbox;
use OnsideTest;
use OnsideWire;

my $wire = OnsideWire->new('main');
my $n = scale(5_000, 30_000);

$wire->behave(on({ older_than => '2026-01-01T00:00:00Z' }, { status => 400, body => '{"error": "too old"}' }));
$wire->arrive([ $wire->record('good') ], 10, 'one before');

# Held back until all of it is there.
$wire->sql('SELECT onside_attribution.pause()');
poll_status($wire->node, 'postgres', { state => 'paused', in_flight => 0 }, 'paused');
my @old = $wire->record('old', $n, q{timestamptz '2020-06-01 12:00Z'});
my @live = $wire->record('good', 20);
$wire->sql('SELECT onside_attribution.resume()');
$wire->arrive(\@live, 20, 'live ones directly behind');

my $waiting = $n - keys %{ $wire->dead };
foreach my $i (1 .. 5)
{
	$wire->arrive([ $wire->one_by_one('good', 3) ], 20, "live ones, round $i");
}
note("old ones that were waiting when the first live ones had arrived: $waiting of $n");

my $dead;
$wire->traffic_until(
	sub { $wire->sql("SELECT count(*) FROM onside_attribution.dead_letter WHERE event_name = 'old'") == $n },
	'all old ones end in dead_letter', patience());
is($wire->sql("SELECT DISTINCT event_name, http_status, error ~ 'too old' FROM onside_attribution.dead_letter"),
	'old|400|t', 'with their status, and none but them');
is($wire->sandbox->accepted(@old), 0, 'none of them was taken');
note('requests: ' . $wire->sandbox->report->{requests});

$wire->healed('in the end');
$wire->clean('in the end');
$wire->node->stop;
done_testing();
