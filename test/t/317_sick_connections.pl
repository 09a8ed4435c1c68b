# Recovery depends on nothing that has failed: a connection that a load balancer
# has pinned to a broken node is given up, and a new one is well within 20 s,
# whatever the broken node answers.  And one failure under load costs one new
# connection, not keep-alive for all.

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

done_testing();
