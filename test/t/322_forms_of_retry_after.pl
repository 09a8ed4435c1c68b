# Retry-After in each of its forms is obeyed as the contract says: fractions, dates
# by the clock of who answers, the longest of several, at most an hour, and not
# at all on a 204.  The wait stands in status.next_attempt_at, outlives a restart,
# is ended by resume(), and by a reload only if a setting of ours has changed.

use POSIX ();
use OnsideTest;
use OnsideWire;

POSIX::setlocale(POSIX::LC_ALL(), 'C');

my $wire = OnsideWire->new('main');
my $node = $wire->node;

sub date { return POSIX::strftime('%a, %d %b %Y %H:%M:%S GMT', gmtime $_[0]) }

# Seconds from the answer to the next attempt.
sub wait_in_status
{
	return $wire->sql('SELECT round(extract(epoch FROM next_attempt_at - last_error_at), 2) FROM onside_attribution.status');
}

sub asked_to_wait
{
	my ($name, $status, $headers) = @_;
	$wire->behave({ status => $status, headers => $headers });
	my @ids = $wire->record('good', 3);
	poll_status($node, 'postgres', { state => 'backing_off', next_attempt_at => qr/./, last_error => qr/HTTP $status/, in_flight => 0 },
		"$name: backing off");
	return @ids;
}

sub resumed
{
	my ($name, @ids) = @_;
	$wire->behave;
	$wire->sql('SELECT onside_attribution.resume()');
	$wire->arrive(\@ids, 20, "$name: resumed, all");
	wait_for_flush($node, 'postgres', "$name: flush");
	return;
}

# The form, the seconds that it means, and the headers; by turns with a 503 and a 429.
my $slow = time - 3 * 86400;
my $fast = time + 20 * 365 * 86400;
my $status = 429;
foreach my $case (
	[ 'seconds', 90, { 'Retry-After' => '90' } ],
	[ 'a fraction', 90.5, { 'Retry-After' => '90.5' } ],
	[ 'a date, by a clock that is slow', 300, { Date => date($slow), 'Retry-After' => date($slow + 300) } ],
	[ 'a date, by a clock that is fast', 300, { Date => date($fast), 'Retry-After' => date($fast + 300) } ],
	[ 'ten years', 3600, { 'Retry-After' => '315360000' } ],
	[ 'a date in ten years', 3600, { 'Retry-After' => date(time + 10 * 365 * 86400) } ],
	[ 'more digits than any number has', 3600, { 'Retry-After' => '9' x 60 } ],
	[ 'two of them, the longer one first', 200, { 'Retry-After' => [ '200', '100' ] } ],
	[ 'two of them, the longer one last', 200, { 'Retry-After' => [ '100', '200' ] } ],
	[ 'a date and seconds', 400, { Date => date($slow), 'Retry-After' => [ date($slow + 100), '400' ] } ],
	[ 'one that is none, and seconds', 120, { 'Retry-After' => [ 'soon', '120' ] } ])
{
	my ($form, $seconds, $headers) = @$case;
	$status = $status == 429 ? 503 : 429;
	my $name = "$status, $form";
	subtest $name => sub {
		my @ids = asked_to_wait($name, $status, $headers);
		my $wait = wait_in_status();
		cmp_ok($wait, '>=', $seconds - 1.1, "$name: as long as asked for");
		cmp_ok($wait, '<=', ($seconds == 3600 ? 3600 : $seconds * 1.1) + 2, "$name: and not much longer");
		resumed($name, @ids);
	};
}

subtest 'a fraction is waited for' => sub {
	$wire->sandbox->reset;
	$wire->{good} = [];
	$wire->behave({ status => 429, times => 1, headers => { 'Retry-After' => '1.5' } });
	my @ids = $wire->record('good');
	$wire->arrive(\@ids, 20, 'after 1.5 s');
	my ($first, $second) = @{ $wire->sandbox->requests };
	cmp_ok($second->{time} - $first->{time}, '>=', 1.5, 'not sooner');
};

foreach my $case (
	[ 'on a 204', { status => 204 } ],
	[ 'that is none', { status => 503, times => 2 }, 'soon' ],
	[ 'in the past', { status => 503, times => 2 }, date(time - 300) ],
	[ 'that is negative', { status => 429, times => 2 }, '-90' ],
	[ 'on a 500', { status => 500, times => 2 } ])
{
	my ($name, $rule, $value) = @$case;
	subtest "one $name is not obeyed" => sub {
		$wire->behave({ %$rule, headers => { 'Retry-After' => $value // '3600' } });
		$wire->arrive([ map { $wire->record('good') } 1 .. 3 ], 20, "$name: all");
		wait_for_flush($node, 'postgres', "$name: flush");
	};
}

subtest 'what ends the wait, and what does not' => sub {
	my @ids = asked_to_wait('before', 429, { 'Retry-After' => '1800' });
	my $next = $wire->sql('SELECT next_attempt_at FROM onside_attribution.status');
	my $requests = $wire->sandbox->report->{requests};
	$wire->behave;

	my $still = sub {
		my ($what) = @_;
		push @ids, $wire->record('good', 2);

		# Both are there again after a while.
		poll_status($node, 'postgres', { state => 'backing_off', next_attempt_at => qr/./, pending => scalar @ids }, "$what: still waiting");
		is($wire->sql("SELECT abs(extract(epoch FROM next_attempt_at - '$next')) < 1.5 FROM onside_attribution.status"),
			't', "$what: until the same moment");
		is($wire->sql("SELECT onside_attribution.flush('1 s')"), 'f', "$what: flush waits");
		is($wire->sandbox->report->{requests}, $requests, "$what: nothing is sent");
	};
	$still->('more events');
	$node->reload;
	$still->('a reload without a change');
	$node->append_conf('postgresql.conf', "work_mem = '5MB'");
	$node->reload;
	$still->('a reload with a change of somebody else\'s setting');

	# What the worker writes in the background reaches the disk first.
	$wire->sql('CHECKPOINT');
	$node->restart;
	poll_worker($node, 'postgres');
	$still->('a restart');
	my $worker = worker_pid($node, 'postgres');
	$wire->sql("SELECT pg_terminate_backend($worker)");
	poll_worker($node, 'postgres', $worker);
	$still->('another worker');
	$wire->sql('SELECT txid_current(); CHECKPOINT');
	$node->stop('immediate');
	$node->start;
	poll_worker($node, 'postgres');
	$still->('a crash');

	$node->append_conf('postgresql.conf', 'onside_attribution.batch_max_events = 500');
	$node->reload;
	$wire->arrive(\@ids, 20, 'a reload with a change of ours ends it: all');

	@ids = asked_to_wait('once more', 503, { 'Retry-After' => '1800' });
	resumed('resume() ends it', @ids);
	$node->restart;
	poll_worker($node, 'postgres');
	$wire->arrive([ $wire->record('good') ], 20, 'and what it has ended does not come back with a restart');
};

$wire->healed('in the end');
$wire->clean('in the end', crashes => 1);
$node->stop;
done_testing();
