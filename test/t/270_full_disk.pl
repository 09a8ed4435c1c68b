# A disk that is full costs what cannot be written, and nothing else: recording
# fails as any INSERT does, sending goes on, what the API has answered is not
# sent again because it could not be written down, no loop burns a core or fills
# the log, status says what is wrong, and emptying segments, which is the way out,
# needs no space.  When there is room again, all goes on by itself.

use OnsideTest;
use OnsideMachine;

my $machine = OnsideMachine->new or plan skip_all => 'NOT TESTED: gcc cannot make faults.so';
my $sandbox = OnsideSandbox->start(poison => 'refuse me');
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
onside_attribution.segment_size = '64kB'
autovacuum = off
full_page_writes = on
CONF
create_extension($node, 'postgres');

sub sql { return $node->safe_psql('postgres', $_[0]) }

# Records as many events as there is room for; returns how many.
sub record_until_full
{
	my ($payload) = @_;
	my $n = 0;
	for (;;)
	{
		my ($rc, $out, $err) = $node->psql('postgres',
			"SELECT onside_attribution.track('e', '$OnsideTest::installation', '{\"text\": \"$payload\"}')");
		if ($rc != 0)
		{
			like($err, qr/could not extend file/, 'recording fails as any INSERT');
			return $n;
		}
		$n++;
		die 'the disk is not full' if $n > 500;
	}
}

sub sizes
{
	return sql(<<'SQL');
SELECT string_agg(pg_relation_size(inhrelid)::text, ' ' ORDER BY inhrelid)
FROM pg_inherits WHERE inhparent = 'onside_attribution.outbox'::regclass
SQL
}

subtest 'recording and sending' => sub {
	my $before = keys %{ $sandbox->events };
	sql("SELECT count(onside_attribution.track('e', '$OnsideTest::installation', '{}')) FROM generate_series(1, 50)");
	wait_for_flush($node, 'postgres');
	my $worker = poll_worker($node, 'postgres');

	$machine->fill_disk;
	my $n = record_until_full('x' x 500);
	wait_for_flush($node, 'postgres', 'what had room is sent');
	is(scalar keys %{ $sandbox->events }, $before + 50 + $n, 'all of it');
	$machine->free_disk;
	track($node, 'postgres');
	wait_for_flush($node, 'postgres', 'there is room again');
	is(worker_pid($node, 'postgres'), $worker, 'by the same worker');
};

subtest 'dead letters' => sub {
	my $position = log_position($node);
	my $refusals = $machine->refusals;
	sql('SELECT onside_attribution.pause()');
	sql("SELECT count(onside_attribution.track('e', '$OnsideTest::installation', '{\"text\": \"refuse me\"}')) FROM generate_series(1, 3)");
	my @ids = map { track($node, 'postgres') } 1 .. 5;
	$machine->fill_disk;
	sql('SELECT onside_attribution.resume()');
	poll_status($node, 'postgres',
		{ state_reason => qr/could not move refused events to dead_letter: .*could not extend file/ },
		'status says what cannot be written');
	ok($machine->refusals > $refusals, 'the disk is full');
	ok(wait_until(sub { !grep { !$sandbox->events->{$_} } @ids }), 'the others are sent');

	# It is tried again, ever more seldom, while the API is left alone.
	my $requests = $sandbox->report->{requests};
	my $tried = $machine->refusals;
	ok(wait_until(sub { $machine->refusals >= $tried + 2 }), 'writing is tried again');
	ok($machine->refusals < $tried + 20, 'not often');
	is($sandbox->report->{requests}, $requests, 'and nothing is sent again for that');
	my @errors = log_since($node, $position) =~ /ERROR:  could not extend file/g;
	is(scalar @errors, 1, 'the log has one line about it');
	is(sql("SELECT onside_attribution.flush('100 ms')"), 'f', 'flush() knows that it is not written');
	like(sql("SELECT detail FROM onside_attribution.doctor() WHERE detail LIKE '%dead_letter%'"),
		qr/could not extend file/, 'so does doctor()');

	$machine->free_disk;
	wait_for_flush($node, 'postgres', 'there is room again');
	is(sql('SELECT count(*) FROM onside_attribution.dead_letter'), 3, 'the dead letters are written, once each');
	is($sandbox->report->{requests}, $requests, 'from memory: nothing was sent again');
	is(sql('SELECT dead_lettered FROM onside_attribution.status'), 3, 'and counted once');
};

subtest 'emptying' => sub {
	# Nobody can empty what somebody reads; then the disk gets full.
	my $reader = $node->background_psql('postgres');
	$reader->query_safe('BEGIN; SELECT count(*) FROM onside_attribution.outbox');
	sql("SELECT count(onside_attribution.track('e', '$OnsideTest::installation', '{}')) FROM generate_series(1, 1000)");
	wait_for_flush($node, 'postgres');
	my $before = sizes();
	$machine->fill_disk;
	$reader->query_safe('COMMIT');
	$reader->quit;
	ok(wait_until(sub { sizes() =~ /\b0\b.*\b0\b/ }), 'delivered segments are emptied while the disk is full')
	  or diag("sizes were $before, are " . sizes());
	$machine->free_disk;

	my @ids = map { track($node, 'postgres') } 1 .. 3;
	wait_for_flush($node, 'postgres', 'and can be written to again');
	ok(!(grep { !$sandbox->events->{$_} } @ids), 'what is written there is sent');
};

# A crash finds files that were cut where they are.
subtest 'a crash after emptying' => sub {
	$node->stop('immediate');
	$node->start;
	my @ids = map { track($node, 'postgres') } 1 .. 3;
	wait_for_flush($node, 'postgres', 'after a crash it goes on');
	ok(!(grep { !$sandbox->events->{$_} } @ids), 'with what is recorded then');
	is(sql(<<'SQL'), 0, 'indexes and tables agree');
SELECT abs((SELECT count(*) FROM onside_attribution.outbox) -
           (SELECT count(*) FROM onside_attribution.outbox WHERE xid > '0'))
SQL
};

$node->stop;
done_testing();
