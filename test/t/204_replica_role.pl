# With session_replication_role = replica, in which a restore or a replication
# tool works: what is inserted into the outbox is checked and gets its place in
# the log as ever; attached triggers do not fire, unless they were enabled
# ALWAYS or REPLICA; and the recording functions record.

use OnsideTest;

my $sandbox = OnsideSandbox->start;
my $node = onside_node('main', sandbox => $sandbox);
create_extension($node, 'postgres');
my @ids;

# One statement in that role; returns its result and the error.
sub as_replica
{
	my ($sql) = @_;
	my ($ret, $stdout, $stderr) = $node->psql('postgres', <<SQL);
\\set VERBOSITY verbose
SET session_replication_role = replica;
$sql
SQL
	return ($stdout, $stderr);
}

sub arrived
{
	my ($what) = @_;
	wait_for_flush($node, 'postgres');
	return arrived_ok($sandbox, \@ids, $what);
}

# Straight into the outbox, with all that a row must not bring along.
my ($out, $err) = as_replica(<<'SQL');
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id, recorded_at, xid, id)
VALUES ('direct', '{}', gen_random_uuid(), 'infinity', '9999999999999', 77)
RETURNING event_id, xid = pg_current_xact_id(), id, recorded_at <= clock_timestamp()
SQL
like($out, qr/^[0-9a-f-]{36}\|t\|1\|t$/, 'a row of the outbox is stamped');
push @ids, $out =~ /^([0-9a-f-]{36})/;
($out, $err) = as_replica(<<'SQL');
COPY onside_attribution.outbox (event_id, event_name, payload, event_datetime, installation_id, recorded_at, xid, id, segment) FROM stdin;
b9f7e2d4-5d1b-4c0e-8a63-0f6f1d2c3b4a	copied	{}	2026-05-05 12:00:00+00	0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9	2026-05-05 12:00:01+00	9999999999999	5	2
\.
SELECT xid < pg_current_xact_id(), id, recorded_at = '2026-05-05 12:00:01+00' FROM onside_attribution.outbox WHERE event_name = 'copied'
SQL
is($out, 't|1|t', 'so is a row that was copied into it, which keeps its age');
push @ids, 'b9f7e2d4-5d1b-4c0e-8a63-0f6f1d2c3b4a';

foreach (
	[ q('', '{}', gen_random_uuid(), NULL), qr/22023.*event_name/, 'an empty name' ],
	[ q('x', '[]', gen_random_uuid(), NULL), qr/22023.*payload/, 'a payload that is no object' ],
	[ q('x', '{}', NULL, NULL), qr/22004.*installation_id/, 'no installation_id' ],
	[ q('x', '{}', gen_random_uuid(), '0f1e2d3c-4b5a-1978-8695-a4b3c2d1e0f9'), qr/22023.*event_id/, 'an event_id of another version' ])
{
	my ($values, $error, $what) = @$_;
	($out, $err) = as_replica(
		"INSERT INTO onside_attribution.outbox (event_name, payload, installation_id, event_id) VALUES ($values)");
	like($err, $error, "$what is refused");
}
($out, $err) = as_replica(q{UPDATE onside_attribution.outbox SET payload = '{"x": 1}'});
like($err, qr/55000.*append-only/, 'UPDATE is refused');
arrived('what was inserted arrived');

# The functions.
($out, $err) = as_replica(<<'SQL');
SELECT onside_attribution.track('tracked', gen_random_uuid(), '{}');
SELECT onside_attribution.track_purchase(gen_random_uuid(), 9.99, 'USD');
SQL
push @ids, split /\n/, $out;
is(scalar @ids, 4, 'track and track_purchase record');
arrived('what was tracked arrived');

# Attached triggers, at statement and at row level.
$node->safe_psql('postgres', <<'SQL');
CREATE TABLE by_statement (event_id uuid DEFAULT gen_random_uuid(), customer uuid DEFAULT gen_random_uuid(), paid boolean DEFAULT true);
CREATE TABLE by_row (LIKE by_statement INCLUDING ALL);
SELECT onside_attribution.attach('by_statement', 'sold', 'customer', '{}', event_id => 'event_id');
SELECT onside_attribution.attach('by_row', 'sold', 'customer', '{}', event_id => 'event_id', condition => 'NEW.paid');
SQL
is($node->safe_psql('postgres', "SELECT string_agg(level, ' ' ORDER BY level) FROM onside_attribution.attached"),
	'ROW STATEMENT', 'one of each level');
foreach my $table (qw(by_statement by_row))
{
	my $trigger = $node->safe_psql('postgres',
		"SELECT quote_ident(trigger_name) FROM onside_attribution.attached WHERE source = '$table'::regclass");
	foreach (
		[ 'as attached', undef, 0, 1 ],
		[ 'ENABLE ALWAYS', 'ENABLE ALWAYS', 1, 1 ],
		[ 'ENABLE REPLICA', 'ENABLE REPLICA', 1, 0 ],
		[ 'DISABLE', 'DISABLE', 0, 0 ],
		[ 'ENABLE', 'ENABLE', 0, 1 ])
	{
		my ($what, $action, $in_replica, $in_origin) = @$_;
		$node->safe_psql('postgres', "ALTER TABLE $table $action TRIGGER $trigger") if $action;
		my ($id) = as_replica("INSERT INTO $table DEFAULT VALUES RETURNING event_id");
		push @ids, $id if $in_replica;
		$id = $node->safe_psql('postgres', "INSERT INTO $table DEFAULT VALUES RETURNING event_id");
		push @ids, $id if $in_origin;
		arrived("$table, $what: it fires " . ($in_replica ? '' : 'not ') . 'as replica and '
			  . ($in_origin ? '' : 'not ') . 'as origin');
	}
}
nothing_came_twice($sandbox, 'nothing came twice');

# A role's own setting of it must not switch off anything of the worker's.
$node->safe_psql('postgres', 'ALTER DATABASE postgres SET session_replication_role = replica; SELECT pg_reload_conf()');
push @ids, track($node, 'postgres');
arrived('the setting of a database changes nothing for the worker');

$node->stop;
done_testing();
