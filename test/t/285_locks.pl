# Somebody holds a lock on one of our tables, or on the extension, for an hour:
# a DBA, a migration, pg_repack.  Others record all the while, unless it is the
# segment itself that is locked; status and doctor() answer at once; state_reason
# names the table and says that it is locked; the worker holds no lock of ours
# while it waits; pause(), resume() and flush() keep to their timeouts; and when
# the lock goes, everything arrives.

use OnsideTest;

my $installation = $OnsideTest::installation;
my $sandbox = OnsideSandbox->start(poison => 'counterfeit');

# Whoever waits for the lock in vain fails: nobody else ends that wait.
my $node = onside_node('main', sandbox => $sandbox, conf => <<'CONF');
deadlock_timeout = '1h'
onside_attribution.on_invalid_event = 'dead_letter'
CONF

my @kinds = (
	[ 'ACCESS EXCLUSIVE', 'LOCK TABLE onside_attribution.%s IN ACCESS EXCLUSIVE MODE' ],
	[ 'SHARE ROW EXCLUSIVE', 'LOCK TABLE onside_attribution.%s IN SHARE ROW EXCLUSIVE MODE' ]);
my @tables = qw(outbox outbox_1 outbox_2 outbox_3 aside dead_letter delivery_cursor control backfill_state namespace);
my @cases;
foreach my $table (@tables)
{
	# What lets others read makes a difference where what is read is written, too.
	push @cases, { table => $table, mode => $_->[0], lock => sprintf($_->[1], $table) }
	  foreach $table =~ /outbox_[23]|backfill|namespace/ ? $kinds[0] : @kinds;
}

# Other commands that have not committed.  (016_waiting_worker.pl has DROP EXTENSION.)
push @cases,
  { table => 'extension', mode => 'COMMENT', lock => q{COMMENT ON EXTENSION onside_attribution IS 'x'} },
  { table => 'delivery_cursor', mode => 'VACUUM FULL, as it were', lock => 'CLUSTER onside_attribution.delivery_cursor USING delivery_cursor_pkey' },
  { table => 'dead_letter', mode => 'CREATE INDEX', lock => 'CREATE INDEX notes_of_a_dba ON onside_attribution.dead_letter (failed_at)' };

# A session that waits for no lock: it says 55P03 instead, and this says so.
sub at_once
{
	my ($database, $sql) = @_;
	return eval { $node->safe_psql($database, "SET lock_timeout = '500ms';\n$sql") } // 'error: ' . $@ =~ s/\nwith sql .*//sr;
}

sub waits_for_lock
{
	my ($pid) = @_;
	return $node->safe_psql('postgres', "SELECT count(*) FROM pg_locks WHERE pid = $pid AND NOT granted") > 0;
}

# What of ours somebody has locked.
sub locks_of
{
	my ($database, $pid) = @_;
	return $node->safe_psql($database, <<SQL);
SELECT string_agg(DISTINCT coalesce(c.relname, l.classid::regclass::text), ' ')
FROM pg_locks l LEFT JOIN pg_class c ON c.oid = l.relation
LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE l.pid = $pid AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
	AND (n.nspname = 'onside_attribution' OR l.classid = 'pg_extension'::regclass)
SQL
}

my $noting = "INSERT INTO noted SELECT onside_attribution.track('tracked', '$installation', '{}')";

foreach my $case (@cases)
{
	my ($table, $mode) = @{$case}{qw(table mode)};
	my $what = "$table, $mode";

	# Each in a database of its own, which is dropped in the end.
	$node->safe_psql('postgres', 'CREATE DATABASE shop');
	create_extension($node, 'shop');
	$node->safe_psql('shop', <<'SQL');
CREATE TABLE noted (event_id uuid);
CREATE TABLE bought (installation_id text, event_id uuid DEFAULT gen_random_uuid());
CREATE TRIGGER records AFTER INSERT ON bought FOR EACH ROW
	EXECUTE FUNCTION onside_attribution.track_row('event_name=bought', 'installation_id=installation_id', 'event_id=event_id');
SQL
	$sandbox->reset;
	$node->safe_psql('shop', $noting);
	wait_for_flush($node, 'shop', "$what: the worker is there");
	my $worker = poll_worker($node, 'shop');
	my $segment = $node->safe_psql('shop', 'SELECT segment FROM onside_attribution.delivery_cursor');

	my $locking = $node->background_psql('shop', timeout => 10 * patience());
	$locking->query_safe("BEGIN; $case->{lock}");

	# Recording.  A table's lock is its segments', too: LOCK TABLE takes them all.
	my $in_the_way = $table eq 'outbox' || $table eq "outbox_$segment";
	my $record = at_once('shop', $noting);
	my $insert = at_once('shop', "INSERT INTO bought VALUES ('$installation')");
	if ($in_the_way)
	{
		like("$record$insert", qr/^error: .*lock timeout.*error: .*lock timeout/s, "$what: recording waits for its segment");
	}
	else
	{
		is("$record$insert", '', "$what: track() and a trigger wait for nothing");
	}

	# That is written into another table, which may be the one.
	my $invalid = at_once('shop', "INSERT INTO bought VALUES ('no uuid')");
	$table eq 'dead_letter'
	  ? like($invalid, qr/^$|lock timeout/, "$what: an invalid row waits for that at most")
	  : is($invalid, '', "$what: an invalid row becomes a dead letter without waiting");

	# Looking.  In one statement each, as monitoring does.
	unlike(at_once('shop', 'SELECT state FROM onside_attribution.status'), qr/error/, "$what: status answers at once");
	unlike(at_once('shop', 'SELECT count(*) FROM onside_attribution.doctor()'), qr/error/, "$what: doctor() answers at once");

	# The worker says what it waits for, if it has to.  It has something to do:
	# an event, which it may have delivered all the same; a dead letter; a reload.
	at_once('shop', "SELECT onside_attribution.track('refused', '$installation', '{\"x\": \"counterfeit\"}')");
	$node->reload;
	my $name = $table eq 'extension' ? qr/extension/ : qr/$table\b/;
	my $waits;
	wait_until(
		sub {
			$waits = waits_for_lock($worker)
			  || at_once('shop', 'SELECT state_reason FROM onside_attribution.status') =~ /lock/;

			# Or it has done all that there was to do.
			return $waits || (!$in_the_way && at_once('shop', 'SELECT pending FROM onside_attribution.status') eq '0');
		},
		$in_the_way ? 5 : undef);
	if ($waits)
	{
		poll_status($node, 'shop', { state_reason => qr/\b(?:outbox\w*|$name).*lock|lock.*\b(?:outbox\w*|$name)/ },
			"$what: status says what is locked");
		ok(wait_until(sub { locks_of('shop', $worker) eq '' }), "$what: the worker has none of our tables locked while it waits")
		  or diag(locks_of('shop', $worker));
	}
	else
	{
		note("$what: the worker waits for nothing");
		at_once('shop', $noting);
		ok($in_the_way || wait_until(sub { at_once('shop', 'SELECT pending FROM onside_attribution.status') eq '0' }),
			"$what: it sends");
		is(at_once('shop', "SELECT state_reason FROM onside_attribution.status WHERE state_reason ~ 'lock'"), '',
			"$what: and speaks of no lock");
	}

	# flush() keeps to its timeout, by itself; the others to lock_timeout, where
	# it is their table that is locked.
	like(at_once('shop', "SELECT onside_attribution.flush('100 ms')"), qr/^[tf]$/, "$what: flush() ends in time");
	foreach my $call ('pause()', 'resume()')
	{
		my $answer = at_once('shop', "SELECT onside_attribution.$call");
		$table eq 'control'
		  ? like($answer, qr/^$|lock timeout/, "$what: $call waits for that at most")
		  : is($answer, '', "$what: $call waits for nothing");
	}

	# Our own session, which has the lock, is not in its own way.
	like($locking->query("SELECT state FROM onside_attribution.status"), qr/\w/, "$what: status for who holds it");

	$locking->query_safe('ROLLBACK');
	$locking->quit;
	$node->safe_psql('shop', 'SELECT onside_attribution.resume()');
	wait_for_flush($node, 'shop', "$what: the lock has gone");
	is( $node->safe_psql('shop', <<'SQL'),
SELECT count(*) FROM onside_attribution.dead_letter WHERE http_status = 400
SQL
		$in_the_way ? 0 : 1, "$what: what was refused is a dead letter");
	poll_status($node, 'shop', { state => 'idle', pending => 0, state_reason => sub { ($_[0] // '') !~ /lock/ } },
		"$what: status says nothing of it any more");
	arrived_ok($sandbox,
		committed($node, 'shop', 'SELECT event_id FROM noted UNION ALL SELECT event_id FROM bought WHERE installation_id ~ $$^\w{8}-$$'),
		"$what: everything has arrived");

	# Held again, and the database goes.
	$locking = $node->background_psql('shop', timeout => 10 * patience());
	$locking->query_safe("BEGIN; $case->{lock}");
	at_once('shop', $noting);
	$node->reload;
	my ($ret, $stdout, $stderr) = $node->psql('postgres', 'DROP DATABASE shop WITH (FORCE)');
	is($stderr, '', "$what: DROP DATABASE (FORCE)");
	eval { $locking->quit };
	ok(wait_for_exit($worker), "$what: the worker has gone");
}

$node->stop;
done_testing();
