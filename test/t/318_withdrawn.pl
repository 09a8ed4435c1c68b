# What is taken out of the outbox while the API is away is not sent when it is
# back, and does not count as pending, which "status" knows within a second: a
# DELETE, a TRUNCATE (301_forget.pl has forget()).  The others are sent.  So it is
# with what is in flight at that moment, as soon as its request has ended, and with
# what is aside.

use OnsideTest;
use OnsideWire;

my $wire = OnsideWire->new('main');
my $node = $wire->node;

# "status" promises that within a second; the bound is for a slow machine.
sub pending_soon
{
	my ($what) = @_;
	my $both = q{SELECT (SELECT pending FROM onside_attribution.status), count(*), count(*) FILTER (WHERE event_name = 'gone')
		FROM onside_attribution.pending};
	my $seen;
	my $ok = wait_until(sub { ($seen = $wire->sql($both)) =~ /^(\d+)\|\1\|0$/ }, 10);
	ok($ok, "$what: status.pending is what is left") or diag("status.pending, pending, withdrawn ones among them: $seen");
	return;
}

my %away = (
	'a 503' => { status => 503 },
	'refusals' => { status => 400 },
	'429' => { status => 429, headers => { 'Retry-After' => '5' } });

foreach my $how (sort keys %away)
{
	subtest "DELETE, $how" => sub {
		$wire->behave($away{$how});
		my @kept = $wire->record('good', 150);
		my @gone = $wire->record('gone', 150);
		push @kept, $wire->record('good', 10);
		$wire->sandbox->wait_requests($wire->sandbox->report->{requests} + 3, 10) if $how ne '429';
		my $elsewhere = $wire->sql("SELECT count(*) FROM onside_attribution.dead_letter WHERE event_name = 'gone'");
		$wire->sql("DELETE FROM onside_attribution.outbox WHERE event_name = 'gone'");
		pending_soon("$how: deleted");
		$wire->behave;
		$wire->arrive(\@kept, patience(), "$how: the others");
		wait_for_flush($node, 'postgres', "$how: flush");
		my $accepted = $wire->sandbox->accepted(@gone);
		cmp_ok($accepted, '<=', $elsewhere, "$how: no deleted one is sent, but from dead_letter");
		$wire->sql("DELETE FROM onside_attribution.dead_letter WHERE event_name = 'gone'");
		$wire->healed($how);
	};
}

# Whatever becomes of the request that an event is in which is deleted meanwhile;
# while so much else has failed that its turn would not come for long.
my %ends = (
	'accepted' => {},
	'a 503' => { status => 503 },
	'a refusal' => { status => 400 },
	'429' => { status => 429, headers => { 'Retry-After' => '1' } });

foreach my $end (sort keys %ends)
{
	subtest "DELETE in flight, then $end" => sub {
		my $long = { event_name => 'gone' };
		my $before = $wire->sandbox->report->{requests};
		$wire->behave(on($long, { %{ $ends{$end} }, delay => 1 }), { status => 503 });
		my @kept = $wire->record('good', 300);
		$wire->sandbox->wait_requests($before + 150, 60);
		my @gone = $wire->record('gone', 2);
		ok(wait_until(sub { $wire->sandbox->used }), 'one is on its way');
		$wire->sql("DELETE FROM onside_attribution.outbox WHERE event_name = 'gone'");
		pending_soon("in flight, then $end");
		$wire->behave;
		$wire->arrive(\@kept, patience(), "$end: the others");
		wait_for_flush($node, 'postgres', "$end: flush");
		pending_soon("in flight, then $end, at the end");
		$wire->sql("DELETE FROM onside_attribution.dead_letter WHERE event_name = 'gone'");
		$wire->healed($end);
	};
}

# What a new worker knows of events aside is where they are and nothing else.
subtest 'aside' => sub {
	my $n = 6;
	$wire->behave(on({ event_name => 'failing' }, { status => 500 }));
	my @ids = $wire->record('failing', $n);
	$wire->traffic_until(sub { (eval { scalar keys %{ $wire->aside } } // 0) == $n }, 'all are aside', 60);
	$wire->behave({ status => 503 });
	my $pid = worker_pid($node, 'postgres');
	$wire->sql("SELECT pg_terminate_backend($pid, 60000)");
	poll_worker($node, 'postgres', $pid);
	while ($n-- > 3)
	{
		my $requests = $wire->sandbox->report->{requests};
		$wire->sandbox->wait_requests($requests + 20, 30);
		my $gone = shift @ids;
		$wire->sql("DELETE FROM onside_attribution.aside WHERE event_id = '$gone'");
		pending_soon("$n of those aside");
		$wire->sandbox->wait_requests($requests + 60, 30);
		pending_soon("$n of those aside, all tried again");
	}
	$wire->behave;
	$wire->arrive(\@ids, patience(), 'aside: the others');
	wait_for_flush($node, 'postgres', 'aside: flush');
};

subtest 'TRUNCATE' => sub {
	$wire->behave({ status => 503 });
	my @gone = $wire->record('gone', 300);
	$wire->sandbox->wait_requests($wire->sandbox->report->{requests} + 3, 10);
	$wire->sql('TRUNCATE onside_attribution.outbox');
	pending_soon('truncated');
	is($wire->said->{pending}, 0, 'truncated: which is nothing');
	$wire->behave;
	$wire->arrive([ $wire->record('good', 10) ], 20, 'what comes later');
	wait_for_flush($node, 'postgres', 'truncated: flush');
	is($wire->sandbox->accepted(@gone), 0, 'truncated: none is sent');
	is(scalar keys %{ $wire->dead }, 0, 'truncated: none is a dead letter');
	poll_status($node, 'postgres', { state => 'idle', pending => 0, oldest_pending_age => undef }, 'truncated: idle');
};

$wire->healed('in the end');
$wire->clean('in the end');
$node->stop;
done_testing();
