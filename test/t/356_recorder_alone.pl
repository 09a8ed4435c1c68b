# managed/recorder.sql records what the extension records, whatever stands around it: names of
# the shop's own schemas in conditions, columns called like our aliases, types without operators
# in pg_catalog, settings of the session, renames, partitions, mappers that fail in each way.  The same
# statements run on a server with the extension and on one without it; the events, the dead letters
# and the errors are the same.  And what a hostile role, a lock, an idle week or another's slot
# do to the recorder alone.

use IPC::Run ();
use OnsideTest;
use OnsideTopology qw(install_recorder);

my $plain = onside_node('plain', preload => 0, conf => "wal_level = logical\n");
my $extension = onside_node('extension', conf => "onside_attribution.enabled = off\n");
$plain->safe_psql('postgres', 'CREATE ROLE shop LOGIN');
$plain->safe_psql('postgres', 'CREATE DATABASE shop OWNER shop');
install_recorder($plain, 'shop', 'shop', 'the recorder');
$extension->safe_psql('postgres', 'CREATE ROLE shop LOGIN');
$extension->safe_psql('postgres', 'CREATE DATABASE shop OWNER shop');
create_extension($extension, 'shop');
$extension->safe_psql('shop', 'GRANT USAGE ON SCHEMA onside_attribution TO shop; GRANT EXECUTE ON ALL ROUTINES IN SCHEMA onside_attribution TO shop; GRANT SELECT ON ALL TABLES IN SCHEMA onside_attribution TO shop');
my $namespace = $extension->safe_psql('shop', 'SELECT id FROM onside_attribution.namespace');
$plain->safe_psql('shop', "UPDATE onside_attribution.namespace SET id = '$namespace'");

# ---------------------------------------------------------------------------
# The same on both sides
# ---------------------------------------------------------------------------

my $install = '550e8400-e29b-41d4-a716-446655440000';
my @shared = (<<"SQL");
\\set VERBOSITY sqlstate
SET client_min_messages = error;
CREATE TYPE mood AS ENUM ('sad', 'new.x', 'paid');
CREATE DOMAIN code AS text CHECK (VALUE <> '');
CREATE TYPE pair AS (a int, b text);
CREATE COLLATION no_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE FUNCTION is_paid(state text) RETURNS boolean LANGUAGE sql IMMUTABLE AS \$\$ SELECT state = 'paid' \$\$;
CREATE FUNCTION like_paid(a mood, b text) RETURNS boolean LANGUAGE sql IMMUTABLE AS \$\$ SELECT a::text = b \$\$;
CREATE OPERATOR === (LEFTARG = mood, RIGHTARG = text, FUNCTION = like_paid);
SQL

# Tables with columns whose names are words of ours, or of SQL, with one attachment each.
my $columns = qq{id bigint PRIMARY KEY, n int DEFAULT 7, e int DEFAULT 1, r text DEFAULT 'r', made text DEFAULT 'm', mapping text DEFAULT 'x', "new" text DEFAULT 'new.', "old" text DEFAULT 'old.',
	"New Col" text DEFAULT 'it''s "new.x" \\ old.', mood mood DEFAULT 'sad', state text DEFAULT 'made', at timestamptz DEFAULT '2026-05-05 23:00-07', gone int, install uuid DEFAULT '$install'};
my $payload = q{'{"n": "n", "e": "e", "r": "r", "new": "new", "odd": "New Col", "mood": "mood", "at": "at"}'};
my %condition = (
	type => q{NEW.mood = 'paid'::mood}, function => q{is_paid(NEW.state)}, operator => q{NEW.mood === 'paid'},
	string => q{NEW.state = 'paid' AND NEW."new" = 'new.' AND NEW."New Col" LIKE '%old.'}, names => q{NEW.n = 7 AND NEW.e = 1 AND NEW.state = 'paid'},
	zone => q{NEW.at::date = '2026-05-05' AND NEW.state = 'paid'}, text => q{NEW.at::text LIKE '%23:00%' AND NEW.state = 'paid'},
	constant => q{NEW.at < '2026-05-06 12:00'::timestamptz AND NEW.state = 'paid'}, comment => qq{NEW.state = 'paid' -- NEW.state\n},
	row => q{NEW.* IS DISTINCT FROM NULL AND NEW.state = 'paid'}, nothing => q{NULL}, always => q{true},
	interval => q{NEW.at > '2026-05-07 00:00+00'::timestamptz - interval '1 day 12:00' AND NEW.state = 'paid'},
	number => q{NEW.n * 1.5e0 < '1e1'::float8 AND NEW.state = 'paid'}, escape => q{NEW."New Col" = E'it\'s "new.x" \\\\ old.' AND NEW.state = 'paid'},
	case => q{CASE WHEN NEW.n > 100 THEN false ELSE NEW.state = 'paid' END});
my $id = 0;
foreach my $name (sort keys %condition)
{
	foreach my $how (
		[ 'becomes', 'becomes => $c$%s$c$' ], [ 'becomes_deferred', 'becomes => $c$%s$c$, deferred => true' ],
		[ 'condition', 'operation => \'INSERT OR UPDATE\', condition => $c$%s$c$' ],
		[ 'condition_deferred', 'operation => \'INSERT OR UPDATE\', condition => $c$%s$c$, deferred => true' ])
	{
		my $table = "${name}_$how->[0]";
		my ($a, $b, $c) = ($id + 1, $id + 2, $id + 3);
		$id += 3;
		push @shared, "CREATE TABLE $table ($columns)", "ALTER TABLE $table DROP gone",
		  "SELECT onside_attribution.attach('$table', '$table', 'install', $payload, event_id => 'id', " . sprintf($how->[1], $condition{$name}) . ')',
		  "SET TimeZone = 'America/Los_Angeles'; SET DateStyle = 'SQL, DMY'; SET IntervalStyle = 'sql_standard'; SET extra_float_digits = -5",
		  "INSERT INTO $table (id) VALUES ($a), ($b)",
		  "INSERT INTO $table (id, mood, state) VALUES ($c, 'paid', 'paid')",
		  "UPDATE $table SET mood = 'paid', state = 'paid' WHERE id <> $b",
		  "BEGIN; UPDATE $table SET mood = 'paid', state = 'paid' WHERE id = $b; UPDATE $table SET mood = 'sad', state = 'x' WHERE id = $b; COMMIT",
		  "BEGIN; UPDATE $table SET mood = 'paid', state = 'paid' WHERE id = $b; DELETE FROM $table WHERE id = $b; COMMIT",
		  "BEGIN; UPDATE $table SET mood = 'sad', state = 'x' WHERE id = $a; UPDATE $table SET mood = 'paid', state = 'paid', n = 8 WHERE id = $a; COMMIT",
		  'RESET ALL; SET client_min_messages = error';
	}
}

# What the conditions speak of is renamed and moved; a table with a schema of its own.
push @shared, 'CREATE SCHEMA elsewhere', 'ALTER FUNCTION is_paid RENAME TO was_paid', 'ALTER TYPE mood RENAME TO feeling', 'ALTER TYPE feeling SET SCHEMA elsewhere',
  "ALTER TABLE function_becomes RENAME state TO status; ALTER TABLE function_becomes_deferred RENAME state TO status; ALTER TABLE type_becomes SET SCHEMA elsewhere",
  (map { "INSERT INTO $_ (id, mood, status) VALUES (100000, 'paid', 'paid'), (100001, 'sad', 'x'); UPDATE $_ SET status = 'paid' WHERE id = 100001" }
	  qw(function_becomes function_becomes_deferred)),
  "INSERT INTO elsewhere.type_becomes (id, mood) VALUES (100002, 'paid')";

# Keys of every kind, deferred, by a condition that is looked at again, and backfill by the same keys.
my %key = (
	smallint => [ 1, 2 ], bigint => [ 1, 2 ], text => [ "repeat('k', 3000)", "'b'" ], 'varchar(9)' => [ "'a'", "'b'" ], 'char(4)' => [ "'a'", "'b'" ],
	uuid => [ 'gen_random_uuid()', "'018f6d3e-5b7a-7000-8000-000000000001'" ], code => [ "'x'", "'y'" ], 'text COLLATE no_case' => [ "'Abc'", "'abd'" ]);
$key{uuid}[0] = "'3346c9a9-2201-438e-8609-6180e40e5021'";
foreach my $type (sort keys %key)
{
	my $table = 'key_' . $type =~ s/\W+/_/gr;
	push @shared, "CREATE TABLE $table (k $type PRIMARY KEY, state text, at timestamptz DEFAULT '2026-05-05', install text DEFAULT '$install')",
	  "SELECT onside_attribution.attach('$table', '$table', 'install', '{\"k\": \"k\"}', 'at', 'k', becomes => 'NEW.state = ''paid''', deferred => true)",
	  (map { "INSERT INTO $table VALUES ($_)" } @{ $key{$type} }), "UPDATE $table SET state = 'paid'",
	  "SELECT onside_attribution.detach('$table', '$table')", "SELECT onside_attribution.attach('$table', '${table}_again', 'install', '{\"k\": \"k\"}', 'at', 'k')",
	  "CALL onside_attribution.backfill('$table', '${table}_again')";
}
push @shared, "CREATE TABLE pairs (a int, \"B c\" text COLLATE no_case, k elsewhere.feeling, state text, install text DEFAULT '$install', PRIMARY KEY (a, \"B c\", k))",
  "CREATE FUNCTION of_pairs(p pairs) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS \$\$ SELECT p.install::uuid, to_jsonb(p), timestamptz '2026-05-05 00:00+00', onside_attribution.event_id(p.a::text, p.\"B c\", p.k::text) \$\$",
  "SELECT onside_attribution.attach('pairs', 'pairs', mapper => 'of_pairs', becomes => 'NEW.state = ''paid''', deferred => true)",
  "INSERT INTO pairs SELECT g % 3, 'B' || g, CASE g % 2 WHEN 0 THEN 'sad' ELSE 'paid' END::elsewhere.feeling, 'new' FROM generate_series(1, 2500) g",
  "UPDATE pairs SET state = 'paid' WHERE \"B c\" > 'b5'",
  "CALL onside_attribution.backfill('pairs', 'pairs')";

push @shared, "CREATE TABLE percents (\"50%\" int PRIMARY KEY, \"%s\" text DEFAULT 'x', install uuid DEFAULT '$install')",
  "CREATE FUNCTION of_percent(p percents) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS \$\$ SELECT p.install, jsonb_build_object('n', 1 / (p.\"50%\" - 1)), timestamptz '2026-05-05 00:00+00', onside_attribution.event_id('percents', p.\"50%\"::text) \$\$",
  "SELECT onside_attribution.attach('percents', 'percent', 'install', '{\"%s\": \"%s\"}', event_id => '50%', deferred => true)",
  "SELECT onside_attribution.attach('percents', 'mapped percent', mapper => 'of_percent')", "INSERT INTO percents VALUES (1), (2)";

# Partitions with columns in another order, rows that move, mappers that need the table's type.
push @shared, "CREATE TABLE sales (id int, state text, install uuid DEFAULT '$install', amount numeric, PRIMARY KEY (id, state)) PARTITION BY LIST (state)",
  "CREATE TABLE sales_new (amount numeric, gone int, install uuid DEFAULT '$install', id int NOT NULL, state text NOT NULL)", 'ALTER TABLE sales_new DROP gone',
  "ALTER TABLE sales ATTACH PARTITION sales_new FOR VALUES IN ('new')", "CREATE TABLE sales_paid PARTITION OF sales FOR VALUES IN ('paid')",
  "CREATE FUNCTION of_sales(s sales) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS \$\$ SELECT s.install, jsonb_build_object('amount', s.amount, 'zone', current_setting('timezone')), timestamptz '2026-05-05 00:00+00', onside_attribution.event_id('sales', s.id::text) \$\$",
  "SELECT onside_attribution.attach('sales', 'sales', mapper => 'of_sales')",
  "SELECT onside_attribution.attach('sales', 'sold', mapper => 'of_sales', becomes => 'NEW.state = ''paid''')",
  "SELECT onside_attribution.attach('sales', 'sold at the end', mapper => 'of_sales', becomes => 'NEW.state = ''paid''', deferred => true)",
  "INSERT INTO sales (id, state, amount) VALUES (1, 'new', -0.000), (2, 'new', 'NaN'), (3, 'paid', 12.340)", "UPDATE sales SET state = 'paid' WHERE id = 1",
  "SET TimeZone = 'Asia/Tokyo'; INSERT INTO sales (id, state, amount) VALUES (4, 'paid', 1e30); RESET TimeZone",
  "CALL onside_attribution.backfill('sales', 'sales')", "CALL onside_attribution.backfill('sales', 'sold', since => '2026-05-05', until => '2026-05-05')",
  "CALL onside_attribution.backfill('sales', 'sold', since => '2026-05-05 00:00:01')";

# A mapper's search_path, its settings, and each way to fail: of one row of a statement, and of a row alone.
push @shared, <<"SQL",
CREATE SCHEMA market; SET search_path = market, public;
CREATE TABLE market.rates (currency text, rate numeric); INSERT INTO market.rates VALUES ('USD', 2);
CREATE FUNCTION market.to_jsonb(x anyelement) RETURNS jsonb LANGUAGE sql AS \$\$ SELECT '"market''s own"'::jsonb \$\$;
CREATE FUNCTION market.keep_none(anyarray, anyelement) RETURNS anyarray LANGUAGE sql AS 'SELECT \$1';
CREATE AGGREGATE market.array_agg(anyelement) (SFUNC = market.keep_none, STYPE = anyarray, INITCOND = '{}');
CREATE TABLE market.bills (id int PRIMARY KEY, what text, n int DEFAULT 3, at timestamp DEFAULT '2026-05-05 12:00', install uuid DEFAULT '$install');
CREATE FUNCTION market.of_bill(b market.bills) RETURNS SETOF onside_attribution.event LANGUAGE plpgsql STABLE AS \$\$
BEGIN
	CASE b.what
		WHEN 'assert' THEN ASSERT false, 'no bill';
		WHEN 'divide' THEN PERFORM 1 / (b.n - 3);
		WHEN 'unique' THEN RAISE unique_violation USING MESSAGE = 'there is one';
		WHEN 'custom' THEN RAISE EXCEPTION 'custom' USING ERRCODE = 'ZZ001';
		WHEN 'serial' THEN RAISE serialization_failure USING MESSAGE = 'again';
		WHEN 'disk' THEN RAISE disk_full USING MESSAGE = 'no room';
		WHEN 'none' THEN RETURN;
		WHEN 'null' THEN RETURN NEXT (NULL::uuid, '{}'::jsonb, b.at::timestamptz, onside_attribution.event_id('bills', b.id::text)); RETURN;
		WHEN 'payload' THEN RETURN NEXT (b.install, '[]'::jsonb, b.at::timestamptz, onside_attribution.event_id('bills', b.id::text)); RETURN;
		WHEN 'no id' THEN RETURN NEXT (b.install, '{}'::jsonb, b.at::timestamptz, '018f6d3e-5b7a-7000-8000-000000000001'::uuid); RETURN;
		ELSE
	END CASE;
	RETURN QUERY SELECT b.install, jsonb_build_object('id', b.id, 'rate', r.rate, 'zone', current_setting('timezone'), 'path', current_setting('search_path')), b.at::timestamptz,
		onside_attribution.event_id('bills', b.id::text) FROM rates r;
END \$\$;
SELECT onside_attribution.attach('bills', 'bill', mapper => 'of_bill');
SELECT onside_attribution.attach('bills', 'row bill', mapper => 'of_bill', condition => 'NEW.id > 0');
SELECT onside_attribution.attach('bills', 'last bill', mapper => 'of_bill', deferred => true);
RESET search_path;
SQL
  "SET TimeZone = 'Asia/Tokyo'",
  (map { my $n = $id += 3; my $m = $n + 1; my $o = $n + 2; "INSERT INTO market.bills VALUES ($n, 'good'), ($m, '$_'), ($o, 'good')" } qw(assert divide unique custom serial disk none null payload), 'no id', 'good'),
  "SET onside_attribution.on_invalid_event = 'ERROR'",
  (map { my $n = $id += 3; "INSERT INTO market.bills VALUES ($n, '$_')" } qw(assert divide payload good)),
  'RESET ALL; SET client_min_messages = error', "SET TimeZone = 'Asia/Tokyo'", "CALL onside_attribution.backfill('market.bills', 'bill')", 'RESET TimeZone',
  q{CREATE FUNCTION market.upper(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT NULL::text'},
  q{SET search_path = market, pg_catalog; SELECT onside_attribution.attach('bills', 'bill in upper case', mapper => 'of_bill', condition => 'pg_catalog.upper(NEW.what) = ''GOOD'''); RESET search_path},
  q{CALL onside_attribution.backfill('market.bills', 'bill in upper case')}, q{INSERT INTO market.bills VALUES (5000, 'good')},
  "SELECT current_setting('search_path'), current_setting('datestyle'), current_setting('extra_float_digits')";

# Values: collations without an order by bytes, keys that are empty, numbers that are long.
push @shared, "CREATE TABLE odd (id int PRIMARY KEY, install text COLLATE no_case, at text COLLATE no_case, k text COLLATE no_case, v text COLLATE no_case, payload jsonb)",
  "SELECT onside_attribution.attach('odd', 'odd', 'install', '{\"v\": \"v\", \"payload\": \"payload\"}', 'at', 'k')",
  "INSERT INTO odd VALUES (1, '$install', '2026-05-05T12:00:00Z', 'A', 'É', '{}')", "INSERT INTO odd VALUES (2, 'x', '2026-05-05T12:00:00Z', 'b', 'v', '{}')",
  "INSERT INTO odd VALUES (3, '$install', 'yesterday', 'c', 'v', '{}')", "INSERT INTO odd VALUES (4, '$install', '2026-05-05T12:00:00Z', '', 'v', '{}')",
  "INSERT INTO odd VALUES (5, '$install', NULL, 'e', 'v', '{}')",
  "INSERT INTO odd SELECT 6, '$install', '2026-05-05T12:00:00Z', 'f', 'v', jsonb_build_object('n', jsonb_agg(1e131071)) FROM generate_series(1, 3000)",
  "SELECT onside_attribution.track('huge', '$install', (SELECT jsonb_build_object('n', jsonb_agg(1e131071)) FROM generate_series(1, 3000)))",
  "SELECT onside_attribution.track('large', '$install', (SELECT jsonb_build_object('n', jsonb_agg(1e10000)) FROM generate_series(1, 90)), '2026-05-05', '3346c9a9-2201-438e-8609-6180e40e5077')";

my $script = join ";\n", @shared, '';
my (%said, %events, %letters);
foreach my $node ($extension, $plain)
{
	my $name = $node->name;
	IPC::Run::run([ 'psql', '-Xqat', '-d', $node->connstr('shop') . ' user=shop' ], '<', \$script, '>', \$said{$name}, '2>&1');
	$said{$name} =~ s/^psql:.*?: //mg;
	$events{$name} = $node->safe_psql('shop', <<'SQL');
SELECT event_name || ' ' || event_id || ' ' || CASE WHEN event_datetime > '2026-06-01' THEN 'now' ELSE event_datetime::text END || ' ' || left(payload::text, 200) || ' ' || count(*)
FROM onside_attribution.outbox GROUP BY event_name, event_id, event_datetime > '2026-06-01', CASE WHEN event_datetime > '2026-06-01' THEN 'now' ELSE event_datetime::text END, payload ORDER BY 1
SQL
	$letters{$name} = $node->safe_psql('shop', <<'SQL');
SELECT source || ' ' || event_name || ' ' || error || ' ' || count(*) FROM onside_attribution.dead_letter GROUP BY source, event_name, error ORDER BY 1
SQL
}

my $dir = PostgreSQL::Test::Utils::tempdir();
sub same
{
	my ($what, $both) = @_;
	my $diff;
	PostgreSQL::Test::Utils::append_to_file("$dir/$what.$_", "$both->{$_}\n") foreach keys %$both;
	IPC::Run::run([ 'diff', "$dir/$what.extension", "$dir/$what.plain" ], '>', \$diff);
	is($diff, '', "the same $what");
	return;
}
cmp_ok(scalar(split /\n/, $events{extension}), '>', 800, 'many events');
cmp_ok(scalar(split /\n/, $letters{extension}), '>', 20, 'many dead letters');
same('answers and errors', \%said);
same('events', \%events);
same('dead letters', \%letters);
$extension->stop;

# ---------------------------------------------------------------------------
# The recorder alone
# ---------------------------------------------------------------------------

my $as = sub { my ($role, $sql) = @_; my ($ret, $out, $err) = $plain->psql('shop', $sql, extra_params => [ '-U', $role ]); return $ret == 0 ? $out : "error: $err" };
my $track = qq{SELECT onside_attribution.track('e', '$install', '{}') IS NOT NULL};
$plain->safe_psql('postgres', 'CREATE ROLE app LOGIN; CREATE ROLE clerk LOGIN; CREATE ROLE mallory LOGIN');
$plain->safe_psql('shop', 'GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA onside_attribution TO app, clerk; GRANT CREATE ON SCHEMA public TO mallory; TRUNCATE onside_attribution.outbox, onside_attribution.dead_letter');

# What a role has put into the path of whoever attaches, detaches, fills in or asks is not called.
$as->('mallory', <<'SQL');
CREATE TABLE called (who text); GRANT INSERT ON called TO PUBLIC;
CREATE FUNCTION evil(a text, b text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.called VALUES (current_user); RETURN a OPERATOR(pg_catalog.=) b; END $$;
CREATE FUNCTION evil(a name, b text) RETURNS boolean LANGUAGE sql AS $$ SELECT public.evil(a::text, b) $$;
CREATE FUNCTION evil(a oid, b regclass) RETURNS boolean LANGUAGE sql AS $$ SELECT public.evil(a::text, b::oid::text) $$;
CREATE FUNCTION evil(a text) RETURNS text LANGUAGE sql AS $$ SELECT CASE WHEN public.evil(a, a) THEN pg_catalog.upper(a) END $$;
CREATE FUNCTION evil_concat(a text, b text) RETURNS text LANGUAGE sql AS $$ SELECT CASE WHEN public.evil(a, a) THEN pg_catalog.concat(a, b) END $$;
CREATE OPERATOR = (LEFTARG = text, RIGHTARG = text, FUNCTION = evil); CREATE OPERATOR = (LEFTARG = name, RIGHTARG = text, FUNCTION = evil); CREATE OPERATOR = (LEFTARG = oid, RIGHTARG = regclass, FUNCTION = evil);
CREATE OPERATOR <> (LEFTARG = text, RIGHTARG = text, FUNCTION = evil); CREATE OPERATOR || (LEFTARG = text, RIGHTARG = text, FUNCTION = evil_concat);
CREATE FUNCTION format(text, VARIADIC "any") RETURNS text LANGUAGE internal IMMUTABLE AS 'text_format'; CREATE FUNCTION upper(text) RETURNS text LANGUAGE sql AS $$ SELECT public.evil($1) $$;
CREATE FUNCTION current_setting(text) RETURNS text LANGUAGE sql AS $$ SELECT public.evil($1) $$;
CREATE TABLE pg_class (oid oid); CREATE TABLE pg_trigger (oid oid); CREATE DOMAIN jsonb AS pg_catalog.text; CREATE DOMAIN text AS pg_catalog.text; CREATE DOMAIN name AS pg_catalog.text;
SQL
is($as->('shop', <<"SQL"), "onside_first\nonside_second\nt\nt\nt", 'somebody else\'s operators, functions, tables and types come first in the path');
SET client_min_messages = error;
CREATE TABLE victims (id int PRIMARY KEY, state pg_catalog.text, install uuid DEFAULT '$install');
INSERT INTO victims VALUES (1, 'paid'), (2, 'x');
CREATE FUNCTION of_victim(v victims) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS \$\$ SELECT v.install, '{}'::pg_catalog.jsonb, pg_catalog.now(), onside_attribution.event_id('v', v.id::pg_catalog.text) \$\$;
SET search_path = public, pg_catalog;
SELECT onside_attribution.attach('victims', 'first', 'install', '{"id": "id"}', event_id => 'id', becomes => 'NEW.id > 1');
SELECT onside_attribution.attach('victims', 'second', mapper => 'of_victim', becomes => 'NEW.id > 0', deferred => true);
INSERT INTO victims VALUES (3, 'paid'); UPDATE victims SET state = 'new';
CALL onside_attribution.backfill('victims', 'first'); CALL onside_attribution.backfill('victims', 'second');
$track;
SELECT onside_attribution.detach('victims', 'first'); SELECT onside_attribution.detach('victims', 'second');
SELECT count(*) FROM onside_attribution.attached \\gset
SQL
is($plain->safe_psql('shop', 'SELECT pg_catalog.count(*) FROM public.called'), 0, 'and none was called');
is($plain->safe_psql('shop', q{SELECT pg_catalog.string_agg(event_name OPERATOR(pg_catalog.||) payload::pg_catalog.text, ',' ORDER BY event_name, payload::pg_catalog.text) FROM onside_attribution.outbox}),
	'e{},first{"id": 2},first{"id": 3},first{"id": 3},second{},second{},second{},second{}', 'and the events are right');
$plain->safe_psql('shop', 'DROP OWNED BY mallory');

# Roles: one that may not read the row of a deferred trigger, one that a policy hides it from, one without the right to record.
$as->('shop', qq{CREATE TABLE till (id int PRIMARY KEY, n int, install uuid DEFAULT '$install'); GRANT INSERT, UPDATE ON till TO app, clerk, mallory; GRANT SELECT ON till TO app});
like($as->('shop', q{SELECT onside_attribution.attach('till', 'till', 'install', '{"n": "n"}', event_id => 'id', deferred => true)}), qr/onside_till/, 'attached');
is($as->('app', 'INSERT INTO till VALUES (1, 1)'), '', 'one who may read it');
is($as->('clerk', 'INSERT INTO till VALUES (2, 1)'), '', 'one who may not: the purchase is made');
is($plain->safe_psql('shop', q{SELECT error FROM onside_attribution.dead_letter}), 'row (id)=(2) cannot be read again at the end of the transaction: permission denied for table till', 'and its event not lost');
$plain->safe_psql('shop', 'GRANT SELECT ON till TO clerk; ALTER TABLE till ENABLE ROW LEVEL SECURITY; CREATE POLICY none_read ON till FOR SELECT USING (false); CREATE POLICY all_write ON till FOR INSERT WITH CHECK (true)');
is($as->('clerk', 'INSERT INTO till VALUES (3, 1)'), '', 'one from whom a policy hides it');
is($plain->safe_psql('shop', q{SELECT count(*) FROM onside_attribution.dead_letter WHERE error ~ '^row .id.=.3. cannot.*row-level security'}), 1, 'nor is that one lost');
like($as->('shop', q{SELECT onside_attribution.attach('till', 'other', 'install', '{"n": "n"}', event_id => 'id', deferred => true)}), qr/has row security/, 'attach refuses it');
like($as->('shop', q{SELECT string_agg(detail, ';') FROM onside_attribution.doctor() WHERE NOT ok AND check_name = 'attached'}), qr/row security/, 'and doctor() says so');
$plain->safe_psql('shop', 'ALTER TABLE till DISABLE ROW LEVEL SECURITY');
like($as->('shop', q{SELECT string_agg(detail, ';') FROM onside_attribution.doctor() WHERE NOT ok AND check_name = 'attached'}), qr/record its events, so that their statements fail: mallory$/, 'who may write and not record is named');
foreach my $sql ('SELECT * FROM onside_attribution.outbox', 'SELECT onside_attribution.preview(gen_random_uuid())', 'SELECT * FROM onside_attribution.namespace',
	'TRUNCATE onside_attribution.dead_letter', "INSERT INTO onside_attribution.outbox (event_id, event_name, payload, installation_id) VALUES (gen_random_uuid(), 'x', '{}', gen_random_uuid())")
{
	like($as->('app', $sql), qr/permission denied for table/, "a role that may record may not: $sql");
}

# Triggers made by hand: with arguments that are no mapping, and with those of the extension.
$as->('shop', q{CREATE TABLE hand (id int, install uuid); CREATE TRIGGER bad AFTER INSERT ON hand FOR EACH ROW EXECUTE FUNCTION onside_attribution.track_row('no mapping')});
is($as->('shop', q{SELECT count(*) FROM onside_attribution.attached WHERE source = 'hand'::regclass AND event_name IS NULL}), 1, 'attached shows a trigger that is none');
like($as->('shop', q{SELECT string_agg(detail, ';') FROM onside_attribution.doctor() WHERE NOT ok AND check_name = 'attached'}), qr/trigger bad on (public\.)?hand: its arguments are no mapping/, 'and doctor() names it');
$as->('shop', 'DROP TABLE hand');

# Locks: on dead letters a purchase waits for a second, on rooms and old partitions not at all.
$as->('shop', 'DELETE FROM onside_attribution.dead_letter');
my $locker = $plain->background_psql('shop');
$locker->query_safe('BEGIN; LOCK TABLE onside_attribution.dead_letter');
my (undef, undef, $warning) = $plain->psql('shop', q{INSERT INTO odd VALUES (100, 'x', '2026-05-05T12:00:00Z', 'zzz', 'v', '{}')});
like($warning, qr/kept in this message alone, since dead_letter is locked/, 'a locked dead_letter lets the purchase through');
$locker->query_safe('COMMIT');

# Room: an idle week, in each isolation level, beside another session that makes it.
my $stock = sub {
	my ($days) = @_;
	$plain->safe_psql('shop', qq{TRUNCATE onside_attribution.outbox; UPDATE onside_attribution.room SET day = onside_attribution.today() + 2 - $days;
		INSERT INTO onside_attribution.outbox (event_id, event_name, payload, installation_id, part)
		SELECT gen_random_uuid(), 'day ' || d, '{}', gen_random_uuid(), onside_attribution.part_of(onside_attribution.today() + d) FROM generate_series(-7, 2) d});
};
foreach my $days (0, 1, 2, 3, 30)
{
	$stock->($days);
	is($as->('app', $track), 't', "$days days without room");
	is($plain->safe_psql('shop', q{SELECT string_agg(substr(event_name, 5), ' ' ORDER BY substr(event_name, 5)::int) FROM onside_attribution.outbox WHERE event_name ~ '^day'}),
		join(' ', -7 .. ($days == 0 || $days == 30 ? 2 : $days == 1 ? 1 : 0)), 'a week is kept, and all after a time in which it may have been the clock that went on');
}
foreach my $level ('read committed', 'repeatable read', 'serializable')
{
	$stock->(1);
	my $session = $plain->background_psql('shop');
	$session->query_safe("BEGIN ISOLATION LEVEL $level; SELECT count(*) FROM onside_attribution.room");
	is($as->('app', $track), 't', 'another session makes room');
	is($session->query_safe("$track; COMMIT"), 't', "$level: whose snapshot is older records all the same");
	$session->quit;
}
$stock->(1);
my $toast = $plain->safe_psql('shop', q{SELECT reltoastrelid::regclass FROM pg_class WHERE oid = ('onside_attribution.outbox_' || onside_attribution.part_of(onside_attribution.today() + 2))::regclass});
$locker->query_safe("BEGIN; LOCK TABLE onside_attribution.namespace; SELECT count(*) FROM $toast");
is($as->('app', $track), 't', 'somebody reads the TOAST table of the oldest rows');
$locker->query_safe('COMMIT');

# Another's slot is not ours, and another's publication does not keep rows from being deleted.
$plain->safe_psql('shop', q{CREATE PUBLICATION everything FOR ALL TABLES; SELECT pg_create_logical_replication_slot('debezium', 'pgoutput')});
is($as->('shop', q{SELECT ok FROM onside_attribution.doctor() WHERE check_name = 'slot'}), 'f', 'the slot of somebody else is none of ours');
is($as->('shop', q{DELETE FROM onside_attribution.outbox}), '', 'rows can be deleted beside a publication of all tables');
$plain->safe_psql('shop', q{SELECT pg_drop_replication_slot('debezium')});
foreach my $name (qw(status stats stats_histogram pending aside failed subscriptions))
{
	like($as->('shop', "SELECT * FROM onside_attribution.$name"), qr/$name is on the sending side/, "$name says where it is");
}

# Forgetting.
$as->('shop', qq{DELETE FROM onside_attribution.dead_letter; $track; INSERT INTO onside_attribution.dead_letter (installation_id, error) VALUES ('$install', 'x')});
like($as->('app', qq{SELECT onside_attribution.forget('$install')}), qr/permission denied/, 'who may record does not make forget');
is($as->('shop', qq{SELECT onside_attribution.forget('$install')}), 2, 'forget() removes from outbox and dead_letter');
$locker->quit;
$plain->stop;
done_testing();
