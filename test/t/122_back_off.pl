# One failing endpoint is one back-off, however many events wait: once a hundred
# requests have failed, and a hundred events that had never been sent, two small
# probes after each wait, and full speed again when it is well; after a 429 with
# fewer requests under way, until they have grown back.
# pause, resume and "enabled" count in the middle of it, too.

use OnsideTest;
use OnsideFault;

my ($node, $sandbox) = sending_node();
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);

sub sql { return $node->safe_psql('postgres', $_[0]) }
sub requests { return $sandbox->report->{requests} }

# Waits for n more requests, so many that what was under way before is over.
sub wait_for_more
{
	my ($n, $what) = @_;
	ok($sandbox->wait_requests(requests() + $n, patience())->{reached}, $what);
	return;
}

# For each request from the n-th on, how many others were under way when it
# began, in front of answers that take so many seconds.  (When an answer was out
# is noted a little later than the client knows.)
sub beside
{
	my ($from, $delay) = @_;
	my @time = map { $_->{time} } @{ $sandbox->requests };
	my @beside;
	foreach my $i ($from .. $#time)
	{
		push @beside,
		  scalar grep { $_ != $i && $time[$_] <= $time[$i] && $time[$_] + $delay > $time[$i] } 0 .. $#time;
	}
	return @beside;
}

# ---------------------------------------------------------------------------
# Many batches, one back-off
# ---------------------------------------------------------------------------

$fault->configure(batch_max_events => 10, retry_initial_delay => '500ms', retry_max_delay => '1s');
poll_status($node, 'postgres', { state => 'idle' }, 'many batches: begins idle');
my $began;
$fault->survived(
	'many batches',
	begin => sub { $began = requests(); $sandbox->behave({ status => 500, delay => 0.02 }) },
	events => 500,
	while => { state => 'backing_off', pending => 500 },
	during => sub {
		ok($sandbox->wait_requests($began + 210, patience())->{reached}, 'many batches: they are looked into');
		my $from = requests() + 4;
		wait_for_more(10, 'many batches: probes go on');
		is(scalar(grep { $_ > 1 } beside($from, 0.02)), 0, 'many batches: two probes at a time');
		my @probes = @{ $sandbox->requests };
		@probes = @probes[ $from .. $#probes ];
		is(scalar(grep { $_->{events} > 10 } @probes), 0, 'many batches: small probes');

		# Two after each wait, which is a tenth of a second on average.
		cmp_ok(scalar(@probes) / ($probes[-1]{time} - $probes[0]{time}), '<', 40,
			'many batches: few a second');

		# Two probes, and full speed behind them: the events would take minutes
		# at the pace of the probes.
		$sandbox->behave({ delay => 0.02 });
		my $answered = requests();
		wait_for_flush($node, 'postgres', 'many batches: it recovers');
		my @after = beside($answered, 0.02);
		cmp_ok($after[0], '<=', 2, 'many batches: two probes when the API is back');
		is((sort { $b <=> $a } @after)[0], 3, 'many batches: four requests at once after it');
	},
	end => sub { $sandbox->behave });
$fault->configure(retry_initial_delay => '20ms', retry_max_delay => '200ms');

# ---------------------------------------------------------------------------
# Fewer in flight after a 429, and back
# ---------------------------------------------------------------------------

$sandbox->behave({ delay => 0.03 });
my $from = requests();
$fault->record(1000, '{}');
$fault->settled('before the 429');
is((sort { $b <=> $a } beside($from, 0.03))[0], 3, 'before the 429: four at once');

# Held back until all of it is there, so that only full batches are sent.
sql("SELECT onside_attribution.pause('until all is recorded')");
poll_status($node, 'postgres', { state => 'paused', in_flight => 0 }, 'the 429: paused');
$fault->record(1000, '{}');
$from = requests();
$sandbox->behave({ skip => 20, status => 429, times => 1, delay => 0.03, headers => { 'Retry-After' => '1' } },
	{ delay => 0.03 });
sql('SELECT onside_attribution.resume()');
$fault->settled('the 429');

my @requests = @{ $sandbox->requests };
my ($refused) = grep { $requests[$_]{status} == 429 } $from .. $#requests;
ok($refused, 'the 429: it has come');
my $ended = $requests[$refused]{time} + 0.03;

# What was on its way at the 429 is over when the second is.
my ($probe) = grep { $requests[$_]{time} > $ended + 0.9 } $refused .. $#requests;
my @beside = beside($probe, 0.03);
my $probe_ended = $requests[$probe]{time} + 0.03;
cmp_ok(scalar(grep { $_ > $probe && $requests[$_]{time} < $probe_ended } 0 .. $#requests),
	'<=', 2, 'the 429: no more than two at once, and one after the first');
cmp_ok((sort { $b <=> $a } @beside[ 1 .. 3 ])[0], '<=', 2, 'the 429: then fewer than four at once');
is((sort { $b <=> $a } @beside)[0], 3, 'the 429: in the end four at once again');
is(scalar(grep { $_->{events} > 10 } @requests[ $from .. $#requests ]), 0, 'the 429: no batch has grown');

# ---------------------------------------------------------------------------
# Flapping
# ---------------------------------------------------------------------------

foreach my $rules (
	[ 'with all kinds of failure',
		map { ({ status => $_, times => 1 }, { times => 2 }) } 429, 500, 408, 502, 401, 404, 503, 200, 302, 425 ],
	[ 'by resets', { fault => 'flap', times => 80 } ])
{
	my ($how, @rules) = @$rules;
	my $duplicates = $sandbox->report->{duplicates};
	my $before = requests();
	$fault->survived(
		"flapping $how",
		begin => sub { $sandbox->behave(@rules) },
		events => 400,
		end => sub { wait_for_flush($node, 'postgres', "flapping $how: it gets through") });
	is($sandbox->report->{duplicates}, $duplicates, "flapping $how: nothing came twice");
	cmp_ok($sandbox->rules->[-1]{used}, '>', 0, "flapping $how: to the end");
	note("flapping $how: " . (requests() - $before) . ' requests');
}
$sandbox->behave;

# ---------------------------------------------------------------------------
# pause, resume and enabled, while it backs off and while it drains
# ---------------------------------------------------------------------------

my %stop = (
	pause => [
		sub { sql(q{SELECT onside_attribution.pause('because')}) },
		{ state => 'paused', state_reason => 'because' },
		sub { sql('SELECT onside_attribution.resume()') }
	],
	'enabled = off' => [
		sub { $fault->configure(enabled => 'off') },
		{ state => 'disabled', state_reason => qr/enabled/ },
		sub { $fault->configure(enabled => 'on') }
	]);

# Nothing is sent for a second, which is long here.
sub silent_ok
{
	my ($case) = @_;
	my $before = requests();
	is(sql(q{SELECT onside_attribution.flush('1 s')}), 'f', "$case: flush returns false");
	is(requests(), $before, "$case: nothing is sent");
	return;
}

foreach my $how (sort keys %stop)
{
	my ($stop, $stopped, $go_on) = @{ $stop{$how} };
	my %stopped = (%$stopped, in_flight => 0, next_attempt_at => undef);

	# The API stays away, and then comes back meanwhile.
	$fault->survived(
		"$how while backing off",
		begin => sub { $sandbox->behave({ status => 503 }) },
		while => { state => 'backing_off', pending => 3 },
		during => sub {
			$stop->();
			poll_status($node, 'postgres', { %stopped, pending => 3 }, "$how while backing off: state");
			silent_ok("$how while backing off");
			$fault->record(2);
			poll_status($node, 'postgres', { %stopped, pending => 5 }, "$how while backing off: it counts on");
			$go_on->();
			poll_status($node, 'postgres',
				{ state => 'backing_off', state_reason => qr/fails/, next_attempt_at => qr/./ },
				"$how while backing off: and goes on doing so");
			$stop->();
			poll_status($node, 'postgres', \%stopped, "$how while backing off, again: state");
			$sandbox->behave;
			silent_ok("$how while backing off, the API is back");
			$go_on->();
		});

	# A wait of an hour ends with it.
	$fault->survived(
		"$how in a long wait",
		begin => sub { $sandbox->behave({ status => 429, headers => { 'Retry-After' => '3000' }, times => 1 }) },
		while => { state => 'backing_off', next_attempt_at => qr/./ },
		during => sub {
			$stop->();
			poll_status($node, 'postgres', \%stopped, "$how in a long wait: state");
			$go_on->();
		});

	my $duplicates = $sandbox->report->{duplicates};
	my $before = requests();
	$fault->survived(
		"$how while draining",
		begin => sub {
			sql(q{SELECT onside_attribution.pause()});
			poll_status($node, 'postgres', { state => 'paused', in_flight => 0 },
				"$how while draining: held back");
			$sandbox->behave({ delay => 0.05 });
		},
		events => 1000,
		during => sub {
			sql('SELECT onside_attribution.resume()');
			ok($sandbox->wait_requests($before + 8, patience())->{reached},
				"$how while draining: it has begun");
			$stop->();
			my $row = poll_status($node, 'postgres', \%stopped, "$how while draining: state");
			silent_ok("$how while draining");
			cmp_ok($row->{pending}, '>', 0, "$how while draining: not all is sent");
			cmp_ok($row->{pending}, '<', 1000, "$how while draining: but some");
			$go_on->();
			$sandbox->behave;
		});
	is($sandbox->report->{duplicates}, $duplicates, "$how while draining: nothing came twice");
}

$node->stop;
done_testing();
