# retry_dead_letters puts dead letters back, and replay records again what is
# retained: with the event_id and the bytes that were sent before, all or
# nothing, and only in a transaction that commits.  Neither touches what is
# pending.  (The chances that dead letters get by themselves are 316's.)

use OnsideTest;

my ($node, $sandbox) = sending_node(conf => "onside_attribution.retention = '1h'");
my $worker = worker_pid($node, 'postgres');

sub sql { return $node->safe_psql('postgres', $_[0]) }

# The ids that a query returns, quoted for an array of another.
sub ids_of { return split /\n/, sql($_[0]) }
sub array_of { return "'{" . join(',', @_) . "}'::uuid[]" }

# From now on, what is in dead_letter is put back by a person only.
sub by_hand
{
	sql('UPDATE onside_attribution.dead_letter SET retry_at = NULL');
	return;
}

sub dead_ok
{
	my ($what, @ids) = @_;
	is(sql('SELECT event_id FROM onside_attribution.dead_letter ORDER BY 1'),
		join("\n", sort @ids), $what);
	return;
}

# How often each of these has arrived.
sub arrivals_ok
{
	my ($what, $times, @ids) = @_;
	my $events = $sandbox->events;
	is_deeply([ map { $events->{$_} // 0 } @ids ], [ map { $times } @ids ], $what);
	is($sandbox->report->{mismatched}, 0, "$what: with the same bytes");
	return;
}

# ---------------------------------------------------------------------------
# retry_dead_letters
# ---------------------------------------------------------------------------

my @good = track($node, 'postgres', 'good', '{"n": 1.50, "b": [1, {}], "a": "\u00e4"}');
wait_for_flush($node, 'postgres', 'the API has accepted something');

$sandbox->poison('"bad"');
my @bad = map { track($node, 'postgres', 'bad', qq({"n": $_.10})) } 1 .. 5;
wait_for_flush($node, 'postgres', 'five bad ones');
by_hand();
dead_ok('five bad ones: all in dead_letter', @bad);

is(sql('SELECT onside_attribution.retry_dead_letters()'), 5, 'still bad: five are put back');
wait_for_flush($node, 'postgres', 'still bad: they are tried again');
by_hand();
dead_ok('still bad: back in dead_letter, once', @bad);
arrivals_ok('still bad: none has arrived', 0, @bad);

is(sql("SELECT onside_attribution.retry_dead_letters('{}')"), 0, 'none is asked for: none is put back');
is(sql('SELECT onside_attribution.retry_dead_letters(ARRAY[gen_random_uuid()])'),
	0, 'an unknown one: none is put back');
is(sql('SELECT onside_attribution.retry_dead_letters(' . array_of($good[0]) . ')'),
	0, 'a delivered one: none is put back');
dead_ok('dead_letter has not changed', @bad);

$sandbox->poison(undef);
sql('BEGIN; SELECT onside_attribution.retry_dead_letters(); ROLLBACK');
wait_for_flush($node, 'postgres', 'rolled back: flush');
dead_ok('rolled back: dead_letter has not changed', @bad);
arrivals_ok('rolled back: nothing was sent', 0, @bad);

is(sql('SELECT onside_attribution.retry_dead_letters(' . array_of(@bad[ 1, 3 ]) . ')'),
	2, 'two by their ids');
wait_for_flush($node, 'postgres', 'two by their ids: flush');
dead_ok('two by their ids: the others stay', @bad[ 0, 2, 4 ]);
arrivals_ok('two by their ids: they have arrived', 1, @bad[ 1, 3 ]);
arrivals_ok('two by their ids: the others have not', 0, @bad[ 0, 2, 4 ]);

# Two sessions at once: one of them gets each.
my $first = $node->background_psql('postgres');
$first->query_safe('BEGIN; SELECT onside_attribution.retry_dead_letters()');
my $second = $node->background_psql('postgres');
$second->query_until(qr/go/, "\\echo go\nSELECT 'put back: ' || onside_attribution.retry_dead_letters();\n");
ok( $node->poll_query_until('postgres', <<'SQL'), 'two at once: the second one waits');
SELECT count(*) = 1 FROM pg_stat_activity
WHERE wait_event_type = 'Lock' AND query LIKE '%retry_dead_letters%'
SQL
$first->query_safe('COMMIT');
like($second->query_safe('SELECT 1'), qr/put back: 0/, 'two at once: the second one gets none');
$first->quit;
$second->quit;
wait_for_flush($node, 'postgres', 'all of them: flush');
dead_ok('all of them: dead_letter is empty');
arrivals_ok('all of them: each has arrived once', 1, @bad);

# Ones that a trigger found invalid.
sql(<<'SQL');
CREATE TABLE shop (id uuid, install uuid, amount numeric);
SELECT onside_attribution.attach('shop', 'sold', 'install', '{"amount": "amount"}', event_id => 'id');
SET onside_attribution.on_invalid_event = dead_letter;
INSERT INTO shop VALUES ('aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa', gen_random_uuid(), 'NaN');
SQL
my $invalid = 'aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa';
$sandbox->poison('"bad"');
push @bad, track($node, 'postgres', 'bad');
wait_for_flush($node, 'postgres', 'an invalid one and a bad one');
by_hand();
$sandbox->poison(undef);
dead_ok('an invalid one and a bad one', $invalid, $bad[-1]);

my $payload = sql("SELECT payload FROM onside_attribution.dead_letter WHERE event_id = '$invalid'");
note("the invalid one's payload: $payload");
sql(<<SQL);
UPDATE onside_attribution.dead_letter SET event_name = '' WHERE event_id = '$invalid'
SQL
my ($ret, undef, $error) = $node->psql('postgres',
	'SELECT onside_attribution.retry_dead_letters(' . array_of($invalid, $bad[-1]) . ')');
isnt($ret, 0, 'an invalid one among them: an error');
like($error, qr/ERROR:.*event_name/, 'an invalid one among them: it says what is wrong');
dead_ok('an invalid one among them: both stay', $invalid, $bad[-1]);
arrivals_ok('an invalid one among them: nothing is sent', 0, $bad[-1]);

is(sql('SELECT onside_attribution.retry_dead_letters()'), 1, 'all: not the one that was never sent');
wait_for_flush($node, 'postgres', 'all but the invalid one: flush');
dead_ok('all but the invalid one: it stays', $invalid);
arrivals_ok('all but the invalid one: the other has arrived', 1, $bad[-1]);

sql(<<SQL);
UPDATE onside_attribution.dead_letter SET event_name = 'sold', payload = '{"amount": "0"}'
WHERE event_id = '$invalid'
SQL
is(sql('SELECT onside_attribution.retry_dead_letters(' . array_of($invalid) . ')'),
	1, 'repaired by hand: it is put back');
wait_for_flush($node, 'postgres', 'repaired by hand: flush');
dead_ok('repaired by hand: dead_letter is empty');
arrivals_ok('repaired by hand: it has arrived', 1, $invalid);

arrived_ok($sandbox, [ @good, @bad, $invalid ], 'retry: what has arrived is what was recorded');
is($sandbox->report->{duplicates}, 0, 'retry: nothing arrived twice');

# ---------------------------------------------------------------------------
# replay
# ---------------------------------------------------------------------------

# Whatever was retained until now is none of what follows.
my $since = sql('SELECT clock_timestamp()');
$sandbox->reset;
my @old = ids_of(<<'SQL');
SELECT onside_attribution.track('old', gen_random_uuid(), jsonb_build_object('i', i, 'x', i / 7.0))
FROM generate_series(1, 1500) i
SQL
wait_for_flush($node, 'postgres', 'replay: 1500 are delivered');
arrivals_ok('replay: once so far', 1, @old);
my $until = sql('SELECT clock_timestamp()');

$sandbox->poison('"bad"');
my $dead = track($node, 'postgres', 'bad');
wait_for_flush($node, 'postgres', 'replay: one is refused');
by_hand();
$sandbox->poison(undef);

sql("SELECT onside_attribution.pause('test')");
poll_status($node, 'postgres', { state => 'paused', in_flight => 0 }, 'replay: paused');
my @pending = ids_of(<<'SQL');
SELECT onside_attribution.track('new', gen_random_uuid(), '{}') FROM generate_series(1, 10)
SQL

is(sql("SELECT onside_attribution.replay('$until', '$since')"), 0, 'replay: the end before the beginning');
is(sql("SELECT onside_attribution.replay(clock_timestamp() + interval '1 h')"), 0, 'replay: from the future on');
is(sql("SELECT count(*) FROM onside_attribution.pending"), 10, 'replay: nothing was recorded');
sql("BEGIN; SELECT onside_attribution.replay('$since'); ROLLBACK");
is(sql("SELECT count(*) FROM onside_attribution.pending"), 10, 'replay: rolled back');

is(sql("SELECT onside_attribution.replay('$since')"),
	1500, 'replay: neither what is pending nor what was refused');
is(sql("SELECT onside_attribution.replay('$since')"),
	0, 'replay: what is pending because of a replay is not replayed');
is(status($node, 'postgres')->{pending}, 1510, 'replay: they are pending');
sql('SELECT onside_attribution.resume()');
wait_for_flush($node, 'postgres', 'replay: flush');
arrivals_ok('replay: they have arrived again', 2, @old);
arrivals_ok('replay: what was pending has arrived once', 1, @pending);
arrivals_ok('replay: what was refused has not', 0, $dead);
dead_ok('replay: what was refused is still in dead_letter', $dead);

# What was recorded twice by now is sent once.
is(sql("SELECT onside_attribution.replay('$since', '$until')"), 1500, 'replay once more: the first ones');
wait_for_flush($node, 'postgres', 'replay once more: flush');
arrivals_ok('replay once more: they have arrived again', 3, @old);
arrivals_ok('replay once more: what came later has not', 1, @pending);

my ($from, $to) = ids_of(<<SQL);
SELECT recorded_at FROM onside_attribution.outbox WHERE event_id IN ('$pending[3]', '$pending[5]') ORDER BY 1
SQL
is(sql("SELECT onside_attribution.replay('$from', '$to')"), 3, 'replay: both ends are included');
wait_for_flush($node, 'postgres', 'replay: both ends: flush');
arrivals_ok('replay: both ends: they have arrived again', 2, @pending[ 3 .. 5 ]);
arrivals_ok('replay: both ends: the others have not', 1, @pending[ 0 .. 2, 6 .. 9 ]);

arrived_ok($sandbox, [ @old, @pending ], 'replay: what has arrived is what was recorded');
poll_status($node, 'postgres', { state => 'idle', pending => 0, worker_pid => $worker },
	'idle in the end, by the same worker');

$node->stop;
done_testing();
