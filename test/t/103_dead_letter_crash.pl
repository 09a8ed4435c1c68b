# The cursor moves past a dead letter in the transaction that writes it: a
# crash of the server or of the worker at any moment around it loses no event
# and makes no second dead letter.  What comes again comes with the same bytes.

use OnsideTest;

my ($node, $sandbox) = sending_node();
my $worker = worker_pid($node, 'postgres');
$sandbox->poison('"bad"');

my (@good, @bad);

# 200 events, five of them bad, in a few transactions.
sub record
{
	foreach my $places ([3], [ 40, 41 ], [17], [50])
	{
		my ($good, $bad) = track_some_bad($node, 'postgres', 50, @$places);
		push @good, @$good;
		push @bad, @$bad;
	}
	return;
}

# Dead letters, as far as the server answers.
sub dead_letters
{
	my ($ret, $out) = $node->psql('postgres', 'SELECT count(*) FROM onside_attribution.dead_letter');
	return $ret == 0 ? $out : 0;
}

# Each crash is an end of the server's processes at a moment when it is sure
# that the events had been committed before.
my %crash = (
	'the server is stopped with -m immediate' => sub {
		$node->stop('immediate');
		$node->start;
	},
	'the worker is killed' => sub {
		kill 'KILL', $worker or die "could not kill worker $worker: $!";
	});

# The moments: as soon as a dead letter can be seen, and after so many requests
# of the search for the bad ones.
my @moments = map { { requests => $_ } } 1, 5, 12, 20;
unshift @moments, {}, {};

foreach my $crash (sort keys %crash)
{
	foreach my $moment (@moments)
	{
		my $case = "$crash "
		  . ($moment->{requests} ? "after $moment->{requests} requests" : 'when a dead letter appears');
		my $requests = $sandbox->report->{requests};
		my $dead = @bad;

		record();
		if ($moment->{requests})
		{
			$sandbox->wait_requests($requests + $moment->{requests}, patience());
		}
		else
		{
			ok(wait_until(sub { dead_letters() > $dead }, patience(), 0.001),
				"$case: there is one");
		}
		$crash{$crash}();
		$worker = watch_worker($node, 'postgres', $worker);

		wait_for_flush($node, 'postgres', "$case: all is settled");
		arrived_ok($sandbox, \@good, "$case: what is good has arrived");
		is( $node->safe_psql('postgres',
				'SELECT event_id FROM onside_attribution.dead_letter ORDER BY 1'),
			join("\n", sort @bad),
			"$case: what is bad is in dead_letter, once");
		is($node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.pending'),
			0, "$case: nothing is pending");
	}
}

my $row = poll_status($node, 'postgres', { state => 'idle', pending => 0 }, 'idle in the end');
is($row->{dead_lettered}, scalar @bad, 'the counter has come through all of it');
is($row->{worker_pid}, $worker, 'and the worker is the last one');

$node->stop;
done_testing();
