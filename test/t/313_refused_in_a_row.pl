# However many events in a row the API refuses, those behind them arrive: 26 and
# 200 that come one by one, and a backlog of 600 (30,000 with
# ONSIDE_TEST_SCALE=full) that it refuses for their age.  The refused ones end in
# dead_letter once something is accepted after them.

use OnsideTest;
use OnsideWire;

my $wire = OnsideWire->new('main');
my $no = { status => 400, body => '{"error": "no"}' };
$wire->behave(on({ event_name => 'bad' }, $no), on({ older_than => '2026-01-01T00:00:00Z' }, $no));

my %bad;
foreach my $case (
	[ '26 one by one, the first events ever', 'one_by_one', 26 ],
	[ '200 one by one', 'one_by_one', 200 ],
	[ 'a backlog', 'record', scale(600, 30_000), 'old', q{timestamptz '2020-06-01 12:00Z'} ])
{
	my ($name, $how, $n, $event, $datetime) = @$case;
	subtest $name => sub {
		my $seen = $wire->sandbox->report->{requests};
		my @bad = $wire->$how($event // 'bad', $n, $datetime);
		$bad{$_} = 1 foreach @bad;

		# They are being refused by now, for all that can be seen.
		ok($wire->sandbox->wait_requests($seen + 10, patience())->{reached}, "$name: they are tried");
		$wire->arrive([ $wire->one_by_one('good', 5), $wire->record('good', 50) ], 20, "$name: good ones behind them, round $_") foreach 1 .. 3;

		$wire->traffic_until(sub { $wire->sql('SELECT count(*) FROM onside_attribution.dead_letter') == keys %bad },
			"$name: they are in dead_letter", patience());
		my $dead = $wire->dead;
		is(scalar(grep { !$dead->{$_} } @bad), 0, "$name: each of them");
		is(scalar(grep { ($_->{http_status} // 0) != 400 || $_->{error} !~ /no/ || $_->{attempts} < 2 } values %$dead),
			0, "$name: refused twice, with the API's words, and nothing else");
		poll_status($wire->node, 'postgres', { state => 'idle', pending => 0 }, "$name: nothing is left");
	};
}

# An event that was recorded twice, as replay() does, is one dead letter, though both
# are given up in one moment.
subtest 'the same ones twice' => sub {
	my @bad = split /\n/, $wire->sql(<<'SQL');
WITH ids AS MATERIALIZED (SELECT gen_random_uuid() AS id FROM generate_series(1, 40))
SELECT DISTINCT onside_attribution.track('bad', '8f14e45f-ceea-467f-a0e6-2f0b3c1d9a11', '{}', '2026-01-01 00:00Z', id)
FROM ids, generate_series(1, 2)
SQL
	my $ids = join ',', map { "'$_'" } @bad;
	my $rows = "SELECT count(*), count(DISTINCT event_id) FROM onside_attribution.dead_letter WHERE event_id IN ($ids)";
	is(scalar(@bad), 40, '40 events');
	$wire->traffic_until(sub { $wire->sql($rows) =~ /\|40$/ && status($wire->node, 'postgres')->{pending} == 0 }, 'they are in dead_letter', patience());
	is($wire->sql($rows), '40|40', 'once each');
	$wire->sql("DELETE FROM onside_attribution.dead_letter WHERE event_id IN ($ids)");
};

$wire->healed('in the end');
$wire->clean('in the end');
$wire->node->stop;
done_testing();
