# An event is not sent before its commit is durable: with synchronous_commit =
# off and a WAL writer that sleeps for ten seconds, the server is killed the
# moment an event has arrived, and the purchase is there after the restart, each
# time.  Purchases that are lost in such a crash were not reported.

use OnsideTest;

my $rounds = 10;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
synchronous_commit = off
wal_writer_delay = '10s'
wal_writer_flush_after = '1GB'
autovacuum = off
CONF
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION onside_attribution;
CREATE TABLE purchase (event_id uuid, round int);
SET synchronous_commit = on;
CREATE TABLE other (x int);
SQL
poll_worker($node, 'postgres');

# SIGQUIT to the postmaster, as soon as it can be.
sub crash
{
	my $pid = postmaster_pid($node);
	kill 'QUIT', $pid;
	wait_for_exit($pid) or die 'the server did not end';
	$node->_update_pid(0);
	return;
}

# The control: without the worker's flush these settings do lose a purchase.
$node->safe_psql('postgres', 'CHECKPOINT');
$node->safe_psql('postgres', 'INSERT INTO other VALUES (1)');
crash();
$node->start;
poll_worker($node, 'postgres');
is($node->safe_psql('postgres', 'SELECT count(*) FROM other'),
	0, 'a purchase that nobody reported is lost with these settings');

my $lost = 0;
foreach my $round (1 .. $rounds)
{
	# A session stays open, so that its end flushes nothing.
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $arrived = $sandbox->report->{distinct};

	# One purchase alone, and in the later rounds some others behind it.
	$session->query_safe(<<SQL);
INSERT INTO purchase SELECT onside_attribution.track('purchase_completed', gen_random_uuid(), '{"round": $round}'), $round;
SQL
	$session->query_safe("INSERT INTO purchase SELECT onside_attribution.track('more', gen_random_uuid(), '{}'), $round;")
	  foreach 1 .. ($round % 2 ? 0 : 20);

	my $reached = $sandbox->wait_distinct($arrived + 1)->{reached};
	crash();
	ok($reached, "round $round: it arrived");
	eval { $session->quit };

	$node->start;
	my %there = map { $_ => 1 }
	  @{ committed($node, 'postgres', 'SELECT event_id FROM purchase') };
	my @missing = grep { !$there{$_} } sort keys %{ $sandbox->events };
	$lost += @missing;
	is("@missing", '', "round $round: the purchases that arrived are there");
	poll_worker($node, 'postgres');
}
is($lost, 0, "$rounds crashes, no purchase reported that is not there");

wait_for_flush($node, 'postgres');
arrived_ok(
	$sandbox,
	committed($node, 'postgres', 'SELECT event_id FROM purchase'),
	'and in the end, what is there has arrived');

$node->stop;
done_testing();
