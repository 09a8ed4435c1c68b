# The view "subscriptions" and doctor() tell how the subscriptions do that bring events of
# other servers: one that is well, that is disabled, whose publisher is away, whose slot is gone, whose
# initial copy has not ended, and which a change that the publisher should not have sent has stopped; and following
# docs/managed.md each goes on, with no event lost.  A TRUNCATE of the publisher's takes nothing along.  A subscription
# to other tables is none of these.  pg_monitor is all that one needs to see that.

use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $publisher = onside_node('publisher', preload => 0, init => { allows_streaming => 'logical' });
my $sender = onside_node('sender', sandbox => $sandbox, init => { allows_streaming => 1 },
	conf => "wal_retrieve_retry_interval = '200ms'\n");
create_extension($sender, 'postgres');
$sender->safe_psql('postgres', 'CREATE ROLE monitor LOGIN; GRANT pg_monitor TO monitor; CREATE TABLE other (id int)');
$publisher->safe_psql('postgres', <<'SQL');
CREATE SCHEMA onside_attribution;
CREATE TABLE onside_attribution.outbox (event_id uuid PRIMARY KEY DEFAULT gen_random_uuid(), event_name text, payload jsonb DEFAULT '{}',
	event_datetime timestamptz DEFAULT now(), installation_id uuid DEFAULT gen_random_uuid(), recorded_at timestamptz DEFAULT clock_timestamp());
CREATE TABLE other (id int);
CREATE PUBLICATION other FOR TABLE other;
CREATE PUBLICATION events FOR TABLE onside_attribution.outbox WITH (publish = 'insert');
-- As a careless one would be.
CREATE PUBLICATION everything FOR TABLE onside_attribution.outbox;
SQL

sub on_sender { return $sender->safe_psql('postgres', $_[0], extra_params => [ '-U', 'monitor' ]) }

sub subscribe
{
	my ($name, $publication, $options) = @_;
	$sender->safe_psql('postgres',
		"CREATE SUBSCRIPTION $name CONNECTION '@{[ $publisher->connstr('postgres') =~ s/'/''/gr ]}' PUBLICATION $publication" . ($options ? " WITH ($options)" : ''));
	return;
}

# What the view and doctor() say about it; undef for no problem.
sub says
{
	my ($name, $problem, $hint, $what) = @_;
	my ($seen, $row);
	my $ok = wait_until(sub {
			$seen = on_sender("SELECT problem FROM onside_attribution.subscriptions WHERE name = '$name'");
			$row = on_sender(qq{SELECT ok, detail, hint FROM onside_attribution.doctor() WHERE check_name = 'subscriptions' AND detail ~ '^subscription "$name"'});
			return defined $problem
			  ? $seen =~ $problem && $row =~ /^f\|/ && $row =~ $problem && $row =~ $hint
			  : $seen eq '' && $row =~ /^t\|subscription "$name": process \d+, last message at .*\|$/;
		});
	ok($ok, $what) or diag("problem: $seen; doctor: $row");
	return;
}

my @ids;

sub record
{
	my ($n) = @_;
	push @ids, split /\n/, $publisher->safe_psql('postgres', "INSERT INTO onside_attribution.outbox (event_name) SELECT 'sold' FROM generate_series(1, $n) RETURNING event_id");
	return;
}

sub arrive
{
	my ($what) = @_;
	ok(wait_until(sub { $sandbox->accepted($ids[-1]) }), "$what: the last one arrived");
	wait_for_flush($sender, 'postgres');
	arrived_ok($sandbox, \@ids, "$what: all arrived");
	return;
}

# ---------------------------------------------------------------------------

is(on_sender('SELECT count(*) FROM onside_attribution.subscriptions'), 0, 'there is none');
subscribe('other', 'other');
is(on_sender(q{SELECT ok, detail FROM onside_attribution.doctor() WHERE check_name = 'subscriptions'}),
	't|none brings events of another server', 'one of other tables is none of ours');

record(10);
subscribe('sub', 'events');
arrive('initial copy');
says('sub', undef, undef, 'all is well');
is(on_sender(q{SELECT enabled, worker_pid = (SELECT pid FROM pg_stat_subscription WHERE subname = 'sub' AND relid IS NULL), tables, tables_ready,
	received_lsn > '0/0', last_message_at > now() - interval '1 minute', last_message_delay < interval '1 minute', errors FROM onside_attribution.subscriptions}),
	't|t|1|1|t|t|t|0', 'and the view has it');
$sender->safe_psql('postgres', 'CREATE ROLE plain LOGIN');
my ($ret, $out, $err) = $sender->psql('postgres', 'SELECT * FROM onside_attribution.subscriptions', extra_params => [ '-U', 'plain' ]);
like($err, qr/permission denied/, 'it is not for all');

# Names of others are not looked up.
is(on_sender(<<'SQL'), 'sub', 'whatever the search_path is');
CREATE TEMP TABLE pg_subscription (oid oid, subname name, subdbid oid, subenabled bool);
CREATE TEMP TABLE pg_subscription_rel (srsubid oid);
SET search_path = pg_temp, public;
SELECT name FROM onside_attribution.subscriptions;
SQL

$sender->safe_psql('postgres', 'ALTER SUBSCRIPTION sub DISABLE');
says('sub', qr/it is disabled/, qr/ALTER SUBSCRIPTION sub ENABLE/, 'disabled');
record(3);
$sender->safe_psql('postgres', 'ALTER SUBSCRIPTION sub ENABLE');
arrive('enabled again');

$publisher->stop('immediate');
says('sub', qr/no apply worker is running|not heard of the publishing server/, qr/server's log/, 'the publisher is away');
$publisher->start;
record(3);
arrive('it is there again');
says('sub', undef, undef, 'well again');

# The initial copy cannot end while somebody has the table locked.
$sender->safe_psql('postgres', 'DROP SUBSCRIPTION sub');
my $locker = $sender->background_psql('postgres');
$locker->query_safe('BEGIN; LOCK TABLE onside_attribution.outbox_1, onside_attribution.outbox_2, onside_attribution.outbox_3 IN SHARE MODE');
subscribe('sub', 'everything');
says('sub', qr/the initial copy has not ended: 0 of 1 tables/, qr/server's log/, 'the initial copy waits for a lock');
$locker->query_safe('COMMIT');
$locker->quit;
arrive('a new subscription, to a careless publication');

# A TRUNCATE that should not have been sent: what is pending here is kept.
$sender->safe_psql('postgres', 'SELECT onside_attribution.pause()');
record(20);
$publisher->wait_for_catchup('sub');
ok($sender->poll_query_until('postgres', 'SELECT count(*) = 20 FROM onside_attribution.pending'), 'twenty are pending');
$publisher->safe_psql('postgres', 'TRUNCATE onside_attribution.outbox');
$publisher->wait_for_catchup('sub');
is($sender->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.pending'), 20, 'a TRUNCATE leaves what is pending');
$sender->safe_psql('postgres', 'SELECT onside_attribution.resume()');
arrive('TRUNCATE');

# So would an UPDATE and a DELETE that find no row; PostgreSQL does not get as far.
foreach my $change (q{UPDATE onside_attribution.outbox SET recorded_at = now()}, 'DELETE FROM onside_attribution.outbox')
{
	record(2);
	arrive($change);
	$publisher->safe_psql('postgres', "BEGIN; $change; COMMIT;");
	record(3);
	says('sub', qr/errors so far: [1-9]/, qr/server's log.*docs\/managed\.md/, "stopped by $change");

	# A new subscription, to inserts alone, copies what is there.
	$sender->safe_psql('postgres', 'ALTER SUBSCRIPTION sub DISABLE; ALTER SUBSCRIPTION sub SET (slot_name = NONE); DROP SUBSCRIPTION sub');
	ok(wait_until(sub { $publisher->psql('postgres', q{SELECT pg_drop_replication_slot('sub')}) == 0 }), 'its slot is dropped');
	subscribe('sub', 'everything');
	arrive("$change, started over");
	says('sub', undef, undef, "well again after $change");
	is($sender->safe_psql('postgres', 'SELECT count(*) FROM pg_subscription'), 2, 'one of them');
}

# The slot is gone.
$sender->safe_psql('postgres', 'ALTER SUBSCRIPTION sub DISABLE');
ok(wait_until(sub { $publisher->psql('postgres', q{SELECT pg_drop_replication_slot('sub')}) == 0 }), 'the slot is dropped');
record(5);
$sender->safe_psql('postgres', 'ALTER SUBSCRIPTION sub ENABLE');
says('sub', qr/no apply worker is running|not heard of the publishing server/, qr/pg_replication_slots.*docs\/managed\.md/, 'the slot is gone');
$sender->safe_psql('postgres', 'ALTER SUBSCRIPTION sub DISABLE; ALTER SUBSCRIPTION sub SET (slot_name = NONE); DROP SUBSCRIPTION sub');
subscribe('sub', 'events');
arrive('a new slot');
says('sub', undef, undef, 'well at last');

# A standby subscribes to nothing.
$sender->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($sender, 'backup', has_streaming => 1);
$standby->start;
is($standby->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.subscriptions'), 0, 'on a standby there is none');
is($standby->safe_psql('postgres', q{SELECT ok IS NULL, detail FROM onside_attribution.doctor() WHERE check_name = 'subscriptions'}),
	't|this server is a standby: the primary subscribes', 'as doctor() says');

$_->stop foreach $standby, $sender, $publisher;
$sandbox->stop;
done_testing();
