# Two servers that record, one that sends: over crashes of all three, while rows are on their way, each
# committed event is recorded exactly once where it is sent, and each invalid row is a dead
# letter exactly once; what was rolled back is nowhere.  An apply worker commits
# asynchronously, and a publisher is told of a commit only when it is flushed: what a
# crash takes back comes again.

use OnsideTest;
use OnsideTopology;

my $seed = $ENV{ONSIDE_SEED} // int rand 1e9;
srand $seed;
note "ONSIDE_SEED=$seed repeats the order of things";

my $sandbox = OnsideSandbox->start;

# Nothing is flushed there unless somebody asks for it.
my $sender = onside_node('sender', sandbox => $sandbox, conf => <<'CONF');
wal_retrieve_retry_interval = '100ms'
wal_writer_delay = '10s'
wal_writer_flush_after = '1GB'
wal_receiver_status_interval = '1s'
onside_attribution.segment_size = '1GB'
CONF
create_extension($sender, 'postgres');
my %publisher = map { $_ => onside_node($_, preload => 0, init => { allows_streaming => 'logical' },
		conf => "logical_decoding_work_mem = '64kB'\n") } qw(paris tokyo);
foreach my $name (sort keys %publisher)
{
	$publisher{$name}->safe_psql('postgres', <<'SQL');
CREATE SCHEMA onside_attribution;
CREATE TABLE onside_attribution.outbox (event_id uuid NOT NULL DEFAULT gen_random_uuid(), event_name text, payload jsonb NOT NULL DEFAULT '{}',
	event_datetime timestamptz NOT NULL DEFAULT now(), installation_id uuid NOT NULL DEFAULT gen_random_uuid(), recorded_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE PUBLICATION events FOR TABLE onside_attribution.outbox WITH (publish = 'insert');
SQL
	record_some($name);
	$sender->safe_psql('postgres', "CREATE SUBSCRIPTION $name CONNECTION '@{[ $publisher{$name}->connstr('postgres') =~ s/'/''/gr ]}' PUBLICATION events WITH (streaming = on)");
}

# Small transactions, a large one, and some that are rolled back.
sub record_some
{
	my ($name) = @_;
	my $insert = 'INSERT INTO onside_attribution.outbox (event_name, payload)';
	$publisher{$name}->safe_psql('postgres', <<"SQL");
DO \$\$ BEGIN FOR i IN 1 .. 40 LOOP
	$insert SELECT CASE WHEN g = 3 THEN '' ELSE 'sold' END, '{}' FROM generate_series(1, 3) g; COMMIT;
END LOOP; END \$\$;
BEGIN; $insert SELECT CASE WHEN g % 50 = 0 THEN ' ' ELSE 'many' END, jsonb_build_object('x', repeat(md5(g::text), 20)) FROM generate_series(1, 400) g; COMMIT;
BEGIN; $insert SELECT 'rolled back', jsonb_build_object('x', repeat(md5(g::text), 20)) FROM generate_series(1, 400) g; ROLLBACK;
BEGIN; $insert VALUES ('sold', '{}'); SAVEPOINT a; $insert VALUES ('', '{"back": 1}'); ROLLBACK TO a; COMMIT;
SQL
	return;
}

# Sorted event_ids, valid ones and others.
sub on_publishers
{
	my ($condition) = @_;
	return join "\n", sort map { split /\n/, $_->safe_psql('postgres', "SELECT event_id FROM onside_attribution.outbox WHERE $condition") } values %publisher;
}

sub exactly_once
{
	my ($what) = @_;
	foreach my $name (sort keys %publisher)
	{
		ok($sender->poll_query_until('postgres', "SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel"), "$what: copied from $name");
		$publisher{$name}->wait_for_catchup($name);
	}
	my $sql = sub { return join "\n", sort split /\n/, $sender->safe_psql('postgres', $_[0]) };
	ok($sql->('SELECT event_id FROM onside_attribution.outbox') eq on_publishers(q{event_name > ' '}), "$what: each event is recorded exactly once");
	ok($sql->('SELECT event_id FROM onside_attribution.dead_letter') eq on_publishers(q{event_name <= ' '}), "$what: each invalid row is a dead letter exactly once");
	return;
}

my @victims = ('sender', 'sender', 'sender', sort keys %publisher);
my $lost = 0;
foreach my $round (0 .. $#victims)
{
	my $victim = splice @victims, int rand @victims, 1;
	my $node = $victim eq 'sender' ? $sender : $publisher{$victim};

	# While it is paused, nobody here flushes.
	$sender->safe_psql('postgres', 'SELECT onside_attribution.' . ($round % 2 ? 'resume()' : "pause('round $round')"));
	record_some($_) foreach sort keys %publisher;
	if ($victim eq 'sender')
	{
		# Some of it has come.
		$sender->poll_query_until('postgres', "SELECT count(*) > 100 * $round FROM onside_attribution.outbox");
	}
	my $before = $sender->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.outbox');
	crash($node);
	record_some($_) foreach grep { $_ ne $victim } sort keys %publisher;
	$node->start;
	$lost++ if $victim eq 'sender' && $sender->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.outbox') < $before;
	exactly_once("round $round, a crash of $victim");
}
note "$lost crashes have taken back what was committed";

poll_worker($sender, 'postgres');
$sender->safe_psql('postgres', 'SELECT onside_attribution.resume()');
wait_for_flush($sender, 'postgres', 'all is sent');
arrived_ok($sandbox, [ split /\n/, on_publishers(q{event_name > ' '}) ], 'all of it arrived, and nothing else');

$_->stop foreach $sender, values %publisher;
$sandbox->stop;
done_testing();
