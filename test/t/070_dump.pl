# A dump carries what is still to be sent, and the dead letters, and nothing
# that has been delivered.  Restored elsewhere, the events are sent from there
# once, as soon as sending is configured: whether that server's transaction ids
# are far behind or far ahead of those in the dump.

use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $source = onside_node('source', sandbox => $sandbox);

# Uses up transaction ids.
sub burn
{
	my ($node, $n) = @_;
	$node->safe_psql('postgres', <<SQL);
DO \$\$
BEGIN
	FOR i IN 1..$n LOOP
		PERFORM pg_current_xact_id();
		COMMIT;
	END LOOP;
END
\$\$
SQL
	return $node->safe_psql('postgres', 'SELECT pg_current_xact_id()');
}

burn($source, 20_000);
$source->safe_psql('postgres', 'CREATE DATABASE shop');
create_extension($source, 'shop');
set_for_database($source, 'shop', 'retention', '1h');
wait_until(sub { (status($source, 'shop')->{worker_pid} // 0) > 0 });
$source->safe_psql('shop', <<'SQL');
CREATE TABLE purchase (event_id uuid DEFAULT gen_random_uuid(), customer uuid, total numeric);
SELECT onside_attribution.attach('purchase', 'purchase_completed', 'customer',
	'{"amount": "total"}', event_id => 'event_id');
INSERT INTO purchase (customer, total) SELECT gen_random_uuid(), i FROM generate_series(1, 50) i;
SQL
wait_for_flush($source, 'shop', 'the source has delivered some');
is( $source->safe_psql('shop', 'SELECT count(*) FROM onside_attribution.outbox'),
	50, 'and keeps them');

# A dead letter.
$sandbox->poison('poison');
my $dead = track($source, 'shop', 'poison');
poll_status($source, 'shop', { dead_lettered => 1, pending => 0 }, 'one is dead');

# In the middle of things: a transaction open while the cursor moves past it,
# another one still open in the dump.
my $late = $source->background_psql('shop');
$late->query_safe("BEGIN; INSERT INTO purchase (customer, total) VALUES (gen_random_uuid(), 1000)");
my $open = $source->background_psql('shop');
$open->query_safe("BEGIN; INSERT INTO purchase (customer, total) VALUES (gen_random_uuid(), 1001)");
track($source, 'shop');
wait_for_flush($source, 'shop');
$source->safe_psql('shop', "SELECT onside_attribution.pause('dump')");
poll_status($source, 'shop', { state => 'paused' }, 'paused');
$late->query_safe('COMMIT');
$late->quit;
$source->safe_psql('shop', <<'SQL');
INSERT INTO purchase (customer, total) SELECT gen_random_uuid(), i FROM generate_series(1, 40) i;
SELECT onside_attribution.track('large', gen_random_uuid(), json_build_object('x', repeat('y', 100000))::jsonb);
SQL
my $pending = committed($source, 'shop', 'SELECT event_id FROM onside_attribution.pending');
is(scalar @$pending, 42, 'the rest is pending');
my $previews = $source->safe_psql('shop',
	'SELECT onside_attribution.preview(event_id) FROM onside_attribution.pending ORDER BY event_id');

my $plain = $source->basedir . '/plain.sql';
my $custom = $source->basedir . '/custom.dump';
my $inserts = $source->basedir . '/inserts.sql';
$source->command_ok([ 'pg_dump', '-f', $plain, $source->connstr('shop') ], 'pg_dump');
$source->command_ok([ 'pg_dump', '-Fc', '-f', $custom, $source->connstr('shop') ],
	'pg_dump -Fc');
$source->command_ok(
	[ 'pg_dump', '--column-inserts', '-f', $inserts, $source->connstr('shop') ],
	'pg_dump --column-inserts');
$open->query_safe('ROLLBACK');
$open->quit;

# The ids of what the source's server says are higher than the one's and lower
# than the other's.
my $lower = onside_node('lower');
my $higher = onside_node('higher');
burn($higher, 60_000);
my ($at_source, $at_lower, $at_higher) =
  map { $_->safe_psql('postgres', 'SELECT pg_current_xact_id()') } $source, $lower, $higher;
cmp_ok($at_lower + 10_000, '<', $at_source, 'one server is far behind');
cmp_ok($at_source + 10_000, '<', $at_higher, 'the other is far ahead');

foreach my $target ($lower, $higher)
{
	my $where = $target->name;
	foreach my $format (qw(plain custom inserts single))
	{
		my $database = "shop_$format";
		my $there = OnsideSandbox->start;
		$target->safe_psql('postgres', "CREATE DATABASE $database TEMPLATE template0");
		my @psql = ('psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $target->connstr($database));
		$target->command_ok(
			{
				plain => [ @psql, '-o', '/dev/null', '-f', $plain ],
				inserts => [ @psql, '-o', '/dev/null', '-f', $inserts ],
				custom => [ 'pg_restore', '--exit-on-error', '-d', $target->connstr($database), $custom ],
				single => [ 'pg_restore', '-1', '-d', $target->connstr($database), $custom ],
			}->{$format},
			"$where, $format: restored");

		# Not configured here yet.
		poll_worker($target, $database);
		my $row = poll_status($target, $database, { state => 'misconfigured', pending => 42 },
			"$where, $format: what was pending is pending, nothing else");
		is($row->{delivered}, 0, "$where, $format: nothing is delivered here");
		is( $target->safe_psql(
				$database,
				'SELECT onside_attribution.preview(event_id) FROM onside_attribution.pending ORDER BY event_id'),
			$previews,
			"$where, $format: the same events");
		is( $target->safe_psql(
				$database,
				'SELECT count(*) FROM onside_attribution.outbox WHERE xid > pg_current_xact_id()'),
			0,
			"$where, $format: with ids of transactions of this server");
		is( $target->safe_psql(
				$database, 'SELECT event_id, http_status FROM onside_attribution.dead_letter'),
			"$dead|400",
			"$where, $format: with the dead letter");

		my $file = write_credentials($target, 'sandbox:sandbox');
		$target->safe_psql('postgres', <<SQL);
LOAD 'onside_attribution';
ALTER DATABASE $database SET onside_attribution.endpoint = '@{[ $there->url ]}';
ALTER DATABASE $database SET onside_attribution.credentials_file = '$file';
SELECT pg_reload_conf();
SQL
		my $more = track($target, $database);
		wait_for_flush($target, $database, "$where, $format: configured, it sends");
		arrived_ok($there, [ @$pending, $more ],
			"$where, $format: what was pending, and no more");
		nothing_came_twice($there, "$where, $format: once");

		# Triggers and the rest work here, too.
		$target->safe_psql($database,
			'INSERT INTO purchase (customer, total) VALUES (gen_random_uuid(), 1)');
		wait_for_flush($target, $database);
		is($there->report->{distinct}, 44, "$where, $format: a purchase there");
		$there->stop;
	}
	$target->stop;
}

# The source has not been touched by all this.
$sandbox->poison(undef);
my $before = $sandbox->report->{distinct};
$source->safe_psql('shop', 'SELECT onside_attribution.resume()');
wait_for_flush($source, 'shop');
is($sandbox->report->{distinct}, $before + 42, 'the source sends its own');

$source->stop;
$sandbox->stop;
done_testing();
