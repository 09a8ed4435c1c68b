# An API that was wrong about everything for a while leaves nothing behind for a
# person: whatever it answered to all requests, at most ten events are given up
# meanwhile, and only for a 400 or 413; and when it is well again, all are
# delivered by themselves, those ten, too.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use JSON::PP ();
use Test::More;

use OnsideSandbox;
use OnsideTest;
use OnsideWire;

my $wire = OnsideWire->new('main', conf => "onside_attribution.request_timeout = '500ms'\n");

foreach my $case (
	[ 'with 400', 20, { status => 400 } ],
	[ 'with 413', 8, { status => 413 } ],
	[ 'with 403', 8, { status => 403 } ],
	[ 'with 404', 8, { status => 404 } ],
	[ 'with 500', 8, { status => 500 } ],
	[ 'with 302', 8, { fault => 'redirect' } ],
	[ 'with closed connections', 8, { fault => 'close_no_answer' } ],
	[ 'with silence', 8, { fault => 'black_hole' } ],
	[ 'with answers that are lost', 8, { fault => 'close_no_answer', accept => JSON::PP::true() } ],
	[ 'in every way', 15, { one_of => [ map({ { status => $_ } } 400, 413, 403, 404, 500, 200), { fault => 'close_no_answer' } ] } ])
{
	my ($name, $seconds, $rule) = @$case;
	subtest $name => sub {
		$wire->sql('DELETE FROM onside_attribution.dead_letter');
		$wire->{good} = [];
		$wire->record('good', 5);
		wait_for_flush($wire->node, 'postgres', "$name: well before");

		# Events come in all the while, alone and in crowds.
		$wire->behave({ %$rule, until => $seconds });
		my $most = 0;
		wait_until(
			sub {
				$wire->record('good', rand() < 0.2 ? 30 : 1);
				my $dead = keys %{ $wire->dead };
				$most = $dead if $dead > $most;
				return 0;
			}, $seconds, 0.4);
		cmp_ok($most, '<=', $name =~ /400|413|every/ ? 10 : 0, "$name: how many are given up meanwhile ($most)");
		cmp_ok($wire->sandbox->used, '>', 3, "$name: it was tried again and again");
		$wire->healed($name);
		wait_for_flush($wire->node, 'postgres', "$name: flush");
		poll_status($wire->node, 'postgres', { state => 'idle', pending => 0 }, "$name: nothing is pending");
		is($wire->sql('SELECT count(*) FROM onside_attribution.dead_letter'), 0, "$name: dead_letter is empty");
	};
}

$wire->clean('in the end');
$wire->node->stop;
done_testing();
