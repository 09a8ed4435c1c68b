# A dead letter gets another chance by itself: 1 min, 10 min and 1 h after a
# failure, then daily for a week, then only by a person.  Of a group of alike
# ones a few are tried first; if they are taken, the others follow, and only the
# truly bad ones stay.  A group of bad ones costs ten requests and not one each.

use OnsideTest;
use OnsideWire;

my $wire = OnsideWire->new('main');
my $node = $wire->node;

# Moves the next chance of all these to now.  resume() has the worker look.
sub due
{
	my ($where) = @_;
	$wire->sql("UPDATE onside_attribution.dead_letter SET retry_at = clock_timestamp() WHERE $where; SELECT onside_attribution.resume()");
	return;
}

# Dead letters as they are after a while with a wrong API.
sub letters
{
	my ($name, $n, $retry_at) = @_;
	return split /\n/, $wire->sql(<<SQL);
INSERT INTO onside_attribution.dead_letter (event_id, event_name, payload, event_datetime,
    installation_id, http_status, error, attempts, recorded_at, failed_at, retry_at)
SELECT gen_random_uuid(), '$name', jsonb_build_object('i', i), now(), gen_random_uuid(), 400, 'no', 2,
    now() - interval '2 min', now() - interval '1 min', $retry_at FROM generate_series(1, $n) i
RETURNING event_id
SQL
}

sub count_dead { return $wire->sql("SELECT count(*) FROM onside_attribution.dead_letter WHERE $_[0]") }

subtest 'when' => sub {
	$wire->behave(on({ event_name => 'bad' }, { status => 400 }));
	my ($bad) = $wire->record('bad');
	$wire->traffic_until(sub { $wire->dead->{$bad} }, 'it is in dead_letter');
	my $gap = "extract(epoch FROM retry_at - failed_at)";
	my $letter = "onside_attribution.dead_letter WHERE event_id = '$bad'";

	# Each in seconds, and how much it may be off.
	my @gaps = (60, 600, 3600, (86400) x 7);
	foreach my $i (0 .. $#gaps)
	{
		my $found = $wire->sql("SELECT round($gap) FROM $letter");
		ok($found ne '' && abs($found - $gaps[$i]) <= $gaps[$i] * 0.1 + 2, "after failure " . ($i + 1) . ": in $gaps[$i] s")
		  or diag("it is in '$found' s");

		# The last chance counts only if something was accepted since the failure.
		$wire->record('good');
		wait_for_flush($node, 'postgres', 'others are accepted meanwhile');
		my $before = $wire->sql("SELECT failed_at, attempts FROM $letter");
		due("event_id = '$bad'");
		$wire->traffic_until(
			sub { $wire->sql("SELECT failed_at, attempts FROM $letter") !~ /^(?:\Q$before\E)?$/ },
			"chance " . ($i + 1) . ': it has been tried, and has failed') or return;
	}
	is($wire->sql("SELECT retry_at IS NULL FROM $letter"), 't', 'then only by a person');
	$wire->behave;
	$wire->record('good', 5);
	wait_for_flush($node, 'postgres', 'others are accepted');
	is(count_dead("event_id = '$bad'"), 1, 'it stays');
	is($wire->sql("SELECT onside_attribution.retry_dead_letters('{$bad}')"), 1, 'a person puts it back');
	$wire->arrive([$bad], 20, 'which has it delivered');
};

subtest 'nothing that was never sent, or is not due' => sub {
	$wire->behave;
	$wire->sandbox->reset;
	my @later = letters('later', 20, "now() + interval '1 h'");
	my @never = letters('never', 20, 'NULL');
	my @due = letters('due', 20, 'now()');
	$wire->sql('SELECT onside_attribution.resume()');
	$wire->record('good');
	$wire->arrive(\@due, patience(), 'those that are due');
	is($wire->sandbox->accepted(@later, @never), 0, 'no others');

	# The API has those that were due a moment before they are taken out.
	wait_until(sub { count_dead('true') <= 40 });
	is(join(' ', sort keys %{ $wire->dead }), join(' ', sort @later, @never), 'which are where they were');
	$wire->sql('DELETE FROM onside_attribution.dead_letter');
};

subtest 'a group of which few are bad' => sub {
	$wire->sandbox->reset;
	$wire->{good} = [];
	my @group = letters('alike', 300, 'now()');
	my @bad = @group[ 3, 50, 128, 200, 298 ];
	my %bad = map { $_ => 1 } @bad;
	my @healthy = grep { !$bad{$_} } @group;
	$wire->behave(on({ event_id => \@bad }, { status => 400 }));
	$wire->sql('SELECT onside_attribution.resume()');
	$wire->record('good');
	$wire->arrive(\@healthy, patience(), 'a group of 300, five of them bad: the others');
	ok(wait_until(sub { count_dead('true') == 5 }), 'the five stay');
	is(join(' ', sort keys %{ $wire->dead }), join(' ', sort @bad), 'just those');
	cmp_ok($wire->sandbox->report->{requests}, '<=', 320, 'one request each, at most');
	$wire->sql('DELETE FROM onside_attribution.dead_letter');
};

subtest 'a group of bad ones' => sub {
	$wire->sandbox->reset;
	my @group = letters('alike', 2000, 'now()');
	$wire->behave(on({ event_name => 'alike' }, { status => 400 }));
	$wire->sql('SELECT onside_attribution.resume()');
	my $tried = 0;
	$wire->traffic_until(
		sub {
			my $history = $wire->sandbox->history;
			$tried = grep { $history->{$_} } @group;
			return $tried >= 10;
		}, 'a few are tried');

	# Somebody else's purchases go meanwhile, and for a while after.
	$wire->arrive([ $wire->one_by_one('good', 20) ], 20, 'others');
	my $history = $wire->sandbox->history;
	$tried = grep { $history->{$_} } @group;
	cmp_ok($tried, '<=', 12, "a few only ($tried)");
	is(scalar(grep { $history->{$_} && $history->{$_}{came} > 1 } @group), 0, 'once each');
	is(count_dead('true'), 2000, 'all are still there');
	my $untouched = sub { count_dead(q{attempts = 2 AND failed_at < recorded_at + interval '90 s'}) };
	ok(wait_until(sub { $untouched->() <= 2000 - $tried }), 'what was tried is written');
	is($untouched->(), 2000 - $tried, 'nothing is for those not tried');
	$wire->sql('DELETE FROM onside_attribution.dead_letter');
};

$wire->clean('in the end');
$node->stop;
done_testing();
