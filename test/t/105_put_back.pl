# Whatever a dead letter is like, retry_dead_letters puts it back or says what is
# wrong with it, and which one it is; replay finds all that is retained, in
# whatever segment; both in the order of the log, in little memory, within any
# shape of transaction, and held up by nobody who has no privilege.

use OnsideTest;

my ($node, $sandbox) = sending_node(conf => <<'CONF');
onside_attribution.retention = '1h'
onside_attribution.on_invalid_event = dead_letter
log_temp_files = 0
CONF
$node->safe_psql('postgres', 'CREATE ROLE stranger LOGIN; GRANT USAGE ON SCHEMA onside_attribution TO stranger');

sub sql { return $node->safe_psql('postgres', $_[0]) }

# What a script returns, and its errors.
sub try
{
	my ($ret, $out, $error) =
	  $node->psql('postgres', $_[0], on_error_stop => 0, extra_params => [ '-v', 'VERBOSITY=verbose' ]);
	return ($out, $error);
}

sub letters
{
	my ($values, $from) = @_;
	my %column = (
		event_id => 'gen_random_uuid()',
		event_name => "'letter'",
		payload => "'{}'",
		event_datetime => 'now()',
		installation_id => 'gen_random_uuid()',
		http_status => 400,
		attempts => 1,
		failed_at => 'now()',
		%$values);
	my @names = sort keys %column;
	return sql("INSERT INTO onside_attribution.dead_letter (error, recorded_at, " . join(', ', @names) . ") "
		  . "SELECT 'no', now(), " . join(', ', @column{@names}) . " FROM " . ($from // 'generate_series(1, 1) AS n'));
}

sub paused
{
	sql('SELECT onside_attribution.pause()');
	poll_status($node, 'postgres', { state => 'paused', in_flight => 0 }, 'paused');
	return;
}

sub resumed
{
	sql('SELECT onside_attribution.resume()');
	wait_for_flush($node, 'postgres', 'resumed, and sent');
	return;
}

# ---------------------------------------------------------------------------
# Dead letters
# ---------------------------------------------------------------------------

my $id = '10000000-0000-4000-8000-000000000001';
my $good = '10000000-0000-4000-8000-000000000002';

subtest 'what is no event' => sub {
	my @cases = (
		[ event_name => 'NULL', '22004' ],
		[ event_name => "''", '22023' ],
		[ event_name => "E'a\\tb'", '22023' ],
		[ event_name => "repeat('x', 256)", '22023' ],
		[ payload => 'NULL', '22004' ],
		[ payload => "'[]'", '22023' ],
		[ payload => "'1'", '22023' ],
		[ payload => "jsonb_build_object('x', repeat('y', 1000000))", '54000' ],
		[ event_datetime => 'NULL', '22004' ],
		[ event_datetime => "'infinity'", '22023' ],
		[ event_datetime => "'10000-01-01Z'", '22023' ],
		[ installation_id => 'NULL', '22004' ],
		[ event_id => "'10000000-0000-1000-8000-000000000001'", '22023' ]);
	foreach my $case (@cases)
	{
		my ($column, $value, $sqlstate) = @$case;
		my $asked = $column eq 'event_id' ? '10000000-0000-1000-8000-000000000001' : $id;
		letters({ event_id => "'$id'", $column => $value });
		letters({ event_id => "'$good'", failed_at => "now() - interval '1 s'" });
		my $letter = sql("SELECT id FROM onside_attribution.dead_letter WHERE event_id = '$asked'");

		foreach my $call ('', "'{$asked, $good}'")
		{
			my ($out, $error) = try("SELECT onside_attribution.retry_dead_letters($call)");
			my $what = "$column = $value" . ($call ? ', asked for' : '');
			like($error, qr/ERROR:  $sqlstate: invalid event: $column/, $what);
			like($error, qr/CONTEXT:  dead letter with id $letter/, "$what: which it is");
		}
		is(sql('SELECT count(*) FROM onside_attribution.dead_letter'), 2, "$column = $value: both are still there");
		is(sql('SELECT count(*) FROM onside_attribution.pending'), 0, 'nothing is pending');
		sql('DELETE FROM onside_attribution.dead_letter');
	}

	# Of a letter without an event_id nobody can ask for it.
	letters({ event_id => 'NULL', http_status => 'NULL', attempts => 0 });
	is(sql('SELECT onside_attribution.retry_dead_letters()'), 0, 'one that was never sent stays');
	is(sql('SELECT onside_attribution.retry_dead_letters(ARRAY[NULL]::uuid[])'), 0, 'NULL is no event_id');
	letters({ event_id => 'NULL' });
	like((try('SELECT onside_attribution.retry_dead_letters()'))[1], qr/22004: invalid event: event_id/, 'one without event_id');
	sql('DELETE FROM onside_attribution.dead_letter');
};

subtest 'which, how often, in which order' => sub {
	paused();
	letters({ event_id => "format('20000000-0000-4000-8000-%s', lpad(n::text, 12, '0'))::uuid",
			event_name => "'n' || n", failed_at => "now() - n * 7919 % 10007 * interval '1 s'" },
		'generate_series(1, 2000) AS n');
	my $order = sql('SELECT string_agg(event_name, \' \' ORDER BY failed_at) FROM onside_attribution.dead_letter');
	is(sql('SELECT count(DISTINCT id) FROM onside_attribution.dead_letter'), 2000, 'each has an id of its own');
	is(sql('SELECT count(*) FROM onside_attribution.dead_letter WHERE retry_at IS NOT NULL OR source IS NOT NULL'),
		0, 'retry_at and source are empty');
	is(sql(<<'SQL'), 3, 'some of them, named more than once, in two dimensions, with nulls among them');
SELECT onside_attribution.retry_dead_letters(ARRAY[['20000000-0000-4000-8000-000000000005', NULL],
    ['20000000-0000-4000-8000-000000000005', '20000000-0000-4000-8000-000000000006'],
    ['20000000-0000-4000-8000-000000000007', '20000000-0000-4000-8000-000000000005']]::uuid[])
SQL
	is(sql('SELECT count(*) FROM onside_attribution.pending'), 3, 'once each');
	sql('TRUNCATE onside_attribution.outbox');

	is(sql('BEGIN; SET LOCAL work_mem = \'64kB\'; SELECT onside_attribution.retry_dead_letters(); COMMIT'), 1997, 'all');
	$order =~ s/\bn[567] //g;
	is(sql("SELECT string_agg(event_name, ' ' ORDER BY xid, id) FROM onside_attribution.pending"),
		$order, 'in the order in which they failed');
	sql('TRUNCATE onside_attribution.outbox');

	# An event that is there twice comes out twice.
	letters({ event_id => "'$id'" }, 'generate_series(1, 2)');
	is(sql("SELECT onside_attribution.retry_dead_letters('{$id}')"), 2, 'two of one event');
	sql('TRUNCATE onside_attribution.outbox');
	resumed();
};

subtest 'memory' => sub {
	letters({ payload => "jsonb_build_object('x', repeat('y', 900000))" }, 'generate_series(1, 200)');
	my $session = $node->background_psql('postgres');
	my $pid = $session->query_safe('BEGIN; SELECT pg_backend_pid()');
	$session->query_safe("SELECT onside_attribution.retry_dead_letters('{$id}')");
	my $before = memory_of($pid)->{VmHWM};
	is($session->query_safe('SELECT onside_attribution.retry_dead_letters()'), 200, '200 letters of 0.9 MB');
	cmp_ok(memory_of($pid)->{VmHWM} - $before, '<', 60_000, 'in less than a third of that, kB');
	$session->query_safe('ROLLBACK');
	$session->quit;
	sql('DELETE FROM onside_attribution.dead_letter');
};

subtest 'source' => sub {
	sql(<<'SQL');
CREATE SCHEMA shop;
CREATE TABLE shop."Sold" (install uuid, total numeric);
SELECT onside_attribution.attach('shop."Sold"', 'sold', 'install', '{"total": "total"}');
INSERT INTO shop."Sold" VALUES (gen_random_uuid(), 'NaN');
CREATE TABLE shop.parted (install uuid, total numeric) PARTITION BY LIST (total);
CREATE TABLE shop.parted_1 PARTITION OF shop.parted DEFAULT PARTITION BY LIST (total);
CREATE TABLE shop.parted_2 PARTITION OF shop.parted_1 DEFAULT;
SELECT onside_attribution.attach('shop.parted', 'parted', 'install', '{"total": "total"}');
INSERT INTO shop.parted VALUES (gen_random_uuid(), 'NaN');
INSERT INTO shop.parted_2 VALUES (gen_random_uuid(), 'NaN');
CREATE TABLE shop.heir () INHERITS (shop."Sold");
SELECT onside_attribution.attach('shop.heir', 'sold by heir', 'install', '{"total": "total"}');
INSERT INTO shop.heir VALUES (gen_random_uuid(), 'NaN');
SQL
	is(sql('SELECT source, event_name, count(*) FROM onside_attribution.dead_letter GROUP BY 1, 2 ORDER BY 2'),
		qq(shop.parted|parted|2\nshop."Sold"|sold|1\nshop.heir|sold by heir|1), 'of a trigger');
	sql('DELETE FROM onside_attribution.dead_letter');

	track($node, 'postgres');
	wait_for_flush($node, 'postgres', 'the API has accepted something');
	$sandbox->poison('"bad"');
	sql(q{SELECT onside_attribution.track('bad', gen_random_uuid(), '{}')});
	wait_for_flush($node, 'postgres', 'one is refused');
	$sandbox->poison(undef);
	is(sql('SELECT event_name, source IS NULL, retry_at - failed_at BETWEEN $$50 s$$ AND $$1 min$$, chances FROM onside_attribution.dead_letter'),
		'bad|t|t|0', 'of the API: no source, and another chance in a minute');
	sql('DELETE FROM onside_attribution.dead_letter');
};

# ---------------------------------------------------------------------------
# Replay
# ---------------------------------------------------------------------------

# What was recorded since is in all three segments, and some of it twice.
my $since = sql('SELECT clock_timestamp()');
set_for_database($node, 'postgres', 'segment_size', '64kB');
my $filled = wait_until(
	sub {
		sql(<<'SQL');
SELECT count(onside_attribution.track('kept', gen_random_uuid(), jsonb_build_object('x', repeat('y', 100)))) FROM generate_series(1, 400)
SQL
		sql('SELECT onside_attribution.flush()');
		return sql('SELECT count(DISTINCT segment) FROM onside_attribution.outbox') == 3;
	});
ok($filled, 'all segments are in use');
paused();
my $kept = sql("SELECT count(*) FROM onside_attribution.outbox WHERE recorded_at >= '$since'");

sub replayed { return "SELECT onside_attribution.replay('$since')" }

subtest 'replay of all segments' => sub {
	my $position = log_position($node);
	is(sql("SET work_mem = '64kB'; " . replayed()), $kept, 'all that was recorded');
	like(log_since($node, $position), qr/temporary file: path/, 'it needs no memory for them');
	is(sql(<<'SQL'), 't', 'in the order of the log');
SELECT array_agg(p.event_id ORDER BY p.xid, p.id) = array_agg(p.event_id ORDER BY o.xid, o.id)
FROM onside_attribution.pending p, onside_attribution.outbox o WHERE o.event_id = p.event_id AND (o.xid, o.id) < (p.xid, p.id)
SQL
	is(sql(replayed()), 0, 'and once');
	is(sql("SELECT count(*), count(DISTINCT event_id) FROM onside_attribution.pending"), "$kept|$kept", 'each is pending once');
	sql('SELECT onside_attribution.resume()');
	wait_for_flush($node, 'postgres', 'they are sent');
	is(sql(replayed()), $kept, 'once more: each event once, though it is there twice');
	paused();
	sql('DELETE FROM onside_attribution.outbox WHERE (xid, id) IN (SELECT xid, id FROM onside_attribution.pending)');
};

subtest 'transactions' => sub {
	my $zero = "$kept\n0";
	is(sql('BEGIN; ' . replayed() . '; ' . replayed() . '; ROLLBACK'), $zero, 'twice in one transaction');
	is(sql('BEGIN; ' . replayed() . " FROM generate_series(1, 2); ROLLBACK"), $zero, 'twice in one statement');
	is(sql('BEGIN; SAVEPOINT s; ' . replayed() . '; ROLLBACK TO s; ' . replayed() . '; ROLLBACK'),
		"$kept\n$kept", 'a savepoint that was rolled back');
	is(sql("BEGIN; SELECT onside_attribution.track('now', gen_random_uuid(), '{}', event_id => '$id'); SELECT onside_attribution.replay('$since', 'infinity'); ROLLBACK"),
		"$id\n$kept", 'what the transaction itself has recorded is pending');

	letters({ event_id => "'$id'" });
	is(sql('BEGIN; SELECT onside_attribution.retry_dead_letters() FROM generate_series(1, 2); ROLLBACK'),
		"1\n0", 'retry_dead_letters twice in one statement');
	is(sql('BEGIN; DELETE FROM onside_attribution.dead_letter; SELECT onside_attribution.retry_dead_letters(); ROLLBACK'),
		0, 'what the transaction itself has deleted');
	is(sql('WITH d AS (DELETE FROM onside_attribution.dead_letter RETURNING 1) SELECT onside_attribution.retry_dead_letters(), count(*) FROM d'),
		'0|1', 'or the statement');
	letters({ event_id => "'$id'" });
	is(sql(<<SQL), '1', 'in a subtransaction that is rolled back, and then one that is not');
BEGIN;
DO \$\$
BEGIN
    PERFORM onside_attribution.retry_dead_letters();
    RAISE 'not yet';
EXCEPTION WHEN raise_exception THEN
    PERFORM onside_attribution.retry_dead_letters();
END
\$\$;
SELECT count(*) FROM onside_attribution.outbox WHERE event_id = '$id';
ROLLBACK;
SQL

	foreach my $call ('retry_dead_letters()', "retry_dead_letters('{}')", "replay('-infinity')")
	{
		like((try("BEGIN READ ONLY; SELECT onside_attribution.$call; ROLLBACK"))[1],
			qr/25006: cannot execute \w+\(\) in a read-only transaction/, "$call in a read-only transaction");
	}
	is(sql("SELECT onside_attribution.replay(NULL) IS NULL"), 't', 'replay(NULL)');
	is(sql('SELECT count(*) FROM onside_attribution.pending'), 0, 'nothing is pending by all that');
	sql('DELETE FROM onside_attribution.dead_letter');
};

subtest 'who holds it up' => sub {
	my $holder = $node->background_psql('postgres', extra_params => [ '-U', 'stranger' ]);
	$holder->query_safe(<<"SQL");
SELECT pg_advisory_lock(classid::bigint::int, @{[ sql("SELECT 'onside_attribution.outbox'::regclass::oid::int") ]})
FROM (VALUES (1259)) AS v(classid)
SQL
	is(sql("SET lock_timeout = '5s'; " . "SELECT onside_attribution.replay('infinity')"), 0, 'nobody by an advisory lock');
	$holder->quit;

	sql('GRANT SELECT, INSERT ON onside_attribution.outbox TO stranger');
	foreach my $mode ('ACCESS SHARE', 'ROW EXCLUSIVE', 'SHARE UPDATE EXCLUSIVE', 'SHARE')
	{
		my (undef, $error) = try(<<"SQL");
BEGIN;
SET LOCAL ROLE stranger;
LOCK TABLE ONLY onside_attribution.outbox IN $mode MODE;
RESET ROLE;
ROLLBACK;
SQL
		my $conflicts = $mode =~ /^SHARE/;
		if ($conflicts) { like($error, qr/42501/, "$mode needs more than SELECT and INSERT") }
		else
		{
			my $reader = $node->background_psql('postgres');
			$reader->query_safe("BEGIN; LOCK TABLE onside_attribution.outbox IN $mode MODE");
			is(sql("SET lock_timeout = '5s'; SELECT onside_attribution.replay('infinity')"), 0, "$mode does not hold it up");
			$reader->query_safe('ROLLBACK');
			$reader->quit;
		}
	}

	# And it holds up nobody who records.
	my $replay = $node->background_psql('postgres');
	$replay->query_safe('BEGIN; ' . replayed());
	is(sql(<<"SQL") =~ tr/-//, 8, 'recording goes on meanwhile');
SET lock_timeout = '5s';
SELECT onside_attribution.track('meanwhile', gen_random_uuid(), '{}');
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id) VALUES ('meanwhile', '{}', gen_random_uuid()) RETURNING event_id;
SQL
	sql('SELECT onside_attribution.resume()');
	wait_for_flush($node, 'postgres', 'and so does sending');
	$replay->query_safe('COMMIT');
	$replay->quit;
	wait_for_flush($node, 'postgres', 'what was replayed is sent when that has committed');
};

is(sql('SELECT count(*) FROM onside_attribution.dead_letter'), 0, 'no dead letter in the end');
$node->stop;
done_testing();
