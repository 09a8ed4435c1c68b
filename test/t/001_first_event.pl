# From CREATE EXTENSION's commit on, and without a restart, what is committed in
# a database arrives at the API, byte for byte as preview() shows it; DROP
# EXTENSION ends that.  Without preload events are recorded all the same, status
# says why they are not sent, and they are sent once it is loaded.

use JSON::PP ();
use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox);

# ---------------------------------------------------------------------------
# The first event
# ---------------------------------------------------------------------------

is(worker_pid($node, 'postgres'), undef, 'no extension, no worker');
create_extension($node, 'postgres');
my $worker = worker_pid($node, 'postgres');

# retention keeps it for preview().
set_for_database($node, 'postgres', 'retention', '1h');
$worker = poll_worker($node, 'postgres', $worker);

my $id = $node->safe_psql('postgres', <<'SQL');
SELECT onside_attribution.track(
    'Käufe "quoted" \ / <b>', '0AB1C2D3-1111-2222-3333-444455556666',
    '{"currency": "EUR", "amount": "9.990", "n": 1.50, "é": ["\u00e4", null, true, {}], "": "\t"}',
    '2026-05-05 14:00:00.5+02')
SQL
like($id, qr/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/,
	'track returns a UUIDv4');
wait_for_flush($node, 'postgres', 'flush says that it is delivered');
arrived_ok($sandbox, [$id], 'the event arrived');

my $preview =
  $node->safe_psql('postgres', "SELECT onside_attribution.preview('$id')");
my $kept = $sandbox->kept_text;
ok(index($kept, $preview) >= 0, 'its bytes are those that preview() shows')
  or diag("preview: $preview\narrived: $kept");
my $event = JSON::PP::decode_json($kept)->[0];
is_deeply(
	$event,
	{
		event_name => "K\x{e4}ufe \"quoted\" \\ / <b>",
		event_id => $id,
		installation_id => '0ab1c2d3-1111-2222-3333-444455556666',
		event_datetime => $event->{event_datetime},
		payload => {
			currency => 'EUR',
			amount => '9.990',
			n => 1.5,
			"\x{e9}" => [ "\x{e4}", undef, JSON::PP::true(), {} ],
			'' => "\t"
		}
	},
	'and they mean what was recorded');
like($event->{event_datetime}, qr/^2026-05-05T12:00:00\.50*Z$/, 'in UTC');
is($sandbox->report->{max_events}, 1, 'in one request');

my $row = poll_status($node, 'postgres', { state => 'idle' }, 'idle again');
is($row->{worker_pid}, $worker, 'status: worker_pid');
is($row->{state_reason}, undef, 'status: state_reason');
is($row->{$_}, 0, "status: $_")
  foreach qw(pending in_flight dead_lettered retries);
is($row->{$_}, 1, "status: $_") foreach qw(delivered requests);
is($row->{$_}, undef, "status: $_")
  foreach qw(oldest_pending_age last_error last_error_at next_attempt_at);
is( $node->safe_psql(
		'postgres',
		"SELECT now() - last_success_at < '1 h' FROM onside_attribution.status"),
	't',
	'status: last_success_at');
is( $node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.pending'),
	0, 'nothing is pending');

$node->safe_psql('postgres', <<'SQL');
BEGIN;
SELECT onside_attribution.track('rolled_back', gen_random_uuid(), '{}');
ROLLBACK;
SQL
my $second = track($node, 'postgres');
wait_for_flush($node, 'postgres');
arrived_ok($sandbox, [ $id, $second ], 'what is rolled back does not arrive');

# ---------------------------------------------------------------------------
# The extension goes, comes, and comes in another database
# ---------------------------------------------------------------------------

$worker = worker_pid($node, 'postgres');
$node->safe_psql('postgres', 'DROP EXTENSION onside_attribution');
ok(wait_for_exit($worker), 'DROP EXTENSION ends the worker');

create_extension($node, 'postgres');
my @ids = map { track($node, 'postgres') } 1 .. 3;
wait_for_flush($node, 'postgres', 'created again, it sends again');
arrived_ok($sandbox, [ $id, $second, @ids ], 'all arrived');
is(status($node, 'postgres')->{delivered}, 3, 'its counters start over');

$node->safe_psql('postgres', 'CREATE DATABASE other');
create_extension($node, 'other');
my $other = track($node, 'other');
wait_for_flush($node, 'other', 'a second database has its own worker');
$worker = worker_pid($node, 'other');
isnt($worker, worker_pid($node, 'postgres'), 'indeed');
arrived_ok($sandbox, [ $id, $second, @ids, $other ],
	'the events of both arrived');

# There are other ways to drop it.
$node->safe_psql('other', 'DROP EXTENSION onside_attribution');
$node->safe_psql('other', <<'SQL');
CREATE ROLE owner SUPERUSER;
SET ROLE owner;
CREATE EXTENSION onside_attribution;
SQL
$worker = poll_worker($node, 'other', $worker);
$node->safe_psql('other', 'DROP OWNED BY owner CASCADE');
ok(wait_for_exit($worker), 'DROP OWNED ends the worker, too');

# Made and filled in one transaction.
$worker = worker_pid($node, 'postgres');
$node->safe_psql('postgres', 'CREATE DATABASE fourth');
my $fifth = $node->safe_psql('fourth', <<'SQL');
BEGIN;
CREATE EXTENSION onside_attribution;
SELECT onside_attribution.track('at_once', gen_random_uuid(), '{}');
COMMIT;
SQL
ok($sandbox->wait_distinct(7)->{reached}, 'recorded by the creating transaction');
arrived_ok($sandbox, [ $id, $second, @ids, $other, $fifth ],
	'and sent');
is(worker_pid($node, 'postgres'), $worker, 'the worker beside it was not disturbed');

$node->restart;
foreach my $database (qw(postgres fourth))
{
	poll_worker($node, $database);
	is(status($node, $database)->{pending}, 0, "$database: nothing is pending");
}
is(worker_pid($node, 'other'), undef, 'no worker where no extension is');
nothing_came_twice($sandbox, 'after a restart, nothing is sent again');
unlike(slurp_file($node->logfile), qr/onside_attribution worker .*(ERROR|PANIC):/,
	'no worker met an error');
$node->stop;

# ---------------------------------------------------------------------------
# Not preloaded
# ---------------------------------------------------------------------------

$sandbox->reset;
$node = onside_node('plain', sandbox => $sandbox, preload => 0);
$node->safe_psql('postgres', 'CREATE EXTENSION onside_attribution');
@ids = map { track($node, 'postgres') } 1 .. 5;
$row = status($node, 'postgres');
is($row->{state}, 'not_running', 'not preloaded: not_running');
like($row->{state_reason}, qr/shared_preload_libraries/, 'and it says why');
is($row->{pending}, 5, 'the events are pending');
is($row->{worker_pid}, undef, 'there is no worker');
is( $node->safe_psql('postgres', "SELECT onside_attribution.flush('10 ms')"),
	'f', 'flush gives up');
is($sandbox->report->{requests}, 0, 'nothing is sent');

preload($node);
$node->restart;
poll_worker($node, 'postgres');
wait_for_flush($node, 'postgres', 'preloaded, it sends what was recorded before');
arrived_ok($sandbox, \@ids, 'all of it');
nothing_came_twice($sandbox, 'once');

$sandbox->stop;
$node->stop;
done_testing();
