# valgrind.pl: what is to be done under valgrind, by a worker and by a backend.
#
# The backend records in every way there is, well and badly; the worker sends
# 10,000 requests (ONSIDE_TEST_REQUESTS) of one event each, after 2,000 that warm
# it up, and then meets each kind of answer and fault.  Here it is only looked whether all of that works
# and whether memory grows; test/instruments/valgrind judges what valgrind says.

use strict;
use warnings;

use PostgreSQL::Test::Utils;
use Test::More;

use OnsideFault;
use OnsideSandbox;
use OnsideTest;

my $requests = $ENV{ONSIDE_TEST_REQUESTS} // 10_000;
my $chunk    = $requests / 5;

my $sandbox = OnsideSandbox->start;
my $node    = onside_node('main', sandbox => $sandbox,
	conf => "onside_attribution.retry_max_delay = '20ms'\n"
	  . "autovacuum = off\n");
create_extension($node, 'postgres');
my $fault = OnsideFault->new(node => $node, sandbox => $sandbox);

# ---------------------------------------------------------------------------
# One backend records, well and badly, again and again
# ---------------------------------------------------------------------------

my $uuid = "'11111111-2222-4333-8444-555555555555'";

$node->safe_psql('postgres', <<'SQL');
CREATE TABLE sale (install_id text, total numeric, ratio float8, paid_at timestamptz,
	purchase_id uuid, note json, tags jsonb, day date, span interval, name char(20));
CREATE TABLE sale_row (LIKE sale);
SELECT onside_attribution.attach('sale', 'purchase_completed', 'install_id',
	'{"amount": "total", "ratio": "ratio", "note": "note", "tags": "tags", "day": "day",
	  "span": "span", "name": "name"}', 'paid_at', 'purchase_id');
SELECT onside_attribution.attach('sale_row', 'row_event', 'install_id', '{"amount": "total"}',
	operation => 'INSERT OR UPDATE', condition => 'NEW.total > 0');
SQL

my $good = <<"SQL";
INSERT INTO sale SELECT $uuid, n, n / 7.0, now(), NULL, '{"a": [1, 2.50]}', '{"b": null}',
	current_date, '1 day', 'x' FROM generate_series(1, 20) n;
INSERT INTO sale VALUES (NULL, 1);
INSERT INTO sale_row VALUES ($uuid, 1), ($uuid, 2), ($uuid, -1);
UPDATE sale_row SET total = total + 1;
SELECT onside_attribution.track('a', $uuid, '{"deep": [[[{}]]], "s": "\\u00e9\\n"}');
SELECT onside_attribution.track_purchase($uuid, 12.340, 'EUR', extra => '{"sku": "x"}');
SELECT onside_attribution.track_batch(jsonb_build_array(
	jsonb_build_object('event_name', 'b', 'payload', '{}'::jsonb, 'event_datetime',
		'2026-05-05T12:00:00.5+02:00', 'installation_id', $uuid)));
BEGIN; SAVEPOINT s; SELECT onside_attribution.track('c', $uuid, '{}'); ROLLBACK TO s;
SELECT onside_attribution.track('c', $uuid, '{}'); COMMIT;
BEGIN; SELECT onside_attribution.track('p', $uuid, '{}'); PREPARE TRANSACTION 'p';
COMMIT PREPARED 'p';
INSERT INTO onside_attribution.outbox (event_name, installation_id, payload, event_datetime)
	VALUES ('d', $uuid, '{}', now());
SELECT onside_attribution.preview(event_id) FROM onside_attribution.outbox LIMIT 3;
SELECT * FROM onside_attribution.status;
SELECT * FROM onside_attribution.attached;
SQL

# Each of these is an error.
my $bad = <<"SQL";
SELECT onside_attribution.track('', $uuid, '{}');
SELECT onside_attribution.track('e', $uuid, '[]');
SELECT onside_attribution.track('e', $uuid, jsonb_build_object('x', repeat('y', 1000000)));
SELECT onside_attribution.track_purchase($uuid, 'NaN', 'EUR');
SELECT onside_attribution.track_batch(jsonb_build_array(
	jsonb_build_object('event_name', 'b', 'installation_id', $uuid), 1));
INSERT INTO sale VALUES ($uuid, 'NaN', 0, now());
INSERT INTO sale VALUES ($uuid, 1, 'Infinity', now());
INSERT INTO sale VALUES ('no uuid', 1, 0, now());
INSERT INTO sale VALUES ($uuid, 1, 0, 'infinity');
INSERT INTO sale (install_id, paid_at, note) VALUES ($uuid, now(), '"\\u0000"');
INSERT INTO onside_attribution.outbox (event_name) VALUES ('d');
UPDATE onside_attribution.outbox SET event_name = 'x';
SELECT onside_attribution.attach('sale', 'x', 'no_column', '{}');
SELECT onside_attribution.attach('sale', 'x', 'install_id', '{}', condition => 'NEW.total >');
SQL

# Lost to dead_letter, with a warning.
my $let_through = <<"SQL";
SET onside_attribution.on_invalid_event = dead_letter;
INSERT INTO sale VALUES ('no uuid', 1), ($uuid, 'NaN'), ($uuid, 1);
INSERT INTO sale (install_id, paid_at, note) VALUES ($uuid, now(), '"\\u0000"');
RESET onside_attribution.on_invalid_event;
SQL

my $everything = $good . $bad . $let_through;
my ($status, $out, $err) =
  $node->psql('postgres', $everything x 20, on_error_stop => 0);
my $errors = () = $err =~ /ERROR:/g;
is($errors, 20 * 14, 'a backend records well and badly');

# A wait that is cut off leaves nothing behind.
$node->safe_psql('postgres', 'SELECT onside_attribution.pause()');
track($node, 'postgres');
($status, $out, $err) =
  $node->psql('postgres', "SET statement_timeout = '100ms';\n"
	  . "SELECT onside_attribution.flush('1 min');\n" x 10,
	on_error_stop => 0);
$errors = () = $err =~ /statement timeout/g;
is($errors, 10, 'flush is cut off');
$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
wait_for_flush($node, 'postgres', 'what the backend recorded is sent');

# ---------------------------------------------------------------------------
# The worker sends, one event in a request
# ---------------------------------------------------------------------------

my $pid = worker_pid($node, 'postgres');
set_for_database($node, 'postgres', 'batch_max_events', 1);
$pid = poll_worker($node, 'postgres', $pid);

# What the worker has of PostgreSQL's memory.  What the process takes says little
# here: valgrind keeps freed memory for a while, to see who still uses it.
sub bytes_used
{
	my ($pid) = @_;
	my $from = log_position($node);
	my $used;

	$node->safe_psql('postgres', "SELECT pg_log_backend_memory_contexts($pid)");
	wait_until(
		sub {
			($used) = log_since($node, $from) =~ /Grand total: .*; (\d+) used/;
			defined $used;
		}) or die "the worker does not say what memory it uses";
	return $used;
}

my (@memory, @process);
foreach my $i (0 .. 5)
{
	my $before = $sandbox->report->{requests};
	$node->safe_psql('postgres', <<"SQL");
SELECT count(onside_attribution.track('purchase_completed', gen_random_uuid(),
	jsonb_build_object('n', n, 'filler', repeat('x', n % 3000))))
FROM generate_series(1, $chunk) n
SQL
	wait_for_flush($node, 'postgres', "chunk $i is sent");
	cmp_ok($sandbox->report->{requests} - $before, '>=', $chunk, "chunk $i: in so many requests");
	push @memory, bytes_used($pid);
	push @process, memory_of($pid)->{RssAnon};
}
diag("the worker's memory after each $chunk requests:");
diag("used: @memory bytes; RssAnon, with valgrind's: @process kB");
cmp_ok($memory[-1], '<', $memory[0] + 16384, 'memory does not grow with requests');
is(worker_pid($node, 'postgres'), $pid, 'one worker sent them all');

# ---------------------------------------------------------------------------
# Each kind of answer and fault
# ---------------------------------------------------------------------------

foreach my $rule (
	{ status => 500 }, { status => 401 }, { status => 404 }, { status => 200 },
	{ status => 429, headers => { 'Retry-After' => '1' } },
	{ fault => 'reset_before_read' },
	{ fault => 'reset_after_upload' },
	{ fault => 'garbage' },
	{ fault => 'truncated_body', status => 400 },
	{ fault => 'big_error', status => 500, bytes => 1_000_000 })
{
	my $name = join ' ', $rule->{fault} // 'status', $rule->{status} // ();
	$sandbox->behave($rule);
	track($node, 'postgres') foreach 1 .. 5;
	ok(wait_until(sub { $sandbox->rules->[0]{used} >= 5 }), "$name: it fails");
	$sandbox->behave;
	$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
	wait_for_flush($node, 'postgres', "$name: and recovers");
}

# Refused events are looked for by halving a batch.
$pid = worker_pid($node, 'postgres');
set_for_database($node, 'postgres', 'batch_max_events', undef);
poll_worker($node, 'postgres', $pid);
$node->safe_psql('postgres', 'SELECT onside_attribution.pause()');
$node->safe_psql('postgres', <<"SQL");
SELECT onside_attribution.track('x', $uuid,
	jsonb_build_object('quality', CASE n % 20 WHEN 7 THEN 'rotten' ELSE 'fresh' END))
FROM generate_series(1, 40) n
SQL
$sandbox->poison('rotten');
$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
wait_for_flush($node, 'postgres', 'poisoned events');
is( $node->safe_psql('postgres',
		'SELECT count(*) FROM onside_attribution.dead_letter WHERE http_status = 400'),
	2, 'poisoned events: dead letters');
$sandbox->poison(undef);
$node->safe_psql('postgres',
	'SELECT onside_attribution.retry_dead_letters(ARRAY(SELECT event_id'
	  . ' FROM onside_attribution.dead_letter WHERE http_status = 400))');
wait_for_flush($node, 'postgres', 'poisoned events, again');

# Commands that have the worker leave.
$node->safe_psql('template1', "CREATE DATABASE other TEMPLATE postgres");
poll_worker($node, 'other');
$node->safe_psql('postgres', 'DROP DATABASE other');
$node->safe_psql('postgres', 'DROP EXTENSION onside_attribution CASCADE');

$node->stop;
done_testing();
