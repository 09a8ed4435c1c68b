# forget() takes everything of an installation out of the outbox, delivered or
# pending, aside and dead_letter, and leaves the others' alone; what was pending
# is not sent any more.  So it is with a prepared transaction, after a crash, on a
# standby that is promoted, and under load.  Segments of which nothing is left are
# emptied as others, and the worker goes on.

use OnsideTest;

my $sandbox = OnsideSandbox->start(poison => 'counterfeit', keep_events => 10000);
my $node = onside_node('main', sandbox => $sandbox, init => { allows_streaming => 1 }, conf => <<'CONF');
onside_attribution.retention = '1h'
CONF
create_extension($node, 'postgres');

my ($gone, $stays) = ('11111111-2222-4333-8444-555555555555', '11111111-2222-4333-8444-666666666666');

sub sql { return $node->safe_psql('postgres', $_[0]) }

sub record
{
	my ($name, @installations) = @_;
	sql("SELECT onside_attribution.track('$name', '$_', '{\"x\": \"$name\"}')") foreach @installations;
	return;
}

# How much there is of each of them.
sub rows_of
{
	my ($on, $installation) = @_;
	return $on->safe_psql('postgres', join ' UNION ALL ', map {
			"SELECT '$_ ' || count(*) FROM onside_attribution.$_ WHERE installation_id = '$installation' HAVING count(*) > 0"
		} qw(outbox aside dead_letter));
}

sub paused
{
	my ($command) = @_;
	sql("SELECT onside_attribution.$command()");
	poll_status($node, 'postgres', { state => $command eq 'pause' ? 'paused' : 'idle' }, $command);
	return;
}

sub arrived_of
{
	my ($name) = @_;
	my $n = grep { $_->{event_name} eq $name } @{ $sandbox->kept };
	return $n;
}

# Some in each of the three tables.
sub fill
{
	my ($what) = @_;
	record("$what delivered", $gone, $stays, $gone);
	record('counterfeit', $gone, $stays);
	wait_for_flush($node, 'postgres', "$what: delivered or refused");
	paused('pause');
	record("$what pending", $gone, $stays, $gone);
	sql(<<SQL);
INSERT INTO onside_attribution.aside (event_name, payload, event_datetime, installation_id, error)
VALUES ('$what aside', '{}', now(), '$gone', 'no')
SQL
	return;
}

subtest 'pending, retained, aside, refused' => sub {
	fill('first');
	my $others = rows_of($node, $stays);
	like($others, qr/outbox 3\ndead_letter 1/, 'another installation has some, too');
	is(sql("BEGIN; SELECT onside_attribution.forget('$gone'); ROLLBACK; SELECT count(*) FROM onside_attribution.pending"), "7\n4", 'rolled back, all is there');
	is(sql("SELECT onside_attribution.forget('$gone')"), 7, 'it says how many there were');
	is(rows_of($node, $gone), '', 'nothing is left');
	is(rows_of($node, $stays), $others, 'of the other all is');
	poll_status($node, 'postgres', { pending => 1 }, 'status says so');
	is(sql('SELECT installation_id FROM onside_attribution.pending'), $stays, 'pending says so');
	paused('resume');
	wait_for_flush($node, 'postgres', 'what is left is sent');
	is(arrived_of('first pending'), 1, 'what was forgotten is not');
	is(arrived_of('first aside'), 0, 'nor is what was aside');
};

subtest 'prepared, and a crash' => sub {
	fill('second');
	sql("BEGIN; SELECT onside_attribution.forget('$gone'); PREPARE TRANSACTION 'forgets'");
	$node->stop('immediate');
	$node->start;
	poll_worker($node, 'postgres');
	isnt(rows_of($node, $gone), '', 'prepared: all is there');
	record('meanwhile', $gone);
	sql("COMMIT PREPARED 'forgets'");
	is(rows_of($node, $gone), 'outbox 1', 'committed: what was recorded later is');
	is(sql("SELECT onside_attribution.forget('$gone')"), 1, 'once more');
	paused('resume');
	wait_for_flush($node, 'postgres', 'what is left is sent');
	is(arrived_of('second pending') + arrived_of('meanwhile'), 1, 'what was forgotten is not');
};

subtest 'a standby' => sub {
	$node->backup('backup');
	my $standby = PostgreSQL::Test::Cluster->new('standby');
	$standby->init_from_backup($node, 'backup', has_streaming => 1);
	$standby->append_conf('postgresql.conf', 'onside_attribution.enabled = off');
	$standby->start;
	my (undef, undef, $error) = $standby->psql('postgres', "SELECT onside_attribution.forget('$gone')");
	like($error, qr/cannot execute forget\(\) in a read-only transaction|recovery/, 'it cannot forget');
	fill('third');
	sql("SELECT onside_attribution.forget('$gone')");
	$node->wait_for_catchup($standby, 'replay');
	is(rows_of($standby, $gone), '', 'but what the primary has forgotten is gone');
	$standby->promote;
	is($standby->safe_psql('postgres', "SELECT count(*) FROM onside_attribution.pending WHERE installation_id = '$gone'"), 0, 'promoted, too');
	$standby->stop;
	paused('resume');
	wait_for_flush($node, 'postgres', 'the primary goes on');
};

subtest 'whole segments' => sub {
	my $worker = worker_pid($node, 'postgres');
	set_for_database($node, 'postgres', 'retention', '0');
	set_for_database($node, 'postgres', 'segment_size', '64kB');
	$worker = poll_worker($node, 'postgres', $worker);
	record('first of them', $stays);
	ok( wait_until(
			sub {
				sql("SELECT onside_attribution.track('bulk', '$gone', jsonb_build_object('x', repeat('y', 1000))) FROM generate_series(1, 200)");
				sql("SELECT onside_attribution.forget('$gone')");
				record('live', $stays);
				sql('SELECT onside_attribution.flush()');
				return sql("SELECT count(*) FROM onside_attribution.outbox WHERE event_name = 'first of them'") == 0;
			}), 'segments are emptied');
	is(worker_pid($node, 'postgres'), $worker, 'by the same worker');
	poll_status($node, 'postgres', { pending => 0, state => 'idle' }, 'and nothing is pending');
};

unlike(slurp_file($node->logfile), qr/terminated by signal|PANIC/, 'no process has crashed but by our own restart')
  or diag(join "\n", slurp_file($node->logfile) =~ /^(.*(?:terminated by signal|PANIC).*)$/mg);
$node->stop;
done_testing();
