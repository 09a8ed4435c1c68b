# A 413 below our own limit: the batch is halved, a smaller limit is remembered,
# so that later batches fit at once, and it grows back when the API takes more
# again.  An event that is too large by itself goes to dead_letter with status
# 413, be it the first that the API ever sees; it costs the others nothing but
# a few requests.

use OnsideTest;

my ($node, $sandbox) = sending_node();
my $worker = worker_pid($node, 'postgres');

my @all = (max_body => 1_000_000, max_events => 1000);
my (@good, @bad);

sub sql { return $node->safe_psql('postgres', $_[0]) }

# Records events in one transaction; those at the places in $large (from 1 on)
# have so many bytes of payload more.  Returns the ids in their order.
sub record
{
	my ($n, $bytes, %large) = @_;
	my $places = join ',', keys %large;
	my ($more) = (values %large, 0);
	return split /\n/, sql(<<SQL);
SELECT onside_attribution.track('x', gen_random_uuid(), jsonb_build_object('i', i, 'text',
    repeat('x', CASE WHEN i = ANY ('{$places}') THEN $more ELSE $bytes END)))
FROM generate_series(1, $n) i
SQL
}

# What holds after each case.
sub settled_ok
{
	my ($case) = @_;
	wait_for_flush($node, 'postgres', "$case: all is settled");
	arrived_ok($sandbox, \@good, "$case: what fits has arrived");
	is( sql('SELECT event_id FROM onside_attribution.dead_letter ORDER BY 1'),
		join("\n", sort @bad), "$case: what does not fit is in dead_letter, and nothing else");
	is( sql('SELECT DISTINCT http_status FROM onside_attribution.dead_letter'),
		@bad ? 413 : '', "$case: with its status");
	my $row = poll_status($node, 'postgres',
		{ state => 'idle', state_reason => undef, pending => 0, next_attempt_at => undef },
		"$case: idle afterwards");
	is($row->{worker_pid}, $worker, "$case: the worker is the same process");
	is($sandbox->report->{duplicates}, 0, "$case: nothing came twice");
	return;
}

# Those that were given up while nothing was accepted, at most ten, come back.
sub healed_ok
{
	my ($case) = @_;
	ok( $node->poll_query_until('postgres', 'SELECT count(*) = 0 FROM onside_attribution.dead_letter'),
		"$case: what was given up meanwhile comes back by itself");
	settled_ok($case);
	return;
}

sub start_over
{
	@good = @bad = ();
	$sandbox->limits(@all);
	$sandbox->reset;
	sql('DELETE FROM onside_attribution.dead_letter');
	# What was learned about the size of a body is forgotten.
	sql('SELECT onside_attribution.resume()');
	return;
}

sub fresh_worker
{
	start_over();
	$node->restart;
	$worker = poll_worker($node, 'postgres', $worker);
	return;
}

sub too_large { return grep { $_->{status} == 413 } @{ $sandbox->requests } }

# ---------------------------------------------------------------------------
# The first event ever
# ---------------------------------------------------------------------------

$sandbox->limits(@all, max_body => 2000);
@bad = record(1, 3000);
settled_ok('the first event ever is too large');
cmp_ok($sandbox->report->{requests}, '<=', 3, 'the first event ever is too large: few requests');
is(sql('SELECT error FROM onside_attribution.dead_letter'),
	'{"error": "the body is too large"}', 'with the words of the API');
push @good, record(3, 10);
settled_ok('the first event ever was too large, the next ones fit');

fresh_worker();
$sandbox->limits(@all, max_body => 2000);
my @ids = record(5, 10, 3 => 3000);
push @bad, splice @ids, 2, 1;
push @good, @ids;
settled_ok('one of the first five is too large');

# ---------------------------------------------------------------------------
# One among many
# ---------------------------------------------------------------------------

foreach my $place (1, 777)
{
	start_over();
	$sandbox->limits(@all, max_body => 300_000);
	@ids = record(1000, 10, $place => 310_000);
	@bad = splice @ids, $place - 1, 1;
	@good = @ids;
	settled_ok("number $place of 1000 is too large");
	my $requests = $sandbox->report->{requests};
	cmp_ok($requests, '<=', 45, "number $place of 1000 is too large: few requests");
	note("number $place of 1000: $requests requests");

	# The limit is the API's on a body; a lone event says nothing about it.
	push @good, record(400, 10);
	push @good, record(400, 10);
	settled_ok("number $place of 1000 was too large, the next ones fit");
	cmp_ok($sandbox->report->{requests} - $requests, '<=', 6,
		"number $place of 1000 was too large: that costs the next ones nothing");
}

start_over();
$sandbox->limits(@all, max_body => 300_000);
@ids = record(1000, 10, map { $_ => 310_000 } 10, 500, 990);
@bad = (splice(@ids, 989, 1), splice(@ids, 499, 1), splice(@ids, 9, 1));
@good = @ids;
settled_ok('three of 1000 are too large');
cmp_ok($sandbox->report->{requests}, '<=', 100, 'three of 1000 are too large: few requests');

# All are too large, and there are some that fit: it is not the endpoint.
start_over();
$sandbox->limits(@all, max_body => 2000);
push @good, record(1, 10);
wait_for_flush($node, 'postgres', 'one fits');
push @bad, record(3, 3000);
settled_ok('three of three are too large');

# A 400 and a 413 in one batch do not get in each other's way.
start_over();
$sandbox->limits(@all, max_body => 300_000);
$sandbox->poison('rotten');
foreach (
	split /\n/,
	sql(<<'SQL'))
SELECT i IN (300, 700), onside_attribution.track('x', gen_random_uuid(), jsonb_build_object('text',
    CASE i WHEN 300 THEN 'rotten' WHEN 700 THEN repeat('x', 310000) ELSE '' END))
FROM generate_series(1, 1000) i
SQL
{
	my ($is_bad, $id) = split /\|/;
	push @{ $is_bad eq 't' ? \@bad : \@good }, $id;
}
wait_for_flush($node, 'postgres', 'a 400 and a 413: all is settled');
arrived_ok($sandbox, \@good, 'a 400 and a 413: what is good has arrived');
is( sql('SELECT event_id, http_status FROM onside_attribution.dead_letter ORDER BY 2'),
	"$bad[0]|400\n$bad[1]|413",
	'a 400 and a 413: each has its own status');
cmp_ok($sandbox->report->{requests}, '<=', 80, 'a 400 and a 413: few requests');
$sandbox->poison(undef);

# ---------------------------------------------------------------------------
# Too large, whatever is sent: it is the endpoint, and not the events
# ---------------------------------------------------------------------------

fresh_worker();
$sandbox->behave({ status => 413 });
push @good, record(20, 10);
poll_status($node, 'postgres',
	{ state => 'refusing', state_reason => qr/endpoint/, last_error => qr/^HTTP 413/, pending => sub { $_[0] >= 10 } },
	'all of 20 are too large: refusing');
cmp_ok(sql('SELECT count(*) FROM onside_attribution.dead_letter'), '<=', 10, 'all of 20 are too large: at most ten are given up');
$sandbox->behave;
healed_ok('all of 20 were too large');

# ---------------------------------------------------------------------------
# A smaller limit is remembered and grows back
# ---------------------------------------------------------------------------

# Small batches, so that growing back takes no more than some thousand events.
start_over();
$node->append_conf('postgresql.conf', 'onside_attribution.batch_max_events = 40');
$node->reload;
ok( wait_until(
		sub {
			$sandbox->reset;
			record(200, 10);
			wait_for_flush($node, 'postgres', 'batches of at most 40');
			return $sandbox->report->{max_events} == 40;
		}),
	'the worker makes batches of at most 40');

foreach (
	[ 'events', { max_events => 12 }, 10 ],
	[ 'bytes', { max_body => 12_000 }, 800 ])
{
	my ($of, $limits, $bytes) = @$_;
	my $case = "a smaller limit of $of";

	$sandbox->limits(@all, %$limits);
	$sandbox->reset;
	@good = record(800, $bytes);
	settled_ok("$case, learned");

	$sandbox->reset;
	@good = record(200, $bytes);
	settled_ok("$case, remembered");
	# A larger body is tried once in 32, in as many requests as go at once.
	cmp_ok(scalar too_large(), '<=', 4,
		"$case, remembered: what is sent fits, but when a larger body is tried");
	cmp_ok($sandbox->report->{requests}, '<', 80, "$case, remembered: and it is not sent one by one");

	$sandbox->limits(@all);
	$sandbox->reset;
	@good = ();
	my $largest = 0;
	for (my $i = 0; $i < 10 && $largest < 40; $i++)
	{
		push @good, record(1500, $bytes);
		settled_ok("$case, lifted, round $i");
		$largest = $sandbox->report->{max_events};
	}
	is($largest, 40, "$case, lifted: batches are as large as before");
	is(scalar too_large(), 0, "$case, lifted: and none was refused");
}

$node->stop;
done_testing();
