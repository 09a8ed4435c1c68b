-- backfill records what an attached table held before, once, by the rules of the
-- trigger; or says why it cannot.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup
SET onside_attribution.on_invalid_event = error;

\set user '''550e8400-e29b-41d4-a716-446655440000'''
CREATE VIEW progress AS
    SELECT source, event_name, recorded, skipped, dead_lettered, not_due, left_out, position, finished_at IS NOT NULL AS finished
    FROM onside_attribution.backfill_progress ORDER BY started_at;

-- Rows from before, and those that the trigger has reported already: each is one
-- event, whoever records it.  Without an installation_id they are none.
CREATE FUNCTION uid(n int) RETURNS uuid IMMUTABLE LANGUAGE sql AS $$SELECT ('0a0b0c0d-0001-4002-8003-' || to_char(n, 'fm000000000000'))::uuid$$;
CREATE TABLE purchases (id int PRIMARY KEY, gone int, install_id uuid, total numeric, paid_at timestamptz, uid uuid);
INSERT INTO purchases SELECT n, 0, CASE WHEN n <> 2 THEN :user::uuid END, n + 0.50, '2026-05-05 12:00+00'::timestamptz + n * interval '1 day', uid(n) FROM generate_series(1, 5) AS n;
ALTER TABLE purchases DROP gone;
ALTER TABLE purchases ADD status text DEFAULT 'paid';
SELECT onside_attribution.attach('purchases', 'bought', 'install_id', '{"amount": "total", "status": "status"}', 'paid_at', 'uid');
INSERT INTO purchases VALUES (6, :user, 6.50, '2026-05-05 12:00+00', uid(6), 'live'), (0, :user, 0.50, '2026-05-05 12:00+00', uid(0), 'live');
CALL onside_attribution.backfill('purchases', 'bought');
SELECT event_id, payload, event_datetime AT TIME ZONE 'UTC' AS datetime FROM onside_attribution.outbox ORDER BY xid, id;
SELECT * FROM progress;
-- What has come to its end begins anew, and makes no other events.
INSERT INTO purchases VALUES (-1, :user, 0.10, '2026-05-05 12:00+00', uid(99), 'live');
CALL onside_attribution.backfill('purchases', 'bought');
SELECT count(*), count(DISTINCT event_id) FROM onside_attribution.outbox;
SELECT * FROM progress;
-- since and until, both included, each with a progress of its own
TRUNCATE onside_attribution.outbox;
CALL onside_attribution.backfill('purchases', 'bought', since => '2026-05-08 12:00+00', until => '2026-05-09 12:00+00');
CALL onside_attribution.backfill('purchases', 'bought', since => '2026-05-09 12:00+00');
SELECT count(*), count(DISTINCT event_id) FROM onside_attribution.outbox;
SELECT source, event_name, role, since AT TIME ZONE 'UTC' AS since, until AT TIME ZONE 'UTC' AS until FROM onside_attribution.backfill_progress ORDER BY started_at;
TRUNCATE onside_attribution.outbox;

-- Without an event_id that belongs to the row it is refused; where a row has
-- none, the row is left out.
CREATE TABLE changed (id int PRIMARY KEY, install_id uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000', uid uuid);
INSERT INTO changed (id, uid) VALUES (1, NULL), (2, uid(2)), (3, uid(3));
INSERT INTO changed VALUES (4, NULL, NULL);
SELECT onside_attribution.attach('changed', 'without', 'install_id', '{"id": "id"}');
SELECT onside_attribution.attach('changed', 'with', 'install_id', '{"id": "id"}', event_id => 'uid');
CALL onside_attribution.backfill('changed', 'without');
CALL onside_attribution.backfill('changed', 'with');
SELECT event_id, payload FROM onside_attribution.outbox ORDER BY xid, id;
SELECT recorded, skipped, left_out FROM progress WHERE source = 'changed'::regclass;
TRUNCATE onside_attribution.outbox;

-- A table that is dropped leaves nothing behind for another one.
SELECT count(*) FROM onside_attribution.backfill_state WHERE event_name = 'with';
DROP TABLE changed;
CALL onside_attribution.backfill('purchases', 'bought', until => '2000-01-01');
SELECT count(*) FROM onside_attribution.backfill_state WHERE event_name = 'with';

-- The trigger's condition; OLD is NULL.
CREATE TABLE stati (id int PRIMARY KEY, install_id uuid, status text, paid_at timestamptz, uid uuid DEFAULT gen_random_uuid());
INSERT INTO stati VALUES (1, :user, 'new', NULL), (2, :user, 'paid', '2026-05-05 12:00+00'), (3, :user, NULL, NULL), (4, NULL, 'paid', NULL);
SELECT onside_attribution.attach('stati', 'new', 'install_id', '{"id": "id"}', event_id => 'uid', condition => 'NEW.status = ''paid'' AND NEW.tableoid = ''t.stati''::regclass');
SELECT onside_attribution.attach('stati', 'became', 'install_id', '{"id": "id"}', 'paid_at', 'uid', operation => 'UPDATE',
                                 condition => 'NEW.status = ''paid'' AND OLD.status IS DISTINCT FROM ''paid''');
SELECT onside_attribution.attach('stati', 'unknown', 'install_id', '{"id": "id"}', event_id => 'uid', operation => 'UPDATE', condition => 'NEW.status <> OLD.status');
CALL onside_attribution.backfill('stati', 'new');
CALL onside_attribution.backfill('stati', 'became');
CALL onside_attribution.backfill('stati', 'unknown');
SELECT event_name, payload FROM recorded;
TRUNCATE onside_attribution.outbox;

-- Invalid rows
CREATE TABLE invalid (id int PRIMARY KEY, install_id text, total numeric, at date DEFAULT '2026-05-05', uid uuid DEFAULT gen_random_uuid());
INSERT INTO invalid VALUES (1, :user, 1), (2, :user, 'NaN'), (3, 'no uuid', 3), (5, :user, 5);
INSERT INTO invalid VALUES (4, :user, 4, NULL);
SELECT onside_attribution.attach('invalid', 'e', 'install_id', '{"total": "total"}', 'at', 'uid');
CALL onside_attribution.backfill('invalid', 'e');
SELECT count(*) FROM onside_attribution.outbox;
SET onside_attribution.on_invalid_event = 'dead_letter';
SET client_min_messages = error;
CALL onside_attribution.backfill('invalid', 'e', '2026-01-01', '2026-12-31');
RESET client_min_messages;
SET onside_attribution.on_invalid_event = error;
SELECT payload FROM recorded;
SELECT payload, error FROM onside_attribution.dead_letter ORDER BY payload ->> 'total';
SELECT recorded, dead_lettered, finished FROM progress WHERE source = 'invalid'::regclass;
DELETE FROM onside_attribution.dead_letter;
TRUNCATE onside_attribution.outbox;

-- Keys of every sort, and more than one chunk
CREATE TABLE "Odd ""table""" ("a 'b'" text COLLATE "C", at timestamptz, d interval, install_id uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000', n int, uid uuid DEFAULT gen_random_uuid(), PRIMARY KEY ("a 'b'", at, d));
INSERT INTO "Odd ""table""" ("a 'b'", at, d, n) SELECT 'käse ''"\' || n % 7, '2026-05-05 12:00:00.000001+00'::timestamptz + n * interval '1 us', n * interval '1 day 1.5 s', n FROM generate_series(1, 2500) AS n;
SELECT onside_attribution.attach('"Odd ""table"""', 'odd', 'install_id', '{"n": "n"}', event_id => 'uid');
SET datestyle = 'German';
SET timezone = 'Asia/Kathmandu';
SET intervalstyle = 'sql_standard';
CALL onside_attribution.backfill('"Odd ""table"""', 'odd');
RESET datestyle;
RESET timezone;
RESET intervalstyle;
SELECT count(*), count(DISTINCT payload), count(DISTINCT event_id) FROM onside_attribution.outbox;
TRUNCATE onside_attribution.outbox;
CREATE TYPE colour AS ENUM ('red', 'blue', 'green');
CREATE TABLE by_enum (c colour, p char(5), install_id uuid, uid uuid DEFAULT gen_random_uuid(), UNIQUE (c, p));
INSERT INTO by_enum SELECT c, p, :user FROM unnest(enum_range(NULL::colour)) AS c, unnest('{a,b}'::char(5)[]) AS p;
SELECT onside_attribution.attach('by_enum', 'enum', 'install_id', '{"c": "c", "p": "p"}', event_id => 'uid');
-- (a unique index is a key only where its columns are NOT NULL)
CALL onside_attribution.backfill('by_enum', 'enum');
ALTER TABLE by_enum ALTER c SET NOT NULL, ALTER p SET NOT NULL;
CALL onside_attribution.backfill('by_enum', 'enum');
SELECT payload FROM recorded;
TRUNCATE onside_attribution.outbox;
-- More than a chunk of each, and where the name of a type without its length
-- means another one
CREATE DOMAIN ulid AS char(26) CHECK (length(VALUE) = 26);
CREATE FUNCTION keyed(type text, value text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TABLE %I (k %s PRIMARY KEY, n int, install_id uuid DEFAULT ''550e8400-e29b-41d4-a716-446655440000'', uid uuid DEFAULT gen_random_uuid())', 'by ' || type, type);
    EXECUTE format('INSERT INTO %I SELECT (%s)::%s, n FROM generate_series(1, 1001) AS n', 'by ' || type, value, type);
    PERFORM onside_attribution.attach(format('%I', 'by ' || type)::regclass, type, 'install_id', '{"n": "n"}', event_id => 'uid');
END
$$;
SELECT count(keyed(type, value)) FROM (VALUES
    ('char(26)', $$'01HX' || to_char(n, 'fm0000000000000000000000')$$), ('ulid', $$'01HX' || to_char(n, 'fm0000000000000000000000')$$),
    ('char(26)[]', $$ARRAY['01HX', to_char(n, 'fm0000')]$$), ('varchar(4)', $$to_char(n, 'fm0000')$$), ('name', $$to_char(n, 'fm0000')$$),
    ('bit(12)', 'n::bit(12)'), ('varbit', 'n::bit(12)'), ('bytea', $$decode(to_char(n, 'fm0000'), 'hex')$$),
    ('numeric(8,2)', 'n / 4.0'), ('real', 'n / 4.0'), ('double precision', 'n / 3.0'), ('oid', 'n'), ('smallint', 'n'), ('bigint', '-n'),
    ('date', $$'2026-05-05'::date + n$$), ('time(3)', $$'12:00'::time + n * interval '1 ms'$$), ('timestamptz(3)', $$'2026-05-05 12:00+00'::timestamptz + n * interval '1 ms'$$),
    ('timestamp', $$'2026-05-05'::timestamp + n * interval '1 us'$$), ('interval', $$n * interval '1.5 s'$$), ('inet', $$'10.0.0.0'::inet + n$$),
    ('uuid', $$('550e8400-e29b-41d4-a716-44665544' || to_char(n, 'fm0000'))$$), ('jsonb', 'to_jsonb(n)'), ('int4range', 'int4range(n, n + 1)')) AS types (type, value);
SET client_min_messages = warning;
SELECT format('CALL onside_attribution.backfill(%L, %L)', source, event_name) FROM onside_attribution.attached WHERE source::text LIKE '"by %' ORDER BY trigger_name COLLATE "C" \gexec
RESET client_min_messages;
SELECT event_name, count(*), count(DISTINCT event_id), count(DISTINCT payload) FROM onside_attribution.outbox GROUP BY 1 ORDER BY event_name COLLATE "C";
TRUNCATE onside_attribution.outbox;
-- A key whose text does not lead back to it ends in an error, and not never.
CREATE TYPE size AS ENUM ('small', 'large');
CREATE FUNCTION always_small(text) RETURNS size IMMUTABLE LANGUAGE sql AS $$SELECT 'small'::size$$;
CREATE CAST (text AS size) WITH FUNCTION always_small(text);
CREATE TABLE by_size (size size, n int, install_id uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000', uid uuid DEFAULT gen_random_uuid(), PRIMARY KEY (size, n));
INSERT INTO by_size SELECT 'large', n FROM generate_series(1, 1001) AS n;
SELECT onside_attribution.attach('by_size', 'size', 'install_id', '{"n": "n"}', event_id => 'uid');
CALL onside_attribution.backfill('by_size', 'size');
SELECT count(*) FROM onside_attribution.outbox;
DROP CAST (text AS size);
CALL onside_attribution.backfill('by_size', 'size');
SELECT count(*), count(DISTINCT payload) FROM onside_attribution.outbox;
TRUNCATE onside_attribution.outbox;
-- No key at all: a mapped event_id will do if it is NOT NULL.
CREATE TABLE keyless (install_id uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000', uid uuid DEFAULT gen_random_uuid());
INSERT INTO keyless SELECT FROM generate_series(1, 1500);
SELECT onside_attribution.attach('keyless', 'mapped', 'install_id', '{}', event_id => 'uid');
CALL onside_attribution.backfill('keyless', 'mapped');
ALTER TABLE keyless ALTER uid SET NOT NULL;
CALL onside_attribution.backfill('keyless', 'mapped');
SELECT count(*), count(DISTINCT event_id) FROM onside_attribution.outbox;
TRUNCATE onside_attribution.outbox;

-- Partitioned tables, also with columns in another order; a partition alone; and
-- of tables with inheritance children the rows of its own.
CREATE TABLE sales (id int, install_id uuid, total numeric, uid uuid DEFAULT gen_random_uuid(), PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE sales_1 PARTITION OF sales FOR VALUES FROM (0) TO (100);
CREATE TABLE sales_2 (gone int, total numeric, uid uuid, install_id uuid, id int NOT NULL);
ALTER TABLE sales_2 DROP gone;
ALTER TABLE sales ATTACH PARTITION sales_2 FOR VALUES FROM (100) TO (200);
INSERT INTO sales VALUES (1, :user, 1), (101, :user, 101), (150, :user, 150);
SELECT onside_attribution.attach('sales', 'sold', 'install_id', '{"total": "total"}', event_id => 'uid', condition => 'NEW.total <> 150');
SELECT onside_attribution.attach('sales_2', 'sold in part', 'install_id', '{"total": "total"}', event_id => 'uid');
CALL onside_attribution.backfill('sales', 'sold');
CALL onside_attribution.backfill('sales_2', 'sold in part');
CALL onside_attribution.backfill('sales_1', 'sold');
CREATE TABLE parent (id int PRIMARY KEY, install_id uuid, uid uuid DEFAULT gen_random_uuid());
CREATE TABLE child () INHERITS (parent);
INSERT INTO parent VALUES (1, :user);
INSERT INTO child VALUES (2, :user);
SELECT onside_attribution.attach('parent', 'parent', 'install_id', '{"id": "id"}', event_id => 'uid');
CALL onside_attribution.backfill('parent', 'parent');
SELECT event_name, payload FROM recorded;
TRUNCATE onside_attribution.outbox;

-- What it refuses
CALL onside_attribution.backfill(NULL, 'bought');
CALL onside_attribution.backfill('purchases', NULL);
CALL onside_attribution.backfill('purchases', 'nothing');
CALL onside_attribution.backfill('progress', 'nothing');
CALL onside_attribution.backfill('keyless', 'mapped', since => '2026-01-01');
BEGIN;
CALL onside_attribution.backfill('purchases', 'bought');
ROLLBACK;
SELECT try($$CALL onside_attribution.backfill('t.purchases', 'bought')$$);
SET default_transaction_read_only = on;
CALL onside_attribution.backfill('purchases', 'bought');
RESET default_transaction_read_only;
CREATE TABLE by_hand (id int PRIMARY KEY, install_id uuid, uid uuid);
CREATE TRIGGER "by hand" AFTER INSERT ON by_hand FOR EACH ROW EXECUTE FUNCTION onside_attribution.track_row('event_name=e', 'installation_id=install_id');
INSERT INTO by_hand VALUES (1, :user, '0a0b0c0d-0001-4002-8003-000000000001');
CALL onside_attribution.backfill('by_hand', 'e');
CREATE TRIGGER second AFTER INSERT ON by_hand FOR EACH ROW EXECUTE FUNCTION onside_attribution.track_row('event_name=e', 'installation_id=install_id');
CALL onside_attribution.backfill('by_hand', 'e');
DROP TRIGGER second ON by_hand;
DROP TRIGGER "by hand" ON by_hand;
CREATE TRIGGER "by hand" AFTER INSERT ON by_hand FOR EACH ROW EXECUTE FUNCTION onside_attribution.track_row('event_name=e', 'installation_id=install_id', 'event_id=uid');
CALL onside_attribution.backfill('by_hand', 'e');
SELECT count(*) FROM onside_attribution.outbox WHERE event_id = '0a0b0c0d-0001-4002-8003-000000000001';
TRUNCATE onside_attribution.outbox;
-- A key that changes midway: it begins anew.
CREATE TABLE rekeyed (id int PRIMARY KEY, total int NOT NULL, install_id uuid, uid uuid DEFAULT gen_random_uuid());
INSERT INTO rekeyed SELECT n, -n, :user FROM generate_series(1, 1500) AS n;
CREATE FUNCTION stumbles(int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF $1 = 1200 AND current_setting('t.stumble', true) = 'on' THEN RAISE 'stumbled'; END IF;
    RETURN true;
END
$$;
SELECT onside_attribution.attach('rekeyed', 'e', 'install_id', '{}', event_id => 'uid', condition => 'stumbles(NEW.id)');
SET t.stumble = on;
CALL onside_attribution.backfill('rekeyed', 'e');
SET t.stumble = off;
SELECT recorded, finished FROM progress WHERE source = 'rekeyed'::regclass;
ALTER TABLE rekeyed DROP CONSTRAINT rekeyed_pkey, ADD PRIMARY KEY (total);
CALL onside_attribution.backfill('rekeyed', 'e');
SELECT recorded, finished FROM progress WHERE source = 'rekeyed'::regclass;
SELECT count(*), count(DISTINCT event_id) FROM onside_attribution.outbox;
TRUNCATE onside_attribution.outbox;

-- Whoever calls it reads the rows: with his privileges, row security and
-- functions, and with a progress of his own where row security applies.
CREATE ROLE regress_onside_backfill;
GRANT USAGE ON SCHEMA t, onside_attribution TO regress_onside_backfill;
GRANT EXECUTE ON PROCEDURE onside_attribution.backfill TO regress_onside_backfill;
CREATE TABLE rows_of (id int PRIMARY KEY, install_id uuid, owner name, uid uuid DEFAULT gen_random_uuid());
INSERT INTO rows_of VALUES (1, :user, 'regress_onside_backfill'), (2, :user, 'another'), (3, :user, 'regress_onside_backfill');
CREATE FUNCTION tells_user() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE 'run by %, search_path %, role %', current_user, current_setting('search_path'), current_setting('session_replication_role');
    RETURN true;
END
$$;
SELECT onside_attribution.attach('rows_of', 'e', 'install_id', '{"id": "id"}', event_id => 'uid', condition => 'tells_user()');
SET ROLE regress_onside_backfill;
CALL onside_attribution.backfill('rows_of', 'e');
RESET ROLE;
GRANT SELECT ON rows_of TO regress_onside_backfill;
ALTER TABLE rows_of ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON rows_of USING (owner = current_user);
SET ROLE regress_onside_backfill;
CALL onside_attribution.backfill('rows_of', 'e');
RESET ROLE;
SELECT payload FROM recorded;
CALL onside_attribution.backfill('rows_of', 'e');
SELECT event_name, count(*), count(DISTINCT event_id) FROM onside_attribution.outbox GROUP BY 1;
SELECT source, role, recorded FROM onside_attribution.backfill_progress WHERE source = 'rows_of'::regclass ORDER BY started_at;
DROP OWNED BY regress_onside_backfill;
DROP ROLE regress_onside_backfill;
TRUNCATE onside_attribution.outbox;
