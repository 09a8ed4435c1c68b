-- attach() takes a function as mapper only if it can be one, and says what is wrong with any
-- other; it says what keeps one from being inlined.  A mapper's events are those that it
-- returns, whatever the trigger's level; what it cannot map obeys on_invalid_event.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup
\set user '''550e8400-e29b-41d4-a716-446655440000'''

CREATE TABLE orders (id int PRIMARY KEY, user_id int, cents int);
CREATE TABLE other (id int PRIMARY KEY, user_id int, cents int);
CREATE TABLE split (id int, user_id int, cents int) PARTITION BY LIST (id);
CREATE TABLE split_1 PARTITION OF split FOR VALUES IN (1);
CREATE TYPE pair AS (a int, b int);
CREATE TABLE users (id int PRIMARY KEY, installation_id uuid);
INSERT INTO users VALUES (1, :user), (2, NULL);

-- Every kind of function that is none: the whole matrix of arguments and results
CREATE FUNCTION wrong(number int, declaration text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    name text := 'wrong_' || number;
    got text;
BEGIN
    EXECUTE replace(declaration, 'NAME', name);
    BEGIN
        PERFORM onside_attribution.attach('orders', 'e', mapper => to_regproc(name));
        RETURN 'attached';
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS got = PG_EXCEPTION_HINT;
        RETURN SQLSTATE || ' ' || SQLERRM || CASE WHEN got LIKE 'For example:%FUNCTION to_event(o t.orders)%' THEN '' ELSE ' (no example)' END;
    END;
END
$$;
SELECT wrong(n::int, d) FROM unnest(ARRAY[
    -- arguments
    $$CREATE FUNCTION NAME() RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS 'SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid'$$,
    $$CREATE FUNCTION NAME(int) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS 'SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid'$$,
    $$CREATE FUNCTION NAME(pair) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS 'SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid'$$,
    $$CREATE FUNCTION NAME(other) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS 'SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid'$$,
    $$CREATE FUNCTION NAME(split_1) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS 'SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid'$$,
    $$CREATE FUNCTION NAME(anyelement) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS 'SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid'$$,
    $$CREATE FUNCTION NAME(orders[]) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS 'SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid'$$,
    $$CREATE FUNCTION NAME(VARIADIC orders[]) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS 'SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid'$$,
    $$CREATE FUNCTION NAME(orders, int) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS 'SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid'$$,
    $$CREATE FUNCTION NAME(orders, int DEFAULT 1) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS 'SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid'$$,
    $$CREATE FUNCTION NAME(record) RETURNS SETOF onside_attribution.event LANGUAGE plpgsql STABLE AS 'BEGIN END'$$,
    -- results
    $$CREATE FUNCTION NAME(orders) RETURNS uuid LANGUAGE sql STABLE AS 'SELECT NULL::uuid'$$,
    $$CREATE FUNCTION NAME(orders) RETURNS SETOF jsonb LANGUAGE sql STABLE AS 'SELECT NULL::jsonb'$$,
    $$CREATE FUNCTION NAME(orders) RETURNS void LANGUAGE sql STABLE AS ''$$,
    $$CREATE FUNCTION NAME(orders) RETURNS record LANGUAGE sql STABLE AS 'SELECT 1, 2'$$,
    $$CREATE FUNCTION NAME(orders) RETURNS SETOF orders LANGUAGE sql STABLE AS 'SELECT $1.*'$$,
    $$CREATE FUNCTION NAME(orders) RETURNS onside_attribution.event[] LANGUAGE sql STABLE AS 'SELECT NULL::onside_attribution.event[]'$$,
    $$CREATE FUNCTION NAME(orders) RETURNS TABLE (installation_id uuid, payload jsonb, event_datetime timestamptz, event_id uuid) LANGUAGE sql STABLE AS 'SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid'$$,
    $$CREATE FUNCTION NAME(o orders, OUT installation_id uuid, OUT payload jsonb) LANGUAGE sql STABLE AS 'SELECT NULL::uuid, NULL::jsonb'$$,
    -- kinds
    $$CREATE PROCEDURE NAME(orders) LANGUAGE sql AS ''$$,
    $$CREATE FUNCTION NAME() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'$$,
    $$CREATE FUNCTION NAME() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'$$,
    $$CREATE AGGREGATE NAME(int) (SFUNC = int4pl, STYPE = int)$$,
    $$CREATE FUNCTION NAME(anyelement) RETURNS anyelement LANGUAGE internal WINDOW IMMUTABLE STRICT AS 'window_first_value'$$
]) WITH ORDINALITY AS declarations (d, n);
-- Not there at all, ambiguous, together with columns
SELECT try($$SELECT onside_attribution.attach('orders', 'e', mapper => 'nowhere')$$);
SELECT try($$SELECT onside_attribution.attach('orders', 'e', mapper => 1)$$);
SELECT try($$SELECT onside_attribution.attach(1, 'e', mapper => 'wrong_1')$$);
SELECT try($$SELECT onside_attribution.attach('orders', 'e', 'id', mapper => 'wrong_1')$$);

-- Nor one that ends with the session
CREATE FUNCTION pg_temp.passing(orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS 'SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid';
SELECT left(regexp_replace(try($$SELECT onside_attribution.attach('orders', 'e', mapper => 'pg_temp.passing')$$), 'pg_temp_\d+', 'pg_temp_N'), 59);

-- Whoever attaches must be allowed to call it
CREATE ROLE regress_onside_mapper;
GRANT USAGE ON SCHEMA t, onside_attribution TO regress_onside_mapper;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA onside_attribution TO regress_onside_mapper;
GRANT TRIGGER ON orders TO regress_onside_mapper;
CREATE FUNCTION secret(orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS 'SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid';
REVOKE EXECUTE ON FUNCTION secret FROM PUBLIC;
SET ROLE regress_onside_mapper;
SELECT try($$SELECT onside_attribution.attach('orders', 'e', mapper => 'secret')$$);
RESET ROLE;

-- What keeps a mapper from being inlined
CREATE TABLE shape (id int);
SET client_min_messages = warning;
CREATE FUNCTION notices(command text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE 'CREATE FUNCTION shape(o shape) RETURNS ' || command;
    PERFORM onside_attribution.attach('shape', 'e', mapper => 'shape');
    PERFORM onside_attribution.detach('shape', 'e');
    DROP FUNCTION shape;
END
$$;
SET client_min_messages = notice;
\set VERBOSITY terse
\set body '$$SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid$$'
\set columns 'AS ' :body
\set composite 'AS $$SELECT (NULL, NULL, NULL, NULL)::onside_attribution.event$$'
\set plpgsql 'AS $$BEGIN END$$'
SELECT notices($$SETOF onside_attribution.event LANGUAGE sql STABLE $$ || :'columns');
SELECT notices($$SETOF onside_attribution.event LANGUAGE sql IMMUTABLE $$ || :'columns');
SELECT notices($$SETOF onside_attribution.event LANGUAGE sql $$ || :'columns');
SELECT notices($$SETOF onside_attribution.event LANGUAGE sql VOLATILE $$ || :'columns');
SELECT notices($$onside_attribution.event LANGUAGE sql STABLE $$ || :'columns');
SELECT notices($$SETOF onside_attribution.event LANGUAGE sql STABLE STRICT $$ || :'columns');
SELECT notices($$SETOF onside_attribution.event LANGUAGE sql STABLE SECURITY DEFINER $$ || :'columns');
SELECT notices($$SETOF onside_attribution.event LANGUAGE sql STABLE SET search_path = t $$ || :'columns');
SELECT notices($$SETOF onside_attribution.event LANGUAGE plpgsql STABLE $$ || :'plpgsql');
SELECT notices($$SETOF onside_attribution.event LANGUAGE sql STABLE $$ || :'composite');
SELECT notices($$SETOF onside_attribution.event LANGUAGE sql STABLE AS 'SELECT 1; SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid'$$);
SELECT notices($$onside_attribution.event LANGUAGE plpgsql STRICT SECURITY DEFINER SET work_mem = '4MB' $$ || :'plpgsql');
SELECT notices($$SETOF onside_attribution.event LANGUAGE sql STABLE BEGIN ATOMIC SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid; END$$);
\set VERBOSITY default
-- A body that cannot be planned is refused where somebody sees it
SET check_function_bodies = off;
CREATE FUNCTION broken(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS 'SELECT nothing, NULL::jsonb, NULL::timestamptz, NULL::uuid';
RESET check_function_bodies;
SELECT try($$SELECT onside_attribution.attach('orders', 'e', mapper => 'broken')$$);

-- What is kept: the name, quoted, and the schemas that there are, pg_temp last
CREATE SCHEMA "Two Words";
CREATE TABLE "Two Words"."T" (id int);
CREATE FUNCTION "Two Words"."a.b"("Two Words"."T") RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS 'SELECT NULL::uuid, NULL::jsonb, NULL::timestamptz, NULL::uuid';
CREATE FUNCTION kept(path text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    args text;
BEGIN
    PERFORM set_config('search_path', path, true);
    PERFORM onside_attribution.attach('"Two Words"."T"', 'e', mapper => '"Two Words"."a.b"');
    SELECT convert_from(tgargs, 'UTF8') INTO args
    FROM (SELECT replace(encode(tgargs, 'escape'), '\000', ' ')::bytea AS tgargs
          FROM pg_catalog.pg_trigger WHERE tgrelid = '"Two Words"."T"'::pg_catalog.regclass) AS t;
    PERFORM onside_attribution.detach('"Two Words"."T"', 'e');
    RETURN args;
END
$$;
SELECT t.kept(path) FROM unnest(ARRAY['t', '"$user", public', 'nowhere, t, "Two Words"', 'pg_temp, t', 't, pg_catalog', 'pg_catalog, t', '']) AS path;
SET search_path = t;
DROP SCHEMA "Two Words" CASCADE;

-- The trigger depends on its mapper, and the mapper on the table
CREATE FUNCTION to_event(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT u.installation_id, jsonb_build_object('amount', (o.cents / 100.0)::numeric(9, 2)::text), NULL::timestamptz, NULL::uuid
    FROM users u WHERE u.id = o.user_id
$$;
SELECT onside_attribution.attach('orders', 'paid', mapper => 'to_event');
SELECT try('DROP FUNCTION to_event');
SELECT onside_attribution.detach('orders', 'paid');
DROP FUNCTION to_event;
-- and so does one that is made by hand, or restored, once it is there
CREATE FUNCTION to_event(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT u.installation_id, jsonb_build_object('amount', (o.cents / 100.0)::numeric(9, 2)::text), NULL::timestamptz, NULL::uuid
    FROM users u WHERE u.id = o.user_id
$$;
CREATE TRIGGER onside_paid AFTER INSERT ON orders REFERENCING NEW TABLE AS whatever FOR EACH STATEMENT
EXECUTE FUNCTION onside_attribution.track_row('event_name=paid', 'mapper=t.to_event', 'search_path=t, pg_temp');
SELECT try('DROP FUNCTION to_event');
-- CREATE OR REPLACE keeps the dependency
CREATE OR REPLACE FUNCTION to_event(o orders) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT u.installation_id, jsonb_build_object('amount', (o.cents / 100.0)::numeric(9, 2)::text), NULL::timestamptz, NULL::uuid
    FROM users u WHERE u.id = o.user_id
$$;
SELECT try('DROP FUNCTION to_event');
-- A mapper for each table by one name
CREATE FUNCTION to_event(o other) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT u.installation_id, '{"table": "other"}'::jsonb, NULL::timestamptz, NULL::uuid FROM users u WHERE u.id = o.user_id
$$;
SELECT onside_attribution.attach('other', 'paid', mapper => 'to_event(other)'::regprocedure, operation => 'INSERT OR UPDATE');
INSERT INTO orders VALUES (1, 1, 990), (2, 2, 1), (3, 3, 1);
INSERT INTO other VALUES (1, 1, 990), (2, 2, 1), (3, 3, 1);
SELECT * FROM recorded;
SELECT count(DISTINCT event_id), bool_and(event_datetime BETWEEN recorded_at - interval '1 minute' AND recorded_at) FROM onside_attribution.outbox;
TRUNCATE onside_attribution.outbox;
-- Many rows are one query
INSERT INTO orders SELECT n, n % 4, n FROM generate_series(10, 30) AS n;
SELECT count(*), min(payload ->> 'amount'), max(payload ->> 'amount') FROM recorded;
TRUNCATE onside_attribution.outbox;

-- What was bought outside the app is skipped, whatever else it lacks
-- (The columns n and e are called what our own query calls the rows.)
CREATE TABLE gifts (id int PRIMARY KEY, installation_id uuid, amount numeric, currency text, n int, e int);
CREATE FUNCTION gift(g gifts) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT p.* FROM onside_attribution.purchase(g.installation_id, g.amount, g.currency) p
$$;
SELECT onside_attribution.attach('gifts', 'gift', mapper => 'gift');
INSERT INTO gifts VALUES (1, NULL, NULL, NULL), (2, NULL, 'NaN', ''), (3, :user, 1, 'USD');
INSERT INTO gifts SELECT n, CASE WHEN n > 18 THEN :user::uuid END, CASE WHEN n < 20 THEN n END, 'USD' FROM generate_series(4, 20) AS n;
SELECT payload FROM recorded;
SELECT error FROM onside_attribution.dead_letter;
TRUNCATE onside_attribution.outbox, onside_attribution.dead_letter;
-- What is wrong is said once, whichever of our functions has said it
CREATE FUNCTION tracks(g gifts) RETURNS onside_attribution.event LANGUAGE plpgsql AS $$ BEGIN PERFORM onside_attribution.track('', g.installation_id, '{}'); END $$;
SELECT onside_attribution.attach('gifts', 'again', mapper => 'gift');
SELECT onside_attribution.attach('gifts', 'tracks', mapper => 'tracks');
INSERT INTO gifts VALUES (21, :user, NULL, NULL);
SELECT event_name, error FROM onside_attribution.dead_letter ORDER BY event_name;
TRUNCATE onside_attribution.outbox, onside_attribution.dead_letter;
DROP TABLE gifts CASCADE;

-- Several events a row, and each way for one not to be valid
CREATE TABLE many (id int PRIMARY KEY, events jsonb);
CREATE FUNCTION many(m many) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS $$
    SELECT (e ->> 'i')::uuid, e -> 'p', (e ->> 'd')::timestamptz, (e ->> 'e')::uuid FROM jsonb_array_elements(m.events) AS e
$$;
SELECT onside_attribution.attach('many', 'one', mapper => 'many');
INSERT INTO many VALUES
    (1, '[]'), (2, '[{}]'), (3, '[{"p": {}}]'), (4, NULL),
    (5, '[{"i": "550e8400-e29b-41d4-a716-446655440000", "p": {"n": 1}}, {"i": "550e8400-e29b-41d4-a716-446655440000", "p": {"n": 2}}]');
SELECT * FROM recorded;
TRUNCATE onside_attribution.outbox;
SET client_min_messages = error;
INSERT INTO many VALUES
    (11, '[{"i": "550e8400-e29b-41d4-a716-446655440000"}]'),
    (12, '[{"i": "550e8400-e29b-41d4-a716-446655440000", "p": 1}]'),
    (13, '[{"i": "550e8400-e29b-41d4-a716-446655440000", "p": {}, "d": "infinity"}]'),
    (14, '[{"i": "550e8400-e29b-41d4-a716-446655440000", "p": {}, "e": "550e8400-e29b-11d4-a716-446655440000"}]'),
    (15, '[{"i": "x"}]'), (16, '{}');
INSERT INTO many VALUES (17, '[{"i": "550e8400-e29b-41d4-a716-446655440000", "p": {"fine": 17}}, {"i": "550e8400-e29b-41d4-a716-446655440000"}]');
SELECT installation_id IS NOT NULL, payload, event_datetime IS NOT NULL, event_id IS NOT NULL, source, attempts, error FROM onside_attribution.dead_letter ORDER BY failed_at;
SELECT * FROM recorded;
TRUNCATE onside_attribution.outbox, onside_attribution.dead_letter;
SET onside_attribution.on_invalid_event = error;
RESET client_min_messages;
SET client_min_messages = notice;
INSERT INTO many VALUES (21, '[{"i": "550e8400-e29b-41d4-a716-446655440000"}]');
INSERT INTO many VALUES (22, '[{"i": "x"}]');
INSERT INTO many SELECT n, CASE n WHEN 40 THEN '[{"i": "x"}]' ELSE '[{"i": "550e8400-e29b-41d4-a716-446655440000", "p": {}}]' END::jsonb FROM generate_series(23, 50) AS n;
SELECT count(*) FROM many WHERE id > 20;
RESET onside_attribution.on_invalid_event;
SET client_min_messages = error;
INSERT INTO many SELECT n, CASE n WHEN 40 THEN '[{"i": "x"}]' ELSE '[{"i": "550e8400-e29b-41d4-a716-446655440000", "p": {}}]' END::jsonb FROM generate_series(23, 50) AS n;
SELECT count(*) FROM onside_attribution.outbox;
SELECT error FROM onside_attribution.dead_letter;
TRUNCATE onside_attribution.outbox, onside_attribution.dead_letter;

-- One event_id twice is one event to the API: both are recorded, and a warning says so
\set one '{"i": "550e8400-e29b-41d4-a716-446655440000", "p": {"n": 1}, "e": "0a0b0c0d-0001-4002-8003-00000000000'
SET client_min_messages = warning;
INSERT INTO many VALUES (60, ('[' || :'one' || '1"}, ' || :'one' || '1"}, ' || :'one' || '2"}, ' || :'one' || '1"}]')::jsonb);
SELECT count(*), count(DISTINCT event_id) FROM onside_attribution.outbox;
-- in one row of many, or in several; fresh ones, and those without an installation_id, are different ones
INSERT INTO many SELECT n, ('[' || CASE n WHEN 65 THEN :'one' || '5"}, ' || :'one' || '5"}' WHEN 75 THEN :'one' || '6"}' WHEN 99 THEN :'one' || '6"}' ELSE '{"i": "550e8400-e29b-41d4-a716-446655440000", "p": {}}, {"e": "0a0b0c0d-0001-4002-8003-000000000007"}' END || ']')::jsonb FROM generate_series(61, 100) AS n;
-- of more than are remembered
INSERT INTO many SELECT n, ('[' || CASE WHEN n IN (101, 102, 5000) THEN :'one' || '8"}' ELSE '{"i": "550e8400-e29b-41d4-a716-446655440000", "p": {}, "e": "' || gen_random_uuid() || '"}' END || ']')::jsonb FROM generate_series(101, 6000) AS n;
TRUNCATE onside_attribution.outbox;
SET client_min_messages = error;

-- A trigger made by hand, without a search_path: its mapper finds pg_catalog alone
CREATE TABLE by_hand (id int PRIMARY KEY);
CREATE FUNCTION by_hand(b by_hand) RETURNS onside_attribution.event LANGUAGE plpgsql AS $$
BEGIN
    RETURN ('550e8400-e29b-41d4-a716-446655440000'::uuid, jsonb_build_object('path', current_setting('search_path')), NULL::timestamptz, NULL::uuid);
END
$$;
CREATE TRIGGER report AFTER INSERT ON by_hand FOR EACH ROW EXECUTE FUNCTION onside_attribution.track_row('event_name=e', 'mapper=t.by_hand');
INSERT INTO by_hand VALUES (1);
SELECT payload FROM recorded;
DROP FUNCTION by_hand CASCADE;
-- What is no mapper there fails for each row
CREATE FUNCTION by_hand(b by_hand) RETURNS uuid LANGUAGE sql AS 'SELECT NULL::uuid';
CREATE TRIGGER report AFTER INSERT ON by_hand FOR EACH ROW EXECUTE FUNCTION onside_attribution.track_row('event_name=e', 'mapper=t.by_hand');
CREATE TRIGGER report2 AFTER INSERT ON by_hand FOR EACH ROW EXECUTE FUNCTION onside_attribution.track_row('event_name=e', 'mapper=t.nowhere');
CREATE TRIGGER report3 AFTER INSERT ON by_hand FOR EACH ROW EXECUTE FUNCTION onside_attribution.track_row('event_name=e', 'mapper=by_hand');
INSERT INTO by_hand VALUES (2);
SELECT error FROM onside_attribution.dead_letter ORDER BY failed_at;

SET client_min_messages = warning;
DROP TABLE by_hand, many, other, orders, shape CASCADE;
DROP SCHEMA t CASCADE;
DROP EXTENSION onside_attribution;
DROP ROLE regress_onside_mapper;
