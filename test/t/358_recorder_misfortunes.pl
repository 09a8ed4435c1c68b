# What happens around managed/recorder.sql does not make a purchase fail or wait, nor lose its event, nor
# give anybody the recorder's rights: a transaction that is open over midnight, clocks that jump, a schema that is
# restored without its rows, a table that becomes a partition, sessions that read backslashes in the old way, keys
# that read alike, tables that inherit, rows that are deleted beside backfill, mappers of one name, writers without
# rights, payloads of any depth, default privileges, a publication that was changed.

use FindBin;
use OnsideTest;
use OnsideTopology qw(install_recorder);

my $install = '550e8400-e29b-41d4-a716-446655440000';
my $node = onside_node('plain', preload => 0, init => { allows_streaming => "logical" }, conf => "max_stack_depth = 7MB\n");
$node->safe_psql('postgres', 'CREATE ROLE shop LOGIN; CREATE ROLE app LOGIN');
$node->safe_psql('postgres', 'CREATE DATABASE shop OWNER shop');

# Whoever installs it has default privileges for all that it makes.
$node->safe_psql('shop', "ALTER DEFAULT PRIVILEGES FOR ROLE shop GRANT ALL ON $_ TO app") foreach qw(TABLES SEQUENCES FUNCTIONS SCHEMAS);
install_recorder($node, 'shop', 'shop', 'the recorder');

sub as { my ($role, $sql) = @_; my ($ret, $out, $err) = $node->psql('shop', $sql, extra_params => [ '-U', $role ]); return $ret == 0 ? $out : "error: $err" }
sub shop { return as('shop', $_[0]) }
sub events { return shop("SELECT count(*) FROM onside_attribution.outbox WHERE event_name = '$_[0]'") }
sub doctor { return shop("SELECT ok, detail, hint FROM onside_attribution.doctor() WHERE check_name = '$_[0]'") }
my $track = sub { "SELECT onside_attribution.track('$_[0]', '$install', '{}') IS NOT NULL" };

subtest 'default privileges' => sub {
	is( shop(<<'SQL'), '', 'nobody has a privilege but those that PUBLIC is to have');
SELECT o.name, a.privilege_type, a.grantee::regrole
FROM (SELECT oid::regclass::text AS name, relacl AS acl, relowner AS owner FROM pg_class WHERE relnamespace = 'onside_attribution'::regnamespace
      UNION ALL SELECT oid::regprocedure::text, proacl, proowner FROM pg_proc WHERE pronamespace = 'onside_attribution'::regnamespace
      UNION ALL SELECT nspname, nspacl, nspowner FROM pg_namespace WHERE nspname = 'onside_attribution') o, aclexplode(o.acl) a
WHERE a.grantee NOT IN (o.owner, 0)
SQL
	is(shop(q{SELECT has_schema_privilege('app', 'onside_attribution', 'CREATE')}), 'f', 'and may make nothing there');
	like(as('app', 'CREATE TRIGGER t BEFORE INSERT ON onside_attribution.outbox FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()'), qr/permission denied/, 'no trigger of somebody\'s on the outbox');
	shop('GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA onside_attribution TO app');
};

subtest 'a transaction that is open over midnight' => sub {
	shop('UPDATE onside_attribution.room SET day = day - 4');
	my $open = $node->background_psql('shop', extra_params => [ '-U', 'app' ]);
	$open->query_safe('BEGIN; ' . $track->('first'));

	# Midnight, and another: what it has emptied is today's by now.
	foreach my $day (1, 2)
	{
		$node->safe_psql('shop', "CREATE OR REPLACE FUNCTION onside_attribution.today() RETURNS date LANGUAGE sql VOLATILE PARALLEL SAFE RETURN (clock_timestamp() AT TIME ZONE 'UTC')::date + $day");
		is(as('app', "SET statement_timeout = '20s'; " . $track->("second $day")), 't', 'others record, and wait for nobody');
		is(as('app', 'BEGIN; ' . $track->('undone') . '; ROLLBACK'), 't', 'and roll back');
	}
	$open->query_safe('COMMIT');
	$open->quit;
	is(as('app', $track->('third')), 't', 'and after it');
	is(events($_), 1, "$_ is there") foreach 'first', 'second 1', 'second 2', 'third';
	is(events('undone'), 0, 'and what was rolled back is not');
};

subtest 'clocks and rows of room' => sub {
	shop('UPDATE onside_attribution.room SET day = day + 400');
	like(doctor('outbox'), qr/^f\|.*clock/, 'doctor() names a clock that was ahead');
	is(as('app', $track->('ahead')), 't', 'an event');
	like(doctor('outbox'), qr/^t\|/, 'mends it');
	shop(q{INSERT INTO onside_attribution.outbox (event_id, event_name, payload, event_datetime, installation_id, part)
		SELECT gen_random_uuid(), 'of this week', '{}', now(), gen_random_uuid(), p FROM generate_series(0, 9) p; UPDATE onside_attribution.room SET day = day - 6});
	is(as('app', $track->('after a jump')) . events('of this week'), 't10', 'a clock that looks like it has jumped ahead empties nothing');
	shop('DELETE FROM onside_attribution.room');
	like(doctor('outbox'), qr/^f\|.*restored/, 'and a table without its row');
	is(as('app', $track->('restored')), 't', 'an event');
	like(doctor('outbox'), qr/^t\|/, 'mends it');
	is(events($_), 1, "$_ is there") foreach qw(first third ahead restored);
	shop('ALTER TABLE onside_attribution.outbox DETACH PARTITION onside_attribution.outbox_3');
	like(doctor('outbox'), qr/^f\|.*detached/, 'and a partition that is detached');
	shop('ALTER TABLE onside_attribution.outbox ATTACH PARTITION onside_attribution.outbox_3 FOR VALUES IN (3)');
};

subtest 'a table that gets a parent' => sub {
	foreach my $how (
		[ 'partition', 'CREATE TABLE parent_of_partition (id bigint, install uuid) PARTITION BY LIST (id)', 'ALTER TABLE parent_of_partition ATTACH PARTITION partition FOR VALUES IN (1)' ],
		[ 'child', 'CREATE TABLE parent_of_child (id bigint, install uuid)', 'ALTER TABLE child INHERIT parent_of_child' ],
		[ 'mother', 'CREATE TABLE child_of_mother (id bigint, install uuid)', 'ALTER TABLE child_of_mother INHERIT mother' ])
	{
		my ($table, $other, $join) = @$how;
		shop("CREATE TABLE $table (id bigint, install uuid); $other; SELECT onside_attribution.attach('$table', '$table', 'install', '{}')");
		is(shop("SELECT enabled FROM onside_attribution.attached WHERE event_name = '$table'"), 't', "$table is attached");
		shop($join);
		is(shop("SELECT enabled IS NULL FROM onside_attribution.attached WHERE event_name = '$table'"), 't', 'and then not wholly');
		like(doctor('attached'), qr/^f\|trigger onside_$table on public.$table: the table has become a partition.*\|Detach the event and attach it again/m, 'as doctor() says');
		shop("SELECT onside_attribution.detach('$table', '$table'); SELECT onside_attribution.attach('$table', '$table', 'install', '{}')");
		is(shop("SELECT enabled FROM onside_attribution.attached WHERE event_name = '$table'"), 't', 'until that is done');
	}
	is(shop("INSERT INTO parent_of_partition VALUES (1, '$install')"), '', 'a row by way of the parent');
	is(events('partition'), 1, 'is an event');
};

subtest 'backslashes' => sub {
	shop(<<'SQL');
CREATE TABLE texts (id int PRIMARY KEY, at text, t text, install text);
SELECT onside_attribution.attach('texts', 'text', 'install', '{"t": "t"}', 'at', 'id', becomes => $$NEW.t LIKE '%\\%'$$);
SQL
	my $row = sub { "INSERT INTO texts VALUES ($_[0], '2026-05-05T12:00:00+02:00', E'a\\\\b', '$install')" };
	is(shop($row->(1)), '', 'as always');
	is(shop('SET standard_conforming_strings = off; SET client_min_messages = warning;' . $row->(2)), '', 'in a session with standard_conforming_strings = off');
	is(shop(q{SELECT count(DISTINCT payload), count(*) FROM onside_attribution.outbox WHERE event_name = 'text'}), '1|2', 'the same event');
	unlike(shop("SET standard_conforming_strings = off; SELECT * FROM $_"), qr/error/, "$_ there") foreach 'onside_attribution.doctor()', 'onside_attribution.attached';
	unlike(shop("SET standard_conforming_strings = off; CALL onside_attribution.backfill('texts', 'text')"), qr/error/, 'backfill there');
	is(events('text'), 4, 'of both rows');
};

subtest 'names in quotes' => sub {
	shop(qq{SET quote_all_identifiers = on; CREATE TABLE quoted (id int, install uuid DEFAULT '$install'); CREATE FUNCTION of_quoted(q quoted) RETURNS SETOF onside_attribution.event LANGUAGE sql AS 'SELECT q.install, ''{}''::jsonb, now(), gen_random_uuid()';
		SELECT onside_attribution.attach('quoted', 'quoted', mapper => 'of_quoted'); INSERT INTO quoted VALUES (1)});
	shop('INSERT INTO quoted VALUES (2)');
	is(events('quoted'), 2, 'quote_all_identifiers changes nothing, in the session that attaches or in another');
};

subtest 'keys that read alike' => sub {
	shop(q{CREATE TABLE alike (a text, b text, install uuid, PRIMARY KEY (a, b)); SELECT onside_attribution.attach('alike', 'alike', 'install', '{"a": "a"}', deferred => true)});
	is(shop("BEGIN; INSERT INTO alike VALUES ('x, y', 'z', '$install'), ('x', 'y, z', '$install'); COMMIT"), '', 'two rows');
	is(events('alike'), 2, 'two events');
	shop(q{CREATE TABLE close (k float8 PRIMARY KEY, install uuid); SELECT onside_attribution.attach('close', 'close', 'install', '{"k": "k"}', deferred => true)});
	is(shop("BEGIN; SET LOCAL extra_float_digits = 0; INSERT INTO close SELECT 0.1::float8 + g * 1e-16, '$install' FROM generate_series(0, 9) g; COMMIT"), '', 'ten rows');
	is(events('close'), 10, 'ten events');
};

subtest 'tables that inherit' => sub {
	shop(q{CREATE TABLE parents (id int PRIMARY KEY, t text, install uuid); CREATE TABLE children (PRIMARY KEY (id)) INHERITS (parents);} .
		join ';', map { qq{SELECT onside_attribution.attach('$_', '$_', 'install', '{"t": "t"}', event_id => 'id'); SELECT onside_attribution.attach('$_', '$_, deferred', 'install', '{"t": "t"}', event_id => 'id', deferred => true)} } qw(parents children));
	shop("BEGIN; INSERT INTO parents VALUES (1, 'p', '$install'); DELETE FROM ONLY parents; INSERT INTO children VALUES (1, 'c', '$install'); COMMIT");
	is(events($_), 1, "$_: an event each") foreach qw(parents children);
	is(events('parents, deferred'), 0, 'none for a row that is gone, though a child has one of its key');
	shop("CALL onside_attribution.backfill('parents', 'parents'); CALL onside_attribution.backfill('children', 'children')");
	is(events('parents'), 1, 'a child\'s row is no row of the parent to backfill');
	is(events('children'), 2, 'but of the child');
};

subtest 'backfill of a table that loses rows' => sub {
	shop(<<"SQL");
CREATE TABLE losing (id int PRIMARY KEY, install uuid DEFAULT '$install');
CREATE FUNCTION of_losing(l losing) RETURNS SETOF onside_attribution.event LANGUAGE plpgsql AS \$\$
BEGIN
	IF l.id = 500 THEN
		PERFORM pg_advisory_xact_lock(358);
	END IF;
	RETURN NEXT (l.install, jsonb_build_object('id', l.id), now(), onside_attribution.event_id('losing', l.id::text));
END \$\$;
INSERT INTO losing SELECT generate_series(1, 3000); ALTER TABLE losing ADD doc xml DEFAULT xmlparse(content 'a<b/>');
SELECT onside_attribution.attach('losing', 'losing', mapper => 'of_losing');
SQL
	my $holder = $node->background_psql('shop', extra_params => [ '-U', 'shop' ]);
	$holder->query_safe('SELECT pg_advisory_lock(358)');
	my $filler = $node->background_psql('shop', extra_params => [ '-U', 'shop' ]);
	$filler->query_until(qr/begun/, "\\echo begun\nSET xmloption = document;\nCALL onside_attribution.backfill('losing', 'losing');\n");
	ok($node->poll_query_until('shop', q{SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)}), 'it is at the first thousand');
	shop('DELETE FROM losing WHERE id <= 10');
	$holder->quit;
	$filler->quit;
	is(shop(q{SELECT count(DISTINCT payload) FROM onside_attribution.outbox WHERE event_name = 'losing' AND (payload ->> 'id')::int > 10}), 2990, 'all rows that nobody has touched are there');
};

subtest 'rows that a policy hides' => sub {
	shop(q{CREATE TABLE hidden (id int PRIMARY KEY, install uuid); SELECT onside_attribution.attach('hidden', 'hidden', 'install', '{}', event_id => 'id');
		ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON hidden USING (id < 4); GRANT SELECT ON hidden TO app; GRANT EXECUTE ON ALL ROUTINES IN SCHEMA onside_attribution TO app});
	my $backfill = "CALL onside_attribution.backfill('hidden', 'hidden')";
	like(as('app', $backfill), qr/backfill: row security of "hidden" applies to app/, 'backfill refuses whom it applies to');
	unlike(shop($backfill), qr/error/, 'and not the owner');
	shop(q{CREATE TABLE looked_up (id int); INSERT INTO looked_up VALUES (1); ALTER TABLE looked_up ENABLE ROW LEVEL SECURITY; ALTER TABLE looked_up FORCE ROW LEVEL SECURITY; CREATE POLICY p ON looked_up USING (true);
		CREATE TABLE looks (id int PRIMARY KEY, install uuid); CREATE FUNCTION of_looks(l looks) RETURNS SETOF onside_attribution.event LANGUAGE sql AS 'SELECT l.install, ''{}''::jsonb, now(), gen_random_uuid() FROM looked_up';
		SELECT onside_attribution.attach('looks', 'looks', mapper => 'of_looks')} . qq{; INSERT INTO looks VALUES (1, '$install'); CALL onside_attribution.backfill('looks', 'looks')});
	is(events('looks'), 2, 'a mapper may look up what has policies, in backfill, too');
	shop('ALTER TABLE hidden FORCE ROW LEVEL SECURITY');
	like(shop($backfill), qr/applies to shop/, 'unless it applies to the owner');
};

subtest 'a dump without privileges' => sub {
	is(shop('GRANT INSERT ON hidden TO app') . doctor('privileges'), 't|nobody may record to whom it was not granted|', 'nobody may record');
	shop('REVOKE USAGE ON SCHEMA onside_attribution FROM PUBLIC');
	like(doctor('attached'), qr/may write the table but not record its events.*app/, 'doctor() names who may not find the functions');
	shop('GRANT USAGE ON SCHEMA onside_attribution TO PUBLIC; GRANT EXECUTE ON FUNCTION onside_attribution.track_batch(jsonb) TO PUBLIC; GRANT INSERT ON onside_attribution.outbox TO PUBLIC');
	like(doctor('privileges'), qr/^f\|anybody may record events.*onside_attribution.outbox, onside_attribution.track_batch\(jsonb\)/, 'and what PUBLIC may');
	shop('REVOKE EXECUTE ON FUNCTION onside_attribution.track_batch(jsonb) FROM PUBLIC; REVOKE INSERT ON onside_attribution.outbox FROM PUBLIC');
	is(shop(qq{SET array_nulls = off; SELECT onside_attribution.track_batch('[{"event_name": "batch", "payload": {}, "event_datetime": "2026-05-05T12:00:00Z", "installation_id": "$install"}]')}), 1, 'array_nulls = off');
};

subtest 'making room' => sub {
	shop(<<'SQL');
INSERT INTO onside_attribution.seen (part, key) SELECT onside_attribution.part_of(onside_attribution.today() + d), int4send(g) FROM generate_series(1, 1000) g, generate_series(-1, 2) d;
UPDATE onside_attribution.room SET day = onside_attribution.today() - 1
SQL
	my $reader = $node->background_psql('shop', extra_params => [ '-U', 'shop' ]);
	$reader->query_safe('BEGIN; SELECT count(*) FROM onside_attribution.outbox');
	is(shop('BEGIN; ' . $track->('read') . '; ' . $track->('read') . q{; SELECT current_setting('onside_recorder.room_tried_by') = pg_current_xact_id()::text; COMMIT}), "t\nt\nt", 'beside a reader: tried once');
	is(shop('SELECT day < onside_attribution.today() FROM onside_attribution.room'), 't', 'not done');
	$reader->query_safe('COMMIT; BEGIN; LOCK TABLE onside_attribution.outbox, onside_attribution.dead_letter, onside_attribution.namespace, texts');
	is(shop(q{SET statement_timeout = '20s'; SELECT string_agg(check_name || coalesce(ok::text, '?'), ' ' ORDER BY check_name) FROM onside_attribution.doctor() WHERE check_name IN ('attached', 'dead_letters')}),
		'attached? dead_letters?', 'doctor() waits for nobody who has something locked');
	$reader->query_safe('COMMIT');
	$reader->quit;
	is(shop($track->('read')), 't', 'without');
	is(shop('SELECT count(*) FROM onside_attribution.seen WHERE part IN (onside_attribution.part_of(onside_attribution.today() + 1), onside_attribution.part_of(onside_attribution.today() + 2))'), 0, 'what deferred triggers have seen goes with the days, and nobody has to delete it');
	is(events('read'), 3, 'all are there');
};

subtest 'names of columns' => sub {
	my @names = qw(e n new old x r y k v p m t made key value oid results source mapping);
	foreach my $name (@names)
	{
		shop(qq{CREATE TABLE "of_$name" ("$name" uuid PRIMARY KEY DEFAULT gen_random_uuid(), at timestamptz DEFAULT now()); } .
			join ';', map { my ($level, $more) = @$_; qq{SELECT onside_attribution.attach('"of_$name"', '$name $level', '$name', '{"p": "$name"}', 'at', '$name'$more)} }
			[ 'statement', '' ], [ 'row', ', condition => $$NEW.at IS NOT NULL$$' ], [ 'deferred', ', deferred => true' ]);
		shop(qq{INSERT INTO "of_$name" DEFAULT VALUES; CALL onside_attribution.backfill('"of_$name"', '$name statement'); CALL onside_attribution.backfill('"of_$name"', '$name row')});
	}
	is(shop(q{SELECT string_agg(event_name || ' ' || n, ',') FROM (SELECT event_name, count(*) AS n FROM onside_attribution.outbox WHERE event_name ~ '^\w+ (statement|row|deferred)$' GROUP BY 1) x
		WHERE n <> CASE WHEN event_name LIKE '% deferred' THEN 1 ELSE 2 END}), '', 'any name that a column has');
	is(shop(q{SELECT count(DISTINCT event_name) FROM onside_attribution.outbox WHERE event_name ~ '^\w+ (statement|row|deferred)$'}), 3 * @names, 'in all ways');
};

subtest 'depth' => sub {
	my $deep = sub { "('{\"a\":' || repeat('[', $_[0]) || repeat(']', $_[0]) || '}')::jsonb" };
	is(as('app', "SELECT onside_attribution.track('deep', '$install', @{[ $deep->(499) ]}) IS NOT NULL"), 't', 'five hundred levels');
	like(as('app', "SELECT onside_attribution.track('deep', '$install', @{[ $deep->($_) ]})"), qr/invalid event: payload is nested too deeply/, "not $_ more") foreach 500, 20000;
	is(as('app', "SELECT onside_attribution.track('flat', '$install', jsonb_build_object('a', repeat('[', 3000), 'b', (SELECT jsonb_agg('{}'::jsonb) FROM generate_series(1, 3000)))) IS NOT NULL"), 't', 'brackets that are none, or side by side, are no depth');
	shop(q{CREATE TABLE deeps (j jsonb, install uuid); SELECT onside_attribution.attach('deeps', 'deeps', 'install', '{"j": "j"}')});
	is(shop("SET client_min_messages = error; INSERT INTO deeps VALUES (@{[ $deep->(20000) ]}, '$install')"), '', 'a row that has more is let through');
	is(shop(q{SELECT count(*) FROM onside_attribution.dead_letter WHERE source = 'public.deeps'}), 1, 'and its event is a dead letter');
};

subtest 'mappers of one name' => sub {
	shop(<<'SQL');
CREATE TABLE refunds (id int PRIMARY KEY, install uuid, amount numeric); CREATE TABLE paid (LIKE refunds) PARTITION BY RANGE (id); CREATE TABLE paid_1 PARTITION OF paid DEFAULT;
CREATE FUNCTION to_ev(r refunds) RETURNS SETOF onside_attribution.event LANGUAGE sql AS $$ SELECT r.install, '{"kind": "refund"}'::jsonb, now(), gen_random_uuid() $$;
CREATE FUNCTION to_ev(r paid) RETURNS SETOF onside_attribution.event LANGUAGE sql AS $$ SELECT r.install, '{"kind": "order"}'::jsonb, now(), gen_random_uuid() $$;
SELECT onside_attribution.attach('paid', 'paid', mapper => 'to_ev(paid)'::regprocedure); SELECT onside_attribution.attach('refunds', 'refund', mapper => 'to_ev(refunds)'::regprocedure);
SQL
	shop("INSERT INTO paid VALUES (1, '$install'); INSERT INTO refunds VALUES (1, '$install')");
	is(shop(q{SELECT event_name, payload ->> 'kind' FROM onside_attribution.outbox WHERE event_name IN ('paid', 'refund') ORDER BY 1}), "paid|order\nrefund|refund", 'the one for the table');
	shop(q{CREATE FUNCTION to_ev(r paid_1) RETURNS SETOF onside_attribution.event LANGUAGE sql AS $$ SELECT r.install, '{"kind": "leaf"}'::jsonb, now(), gen_random_uuid() $$});
	shop("INSERT INTO paid VALUES (3, '$install'); DELETE FROM paid WHERE id = 3");
	is(shop(q{SELECT DISTINCT payload ->> 'kind' FROM onside_attribution.outbox WHERE event_name = 'paid'}), 'order', 'not one for a partition');
	shop('DROP FUNCTION to_ev(paid)');
	is(shop("SET client_min_messages = error; INSERT INTO paid VALUES (2, '$install')"), '', 'when that is dropped');
	is(events('paid') . shop(q{SELECT error FROM onside_attribution.dead_letter WHERE event_name = 'paid'}), '2mapper public.to_ev does not exist', 'no other is called');
};

subtest 'deferred, on partitions that are attached by themselves' => sub {
	shop(<<"SQL");
CREATE TABLE regions (id int, install uuid DEFAULT '$install', region text) PARTITION BY LIST (region);
CREATE TABLE region_a PARTITION OF regions (PRIMARY KEY (id)) FOR VALUES IN ('a'); CREATE TABLE region_b PARTITION OF regions (PRIMARY KEY (id)) FOR VALUES IN ('b');
CREATE FUNCTION of_b(b region_b) RETURNS SETOF onside_attribution.event LANGUAGE sql AS 'SELECT b.install, jsonb_build_object(''region'', b.region), now(), NULL::uuid';
SELECT onside_attribution.attach('region_a', 'region', 'install', '{"region": "region"}', deferred => true); SELECT onside_attribution.attach('region_b', 'region', mapper => 'of_b', deferred => true);
SQL
	is(shop("BEGIN; INSERT INTO regions (id, region) VALUES (1, 'a'), (1, 'b'); COMMIT"), '', 'a key twice');
	is(shop(q{SELECT string_agg(payload::text, ',' ORDER BY payload) FROM onside_attribution.outbox WHERE event_name = 'region'}), '{"region": "a"},{"region": "b"}', 'each its own row, by its own mapper');
};

subtest 'who writes through a view' => sub {
	shop(<<"SQL");
CREATE SCHEMA private; CREATE SCHEMA api; REVOKE ALL ON SCHEMA private FROM app; GRANT USAGE ON SCHEMA api TO app;
CREATE TABLE private.o (id int PRIMARY KEY, install uuid DEFAULT '$install');
CREATE FUNCTION private.m(o private.o) RETURNS SETOF onside_attribution.event LANGUAGE sql AS 'SELECT o.install, ''{}''::jsonb, now(), gen_random_uuid()';
SELECT onside_attribution.attach('private.o', 'by columns', 'install', '{}', event_id => 'id');
SELECT onside_attribution.attach('private.o', 'by mapper', mapper => 'private.m'); SELECT onside_attribution.attach('private.o', 'by row', mapper => 'private.m', becomes => 'NEW.id > 0');
CREATE VIEW api.o AS SELECT * FROM private.o; GRANT ALL ON api.o TO app;
SQL
	is(as('app', 'SET client_min_messages = error; INSERT INTO api.o VALUES (1), (2)'), '', 'without a right on the schema of the table: the purchases are made');
	is(shop(q{SELECT event_name, count(*) FROM onside_attribution.dead_letter WHERE source = 'private.o' GROUP BY 1 ORDER BY 1}), "by mapper|2\nby row|2", 'what cannot be made of them are dead letters');
	is(events('by columns'), 2, 'what can be is events');
	shop('GRANT USAGE ON SCHEMA private TO app');
	is(as('app', 'INSERT INTO api.o VALUES (3)') . join(' ', map { events($_) } 'by mapper', 'by row'), '1 1', 'with it, all');
};

subtest 'a role that may record alone' => sub {
	shop(qq{CREATE TABLE bought (id int PRIMARY KEY, install uuid DEFAULT '$install'); SELECT onside_attribution.attach('bought', 'bought', 'install', '{}', deferred => true);
		CREATE FUNCTION buy(id int) RETURNS void LANGUAGE sql SECURITY DEFINER AS 'INSERT INTO bought VALUES (id)'});
	like(as('app', q{BEGIN; SELECT onside_attribution.is_first((SELECT 'bought'::regclass::oid || '/bought/(5)' || E'\t1')); SELECT buy(5); COMMIT}), qr/permission denied for table seen/, 'cannot say that a row was seen');
	is(as('app', 'SELECT buy(6)'), '', 'and buys');
	is(events('bought'), 1, 'which is an event');
};

subtest 'what is refused' => sub {
	my $attach = q{SELECT onside_attribution.attach('bought', 'odd', 'install', '{}', condition => 'NEW.tableoid > 0'};
	like(shop("$attach, deferred => true)"), qr/must not refer to a system column/, 'a condition on what a row has no more at the end');
	like(shop(q{SELECT onside_attribution.attach('bought', 'odd', 'install', '{}', operation => 'INSERT OR UPDATE', condition => 'OLD.xmin IS NOT NULL', deferred => true)}), qr/must not refer to a system column/, 'on OLD, too');
	is(shop("$attach, event_id => 'id')"), 'onside_odd', 'but not otherwise');
	like(shop(q{CALL onside_attribution.backfill('bought', 'odd')}), qr/refers to a system column/, 'nor to fill in');
	like(shop("BEGIN ISOLATION LEVEL $_; SELECT onside_attribution.forget('$install')"), qr/does not see what was committed after it began/, "forget() at $_") foreach 'REPEATABLE READ', 'SERIALIZABLE';
	shop('ALTER TABLE onside_attribution.outbox ENABLE ROW LEVEL SECURITY');
	like(doctor('publication'), qr/^f\|row security of the outbox hides it/, 'and doctor() names row security of the outbox');
	shop('ALTER TABLE onside_attribution.outbox DISABLE ROW LEVEL SECURITY');
};

subtest 'what a role makes of its own table' => sub {
	$node->safe_psql('shop', 'CREATE SCHEMA AUTHORIZATION app');
	is(as('app', <<'SQL'), '', 'a trigger with 20,000 arguments');
CREATE TABLE app.big (id int, iid uuid);
DO $$
BEGIN
	EXECUTE format('CREATE TRIGGER z AFTER INSERT ON app.big REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.track_row(%s)',
		(SELECT string_agg(quote_literal(a), ', ') FROM (SELECT 'event_name=x' UNION ALL SELECT 'installation_id=iid' UNION ALL SELECT 'payload.' || g || '=id' FROM generate_series(1, 20000) g) x (a)));
END $$;
SQL
	like(shop(q{SET statement_timeout = '20s'; SELECT detail FROM onside_attribution.doctor() WHERE check_name = 'attached'}), qr/trigger z on app.big: its arguments are no mapping/, 'does not hold up doctor()');
	as('app', 'DROP TABLE app.big');
	shop('CREATE TABLE keyless (id int PRIMARY KEY, install uuid); SELECT onside_attribution.attach(\'keyless\', \'keyless\', \'install\', \'{}\', deferred => true); ALTER TABLE keyless DROP CONSTRAINT keyless_pkey');
	like(doctor('attached'), qr/onside_keyless on public.keyless: it is deferred, and the table has no primary key any more/, 'which names a lost key');
	shop('DROP TABLE keyless');
	is(shop(q{SELECT onside_attribution.part_of('1970-01-01')}), 3, 'and a clock before 2000 has a partition');
};

subtest 'publications' => sub {
	like(doctor('publication'), qr/^t\|/, 'as it was made');
	my ($made) = slurp_file("$FindBin::RealBin/../../managed/recorder.sql") =~ /^(CREATE PUBLICATION .*?;)/ms;
	foreach my $other ('FOR TABLE onside_attribution.outbox', 'FOR TABLE onside_attribution.outbox WITH (publish_via_partition_root = true, publish = \'update\')',
		q{FOR TABLE onside_attribution.outbox WHERE (event_name <> 'x') WITH (publish_via_partition_root = true)},
		'FOR TABLE onside_attribution.outbox (event_id, event_name) WITH (publish_via_partition_root = true)', '')
	{
		shop("DROP PUBLICATION onside_attribution; CREATE PUBLICATION onside_attribution $other");
		like(doctor('publication'), qr/^f\|.*start over/, "not: $other");
	}
	shop("DROP PUBLICATION onside_attribution; $made");
	like(doctor('publication'), qr/^t\|/, 'the statement of recorder.sql');
};

subtest 'all of it' => sub {
	like(shop("\\i $FindBin::RealBin/../../managed/recorder.sql"), qr/already.*Removing it/s, 'running the file again says what is there');
	my $sandbox = OnsideSandbox->start;
	my $sender = onside_node('sender', sandbox => $sandbox, conf => "wal_retrieve_retry_interval = '100ms'\n");
	create_extension($sender, 'postgres');
	$sender->safe_psql('postgres', "CREATE SUBSCRIPTION onside_shop CONNECTION '@{[ $node->connstr('shop') =~ s/'/''/gr ]}' PUBLICATION onside_attribution");
	my @ids = split /\n/, shop('SELECT DISTINCT event_id FROM onside_attribution.outbox');
	ok(wait_until(sub { $sandbox->accepted(@ids) == @ids }), 'arrives')
	  or diag($sandbox->accepted(@ids) . ' of ' . @ids . ' ' . $sender->safe_psql('postgres', 'SELECT event_name, error, count(*) FROM onside_attribution.dead_letter GROUP BY 1, 2'));
	$sender->stop;
	$sandbox->stop;
};

$node->stop;
done_testing();
