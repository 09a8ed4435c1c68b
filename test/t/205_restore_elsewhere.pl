# Dumps of every kind carry what is pending and the dead letters, and nothing
# that is settled or retained: pg_dumpall, pg_dump in parallel, data and schema
# apart.  Restored into clusters whose transaction ids are far behind, or ahead
# by more than an epoch, or about to wrap around, the pending events are sent
# once, the others never, and dead letters can be retried there.

use OnsideTest;
use OnsideTopology;

my $epoch = 2**32;
my $sandbox = OnsideSandbox->start;

# The source is in its third epoch.
my $source = onside_node('source', sandbox => $sandbox, start => 0);
advance_xids($source, 50_000_000, 2);
$source->start;
cmp_ok(next_xid($source), '>', 2 * $epoch, 'the source is past two epochs');

$source->safe_psql('postgres', 'CREATE DATABASE shop');
create_extension($source, 'shop');
set_for_database($source, 'shop', 'retention', '1d');
wait_until(sub { (status($source, 'shop')->{worker_pid} // 0) > 0 });
record($source, 'shop', 30, 'retained');
$source->safe_psql('shop', <<'SQL');
CREATE TABLE purchase (event_id uuid DEFAULT gen_random_uuid(), customer uuid DEFAULT gen_random_uuid());
SELECT onside_attribution.attach('purchase', 'sold', 'customer', '{}', event_id => 'event_id');
INSERT INTO purchase SELECT FROM generate_series(1, 5);
SQL
$sandbox->poison('poison');
my @dead = map { track($source, 'shop', 'poison') } 1 .. 3;
poll_status($source, 'shop', { dead_lettered => 3, pending => 0 }, 'some are dead');

# Delivered after others that are still open; and pending.
my $open = $source->background_psql('shop');
$open->query_safe(q{BEGIN; INSERT INTO noted SELECT onside_attribution.track('pending', gen_random_uuid(), '{}'), 'pending'});
record($source, 'shop', 10, 'retained');
wait_for_flush($source, 'shop', 'some are delivered and kept');
$source->safe_psql('shop', 'SELECT onside_attribution.pause()');
poll_status($source, 'shop', { state => 'paused' }, 'paused');
$open->query_safe('COMMIT');
$open->quit;
my @pending = @{ record($source, 'shop', 20, 'pending') };
push @pending, track($source, 'shop', 'large', '{"x": "' . 'y' x 100_000 . '"}');
my $previews = 'SELECT onside_attribution.preview(event_id) FROM onside_attribution.pending ORDER BY event_id';
my $bytes = $source->safe_psql('shop', $previews);
is( $source->safe_psql('shop',
		'SELECT (SELECT count(*) FROM onside_attribution.outbox), (SELECT count(*) FROM onside_attribution.pending)'),
	'70|22', 'the outbox has more than what is pending');

# ---------------------------------------------------------------------------
# Dumps
# ---------------------------------------------------------------------------

my $dir = $source->basedir . '/dumps';
mkdir $dir or die;
my @from = (-d => $source->connstr('shop'));
$source->command_ok([ 'pg_dump', @from, -f => "$dir/plain.sql" ], 'pg_dump');
$source->command_ok([ 'pg_dump', @from, '--column-inserts', -f => "$dir/inserts.sql" ], 'pg_dump --column-inserts');
$source->command_ok([ 'pg_dump', @from, '-Fc', -f => "$dir/custom" ], 'pg_dump -Fc');
$source->command_ok([ 'pg_dump', @from, '-Fd', '-j3', -f => "$dir/directory" ], 'pg_dump -Fd -j3');
$source->command_ok([ 'pg_dump', @from, '--schema-only', -f => "$dir/schema.sql" ], 'pg_dump --schema-only');
$source->command_ok([ 'pg_dump', @from, '--data-only', -f => "$dir/data.sql" ], 'pg_dump --data-only');
$source->command_ok([ 'pg_dump', @from, '--data-only', '--load-via-partition-root', -f => "$dir/root.sql" ],
	'pg_dump --data-only --load-via-partition-root');
$source->command_ok([ 'pg_dumpall', '-d', $source->connstr('postgres'), '--no-role-passwords', -f => "$dir/all.sql" ],
	'pg_dumpall');
my $psql = sub {
	my ($target, $database, @files) = @_;
	return map {
		[ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-o', '/dev/null',
		  '-d', $target->connstr($database), '-f', "$dir/$_.sql" ]
	} @files;
};
my $restore = sub {
	my ($target, $database, $what, @options) = @_;
	return [ 'pg_restore', '--exit-on-error', '-d', $target->connstr($database), @options, "$dir/$what" ];
};
my %way = (
	plain => sub { $psql->(@_, 'plain') },
	inserts => sub { $psql->(@_, 'inserts') },
	custom => sub { $restore->(@_, 'custom', '-1') },
	directory => sub { $restore->(@_, 'directory', '-j3') },
	apart => sub { $psql->(@_, 'schema', 'data') },
	root => sub { $psql->(@_, 'schema', 'root') });

# ---------------------------------------------------------------------------
# Targets
# ---------------------------------------------------------------------------

# What came out of the dump is sent where sending is configured, and only then.
sub sends_ok
{
	my ($target, $database, $what) = @_;
	my $there = OnsideSandbox->start;
	$there->poison('poison');
	poll_worker($target, $database);
	poll_status($target, $database, { state => 'misconfigured', pending => 22, delivered => 0 },
		"$what: what was pending is pending");
	is( $target->safe_psql($database,
			'SELECT count(*) FROM onside_attribution.outbox WHERE xid >= pg_snapshot_xmax(pg_current_snapshot())'),
		0, "$what: with transaction ids of this server");
	is($target->safe_psql($database, $previews), $bytes, "$what: the same events");

	my $file = write_credentials($target, 'sandbox:sandbox');
	$target->safe_psql('postgres', <<SQL);
LOAD 'onside_attribution';
ALTER DATABASE $database SET onside_attribution.endpoint = '@{[ $there->url ]}';
ALTER DATABASE $database SET onside_attribution.credentials_file = '$file';
SELECT pg_reload_conf();
SQL
	my @more = (track($target, $database),
		$target->safe_psql($database, 'INSERT INTO purchase DEFAULT VALUES RETURNING event_id'));
	wait_for_flush($target, $database, "$what: configured, it sends");
	arrived_ok($there, [ @pending, @more ], "$what: what was pending, and no more");

	is( $target->safe_psql($database,
			"SELECT (SELECT count(*) FROM purchase), (SELECT count(*) FROM onside_attribution.attached WHERE enabled)"),
		'6|1', "$what: purchases that are there are reported no more, new ones are");
	is( $target->safe_psql($database,
			"SELECT string_agg(event_id::text || http_status, ' ' ORDER BY event_id) FROM onside_attribution.dead_letter"),
		join(' ', map { "${_}400" } sort @dead),
		"$what: the dead letters came along");
	$there->poison(undef);
	is($target->safe_psql($database, 'SELECT onside_attribution.retry_dead_letters()'),
		3, "$what: they can be retried");
	wait_for_flush($target, $database);
	arrived_ok($there, [ @pending, @more, @dead ], "$what: and arrive");
	nothing_came_twice($there, "$what: once");
	$there->stop;
	return;
}

sub restore_ok
{
	my ($target, $way) = @_;
	my $database = "shop_$way";
	my $what = $target->name . ", $way";
	$target->safe_psql('postgres', "CREATE DATABASE $database TEMPLATE template0");

	{
		# Data by itself is restored where the triggers are, as docs/operations.md says.
		local $ENV{PGOPTIONS} = '-c session_replication_role=replica'
		  if $way =~ /apart|root/;
		$target->command_ok($_, "$what: restored") foreach $way{$way}->($target, $database);
	}
	sends_ok($target, $database, $what);
	$target->safe_psql('postgres', "DROP DATABASE $database");
	return;
}

# Far behind.
my $behind = onside_node('behind');
restore_ok($behind, $_) foreach qw(plain inserts directory apart root);

# pg_dumpall brings along what ALTER DATABASE had set.
$behind->command_ok(
	[ 'psql', '-X', '-q', '-o', '/dev/null', '-d', $behind->connstr('postgres'), '-f', "$dir/all.sql" ],
	'pg_dumpall: restored');
is( $behind->safe_psql('shop', 'SHOW onside_attribution.retention'),
	'1d', 'pg_dumpall: with the settings of the database');
sends_ok($behind, 'shop', 'pg_dumpall');
$behind->stop;

# Ahead, by more than an epoch.
my $ahead = onside_node('ahead', start => 0);
advance_xids($ahead, 100_000_000, 5);
$ahead->start;
restore_ok($ahead, 'custom');
$ahead->stop;

# About to wrap around: three steps, with all tuples frozen after each.
my $wrapping = onside_node('wrapping', start => 0, conf => 'autovacuum = off');
foreach my $xid (1_500_000_000, 3_000_000_000, $epoch - 400)
{
	advance_xids($wrapping, $xid);
	$wrapping->start;
	last if $xid > 4_000_000_000;
	$wrapping->safe_psql('postgres', 'ALTER DATABASE template0 ALLOW_CONNECTIONS true');
	$wrapping->command_ok([ 'vacuumdb', '-q', '--all', '--freeze', '--maintenance-db', $wrapping->connstr('postgres') ],
		'frozen');
	$wrapping->stop;
}
$wrapping->safe_psql('postgres', 'CREATE DATABASE shop_wrap TEMPLATE template0');
$wrapping->command_ok($_, 'wrapping: restored') foreach $way{custom}->($wrapping, 'shop_wrap');
cmp_ok(next_xid($wrapping), '<', $epoch, 'before the transaction ids wrap around');
poll_worker($wrapping, 'shop_wrap');
is(status($wrapping, 'shop_wrap')->{pending}, 22, 'the restored events are pending');
$wrapping->safe_psql('shop_wrap', <<'SQL');
DO $$
BEGIN
	FOR i IN 1..500 LOOP
		PERFORM pg_current_xact_id();
		COMMIT;
	END LOOP;
END
$$
SQL
cmp_ok(next_xid($wrapping), '>', $epoch, 'and after');
sends_ok($wrapping, 'shop_wrap', 'wrapping');
$wrapping->stop;

# The source has not been touched by all this.
$sandbox->poison(undef);
my $before = $sandbox->report->{distinct};
$source->safe_psql('shop', 'SELECT onside_attribution.resume()');
wait_for_flush($source, 'shop');

# A dead letter's second chance may have come by now.
is($sandbox->accepted(@pending), 22, 'the source sends its own');
is($sandbox->report->{distinct} - $sandbox->accepted(@dead), $before + 22, 'and nothing else');
nothing_came_twice($sandbox, 'once');

$source->stop;
$sandbox->stop;
done_testing();
