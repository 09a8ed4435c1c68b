# pg_upgrade carries everything over: after it the new server sends what was
# recorded before and not yet sent, sends nothing again that was settled, keeps
# what is retained and the dead letters, counts on, records on, and has the
# settings of each database; with the library preloaded in both servers.  While
# pg_upgrade is at work, also with --check beside a running server, nothing is
# sent.

use File::Basename;
use OnsideTest;

my $old_pg_config = $ENV{OLD_PG_CONFIG};
plan skip_all => 'NOT TESTED: there is no older PostgreSQL to upgrade from (OLD_PG_CONFIG)'
  unless $old_pg_config;

# Of "outbox" and its cursor: is every transaction id of the past?
my $foreign = <<'SQL';
SELECT (SELECT count(*) FROM onside_attribution.outbox WHERE xid >= pg_current_xact_id()),
       (SELECT pg_snapshot_xmax(settled) <= pg_snapshot_xmax(pg_current_snapshot())
        FROM onside_attribution.delivery_cursor)
SQL
my $previews = <<'SQL';
SELECT onside_attribution.preview(event_id) FROM onside_attribution.outbox ORDER BY event_id
SQL
my $settings = <<'SQL';
SELECT datname, unnest(setconfig) FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase
ORDER BY 1, 2
SQL

# Records until each segment of "small" has been written to and the first events
# are gone.
sub all_segments_emptied
{
	my ($node, $what) = @_;
	my %written;
	my $first = $node->safe_psql('small', "SELECT onside_attribution.track('level', gen_random_uuid(), '{}')");
	$node->safe_psql('small', "INSERT INTO noted VALUES ('$first')");
	ok( wait_until(
			sub {
				$node->safe_psql('small', <<'SQL');
INSERT INTO noted SELECT onside_attribution.track('level', gen_random_uuid(), '{}') FROM generate_series(1, 500)
SQL
				wait_until(sub { status($node, 'small')->{pending} == 0 });
				$written{ $node->safe_psql('small', 'SELECT segment FROM onside_attribution.delivery_cursor') } = 1;
				return keys %written == 3
				  && !$node->safe_psql('small', "SELECT count(*) FROM onside_attribution.outbox WHERE event_id = '$first'");
			}),
		$what);
	return;
}

# Both with checksums: what initdb does by itself differs between versions.
my %init = (extra => ['--data-checksums']);
my $conf = 'onside_attribution.max_databases = 5';

my $sandbox = OnsideSandbox->start;
my $old = onside_node(
	'old',
	install_path => dirname(dirname($old_pg_config)),
	init => \%init,
	conf => $conf,
	sandbox => $sandbox,
	start => 0);
my $new = onside_node('new', init => \%init, conf => $conf, sandbox => $sandbox, start => 0);

# Transaction ids that do not fit 32 bits, and that the new server is far from.
$old->command_ok([ 'pg_resetwal', '--epoch=7', '-D', $old->data_dir ], 'an old server');
$old->start;
note('from ' . $old->safe_psql('postgres', 'SELECT version()'));

# ---------------------------------------------------------------------------
# The old server
# ---------------------------------------------------------------------------

# "shop" keeps what it has delivered.
$old->safe_psql('postgres', 'CREATE DATABASE shop');
create_extension($old, 'shop');
set_for_database($old, 'shop', 'retention', '1h');
set_for_database($old, 'shop', 'batch_max_events', 7);
wait_until(sub { (status($old, 'shop')->{worker_pid} // 0) > 0 });
$old->safe_psql('shop', <<'SQL');
CREATE TABLE purchase (event_id uuid DEFAULT gen_random_uuid(), customer uuid, total numeric);
SELECT onside_attribution.attach('purchase', 'purchase_completed', 'customer',
	'{"amount": "total"}', event_id => 'event_id');
INSERT INTO purchase (customer, total) SELECT gen_random_uuid(), i FROM generate_series(1, 50) i;
SQL
wait_for_flush($old, 'shop', 'some is delivered');
my $delivered = committed($old, 'shop', 'SELECT event_id FROM purchase');

$sandbox->poison('poison');
my $dead = track($old, 'shop', 'poison');
poll_status($old, 'shop', { dead_lettered => 1, pending => 0 }, 'one is dead');

# The cursor has to pass one that is still open, and so has to name it.
my $late = $old->background_psql('shop');
$late->query_safe("BEGIN; INSERT INTO purchase (customer, total) VALUES (gen_random_uuid(), 1000)");
push @$delivered, track($old, 'shop');
wait_for_flush($old, 'shop');
$old->safe_psql('shop', "SELECT onside_attribution.pause('upgrade')");
poll_status($old, 'shop', { state => 'paused' }, 'paused');
$late->query_safe('COMMIT');
$late->quit;
$old->safe_psql('shop', <<'SQL');
INSERT INTO purchase (customer, total) SELECT gen_random_uuid(), i FROM generate_series(1, 40) i;
SELECT onside_attribution.track('large', gen_random_uuid(), json_build_object('x', repeat(md5('y'), 10000))::jsonb);
SQL
my $pending = committed($old, 'shop', 'SELECT event_id FROM onside_attribution.pending');
is(scalar @$pending, 42, 'the rest is pending');

# "small" has emptied segments, and keeps sending until the end.
$old->safe_psql('postgres', 'CREATE DATABASE small');
create_extension($old, 'small');
set_for_database($old, 'small', 'segment_size', '64kB');
$old->safe_psql('small', 'CREATE TABLE noted (event_id uuid)');
my $note = q{INSERT INTO noted SELECT onside_attribution.track('level', gen_random_uuid(), '{}') FROM generate_series(1, %d)};
all_segments_emptied($old, 'all segments have been emptied');
wait_for_flush($old, 'small');
set_for_database($old, 'small', 'enabled', 'off');
poll_status($old, 'small', { state => 'disabled' }, 'a database that is not to send');
$old->safe_psql('small', sprintf $note, 3);

# "postgres" would send, if only the API were there.
create_extension($old, 'postgres');
$old->safe_psql('postgres', 'CREATE TABLE noted (event_id uuid)');
$sandbox->behave({ status => 503 });
$old->safe_psql('postgres', sprintf $note, 4);
poll_status($old, 'postgres', { state => 'backing_off', pending => 4 }, 'a database that cannot send');

my %before = map { $_ => status($old, $_) } qw(shop small);
my %outbox = map { $_ => $old->safe_psql($_, $previews) } qw(shop small);
my $dead_letter = $old->safe_psql('shop', 'SELECT d FROM onside_attribution.dead_letter d');
my $attached = $old->safe_psql('shop', 'SELECT a FROM onside_attribution.attached a');
my $set = $old->safe_psql('postgres', $settings);
cmp_ok($old->safe_psql('shop', 'SELECT min(xid::text::numeric) FROM onside_attribution.outbox'),
	'>', 7 * 2**32, 'transaction ids have an epoch');

# ---------------------------------------------------------------------------
# pg_upgrade
# ---------------------------------------------------------------------------

my $sockets = PostgreSQL::Test::Utils::tempdir_short();

# It writes into the current directory.
chdir PostgreSQL::Test::Utils::tempdir() or die "chdir: $!";

sub pg_upgrade
{
	my (@options) = @_;
	return [
		'pg_upgrade',
		'-b', $old->config_data('--bindir'), '-B', $new->config_data('--bindir'),
		'-d', $old->data_dir, '-D', $new->data_dir,
		'-p', $old->port, '-P', $new->port, '-s', $sockets, @options
	];
}

$new->command_ok(pg_upgrade('--check'), 'pg_upgrade --check beside the running server');
is($old->safe_psql('shop', $previews), $outbox{shop}, 'which has changed nothing');
$old->stop;
$sandbox->behave;
my $requests = $sandbox->report->{requests};
my $distinct = $sandbox->report->{distinct};
$new->command_ok(pg_upgrade('--check'), 'pg_upgrade --check of the stopped server');
$new->command_ok(pg_upgrade(), 'pg_upgrade');
is($sandbox->report->{requests}, $requests,
	'nothing has been sent meanwhile, though the API is there again');

# ---------------------------------------------------------------------------
# The new server
# ---------------------------------------------------------------------------

$new->start;
poll_worker($new, $_) foreach qw(shop small postgres);
is($new->safe_psql('postgres', 'SHOW onside_attribution.max_databases'), 5,
	'the new server has preloaded the library');
is($new->safe_psql('postgres', $settings), $set, 'and the settings of each database');
poll_status($new, 'shop', { state => 'paused', pending => 42 }, 'what was paused is paused');
poll_status($new, 'small', { state => 'disabled', pending => 3 }, 'what was disabled is disabled');
foreach my $database (qw(shop small))
{
	my $row = status($new, $database);
	is($row->{$_}, $before{$database}{$_}, "$database: $_ are what they were")
	  foreach qw(delivered dead_lettered requests retries);
	is($new->safe_psql($database, $previews), $outbox{$database},
		"$database: the same events");
	is($new->safe_psql($database, $foreign), '0|t',
		"$database: all transaction ids are of the past");
}
is($new->safe_psql('shop', 'SELECT d FROM onside_attribution.dead_letter d'),
	$dead_letter, 'the same dead letter');
is($new->safe_psql('shop', 'SELECT a FROM onside_attribution.attached a'),
	$attached, 'the same attached table');
is_deeply(
	[ sort @{ committed($new, 'shop', 'SELECT event_id FROM onside_attribution.pending') } ],
	[ sort @$pending ],
	'the same events are pending');
wait_for_flush($new, 'postgres', 'what can be sent is sent by itself');
is($sandbox->report->{distinct}, $distinct + 4, 'and nothing else so far');

# Recording goes on, by function and by trigger, behind what was there.
$new->safe_psql('shop', <<'SQL');
INSERT INTO purchase (customer, total) SELECT gen_random_uuid(), i FROM generate_series(1, 10) i;
SQL
my $more = track($new, 'shop');
is( $new->safe_psql('shop', <<SQL), 't', 'what is recorded now comes behind it');
SELECT bool_and(new.xid > old.xid)
FROM onside_attribution.outbox new, onside_attribution.outbox old
WHERE new.event_id = '$more' AND old.event_id <> '$more' AND new.xid <> old.xid
SQL
$new->safe_psql('shop', 'SELECT onside_attribution.resume()');
wait_for_flush($new, 'shop', 'resumed, it sends');
set_for_database($new, 'small', 'enabled', undef);
$new->safe_psql('small', sprintf $note, 5);
poll_status($new, 'small', { state => 'idle', pending => 0 }, 'enabled, it sends');

my @all = (
	@$delivered, $more,
	@{ committed($new, 'shop', 'SELECT event_id FROM purchase') },
	@$pending,
	map { @{ committed($new, $_, 'SELECT event_id FROM noted') } } qw(small postgres));
arrived_ok($sandbox, \@all, 'every event has arrived, recorded before or after');
nothing_came_twice($sandbox, 'each of them once');

# What was kept can be sent again, and the dead letter too.
my $replayed = $new->safe_psql('shop', "SELECT onside_attribution.replay('-infinity')");
is($replayed, scalar(@$delivered) + 42 + 11, 'what was retained can be replayed');
$sandbox->poison(undef);
is($new->safe_psql('shop', 'SELECT onside_attribution.retry_dead_letters()'),
	1, 'a dead letter can be sent again');
wait_for_flush($new, 'shop');
arrived_ok($sandbox, [ @all, $dead ], 'with the same bytes');

# Segments are emptied here, too.
all_segments_emptied($new, 'all segments have been emptied again');

$new->stop;
$sandbox->stop;
done_testing();
