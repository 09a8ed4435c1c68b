-- attach looks at recent rows of the table and warns which of them would not have
-- been events, and why.  It sees what its caller may see, leaves nothing behind and
-- waits for nothing.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup

CREATE TABLE orders (id int PRIMARY KEY, installation_id uuid, as_text text, total numeric, state text, paid_at timestamptz, uid uuid, new int, old int);
-- Nothing to look at, nothing to say
SELECT onside_attribution.attach('orders', 'empty', 'installation_id', '{"total": "total"}', 'paid_at', 'uid');
-- A thousand rows at most: the last ones
INSERT INTO orders SELECT i, CASE WHEN i % 50 = 0 OR i < 18000 THEN gen_random_uuid() END, 'x', 1, 'paid', now(), gen_random_uuid() FROM generate_series(1, 20000) AS i;
SELECT onside_attribution.attach('orders', 'many', 'installation_id', '{"total": "total"}', 'paid_at', 'uid');
SELECT onside_attribution.detach('orders', 'many'), onside_attribution.detach('orders', 'empty');
TRUNCATE orders;
INSERT INTO orders SELECT i, CASE WHEN i % 50 = 0 THEN gen_random_uuid() END, 'x', 1, 'paid', now(), gen_random_uuid() FROM generate_series(1, 1000) AS i;
SELECT onside_attribution.attach('orders', 'thousand', 'installation_id', '{"total": "total"}', 'paid_at', 'uid');
SELECT onside_attribution.detach('orders', 'thousand');
-- All that can be wrong with a row
TRUNCATE orders;
INSERT INTO orders VALUES (1, gen_random_uuid(), gen_random_uuid()::text, 1, 'paid', now(), gen_random_uuid()),
    (2, NULL, gen_random_uuid(), 1, 'new', now(), gen_random_uuid()), (3, gen_random_uuid(), 'none', 'NaN', 'new', NULL, gen_random_uuid()),
    (4, gen_random_uuid(), 'none', 'NaN', 'paid', NULL, '0a0b0c0d-0001-1002-8003-000000000001');
SELECT onside_attribution.attach('orders', 'null', 'installation_id', '{"total": "id"}');
SELECT onside_attribution.attach('orders', 'text', 'as_text', '{"total": "id"}');
SELECT onside_attribution.attach('orders', 'nan', 'installation_id', '{"total": "total"}');
SELECT onside_attribution.attach('orders', 'datetime', 'installation_id', '{"total": "id"}', 'paid_at');
SELECT onside_attribution.attach('orders', 'two', 'installation_id', '{"total": "total"}', 'paid_at', 'uid');
-- Those alone that would be events by the condition, with OLD all NULL
SELECT onside_attribution.attach('orders', 'new', 'installation_id', '{"total": "id"}', 'paid_at', condition => 'NEW.state = ''new''');
SELECT onside_attribution.attach('orders', 'paid', 'installation_id', '{"total": "id"}', 'paid_at', operation => 'UPDATE',
                                 condition => 'NEW.state = ''paid'' AND OLD.state IS DISTINCT FROM ''paid'' -- a comment');
SELECT onside_attribution.attach('orders', 'whole', 'installation_id', '{"total": "id"}', 'paid_at', operation => 'UPDATE', condition => 'OLD.* IS DISTINCT FROM NEW.* AND NEW.id = 4');
SELECT onside_attribution.attach('orders', 'none', 'installation_id', '{"total": "id"}', 'paid_at', condition => 'NEW.id > 4');
-- One that binds updates alone lets every row in when it is inserted.
SELECT onside_attribution.attach('orders', 'renewed', 'installation_id', '{"total": "id"}', 'paid_at', operation => 'INSERT OR UPDATE', condition => 'OLD.id = 4');
SELECT onside_attribution.attach('orders', 'becomes', 'installation_id', '{"total": "id"}', 'paid_at', becomes => $$NEW.state = 'paid'$$);
-- A condition that fails for a row there is, is none of attach's business.
SELECT onside_attribution.attach('orders', 'failing', 'installation_id', '{"total": "id"}', 'paid_at', condition => '1 / (NEW.id - 4) > 0');
-- What fails to be attached is not looked at in vain.
SELECT try($$SELECT onside_attribution.attach('orders', 'null', 'installation_id', '{"total": "id"}')$$);

-- By a mapper: no event, no installation_id, an invalid event, an error
CREATE FUNCTION mapper(o orders) RETURNS SETOF onside_attribution.event LANGUAGE plpgsql STABLE AS $$
BEGIN
    RAISE WARNING 'nobody hears this';
    IF o.id = 1 THEN
        RETURN;
    ELSIF o.id = 3 THEN
        RETURN QUERY SELECT o.installation_id, '[]'::jsonb, now(), NULL::uuid;
    ELSE
        RETURN QUERY SELECT o.installation_id, '{}'::jsonb, now(), NULL::uuid;
    END IF;
    IF o.id = 5 THEN
        RAISE EXCEPTION 'cannot map %', o.id USING HINT = 'Ask its author.';
    END IF;
END
$$;
SET client_min_messages = warning;
SELECT onside_attribution.attach('orders', 'mapped', mapper => 'mapper');
SELECT onside_attribution.attach('orders', 'mapped one', mapper => 'mapper', condition => 'NEW.id = 4');
ALTER TABLE orders DISABLE TRIGGER USER;
INSERT INTO orders (id, installation_id) VALUES (5, gen_random_uuid());
ALTER TABLE orders ENABLE TRIGGER USER;
SELECT onside_attribution.attach('orders', 'mapped error', mapper => 'mapper', condition => 'NEW.id > 3');
-- One event_id of several events
CREATE TABLE lines (id int PRIMARY KEY, order_id int, cents int);
INSERT INTO lines SELECT i, i % 5, 990 FROM generate_series(1, 12) AS i;
CREATE FUNCTION of_line(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT p.* FROM lines l, LATERAL onside_attribution.purchase(o.installation_id, l.cents, 'USD', event_id => onside_attribution.event_id('orders', o.id::text)) p WHERE l.order_id = o.id
$$;
CREATE FUNCTION of_user(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT p.* FROM onside_attribution.purchase('550e8400-e29b-41d4-a716-446655440000', 1, 'USD', event_id => onside_attribution.event_id('user', '1')) p
$$;
CREATE FUNCTION well(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT p.* FROM lines l, LATERAL onside_attribution.purchase(o.installation_id, l.cents, 'USD', event_id => onside_attribution.event_id('lines', l.id::text)) p WHERE l.order_id = o.id
$$;
SELECT onside_attribution.attach('orders', 'lines', mapper => 'of_line', condition => 'NEW.id IN (1, 3)');
SELECT onside_attribution.attach('orders', 'users', mapper => 'of_user');
SELECT onside_attribution.attach('orders', 'well', mapper => 'well', condition => 'NEW.id IN (1, 3)');
-- What it does is undone, and no lock of the look is left.
CREATE TABLE trace (id int);
CREATE FUNCTION writes(o orders) RETURNS onside_attribution.event LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO t.trace VALUES (o.id);
    PERFORM onside_attribution.track('written', gen_random_uuid(), '{}');
    PERFORM set_config('t.looked', 'yes', false);
    RETURN (o.installation_id, '{}'::jsonb, now(), NULL::uuid);
END
$$;
BEGIN;
SELECT onside_attribution.attach('orders', 'writing', mapper => 'writes');
SELECT count(*) FROM trace;
SELECT count(*) FROM onside_attribution.outbox WHERE event_name = 'written';
SELECT current_setting('t.looked', true) IS DISTINCT FROM 'yes';
SELECT count(*) FROM pg_locks WHERE relation = 'trace'::regclass AND mode = 'RowExclusiveLock';
COMMIT;
-- While it is called, the table is locked against nobody who writes.
CREATE FUNCTION locks(o orders) RETURNS onside_attribution.event LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%', (SELECT string_agg(mode, ', ') FROM pg_locks WHERE pid = pg_backend_pid() AND relation = 't.orders'::regclass);
END
$$;
SELECT onside_attribution.attach('orders', 'locking', mapper => 'locks');
-- A slow one is left alone after a while, and so is a loop.
CREATE FUNCTION slow(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS
    $$ SELECT e.* FROM (SELECT pg_sleep(600)) AS s, (SELECT o.installation_id, '{}'::jsonb, now(), NULL::uuid) AS e $$;
CREATE FUNCTION loops(o orders) RETURNS onside_attribution.event LANGUAGE plpgsql AS $$ BEGIN LOOP END LOOP; END $$;
SET statement_timeout = '60s';
SELECT onside_attribution.attach('orders', 'slow', mapper => 'slow');
SELECT onside_attribution.attach('orders', 'loops', mapper => 'loops');
-- A person's own limit is his, and is not forgotten.
SET statement_timeout = '100ms';
SELECT onside_attribution.attach('orders', 'slow again', mapper => 'slow');
SELECT try('SELECT pg_sleep(10)');
SELECT pg_sleep(10);
RESET statement_timeout;
RESET client_min_messages;

-- Partitions, with other columns than the table; the newest first
CREATE TABLE parted (id int, installation_id uuid, total numeric) PARTITION BY RANGE (id);
CREATE TABLE parted_0 PARTITION OF parted FOR VALUES FROM (0) TO (10);
CREATE TABLE parted_1 (gone int, total numeric, installation_id uuid, id int NOT NULL);
ALTER TABLE parted_1 DROP gone;
ALTER TABLE parted ATTACH PARTITION parted_1 FOR VALUES FROM (10) TO (10000);
CREATE FUNCTION parted_mapper(p parted) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS
    $$ SELECT e.* FROM (SELECT p.installation_id, '{}'::jsonb, now(), NULL::uuid WHERE p.id = 10 OR p.id < 3) AS e $$;
INSERT INTO parted VALUES (1, gen_random_uuid(), 'NaN'), (2, NULL, 1), (10, gen_random_uuid(), 1), (11, NULL, 1), (12, gen_random_uuid(), 'inf');
SELECT onside_attribution.attach('parted', 'parted', 'installation_id', '{"total": "total"}');
SELECT onside_attribution.attach('parted', 'parted 1', 'installation_id', '{"total": "total"}', condition => 'NEW.id > 9');
SELECT onside_attribution.attach('parted', 'parted, mapped', mapper => 'parted_mapper');
SELECT onside_attribution.attach('parted_1', 'part', 'installation_id', '{"total": "total"}');
ALTER TABLE parted_1 DISABLE TRIGGER USER;
INSERT INTO parted SELECT i, gen_random_uuid(), 1 FROM generate_series(13, 1100) AS i;
SELECT onside_attribution.attach('parted', 'the newest', 'installation_id', '{"total": "total"}', condition => 'NEW.id <> 11 AND NEW.id <> 12');
-- Rows of children are not reported, and not looked at.
CREATE TABLE base (installation_id uuid);
CREATE TABLE derived () INHERITS (base);
INSERT INTO derived VALUES (NULL);
\set VERBOSITY terse
SELECT onside_attribution.attach('base', 'base', 'installation_id', '{}');
\set VERBOSITY default

-- With the caller's rights: without SELECT no look, with row security what he sees
CREATE ROLE onside_look_clerk;
GRANT USAGE ON SCHEMA onside_attribution, t TO onside_look_clerk;
GRANT EXECUTE ON FUNCTION onside_attribution.attach, onside_attribution.track_row TO onside_look_clerk;
GRANT TRIGGER ON orders TO onside_look_clerk;
SET ROLE onside_look_clerk;
SELECT onside_attribution.attach('orders', 'blind', 'installation_id', '{"total": "id"}');
RESET ROLE;
GRANT SELECT (id, total) ON orders TO onside_look_clerk;
SET ROLE onside_look_clerk;
SELECT onside_attribution.attach('orders', 'half blind', 'installation_id', '{"total": "id"}');
RESET ROLE;
GRANT SELECT ON orders TO onside_look_clerk;
ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
SET ROLE onside_look_clerk;
SELECT onside_attribution.attach('orders', 'no policy', 'installation_id', '{"total": "id"}');
RESET ROLE;
CREATE POLICY few ON orders TO onside_look_clerk USING (id IN (1, 2));
SET ROLE onside_look_clerk;
SELECT onside_attribution.attach('orders', 'policy', 'installation_id', '{"total": "id"}');
RESET ROLE;
CREATE FUNCTION refuse(id int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'nobody may read this'; END $$;
CREATE POLICY refusing ON orders AS RESTRICTIVE TO onside_look_clerk USING (t.refuse(id));
SET ROLE onside_look_clerk;
SELECT onside_attribution.attach('orders', 'refused', 'installation_id', '{"total": "id"}');
RESET ROLE;
DROP OWNED BY onside_look_clerk;
DROP ROLE onside_look_clerk;

-- Another serializable transaction must not fail because of a look.
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT onside_attribution.attach('orders', 'serializable', 'installation_id', '{"total": "id"}');
ROLLBACK;
-- Nothing of the look is left in the session.
SELECT count(*) FROM pg_settings WHERE source = 'session' AND name IN ('jit', 'enable_tidscan', 'log_min_messages', 'onside_attribution.on_invalid_event', 'max_parallel_workers_per_gather');
SELECT count(*) FROM onside_attribution.outbox WHERE event_name = 'written';
