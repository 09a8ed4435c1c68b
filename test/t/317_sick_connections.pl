# Recovery depends on nothing that has failed: a connection that a load balancer
# has pinned to a broken node is given up, and a new one is well within 20 s,
# whatever the broken node answers.  And one failure under load costs one new
# connection, not keep-alive for all.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use Test::More;

use OnsideSandbox;
use OnsideTest;
use OnsideWire;

sub ids { return $_[0]->record('good', $_[1]) }

my $wire = OnsideWire->new('main', conf => "onside_attribution.request_timeout = '2s'\n");
foreach my $answer (
	{ status => 503 }, { status => 404 }, { status => 400 }, { status => 413 }, { status => 403 },
	{ status => 500 }, { status => 200 }, { fault => 'black_hole' })
{
	my $name = $answer->{status} // $answer->{fault};
	subtest "connections that say $name to everything" => sub {
		$wire->behave;
		ids($wire, 50);
		wait_for_flush($wire->node, 'postgres', "$name: there is a connection");
		$wire->behave(sick($answer));
		$wire->arrive([ ids($wire, 50), $wire->one_by_one('good', 5) ], 20, "$name: all");
		$wire->behave(sick($answer, 2));
		$wire->arrive([ ids($wire, 50) ], 20, "$name: two new ones are sick, too: all");
		$wire->healed($name);
		poll_status($wire->node, 'postgres', { state => 'idle', pending => 0 }, "$name: nothing is left");
	};
}
$wire->clean('sick connections');

subtest 'one failure under load' => sub {
	$wire->behave({ delay => 0.02 });
	$wire->node->append_conf('postgresql.conf', 'onside_attribution.batch_max_events = 10');
	$wire->node->reload;
	foreach my $warm (1 .. 3)
	{
		ids($wire, 800);
		wait_for_flush($wire->node, 'postgres', "round $warm of four at once");
	}
	foreach my $answer ({ status => 500 }, { status => 503 }, { status => 404 }, { fault => 'close_no_answer' }, { status => 400 }, { status => 429 })
	{
		my $name = $answer->{status} // $answer->{fault};
		my $before = $wire->sandbox->report->{connections};
		$wire->behave({ %$answer, skip => 20, times => 1 }, { delay => 0.02 });
		ids($wire, 800);
		wait_for_flush($wire->node, 'postgres', "one $name among 80 requests");
		is($wire->sandbox->used, 1, "$name: it was there");
		my $made = $wire->sandbox->report->{connections} - $before;
		cmp_ok($made, '<=', 1, "$name: one new connection at most ($made)");
	}
	$wire->clean('one failure under load');
};
$wire->node->stop;

subtest 'a balancer with a broken node' => sub {
	my @sandbox = map { OnsideSandbox->start(history => 1) } 1, 2;
	my $balancer = OnsideSandbox->balancer(@sandbox);
	my $pinned = OnsideWire->new('pinned', sandbox => $sandbox[1], to => $balancer);
	# Not 400: half of the new connections are broken, too, and twice is the word.
	foreach my $status (503, 404)
	{
		# Whichever of them has our connection now is broken from now on.
		$_->behave foreach @sandbox;
		ids($pinned, 5);
		wait_for_flush($pinned->node, 'postgres', "$status: there is a connection");
		my @last = map { $_->report->{last_arrival} // 0 } @sandbox;
		my $at = $last[0] > $last[1] ? 0 : 1;
		$sandbox[$at]->behave({ status => $status });
		my @ids = ids($pinned, 50);
		my $ok = wait_until(sub { $sandbox[0]->accepted(@ids) + $sandbox[1]->accepted(@ids) >= 50 }, 20);
		ok($ok, "$status: all have arrived by the other node within 20 s");
	}
	$_->behave foreach @sandbox;
	wait_for_flush($pinned->node, 'postgres', 'all is settled');
	arrived_ok(\@sandbox, $pinned->{good}, 'what was recorded has arrived');
	$pinned->node->stop;
};

done_testing();
