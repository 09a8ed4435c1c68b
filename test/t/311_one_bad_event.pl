# One event that the API cannot stomach holds up no other: whatever is answered to
# every request that has it, 200 others recorded with it arrive within seconds.
# Later it is in dead_letter, with what was answered.

use OnsideTest;
use OnsideWire;

my $wire = OnsideWire->new('main', conf => "onside_attribution.request_timeout = '1s'\n");

# The event's name, what becomes of it, and the http_status of its dead letter.
my @kinds = (
	[ e400 => { status => 400 }, 400 ],
	[ e413 => { status => 413 }, 413 ],
	[ e500 => { status => 500 }, 500 ],
	[ e503 => { status => 503 }, 503 ],
	[ e403 => { status => 403 }, 403 ],
	[ e404 => { status => 404 }, 404 ],
	[ e302 => { fault => 'redirect' }, 302 ],
	[ e200 => { status => 200 }, 200 ],
	[ closed => { fault => 'close_no_answer' }, undef ],
	[ reset => { fault => 'reset_after_upload' }, undef ],
	[ cut => { fault => 'truncated_body', status => 503 }, 503 ],
	[ hang => { fault => 'black_hole' }, undef ],
	[ slow => { delay => 60 }, undef ]);
$wire->behave(map { on({ event_name => $_->[0] }, $_->[1]) } @kinds);

my %bad;
foreach my $kind (@kinds)
{
	my ($name) = @$kind;
	subtest $name => sub {
		my @before = $wire->record('good', 100);
		($bad{$name}) = $wire->record($name);
		my @behind = $wire->record('good', 100);

		# (2 + log2 n) timeouts for what has shared its request, if it hangs.
		$wire->arrive([ @before, @behind ], 20, "$name: 200 others");
		$wire->arrive([ $wire->record('good') ], 10, "$name: one that comes later");

		# (What answers too late has taken it.)
		is($wire->sandbox->accepted($bad{$name}), 0, "$name: itself has not been taken") if $name ne 'slow';
	};
}

subtest 'they are given up' => sub {
	my $dead;
	$wire->traffic_until(
		sub { $dead = $wire->dead; !grep { !$dead->{$_} } values %bad },
		'each is in dead_letter in the end', patience());
	foreach my $kind (@kinds)
	{
		my ($name, undef, $status) = @$kind;
		my $letter = $dead->{ $bad{$name} } // {};
		is($letter->{http_status}, $status, "$name: http_status");
		like($letter->{error} // '', qr/./, "$name: error");
		cmp_ok($letter->{attempts} // 0, '>=', $name =~ /^e4(?:00|13)$/ ? 2 : 4, "$name: attempts");
		my $came = $wire->sandbox->history->{ $bad{$name} }{came};
		cmp_ok($letter->{attempts} // 0, '<=', $came, "$name: no more than it was sent ($came times)");
	}
	is(scalar keys %$dead, scalar @kinds, 'and nothing else');
	poll_status($wire->node, 'postgres', { state => 'idle', pending => 0 }, 'nothing is left');
};

$wire->healed('the others');
$wire->clean('in the end');
$wire->node->stop;
done_testing();
