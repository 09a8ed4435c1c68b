# A mapper's events are exactly those that it returns, at row level, at statement level
# and in partitions of whatever column order; nothing that is altered, no role, no
# search_path and no error of the mapper's changes what it means, or fails a purchase
# that on_invalid_event lets through.

use OnsideTest;

my $node = onside_node('main', conf => "onside_attribution.enabled = off\nautovacuum = off");
create_extension($node, 'postgres');

my $user = $OnsideTest::installation;

sub sql { return $node->safe_psql('postgres', $_[0]) }

# What a script writes to stderr.
sub said
{
	my ($script, %options) = @_;
	my ($stdout, $stderr) = ('', '');
	$node->psql('postgres', $script, stdout => \$stdout, stderr => \$stderr, on_error_stop => 0, %options);
	return $stderr;
}

sub forget_all
{
	sql('TRUNCATE onside_attribution.outbox, onside_attribution.dead_letter');
	return;
}

# ---------------------------------------------------------------------------
# Plans
# ---------------------------------------------------------------------------

sql(<<SQL);
CREATE TABLE users(id bigint PRIMARY KEY, installation_id uuid);
CREATE TABLE orders(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id bigint, gone text, cents int, state text DEFAULT 'new');
INSERT INTO users SELECT n, '$user' FROM generate_series(1, 1000) AS n;
ANALYZE users;
CREATE FUNCTION to_event(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS \$\$
    SELECT p.* FROM users u, LATERAL onside_attribution.purchase(u.installation_id, onside_attribution.amount(o.cents, 2), 'usd') p
    WHERE u.id = o.user_id
\$\$;
CREATE FUNCTION not_inlined(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql VOLATILE AS 'SELECT * FROM to_event(o)';
SQL

# The plans of the queries that call a mapper.
sub plans
{
	my ($write) = @_;
	my $log = said(<<SQL);
LOAD 'auto_explain';
SET auto_explain.log_min_duration = 0;
SET auto_explain.log_nested_statements = on;
SET client_min_messages = log;
$write;
SQL
	return join("\n", grep { /Query Text: SELECT e\.\*/ } split(/^\S* ?LOG:/m, $log));
}

subtest 'PostgreSQL inlines a mapper that it can inline' => sub {
	sql("SELECT onside_attribution.attach('orders', 'fine', mapper => 'to_event')");
	for (
		[ 'one row', "INSERT INTO orders(user_id, cents) VALUES (1, 990)" ],
		[ 'many rows', "INSERT INTO orders(user_id, cents) SELECT n, n FROM generate_series(1, 500) AS n" ])
	{
		my ($what, $write) = @$_;
		my $plans = plans($write);
		like($plans, qr/Query Text: SELECT e\.\* FROM/, "$what: there is a plan to look at");
		like($plans, qr/Scan (using \w+ )?on users/, "$what: the joined table is in it");
		unlike($plans, qr/Function Scan on (?!purchase )/, "$what: the mapper is not");
	}
	like(plans("INSERT INTO orders(user_id, cents) SELECT n, n FROM generate_series(1, 500) AS n"),
		qr/Hash Join.*Named Tuplestore Scan/s, 'many rows are joined as a set');
	sql("SELECT onside_attribution.detach('orders', 'fine'), onside_attribution.attach('orders', 'called', mapper => 'not_inlined')");
	like(plans("INSERT INTO orders(user_id, cents) SELECT n, n FROM generate_series(1, 500) AS n"),
		qr/Function Scan on not_inlined e/, 'one that cannot be inlined is called');
	sql("SELECT onside_attribution.detach('orders', 'called')");
	forget_all();
};

# ---------------------------------------------------------------------------
# Alterations
# ---------------------------------------------------------------------------

# One session writes a row, or twenty, before and after each of these; what is expected
# is the payload of all events, or the beginning of the error.
my @alterations = (
	[ 'another body', 'CREATE OR REPLACE FUNCTION m(o alt) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$ SELECT u.i, jsonb_build_object(\'v2\', o.v), NULL::timestamptz, NULL::uuid FROM alt_users u WHERE u.id = o.u $$', '{"v2": 1}' ],
	[ 'VOLATILE', 'ALTER FUNCTION m(alt) VOLATILE', '{"v": 1}' ],
	[ 'SECURITY DEFINER', 'ALTER FUNCTION m(alt) SECURITY DEFINER', '{"v": 1}' ],
	[ 'SET', 'ALTER FUNCTION m(alt) SET search_path = public', '{"v": 1}' ],
	[ 'ADD COLUMN', 'ALTER TABLE alt ADD COLUMN more text DEFAULT \'x\'', '{"v": 1}' ],
	[ 'DROP COLUMN', 'ALTER TABLE alt DROP COLUMN first', '{"v": 1}' ],
	[ 'a mapped column renamed', 'ALTER TABLE alt RENAME COLUMN v TO w', qr/^missing FROM-clause entry for table "o"|^column o\.v does not exist/ ],
	[ 'a mapped column dropped', 'ALTER TABLE alt DROP COLUMN v', qr/^missing FROM-clause entry for table "o"|^column o\.v does not exist/ ],
	[ 'another type of a column', 'ALTER TABLE alt ALTER COLUMN v TYPE text', '{"v": "1"}' ],
	[ 'a joined column renamed', 'ALTER TABLE alt_users RENAME COLUMN i TO j', qr/^column u\.i does not exist/ ],
	[ 'a joined table renamed', 'ALTER TABLE alt_users RENAME TO alt_others', qr/^relation "alt_users" does not exist/ ],
	[ 'a joined table made anew', 'DROP TABLE alt_users; CREATE TABLE alt_users (x text, i uuid, id int); INSERT INTO alt_users SELECT NULL, i, n FROM generate_series(1, 30) AS n, (SELECT i FROM kept_i) AS i', '{"v": 1}' ],
	[ 'the table renamed', 'ALTER TABLE alt RENAME TO alt_renamed', '{"v": 1}', 'alt_renamed' ],
	[ 'the table in another schema', 'ALTER TABLE alt SET SCHEMA elsewhere', '{"v": 1}', 'elsewhere.alt' ],
	[ 'ALTER TYPE of an enum', 'ALTER TYPE mood ADD VALUE IF NOT EXISTS \'odd\'', '{"v": 1}' ],
	[ 'ALTER TYPE of a composite', 'ALTER TYPE pair ADD ATTRIBUTE c int CASCADE', '{"v": 1}' ],
	[ 'the mapper renamed', 'ALTER FUNCTION m(alt) RENAME TO n', qr/^mapper public\.m\(alt\) does not exist/ ],
	[ 'the mapper in another schema', 'ALTER FUNCTION m(alt) SET SCHEMA elsewhere', qr/^mapper public\.m\(alt\) does not exist/ ],
	[ 'the mapper made anew', 'DROP FUNCTION m(alt) CASCADE; CREATE FUNCTION m(o alt) RETURNS onside_attribution.event LANGUAGE plpgsql AS $$ BEGIN RETURN ((SELECT i FROM kept_i), \'{"new": true}\'::jsonb, NULL::timestamptz, NULL::uuid); END $$; ATTACH', '{"new": true}' ],
	[ 'a mapper with a wrong result', 'DROP FUNCTION m(alt) CASCADE; CREATE FUNCTION m(o alt) RETURNS SETOF text LANGUAGE sql STABLE AS $$ SELECT \'x\'::text $$; TRIGGER', qr/^a mapper must return onside_attribution\.event/ ]);

sql(<<SQL);
CREATE SCHEMA elsewhere;
CREATE TYPE mood AS ENUM ('fine');
CREATE TABLE kept_i AS SELECT '$user'::uuid AS i;
SQL

sub alteration
{
	my ($what, $command, $expected, $table, $level, $rows) = @_;
	my $condition = $level eq 'row' ? ", condition => 'NEW.id > 0'" : '';
	my $attach = "SELECT onside_attribution.attach('alt', 'e', mapper => 'm'$condition);";
	my $trigger = "CREATE TRIGGER e AFTER INSERT ON alt "
	  . ($level eq 'row' ? 'FOR EACH ROW' : 'REFERENCING NEW TABLE AS n FOR EACH STATEMENT')
	  . " EXECUTE FUNCTION onside_attribution.track_row('event_name=e', 'mapper=public.m', 'search_path=public, pg_temp');";
	my $columns = $what =~ /mapped column (renamed|dropped)/ ? 'id, u' : 'id, u, v';
	my $values = $what =~ /mapped column (renamed|dropped)/ ? 'n, n' : 'n, n, 1';

	$table //= 'alt';
	$command =~ s/ATTACH/$attach/;
	$command =~ s/TRIGGER$/$trigger/;
	said(<<SQL);
SET client_min_messages = error;
DROP TABLE IF EXISTS alt, alt_renamed, elsewhere.alt, alt_users, alt_others CASCADE;
DROP TYPE IF EXISTS pair CASCADE;
CREATE TYPE pair AS (a int, b int);
CREATE TABLE alt_users (id int, i uuid);
INSERT INTO alt_users SELECT n, i FROM generate_series(1, 30) AS n, kept_i;
CREATE TABLE alt (first int, id int PRIMARY KEY, u int, mood mood DEFAULT 'fine', pair pair DEFAULT '(1,2)', v int);
CREATE FUNCTION m(o alt) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS
\$\$ SELECT u.i, jsonb_build_object('v', o.v), NULL::timestamptz, NULL::uuid FROM alt_users u WHERE u.id = o.u \$\$;
$attach
INSERT INTO alt (id, u, v) SELECT n, n, 1 FROM generate_series(1, $rows) AS n;
INSERT INTO alt (id, u, v) SELECT n + 100, n, 1 FROM generate_series(1, $rows) AS n;
TRUNCATE onside_attribution.outbox, onside_attribution.dead_letter, alt;
$command;
INSERT INTO $table ($columns) SELECT $values FROM generate_series(1, $rows) AS n;
SQL
	my $got = sql(<<SQL);
SELECT coalesce(payload::text, error), count(*) FROM (
    SELECT payload, NULL AS error FROM onside_attribution.outbox
    UNION ALL SELECT payload, regexp_replace(error, ', in row .*', '') FROM onside_attribution.dead_letter) AS e
GROUP BY 1
SQL
	if (ref $expected)
	{
		like($got, qr/$expected.*\|$rows$/, "$what, at $level level, $rows rows");
	}
	else
	{
		is($got, "$expected|$rows", "$what, at $level level, $rows rows");
	}
	return;
}

subtest 'what a plan was made for is altered' => sub {
	for my $alteration (@alterations)
	{
		my ($what, $command, $expected, $table) = @$alteration;
		alteration($what, $command, $expected, $table, @$_)
		  for [ 'row', 2 ], [ 'statement', 2 ], [ 'statement', 20 ];
	}
	sql('DROP TABLE alt CASCADE');
	forget_all();
};

# ---------------------------------------------------------------------------
# Partitions
# ---------------------------------------------------------------------------

subtest 'a partition has its columns in another order' => sub {
	sql(<<SQL);
CREATE TABLE parts (a text, id int, i uuid, region text) PARTITION BY LIST (region);
CREATE TABLE same PARTITION OF parts FOR VALUES IN ('same');
CREATE TABLE other (junk int, region text, i uuid, more int, id int, a text);
ALTER TABLE other DROP COLUMN junk, DROP COLUMN more;
ALTER TABLE parts ATTACH PARTITION other FOR VALUES IN ('other');
CREATE TABLE middle (region text, id int, a text, i uuid) PARTITION BY RANGE (id);
CREATE TABLE leaf (i uuid, a text, id int, region text);
ALTER TABLE middle ATTACH PARTITION leaf FOR VALUES FROM (0) TO (1000);
ALTER TABLE parts ATTACH PARTITION middle FOR VALUES IN ('middle');
CREATE FUNCTION part_event(p parts) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS
\$\$ SELECT p.i, to_jsonb(p), NULL::timestamptz, NULL::uuid \$\$;
CREATE FUNCTION part_event(p middle) RETURNS onside_attribution.event LANGUAGE plpgsql STABLE AS
\$\$ BEGIN RETURN (p.i, to_jsonb(p), NULL::timestamptz, NULL::uuid); END \$\$;
CREATE FUNCTION part_event(p leaf) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS
\$\$ SELECT p.i, jsonb_build_object('a', p.a, 'id', p.id, 'i', p.i, 'region', p.region), NULL::timestamptz, NULL::uuid \$\$;
SELECT onside_attribution.attach('parts', 'root', mapper => 'part_event(parts)'::regprocedure, operation => 'INSERT OR UPDATE');
SELECT onside_attribution.attach('middle', 'middle', mapper => 'part_event(middle)'::regprocedure);
SELECT onside_attribution.attach('leaf', 'leaf', mapper => 'part_event(leaf)'::regprocedure);
INSERT INTO parts SELECT 'text ' || r, n, '$user', r FROM unnest(ARRAY['same', 'other', 'middle']) WITH ORDINALITY AS r (r, n);
INSERT INTO other (a, id, i, region) VALUES ('direct', 4, '$user', 'other');
INSERT INTO leaf (a, id, i, region) VALUES ('direct', 5, '$user', 'middle');
SQL
	my $row = sub {
		my ($a, $id, $region) = @_;
		return qq({"a": "$a", "i": "$user", "id": $id, "region": "$region"});
	};
	my $middle = join("\n", $row->('text middle', 3, 'middle'), $row->('direct', 5, 'middle'));
	my $all = "SELECT payload FROM onside_attribution.outbox WHERE event_name = '%s' ORDER BY (payload -> 'id')::int";
	is(sql(sprintf($all, 'root')),
		join("\n", $row->('text same', 1, 'same'), $row->('text other', 2, 'other'), $row->('text middle', 3, 'middle'),
			$row->('direct', 4, 'other'), $row->('direct', 5, 'middle')), 'attached to the root');
	is(sql(sprintf($all, 'middle')), $middle, 'attached to a partitioned partition');
	is(sql(sprintf($all, 'leaf')), $middle, 'attached to a partition');
	forget_all();
	sql("ALTER TABLE parts ADD COLUMN late int DEFAULT 1; UPDATE parts SET late = 2 WHERE region = 'other' AND id = 2; ALTER TABLE parts DROP COLUMN a; UPDATE parts SET late = 3 WHERE id = 3");
	is(sql(sprintf($all, 'root')), qq({"a": "text other", "i": "$user", "id": 2, "late": 2, "region": "other"}\n{"i": "$user", "id": 3, "late": 3, "region": "middle"}),
		'columns come and go');
	sql('DROP TABLE parts CASCADE');
	forget_all();
};

# ---------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------

sql(<<SQL);
CREATE TABLE failing (a int, b text, state text, i uuid DEFAULT '$user', PRIMARY KEY (b, a));
CREATE FUNCTION failing(f failing) RETURNS onside_attribution.event LANGUAGE plpgsql STABLE AS \$\$
BEGIN
    IF f.state = 'sleep' THEN
        PERFORM pg_sleep(1000);
    ELSIF f.state IS NOT NULL THEN
        RAISE EXCEPTION 'it fails' USING ERRCODE = f.state, HINT = 'Ask its author.';
    END IF;
    RETURN (f.i, '{}'::jsonb, NULL::timestamptz, NULL::uuid);
END
\$\$;
SQL

# How writing rows ends of which the second makes the mapper fail.
sub failure
{
	my ($rows, $state, $settings) = @_;
	sql('TRUNCATE failing');
	forget_all();
	my $said = said(<<SQL);
\\set VERBOSITY verbose
\\set SHOW_CONTEXT always
$settings
INSERT INTO failing SELECT n, 'k', CASE n WHEN 2 THEN '$state' END FROM generate_series(1, $rows) AS n;
SQL
	my ($level, $code) = $said =~ /^(?:psql:.*?: )?(ERROR|WARNING):\s+(\w{5}):/m;
	return (join(' ', $level // 'nothing', $code // '', sql(<<SQL)), $said);
SELECT (SELECT count(*) FROM failing), (SELECT count(*) FROM onside_attribution.outbox), (SELECT count(*) FROM onside_attribution.dead_letter)
SQL
}

for my $level ('row', 'statement')
{
	my $condition = $level eq 'row' ? ", condition => 'NEW.a > 0'" : '';
	sql("SELECT onside_attribution.attach('failing', '$level', mapper => 'failing'$condition)");
	subtest "a mapper fails at $level level" => sub {
		for my $rows (3, 20)
		{
			my $left = $rows - 1;

			# What says something about the row
			for my $state ('P0001', '22012', '23505', '42501', '42P01', '55P03', '54001', '0A000', 'ABCDE')
			{
				my ($outcome, $said) = failure($rows, $state, '');
				is($outcome, "WARNING $state $rows|$left|1", "$state is a dead letter, the others of $rows rows are events");
				is(sql("SELECT event_name, source, error, attempts, installation_id IS NULL, payload IS NULL FROM onside_attribution.dead_letter"),
					"$level|public.failing|it fails, in row (b, a)=(k, 2)|0|t|t", 'which says what and where');
				like($said, qr/by the mapper public\.failing.*HINT:  Ask its author\..*trigger "onside_$level" on table "public\.failing"/s, 'and so does the warning');

				($outcome, $said) = failure($rows, $state, 'SET onside_attribution.on_invalid_event = error;');
				is($outcome, "ERROR $state 0|0|0", "or the statement fails");
				like($said, qr/ERROR:\s+$state: it fails\nHINT:  Ask its author\.\n.*row \(b, a\)=\(k, 2\).*trigger "onside_$level" on table "public\.failing"/s, 'with the error of the mapper');
				like($said, qr/TABLE NAME:  failing/, 'and the table');
			}

			# What says nothing about it
			for my $state ('40001', '40P01', '53100', '53200', '57014', '57P01', '58030', 'XX000', 'XX001')
			{
				my ($outcome, $said) = failure($rows, $state, '');
				is($outcome, "ERROR $state 0|0|0", "$state passes through");
				like($said, qr/trigger "onside_$level" on table "public\.failing"/, 'with its context');
			}
			my ($outcome) = failure($rows, 'sleep', "SET statement_timeout = '200ms';");
			is($outcome, "ERROR 57014 0|0|0", 'so does a timeout');
		}
	};
	sql("SELECT onside_attribution.detach('failing', '$level')");
}

subtest 'a session goes on after errors' => sub {
	sql("TRUNCATE failing; SELECT onside_attribution.attach('failing', 'e', mapper => 'failing')");
	forget_all();
	said(<<SQL);
INSERT INTO failing VALUES (1, 'k', 'P0001'), (2, 'k', NULL);
BEGIN;
INSERT INTO failing SELECT n, 'k', CASE WHEN n % 5 = 0 THEN 'P0001' END FROM generate_series(10, 40) AS n;
SAVEPOINT s;
INSERT INTO failing VALUES (50, 'k', '40001');
ROLLBACK TO s;
INSERT INTO failing VALUES (51, 'k', NULL);
COMMIT;
DO \$\$ BEGIN INSERT INTO failing VALUES (60, 'k', '53200'); EXCEPTION WHEN OTHERS THEN INSERT INTO failing VALUES (61, 'k', NULL); END \$\$;
SQL
	is(sql("SELECT (SELECT count(*) FROM failing), (SELECT count(*) FROM onside_attribution.outbox), (SELECT count(*) FROM onside_attribution.dead_letter)"),
		'35|27|8', 'with what they leave');
	sql("SELECT onside_attribution.detach('failing', 'e')");
};

# ---------------------------------------------------------------------------
# Transaction numbers
# ---------------------------------------------------------------------------

# How many transaction numbers a statement takes besides its own.
sub numbers_taken
{
	my ($write) = @_;
	return sql(<<SQL);
CREATE TABLE IF NOT EXISTS mark (n int);
BEGIN;
SELECT pg_current_xact_id() AS before \\gset
$write;
SAVEPOINT s;
INSERT INTO mark VALUES (1) RETURNING xmin::text::bigint - :before % 4294967296 - 1;
COMMIT;
SQL
}

subtest 'a mapper that writes nothing takes no transaction number' => sub {
	sql(<<'SQL');
CREATE TABLE seen (n int);
CREATE FUNCTION writing(o orders) RETURNS onside_attribution.event LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO seen VALUES (1);
    RETURN NULL;
END
$$;
SELECT onside_attribution.attach('orders', 'reads', mapper => 'to_event');
SELECT onside_attribution.attach('orders', 'reads by row', mapper => 'to_event', condition => 'NEW.id > 0');
SQL
	my $write = "INSERT INTO orders(user_id, cents) SELECT n, n FROM generate_series(1, 50) AS n";
	is(numbers_taken($write), 0, 'for 50 rows at both levels');
	sql("SELECT onside_attribution.attach('orders', 'writes', mapper => 'writing', condition => 'NEW.id > 0')");
	is(numbers_taken($write), 50, 'one that writes takes some');
	sql("SELECT onside_attribution.detach('orders', e) FROM unnest(ARRAY['reads', 'reads by row', 'writes']) AS e");
	forget_all();
};

# ---------------------------------------------------------------------------
# A mapper that writes
# ---------------------------------------------------------------------------

subtest 'a mapper writes to its own table' => sub {
	sql(<<SQL);
CREATE TABLE growing (id int PRIMARY KEY, left_over int, note text DEFAULT repeat('x', 1000));
CREATE FUNCTION grow(g growing) RETURNS SETOF onside_attribution.event LANGUAGE plpgsql AS \$\$
BEGIN
    IF g.left_over > 0 THEN
        INSERT INTO growing VALUES (g.id * 10, g.left_over - 1), (g.id * 10 + 1, g.left_over - 1);
    END IF;
    RETURN NEXT ('$user'::uuid, jsonb_build_object('id', g.id), NULL::timestamptz, NULL::uuid);
    IF g.left_over = 0 AND g.id % 10 = 1 THEN
        RAISE EXCEPTION 'it fails';
    END IF;
END
\$\$;
SQL
	for my $level ('row', 'statement')
	{
		for my $rows (2, 15)
		{
			my $condition = $level eq 'row' ? ", condition => 'NEW.id > 0'" : '';

			sql("TRUNCATE growing; SELECT onside_attribution.attach('growing', 'grows', mapper => 'grow'$condition)");
			sql("SET client_min_messages = error; INSERT INTO growing SELECT 1000 + n, 2 FROM generate_series(1, $rows) AS n");
			is(sql(<<SQL), join('|', 7 * $rows, 5 * $rows, 2 * $rows), "$level level, $rows rows");
SELECT (SELECT count(*) FROM growing), (SELECT count(DISTINCT payload) FROM onside_attribution.outbox), (SELECT count(*) FROM onside_attribution.dead_letter WHERE error LIKE 'it fails, in row (id)=%')
SQL
			sql("SELECT onside_attribution.detach('growing', 'grows')");
			forget_all();
		}
	}
};

# ---------------------------------------------------------------------------
# Skipped rows
# ---------------------------------------------------------------------------

subtest 'rows without an event are counted as skipped' => sub {
	sql("INSERT INTO users VALUES (-1, NULL); SELECT onside_attribution.attach('orders', 'e', mapper => 'to_event')");
	for my $rows ('(-1, 1), (-2, 1), (1, 1)', join(', ', ('(-1, 1)') x 15, ('(-2, 1)') x 15, '(1, 1)'))
	{
		my $before = sql('SELECT skipped FROM onside_attribution.stats');
		sql("INSERT INTO orders(user_id, cents) VALUES $rows");
		is(sql('SELECT skipped FROM onside_attribution.stats') - $before, () = $rows =~ /-/g, 'all of them');
	}
	sql("SELECT onside_attribution.detach('orders', 'e')");
	forget_all();
};

# ---------------------------------------------------------------------------
# Rights
# ---------------------------------------------------------------------------

sub as_writer
{
	my ($rows, $before) = @_;
	forget_all();
	return said(<<SQL);
$before
SET ROLE writer;
INSERT INTO orders(user_id, cents) SELECT 1, 100 FROM generate_series(1, $rows);
SQL
}

sub outcome
{
	return sql("SELECT (SELECT count(*) FROM onside_attribution.outbox), count(*), min(regexp_replace(error, ', in row.*', '')) FROM onside_attribution.dead_letter");
}

for my $level ('row', 'statement')
{
	my $condition = $level eq 'row' ? ", condition => 'NEW.id > 0'" : '';
	subtest "a mapper has the rights of whoever writes the row, at $level level" => sub {
		sql(<<SQL);
DO \$\$ BEGIN CREATE ROLE writer; EXCEPTION WHEN duplicate_object THEN END \$\$;
GRANT INSERT, SELECT ON orders TO writer;
REVOKE ALL ON users FROM writer;
SELECT onside_attribution.attach('orders', 'e', mapper => 'to_event'$condition);
SQL
		for my $rows (2, 20)
		{
			# A plan of somebody who may
			my $filled = "INSERT INTO orders(user_id, cents) SELECT 1, 1 FROM generate_series(1, $rows); TRUNCATE onside_attribution.outbox;";

			for my $before ('', $filled)
			{
				my $said = as_writer($rows, $before);
				is(outcome(), "0|$rows|permission denied for table users", "what he may not read");
				like($said, qr/HINT:  A mapper runs with the rights of whoever writes the row\. Grant them, or declare the mapper SECURITY DEFINER\./, 'with a hint');
				sql('GRANT SELECT ON users TO writer');
				as_writer($rows, $before);
				is(outcome(), "$rows|0|", 'what he may read');
				sql('REVOKE EXECUTE ON FUNCTION to_event FROM PUBLIC');
				$said = as_writer($rows, $before);
				is(outcome(), "0|$rows|permission denied for mapper public.to_event", 'a mapper that he may not call');
				like($said, qr/HINT:  Whoever writes the row calls it: GRANT EXECUTE ON FUNCTION public\.to_event\(orders\) TO writer;/, 'with a hint');
				sql('GRANT EXECUTE ON FUNCTION to_event TO PUBLIC; REVOKE SELECT ON users FROM writer; ALTER FUNCTION to_event SECURITY DEFINER');
				as_writer($rows, $before);
				is(outcome(), "$rows|0|", 'SECURITY DEFINER');
				sql('ALTER FUNCTION to_event SECURITY INVOKER');
			}
		}
		sql("SELECT onside_attribution.detach('orders', 'e')");
	};

	subtest "whoever writes the row does not decide what a name means, at $level level" => sub {
		sql(<<SQL);
CREATE SCHEMA IF NOT EXISTS hostile AUTHORIZATION writer;
GRANT SELECT ON users TO writer;
CREATE OR REPLACE FUNCTION definer(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE SECURITY DEFINER AS 'SELECT * FROM to_event(o)';
SELECT onside_attribution.attach('orders', 'invoker', mapper => 'to_event'$condition);
SELECT onside_attribution.attach('orders', 'definer', mapper => 'definer'$condition);
SQL
		for my $rows (1, 20)
		{
			as_writer($rows, <<SQL);
SET ROLE writer;
SET client_min_messages = error;
CREATE TEMP TABLE users(id bigint, installation_id uuid);
INSERT INTO users VALUES (1, '99999999-2222-4333-8444-555555555555');
CREATE OR REPLACE FUNCTION hostile.purchase(uuid, numeric, text) RETURNS onside_attribution.event LANGUAGE sql AS \$\$ SELECT NULL::uuid, '{"hostile": true}'::jsonb, NULL::timestamptz, NULL::uuid \$\$;
CREATE OR REPLACE FUNCTION hostile.upper(text) RETURNS text LANGUAGE sql AS \$\$ SELECT 'hostile' \$\$;
CREATE OR REPLACE FUNCTION hostile.to_event(public.orders) RETURNS SETOF onside_attribution.event LANGUAGE sql AS \$\$ SELECT NULL::uuid, '{"hostile": true}'::jsonb, NULL::timestamptz, NULL::uuid \$\$;
CREATE OR REPLACE FUNCTION hostile.div(int, numeric) RETURNS numeric LANGUAGE sql AS 'SELECT 666.0';
DROP OPERATOR IF EXISTS hostile./ (int, numeric);
CREATE OPERATOR hostile./ (LEFTARG = int, RIGHTARG = numeric, FUNCTION = hostile.div);
SET search_path = hostile, pg_temp, pg_catalog, public;
SQL
			is(sql("SELECT event_name, payload, installation_id, count(*) FROM onside_attribution.outbox GROUP BY 1, 2, 3 ORDER BY 1"),
				join("\n", map { qq($_|{"amount": "1.00", "currency": "USD"}|$user|$rows) } 'definer', 'invoker'), "$rows rows");
			is(sql("SELECT count(*) FROM onside_attribution.dead_letter"), 0, 'and none is lost');
		}
		is(sql(<<SQL), 'hostile, public', 'his own search_path is what it was');
SET search_path = hostile, public;
INSERT INTO orders(user_id, cents) VALUES (1, 1);
SHOW search_path;
SQL
		sql("SELECT onside_attribution.detach('orders', e) FROM unnest(ARRAY['invoker', 'definer']) AS e; DROP SCHEMA hostile CASCADE");
		forget_all();
	};
}

# ---------------------------------------------------------------------------
# doctor()
# ---------------------------------------------------------------------------

sub doctor { return $node->safe_psql($_[1] // 'postgres', $_[0] // "SELECT ok, detail FROM onside_attribution.doctor() WHERE check_name = 'attached'") }

subtest 'doctor() names a mapper that is broken' => sub {
	sql("SELECT onside_attribution.attach('orders', 'kept', mapper => 'to_event')");
	like(doctor(), qr/^t\|/, 'none is');
	my @broken = (
		[ 'ALTER TABLE users RENAME installation_id TO other', qr/mapper public\.to_event of the trigger onside_kept on public\.orders is broken at "u\.installation_id": column u\.installation_id does not exist/,
			'ALTER TABLE users RENAME other TO installation_id' ],
		[ 'ALTER TABLE orders RENAME cents TO other', qr/is broken at "o\.cents": /, 'ALTER TABLE orders RENAME other TO cents' ],
		[ 'ALTER TABLE users RENAME TO other', qr/is broken at "users": relation "users" does not exist/, 'ALTER TABLE other RENAME TO users' ],
		[ 'ALTER FUNCTION to_event(orders) RENAME TO other', qr/mapper public\.to_event of the trigger onside_kept on public\.orders does not exist for/, 'ALTER FUNCTION other(orders) RENAME TO to_event' ]);
	for (@broken)
	{
		my ($break, $detail, $mend) = @$_;
		sql("SET check_function_bodies = off; $break");
		like(doctor(), qr/^f\|.*$detail/, $break);
		sql($mend);
		like(doctor(), qr/^t\|/, 'mended');
	}
	sql('ALTER FUNCTION to_event VOLATILE STRICT');
	like(doctor(), qr/^t\|.*the mapper public\.to_event on public\.orders is called for each row, not inlined: it is VOLATILE, which is the default, is STRICT/, 'what keeps it from being inlined');
	my $count = sub { return [ doctor() =~ /(\d+) events? (?:is|are) attached/, scalar(() = doctor() =~ /on public\.orders is called for each row/g) ] };
	my ($events, $remarks) = @{ $count->() };
	sql("SELECT onside_attribution.attach('orders', 'two', mapper => 'to_event', becomes => 'NEW.cents > 0')");
	is_deeply($count->(), [ $events + 1, $remarks + 1 ], 'an event that takes two triggers is one, and is judged once');
	sql('ALTER TABLE users RENAME installation_id TO other');
	is(scalar(() = doctor() =~ /of the trigger onside2?_two on public\.orders is broken/g), 1, 'broken or not');
	sql('ALTER TABLE users RENAME other TO installation_id');
	sql("SELECT onside_attribution.detach('orders', 'two')");
	sql('ALTER FUNCTION to_event STABLE CALLED ON NULL INPUT');
	my $locker = $node->background_psql('postgres');
	$locker->query_safe('BEGIN; LOCK TABLE users');
	like(doctor(), qr/^t\|/, 'a table that is locked is no finding, and not waited for');
	$locker->query_safe('ROLLBACK');
	$locker->quit;
};

# To the API a second event with the same event_id is a repetition: that purchase is lost.
subtest 'events with the event_id of another one are told of' => sub {
	my $told = qr/WARNING:  mapper public\.lines_event gives the event_id of another event to/;
	sql(<<'SQL');
CREATE TABLE lines (id int PRIMARY KEY, n int, e int); -- names that our own query has, too
CREATE FUNCTION lines_event(l lines) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT p.* FROM generate_series(1, l.n), LATERAL onside_attribution.purchase('550e8400-e29b-41d4-a716-446655440000', 1, 'USD', now(), onside_attribution.event_id('lines', l.id::text)) p
$$;
SELECT onside_attribution.attach('lines', 'lines', mapper => 'lines_event');
SQL
	unlike(said('INSERT INTO lines SELECT i, 1 FROM generate_series(1, 2000) AS i'), $told, 'each has its own');
	unlike(doctor(), qr/another event/, 'and doctor() says nothing');
	like(said('INSERT INTO lines VALUES (0, 2)'), qr/$told 1 of 2 events/, 'a row');
	like(said('INSERT INTO lines SELECT i, 3 FROM generate_series(-20, -1) AS i'), qr/$told 40 of 60 events/, 'a statement');
	like(doctor(), qr/^t\|.*; mappers gave the event_id of another event to 41 events, which the API ignores/, 'doctor() counts them');
	sql('INSERT INTO lines SELECT i, 2 FROM generate_series(3000, 5000) AS i');
	my @told = said("CALL onside_attribution.backfill('lines', 'lines')") =~ /$told/g;
	is(@told, 1, 'a backfill tells it once');
	sql('DROP TABLE lines CASCADE');
	forget_all();
};

# A literal of a composite type is read by record_in, which checks the domains in it.
subtest 'doctor() runs no code of a user with the rights of whoever calls it' => sub {
	sql(<<'SQL');
CREATE ROLE mallory;
GRANT CREATE, USAGE ON SCHEMA public TO mallory;
GRANT USAGE ON SCHEMA onside_attribution TO mallory;
GRANT EXECUTE ON FUNCTION onside_attribution.attach, onside_attribution.track_row TO mallory;
SET ROLE mallory;
CREATE FUNCTION tell(int) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RAISE WARNING 'run as %', current_user; RETURN true; END $$;
CREATE DOMAIN telling AS int CHECK (tell(VALUE));
CREATE TYPE trap AS (t telling);
CREATE TABLE mine (id int PRIMARY KEY);
CREATE FUNCTION mine_event(m mine) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS
$$ SELECT NULL::uuid, to_jsonb('(1)'::trap), NULL::timestamptz, NULL::uuid $$;
SELECT onside_attribution.attach('mine', 'e', mapper => 'mine_event');
SQL
	my $said = said("SELECT detail FROM onside_attribution.doctor() WHERE check_name = 'attached'");
	like($said, qr/run as mallory/, 'it is run as the owner of the mapper');
	unlike($said, qr/run as (?!mallory)/, 'and as nobody else');
};

# Citus is not here: its catalogs are, as its documentation has them, and what it does to the table.
subtest 'a table that Citus takes in without distributing it' => sub {
	my ($doctor, $event) = split /\n/, sql(<<'SQL');
CREATE TABLE local_sale (id int PRIMARY KEY, cents int);
CREATE FUNCTION local_event(s local_sale) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT p.* FROM onside_attribution.purchase('550e8400-e29b-41d4-a716-446655440000', s.cents, 'USD') p $$;
\o /dev/null
SELECT onside_attribution.attach('local_sale', 'local', mapper => 'local_event');
\o
SET allow_system_table_mods = on;
INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion) VALUES (99999, 'citus', 10, 11, false, '0');
CREATE TABLE pg_catalog.pg_dist_partition (logicalrelid regclass, partmethod "char", repmodel "char");
CREATE TABLE pg_catalog.pg_dist_shard (logicalrelid regclass, shardid bigint);
SELECT pg_get_triggerdef(oid) AS trigger FROM pg_trigger WHERE tgname = 'onside_local' \gset
ALTER TABLE local_sale RENAME TO local_sale_102008;
CREATE TABLE local_sale (LIKE local_sale_102008 INCLUDING ALL);
:trigger;
INSERT INTO pg_dist_partition VALUES ('local_sale', 'n', 's');
INSERT INTO pg_dist_shard VALUES ('local_sale', 102008);
SELECT ok, detail FROM onside_attribution.doctor() WHERE check_name = 'attached';
TRUNCATE onside_attribution.outbox;
INSERT INTO local_sale_102008 VALUES (1, 990);
SELECT event_name, payload ->> 'amount' FROM onside_attribution.outbox;
SQL
	like($doctor, qr/^t\|/, 'its mapper is one of its shard, and found');
	is($event, 'local|990', 'and the shard reports');
	sql('ALTER FUNCTION local_event RENAME TO gone');
	like(doctor(), qr/^f\|.*mapper public\.local_event of the trigger onside_local on public\.local_sale does not exist/, 'one that is gone is missed');
};

done_testing();
