# An API that refuses everything for a while, over restarts of the server, a crash
# and a change of credentials: ten events at most become dead letters, and all of
# them are tried as soon as anything is accepted, however far their next chance is.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use Test::More;

use OnsideSandbox;
use OnsideTest;
use OnsideWire;

my $wire = OnsideWire->new('main', conf => "onside_attribution.retry_max_delay = '1s'\n");
my $node = $wire->node;

sub dead_letters { return scalar keys %{ $wire->dead } }

$wire->record('good', 5);
wait_for_flush($node, 'postgres', 'something is accepted before');
$wire->behave({ status => 400 });
my @recorded = $wire->one_by_one('good', 15);
ok(wait_until(sub { dead_letters() == 10 }), 'ten are given up');

foreach my $case (
	[ 'a restart', sub { $node->restart } ],
	[ 'other credentials', sub {
		$wire->sandbox->credentials('sandbox', 'another');
		write_credentials($node, "sandbox:another\n");
		$node->reload;
	} ],
	[ 'a crash', sub { $node->stop('immediate'); $node->start } ])
{
	my ($name, $happens) = @$case;
	my $seen = $wire->sandbox->report->{requests};
	$happens->();
	poll_worker($node, 'postgres');
	push @recorded, $wire->one_by_one('good', 5);
	$wire->sandbox->wait_requests($seen + 30, patience());
	poll_status($node, 'postgres', { state => 'refusing', state_reason => qr/./ }, "$name: state refusing");
	is(dead_letters(), 10, "$name: not one more is given up");
}

# As if each had had its chances of the first hour, and the last one now.
$node->safe_psql('postgres', <<~'SQL');
	UPDATE onside_attribution.dead_letter
		SET chances = 3, failed_at = clock_timestamp(), retry_at = clock_timestamp() + interval '1 day'
	SQL
$node->restart;
poll_worker($node, 'postgres');
$wire->behave;
$wire->arrive(\@recorded, patience(), 'the API is well again: all of them');
ok(wait_until(sub { dead_letters() == 0 }), 'no dead letter is left');
poll_status($node, 'postgres', { state => 'idle', pending => 0 }, 'nothing else either');
$wire->clean('in the end', crashes => 1);
$node->stop;
done_testing();
