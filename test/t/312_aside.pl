# An event that fails while others are accepted goes out of the log's way, into
# the table "aside": it is still pending, in "status", in the view and for
# flush(); and neither a crash of the server nor a restart loses it.

use OnsideTest;
use OnsideWire;

my $wire = OnsideWire->new('main');
my $node = $wire->node;
$wire->behave(on({ event_name => 'bad' }, { status => 500 }));
my @bad = $wire->record('bad', 3);

# What is known of the bad ones, wherever they are.
sub aside_ok
{
	my ($when) = @_;
	$wire->traffic_until(
		sub { my $aside = eval { $wire->aside } // {}; !grep { !$aside->{$_} } @bad },
		"$when: they are in aside", 30);
	my $aside = eval { $wire->aside } // {};
	my ($letter) = grep { defined } @{$aside}{@bad};
	is($letter->{http_status}, 500, "$when: aside says http_status");
	like($letter->{error} // '', qr/./, "$when: and error");
	ok($letter->{recorded_at} && $letter->{failed_at}, "$when: and when");
	pending_ok($when);
	return;
}

sub pending_ok
{
	my ($when) = @_;
	wait_until(sub { $wire->said->{pending} == @bad }, 20);
	is($wire->said->{pending}, scalar @bad, "$when: status counts them as pending");

	# The view says what is on disk, which follows.
	my $pending = join "\n", sort @bad;
	my $view = 'SELECT event_id FROM onside_attribution.pending ORDER BY 1';
	wait_until(sub { $wire->sql($view) eq $pending }, 20);
	is($wire->sql($view), $pending, "$when: so does the view pending");
	is($wire->sql("SELECT onside_attribution.flush('1 s')"), 'f', "$when: flush knows of them");
	is($wire->sandbox->accepted(@bad), 0, "$when: none was taken");
	return;
}

subtest 'they go aside' => sub { aside_ok('aside') };

subtest 'a crash of the server' => sub {
	# All its processes at once, as by kill -9 or a power cut.
	$node->stop('immediate');
	$node->start;
	poll_worker($node, 'postgres');
	pending_ok('after a crash');
};

subtest 'kill -9 of the worker' => sub {
	my $pid = worker_pid($node, 'postgres');
	kill 'KILL', $pid;
	watch_worker($node, 'postgres', $pid);
	pending_ok('after kill -9');
};

subtest 'a restart' => sub {
	$node->restart;
	poll_worker($node, 'postgres');
	pending_ok('after a restart');
	$wire->arrive([ $wire->record('good', 10) ], 20, 'after a restart: others');
};

subtest 'the API takes them' => sub {
	$wire->behave;

	# A lone event waits for at most a minute between two tries.
	$wire->arrive(\@bad, patience(), 'well again');
	wait_for_flush($node, 'postgres', 'well again: flush');
	poll_status($node, 'postgres', { state => 'idle', pending => 0 }, 'well again: nothing is pending');
	is($wire->sql('SELECT count(*) FROM onside_attribution.aside'), 0, 'well again: aside is empty');
	is(scalar keys %{ $wire->dead }, 0, 'well again: dead_letter, too');
};

$wire->healed('in the end');
$wire->clean('in the end', crashes => 1);
$node->stop;
done_testing();
