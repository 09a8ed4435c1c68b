-- An error that somebody meets while recording says where it comes from: trigger,
-- table and column in context, detail and the error's own fields, with a hint.
-- A matrix: each field, each kind of bad value, each way of recording.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup
SET onside_attribution.on_invalid_event = error;

\set user '''550e8400-e29b-41d4-a716-446655440000'''
CREATE TYPE diagnosis AS (state text, message text, detail text, hint text, context text, schema_name text, table_name text, column_name text);
CREATE FUNCTION diagnose(command text) RETURNS diagnosis LANGUAGE plpgsql AS $$
DECLARE
    d t.diagnosis;
BEGIN
    EXECUTE command;
    RETURN d;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS d.state = RETURNED_SQLSTATE, d.message = MESSAGE_TEXT, d.detail = PG_EXCEPTION_DETAIL, d.hint = PG_EXCEPTION_HINT,
        d.context = PG_EXCEPTION_CONTEXT, d.schema_name = SCHEMA_NAME, d.table_name = TABLE_NAME, d.column_name = COLUMN_NAME;
    RETURN d;
END
$$;

-- ---------------------------------------------------------------------------
-- Columns of a table
-- ---------------------------------------------------------------------------

-- The columns' names are others than those of the fields.
CREATE SCHEMA "the shop";
CREATE FUNCTION make_table(kind text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    columns text := 'part int DEFAULT 1, "Inst" text DEFAULT ''550e8400-e29b-41d4-a716-446655440000'', uid text DEFAULT gen_random_uuid(), uuid_uid uuid DEFAULT gen_random_uuid(),
        written text DEFAULT ''2026-05-05T12:00:00Z'', at timestamptz DEFAULT now(), day date DEFAULT now(), stamp timestamp DEFAULT now(),
        num numeric, f4 real, f8 double precision, j json, ts timestamptz, tsl timestamp, dd date, long text';
    mapping text := '"num": "num", "f4": "f4", "f8": "f8", "j": "j", "ts": "ts", "tsl": "tsl", "dd": "dd"';
BEGIN
    EXECUTE format('CREATE TABLE "the shop".%I (%s) %s', kind, columns, CASE kind WHEN 'partitioned' THEN 'PARTITION BY LIST (part)' END);
    IF kind = 'partitioned' THEN
        EXECUTE format('CREATE TABLE "the shop".part_1 (gone int, %s)', columns);
        ALTER TABLE "the shop".part_1 DROP gone;
        ALTER TABLE "the shop".partitioned ATTACH PARTITION "the shop".part_1 FOR VALUES IN (1);
    END IF;
    -- One event for each column that can be an event_id or a time
    PERFORM onside_attribution.attach(format('"the shop".%I', kind)::regclass, 'texts', 'Inst', format('{%s, "long": "long"}', mapping)::jsonb, 'written', 'uid',
                                      CASE kind WHEN 'row level' THEN 'INSERT OR UPDATE' ELSE 'INSERT' END);
    PERFORM onside_attribution.attach(format('"the shop".%I', kind)::regclass, 'typed', 'Inst', '{}', 'at', 'uuid_uid',
                                      CASE kind WHEN 'row level' THEN 'INSERT OR UPDATE' ELSE 'INSERT' END);
    PERFORM onside_attribution.attach(format('"the shop".%I', kind)::regclass, 'days', 'Inst', '{}', 'day', NULL,
                                      CASE kind WHEN 'row level' THEN 'INSERT OR UPDATE' ELSE 'INSERT' END);
    PERFORM onside_attribution.attach(format('"the shop".%I', kind)::regclass, 'stamps', 'Inst', '{}', 'stamp', NULL,
                                      CASE kind WHEN 'row level' THEN 'INSERT OR UPDATE' ELSE 'INSERT' END);
END
$$;
SELECT make_table(kind) FROM unnest('{row level,statement level,partitioned}'::text[]) AS kind;
SELECT DISTINCT source, level FROM onside_attribution.attached ORDER BY 1;

-- Which column has which bad value, as what, and how that fails
CREATE TABLE bad (column_name text, value text, event text, field text, state text);
INSERT INTO bad VALUES
    ('Inst', 'no uuid', NULL, 'installation_id', '22023'), ('Inst', '550e8400-e29b-41d4-a716-44665544000', NULL, 'installation_id', '22023'),
    ('uid', '', 'texts', 'event_id', '22023'),
    ('written', NULL, 'texts', 'event_datetime', '22004'), ('written', 'yesterday', 'texts', 'event_datetime', '22023'), ('written', '2026-05-05', 'texts', 'event_datetime', '22023'),
    ('written', '', 'texts', 'event_datetime', '22023'), ('written', '2026-02-30T12:00:00Z', 'texts', 'event_datetime', '22023'),
    ('at', NULL, 'typed', 'event_datetime', '22004'), ('at', 'infinity', 'typed', 'event_datetime', '22023'), ('at', '-infinity', 'typed', 'event_datetime', '22023'),
    ('at', '10000-01-01 00:00Z', 'typed', 'event_datetime', '22023'), ('at', '0044-03-15 12:00Z BC', 'typed', 'event_datetime', '22023'),
    ('day', NULL, 'days', 'event_datetime', '22004'), ('day', 'infinity', 'days', 'event_datetime', '22023'), ('day', '10000-01-01', 'days', 'event_datetime', '22023'),
    ('stamp', NULL, 'stamps', 'event_datetime', '22004'), ('stamp', '-infinity', 'stamps', 'event_datetime', '22023'),
    ('num', 'NaN', 'texts', 'payload.num', '22023'), ('num', 'Infinity', 'texts', 'payload.num', '22023'), ('num', '-Infinity', 'texts', 'payload.num', '22023'),
    ('f4', 'NaN', 'texts', 'payload.f4', '22023'), ('f4', '-Infinity', 'texts', 'payload.f4', '22023'),
    ('f8', 'NaN', 'texts', 'payload.f8', '22023'), ('f8', 'Infinity', 'texts', 'payload.f8', '22023'),
    ('j', '"\u0000"', 'texts', 'payload.j', '22023'), ('j', '1e1000000', 'texts', 'payload.j', '22023'),
    ('ts', 'infinity', 'texts', 'payload.ts', '22023'), ('ts', '10000-01-01 00:00Z', 'texts', 'payload.ts', '22023'),
    ('tsl', '-infinity', 'texts', 'payload.tsl', '22023'), ('dd', 'infinity', 'texts', 'payload.dd', '22023'),
    ('dd', '0001-01-01 BC', 'texts', 'payload.dd', '22023');

-- Each of them by an INSERT of three rows, of which one is bad, and by an UPDATE
CREATE TABLE diagnoses (LIKE bad, kind text, command text, d diagnosis);
INSERT INTO diagnoses
    SELECT bad.*, kind, 'INSERT', diagnose(format('INSERT INTO "the shop".%1$I (%2$I) VALUES (%3$s), (%4$L), (%3$s)', kind, column_name,
        CASE column_name WHEN 'j' THEN '''{}''' WHEN 'at' THEN 'now()' WHEN 'day' THEN 'now()' WHEN 'stamp' THEN 'now()' WHEN 'written' THEN '''2026-05-05T12:00:00Z'''
            WHEN 'uid' THEN 'gen_random_uuid()' WHEN 'uuid_uid' THEN 'gen_random_uuid()' ELSE 'NULL' END, value))
    FROM bad, unnest('{row level,statement level,partitioned,part_1}'::text[]) AS kind;
INSERT INTO "the shop"."row level" DEFAULT VALUES;
INSERT INTO diagnoses
    SELECT bad.*, 'row level', 'UPDATE', diagnose(format('UPDATE "the shop"."row level" SET %I = %L', column_name, value)) FROM bad;
SELECT kind, command, count(*) FROM diagnoses GROUP BY 1, 2 ORDER BY 1, 2;
-- One of them in full
SELECT (d).* FROM diagnoses WHERE kind = 'partitioned' AND column_name = 'num' AND value = 'NaN';
-- What is not as it is to be, in any of them
CREATE VIEW wrong AS
    SELECT kind, command, column_name, value, d FROM diagnoses
    WHERE ((d).state = state
      AND (d).schema_name = 'the shop'
      AND (d).table_name = CASE kind WHEN 'partitioned' THEN 'part_1' ELSE kind END
      AND (d).column_name = column_name
      AND (d).context ~ format('trigger "onside_%s" on table "the shop.%s"', coalesce(event, '\w+'), (d).table_name)
      AND (d).detail ~ format('table "%s" .* column "%s" as %s\.', (d).table_name, column_name, field)
      AND (d).message LIKE 'invalid event: ' || field || ' %'
      AND (d).hint LIKE '_%. To let such rows through, set onside_attribution.on_invalid_event to dead_letter.') IS NOT TRUE;
SELECT * FROM wrong;
-- Let through, it is a warning that says the same.
SET onside_attribution.on_invalid_event = 'dead_letter';
\set SHOW_CONTEXT always
INSERT INTO "the shop"."statement level" (num, at) VALUES ('NaN', 'infinity');
\set SHOW_CONTEXT errors
SET onside_attribution.on_invalid_event = error;
TRUNCATE onside_attribution.outbox, onside_attribution.dead_letter;
-- What is too large has no column by itself, unless it is by itself.
INSERT INTO diagnoses
    SELECT 'long', size, 'texts', 'payload', '54000', kind, 'INSERT', diagnose(format('INSERT INTO "the shop".%I (long) SELECT repeat(''x'', %s)', kind, size))
    FROM unnest('{row level,statement level,partitioned,part_1}'::text[]) AS kind, unnest('{1000000,100000001}'::text[]) AS size
    WHERE size = '1000000' OR kind = 'partitioned';
SELECT value, (d).state, (d).column_name, (d).detail ~ 'column "long" as payload.long\.', (d).context ~ 'trigger "onside_texts" on table "the shop\.', count(*)
FROM diagnoses WHERE column_name = 'long' GROUP BY 1, 2, 3, 4, 5 ORDER BY 1;
DELETE FROM diagnoses;

-- A mapped column that is gone
SET client_min_messages = error;
ALTER TABLE "the shop"."row level" DROP num, DROP uid, DROP day;
ALTER TABLE "the shop"."statement level" DROP num, DROP uid, DROP day;
ALTER TABLE "the shop".partitioned DROP num, DROP uid, DROP day;
RESET client_min_messages;
SELECT kind, (d).state, (d).message, (d).table_name, (d).column_name, (d).detail, (d).hint, substring((d).context, 'trigger "[^"]*" on table "[^"]*"')
FROM unnest('{row level,statement level,partitioned}'::text[]) AS kind, diagnose(format('INSERT INTO "the shop".%I DEFAULT VALUES', kind)) AS d;
-- A trigger that was made by hand, and cannot work
CREATE TABLE by_hand (id int, inst uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000');
CREATE FUNCTION hand(options text, arguments text) RETURNS TABLE (state text, message text, schema_name text, table_name text, column_name text, trigger text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TRIGGER hand %s EXECUTE FUNCTION onside_attribution.track_row(%s)', options, arguments);
    RETURN QUERY SELECT d.state, d.message, d.schema_name, d.table_name, d.column_name, substring(d.context, 'trigger "[^"]*" on table "[^"]*"')
                 FROM t.diagnose('INSERT INTO t.by_hand DEFAULT VALUES') AS d;
    DROP TRIGGER hand ON t.by_hand;
END
$$;
SELECT hand('BEFORE INSERT ON by_hand FOR EACH ROW', $$'event_name=e', 'installation_id=inst'$$);
SELECT hand('AFTER INSERT ON by_hand FOR EACH STATEMENT', $$'event_name=e', 'installation_id=inst'$$);
SELECT hand('AFTER INSERT ON by_hand FOR EACH ROW', $$'nonsense'$$);
SELECT hand('AFTER INSERT ON by_hand FOR EACH ROW', $$'event_name=e'$$);
SELECT hand('AFTER INSERT ON by_hand FOR EACH ROW', $$'event_name=e', 'installation_id=nowhere'$$);
SELECT hand('AFTER INSERT ON by_hand FOR EACH ROW', $$'event_name=e', 'installation_id=id'$$);
SELECT hand('AFTER INSERT ON by_hand FOR EACH ROW', $$'event_name= ', 'installation_id=inst'$$);
SELECT hand('AFTER INSERT ON by_hand FOR EACH ROW', $$'event_name=e', 'installation_id=inst', 'payload.x=nowhere'$$);
DROP TABLE by_hand;

-- ---------------------------------------------------------------------------
-- Functions, and INSERT into the outbox
-- ---------------------------------------------------------------------------

-- The message names the argument; the error's fields the outbox, and its column
-- where the argument is one.
CREATE TABLE calls (command text, field text, state text);
INSERT INTO calls
    SELECT format('SELECT onside_attribution.track(%s)', array_to_string(ARRAY(
               SELECT CASE n WHEN position THEN value ELSE good END FROM unnest(ARRAY[$$'e'$$, $$'550e8400-e29b-41d4-a716-446655440000'$$, $$'{}'$$, 'now()', 'gen_random_uuid()']) WITH ORDINALITY AS g (good, n)), ', ')),
           field, state
    FROM (VALUES
        (1, 'NULL', 'event_name', '22004'), (1, $$''$$, 'event_name', '22023'), (1, $$' '$$, 'event_name', '22023'), (1, $$E'\t'$$, 'event_name', '22023'),
        (1, $$repeat(' ', 300)$$, 'event_name', '22023'), (1, $$E' \u00a0 \u3000\u200b'$$, 'event_name', '22023'), (1, $$repeat('x', 256)$$, 'event_name', '22023'),
        (2, 'NULL', 'installation_id', '22004'), (3, 'NULL', 'payload', '22004'), (3, $$'[]'$$, 'payload', '22023'), (3, $$'1'$$, 'payload', '22023'),
        (3, $$jsonb_build_object('x', repeat('x', 1000000))$$, 'payload', '54000'),
        (4, 'NULL', 'event_datetime', '22004'), (4, $$'infinity'$$, 'event_datetime', '22023'), (4, $$'10000-01-01'$$, 'event_datetime', '22023'),
        (5, $$'00000000-0000-0000-0000-000000000000'$$, 'event_id', '22023'), (5, $$'550e8400-e29b-11d4-a716-446655440000'$$, 'event_id', '22023'))
        AS v (position, value, field, state);
INSERT INTO calls
    SELECT regexp_replace(regexp_replace(command, '^SELECT onside_attribution.track\(', 'INSERT INTO onside_attribution.outbox (event_name, installation_id, payload, event_datetime, event_id) VALUES ('),
                          '''infinity''', '''infinity''::timestamptz'), field, state
    FROM calls;
INSERT INTO calls
    SELECT format('SELECT onside_attribution.track_purchase(%s)', array_to_string(ARRAY(
               SELECT CASE n WHEN position THEN value ELSE good END FROM unnest(ARRAY[$$'550e8400-e29b-41d4-a716-446655440000'$$, '9.90', $$'USD'$$, 'now()', 'gen_random_uuid()', $$'{}'$$]) WITH ORDINALITY AS g (good, n)), ', ')),
           field, state
    FROM (VALUES
        (1, 'NULL', 'installation_id', '22004'), (2, 'NULL', 'amount', '22004'), (2, $$'NaN'$$, 'amount', '22023'), (2, $$'-Infinity'$$, 'amount', '22023'),
        (3, 'NULL', 'currency', '22004'), (3, $$''$$, 'currency', '22023'), (4, 'NULL', 'event_datetime', '22004'), (4, $$'-infinity'$$, 'event_datetime', '22023'),
        (5, $$'550e8400-e29b-71d4-a716-446655440000'$$, 'event_id', '22023'), (6, $$'[]'$$, 'extra', '22023'), (6, $$'{"amount": 1}'$$, 'extra', '22023'))
        AS v (position, value, field, state);
INSERT INTO calls
    SELECT format($$SELECT onside_attribution.track_batch(jsonb_build_array(good.event, good.event || %L)) FROM (SELECT jsonb_build_object('event_name', 'e', 'payload', '{}'::jsonb,
                  'event_datetime', '2026-05-05T12:00:00Z', 'installation_id', '550e8400-e29b-41d4-a716-446655440000') AS event) AS good$$, jsonb_build_object(field, value)), field, state
    FROM (VALUES
        ('event_name', 'null'::jsonb, '22004'), ('event_name', '1', '22023'), ('event_name', '"  "', '22023'), ('payload', 'null', '22004'), ('payload', '[]', '22023'),
        ('event_datetime', 'null', '22004'), ('event_datetime', '"yesterday"', '22023'), ('event_id', '"x"', '22023'), ('event_id', '"550e8400-e29b-11d4-a716-446655440000"', '22023'),
        ('installation_id', 'null', '22004'), ('installation_id', '"x"', '22023'))
        AS v (field, value, state);
SELECT count(*) FROM calls;
CREATE VIEW wrong_calls AS
    SELECT left(command, 120) AS command, field, d FROM calls, diagnose(command) AS d
    WHERE (d.state = calls.state
      AND d.message ~ ('invalid event: ' || field || ' ')
      AND d.hint <> ''
      AND (d.schema_name, d.table_name) = ('onside_attribution', 'outbox')
      AND d.column_name = CASE WHEN field IN ('amount', 'currency', 'extra') THEN '' ELSE field END
      AND (command !~ 'track_batch' OR d.context ~ 'event 2 of the batch')) IS NOT TRUE;
SELECT * FROM wrong_calls;
SELECT (d).* FROM diagnose($$SELECT onside_attribution.track(' ', gen_random_uuid(), '{}')$$) AS d;
-- attach and backfill name the column, too.
CREATE TABLE attached (id int PRIMARY KEY, inst uuid, uid uuid, num numeric);
SELECT d.state, d.message, d.hint, d.table_name, d.column_name FROM unnest('{"''nowhere'', ''{}''", "''num'', ''{}''", "''inst'', ''{\"a\": \"nowhere\"}''", "''inst'', ''{}'', ''num''", "''inst'', ''{}'', event_id => ''num''"}'::text[]) AS a,
    diagnose(format('SELECT onside_attribution.attach(''t.attached'', ''e'', %s)', a)) AS d;
SELECT d.state, d.message FROM unnest('{"", " ", "   "}'::text[]) AS a, diagnose(format('SELECT onside_attribution.attach(''t.attached'', %L, ''inst'', ''{}'')', a)) AS d;
INSERT INTO attached VALUES (1, :user, gen_random_uuid(), 1), (2, :user, gen_random_uuid(), 'NaN');
SELECT onside_attribution.attach('attached', 'e', 'inst', '{"num": "num"}', event_id => 'uid');
CALL onside_attribution.backfill('attached', 'e');
SET client_min_messages = warning;
DROP SCHEMA "the shop" CASCADE;
