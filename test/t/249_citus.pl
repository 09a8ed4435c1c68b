# With Citus, whichever server writes a row of a distributed table reports it, once:
# whether the table was attached before it was distributed or after, by columns or by
# a mapper, deferred or not, after a column was added and after a shard was moved;
# and what cannot work says what can.

use OnsideTest;

my $sandbox = OnsideSandbox->start;

sub server
{
	my ($name) = @_;
	my $node = onside_node($name, sandbox => $sandbox, start => 0, conf => <<'CONF');
shared_preload_libraries = 'citus, onside_attribution'
listen_addresses = '127.0.0.1'
wal_level = logical
max_wal_senders = 10
max_replication_slots = 10
max_worker_processes = 32
max_connections = 100
max_prepared_transactions = 100
citus.enable_unsafe_triggers = on
citus.enable_version_checks = off
CONF
	$node->append_conf('pg_hba.conf', 'host all all 127.0.0.1/32 trust');
	return $node;
}

my $plain = onside_node('plain');
my $available = $plain->safe_psql('postgres', q{SELECT count(*) FROM pg_available_extensions WHERE name = 'citus'});
$plain->stop;
plan skip_all => 'Citus is not installed' unless $available;

my ($coordinator, @workers) = map { server($_) } qw(coordinator worker1 worker2);
my @nodes = ($coordinator, @workers);
foreach my $node (@nodes)
{
	$node->start;
	$node->safe_psql('postgres', 'CREATE DATABASE shop');
	$node->safe_psql('shop', 'CREATE EXTENSION citus');
}

# What a shop does, at the coordinator.
sub sql { return $coordinator->safe_psql('shop', $_[0]) }

sql("SELECT citus_set_coordinator_host('127.0.0.1', " . $coordinator->port . ')');
sql("SELECT citus_add_node('127.0.0.1', " . $_->port . ')') foreach @workers;
sql('CREATE EXTENSION onside_attribution');
poll_worker($_, 'shop') foreach @nodes;
is($_->safe_psql('shop', q{SELECT count(*) FROM pg_extension WHERE extname = 'onside_attribution'}), 1,
	'the extension is on ' . $_->name) foreach @nodes;

my $installation = '550e8400-e29b-41d4-a716-446655440000';
sql(<<"SQL");
CREATE TABLE users (id bigint PRIMARY KEY, installation_id uuid);
SELECT create_reference_table('users');
INSERT INTO users VALUES (1, '$installation');

CREATE TABLE before (id bigint PRIMARY KEY, user_id bigint, cents int, state text, installation_id uuid DEFAULT '$installation', made_at timestamptz DEFAULT now());
SELECT onside_attribution.attach('before', 'before', 'installation_id', '{"cents": "cents"}', event_id => 'id');
SELECT create_distributed_table('before', 'id', shard_count => 4);

CREATE TABLE orders (LIKE before INCLUDING ALL);
SELECT create_distributed_table('orders', 'id', shard_count => 4);
CREATE FUNCTION report(o orders) RETURNS SETOF onside_attribution.event LANGUAGE plpgsql STABLE AS \$\$ BEGIN RETURN QUERY
    SELECT e.* FROM users u, LATERAL onside_attribution.purchase(u.installation_id, onside_attribution.amount(o.cents, 2), 'USD', o.made_at,
        event_id => onside_attribution.event_id('orders', o.id::text)) e
    WHERE u.id = o.user_id; END \$\$;
CREATE FUNCTION by_itself(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS \$\$
    SELECT e.* FROM onside_attribution.purchase(o.installation_id, o.cents, 'USD', event_id => onside_attribution.event_id('orders', o.id::text)) e \$\$;
SELECT onside_attribution.attach('orders', 'simple', mapper => 'by_itself');
SELECT onside_attribution.attach('orders', 'bulk', mapper => 'report');
SELECT onside_attribution.attach('orders', 'paid', mapper => 'report', becomes => \$\$NEW.state = 'paid'\$\$);
SELECT onside_attribution.attach('orders', 'at_end', mapper => 'report', becomes => \$\$NEW.state = 'paid'\$\$, deferred => true);
SELECT onside_attribution.attach('orders', 'after', 'installation_id', '{"cents": "cents"}', event_id => 'id');
SQL

# What all nodes have recorded since it was asked last, "event_name rows event_ids".
sub recorded
{
	my %seen;
	foreach my $node (@nodes)
	{
		foreach (split /\n/, $node->safe_psql('shop', q{SELECT event_name || ' ' || event_id FROM onside_attribution.outbox}))
		{
			my ($name, $id) = split / /;
			push @{ $seen{$name} }, $id;
		}
		$node->safe_psql('shop', 'DELETE FROM onside_attribution.outbox; DELETE FROM onside_attribution.delivery_cursor')
	}
	return join ', ', map { my %ids = map { $_ => 1 } @{ $seen{$_} }; "$_ " . @{ $seen{$_} } . ' ' . keys %ids } sort keys %seen;
}

# Nothing is sent meanwhile, so that it can be counted.
$_->safe_psql('shop', 'SELECT onside_attribution.pause()') foreach @nodes;

sub writes
{
	my ($when, $from) = @_;
	my $to = $from + 39;
	foreach my $node (@nodes)
	{
		my $name = $node->name;
		$node->safe_psql('shop', "INSERT INTO before (id, user_id, cents) SELECT g, 1, g FROM generate_series($from, $to) g");
		is(recorded(), 'before 40 40', "$when, $name: attached before it was distributed");

		# A mapper is called in a subtransaction, of which Citus tells the servers with which
		# it is in the middle of a conversation if it executes shards of its own itself.
		$node->safe_psql('shop', "SET citus.enable_local_execution = off; INSERT INTO orders (id, user_id, cents, state) SELECT g, 1, g, 'new' FROM generate_series($from, $to) g");
		is(recorded(), 'after 40 40, bulk 40 40, simple 40 40', "$when, $name: attached afterwards, many rows");
		$node->safe_psql('shop', "BEGIN; UPDATE orders SET state = 'paid' WHERE id = $from; UPDATE orders SET cents = 7 WHERE id = $from; COMMIT");
		is(recorded(), 'at_end 1 1, paid 1 1', "$when, $name: what becomes paid");
		$node->safe_psql('shop', "BEGIN; UPDATE orders SET state = 'paid' WHERE id = $from + 1; ROLLBACK");
		is(recorded(), '', "$when, $name: rolled back it is none");
		$from += 100;
		$to += 100;
	}
	return;
}
writes('at first', 1000);

sql('ALTER TABLE orders ADD COLUMN note text; ALTER TABLE before DROP COLUMN state');
writes('a column was added, one dropped', 2000);

my $other = $workers[1]->port;
sql(<<"SQL");
SELECT citus_move_shard_placement(shardid, nodename, nodeport, '127.0.0.1', $other, 'block_writes')
FROM citus_shards WHERE table_name::text = 'orders' AND nodeport <> $other ORDER BY shardid LIMIT 1
SQL
is(recorded(), '', 'rows that are moved are no events');
writes('a shard was moved', 3000);

# The same event, whoever reports it: a repetition has the same event_id.
my $id = sql(q{SELECT onside_attribution.event_id('orders', '3000')});
sql('DELETE FROM orders WHERE id = 3000');
sql(q{INSERT INTO orders (id, user_id, cents, state) VALUES (3000, 1, 5, 'paid')});
my @found = map { $_->safe_psql('shop', "SELECT count(*) FROM onside_attribution.outbox WHERE event_id = '$id' AND event_name = 'paid'") } @nodes;
is(join('', sort @found), '001', 'an event_id made of a key is the same on every node');
recorded();

# Of a reference table each node has, and reports, each row.
my ($ret, undef, $err) = $coordinator->psql('shop', q{SELECT onside_attribution.attach('users', 'user', 'installation_id', '{}')});
like($err, qr/a reference table of Citus needs an event_id.*HINT:  Map the primary key/s, 'a reference table needs an event_id');
sql(q{SELECT onside_attribution.attach('users', 'user', 'installation_id', '{}', event_id => 'id')});
sql("INSERT INTO users VALUES (2, '$installation')");
is(recorded(), 'user 3 1', 'then it is one event to the API');

# What is refused.
(undef, undef, $err) = $coordinator->psql('shop', q{SET citus.enable_unsafe_triggers = off; SELECT onside_attribution.attach('orders', 'x', 'installation_id', '{}')});
like($err, qr/triggers are not supported on distributed tables.*HINT:  Citus makes and drops triggers/s, 'Citus has to be told to make triggers');
(undef, undef, $err) = $coordinator->psql('shop', q{CALL onside_attribution.backfill('orders', 'after')});
like($err, qr/are in shards of Citus.*HINT:  Call it on each node/s, 'backfill() tells where the rows are');

(undef, undef, $err) = $coordinator->psql('shop', q{SET citus.enable_unsafe_triggers = off; SELECT onside_attribution.detach('orders', 'after')});
like($err, qr/triggers are not supported on distributed tables.*HINT:  Citus makes and drops triggers/s, '... and to drop them');
my $shard = sql('SELECT shard_name FROM citus_shards WHERE table_name::text = $$orders$$ AND nodeport = ' . $workers[1]->port . ' LIMIT 1');
foreach my $call (qq{attach('$shard', 'x', 'installation_id', '{}')}, qq{detach('$shard', 'after')})
{
	(undef, undef, $err) = $workers[1]->psql('shop', "SELECT onside_attribution.$call");
	like($err, qr/"$shard" is a shard of Citus.*HINT:  At the coordinator, \w+ the table "orders"/s, "a shard is none to be attached or detached: $call");
}

# Of a long name Citus leaves out a part.
my $long = 'a' x 63;
sql(<<"SQL");
CREATE TABLE $long (id bigint PRIMARY KEY, installation_id uuid);
SELECT create_distributed_table('$long', 'id', shard_count => 4, colocate_with => 'none');
CREATE FUNCTION of_long(o $long) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS
    \$\$ SELECT e.* FROM onside_attribution.purchase(o.installation_id, 1, 'USD') e \$\$;
SELECT onside_attribution.attach('$long', 'long', mapper => 'of_long');
INSERT INTO $long VALUES (1, '$installation'), (2, '$installation'), (3, '$installation');
SQL
is(recorded(), 'long 3 3', 'a table with a long name has its mapper in the shards');

# What Citus makes anew loses the function that takes its row.  The purchase goes on.
sql("SELECT alter_distributed_table('$long', shard_count => 6)");
(undef, undef, $err) = $coordinator->psql('shop', "INSERT INTO $long VALUES (4, '$installation')");
like($err, qr/mapper public.of_long\($long\) does not exist.*CREATE OR REPLACE FUNCTION at the coordinator/s, 'a mapper that is gone: what to do');
sql(<<"SQL");
CREATE FUNCTION of_long(o $long) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS
    \$\$ SELECT e.* FROM onside_attribution.purchase(o.installation_id, 1, 'USD') e \$\$;
INSERT INTO $long VALUES (5, '$installation'), (6, '$installation'), (7, '$installation');
SQL
is(recorded(), 'long 3 3', '... and that helps');
$_->safe_psql('shop', 'DELETE FROM onside_attribution.dead_letter') foreach @nodes;

# Purchases queue behind attach(), so it does not wait for others' locks there, either.
my $writer = $workers[0]->background_psql('shop');
$writer->query_safe('BEGIN; INSERT INTO before (id, cents) SELECT g, g FROM generate_series(8001, 8040) g');
(undef, undef, $err) = $coordinator->psql('shop', q{SET statement_timeout = '60s'; SELECT onside_attribution.attach('before', 'x', 'installation_id', '{}', event_id => 'id')});
like($err, qr/lock timeout.*HINT:  Another session uses the table/s, 'attach() waits for a lock on another node no longer than here');
$writer->query_safe('ROLLBACK');
$writer->quit;
is(sql(q{BEGIN; SELECT onside_attribution.attach('before', 'x', 'installation_id', '{}', event_id => 'id'); SHOW lock_timeout; ROLLBACK}),
	"onside_x\n0", '... and lock_timeout is what it was');

# On its node, a shard is backfilled under the same event_ids.
my $rows = sql('SELECT count(*) FROM orders');
foreach my $worker (@workers)
{
	foreach my $shard (split /\n/, sql('SELECT shard_name FROM citus_shards WHERE table_name::text = $$orders$$ AND nodeport = ' . $worker->port))
	{
		$worker->safe_psql('shop', "CALL onside_attribution.backfill('$shard', '$_')") foreach qw(after paid);
	}
}
my $paid = sql(q{SELECT count(*) FROM orders WHERE state = 'paid'});
is(recorded(), "after $rows $rows, paid $paid $paid", 'the shards hold all rows');

foreach my $node (@nodes)
{
	is($node->safe_psql('shop', q{SELECT detail FROM onside_attribution.doctor() WHERE check_name = 'attached' AND NOT ok}), '',
		$node->name . ': doctor() sees nothing wrong');
	is($node->safe_psql('shop', 'SELECT count(*) FROM onside_attribution.dead_letter'), 0, $node->name . ': nothing was refused');
}

# It is sent by the node that wrote it, exactly when it is committed.
$_->safe_psql('shop', 'SELECT onside_attribution.resume()') foreach @nodes;
sql("BEGIN; INSERT INTO before (id, cents) SELECT g, g FROM generate_series(9001, 9040) g; COMMIT");
wait_for_flush($_, 'shop', $_->name . ': sent') foreach @nodes;
is(scalar keys %{ $sandbox->events }, 40, 'all of them arrived');

# Detached, the shards report nothing.
recorded();
sql(q{SELECT onside_attribution.detach('before', 'before')});
sql('INSERT INTO before (id, cents) VALUES (9999, 1)');
is(recorded(), '', 'detach() reaches the shards');
$_->stop foreach @nodes;
$sandbox->stop;
done_testing();
