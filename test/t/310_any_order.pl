# Answers come in any order, and no order of them ends the worker, let alone the
# server: 400 and 413 mixed while nothing is accepted, and then all the others,
# early and late.  When the API is well again, everything is delivered by itself.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use Test::More;

use OnsideSandbox;
use OnsideTest;
use OnsideWire;

my $seed = $ENV{ONSIDE_TEST_SEED} // int(rand(1 << 30));
note("seed $seed: ONSIDE_TEST_SEED=$seed draws the same answers");

my $wire = OnsideWire->new('main', conf => "onside_attribution.request_timeout = '1s'\n");
my $worker = worker_pid($wire->node, 'postgres');

my @any = map { { status => $_, delay => [ 0, 0.05 ] } } 200, 302, 400, 401, 403, 404, 408, 413, 500, 503;
push @any, map { { fault => $_, delay => [ 0, 0.05 ] } }
  qw(close_no_answer reset_after_upload garbage truncated_body bad_chunk);

my @cases = (
	[ '400 and 413', { one_of => [ { status => 400 }, { status => 413 } ] } ],
	[ '400 and 413, late', { one_of => [ { status => 400, delay => [ 0, 0.1 ] }, { status => 413, delay => [ 0, 0.1 ] } ] } ],
	[ '413 to most, 400 to one event', on({ event_name => 'good', max_events => 1 }, { status => 400 }),
		{ one_of => [ { status => 413 }, { status => 413, delay => [ 0, 0.1 ] } ] } ],
	[ 'anything', { one_of => \@any } ],
	[ 'anything, by halves', { chance => 0.5, one_of => \@any } ]);

# So many of the one answer, and then only the other: each event of a batch is in
# the middle of being looked into at some of these moments.
foreach my $order ([ 400, 413 ], [ 413, 400 ])
{
	my ($first, $then) = @$order;
	push @cases, map { [ "$_ times $first, then $then", { status => $first, times => $_ }, { status => $then } ] } 1, 4, 9, 12 .. 18, 25;
}

foreach my $case (@cases)
{
	my ($name, @rules) = @$case;
	my @sizes = $name =~ /then/ ? (15) : (1000, 3, 1, 40, 1, 250);
	subtest $name => sub {
		$wire->sandbox->reset;
		$wire->{good} = [];
		$wire->behave(map { { %$_, seed => $seed } } @rules);

		# Batches of all sizes, and single ones among them.
		foreach my $n (@sizes)
		{
			my $seen = $wire->sandbox->report->{requests};
			$wire->record('good', $n);
			$wire->sandbox->wait_requests($seen + ($n == 15 ? 35 : 8), 4);
		}
		$wire->behave;
		$wire->healed($name);
		$wire->clean($name);
		is(worker_pid($wire->node, 'postgres'), $worker, "$name: the worker is the same process");
	};
}

$wire->node->stop;
done_testing();
