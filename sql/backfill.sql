-- backfill records what an attached table held before, once, by the rules of the
-- trigger; or says why it cannot.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup
SET onside_attribution.on_invalid_event = error;

\set user '''550e8400-e29b-41d4-a716-446655440000'''
CREATE VIEW progress AS
    SELECT source, event_name, rows_read, recorded, skipped, dead_lettered, not_due, finished_at IS NOT NULL AS finished
    FROM onside_attribution.backfill_progress ORDER BY started_at;

-- Rows from before, and those that the trigger has reported already: each is one
-- event, whoever records it.  Without an installation_id they are none.
CREATE FUNCTION uid(n int) RETURNS uuid IMMUTABLE LANGUAGE sql AS $$SELECT ('0a0b0c0d-0001-4002-8003-' || to_char(n, 'fm000000000000'))::uuid$$;
CREATE TABLE purchases (id int PRIMARY KEY, gone int, install_id uuid, total numeric, paid_at timestamptz, uid uuid UNIQUE);
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
SELECT source, event_name, since AT TIME ZONE 'UTC' AS since, until AT TIME ZONE 'UTC' AS until FROM onside_attribution.backfill_progress ORDER BY started_at;
TRUNCATE onside_attribution.outbox;

-- Without an event_id that belongs to the row it is an error, whatever on_invalid_event
-- says.  A row without an installation_id needs none.
CREATE TABLE changed (id int PRIMARY KEY, install_id uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000', uid uuid UNIQUE, code text UNIQUE);
INSERT INTO changed VALUES (1, NULL, NULL, NULL), (2, DEFAULT, uid(2), 'two'), (3, DEFAULT, NULL, '');
SET client_min_messages = error;
SELECT onside_attribution.attach('changed', 'without', 'install_id', '{"id": "id"}');
SELECT onside_attribution.attach('changed', 'with', 'install_id', '{"id": "id"}', event_id => 'uid');
SELECT onside_attribution.attach('changed', 'code', 'install_id', '{"id": "id"}', event_id => 'code');
RESET client_min_messages;
CALL onside_attribution.backfill('changed', 'without');
CALL onside_attribution.backfill('changed', 'with');
SET onside_attribution.on_invalid_event = dead_letter;
CALL onside_attribution.backfill('changed', 'with');
CALL onside_attribution.backfill('changed', 'code');
SET onside_attribution.on_invalid_event = error;
SELECT count(*) FROM onside_attribution.outbox;
SELECT count(*) FROM onside_attribution.dead_letter;
UPDATE changed SET uid = uid(3) WHERE id = 3;
CALL onside_attribution.backfill('changed', 'with');
SELECT event_id, payload FROM onside_attribution.outbox ORDER BY xid, id;
SELECT recorded, skipped FROM progress WHERE event_name = 'with';
-- A mapped column that is not there any more does not make a dead letter of each row.
SET client_min_messages = error;
ALTER TABLE changed DROP id;
RESET client_min_messages;
CALL onside_attribution.backfill('changed', 'with');
TRUNCATE onside_attribution.outbox;

-- A table that is dropped leaves nothing behind for another one.
SELECT count(*) FROM onside_attribution.backfill_state WHERE event_name = 'with';
DROP TABLE changed;
CALL onside_attribution.backfill('purchases', 'bought', until => '2000-01-01');
SELECT count(*) FROM onside_attribution.backfill_state WHERE event_name = 'with';

-- The trigger's condition; OLD is NULL.
CREATE TABLE stati (id int PRIMARY KEY, install_id uuid, status text, paid_at timestamptz, uid uuid DEFAULT gen_random_uuid() UNIQUE);
INSERT INTO stati VALUES (1, :user, 'new', NULL), (2, :user, 'paid', '2026-05-05 12:00+00'), (3, :user, NULL, NULL), (4, NULL, 'paid', NULL);
SELECT onside_attribution.attach('stati', 'new', 'install_id', '{"id": "id"}', event_id => 'uid', condition => 'NEW.status = ''paid'' AND NEW.tableoid = ''t.stati''::regclass');
SELECT onside_attribution.attach('stati', 'became', 'install_id', '{"id": "id"}', 'paid_at', 'uid', operation => 'UPDATE',
                                 condition => 'NEW.status = ''paid'' AND OLD.status IS DISTINCT FROM ''paid''');
SELECT onside_attribution.attach('stati', 'unknown', 'install_id', '{"id": "id"}', event_id => 'uid', operation => 'UPDATE', condition => 'NEW.status <> OLD.status');
CALL onside_attribution.backfill('stati', 'new');
CALL onside_attribution.backfill('stati', 'became');
CALL onside_attribution.backfill('stati', 'unknown');
-- With a trigger each for INSERT and UPDATE it is that of INSERT.
SET client_min_messages = error;
SELECT onside_attribution.attach('stati', 'becomes', 'install_id', '{"id": "id"}', event_id => 'uid', becomes => 'NEW.status = ''paid''');
SELECT onside_attribution.attach('stati', 'either', 'install_id', '{"id": "id"}', event_id => 'uid', operation => 'INSERT OR UPDATE', condition => 'OLD.status <> NEW.status');
RESET client_min_messages;
CALL onside_attribution.backfill('stati', 'becomes');
CALL onside_attribution.backfill('stati', 'either');
SELECT event_name, payload FROM recorded;
TRUNCATE onside_attribution.outbox;

-- Invalid rows
CREATE TABLE invalid (id int PRIMARY KEY, install_id text, total numeric, at date DEFAULT '2026-05-05', uid uuid DEFAULT gen_random_uuid() UNIQUE);
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

-- Names of every sort, any settings, and more than one chunk
CREATE TABLE "Odd ""table""" ("a 'b'" text COLLATE "C", at timestamptz, d interval, install_id uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000', n int, uid uuid DEFAULT gen_random_uuid() UNIQUE, PRIMARY KEY ("a 'b'", at, d));
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
-- Partitioned tables, also with columns in another order; a partition alone; and
-- of tables with inheritance children the rows of its own.
CREATE TABLE sales (id int, install_id uuid, total numeric, uid uuid DEFAULT gen_random_uuid(), PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE sales_1 PARTITION OF sales FOR VALUES FROM (0) TO (100);
CREATE TABLE sales_2 (gone int, total numeric, uid uuid, install_id uuid, id int NOT NULL);
ALTER TABLE sales_2 DROP gone;
ALTER TABLE sales ATTACH PARTITION sales_2 FOR VALUES FROM (100) TO (200);
INSERT INTO sales VALUES (1, :user, 1), (101, :user, 101), (150, :user, 150);
-- (the partitions alone know which value it has in older rows)
ALTER TABLE sales ADD currency text DEFAULT 'USD';
SET client_min_messages = error;
SELECT onside_attribution.attach('sales', 'sold', 'install_id', '{"total": "total", "currency": "currency"}', event_id => 'uid', condition => 'NEW.total <> 150');
SELECT onside_attribution.attach('sales_2', 'sold in part', 'install_id', '{"total": "total"}', event_id => 'uid');
RESET client_min_messages;
CALL onside_attribution.backfill('sales', 'sold');
CALL onside_attribution.backfill('sales_2', 'sold in part');
CALL onside_attribution.backfill('sales_1', 'sold');
CREATE TABLE parent (id int PRIMARY KEY, install_id uuid, uid uuid DEFAULT gen_random_uuid() UNIQUE);
CREATE TABLE child () INHERITS (parent);
INSERT INTO parent VALUES (1, :user);
INSERT INTO child VALUES (2, :user);
SELECT onside_attribution.attach('parent', 'parent', 'install_id', '{"id": "id"}', event_id => 'uid');
CALL onside_attribution.backfill('parent', 'parent');
SELECT event_name, payload FROM recorded;
TRUNCATE onside_attribution.outbox;

-- Mappers: what they return is taken as from a trigger, but event_id and event_datetime
-- must be the row's.
CREATE TABLE users (id int PRIMARY KEY, install_id uuid);
INSERT INTO users VALUES (1, :user), (2, NULL);
CREATE TABLE orders (id int PRIMARY KEY, user_id int, cents int, paid_at timestamptz);
INSERT INTO orders SELECT n, 1 + (n % 10 = 0)::int, n, '2026-05-05 12:00+00'::timestamptz + n * interval '1 s' FROM generate_series(1, 2100) AS n;
CREATE FUNCTION bought(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT p.* FROM users u, LATERAL onside_attribution.purchase(u.install_id, onside_attribution.amount(o.cents, 2), 'usd', o.paid_at, onside_attribution.event_id('orders', o.id::text)) p
    WHERE u.id = o.user_id AND o.id % 7 <> 0
$$;
CREATE FUNCTION nameless(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT u.install_id, '{}'::jsonb, CASE WHEN o.id <> 2090 THEN o.paid_at END, CASE WHEN o.id <> 1090 THEN onside_attribution.event_id('orders', o.id::text) END FROM users u
$$;
CREATE FUNCTION fails(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT u.install_id, '{}'::jsonb, o.paid_at, onside_attribution.event_id('fails', o.id::text) FROM users u WHERE u.id = 1 AND 1 / (o.id - 1500) IS NOT NULL
$$;
SET client_min_messages = error;
SELECT onside_attribution.attach('orders', e, mapper => e::regproc) FROM unnest('{bought,nameless,fails}'::text[]) AS e;
RESET client_min_messages;
CALL onside_attribution.backfill('orders', 'bought');
SELECT count(*), count(DISTINCT event_id), min(payload::text), bool_and(event_id IN (SELECT onside_attribution.event_id('orders', id::text) FROM orders)) FROM onside_attribution.outbox;
SELECT * FROM progress WHERE source = 'orders'::regclass;
CALL onside_attribution.backfill('orders', 'bought', since => '2026-05-05 12:01+00', until => '2026-05-05 12:01:09+00');
CALL onside_attribution.backfill('orders', 'nameless');
SELECT * FROM progress WHERE event_name = 'nameless';
DELETE FROM orders WHERE id = 1090;
CALL onside_attribution.backfill('orders', 'nameless');
-- An invalid event of one row of many, and of one of few
CREATE OR REPLACE FUNCTION nameless(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT u.install_id, CASE WHEN o.id <> 2095 THEN '{}'::jsonb END, o.paid_at, onside_attribution.event_id('orders', o.id::text) FROM users u
$$;
CALL onside_attribution.backfill('orders', 'nameless');
CREATE TABLE few (LIKE orders INCLUDING ALL);
INSERT INTO few SELECT * FROM orders WHERE id > 2088;
CREATE FUNCTION of_few(f few) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT '550e8400-e29b-41d4-a716-446655440000'::uuid, CASE WHEN f.id <> 2095 THEN '{}'::jsonb END, CASE WHEN f.id <> 2090 THEN f.paid_at END, onside_attribution.event_id('few', f.id::text)
$$;
SET client_min_messages = error;
SELECT onside_attribution.attach('few', 'few', mapper => 'of_few');
RESET client_min_messages;
CALL onside_attribution.backfill('few', 'few');
DELETE FROM few WHERE id < 2091;
CALL onside_attribution.backfill('few', 'few');
DROP TABLE few CASCADE;
CALL onside_attribution.backfill('orders', 'fails');
SET onside_attribution.on_invalid_event = dead_letter;
SET client_min_messages = error;
CALL onside_attribution.backfill('orders', 'fails');
RESET client_min_messages;
SET onside_attribution.on_invalid_event = error;
SELECT * FROM progress WHERE event_name = 'fails';
SELECT event_name, error FROM onside_attribution.dead_letter;
DELETE FROM onside_attribution.dead_letter;
TRUNCATE onside_attribution.outbox;

-- Of several events of a row each is counted
CREATE TABLE series (id int PRIMARY KEY, install_id uuid, first date);
INSERT INTO series VALUES (1, :user, '2026-05-01'), (2, :user, '2026-05-03'), (3, NULL, '2026-05-01'), (4, :user, NULL), (5, :user, '2026-05-01');
CREATE FUNCTION episodes(s series) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT p.* FROM generate_series(0, 2) n, LATERAL onside_attribution.purchase(s.install_id, 1, 'USD', s.first + n * interval '1 day', onside_attribution.event_id('series', s.id::text, n::text)) p WHERE s.first IS NOT NULL
$$;
SET client_min_messages = error;
SELECT onside_attribution.attach('series', 'episode', mapper => 'episodes', condition => 'NEW.id < 5');
RESET client_min_messages;
CALL onside_attribution.backfill('series', 'episode', since => '2026-05-02', until => '2026-05-03');
SELECT recorded, skipped, dead_lettered, not_due FROM progress WHERE event_name = 'episode';
TRUNCATE onside_attribution.outbox;

-- What it refuses
CALL onside_attribution.backfill(NULL, 'bought');
CALL onside_attribution.backfill('purchases', NULL);
CALL onside_attribution.backfill('purchases', 'nothing');
CALL onside_attribution.backfill('progress', 'nothing');
CALL onside_attribution.backfill('parent', 'parent', since => '2026-01-01');
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
-- It goes on where it was stopped; a table that is rewritten meanwhile is read anew.
CREATE TABLE stopped (id int PRIMARY KEY, total int, install_id uuid, uid uuid DEFAULT gen_random_uuid() UNIQUE);
INSERT INTO stopped SELECT n, -n, :user FROM generate_series(1, 1500) AS n;
CREATE FUNCTION stumbles(int) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF $1 = 1200 AND current_setting('t.stumble', true) = 'on' THEN RAISE 'stumbled'; END IF;
    RETURN true;
END
$$;
SELECT onside_attribution.attach('stopped', 'e', 'install_id', '{}', event_id => 'uid', condition => 'stumbles(NEW.id)');
SET t.stumble = on;
CALL onside_attribution.backfill('stopped', 'e');
SET t.stumble = off;
SELECT rows_read, recorded, finished FROM progress WHERE source = 'stopped'::regclass;
CALL onside_attribution.backfill('stopped', 'e');
SELECT count(*), count(DISTINCT event_id) FROM onside_attribution.outbox;
TRUNCATE onside_attribution.outbox;
SET t.stumble = on;
CALL onside_attribution.backfill('stopped', 'e');
SET t.stumble = off;
ALTER TABLE stopped ALTER total TYPE bigint;
CALL onside_attribution.backfill('stopped', 'e');
SELECT count(*), count(DISTINCT event_id) FROM onside_attribution.outbox;
TRUNCATE onside_attribution.outbox;

-- Whoever calls it reads the rows: with his privileges and functions, and not if he
-- is to see only some of them.
CREATE ROLE regress_onside_backfill;
GRANT USAGE ON SCHEMA t, onside_attribution TO regress_onside_backfill;
GRANT EXECUTE ON PROCEDURE onside_attribution.backfill TO regress_onside_backfill;
CREATE TABLE rows_of (id int PRIMARY KEY, install_id uuid, owner name, uid uuid DEFAULT gen_random_uuid() UNIQUE);
INSERT INTO rows_of VALUES (1, :user, 'regress_onside_backfill'), (2, :user, 'another');
CREATE FUNCTION tells_user() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RAISE NOTICE 'run by %, search_path %, role %', current_user, current_setting('search_path'), current_setting('session_replication_role');
    RETURN true;
END
$$;
SET client_min_messages = error;
SELECT onside_attribution.attach('rows_of', 'e', 'install_id', '{"id": "id"}', event_id => 'uid', condition => 'tells_user()');
RESET client_min_messages;
SET ROLE regress_onside_backfill;
CALL onside_attribution.backfill('rows_of', 'e');
RESET ROLE;
GRANT SELECT ON rows_of TO regress_onside_backfill;
SET ROLE regress_onside_backfill;
CALL onside_attribution.backfill('rows_of', 'e');
RESET ROLE;
SELECT payload FROM recorded;
TRUNCATE onside_attribution.outbox;
ALTER TABLE rows_of ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON rows_of USING (owner = current_user);
SET ROLE regress_onside_backfill;
CALL onside_attribution.backfill('rows_of', 'e');
RESET ROLE;
-- (not to the owner)
CALL onside_attribution.backfill('rows_of', 'e');
SELECT payload FROM recorded;
DROP OWNED BY regress_onside_backfill;
DROP ROLE regress_onside_backfill;
TRUNCATE onside_attribution.outbox;
