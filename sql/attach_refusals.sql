-- attach refuses what can never become an event, whether columns or a mapper are
-- to make it, and each refusal names the way that works; it takes everything else.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup

-- Every kind of relation
CREATE TABLE plain (id bigint PRIMARY KEY, installation_id uuid, amount numeric);
CREATE TABLE parted (LIKE plain) PARTITION BY LIST (id);
CREATE TABLE part PARTITION OF parted FOR VALUES IN (1);
CREATE INDEX parted_index ON parted (id);
CREATE TABLE parent (LIKE plain);
CREATE TABLE child () INHERITS (parent);
CREATE TYPE row_type AS (id bigint, installation_id uuid, amount numeric);
CREATE TABLE typed OF row_type;
CREATE UNLOGGED TABLE unlogged (LIKE plain);
CREATE TEMP TABLE temporary (LIKE plain);
CREATE VIEW a_view AS SELECT * FROM plain;
CREATE MATERIALIZED VIEW a_matview AS SELECT * FROM plain;
CREATE SEQUENCE a_sequence;
CREATE FOREIGN DATA WRAPPER dummy;
CREATE SERVER dummy FOREIGN DATA WRAPPER dummy;
CREATE FOREIGN TABLE a_foreign_table (id bigint, installation_id uuid, amount numeric) SERVER dummy;

CREATE TABLE kinds (n int GENERATED ALWAYS AS IDENTITY, relation text, columns text, mapper text);
INSERT INTO kinds (relation) VALUES ('plain'), ('parted'), ('part'), ('parent'), ('child'), ('typed'), ('unlogged'), ('pg_temp.temporary'),
    ('a_view'), ('a_matview'), ('a_foreign_table'), ('a_sequence'), ('plain_pkey'), ('parted_index'), ('row_type'),
    ('pg_catalog.pg_class'), ('pg_catalog.pg_proc'), ('pg_catalog.pg_stat_activity'), ('information_schema.sql_features'), ('information_schema.tables'),
    ((SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = 'pg_proc'::regclass)),
    ((SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = 'kinds'::regclass));
INSERT INTO kinds (relation)
SELECT oid::regclass::text FROM pg_class
WHERE relnamespace = 'onside_attribution'::regnamespace AND relkind IN ('r', 'p', 'v', 'c') ORDER BY relname COLLATE "C";

-- A mapper of its row type, where there can be one; elsewhere of another one
CREATE FUNCTION mapper_try(relation text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    BEGIN
        EXECUTE format('CREATE OR REPLACE FUNCTION t.to_event(%s) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS '
                       '''SELECT e.* FROM (SELECT gen_random_uuid(), ''''{}''''::jsonb, now(), gen_random_uuid()) AS e''', relation);
    EXCEPTION WHEN OTHERS THEN
        CREATE FUNCTION t.to_event(kinds) RETURNS SETOF onside_attribution.event LANGUAGE sql STABLE AS
            'SELECT e.* FROM (SELECT gen_random_uuid(), ''{}''::jsonb, now(), gen_random_uuid()) AS e';
    END;
    RETURN t.try(format('SELECT onside_attribution.attach(%L, ''by mapper'', mapper => ''t.to_event'')', relation));
END
$$;
SET client_min_messages = warning;
DO $$
DECLARE
    kind record;
BEGIN
    FOR kind IN SELECT * FROM t.kinds ORDER BY n LOOP
        UPDATE t.kinds SET columns = t.try(format('SELECT onside_attribution.attach(%L, ''by columns'', ''installation_id'', ''{"amount": "amount"}'')', kind.relation)),
                           mapper = t.mapper_try(kind.relation) WHERE n = kind.n;
        DROP FUNCTION IF EXISTS t.to_event CASCADE;
    END LOOP;
END
$$;
SELECT regexp_replace(relation, '\d{4,}', 'N') || E'\n' || regexp_replace(columns, 'pg_toast_\d+', 'pg_toast_N')
       || CASE WHEN mapper <> columns THEN E'\nby a mapper: ' || mapper ELSE '' END
FROM kinds ORDER BY n;

-- Those that are taken report their rows, each by itself: at row level where rows
-- come in through another table.
RESET client_min_messages;
SELECT source, level FROM onside_attribution.attached WHERE event_name = 'by columns' ORDER BY source::text COLLATE "C";
CREATE FUNCTION report(source text, command text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    TRUNCATE onside_attribution.outbox;
    EXECUTE replace(command, 'ROW', '(1, gen_random_uuid(), 9.90)');
    RETURN concat(command, ': ', (SELECT count(*) FROM onside_attribution.outbox WHERE event_name = 'by columns'));
END
$$;
SET client_min_messages = error;
SELECT report('plain', 'INSERT INTO plain VALUES ROW');
SELECT report('typed', 'INSERT INTO typed VALUES ROW');
SELECT report('unlogged', 'INSERT INTO unlogged VALUES ROW');
SELECT report('child', 'INSERT INTO child VALUES ROW');
SELECT report('parent', 'INSERT INTO parent VALUES ROW');
-- (the partition is attached, and the table of which it is one)
SELECT report('parted', 'INSERT INTO parted VALUES ROW');
SELECT report('part', 'INSERT INTO part VALUES ROW');
-- An UPDATE through the parent concerns the rows of both.
SELECT onside_attribution.detach('parent', 'by columns'), onside_attribution.detach('child', 'by columns');
SELECT onside_attribution.attach('child', 'by columns', 'installation_id', '{"amount": "amount"}', operation => 'UPDATE');
SELECT report('parent', 'UPDATE parent SET amount = 1');
SELECT report('parent', 'UPDATE ONLY parent SET amount = 1');
SELECT onside_attribution.attach('parent', 'by columns', 'installation_id', '{"amount": "amount"}', operation => 'UPDATE');
SELECT report('parent', 'UPDATE parent SET amount = 1');
RESET client_min_messages;

-- That a parent's trigger does not see its children's rows is said, and not where
-- there are none any more.
SELECT onside_attribution.attach('parent', 'warned', 'installation_id', '{}');
DROP TABLE child;
SELECT onside_attribution.attach('parent', 'not warned', 'installation_id', '{}');

-- Without the privilege
CREATE ROLE onside_attach_nobody;
GRANT USAGE ON SCHEMA onside_attribution, t TO onside_attach_nobody;
GRANT EXECUTE ON FUNCTION onside_attribution.attach, onside_attribution.track_row TO onside_attach_nobody;
SET ROLE onside_attach_nobody;
SELECT try($$SELECT onside_attribution.attach('plain', 'e', 'installation_id', '{}')$$);
RESET ROLE;
GRANT TRIGGER ON parted TO onside_attach_nobody;
SET ROLE onside_attach_nobody;
SELECT try($$SELECT onside_attribution.attach('parted', 'e', 'installation_id', '{}')$$);
RESET ROLE;
GRANT TRIGGER ON part TO onside_attach_nobody;
SET ROLE onside_attach_nobody;
SELECT try($$SELECT onside_attribution.attach('parted', 'e', 'installation_id', '{}')$$);
RESET ROLE;
REVOKE USAGE ON SCHEMA t FROM onside_attach_nobody;
GRANT TRIGGER ON plain TO onside_attach_nobody;
SET ROLE onside_attach_nobody;
DO $$ BEGIN PERFORM onside_attribution.attach((SELECT oid FROM pg_class WHERE relname = 'plain'), 'e', 'installation_id', '{}'); END $$;
RESET ROLE;
DROP OWNED BY onside_attach_nobody;
DROP ROLE onside_attach_nobody;

-- Every type that means nothing to the API, wherever it is mapped to
CREATE TYPE pair AS (amount numeric, currency text);
CREATE DOMAIN price AS money;
CREATE DOMAIN pair_domain AS pair;
CREATE TABLE typeless (installation_id uuid, m money, ms money[], d price, ds price[], c pair, cs pair[], dc pair_domain, r plain,
                       i2 smallint, i4 int, i8 bigint, f4 real, f8 float8, n numeric, s text, "odd ""name" money);
CREATE DOMAIN cents AS int;
ALTER TABLE typeless ADD dint cents;
SELECT attname || ': ' || try(format('SELECT onside_attribution.attach(''typeless'', ''e %s'', ''installation_id'', %L)', attname, json_build_object('total', attname)))
FROM pg_attribute WHERE attrelid = 'typeless'::regclass AND attnum > 1 ORDER BY attnum;
SELECT field || ': ' || try(format('SELECT onside_attribution.attach(''typeless'', ''e'', installation_id => %L, payload => ''{}'', event_datetime => %L, event_id => %L)',
    CASE field WHEN 'installation_id' THEN 'm' ELSE 'installation_id' END, CASE field WHEN 'event_datetime' THEN 'm' END, CASE field WHEN 'event_id' THEN 'c' END))
FROM unnest(ARRAY['installation_id', 'event_datetime', 'event_id']) AS field;

-- A column that has no value in a trigger: there are such ones since PostgreSQL 18.
CREATE FUNCTION virtual_try() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('server_version_num')::int < 180000 THEN
        RETURN E'0A000 attach: column "v" of relation "virtual", mapped to payload.amount, is a virtual generated column\n  Map a stored column.';
    END IF;
    EXECUTE 'CREATE TABLE virtual (installation_id uuid, n numeric, v numeric GENERATED ALWAYS AS (n + 1) VIRTUAL)';
    RETURN t.try($try$SELECT onside_attribution.attach('virtual', 'e', 'installation_id', '{"amount": "v"}')$try$);
END
$$;
SELECT virtual_try();

-- An amount of a type that is likely to be a mistake
SELECT onside_attribution.detach('typeless', event_name) FROM onside_attribution.attached WHERE source = 'typeless'::regclass;
\set VERBOSITY terse
DO $$
DECLARE
    name text;
    key text;
BEGIN
    FOREACH key IN ARRAY ARRAY['amount', 'tax_Amount', 'price', 'level'] LOOP
        FOREACH name IN ARRAY ARRAY['i2', 'i4', 'i8', 'dint', 'f4', 'f8', 'n', 's'] LOOP
            PERFORM onside_attribution.attach('typeless', key || name, 'installation_id', jsonb_build_object(key, name));
        END LOOP;
    END LOOP;
END
$$;
\set VERBOSITY default
SELECT onside_attribution.attach('typeless', 'cents', 'installation_id', '{"amount": "i4"}');
SELECT onside_attribution.attach('typeless', 'float', 'installation_id', '{"amount": "f8"}');
DROP TABLE typeless;
DROP FOREIGN DATA WRAPPER dummy CASCADE;
