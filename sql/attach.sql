-- attach makes the trigger that a careful DBA would write, or says what is
-- wrong with what it was asked for; detach drops it, and attached lists them.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup

\set user '''550e8400-e29b-41d4-a716-446655440000'''
CREATE TABLE purchases (id int PRIMARY KEY, install_id uuid, currency text, total numeric, status text, paid_at timestamptz DEFAULT '2026-05-05 12:00+00', uid uuid UNIQUE, flag boolean);
CREATE VIEW triggers AS
    SELECT tgrelid::regclass AS source, regexp_replace(pg_get_triggerdef(oid), 'namespace=[0-9a-f-]+', 'namespace=...') AS definition FROM pg_trigger
    WHERE tgfoid = 'onside_attribution.track_row()'::regprocedure AND tgparentid = 0 ORDER BY tgname COLLATE "C";

-- At statement level where that sees all rows, at row level elsewhere
SELECT onside_attribution.attach('purchases', 'purchase_completed', 'install_id', '{"currency": "currency", "amount": "total"}', 'paid_at', 'uid');
SELECT onside_attribution.attach(source => 'purchases', event_name => 'updated', installation_id => 'install_id', payload => '{}', operation => 'UPDATE');
SELECT onside_attribution.attach('purchases', 'written', 'install_id', '{}', operation => 'insert or Update');
SELECT onside_attribution.attach('purchases', 'paid', 'install_id', '{"amount": "total"}', operation => 'UPDATE',
                                 condition => 'NEW.status = ''paid'' AND OLD.status IS DISTINCT FROM ''paid''');
SELECT onside_attribution.attach('purchases', 'dear', 'install_id', '{"amount": "total"}', condition => 'new.total > 100 -- and a comment');
SELECT definition FROM triggers;
SELECT * FROM onside_attribution.attached ORDER BY event_name;
INSERT INTO purchases VALUES (1, :user, 'USD', 9.90, 'new'), (2, :user, 'EUR', 101, 'paid');
UPDATE purchases SET status = 'paid';
SELECT event_name, payload FROM recorded ORDER BY event_name, payload ->> 'amount';
TRUNCATE onside_attribution.outbox;
-- The same event twice
SELECT try($$SELECT onside_attribution.attach('purchases', 'purchase_completed', 'install_id', '{}')$$);
-- Disabled is not detached.
ALTER TABLE purchases DISABLE TRIGGER onside_dear;
SELECT event_name, enabled FROM onside_attribution.attached WHERE NOT enabled;

-- detach drops what it is told to and says whether there was anything.
SELECT onside_attribution.detach('purchases', 'purchase_completed');
SELECT onside_attribution.detach('purchases', 'purchase_completed');
SELECT onside_attribution.detach('purchases', 'PAID');
SELECT onside_attribution.detach('purchases', 'written'), onside_attribution.detach('purchases', 'updated'),
       onside_attribution.detach('purchases', 'paid'), onside_attribution.detach('purchases', 'dear');
SELECT count(*) FROM triggers;
INSERT INTO purchases VALUES (3, :user, 'USD', 1000, 'paid');
SELECT count(*) FROM onside_attribution.outbox;
-- Also one that was made by hand, whatever its name is; and of one that nobody
-- understands it is not confused.
CREATE TRIGGER "by hand" AFTER INSERT ON purchases FOR EACH ROW
EXECUTE FUNCTION onside_attribution.track_row('event_name=manual', 'installation_id=install_id', 'payload.x=total');
CREATE TRIGGER broken AFTER INSERT ON purchases FOR EACH ROW EXECUTE FUNCTION onside_attribution.track_row('nonsense');
SELECT trigger_name, event_name, payload, operation, level FROM onside_attribution.attached ORDER BY trigger_name;
SELECT onside_attribution.detach('purchases', 'manual');
SELECT definition FROM triggers;
DROP TRIGGER broken ON purchases;
SELECT try('SELECT onside_attribution.detach(NULL, ''e'')');
SELECT try('SELECT onside_attribution.detach(''purchases'', NULL)');
CREATE VIEW v AS SELECT * FROM purchases;
SELECT onside_attribution.detach('v', 'e');

-- What attach refuses
CREATE FUNCTION attach_try(source text DEFAULT '''purchases''', event_name text DEFAULT '''e''', installation_id text DEFAULT '''install_id''',
                           payload text DEFAULT '''{}''', rest text DEFAULT '') RETURNS text
LANGUAGE sql AS $$
    SELECT t.try(concat('SELECT onside_attribution.attach(', source, ', ', event_name, ', ', installation_id, ', ', payload, rest, ')'))
$$;
SELECT attach_try(source => 'NULL');
SELECT attach_try(event_name => 'NULL');
SELECT attach_try(installation_id => 'NULL');
SELECT attach_try(payload => 'NULL');
SELECT attach_try(rest => ', operation => NULL');
SELECT attach_try(event_name => '''''');
SELECT attach_try(event_name => 'E''a\n''');
SELECT attach_try(event_name => 'repeat(''x'', 256)');
SELECT attach_try(installation_id => '''nowhere''');
SELECT attach_try(installation_id => '''total''');
SELECT attach_try(installation_id => '''''');
SELECT attach_try(installation_id => '''Install_ID''');
SELECT attach_try(payload => '''[]''');
SELECT attach_try(payload => '''"currency"''');
SELECT attach_try(payload => '''{"a": 1}''');
SELECT attach_try(payload => '''{"a": null}''');
SELECT attach_try(payload => '''{"a": {"b": "total"}}''');
SELECT attach_try(payload => '''{"a": ""}''');
SELECT attach_try(payload => '''{"a": "nowhere"}''');
SELECT attach_try(payload => '''{"a": "tableoid"}''');
SELECT attach_try(payload => '''{"a=b": "total"}''');
SELECT attach_try(payload => '(SELECT jsonb_object_agg(n, ''total'') FROM generate_series(1, 1601) AS n)');
SELECT attach_try(rest => ', event_datetime => ''nowhere''');
SELECT attach_try(rest => ', event_datetime => ''total''');
SELECT attach_try(rest => ', event_id => ''nowhere''');
SELECT attach_try(rest => ', event_id => ''flag''');
SELECT attach_try(rest => ', operation => ''DELETE''');
SELECT attach_try(rest => ', operation => ''''');
SELECT attach_try(rest => ', operation => ''UPDATE OR INSERT''');
SELECT attach_try(rest => ', operation => ''INSERT ON purchases''');
CREATE MATERIALIZED VIEW m AS SELECT * FROM purchases;
SELECT attach_try(source => '''nowhere''');
SELECT attach_try(source => '0');
SELECT attach_try(source => '4294967295');
-- Conditions: one boolean expression over NEW and OLD
CREATE FUNCTION condition_try(condition text, operation text DEFAULT 'UPDATE') RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    result := t.attach_try(rest => format(', operation => %L, condition => %L', operation, condition));
    IF onside_attribution.detach('t.purchases', 'e') THEN
        result := result || ' (attached)';
    END IF;
    RETURN result;
END
$$;
SELECT condition_try('');
SELECT condition_try(' ');
SELECT condition_try('-- nothing');
SELECT condition_try('NEW.flag');
SELECT condition_try('NEW.total');
SELECT condition_try('NEW.nowhere = 1');
SELECT condition_try('total > 1');
SELECT condition_try('NEW.total > ''x''');
SELECT condition_try('NEW.total > $1');
SELECT condition_try('nowhere(NEW.total)');
SELECT condition_try('OLD.flag', 'INSERT');
SELECT condition_try('NEW.flag AND OLD IS NULL', 'INSERT');
SELECT condition_try('OLD.flag', 'INSERT OR UPDATE');
SELECT condition_try('OLD.* IS DISTINCT FROM NEW.*');
SELECT condition_try('NEW IS NOT NULL', 'INSERT');
SELECT condition_try('NEW.tableoid = 5');
SELECT condition_try('EXISTS (SELECT FROM purchases)');
SELECT condition_try('NEW.total > (SELECT 1)');
SELECT condition_try('count(*) > 1');
SELECT condition_try('row_number() OVER () > 1');
SELECT condition_try('generate_series(1, 2) > 1');
SELECT condition_try('true) EXECUTE FUNCTION pg_sleep() --');
SELECT condition_try('true) EXECUTE FUNCTION onside_attribution.track_row(''event_name=forged''');
SELECT condition_try('true); DROP TABLE purchases; SELECT (true');
SELECT condition_try('true) FROM purchases; --');
SELECT condition_try('true) FROM (SELECT 1) AS x WHERE (true');
SELECT condition_try('true) UNION SELECT (true');
SELECT condition_try('true) INTO TABLE x --');
SELECT condition_try('true) LIMIT (1');
SELECT condition_try('true) WINDOW w AS (');
SELECT condition_try('true), (true');
SELECT condition_try('true) AS x, (true');
SELECT condition_try('true) AS x');
SELECT condition_try('true) AND (false');
SELECT condition_try('true /* open');
SELECT condition_try('''unterminated');
SELECT condition_try('*');
SELECT condition_try('VALUES (true)');
SELECT condition_try('SELECT true');
SELECT count(*) FROM triggers;
SELECT count(*) FROM purchases;
-- An error points into the condition.
SELECT onside_attribution.attach('purchases', 'e', 'install_id', '{}', condition => 'NEW.total >');
SELECT onside_attribution.attach('purchases', 'e', 'install_id', '{}', condition => 'NEW.flag AND OLD.flag');
SELECT onside_attribution.attach('purchases', 'e', 'install_id', '{}', condition => 'NEW.flag AND NEW.nowhere');
-- The trigger depends on what its condition refers to, as CREATE TRIGGER's.
CREATE FUNCTION interesting(numeric) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT $1 > 5';
SELECT onside_attribution.attach('purchases', 'e', 'install_id', '{}', condition => 'interesting(NEW.total) AND NEW.flag IS NULL');
SELECT definition FROM triggers;
SELECT try('DROP FUNCTION interesting');
SELECT try('ALTER TABLE purchases DROP flag');
INSERT INTO purchases VALUES (10, :user, 'USD', 4), (11, :user, 'USD', 6), (12, NULL, 'USD', 7);
SELECT count(*) FROM onside_attribution.outbox;
ALTER TABLE purchases DROP flag CASCADE;
SELECT count(*) FROM triggers;
TRUNCATE onside_attribution.outbox;

-- Names of every sort
CREATE SCHEMA "Odd ""schema""";
CREATE TABLE "Odd ""schema"""."Odd 'table'" ("Install ""id""" uuid, "käse=5" text, "select" int);
SELECT onside_attribution.attach('"Odd ""schema"""."Odd ''table''"', 'Odd "event" \ ''é''', 'Install "id"', '{"a \"key\"": "käse=5", "ключ\\": "select", "": "select", "payload.x": "select"}',
                                 condition => 'NEW."select" > 0');
SELECT * FROM triggers;
SELECT source, event_name, trigger_name, installation_id, payload, condition FROM onside_attribution.attached;
INSERT INTO "Odd ""schema"""."Odd 'table'" VALUES (:user, '%s %n \000', 1);
SELECT event_name, payload FROM recorded;
SELECT onside_attribution.detach('"Odd ""schema"""."Odd ''table''"', 'Odd "event" \ ''é''');
SELECT count(*) FROM triggers;
DROP SCHEMA "Odd ""schema""" CASCADE;
TRUNCATE onside_attribution.outbox;
-- A name longer than that of a trigger can be; those that begin alike differ.
CREATE FUNCTION long_name(event_name text) RETURNS text LANGUAGE sql AS $$
    SELECT format('%s bytes: %s...', octet_length(name::text), left(name::text, 30)) FROM onside_attribution.attach('t.purchases', event_name, 'install_id', '{}') AS name
$$;
SELECT long_name(repeat('x', 56));
SELECT long_name(repeat('x', 57));
SELECT long_name(repeat('x', 58));
SELECT long_name(repeat('x', 255));
SELECT long_name(repeat('ж', 255));
SELECT long_name('a' || repeat('ж', 254));
SELECT count(*), count(DISTINCT trigger_name) FROM onside_attribution.attached;
INSERT INTO purchases VALUES (20, :user);
SELECT left(event_name, 5), length(event_name) FROM recorded ORDER BY 2, 1;
SELECT onside_attribution.detach('purchases', repeat('x', 57)), onside_attribution.detach('purchases', repeat('ж', 255));
SELECT left(event_name, 5), length(event_name) FROM onside_attribution.attached ORDER BY 2, 1;
TRUNCATE onside_attribution.outbox;

-- Partitioned tables, partitions, parents and children: row level
CREATE TABLE parted (id int, install_id uuid) PARTITION BY LIST (id);
CREATE TABLE part_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE base (install_id uuid);
CREATE TABLE derived () INHERITS (base);
SELECT onside_attribution.attach('parted', 'parted', 'install_id', '{"id": "id"}');
SELECT onside_attribution.attach('part_1', 'part', 'install_id', '{}');
SELECT onside_attribution.attach('base', 'base', 'install_id', '{}');
SELECT onside_attribution.attach('derived', 'derived', 'install_id', '{}', operation => 'UPDATE');
SELECT source, event_name, level FROM onside_attribution.attached WHERE source <> 'purchases'::regclass ORDER BY event_name;
INSERT INTO parted VALUES (1, :user);
SELECT event_name FROM recorded ORDER BY 1;
-- A partition's clone belongs to the parent.
SELECT onside_attribution.detach('part_1', 'parted');
SELECT onside_attribution.detach('parted', 'parted'), onside_attribution.detach('part_1', 'part');
SELECT count(*) FROM pg_trigger WHERE tgrelid IN ('parted'::regclass, 'part_1'::regclass);
TRUNCATE onside_attribution.outbox;

-- An UPDATE that moves a row to another partition is none to triggers: attach
-- warns, since the row can be an event whatever the condition depends on.
CREATE TABLE moving (id int, install_id uuid, status text, paid_on date, total numeric, uid uuid) PARTITION BY LIST (status);
CREATE TABLE moving_new PARTITION OF moving FOR VALUES IN ('new');
CREATE TABLE moving_paid (uid uuid, gone int, paid_on date, total numeric, status text, install_id uuid, id int) PARTITION BY RANGE ((paid_on + 1));
ALTER TABLE moving_paid DROP gone;
ALTER TABLE moving ATTACH PARTITION moving_paid FOR VALUES IN ('paid');
CREATE TABLE moving_paid_rest PARTITION OF moving_paid DEFAULT;
SELECT onside_attribution.attach('moving', 'paid', 'install_id', '{"id": "id"}', operation => 'UPDATE', condition => 'NEW.status = ''paid'' AND OLD.status IS DISTINCT FROM ''paid''');
\set VERBOSITY terse
SELECT onside_attribution.attach('moving', 'was new', 'install_id', '{"id": "id"}', operation => 'UPDATE', condition => 'OLD.status = ''new''');
SELECT onside_attribution.attach('moving', 'dated', 'install_id', '{}', 'paid_on', operation => 'UPDATE', condition => 'NEW.total > 5');
SELECT onside_attribution.attach('moving', 'with date', 'install_id', '{"on": "paid_on"}', operation => 'UPDATE', condition => 'NEW.total > 5');
SELECT onside_attribution.attach('moving', 'changed', 'install_id', '{"id": "id"}', operation => 'UPDATE', condition => 'OLD.* IS DISTINCT FROM NEW.*');
SELECT onside_attribution.attach('moving', 'any', 'install_id', '{"id": "id"}', operation => 'UPDATE');
SELECT onside_attribution.attach('moving', 'dear', 'install_id', '{"id": "id", "uid": "uid"}', operation => 'UPDATE', condition => 'NEW.total > 5 AND OLD.total <= 5 AND NEW.tableoid <> 1');
\set VERBOSITY default
-- (and not where an INSERT fires the trigger, too)
SELECT onside_attribution.attach('moving', 'both', 'install_id', '{"id": "id"}', 'paid_on', 'uid', 'INSERT OR UPDATE', 'NEW.status = ''paid''');
SELECT onside_attribution.attach('moving', 'once', 'install_id', '{"id": "id"}', event_id => 'id');
-- One of INSERT is reported again, as another event.
SELECT onside_attribution.attach('moving', 'inserted', 'install_id', '{"id": "id"}');
INSERT INTO moving VALUES (1, :user, 'new', '2026-05-05', 1, '0a0b0c0d-0001-4002-8003-000000000001');
UPDATE moving SET status = 'paid', total = 6;
UPDATE moving SET paid_on = '2026-05-06';
SELECT event_name, count(*), count(DISTINCT event_id) FROM onside_attribution.outbox GROUP BY 1 ORDER BY 1;
DROP TABLE moving;
TRUNCATE onside_attribution.outbox;

-- An unlogged one can lose what it has reported.
CREATE UNLOGGED TABLE unlogged (install_id uuid);
SELECT onside_attribution.attach('unlogged', 'unlogged', 'install_id', '{}');
-- In a transaction that is rolled back
BEGIN;
SELECT onside_attribution.attach('base', 'rolled back', 'install_id', '{}');
ROLLBACK;
SELECT count(*) FROM onside_attribution.attached WHERE event_name = 'rolled back';
BEGIN READ ONLY;
SELECT try($$SELECT onside_attribution.attach('base', 'e', 'install_id', '{}')$$);
ROLLBACK;
-- DROP EXTENSION takes the triggers with it only if told so.
SELECT try('DROP EXTENSION onside_attribution');
