# flush() is true exactly when all that was committed before the call is settled:
# however much is committed after it, in whatever order of transaction ids, under
# a load that never ends, after a restart; and never before, whatever else has
# arrived meanwhile, and however old the caller's own snapshot is.  When it is, status
# counts what it has waited for as delivered or dead-lettered, and as pending no more.

use IPC::Run qw(start finish);
use OnsideTest;

my $installation = $OnsideTest::installation;
my $sandbox = OnsideSandbox->start;

# Small requests, so that some are answered and others are not.
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
onside_attribution.batch_max_events = 10
onside_attribution.max_in_flight = 1
onside_attribution.request_timeout = '1h'
CONF
create_extension($node, 'postgres');
$node->safe_psql('postgres', 'CREATE TABLE noted (event_id uuid)');
my $note = "INSERT INTO noted SELECT onside_attribution.track('e', '$installation', '{}')";

# They stay open for longer than a step of the test may take.
sub session
{
	return $node->background_psql('postgres', timeout => 10 * patience());
}

sub control
{
	my ($action, $state) = @_;
	$node->safe_psql('postgres', "SELECT onside_attribution.$action()");
	poll_status($node, 'postgres', { state => $state }, "$action: $state") if defined $state;
	return;
}

# flush() in a session of its own, which has taken note of what is committed.
sub start_flush
{
	my ($session) = @_;
	$session //= session();
	my $pid = $session->{waiting} = $session->query_safe('SELECT pg_backend_pid()');
	$session->{stdin} .= "SELECT 'flush: ' || onside_attribution.flush('1 h');\n";
	$session->{run}->pump_nb;
	$node->poll_query_until('postgres',
		"SELECT wait_event_type = 'Extension' OR wait_event LIKE 'Onside%' FROM pg_stat_activity WHERE pid = $pid")
	  or die 'flush() does not wait';
	return $session;
}

sub flush_ends_ok
{
	my ($session, $what) = @_;
	my $ok = wait_until(
		sub {
			$session->{run}->pump_nb;
			return $session->{stdout} =~ /flush: true/;
		});
	ok($ok, $what);

	delete $session->{waiting} if $ok;
	return $ok;
}

# One that waits still would wait for an hour.
sub quit
{
	my ($session) = @_;
	$session->{stdout} = '';
	my $pid = delete $session->{waiting};
	$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)") if $pid;
	eval { $session->quit };
	return;
}

sub flush_waits
{
	my ($session) = @_;
	$session->{run}->pump_nb;
	return $session->{stdout} !~ /flush/;
}

# Ends what hangs: the worker, which starts over with what is not settled.
sub start_over
{
	my $worker = poll_worker($node, 'postgres');
	$sandbox->behave();
	$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
	poll_worker($node, 'postgres', $worker);
	wait_for_flush($node, 'postgres');
	return;
}

track($node, 'postgres');
wait_for_flush($node, 'postgres');

# ---------------------------------------------------------------------------
# What is committed later
# ---------------------------------------------------------------------------

# The first requests are answered, the one after them never.
foreach my $case (
	[ 'one transaction', "BEGIN; $note FROM generate_series(1, 3000); COMMIT" ],
	[ 'many transactions', "DO \$\$ BEGIN FOR i IN 1..3000 LOOP $note; COMMIT; END LOOP; END \$\$" ])
{
	my ($what, $later) = @$case;
	control('pause', 'paused');
	my $mine = track($node, 'postgres');
	my $flush = start_flush();
	$node->safe_psql('postgres', $later);
	$sandbox->behave({ fault => 'black_hole', skip => 2 });
	control('resume');
	flush_ends_ok($flush, "$what later: flush() is true when its own has arrived");
	ok($sandbox->events->{$mine}, "$what later: it has arrived");
	cmp_ok(status($node, 'postgres')->{pending}, '>', 2000, "$what later: which has not");
	is($node->safe_psql('postgres', "SELECT onside_attribution.flush('0')"),
		'f', "$what later: and for that flush() is false");
	quit($flush);
	start_over();
}

# A transaction that is older and commits later comes first.
{
	my $older = session();
	$older->query_safe("BEGIN; $note FROM generate_series(1, 15)");
	control('pause', 'paused');
	my $mine = track($node, 'postgres');
	my $flush = start_flush();
	$older->query_safe('COMMIT');
	$older->query_safe("$note FROM generate_series(1, 1000)");
	$older->quit;
	$sandbox->behave({ fault => 'black_hole', skip => 3 });
	control('resume');
	flush_ends_ok($flush, 'an older transaction commits later: flush() is true');
	ok($sandbox->events->{$mine}, 'an older transaction commits later: its own has arrived');
	quit($flush);
	start_over();
}

# Nor does it wait for what is not committed at all.
{
	my $open = session();
	$open->query_safe("BEGIN; $note FROM generate_series(1, 1000)");
	$node->safe_psql('postgres', "BEGIN; $note FROM generate_series(1, 1000); PREPARE TRANSACTION 'open'");
	my $mine = track($node, 'postgres');
	wait_for_flush($node, 'postgres', 'beside open transactions');
	ok($sandbox->events->{$mine}, 'beside open transactions: its own has arrived');
	$open->query_safe('ROLLBACK');
	$open->quit;
	$node->safe_psql('postgres', "ROLLBACK PREPARED 'open'");
}

# After a restart in the midst of a window.
{
	control('pause', 'paused');
	my $mine = track($node, 'postgres');
	$node->safe_psql('postgres', "$note FROM generate_series(1, 1000)");
	$sandbox->behave({ fault => 'black_hole', skip => 5 });
	control('resume');
	ok(wait_until(sub { $sandbox->used }), 'some are answered');
	ok( wait_until(
			sub {
				$node->safe_psql('postgres',
					"SELECT count(*) FROM onside_attribution.pending WHERE event_id = '$mine'") == 0;
			}),
		'which is written down');
	$node->restart;
	poll_worker($node, 'postgres');
	is($node->safe_psql('postgres', "SELECT onside_attribution.flush('0')"), 'f', 'restart: false for what is not settled');
	start_over();
}

# ---------------------------------------------------------------------------
# A load that never ends: there always are 300 events or so to be sent
# ---------------------------------------------------------------------------

$sandbox->behave({ delay => 0.02 });
$node->safe_psql('postgres', 'CREATE TABLE load_ends (); CREATE TABLE loaded (n bigint); CREATE SEQUENCE load');
my @load = map { session() } 1 .. 2;
foreach my $session (@load)
{
	$session->{stdin} .= <<"SQL";
DO \$\$
BEGIN
	WHILE EXISTS (SELECT FROM pg_class WHERE relname = 'load_ends') LOOP
		IF (SELECT pending < 300 FROM onside_attribution.status) THEN
			$note FROM generate_series(1, 20);
			PERFORM nextval('load');
			COMMIT;
		END IF;
		PERFORM pg_sleep(0.001);
	END LOOP;
END
\$\$;
SQL
	$session->{run}->pump_nb;
}
my $before = 0;
foreach my $round (1 .. 5)
{
	ok( wait_until(sub { $node->safe_psql('postgres', 'SELECT last_value FROM load') > $before + 20 }),
		"load, $round: others record");
	my $mine = track($node, 'postgres');
	wait_for_flush($node, 'postgres', "load, $round: flush() is true");
	ok($sandbox->events->{$mine}, "load, $round: its own has arrived");
	$before = $node->safe_psql('postgres', 'SELECT last_value FROM load');
	ok(wait_until(sub { $node->safe_psql('postgres', 'SELECT last_value FROM load') > $before }),
		"load, $round: others go on");
}
$node->safe_psql('postgres', 'DROP TABLE load_ends');
$_->quit foreach @load;
$sandbox->behave();
wait_for_flush($node, 'postgres', 'the load has ended');

# ---------------------------------------------------------------------------
# Never too early
# ---------------------------------------------------------------------------

$node->append_conf('postgresql.conf', 'onside_attribution.max_in_flight = 4');
$node->restart;
poll_worker($node, 'postgres');
track($node, 'postgres');
wait_for_flush($node, 'postgres');
my $repeatable = session();
my $serializable = session();
$repeatable->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM noted');
$serializable->query_safe('BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM noted');

# Its answer is held back; those to all others are not.
my $mine = $node->safe_psql('postgres', 'SELECT gen_random_uuid()');
$sandbox->behave({ fault => 'black_hole', match => { contains => $mine } });
$node->safe_psql('postgres', "SELECT onside_attribution.track('held', '$installation', '{}', event_id => '$mine')");
ok(wait_until(sub { $sandbox->used }), 'a request hangs');
my @flushes = map { start_flush($_) } undef, $repeatable, $serializable;

# A full request, for which nothing is waited.
my @later = @{ committed($node, 'postgres', "SELECT onside_attribution.track('e', '$installation', '{}') FROM generate_series(1, 10)") };
ok(wait_until(sub { my $events = $sandbox->events; !grep { !$events->{$_} } @later }),
	'others have arrived, and its own has not');
ok(!$sandbox->events->{$mine}, 'it has not');
is($node->safe_psql('postgres', "SELECT onside_attribution.flush('200 ms')"), 'f', 'flush() is false');
ok(flush_waits($flushes[0]), 'one that was called before waits');
ok(flush_waits($flushes[1]), 'with an old snapshot, too');
ok(flush_waits($flushes[2]), 'in a serializable transaction, too');

# A worker that is gone changes nothing about it.
my $worker = poll_worker($node, 'postgres');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
poll_worker($node, 'postgres', $worker);
is($node->safe_psql('postgres', "SELECT onside_attribution.flush('200 ms')"), 'f', 'with another worker it is false');
ok(!(grep { !flush_waits($_) } @flushes), 'and the others wait');
$sandbox->behave();
$worker = poll_worker($node, 'postgres');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($worker)");
flush_ends_ok($flushes[0], 'when it has arrived, flush() is true');
flush_ends_ok($flushes[1], 'with an old snapshot');
flush_ends_ok($flushes[2], 'in a serializable transaction');
quit($_) foreach @flushes;
ok($sandbox->events->{$mine}, 'it has');
wait_for_flush($node, 'postgres');
is($node->safe_psql('postgres', "SELECT onside_attribution.flush('0')"), 't', 'with nothing to wait for it is true at once');

# ---------------------------------------------------------------------------
# What status counts then
# ---------------------------------------------------------------------------

# Each shop asks in one session, at once, by statements that are planned already.
# Most look again and again, so that they look at any moment, also just when it is
# written; some wait as a person does, and some of the events are refused.
my @shops = map { "shop$_" } 1 .. 4;
my $rounds = scale(120, 1200);
my $said = q{RETURN (SELECT delivered + dead_lettered || '|' || pending FROM onside_attribution.status);};
my $script = <<"SQL";
CREATE FUNCTION pg_temp.wait() RETURNS text LANGUAGE plpgsql AS \$\$ BEGIN PERFORM onside_attribution.flush(); $said END \$\$;
CREATE FUNCTION pg_temp.look() RETURNS text LANGUAGE plpgsql AS \$\$ BEGIN WHILE NOT onside_attribution.flush('1 ms') LOOP END LOOP; $said END \$\$;
SQL
$script .= sprintf "DO \$\$ BEGIN PERFORM onside_attribution.track('a', '%s', '{\"note\": \"%s\"}'); END \$\$; SELECT pg_temp.%s();\n",
  $installation, $_ % 40 == 10 ? 'counterfeit' : 'genuine', $_ % 20 ? 'look' : 'wait'
  foreach 1 .. $rounds;

$sandbox->poison('counterfeit');
my (%counted, @asking);
foreach my $shop (@shops)
{
	$node->safe_psql('postgres', "CREATE DATABASE $shop");
	create_extension($node, $shop);
	track($node, $shop);
	wait_for_flush($node, $shop);
}
my $file = PostgreSQL::Test::Utils::tempdir() . '/ask.sql';
append_to_file($file, $script);
push @asking, start([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-f', $file, '-d', $node->connstr($_) ], '>', \($counted{$_} = '')) foreach @shops;
finish($_) foreach @asking;
foreach my $shop (@shops)
{
	my @counted = split /\n/, $counted{$shop};
	my @wrong = grep { $counted[$_] ne ($_ + 2) . '|0' } 0 .. $#counted;
	is(scalar @counted, $rounds, "$shop: it is asked each time");
	is(scalar @wrong, 0, "$shop: status counts each event when flush() has returned")
	  or diag(map { "round $_: $counted[$_]\n" } @wrong);
}

$node->stop;
done_testing();
