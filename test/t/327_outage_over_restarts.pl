# An API that refuses everything for a while, over restarts of the server, a crash
# and a change of credentials: ten events at most become dead letters, and all of
# them are tried as soon as anything is accepted, however far their next chance is.

use OnsideTest;
use OnsideWire;

my $wire = OnsideWire->new('main', conf => "onside_attribution.retry_max_delay = '1s'\n");
my $node = $wire->node;

sub dead_letters { return scalar keys %{ $wire->dead } }

$wire->record('good', 5);
wait_for_flush($node, 'postgres', 'something is accepted before');
$wire->behave({ status => 400 });
my @recorded = $wire->one_by_one('good', 15);
ok(wait_until(sub { dead_letters() == 10 }), 'ten are given up');

foreach my $case (
	[ 'a restart', sub { $node->restart } ],
	[ 'other credentials', sub {
		$wire->sandbox->credentials('sandbox', 'another');
		write_credentials($node, "sandbox:another\n");
		$node->reload;
	} ],
	[ 'a crash', sub { $node->stop('immediate'); $node->start } ])
{
	my ($name, $happens) = @$case;
	my $seen = $wire->sandbox->report->{requests};
	$happens->();
	poll_worker($node, 'postgres');
	push @recorded, $wire->one_by_one('good', 5);
	$wire->sandbox->wait_requests($seen + 30, patience());
	poll_status($node, 'postgres', { state => 'refusing', state_reason => qr/./ }, "$name: state refusing");
	is(dead_letters(), 10, "$name: not one more is given up");
}

# As if each had had its chances of the first hour, and the last one now.
$node->safe_psql('postgres', <<~'SQL');
	UPDATE onside_attribution.dead_letter
		SET chances = 3, failed_at = clock_timestamp(), retry_at = clock_timestamp() + interval '1 day'
	SQL
$node->restart;
poll_worker($node, 'postgres');
$wire->behave;
$wire->arrive(\@recorded, patience(), 'the API is well again: all of them');
ok(wait_until(sub { dead_letters() == 0 }), 'no dead letter is left');
poll_status($node, 'postgres', { state => 'idle', pending => 0 }, 'nothing else either');

# An API that comes and goes uses up no chances: a try before its time is none, and
# neither is one that is asked to wait.
$wire->behave({ status => 400 });
my @again = $wire->one_by_one('good', 12);
ok(wait_until(sub { dead_letters() == 10 }), 'ten are given up again');
$node->safe_psql('postgres', <<~'SQL');
	UPDATE onside_attribution.dead_letter
		SET chances = 3, attempts = 2, failed_at = clock_timestamp(), retry_at = clock_timestamp() + interval '1 day'
	SQL
my $tried = "SELECT count(*) FROM onside_attribution.dead_letter WHERE chances = 3 AND attempts = 3 AND http_status = 400";
$wire->behave(on({ event_name => 'good' }, { status => 400 }));
$wire->record('other');
ok(wait_until(sub { $node->safe_psql('postgres', $tried) == 10 }), 'all ten are tried once more, and it does not count');
$node->safe_psql('postgres', 'UPDATE onside_attribution.dead_letter SET retry_at = clock_timestamp() WHERE chances = 3');
$wire->behave(on({ event_name => 'good' }, { status => 429, headers => { 'Retry-After' => '1' } }));
$tried =~ s/attempts = 3/attempts = 4/;
ok(wait_until(sub { $node->safe_psql('postgres', $tried) > 0 }), 'one is asked to wait: it does not count, and says nothing of the event');
$wire->behave;
$node->safe_psql('postgres', 'SELECT onside_attribution.retry_dead_letters()');
$wire->arrive(\@again, patience(), 'in the end: all of them');
$wire->clean('in the end', crashes => 1);
$node->stop;
done_testing();
