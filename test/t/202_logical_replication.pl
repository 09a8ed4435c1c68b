# One cluster records and does not send; logical replication of its outbox has
# another one send.  Each event arrives exactly once, those of the initial copy
# included, with publish_via_partition_root and without, and with a column list
# as well, which leaves the segment to the subscriber.  There the subscription's
# role may do what docs/operations.md says it needs, and no more.  Transaction ids are the
# subscriber's own.  Emptying segments on the publisher, were it to send as
# well, empties none on the subscriber; a crash of the subscriber loses nothing.

use OnsideTest;
use OnsideTopology;

my %publication = (
	leaf => q{FOR TABLE onside_attribution.outbox},
	root => q{FOR TABLE onside_attribution.outbox WITH (publish = 'insert', publish_via_partition_root = true)},
	columns => q{FOR TABLE onside_attribution.outbox (event_id, event_name, payload, event_datetime, installation_id, recorded_at)
		WITH (publish = 'insert', publish_via_partition_root = true)});
my @ways = qw(leaf root columns);

my $local_sandbox = OnsideSandbox->start;
my $publisher = onside_node('publisher', sandbox => $local_sandbox,
	init => { allows_streaming => 'logical' },
	start => 0,
	conf => <<'CONF');
logical_decoding_work_mem = '64kB'
onside_attribution.enabled = off
CONF
advance_xids($publisher, 5_000_000);
$publisher->start;

my %sandbox = map { $_ => OnsideSandbox->start } @ways;
my $subscriber = onside_node('subscriber',
	conf => <<"CONF");
max_logical_replication_workers = 16
max_sync_workers_per_subscription = 3
max_worker_processes = 32
wal_retrieve_retry_interval = '100ms'
onside_attribution.credentials_file = '@{[ write_credentials($publisher, 'sandbox:sandbox', undef, 'subscriber') ]}'
CONF

my $note = q{INSERT INTO noted SELECT onside_attribution.track('live', gen_random_uuid(), '{}'), 'live'};

foreach my $way (@ways)
{
	$_->safe_psql('postgres', "CREATE DATABASE $way") foreach $publisher, $subscriber;
	create_extension($publisher, $way);
	create_extension($subscriber, $way);
	set_for_database($subscriber, $way, 'endpoint', $sandbox{$way}->url);

	# What is there before: it comes with the initial copy.
	record($publisher, $way, 20, 'before');
	$publisher->safe_psql($way, <<SQL);
INSERT INTO noted SELECT onside_attribution.track('before', gen_random_uuid(), '{}'), 'before' FROM generate_series(1, 500);
CREATE PUBLICATION events $publication{$way};
SQL
}
$publisher->safe_psql('columns', <<'SQL');
CREATE ROLE replicator LOGIN REPLICATION;
GRANT USAGE ON SCHEMA onside_attribution TO replicator;
GRANT SELECT ON onside_attribution.outbox TO replicator;
SQL

# Two subscriptions hand on prepared transactions and open ones.
foreach my $way (@ways)
{
	my $streaming = $way eq 'leaf' ? 'false' : 'true';
	my $user = $way eq 'columns' ? 'user=replicator' : '';
	$subscriber->safe_psql($way, <<SQL);
CREATE SUBSCRIPTION events_$way CONNECTION '@{[ $publisher->connstr ]} dbname=$way $user'
	PUBLICATION events WITH (streaming = $streaming, two_phase = $streaming)
SQL
}

# Waits until all that the publisher has committed is committed here, too.
sub replicated
{
	my ($way) = @_;
	$publisher->safe_psql('postgres', "SELECT pg_logical_emit_message(true, '', '')");
	$subscriber->poll_query_until($way,
		"SELECT count(*) = 0 FROM pg_subscription_rel WHERE srsubstate <> 'r'")
	  or die 'the initial copy did not end';
	$publisher->wait_for_catchup("events_$way");
	return;
}

# On the subscriber, every row that is still there is one of its transactions'.
sub own_xids_ok
{
	my ($way, $what) = @_;
	is( $subscriber->safe_psql($way,
			'SELECT count(*) FROM onside_attribution.outbox WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())'),
		'0', "$what: with transaction ids of the subscriber");
	return;
}

sub all_arrived
{
	my ($way, $what) = @_;
	replicated($way);
	wait_for_flush($subscriber, $way, "$what: sent");
	arrived_ok($sandbox{$way}, recorded($publisher, $way), "$what: all of it arrived");
	return;
}

foreach my $way (@ways)
{
	all_arrived($way, "$way: initial copy");
	own_xids_ok($way, "$way: initial copy");

	# Everything that a transaction can be.  The poll of 15 s is what finds a
	# prepared transaction that an apply worker commits; flush does, too.
	$publisher->safe_psql($way, <<SQL);
$note;
BEGIN; $note; SAVEPOINT a; $note; ROLLBACK TO a; $note; COMMIT;
BEGIN; $note; ROLLBACK;
BEGIN; $note; PREPARE TRANSACTION 'yes_$way';
BEGIN; $note; PREPARE TRANSACTION 'no_$way';
SQL
	replicated($way);
	wait_for_flush($subscriber, $way);
	is( scalar keys %{ $sandbox{$way}->events },
		523, "$way: prepared transactions do not arrive");
	$publisher->safe_psql($way, "COMMIT PREPARED 'yes_$way'");
	$publisher->safe_psql($way, "ROLLBACK PREPARED 'no_$way'");

	# Larger than logical_decoding_work_mem: streamed before it is committed.
	my $padded = $note =~ s/'\{}'/jsonb_build_object('x', repeat('y', 1000))/r;
	$publisher->safe_psql($way, <<SQL);
BEGIN; $padded FROM generate_series(1, 300); COMMIT;
BEGIN; $padded FROM generate_series(1, 300); ROLLBACK;
SQL
	all_arrived($way, "$way: all sorts of transactions");
	nothing_came_twice($sandbox{$way}, "$way: once");
	my $row = status($subscriber, $way);
	is("$row->{delivered} $row->{pending}", '824 0', "$way: status counts them");
	is($publisher->safe_psql($way, 'SELECT delivered FROM onside_attribution.status'),
		0, "$way: the publisher has sent none");
}

# ---------------------------------------------------------------------------
# Emptying on the publisher
# ---------------------------------------------------------------------------

# It sends now, too, to a place of its own, and its segments are emptied; the
# subscriber is paused and has to keep what it has.
foreach my $way (@ways)
{
	$subscriber->safe_psql($way, 'SELECT onside_attribution.pause()');
	poll_status($subscriber, $way, { state => 'paused' }, "$way: the subscriber is paused");
	record($publisher, $way, 30, 'kept');
	replicated($way);
	poll_status($subscriber, $way, { pending => 30 }, "$way: 30 events are pending there");
}
$publisher->append_conf('postgresql.conf', <<'CONF');
onside_attribution.enabled = on
onside_attribution.segment_size = '1MB'
CONF
$publisher->reload;
foreach my $way (@ways)
{
	wait_for_flush($publisher, $way);
	my $before = $publisher->safe_psql($way, q{SELECT onside_attribution.track('more', gen_random_uuid(), '{}')});
	ok( wait_until(
			sub {
				$publisher->safe_psql($way, <<'SQL');
INSERT INTO noted
SELECT onside_attribution.track('more', gen_random_uuid(), jsonb_build_object('x', repeat('y', 1000))), 'more'
FROM generate_series(1, 700)
SQL
				$publisher->safe_psql($way, 'SELECT onside_attribution.flush()');
				return $publisher->safe_psql($way,
					"SELECT count(*) = 0 FROM onside_attribution.outbox WHERE event_id = '$before'") eq 't';
			}),
		"$way: the publisher has emptied a segment");
	$publisher->safe_psql($way, "INSERT INTO noted VALUES ('$before', 'more')");
	replicated($way);
	my $kept = $subscriber->safe_psql($way,
		q{SELECT count(*) FROM onside_attribution.pending WHERE event_name = 'kept'});
	is($kept, 30, "$way: the subscriber still has what is pending");
	own_xids_ok($way, "$way: pending");

	# As a publisher that does not send has to, at some time; here the
	# publication is one of inserts alone.
	next if $way eq 'leaf';
	$publisher->safe_psql($way, 'TRUNCATE onside_attribution.outbox');
	replicated($way);
	is( $subscriber->safe_psql($way,
			q{SELECT count(*) FROM onside_attribution.pending WHERE event_name = 'kept'}),
		30, "$way: nor does a TRUNCATE of the publisher's reach it");
}

# ---------------------------------------------------------------------------
# A crash of the subscriber, in the middle of it
# ---------------------------------------------------------------------------

foreach my $way (@ways)
{
	record($publisher, $way, 50, 'crash');
	$subscriber->safe_psql($way, 'SELECT onside_attribution.resume()');
}
crash($subscriber);
$subscriber->start;
foreach my $way (@ways)
{
	poll_worker($subscriber, $way);
	$subscriber->safe_psql($way, 'SELECT onside_attribution.resume()');
	all_arrived($way, "$way: crash of the subscriber");
	own_xids_ok($way, "$way: crash");
	is( $subscriber->safe_psql($way, <<'SQL'),
SELECT count(*) FROM (
	SELECT FROM onside_attribution.outbox GROUP BY event_id HAVING count(*) > 1) AS twice
SQL
		0, "$way: no event is recorded twice by that");
}

$subscriber->stop;
$publisher->stop;
$_->stop foreach values %sandbox, $local_sandbox;
done_testing();
