# What arrives is what was committed, no more and no less, under everything at
# once: eight clients that commit, roll back, use savepoints, prepare, hold
# transactions open, and record by function, by trigger and by INSERT, with
# synchronous_commit on and off; a worker that is terminated and killed; answers
# that get lost; a server that crashes.  What comes twice comes with the same
# event_id and the same bytes.  And the outbox is small again in the end.
#
# Each transaction notes the event_ids that it records in a table of its own,
# so that table and API can be compared in the end.
#
# ONSIDE_TEST_SCALE=full lets ten times as many events pass, which takes more
# than a minute.

use IPC::Run ();
use JSON::PP ();
use OnsideTest;

my $clients = 8;
my $quantum = scale(1500, 15_000);	# events between two disturbances

my $sandbox = OnsideSandbox->start;

# Segments so small that they are filled and emptied all the time.
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
max_prepared_transactions = 100
shared_buffers = 32MB
onside_attribution.segment_size = 512
CONF

$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION onside_attribution;
CREATE TABLE noted (event_id uuid, kind text);
CREATE TABLE purchase (
	event_id uuid DEFAULT gen_random_uuid(), customer uuid DEFAULT gen_random_uuid(),
	total numeric(10,2), paid_at timestamptz DEFAULT clock_timestamp());
SELECT onside_attribution.attach('purchase', 'purchase_completed', 'customer',
	'{"amount": "total"}', event_datetime => 'paid_at', event_id => 'event_id');

CREATE FUNCTION buy(kind text, how_many int DEFAULT 1) RETURNS void LANGUAGE sql AS $$
	INSERT INTO noted SELECT onside_attribution.track(
		'purchase_completed', gen_random_uuid(), json_build_object('kind', kind, 'n', i)::jsonb), kind
	FROM generate_series(1, how_many) i
$$;
SQL
my $worker = poll_worker($node, 'postgres');

# ---------------------------------------------------------------------------
# The load
# ---------------------------------------------------------------------------

my %script = (
	autocommit => [ 20, "SELECT buy('autocommit');" ],
	async => [ 10, <<'SQL' ],
BEGIN;
SET LOCAL synchronous_commit = off;
SELECT buy('async');
COMMIT;
SQL
	commit => [ 10, "BEGIN; SELECT buy('commit', 3); COMMIT;" ],
	batch => [ 2, "BEGIN; SELECT buy('batch', 50); COMMIT;" ],
	rollback => [ 10, "BEGIN; SELECT buy('rollback', 2); ROLLBACK;" ],
	trigger => [ 10, <<'SQL' ],
INSERT INTO purchase (total) VALUES (9.99);
INSERT INTO purchase (total) SELECT n / 100.0 FROM generate_series(1, 10) n;
SQL
	insert => [ 5, <<'SQL' ],
WITH i AS (
	INSERT INTO onside_attribution.outbox (event_id, event_name, payload, event_datetime, installation_id)
	VALUES (gen_random_uuid(), 'inserted', '{}', now(), gen_random_uuid()) RETURNING event_id)
INSERT INTO noted SELECT event_id, 'insert' FROM i;
SQL
	savepoints => [ 10, <<'SQL' ],
BEGIN;
SELECT buy('savepoint outside');
SAVEPOINT a;
SELECT buy('savepoint rolled back', 2);
SAVEPOINT b;
SELECT buy('savepoint rolled back within');
RELEASE b;
ROLLBACK TO a;
SELECT buy('savepoint after');
SAVEPOINT c;
SELECT buy('savepoint released');
RELEASE c;
COMMIT;
SQL
	savepoint_rollback => [ 3, <<'SQL' ],
BEGIN;
SAVEPOINT a;
SELECT buy('savepoint released');
RELEASE a;
ROLLBACK;
SQL
	long => [ 1, <<'SQL' ],
\set ms random(1, 1000)
BEGIN;
SELECT buy('long before');
\sleep :ms ms
SELECT buy('long after');
COMMIT;
SQL
	long_rollback => [ 1, <<'SQL' ],
\set ms random(1, 1000)
BEGIN;
SELECT buy('long rollback');
\sleep :ms ms
ROLLBACK;
SQL
	prepared => [ 6, <<'SQL' ],
\set gid random(1, 1000000000000)
\set ms random(0, 50)
BEGIN;
SELECT buy('prepared', 2);
SAVEPOINT a;
SELECT buy('prepared in a savepoint');
PREPARE TRANSACTION 'g:client_id.:gid';
\sleep :ms ms
COMMIT PREPARED 'g:client_id.:gid';
SQL
	prepared_rollback => [ 3, <<'SQL' ],
\set gid random(1, 1000000000000)
BEGIN;
SELECT buy('prepared rollback', 2);
PREPARE TRANSACTION 'g:client_id.:gid';
ROLLBACK PREPARED 'g:client_id.:gid';
SQL
);

my @scripts;
foreach my $name (sort keys %script)
{
	my ($weight, $sql) = @{ $script{$name} };
	my $file = $node->basedir . "/$name.sql";
	append_to_file($file, $sql);
	push @scripts, '-f', "$file\@$weight";
}

my ($load, $output);

# Until it is ended, or loses its connections.
sub start_load
{
	$output = '';
	$load = IPC::Run::start(
		[
			'pgbench', '-n', '-h', $node->host, '-p', $node->port,
			'-c', $clients, '-T', 3600, @scripts, 'postgres'
		],
		'<', \undef, '>&', \$output);
	return;
}

# Transactions that stay prepared until the end, through all that happens.
my $left = 0;

sub leave_prepared
{
	foreach my $fate (qw(commit rollback))
	{
		$left++;
		$node->safe_psql('postgres', <<SQL);
BEGIN;
SELECT buy('prepared and left, $fate', 2);
SAVEPOINT a;
SELECT buy('prepared and left, $fate');
PREPARE TRANSACTION '$fate $left';
SQL
	}
	return;
}

# Waits until many more events have arrived.
sub events_pass
{
	my ($what) = @_;
	my $n = $sandbox->report->{distinct} + $quantum;
	ok($sandbox->wait_distinct($n, patience())->{reached}, $what);
	return;
}

sub end_load
{
	$load->signal('TERM');
	$load->finish;
	my @errors = grep { /ERROR/ } split /\n/, $output;
	is("@errors", '', 'no client met an error');
	return;
}

# Clients whose connection is lost give up.
sub end_broken_load
{
	$load->finish;
	return;
}

start_load();
leave_prepared();
events_pass('events arrive');
foreach my $i (1 .. 2)
{
	$worker = poll_worker($node, 'postgres');
	kill 'TERM', $worker;
	events_pass('worker terminated: events arrive');
	isnt(worker_pid($node, 'postgres'), $worker, 'from another one');
}
end_load();

start_load();
leave_prepared();
events_pass('events arrive');
$worker = worker_pid($node, 'postgres');
kill 'KILL', $worker;
end_broken_load();
ok(wait_until(sub { eval { $node->safe_psql('postgres', 'SELECT 1') } }),
	'worker killed: the server comes back');

# Batches that were accepted, and nobody was told.
$sandbox->behave(
	{ fault => 'close_no_answer', accept => JSON::PP::true(), times => 5, skip => 5 },
	{ fault => 'reset_after_upload', times => 5 });
start_load();
leave_prepared();
events_pass('events arrive, answers are lost');
end_load();

start_load();
leave_prepared();
events_pass('events arrive');
$node->stop('immediate');
end_broken_load();
$node->start;

start_load();
leave_prepared();
events_pass('server crashed: events arrive');
$worker = poll_worker($node, 'postgres');
end_load();

# ---------------------------------------------------------------------------
# The comparison
# ---------------------------------------------------------------------------

my $prepared = committed($node, 'postgres', "SELECT gid FROM pg_prepared_xacts WHERE gid LIKE '% %'");
is(scalar @$prepared, $left, 'what was prepared has outlived everything');
foreach my $gid (@$prepared)
{
	my ($fate) = split / /, $gid;
	$node->safe_psql('postgres', "$fate PREPARED '$gid'");
}

# Clients that were cut off have left some, too.
$node->safe_psql('postgres', "COMMIT PREPARED '$_'")
  foreach @{ committed($node, 'postgres', 'SELECT gid FROM pg_prepared_xacts') };

wait_for_flush($node, 'postgres');
my $query = 'SELECT event_id FROM noted UNION ALL SELECT event_id FROM purchase';
my $committed = committed($node, 'postgres', $query);
arrived_ok($sandbox, $committed, 'the set that arrived is the set that committed');

my $report = $sandbox->report;
note("$report->{distinct} events in $report->{accepted_requests} requests, "
	  . "$report->{duplicates} of them came again, $report->{max_events} at most in one");
is($report->{mismatched}, 0, 'what came again came with the same bytes');
cmp_ok($report->{duplicates}, '>', 0, 'some came again');
is_deeply([ grep { /^[45]/ && $_ != 503 } keys %{ $report->{by_status} } ],
	[], 'no request was refused');

my $kinds = $node->safe_psql('postgres',
	'SELECT kind, count(*) FROM noted GROUP BY 1 ORDER BY 1');
note("committed:\n$kinds");
unlike($kinds, qr/(?<!^prepared )roll/m, 'what was rolled back is not noted');

is( $node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.pending'),
	0, 'nothing is pending');
my $row = poll_status($node, 'postgres', { state => 'idle', pending => 0 },
	'status says so');
is($row->{dead_lettered}, 0, 'nothing is dead');
is($row->{oldest_pending_age}, undef, 'nor old');
is( $node->safe_psql(
		'postgres', 'SELECT count(*) FROM onside_attribution.dead_letter'),
	0, 'indeed');

# One segment may be partly filled; a segment is found to be full a second later.
ok(wait_until(sub { outbox_size($node, 'postgres') < 16 * 1024 * 1024 }),
	'the outbox is small');
note('outbox: ' . outbox_size($node, 'postgres') . ' bytes');
is( $node->safe_psql('postgres', <<'SQL'), 0, 'no event was ever deleted or updated');
SELECT sum(n_tup_upd + n_tup_del) FROM pg_stat_user_tables WHERE relname LIKE 'outbox_%'
SQL
unlike(slurp_file($node->logfile), qr/PANIC|TRAP|server process .* was terminated by signal (?!9)/,
	'nothing crashed but what was killed');

$node->stop;
done_testing();
