# The outbox is a log in three segments: it goes round through all of them,
# keeps delivered events for as long as retention says, and lets whole segments
# go after that.  What keeps a segment from being emptied, a reader or an open
# transaction, blocks no purchase and loses no event.

use OnsideTest;

my $segment_size = 64 * 1024;

my $sandbox = OnsideSandbox->start(keep_events => 0);
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
onside_attribution.segment_size = '64kB'
CONF
create_extension($node, 'postgres');
$node->safe_psql('postgres', 'CREATE TABLE noted (event_id uuid)');

# More than a segment holds, by purchases that wait for no lock.
my $purchases = <<'SQL';
SET lock_timeout = '1ms';
INSERT INTO noted SELECT onside_attribution.track('purchase_completed', gen_random_uuid(), '{}')
FROM generate_series(1, 600);
SQL

sub fill_segment
{
	my ($what) = @_;
	my ($ret, $stdout, $stderr) = $node->psql('postgres', $purchases);
	is("$ret$stderr", '0', "$what: purchases wait for nobody");
	return;
}

sub segment
{
	return $node->safe_psql('postgres',
		'SELECT segment FROM onside_attribution.delivery_cursor');
}

sub kept
{
	return $node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.outbox');
}

sub everything_arrived
{
	my ($what) = @_;
	wait_for_flush($node, 'postgres', "$what: delivered");
	arrived_ok($sandbox, committed($node, 'postgres', 'SELECT event_id FROM noted'),
		"$what: what was committed arrived");
	nothing_came_twice($sandbox, "$what: nothing twice");
	return;
}

# Heap and TOAST of all segments, as segment_size counts.
sub is_small
{
	return wait_until(
		sub {
			$node->safe_psql('postgres', <<'SQL') <= $segment_size;
SELECT sum(pg_relation_size(inhrelid) + pg_relation_size(reltoastrelid))
FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
WHERE inhparent = 'onside_attribution.outbox'::regclass
SQL
		});
}

# ---------------------------------------------------------------------------
# Round and round
# ---------------------------------------------------------------------------

# A transaction that stays open through two rounds.
my $late = $node->background_psql('postgres');
$late->query_safe(
	"BEGIN; INSERT INTO noted SELECT onside_attribution.track('late', gen_random_uuid(), '{}')");

my @seen = (segment());
foreach my $round (1 .. 3)
{
	fill_segment("round $round");
	ok(wait_until(sub { segment() != $seen[-1] }), "round $round: writing moves on");
	push @seen, segment();
}

# The first segment is still in use by the open transaction, so that the third
# round goes from the third segment to the second.
is("@seen", '1 2 3 2', 'through the segments, not into one that is in use');
$late->query_safe(
	"INSERT INTO noted SELECT onside_attribution.track('late', gen_random_uuid(), '{}')");
my $before = $sandbox->report->{distinct};
wait_for_flush($node, 'postgres', 'flush does not wait for what is not committed');
$late->query_safe('COMMIT');
$late->quit;
everything_arrived('a late commit across rotations');

foreach my $round (4 .. 7)
{
	fill_segment("round $round");
	ok(wait_until(sub { segment() != $seen[-1] }), "round $round: writing moves on");
	push @seen, segment();
}
like("@seen[3 .. 7]", qr/1.*(3|2)/, 'the first one is in use again');
everything_arrived('several rounds');
ok(is_small(), 'the outbox is one segment or less');

# ---------------------------------------------------------------------------
# A reader
# ---------------------------------------------------------------------------

my $reader = $node->background_psql('postgres');
$reader->query_safe('BEGIN; SELECT count(*) FROM onside_attribution.outbox');
fill_segment("beside a reader, $_") foreach 1 .. 5;
everything_arrived('beside a reader');

# It must have been tried, and blocked, before the purchases below.
poll_status($node, 'postgres', { state => 'idle', state_reason => qr/segment.*another session/ },
	'status says what keeps a segment from being emptied');
fill_segment("while a segment cannot be emptied, $_") foreach 1 .. 3;
cmp_ok(kept(), '>=', 8 * 600, 'nothing is emptied beneath a reader');
$reader->query_safe('COMMIT');
$reader->quit;
ok(is_small(), 'when it has gone, the outbox becomes small');
everything_arrived('afterwards');
poll_status($node, 'postgres', { state => 'idle', state_reason => undef },
	'status says nothing any more');

# A prepared transaction is one that nobody sees in pg_stat_activity.
$node->safe_psql('postgres', <<'SQL');
BEGIN;
INSERT INTO noted SELECT onside_attribution.track('prepared', gen_random_uuid(), '{}');
PREPARE TRANSACTION 'slow';
SQL
fill_segment("beside a prepared transaction, $_") foreach 1 .. 5;
wait_for_flush($node, 'postgres');
$node->safe_psql('postgres', "COMMIT PREPARED 'slow'");
everything_arrived('with a prepared transaction');
ok(is_small(), 'then the outbox becomes small');

# What is not delivered stays, however often the segments are looked after: here
# at each reload, while the events wait.
$node->safe_psql('postgres', 'SELECT onside_attribution.pause()');
poll_status($node, 'postgres', { state => 'paused' }, 'paused');
foreach my $i (1 .. 2)
{
	my $was = segment();
	fill_segment("paused, $i");
	$node->reload;
	ok(wait_until(sub { segment() != $was }), "paused, $i: writing moves on");
}
fill_segment('paused, 3');
is( $node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.pending'),
	3 * 600, 'nothing is gone that was not delivered');
$node->safe_psql('postgres', 'SELECT onside_attribution.resume()');
everything_arrived('resumed');
ok(is_small(), 'then the outbox becomes small');

# ---------------------------------------------------------------------------
# retention
# ---------------------------------------------------------------------------

sub configure
{
	my ($name, $value) = @_;
	$node->append_conf('postgresql.conf', "onside_attribution.$name = '$value'");
	$node->reload;
	return;
}

configure('retention', '1h');
ok( wait_until(
		sub {
			$node->safe_psql('postgres', 'SHOW onside_attribution.retention') eq '1h';
		}),
	'retention is set');
$before = kept();
foreach my $i (1 .. 3)
{
	my $was = segment();
	fill_segment("retention, $i");
	wait_for_flush($node, 'postgres');

	# The third time there is no empty segment to move on to.
	ok(wait_until(sub { segment() != $was }), "retention, $i: writing moves on")
	  if $i < 3;
}
is(kept(), $before + 3 * 600, 'retention keeps what is delivered');
is( $node->safe_psql('postgres', 'SELECT count(*) FROM onside_attribution.pending'),
	0, 'none of it is pending');
is(status($node, 'postgres')->{pending}, 0, 'in status, neither');
everything_arrived('with retention');

# What was recorded more than a few seconds ago is gone then.
configure('retention', '3s');
ok(is_small(), 'when it is over, they go');

configure('retention', '0');
everything_arrived('in the end');

$node->stop;
done_testing();
