# Six nasty days: all kinds of poison, hardly anything but poison, sick connections,
# outages that come and go and answers at random, hanging requests, and all of it with
# restarts.  Whatever mixture is drawn, no good event is lost, dead in the end, or
# held up for long by what is bad; what is bad is not taken and not lost; no request
# is out of bounds, no event twice in flight, no process crashes.
#
# ONSIDE_TEST_SEED=n draws the same days, ONSIDE_TEST_DAYS=name,name some of them,
# ONSIDE_TEST_SECONDS how long each is (30; 60 with ONSIDE_TEST_SCALE=full).

use JSON::PP ();
use Time::HiRes ();
use OnsideTest;
use OnsideWire;

my $seconds = $ENV{ONSIDE_TEST_SECONDS} // scale(30, 60);
my $true = JSON::PP::true();

my %answer = (
	(map { ("e$_" => { status => $_ }) } 400, 413, 403, 404, 422, 500, 502, 503),
	closed => { fault => 'close_no_answer' },
	reset => { fault => 'reset_after_upload' },
	cut => { fault => 'truncated_body' },
	garbage => { fault => 'garbage' },
	hang => { fault => 'black_hole' });

# Poison by name, as many kinds as are asked for.
sub poison
{
	return map { on({ event_name => $_ }, $answer{$_}) } @_;
}

# The weather that comes and goes.
my @storms = (
	sub { { status => 503 } },
	sub { { status => 503, headers => { 'Retry-After' => '1.5' } } },
	sub { { status => 429, headers => { 'Retry-After' => '1' } } },
	sub { { status => 400 } },
	sub { { status => 401 } },
	sub { { status => 404 } },
	sub { { fault => 'black_hole' } },
	sub { { fault => 'close_no_answer', accept => $true } },
	sub { { fault => 'reset_before_read' } },
	sub { { one_of => [ { status => 400 }, { status => 413 }, { status => 500, delay => [ 0, 0.2 ] } ], seed => int(rand(1 << 20)) } });

sub storm { return $storms[ int rand @storms ]->() }

# "rules" are asked whenever the weather changes, and rule over what is poison, unless
# "poison_first"; "bad" are the names that are poison, of %answer; "every" is how many
# seconds there are between two changes, "events" the most that a burst has; "share"
# of the bursts are poison, of at most "block" events.
my @days = (
	{ name => 'all_kinds_of_poison', bad => [ sort keys %answer ], events => 60 },
	{ name => 'mostly_poison', bad => [qw(e400 e413 e500 closed)], share => 0.8, block => 20, events => 10 },
	{ name => 'sick_connections', every => 3, events => 40,
		rules => sub { (on({ connection_every => 2 + int rand 3 }, $answer{ (qw(e400 e404 e503 e403 closed e413))[ int rand 6 ] }), sick($answer{e503})) } },
	{ name => 'storms_and_flaky', every => 5, events => 50,
		rules => sub { rand() < 0.4 ? storm() : { chance => 0.3, seed => int rand(1 << 20), one_of => [
			{ status => 500 }, { status => 400 }, { status => 413 }, { status => 404 }, { fault => 'close_no_answer', accept => $true },
			{ fault => 'reset_after_upload' }, { delay => [ 0, 0.7 ] }, { status => 429 } ] } } },
	{ name => 'slow_and_hanging', every => 6, events => 30, bad => [qw(hang hang e500)], share => 0.03, poison_first => 1,
		rules => sub { { delay => [ 0, 0.4 ], seed => int rand(1 << 20) } } },
	{ name => 'restarts_in_all_of_it', every => 3, events => 40, bad => [qw(e400 e500 closed e413 hang)], restarts => 1,
		rules => sub { rand() < 0.4 ? storm() : () } });

sub live
{
	my ($day, $seed, $i) = @_;
	srand($seed + $i);
	my $name = $day->{name};
	my $wire = OnsideWire->new($name, conf => <<'CONF');
onside_attribution.request_timeout = '1s'
CONF
	my $node = $wire->node;
	my @names = @{ $day->{bad} // [] };
	my @poison = poison(@names);
	my (@bad, $story);
	my $from = Time::HiRes::time();
	my $change = 0;

	while (Time::HiRes::time() < $from + $seconds)
	{
		if (Time::HiRes::time() >= $change)
		{
			my @rules = $day->{rules} ? $day->{rules}->() : ();
			$wire->behave($day->{poison_first} ? (@poison, @rules) : (@rules, @poison));
			$story .= sprintf "  %5.1f s: %s\n", Time::HiRes::time() - $from, JSON::PP->new->canonical->encode(\@rules);
			$change = Time::HiRes::time() + ($day->{every} // $seconds);
			if ($day->{restarts})
			{
				my $pid = poll_worker($node, 'postgres');
				my $how = (qw(restart crash TERM KILL none))[ int rand 5 ];
				$node->restart if $how eq 'restart';
				$node->stop('immediate'), $node->start if $how eq 'crash';
				kill $how, $pid if $how =~ /TERM|KILL/;
				watch_worker($node, 'postgres', $how =~ /TERM|KILL/ ? $pid : undef);
			}
		}
		if (@names && rand() < ($day->{share} // 0.15))
		{
			my $which = $names[ int rand @names ];
			push @bad, $wire->record($which, 1 + int rand($day->{block} // 2));
		}
		else
		{
			$wire->record('good', 1 + int rand $day->{events});
		}

		# The pace of the shop, which is no wait for anything.
		Time::HiRes::sleep(rand 0.2);
	}

	# The weather clears; what is poison stays so.  Good ones do not wait for it.
	$wire->behave(@poison);
	my ($last) = $wire->record('good');
	$wire->arrive([$last], 30, "$name: a purchase after it");

	# What was refused meanwhile gets its next chance in a minute, or now.
	my $chance = 'UPDATE onside_attribution.dead_letter SET retry_at = clock_timestamp() WHERE retry_at > clock_timestamp(); SELECT onside_attribution.resume()';
	$wire->sql($chance);
	$wire->healed($name) or diag("seed $seed; the day was:\n$story");

	my %known = map { $_ => 1 } split /\n/, $wire->sql('SELECT event_id FROM onside_attribution.pending');
	%known = (%known, %{ $wire->dead }, %{ (eval { $wire->aside }) // +{} });
	is(scalar(grep { !$known{$_} } @bad), 0, "$name: each bad one is pending, aside or in dead_letter");
	is($wire->sandbox->accepted(@bad), 0, "$name: none of them was taken") unless $name =~ /flaky|restarts/;

	# And when nothing is poison any more, nothing is left.
	$wire->behave;
	$wire->record('good');
	# Again and again: what is in flight may fail yet, and be put off anew.
	ok(wait_until(sub {
		$wire->sql($chance);
		return $wire->sql('SELECT count(*) FROM onside_attribution.dead_letter') == 0;
	}, patience()), "$name: dead_letter is empty");
	$wire->arrive(\@bad, patience(), "$name: the bad ones, when the API takes them,");
	wait_for_flush($node, 'postgres', "$name: flush");
	poll_status($node, 'postgres', { state => 'idle', pending => 0 }, "$name: idle");
	arrived_ok($wire->sandbox, [ @bad, @{ $wire->{good} } ], "$name: what was recorded has arrived, and nothing else");
	# A worker that has ended leaves its requests to the API, and the next one cannot know.
	$wire->clean($name, crashes => $day->{restarts}, $day->{restarts} ? (twice_in_flight => 1) : ());
	my $report = $wire->sandbox->report;
	note("$name: " . join ', ', map { "$_ $report->{$_}" } qw(distinct duplicates requests connections));
	$node->stop;
	return;
}

my $seed = $ENV{ONSIDE_TEST_SEED} // int(rand(1 << 30));
my %only = map { $_ => 1 } split /,/, $ENV{ONSIDE_TEST_DAYS} // join ',', map { $_->{name} } @days;
note("seed $seed: ONSIDE_TEST_SEED=$seed draws the same days");
foreach my $i (grep { $only{ $days[$_]{name} } } 0 .. $#days)
{
	subtest $days[$i]{name} => sub { live($days[$i], $seed, $i) };
}
done_testing();
