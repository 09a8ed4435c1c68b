# A server that nobody can install C on records, a small cluster with the extension
# subscribes and sends: what was committed arrives, what was rolled back does not, over
# kill -9 of the sender and restarts of the recorder; and what was recorded before there was a
# subscription, or while its slot was lost, arrives with the next one's initial copy.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use OnsideSandbox;
use OnsideTest;
use OnsideTopology qw(install_recorder);

my $sandbox = OnsideSandbox->start;
my $recorder = onside_node('recorder', preload => 0, init => { allows_streaming => 'logical' },
	conf => "max_slot_wal_keep_size = 48MB\nmin_wal_size = 32MB\nmax_wal_size = 64MB\n");
my $sender = onside_node('sender', sandbox => $sandbox, conf => "wal_retrieve_retry_interval = '100ms'\n");
create_extension($sender, 'postgres');

$recorder->safe_psql('postgres', 'CREATE ROLE shop LOGIN');
$recorder->safe_psql('postgres', 'CREATE ROLE replicator LOGIN REPLICATION');
$recorder->safe_psql('postgres', 'CREATE DATABASE shop OWNER shop');
my $as_shop = sub { return $recorder->safe_psql('shop', $_[0], extra_params => [ '-U', 'shop' ]) };
install_recorder($recorder, 'shop', 'shop', 'recorder.sql');
$as_shop->('GRANT SELECT ON onside_attribution.outbox TO replicator');

my $installation = '550e8400-e29b-41d4-a716-446655440000';
$as_shop->(<<"SQL");
CREATE TABLE noted (id uuid);
CREATE TABLE users (id int PRIMARY KEY, installation_id uuid);
INSERT INTO users VALUES (1, '$installation');
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id int DEFAULT 1, cents int, state text, installation_id uuid DEFAULT '$installation');
CREATE FUNCTION report(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS \$\$
    SELECT e.* FROM users u, LATERAL onside_attribution.purchase(u.installation_id, onside_attribution.amount(o.cents, 2), 'USD', now(),
        onside_attribution.event_id('orders', o.id::text)) e WHERE u.id = o.user_id \$\$;
SELECT onside_attribution.attach('orders', 'paid', mapper => 'report', becomes => \$\$NEW.state = 'paid'\$\$);
SELECT onside_attribution.attach('orders', 'ordered', 'installation_id', '{"cents": "cents"}', event_id => 'id');
SQL

# What was committed, by the outbox itself: it keeps a week.
sub committed_ids { return [ split /\n/, $as_shop->('SELECT DISTINCT event_id FROM onside_attribution.outbox') ] }

sub purchases
{
	my ($n) = @_;
	$as_shop->(<<"SQL");
INSERT INTO noted SELECT onside_attribution.track('by hand', '$installation', '{}') FROM generate_series(1, $n);
INSERT INTO orders (cents, state) SELECT g, 'new' FROM generate_series(1, $n) g;
UPDATE orders SET state = 'paid' WHERE id % 2 = 0;
BEGIN; SELECT onside_attribution.track('rolled back', '$installation', '{}'); INSERT INTO orders (cents, state) VALUES (1, 'paid'); ROLLBACK;
BEGIN; SAVEPOINT a; INSERT INTO orders (cents, state) VALUES (1, 'paid'); ROLLBACK TO a; INSERT INTO orders (cents, state) VALUES (2, 'paid'); COMMIT;
SQL
	return;
}

sub subscribe
{
	$sender->safe_psql('postgres', 'CREATE SUBSCRIPTION onside_shop CONNECTION \'' . $recorder->connstr('shop') =~ s/'/''/gr . ' user=replicator\' PUBLICATION onside_attribution');
	return;
}

sub all_arrived
{
	my ($what) = @_;
	my $last = $as_shop->("SELECT onside_attribution.track('last', '$installation', '{}')");
	ok(wait_until(sub { $sandbox->accepted($last) }), "$what: the last one arrived");
	wait_for_flush($sender, 'postgres', "$what: all is sent");
	arrived_ok($sandbox, committed_ids(), "$what: what was committed, and nothing else");
	return;
}

# Before there is a slot.
purchases(100);
subscribe();
all_arrived('recorded before there was a subscription');
is($as_shop->(q{SELECT bool_and(ok) FROM onside_attribution.doctor()}), 't', 'doctor() of the recorder is content');

# The sender is killed, the recorder restarted.
foreach my $round (1 .. 5)
{
	purchases(40);
	$sender->stop('immediate');
	purchases(40);
	$recorder->restart if $round % 2;
	$sender->start;
	poll_worker($sender, 'postgres');
}
all_arrived('five kills and three restarts');

# A slot that is dropped, and one whose WAL is gone.
$sender->safe_psql('postgres', 'ALTER SUBSCRIPTION onside_shop DISABLE');
ok($recorder->poll_query_until('shop', q{SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'onside_shop'}), 'nobody reads the slot');
purchases(50);
is($as_shop->(q{SELECT ok, detail ~ 'nobody reads it' FROM onside_attribution.doctor() WHERE check_name = 'slot onside_shop'}), 'f|t', 'doctor() says so');
$recorder->safe_psql('shop', q{CREATE TABLE filler (x text)});
foreach (1 .. 20)
{
	$recorder->safe_psql('shop', q{INSERT INTO filler SELECT repeat(md5(g::text), 30) FROM generate_series(1, 10000) g});
	$recorder->safe_psql('shop', 'SELECT pg_switch_wal()');
	$recorder->safe_psql('shop', 'CHECKPOINT');
	last if $recorder->safe_psql('shop', q{SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'onside_shop'}) eq 'lost';
}
is($as_shop->(q{SELECT ok, detail, hint ~ 'CREATE SUBSCRIPTION' FROM onside_attribution.doctor() WHERE check_name = 'slot onside_shop'}),
	'f|its WAL has been removed: nothing arrives through it any more|t', 'doctor() says that a slot is lost, and what to do');
$sender->safe_psql('postgres', 'ALTER SUBSCRIPTION onside_shop SET (slot_name = NONE)');
$sender->safe_psql('postgres', 'DROP SUBSCRIPTION onside_shop');
$recorder->safe_psql('shop', q{SELECT pg_drop_replication_slot('onside_shop')});
is($as_shop->(q{SELECT ok FROM onside_attribution.doctor() WHERE check_name = 'slot'}), 'f', 'doctor() misses the slot');
purchases(50);
subscribe();
all_arrived('a lost slot');

# An event that is none does not stop the others: somebody has written it by hand.
$recorder->safe_psql('shop', qq{INSERT INTO onside_attribution.outbox (event_id, event_name, payload, installation_id)
	VALUES ('018f6d3e-5b7a-7000-8000-000000000001', ' ', '[]', '$installation')});
my $after = $as_shop->("SELECT onside_attribution.track('after it', '$installation', '{}')");
ok(wait_until(sub { $sandbox->accepted($after) }), 'an invalid row stops nothing');
is($sender->safe_psql('postgres', q{SELECT event_name, payload, error, retry_at IS NULL FROM onside_attribution.dead_letter}),
	' |[]|event_name must not be empty or blank|t', 'and is a dead letter of the sender');
$_->stop foreach $sender, $recorder;
$sandbox->stop;
done_testing();
