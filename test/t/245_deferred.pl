# A deferred trigger, and one for what a row becomes, do the same in a restored dump,
# in prepared transactions, after a rolled back statement, and for a role that may
# write and nothing else; nothing of a transaction is left in the session; and a row
# costs the same among many.

use OnsideTest;

my $node = onside_node('main', conf => "onside_attribution.enabled = off\n");
create_extension($node, 'postgres');

$node->safe_psql('postgres', <<'SQL');
CREATE ROLE clerk LOGIN;
CREATE TABLE payments (id int PRIMARY KEY, state text, order_id int);
CREATE TABLE orders (id int PRIMARY KEY, installation_id uuid, currency text);
INSERT INTO orders VALUES (1, '550e8400-e29b-41d4-a716-446655440000', 'usd');
GRANT INSERT, UPDATE (state, order_id), SELECT (id) ON payments TO clerk;
GRANT SELECT ON orders TO clerk;
CREATE FUNCTION report(p payments) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT e.* FROM orders o, LATERAL onside_attribution.purchase(o.installation_id, onside_attribution.amount(990, 2), o.currency,
        event_id => onside_attribution.event_id('payments', p.id::text)) e
    WHERE o.id = p.order_id $$;
SELECT onside_attribution.attach('payments', 'paid', mapper => 'report', becomes => $$NEW.state = 'settled'$$, deferred => true);
SQL

# What has been recorded since it was asked last.
sub recorded
{
	my ($database) = @_;
	my $seen = $node->safe_psql($database, q{SELECT event_id, payload ->> 'amount', payload ->> 'currency' FROM onside_attribution.outbox ORDER BY 1});
	$node->safe_psql($database, 'DELETE FROM onside_attribution.outbox');
	return $seen;
}

# The reference is written after the state; what a savepoint took back, or the whole.
my $pays = <<'SQL';
INSERT INTO payments VALUES (:id, 'created');
SAVEPOINT s;
UPDATE payments SET state = 'settled' WHERE id = :id;
ROLLBACK TO s;
UPDATE payments SET state = 'settled' WHERE id = :id;
UPDATE payments SET order_id = 1 WHERE id = :id;
SQL

sub event
{
	my ($database, $id) = @_;
	return $node->safe_psql($database, "SELECT onside_attribution.event_id('payments', '$id')") . '|9.90|USD';
}

sub rounds
{
	my ($database, $from) = @_;
	my $id = $from;
	my $run = sub { my ($sql, @more) = @_; return $node->safe_psql($database, $sql =~ s/:id/$id/gr, @more) };

	$run->("BEGIN; $pays COMMIT");
	is(recorded($database), event($database, $id), "$database: it is an event");

	$id++;
	$run->("BEGIN; $pays ROLLBACK");
	is(recorded($database), '', "$database: rolled back it is none");

	$id++;
	$run->("BEGIN; $pays PREPARE TRANSACTION 'g'");
	is(recorded($database), '', "$database: prepared it is none yet");
	$run->("COMMIT PREPARED 'g'");
	is(recorded($database), event($database, $id), "$database: committed then it is one");

	$id++;
	$run->("SET ROLE clerk; BEGIN; $pays COMMIT");
	is(recorded($database), event($database, $id), "$database: written by who may not read it");

	# A statement that fails in the end takes nothing along but itself.
	$id++;
	my $next = $id + 1;
	$node->psql($database, "BEGIN; $pays SELECT 1/0; COMMIT; BEGIN; INSERT INTO payments VALUES ($next, 'settled', 1); COMMIT" =~ s/:id/$id/gr, on_error_stop => 0);
	is(recorded($database), event($database, $next), "$database: after a transaction that failed");

	# The same session, many transactions.
	$id += 2;
	my $many = join '', map { "BEGIN; INSERT INTO payments VALUES ($_, 'settled', 1); UPDATE payments SET state = 'new' WHERE id = $_; UPDATE payments SET state = 'settled' WHERE id = $_; COMMIT;\n" } $id .. $id + 49;
	$run->($many);
	is(scalar(split /\n/, recorded($database)), 50, "$database: fifty in one session");
	return;
}

rounds('postgres', 1);

my $dump = $node->basedir . '/dump.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE restored');
$node->command_ok([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('restored') ], 'restored');
is($node->safe_psql('restored', 'SELECT * FROM onside_attribution.attached'), $node->safe_psql('postgres', 'SELECT * FROM onside_attribution.attached'), 'attached the same');
recorded('restored');
rounds('restored', 1001);

# A mapper is called in a subtransaction, and each row is remembered: a row costs the
# same among many.  Processor time of one session, so what else runs matters little;
# twenty times the rows took four hundred times as long when each end of a
# subtransaction looked at all.
sub cpu_of
{
	my ($from, $rows) = @_;
	my $ticks = q{SELECT split_part(stat, ' ', 14)::int + split_part(stat, ' ', 15)::int FROM pg_read_file('/proc/self/stat', 0, 1000) stat;};
	my ($before, $after) = split /\n/, $node->safe_psql('postgres', <<SQL);
$ticks
INSERT INTO payments SELECT g, 'settled', 1 FROM generate_series($from + 1, $from + $rows) g;
$ticks
SQL
	return $after - $before;
}
$node->safe_psql('postgres', 'DELETE FROM onside_attribution.outbox');
my $few = cpu_of(1_000_000, 5_000);
my $many = cpu_of(2_000_000, 100_000);
cmp_ok($many, '<', 100 * ($few || 1), "a hundred thousand rows take $many ticks, five thousand $few");
is($node->safe_psql('postgres', 'SELECT count(DISTINCT event_id) FROM onside_attribution.outbox'), 105_000, 'and each is an event');

# Each version of a row can fire the trigger, and each way from one to the last would
# read all in between.  So the blocks of the table that are read are counted.
sub blocks_of
{
	my ($updates) = @_;
	my $read = q{SELECT heap_blks_hit + heap_blks_read FROM pg_statio_user_tables WHERE relname = 'turns';};
	my ($before, $after) = split /\n/, $node->safe_psql('postgres', <<SQL);
VACUUM turns;
SELECT FROM pg_stat_force_next_flush();
$read
BEGIN;
DO \$\$ BEGIN FOR i IN 1..$updates LOOP UPDATE turns SET state = CASE i % 2 WHEN 0 THEN 'new' ELSE 'paid' END, n = i; END LOOP; END \$\$;
COMMIT;
SELECT FROM pg_stat_force_next_flush();
$read
SQL
	return $after - $before;
}
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE turns (id int PRIMARY KEY, state text, n int, installation_id uuid) WITH (fillfactor = 10, autovacuum_enabled = off);
INSERT INTO turns VALUES (1, 'new', 0, '550e8400-e29b-41d4-a716-446655440000');
SELECT onside_attribution.attach('turns', 'turn', 'installation_id', '{"n": "n"}', becomes => $$NEW.state = 'paid'$$, deferred => true);
DELETE FROM onside_attribution.outbox;
SQL
my $blocks = blocks_of(1001);
cmp_ok($blocks, '<', 100 * 1001, "a row that is written a thousand times: $blocks blocks");
is($node->safe_psql('postgres', 'SELECT payload FROM onside_attribution.outbox'), '{"n": 1001}', 'and it is one event, of what it is in the end');

my $log = slurp_file($node->logfile);
unlike($log, qr/leak|PANIC|terminated by signal/, 'nothing is left behind');
$node->stop;
done_testing();
