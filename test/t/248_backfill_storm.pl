# backfill beside twenty writing sessions: rows are updated and move between
# partitions, partitions are made, filled, attached, detached and dropped; backfill is
# ended by pg_terminate_backend and by kill -9, which restarts the server, and called
# again.  Every row that was there at the beginning is an event, under one event_id.

use IPC::Run ();
use OnsideTest;

my $rows = 90000;
my $node = onside_node('main', conf => <<'CONF');
onside_attribution.enabled = off
restart_after_crash = on
max_connections = 60
log_min_messages = fatal
CONF
create_extension($node, 'postgres');

sub sql { return $node->safe_psql('postgres', $_[0]) }

# A slow row now and then, so that there is time for something to happen; and backfill
# waits where it is to be ended, after so many rows more.
sql(<<"SQL");
CREATE TABLE orders (id bigint, part int NOT NULL, note text, inst uuid DEFAULT gen_random_uuid(), PRIMARY KEY (id, part)) PARTITION BY LIST (part);
CREATE TABLE orders_0 PARTITION OF orders FOR VALUES IN (0);
CREATE TABLE orders_1 PARTITION OF orders FOR VALUES IN (1) PARTITION BY HASH (id);
CREATE TABLE orders_1_0 PARTITION OF orders_1 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE orders_1_1 PARTITION OF orders_1 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE orders_2 PARTITION OF orders FOR VALUES IN (2);
CREATE TABLE orders_rest PARTITION OF orders DEFAULT;
INSERT INTO orders (id, part) SELECT n, n % 4 FROM generate_series(1, $rows) AS n;
ANALYZE orders;
CREATE SEQUENCE seen;
CREATE TABLE gate AS SELECT 0::bigint AS at;
CREATE FUNCTION slow(bigint) RETURNS boolean LANGUAGE sql AS
	'SELECT CASE WHEN nextval(''public.seen'') >= (SELECT at FROM public.gate) THEN pg_sleep(600) IS NOT NULL WHEN \$1 % 20 = 0 THEN pg_sleep(0.005) IS NOT NULL ELSE true END';
SELECT onside_attribution.attach('orders', 'e', 'inst', '{"id": "id"}', event_id => 'id', condition => 'public.slow(NEW.id)');
ALTER TABLE orders DISABLE TRIGGER USER;
SQL

# ---------------------------------------------------------------------------
# Who writes
# ---------------------------------------------------------------------------

my $script = $node->basedir . '/writes.sql';
append_to_file($script, <<"SQL");
\\set id random(1, $rows)
\\set part random(0, 3)
\\set new random($rows + 1, $rows * 1000)
UPDATE orders SET part = :part, note = repeat('x', 100) WHERE id = :id;
UPDATE orders SET note = now()::text WHERE id = :id;
INSERT INTO orders (id, part) VALUES (:new, :part) ON CONFLICT DO NOTHING;
DELETE FROM orders WHERE id > $rows AND id = :new AND part = :part;
SQL
my $partitions = $node->basedir . '/partitions.sql';
append_to_file($partitions, <<'SQL');
\set n random(10, 1000000)
CREATE TABLE made_:n PARTITION OF orders FOR VALUES IN (:n);
INSERT INTO orders (id, part) SELECT -i - :n, :n FROM generate_series(1, 20) AS i;
ALTER TABLE orders DETACH PARTITION made_:n;
ALTER TABLE orders ATTACH PARTITION made_:n FOR VALUES IN (:n);
UPDATE orders SET part = 3 WHERE part = :n AND id % 2 = 0;
DROP TABLE made_:n;
SQL

# IPC::Run notices that a program has ended when it is asked for its output.
sub is_running
{
	my ($run) = @_;
	eval { $run->pump_nb };
	return $run->pumpable;
}

my @writers;

# Two rows can be updated by two sessions at once, and one of them moves: an error that
# ends a session of pgbench.  It is started again whenever somebody looks.
sub write_on
{
	foreach my $writer (@writers)
	{
		next if defined $writer->{run} && is_running($writer->{run});
		$writer->{run} = IPC::Run::start(
			[ 'pgbench', '-n', '-T', '600', '-c', $writer->{sessions}, '-f', $writer->{file}, '-h', $node->host, '-p', $node->port, 'postgres' ],
			'>', \$writer->{out}, '2>', \$writer->{err});
	}
	return;
}
push @writers, { sessions => 1, file => $script, out => '', err => '' } foreach 1 .. 19;
push @writers, { sessions => 1, file => $partitions, out => '', err => '' };

# ---------------------------------------------------------------------------
# backfill, ended again and again
# ---------------------------------------------------------------------------

# Is backfill at the gate?  And the session that it is.
sub look
{
	my $out = eval { sql(<<'SQL') };
SELECT seen.last_value >= gate.at, coalesce((SELECT pid FROM pg_stat_activity WHERE query LIKE 'CALL%' AND state = 'active'), 0) FROM seen, gate
SQL
	return split /\|/, $out || 'f|0';
}

# How it is ended, each time after another 15 % of the rows.
foreach my $how (qw(terminate kill terminate terminate kill), '')
{
	my ($out, $err) = ('', '');
	sql('UPDATE gate SET at = ' . ($how eq '' ? 'NULL' : "(SELECT last_value FROM seen) + $rows * 0.15"));
	write_on();
	my $call = IPC::Run::start([ 'psql', '-X', '-h', $node->host, '-p', $node->port, '-c', "CALL onside_attribution.backfill('orders', 'e')", 'postgres' ],
		'>', \$out, '2>', \$err);

	wait_until(sub {
		write_on();
		my ($at_gate, $pid) = look();
		return 1 unless is_running($call);
		return 0 if $how eq '' || $pid == 0 || $at_gate ne 't';
		$how eq 'kill' ? kill('KILL', $pid) : sql("SELECT pg_terminate_backend($pid)");
		return 1;
	}, undef, 0.05) or die "backfill does not go on: $err";
	$call->finish;
	like($err, $how eq '' ? qr/has come to its end/ : qr/terminating connection|server closed the connection/,
		$how eq '' ? 'called once more, it comes to its end' : "it is ended by $how");
	wait_until(sub { eval { $node->psql('postgres', 'SELECT 1') == 0 } }) or die 'the server does not come back';
}
$_->{run}->kill_kill foreach @writers;

is(sql("SELECT count(*) FROM orders WHERE id BETWEEN 1 AND $rows"), $rows, '(all rows are still there)');
is(sql(<<"SQL"), 0, 'every row that was there at the beginning is an event');
SELECT count(*) FROM generate_series(1, $rows) AS n
WHERE NOT EXISTS (SELECT FROM onside_attribution.outbox WHERE payload = jsonb_build_object('id', n))
SQL
is(sql('SELECT count(*) FROM (SELECT FROM onside_attribution.outbox GROUP BY payload HAVING count(DISTINCT event_id) > 1) AS several'),
	0, 'and one');
is(sql('SELECT count(DISTINCT payload) = count(DISTINCT event_id) FROM onside_attribution.outbox'), 't', '(each its own)');
note(sql("SELECT count(*) || ' events of ' || count(DISTINCT event_id) || ' rows' FROM onside_attribution.outbox"));
note(sql("SELECT sum(n_tup_upd) || ' updates' FROM pg_stat_user_tables"));

$node->stop;
done_testing();
