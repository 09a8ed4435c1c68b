# What docs/managed.md says is so: a server without the extension and one that has it are set up by its SQL, in its order, and
# an event arrives; its steps start over after a slot was lost, of which doctor() tells, with no gap; what was forgotten as
# it says does not come again.

use FindBin;
use OnsideTest;

my $tree = "$FindBin::RealBin/../..";
my $document = slurp_file("$tree/docs/managed.md");
my $sandbox = OnsideSandbox->start;
my $managed = onside_node('managed', preload => 0, init => { allows_streaming => 'logical' },
	conf => "max_slot_wal_keep_size = 48MB\nmin_wal_size = 32MB\nmax_wal_size = 64MB\n");
my $sending = onside_node('sending', sandbox => $sandbox, conf => "wal_retrieve_retry_interval = '100ms'\n");

$managed->safe_psql('postgres', 'CREATE ROLE shop_owner LOGIN; CREATE ROLE app LOGIN');
$managed->safe_psql('postgres', 'CREATE DATABASE shop OWNER shop_owner');
my ($out, $err);
my ($options) = $document =~ /^    psql (.*) -f recorder\.sql "host=db\.example dbname=shop user=shop_owner"$/m
  or die 'docs/managed.md does not say how to run recorder.sql';
create_extension($sending, 'postgres');
ok(IPC::Run::run([ 'psql', '-Xq', split(/ /, $options), '-f', "$tree/managed/recorder.sql", $managed->connstr('shop') . ' user=shop_owner' ],
		'>', \$out, '2>', \$err), 'recorder.sql') or diag($err);

# The SQL below a heading, block after block, each on its side.
my %ran;

sub follow
{
	my ($heading, %before) = @_;
	my ($text) = $document =~ /^#+ \Q$heading\E\n(.*?)(?=^#+ )/ms or die "no heading $heading";
	my @output;
	while ($text =~ /^```sql\n(.*?)^```$/msg)
	{
		my $sql = $1;
		my ($side) = $sql =~ /\A-- (managed|sending|both) sides?\n/ or die "on which side does this run? $sql";
		$sql =~ s/host=db\.example (dbname=shop user=onside_sender) password=''change me'' sslmode=verify-full sslrootcert=\S+?(?=')/
			($managed->connstr =~ s{'}{''}gr) . " $1"/e;
		unlike($sql, qr/db\.example/, 'the connection is another one');
		$before{pg_drop_replication_slot}->() if $sql =~ /pg_drop_replication_slot/ && $before{pg_drop_replication_slot};
		foreach my $node ($side eq 'managed' ? $managed : $side eq 'sending' ? $sending : ($managed, $sending))
		{
			my $database = $node == $managed ? 'shop' : 'postgres';
			my ($ret, $stdout, $stderr) = $node->psql($database, $sql, on_error_stop => 1);
			is($ret, 0, "$heading, " . $node->name . ': ' . (split /\n/, $sql)[1]) or diag($stderr);
			push @output, $stdout;
		}
		$ran{"$heading: $sql"}++;
	}
	return @output;
}

sub arrived_all
{
	my ($what) = @_;
	my $id = $managed->safe_psql('shop', "SELECT onside_attribution.track('last', gen_random_uuid(), '{}')");
	ok(wait_until(sub { $sandbox->accepted($id) }), "$what: the last one arrived");
	wait_for_flush($sending, 'postgres');
	my @ids = split /\n/, $managed->safe_psql('shop', 'SELECT DISTINCT event_id FROM onside_attribution.outbox');
	my $events = $sandbox->events;
	is(scalar(grep { !$events->{$_} } @ids), 0, "$what: all that the managed side has recorded arrived");
	return;
}

follow('Setting it up');
my $works = $managed->safe_psql('shop', q{SELECT event_id FROM onside_attribution.outbox WHERE event_name = 'it_works'});
ok(wait_until(sub { $sandbox->accepted($works) }), 'the event arrives');
foreach my $node ($managed, $sending)
{
	my $bad;
	ok(wait_until(sub { ($bad = $node->safe_psql($node == $managed ? 'shop' : 'postgres', 'SELECT * FROM onside_attribution.doctor() WHERE NOT ok')) eq '' }),
		$node->name . ': doctor() is content') or diag($bad);
}
follow('Standbys of the sending side');
is($sending->safe_psql('postgres', 'SELECT subsynccommit FROM pg_subscription'), 'on', 'synchronous_commit of the subscription');

# A role with no more than the document grants records.
$managed->safe_psql('shop', q{CREATE TABLE orders (id bigint PRIMARY KEY, installation_id uuid, total numeric(10,2), paid_at timestamptz DEFAULT now()); GRANT INSERT ON orders TO app; ALTER TABLE orders OWNER TO shop_owner});
$managed->safe_psql('shop', q{SELECT onside_attribution.attach('orders', 'purchase_completed', 'installation_id', '{"amount": "total"}', 'paid_at', 'id')}, extra_params => [ '-U', 'shop_owner' ]);
my $order = q{INSERT INTO orders SELECT g, gen_random_uuid(), 9.90 FROM generate_series(%d, %d) g};
$managed->safe_psql('shop', sprintf($order, 1, 10), extra_params => [ '-U', 'app' ]);
arrived_all('orders');

# The slot is lost while orders go on: its WAL is removed.
my $free = sub { ok(wait_until(sub { $managed->safe_psql('shop', q{SELECT count(*) FROM pg_replication_slots WHERE active}) eq 0 }), 'nobody reads it') };
my $slot = q{FROM onside_attribution.doctor() WHERE check_name = 'slot onside_shop'};
$sending->safe_psql('postgres', 'ALTER SUBSCRIPTION onside_shop DISABLE');
$free->();
is($managed->safe_psql('shop', "SELECT ok, detail ~ 'nobody reads it' $slot"), 'f|t', 'doctor() of the managed side says so');
$managed->safe_psql('shop', sprintf($order, 11, 20), extra_params => [ '-U', 'app' ]);
$managed->safe_psql('shop', 'CREATE TABLE filler (x text)');
foreach (1 .. 20)
{
	$managed->safe_psql('shop', $_) foreach q{INSERT INTO filler SELECT repeat(md5(g::text), 30) FROM generate_series(1, 10000) g},
	  'SELECT pg_switch_wal()', 'CHECKPOINT';
	last if $managed->safe_psql('shop', q{SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'onside_shop'}) eq 'lost';
}
is($managed->safe_psql('shop', "SELECT ok, detail, hint ~ 'CREATE SUBSCRIPTION' $slot"),
	'f|its WAL has been removed: nothing arrives through it any more|t', 'then that it is lost, and what to do');
$sending->safe_psql('postgres', 'ALTER SUBSCRIPTION onside_shop ENABLE');
ok( wait_until(sub { $sending->safe_psql('postgres', q{SELECT count(*) FROM onside_attribution.doctor() WHERE check_name = 'subscriptions' AND NOT ok}) eq 1 }),
	'the sending side says so');
follow('Starting over', pg_drop_replication_slot => $free);
arrived_all('started over');

# A week later the outbox has nothing of them.
$managed->safe_psql('shop', q{DELETE FROM onside_attribution.outbox WHERE event_name = 'purchase_completed'});
my %before = %{ $sandbox->events };
follow('Starting over', pg_drop_replication_slot => $free);
arrived_all('backfilled');
is($managed->safe_psql('shop', q{SELECT count(*) FROM onside_attribution.outbox WHERE event_name = 'purchase_completed'}), 20, 'backfill has recorded the orders');
is(join(' ', grep { !$before{$_} } split /\n/, $managed->safe_psql('shop', q{SELECT event_id FROM onside_attribution.outbox WHERE event_name = 'purchase_completed'})),
	'', 'under the event_ids that they had');

# What is forgotten does not come again.
my ($installation) = $document =~ /forget\('([0-9a-f-]{36})'\)/ or die 'no forget()';
$sending->safe_psql('postgres', 'SELECT onside_attribution.pause()');
my @forgotten = split /\n/, $managed->safe_psql('shop', "SELECT onside_attribution.track('forgotten', '$installation', '{}') FROM generate_series(1, 3)");
ok($sending->poll_query_until('postgres', q{SELECT count(*) = 3 FROM onside_attribution.pending WHERE event_name = 'forgotten'}), 'three are pending');
follow('Forgetting an installation');
follow('Starting over', pg_drop_replication_slot => $free);
$sending->safe_psql('postgres', 'SELECT onside_attribution.resume()');
arrived_all('forgotten');
is(scalar(grep { $sandbox->accepted($_) } @forgotten), 0, 'what was forgotten did not');

# And off again.
$sending->safe_psql('postgres', 'DROP SUBSCRIPTION onside_shop');
follow('Removing it');
$managed->safe_psql('shop', sprintf($order, 21, 30), extra_params => [ '-U', 'app' ]);

is($sandbox->report->{mismatched}, 0, 'an event has the same bytes each time');
my $blocks = () = $document =~ /^```sql$/mg;
is(scalar keys %ran, $blocks, 'each block has run');

$_->stop foreach $sending, $managed;
$sandbox->stop;
done_testing();
