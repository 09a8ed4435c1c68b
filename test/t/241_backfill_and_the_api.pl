# What backfill records arrives, each row once.  While too much is pending it
# waits, without a snapshot, and goes on when the API has taken it.  And replay,
# called by two at a time, does not record the same event twice.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/../perl";

use PostgreSQL::Test::Utils;
use Test::More;

use OnsideSandbox;
use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox, conf => "onside_attribution.retention = '1h'");
create_extension($node, 'postgres');
my $user = "'0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9'";

sub sql { return $node->safe_psql('postgres', $_[0]) }

# ---------------------------------------------------------------------------
# Too much is pending
# ---------------------------------------------------------------------------

sql(<<SQL);
CREATE TABLE shop (id bigint PRIMARY KEY, install_id uuid, paid_at timestamptz, uid uuid DEFAULT gen_random_uuid());
INSERT INTO shop SELECT n, $user, '2026-05-05 12:00+00' FROM generate_series(1, 1500) AS n;
SELECT onside_attribution.attach('shop', 'bought', 'install_id', '{"id": "id"}', 'paid_at', 'uid');
SELECT onside_attribution.pause('a test');
SQL
poll_status($node, 'postgres', { state => 'paused' }, 'paused');
sql(<<SQL);
SELECT onside_attribution.track_batch(jsonb_agg(jsonb_build_object(
    'event_name', 'filler', 'payload', '{}'::jsonb, 'event_datetime', '2026-05-05T12:00:00Z', 'installation_id', $user)))
FROM generate_series(1, 100000);
SQL
my $backfill = $node->background_psql('postgres', on_error_stop => 0);
$backfill->query_until(qr/started/, "\\echo started\nCALL onside_attribution.backfill('shop', 'bought');\n\\echo ended\n");
$node->poll_query_until('postgres', "SELECT recorded = 1000 FROM onside_attribution.backfill_progress")
  or die 'backfill does not record its first chunk';
$node->poll_query_until('postgres', "SELECT wait_event_type = 'Extension' FROM pg_stat_activity WHERE query LIKE 'CALL onside%'")
  or die 'backfill does not wait';
is(sql('SELECT recorded, finished_at IS NULL FROM onside_attribution.backfill_progress'), '1000|t', 'it waits behind its first chunk');
is(sql("SELECT backend_xmin IS NULL AND backend_xid IS NULL FROM pg_stat_activity WHERE query LIKE 'CALL onside%'"),
	't', 'without a snapshot and without a transaction number');

sql('SELECT onside_attribution.resume()');
$backfill->query_until(qr/ended/, '');
$backfill->quit;
is(sql('SELECT recorded, finished_at IS NOT NULL FROM onside_attribution.backfill_progress'), '1500|t', 'it goes on when there is room');
wait_for_flush($node, 'postgres', 'all is delivered');
my %times = map { $_ => 1 } split /\n/,
  sql("SELECT event_id FROM onside_attribution.outbox WHERE event_name = 'bought'");
my $events = $sandbox->events;
is(scalar(keys %times), 1500, 'each row is an event');
is_deeply([ grep { ($events->{$_} // 0) != 1 } keys %times ], [], 'each has arrived once');

# ---------------------------------------------------------------------------
# replay
# ---------------------------------------------------------------------------

my $first = $node->background_psql('postgres', on_error_stop => 1);
$first->query_safe('BEGIN');
is($first->query_safe("SELECT onside_attribution.replay('-infinity')"), 101500, 'replay: the first call records all');
my $second = $node->background_psql('postgres', on_error_stop => 1);
$second->query_until(qr/started/, "\\echo started\nSELECT 'second: ' || onside_attribution.replay('-infinity');\n");
$node->poll_query_until('postgres', "SELECT count(*) = 1 FROM pg_locks WHERE relation = 'onside_attribution.outbox'::regclass AND NOT granted")
  or die 'the second replay does not wait';
sql('SELECT onside_attribution.pause()');
$first->query_safe('COMMIT');
like($second->query_until(qr/second: \d+/, ''), qr/second: 0$/m, 'replay: the second one finds nothing left to do');
$_->quit foreach $first, $second;
sql('SELECT onside_attribution.resume()');
wait_for_flush($node, 'postgres', 'replay: all is delivered');

$node->stop;
done_testing();
