# The counters of "status" and "stats" never run backwards, whoever looks and
# whenever: not over a clean restart of the server, not when the worker is
# replaced, not by a reload, while events are sent and refused, and while the API
# is away and nothing is settled.

use JSON::PP ();
use OnsideTest;
use OnsideWire;

my $wire = OnsideWire->new('main');
my $node = $wire->node;
my %weather = (
	well => [ on({ event_name => 'bad' }, { status => 400 }), { chance => 0.1, one_of => [ { status => 503 }, { status => 500 } ] } ],
	away => [ { one_of => [ { status => 503 }, { fault => 'close_no_answer' } ] } ]);

my %counters = (
	status => [qw(delivered dead_lettered requests retries)],
	stats => [qw(recorded skipped delivered dead_lettered events_sent bytes_sent connections requests retries
		  back_offs responses_204 responses_400 responses_503 responses_other_5xx connection_failures
		  delivery_count delivery_ms_sum request_count request_ms_sum)]);
my (%highest, %back, $looks);

# What is not known at the moment (NULL) does not count; what is, must not be
# less than it was.
sub look
{
	my ($when) = @_;
	foreach my $view (sort keys %counters)
	{
		my $row = eval { JSON::PP::decode_json($wire->sql("SELECT row_to_json(v) FROM onside_attribution.$view v")) } // return;
		foreach my $column (@{ $counters{$view} })
		{
			my $value = $row->{$column} // next;
			my $before = $highest{"$view.$column"} // 0;
			$back{"$view.$column: $before, then $value, $when"} = 1 if $value < $before;
			$highest{"$view.$column"} = $value;
		}
	}
	$looks++;
	return;
}

# Looks all the while until the worker is there (another one) and has done
# something.
sub watch
{
	my ($when) = @_;
	my $requests = $wire->sandbox->report->{requests};
	my $worker;
	wait_until(
		sub {
			look($when);
			eval { $wire->record('good', 2); $wire->record('bad') if rand() < 0.2 };
			return $wire->sandbox->report->{requests} >= $requests + 5
			  && eval { $wire->said->{worker_pid} };
		}, patience(), 0.01)
	  or fail("$when: it goes on");
	look($when);
	return;
}

my %events = (
	'a restart' => sub { $node->restart },
	'a smart shutdown' => sub { $node->stop('smart'); $node->start },
	'a reload' => sub { $node->reload },
	'ALTER DATABASE SET' => sub { set_for_database($node, 'postgres', 'max_in_flight', 2 + int rand 5) },
	'ALTER DATABASE RESET' => sub { set_for_database($node, 'postgres', 'max_in_flight', undef) },
	'the worker is ended' => sub { $wire->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'onside_attribution worker'}) },
	'the launcher is ended' => sub { $wire->sql(q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'onside_attribution launcher'}) },
	'pause and resume' => sub { $wire->sql('SELECT onside_attribution.pause(); SELECT onside_attribution.resume()') });

foreach my $weather ('well', 'away', 'well')
{
	$wire->behave(@{ $weather{$weather} });
	watch($weather);
	foreach my $event (sort keys %events)
	{
		look("before $event");
		$events{$event}->();
		watch("$event, $weather");
	}
}
is(join("\n", sort keys %back), '', 'no counter has run backwards');
note("looked $looks times");

$wire->behave(on({ event_name => 'bad' }, { status => 400 }));
wait_for_flush($node, 'postgres', 'all is settled');

# The first time of each; a restart may have sent some twice.
my $report = $wire->sandbox->report;
my $said = $wire->said;
cmp_ok($said->{delivered}, '>=', $report->{distinct}, 'what was delivered has been counted');
cmp_ok($said->{delivered}, '<=', $report->{events_accepted}, 'and no more than the API has seen');
cmp_ok($said->{requests}, '>=', $report->{by_status}{204}, 'requests, too');

$wire->clean('in the end');
$node->stop;
done_testing();
