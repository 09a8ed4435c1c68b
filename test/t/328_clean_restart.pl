# A worker that ends in order leaves little to be repeated: what holds the cursor
# back, an event that fails or hangs while others are accepted, goes aside first.
# And what was in the worker's way is not told when it has gone.

use OnsideTest;
use OnsideWire;

my $wire = OnsideWire->new('main', conf => "onside_attribution.request_timeout = '6s'\n");
my $node = $wire->node;

my %kinds = (
	'500' => { status => 500 },
	'400' => { status => 400 },
	'429' => { status => 429 },
	'closed' => { fault => 'close_no_answer' },
	'hangs' => { fault => 'black_hole' });
my %ends = (
	'terminated' => sub {
		my $pid = worker_pid($node, 'postgres');
		$wire->sql("SELECT pg_terminate_backend($pid, 60000)");
		poll_worker($node, 'postgres', $pid);
	},
	'stopped' => sub { $node->restart; poll_worker($node, 'postgres') });

# Each kind by itself, and all at once.
foreach my $case ((map { [ $_, 'terminated', $_ ] } sort keys %kinds), [ 'all kinds', 'stopped', sort keys %kinds ])
{
	my ($what, $end, @kinds) = @$case;
	my $name = "$what, $end";
	$wire->behave(map { on({ event_name => "bad $_" }, $kinds{$_}) } @kinds);
	my @bad = map { $wire->record("bad $_") } @kinds;
	ok(wait_until(sub { !grep { !$_->{used} } @{ $wire->sandbox->rules } }), "$name: what is bad was sent");

	# One request in flight for a second.
	my @good;
	my $until = time() + 2;
	while (time() < $until)
	{
		push @good, $wire->record('good', 50);
		$wire->arrive([ $good[-1] ], 20, "$name: good ones arrive") or last;
	}
	my $before = $wire->sandbox->report->{duplicates};
	$ends{$end}->();
	my @later = $wire->record('good', 5);
	$wire->arrive(\@later, 20, "$name: and later ones");
	my $repeated = $wire->sandbox->report->{duplicates} - $before;
	cmp_ok($repeated, '<=', 50, "$name: not all of it is repeated");
	note("$name: $repeated of " . scalar(@good) . ' came again');
	$wire->behave;

	# What was refused may be a dead letter by now, whose chance comes in a minute.
	$wire->sql('UPDATE onside_attribution.dead_letter SET retry_at = clock_timestamp(); SELECT onside_attribution.resume()');
	$wire->arrive(\@bad, patience(), "$name: what is bad, when the API takes it");
	wait_for_flush($node, 'postgres', "$name: flush");
	$wire->healed($name);
}

# aside is locked until the event that was to go there has been accepted.
{
	$wire->behave(on({ event_name => 'bad' }, { status => 500 }));
	my $session = $node->background_psql('postgres');
	$session->query_safe('BEGIN; LOCK TABLE onside_attribution.aside');
	my @bad = $wire->record('bad');
	$wire->traffic_until(sub { ($wire->said->{state_reason} // '') =~ /could not set events aside/ }, 'aside is locked', 60);
	$wire->behave;
	$wire->arrive(\@bad, patience(), 'aside is locked: the event is accepted');
	$session->query_safe('COMMIT');
	$session->quit;
	poll_status($node, 'postgres', { state => 'idle', state_reason => undef }, 'nothing is in the way any more');
	is($wire->sql("SELECT ok FROM onside_attribution.doctor() WHERE check_name = 'worker'"), 't', 'doctor() says so, too');
}

# What is in the way is told also while the API is away.
{
	my $session = $node->background_psql('postgres');
	$wire->behave(on({ event_name => 'bad' }, { status => 400 }));
	$session->query_safe('BEGIN; LOCK TABLE onside_attribution.dead_letter');
	my @bad = $wire->record('bad');
	$wire->traffic_until(sub { ($wire->said->{state_reason} // '') =~ /could not move refused events/ }, 'dead_letter is locked', 60);
	$wire->behave({ status => 500 });
	$wire->record('good');
	poll_status($node, 'postgres', { state => 'backing_off', state_reason => qr/\Acould not move refused events.*; / }, 'both are told');
	like($wire->sql("SELECT detail FROM onside_attribution.doctor() WHERE check_name = 'worker'"), qr/could not move refused events/, 'by doctor(), too');
	$session->query_safe('COMMIT');
	$session->quit;
	$wire->behave;
	poll_status($node, 'postgres', { state => 'idle', state_reason => undef, pending => 0 }, 'and then all is well');
}

# A worker that ends leaves its requests to the API, and the next one cannot know.
$wire->clean('in the end', twice_in_flight => 1);
$node->stop;
done_testing();
