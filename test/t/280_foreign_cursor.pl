# A publication FOR ALL TABLES (Debezium, DMS, a blue/green upgrade) publishes the
# extension's tables, too.  Events come in; what is another server's state does
# not: neither its cursor, whose transaction ids are far ahead, nor its pause()
# nor its backfills, be it by the initial copy, by UPDATE or by TRUNCATE.  The
# subscription is in sync all the same, flush() on the subscriber is true only
# when its own events have arrived, and none of them is lost.

use OnsideTest;
use OnsideTopology;

my @ways = qw(copied live);
my %copy_data = (copied => 'true', live => 'false');

my $local_sandbox = OnsideSandbox->start;
my $publisher = onside_node('publisher', sandbox => $local_sandbox,
	init => { allows_streaming => 'logical' },
	start => 0);
advance_xids($publisher, 5_000_000);
$publisher->start;

my %sandbox = map { $_ => OnsideSandbox->start } @ways;
my $subscriber = onside_node('subscriber', conf => <<"CONF");
max_logical_replication_workers = 16
max_worker_processes = 32
wal_retrieve_retry_interval = '100ms'
onside_attribution.credentials_file = '@{[ write_credentials($publisher, 'sandbox:sandbox', undef, 'subscriber') ]}'
CONF

# Waits until the subscriber has applied all that the publisher has committed.
sub replicated
{
	my ($way) = @_;
	$publisher->safe_psql('postgres', "SELECT pg_logical_emit_message(true, '', '')");
	$publisher->wait_for_catchup("everything_$way");
	return;
}

# What the subscriber has recorded itself while its API was away; the publisher's come along in "noted".
sub own
{
	my ($way) = @_;
	return recorded($subscriber, $way, 'own');
}

sub pending_own
{
	my ($way) = @_;
	my ($ret, $stdout) = $subscriber->psql($way,
		q{SELECT count(DISTINCT event_id) FROM onside_attribution.pending WHERE event_name = 'own'});
	return $ret == 0 ? $stdout : -1;
}

# As long as the API is away, all its own events are pending, and everybody says so.
sub pending_ok
{
	my ($way, $what) = @_;
	my $n = @{ own($way) };
	my ($ret, $stdout, $stderr) = $subscriber->psql($way, "SELECT onside_attribution.flush('200 ms')");
	is("$stdout$stderr", 'f', "$what: flush() is false");
	ok(wait_until(sub { pending_own($way) == $n }), "$what: all $n events of its own are pending")
	  or diag(pending_own($way) . ' are');
	poll_status($subscriber, $way, { pending => sub { $_[0] >= $n }, state => 'backing_off' },
		"$what: status counts them");
	return;
}

# An error is a failure here, and the rest goes on.
sub flush_ok
{
	my ($node, $way, $what) = @_;
	my ($ret, $stdout, $stderr) = $node->psql($way, "SELECT onside_attribution.flush('@{[ patience() ]} s')");
	return is("$stdout$stderr", 't', $what);
}

sub another_worker
{
	my ($way) = @_;
	my $worker = worker_pid($subscriber, $way);
	$subscriber->safe_psql($way, "SELECT pg_terminate_backend($worker)") if $worker;
	return ok(eval { poll_worker($subscriber, $way, $worker) }, "$way: another worker");
}

# No row of its own state is the publisher's.
sub own_state_ok
{
	my ($way, $what) = @_;
	is( $subscriber->safe_psql($way,
			'SELECT count(*) FROM onside_attribution.delivery_cursor WHERE pg_snapshot_xmax(settled) > pg_snapshot_xmax(pg_current_snapshot())'),
		0, "$what: its cursor is no other server's");
	is($subscriber->safe_psql($way, 'SELECT count(*) FROM onside_attribution.control WHERE paused'),
		0, "$what: it is not paused");
	is($subscriber->safe_psql($way, 'SELECT count(*) FROM onside_attribution.backfill_state'),
		0, "$what: it knows of no backfill");
	return;
}

foreach my $way (@ways)
{
	$_->safe_psql('postgres', "CREATE DATABASE $way") foreach $publisher, $subscriber;
	foreach my $node ($publisher, $subscriber)
	{
		create_extension($node, $way);
		$node->safe_psql($way, <<'SQL');
CREATE TABLE orders (id bigint PRIMARY KEY, installation_id uuid, order_uuid uuid UNIQUE DEFAULT gen_random_uuid());
SQL
	}
	set_for_database($subscriber, $way, 'endpoint', $sandbox{$way}->url);

	# The publisher's state: delivered events, a backfill, pending events, a pause.
	record($publisher, $way, 20, 'before');
	$publisher->safe_psql($way, <<'SQL');
INSERT INTO orders SELECT i, gen_random_uuid() FROM generate_series(1, 10) i;
SELECT onside_attribution.attach('orders', 'ordered', 'installation_id', '{}', event_id => 'order_uuid');
CALL onside_attribution.backfill('orders', 'ordered');
SQL
	wait_for_flush($publisher, $way);
	$publisher->safe_psql($way, q{SELECT onside_attribution.pause('the publisher')});
	poll_status($publisher, $way, { state => 'paused' }, "$way: the publisher is paused");
	record($publisher, $way, 20, 'before');

	# The subscriber's: delivered ones, and pending ones while its API is away.
	record($subscriber, $way, 20, 'early');
	wait_for_flush($subscriber, $way);
	$sandbox{$way}->behave({ status => 503 });
	record($subscriber, $way, 20, 'own');
	poll_status($subscriber, $way, { state => 'backing_off', pending => 20 }, "$way: 20 events are pending at the subscriber");

	$publisher->safe_psql($way, 'CREATE PUBLICATION everything FOR ALL TABLES');
	$subscriber->safe_psql($way, <<SQL);
CREATE SUBSCRIPTION everything_$way CONNECTION '@{[ $publisher->connstr ]} dbname=$way'
	PUBLICATION everything WITH (copy_data = $copy_data{$way})
SQL
}

foreach my $way (@ways)
{
	# Among them the tables of our state.
	my $not_ready = q{SELECT string_agg(srrelid::regclass::text, ' ') FROM pg_subscription_rel WHERE srsubstate <> 'r'};
	wait_until(sub { $subscriber->safe_psql($way, $not_ready) eq '' });
	is($subscriber->safe_psql($way, $not_ready), '', "$way: every table is in sync");
	is( $subscriber->safe_psql($way,
			q{SELECT count(*) FROM pg_subscription_rel WHERE srrelid IN ('onside_attribution.delivery_cursor'::regclass, 'onside_attribution.control'::regclass)}),
		2, "$way: cursor and control are published");
	pending_ok($way, "$way, subscribed");
	own_state_ok($way, "$way, subscribed");

	# Its cursor moves on, which is replicated; and it says when it is paused.
	$publisher->safe_psql($way, 'SELECT onside_attribution.resume()');
	record($publisher, $way, 30, 'live');
	flush_ok($publisher, $way, "$way: the publisher sends");
	$publisher->safe_psql($way, q{SELECT onside_attribution.pause('once more'); SELECT onside_attribution.resume(); SELECT onside_attribution.pause('once more')});
	replicated($way);
	record($subscriber, $way, 20, 'own');
	pending_ok($way, "$way, the publisher's cursor has moved");
	another_worker($way);
	pending_ok($way, "$way, the publisher's cursor has moved, another worker");
	own_state_ok($way, "$way, the publisher's cursor has moved");
	$publisher->safe_psql($way, 'SELECT onside_attribution.resume()');

	# A TRUNCATE is replicated, too.  Either server makes the row again.
	my $position = log_position($subscriber);
	$publisher->safe_psql($way, 'TRUNCATE onside_attribution.delivery_cursor, onside_attribution.control');
	replicated($way);
	record($subscriber, $way, 20, 'own');
	pending_ok($way, "$way, truncated");
	another_worker($way);
	pending_ok($way, "$way, truncated, another worker");
	own_state_ok($way, "$way, truncated");
	foreach my $table (qw(delivery_cursor control))
	{
		ok( wait_until(sub { $subscriber->safe_psql($way, "SELECT count(*) FROM onside_attribution.$table") == 1 }),
			"$way, truncated: $table has its row again");
	}
	unlike(log_since($subscriber, $position), qr/onside_attribution worker.*(ERROR|FATAL)(?!:  terminating)/,
		"$way, truncated: without an error of the worker's");
	record($publisher, $way, 20, 'live');
	flush_ok($publisher, $way, "$way, truncated: the publisher sends");
	replicated($way);
	pending_ok($way, "$way, after the publisher's next events");

	# What the subscriber has decided stays.
	$subscriber->safe_psql($way, q{SELECT onside_attribution.pause('the subscriber')});
	poll_status($subscriber, $way, { state => 'paused', state_reason => qr/the subscriber/ }, "$way: paused");
	$publisher->safe_psql($way, q{SELECT onside_attribution.pause(); SELECT onside_attribution.resume()});
	record($publisher, $way, 5, 'live');
	flush_ok($publisher, $way, "$way: the publisher sends");
	replicated($way);
	another_worker($way);
	poll_status($subscriber, $way, { state => 'paused', state_reason => qr/the subscriber/ },
		"$way: the publisher's resume() is not the subscriber's");

	# Nor does a TRUNCATE of what the publisher has recorded take along what the
	# subscriber has, nor one of control its pause.
	record($subscriber, $way, 10, 'own');
	my $session = $subscriber->background_psql($way);
	$session->query_safe(q{BEGIN; INSERT INTO noted SELECT onside_attribution.track('own', gen_random_uuid(), '{}'), 'own'});
	$publisher->safe_psql($way, 'TRUNCATE onside_attribution.outbox');
	ok($subscriber->poll_query_until($way, q{SELECT EXISTS (SELECT FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted)}),
		"$way: the TRUNCATE waits for a session that records");
	$session->query_safe('COMMIT');
	$session->quit;
	$publisher->safe_psql($way, 'TRUNCATE onside_attribution.control');
	replicated($way);
	my $n = @{ own($way) };
	ok(wait_until(sub { pending_own($way) == $n }), "$way, the publisher's outbox truncated: all $n events of its own are pending");
	poll_status($subscriber, $way, { state => 'paused', state_reason => qr/the subscriber/, pending => sub { $_[0] >= $n } },
		"$way, the publisher's control truncated: it is paused, and counts them");
	another_worker($way);
	poll_status($subscriber, $way, { state => 'paused', state_reason => qr/the subscriber/ },
		"$way, the publisher's control truncated, another worker: it is paused");
	$subscriber->safe_psql($way, 'SELECT onside_attribution.resume()');

	$sandbox{$way}->behave();
	flush_ok($subscriber, $way, "$way: the API is back");
	my $events = $sandbox{$way}->events;
	my @lost = grep { !$events->{$_} } @{ own($way) }, @{ recorded($publisher, $way, 'live') };
	is(scalar @lost, 0, "$way: all its own events have arrived, and all that came in");
	my %noted = map { $_ => 1 } @{ recorded($subscriber, $way) }, @{ recorded($publisher, $way) },
	  split /\n/, $publisher->safe_psql($way, 'SELECT order_uuid FROM orders');
	is(scalar(grep { !$noted{$_} } keys %$events), 0, "$way: and nothing else");
	poll_status($subscriber, $way, { pending => 0 }, "$way: nothing is pending");
	is( $subscriber->safe_psql($way,
			"SELECT apply_error_count || ' ' || sync_error_count FROM pg_stat_subscription_stats WHERE subname = 'everything_$way'"),
		'0 0', "$way: replication had no error");
}

$subscriber->stop;
$publisher->stop;
$_->stop foreach values %sandbox, $local_sandbox;
done_testing();
