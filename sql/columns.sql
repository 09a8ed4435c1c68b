-- What a mapped column's value becomes in the event, for each kind of type,
-- and what cannot become anything.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup
SET onside_attribution.on_invalid_event = error;

\set user '''550e8400-e29b-41d4-a716-446655440000'''
CREATE TYPE status AS ENUM ('new', 'Paid "in full"');
CREATE TYPE pair AS (a int, b timestamptz);
CREATE DOMAIN price AS numeric(12, 2) CHECK (VALUE >= 0);
CREATE DOMAIN discounted AS price;
CREATE DOMAIN flag AS boolean;
CREATE DOMAIN code AS char(5);
CREATE DOMAIN doc AS jsonb;
CREATE DOMAIN installation AS uuid;
CREATE TABLE all_types (
    installation_id installation,
    i2 smallint, i4 int, i8 bigint, bool boolean, num numeric, num2 numeric(12, 4), f4 real, f8 double precision,
    txt text, vc varchar(20), bp char(8), single "char", nam name,
    tstz timestamptz, ts timestamp, dat date, tim time, timtz timetz, iv interval,
    uid uuid, js json, jsb jsonb, byt bytea, mon money, en status, comp pair, rng numrange, addr inet, bits bit varying,
    ints int[], texts text[], times timestamptz[], floats float8[], reg regclass, pt point,
    d_price price, d_discounted discounted, d_flag flag, d_code code, d_doc doc, generated text GENERATED ALWAYS AS (txt || '!') STORED,
    "odd ""name"" é" text);
SELECT onside_attribution.attach('all_types', 'types', 'installation_id',
    (SELECT jsonb_object_agg(attname, attname) FROM pg_attribute
     WHERE attrelid = 'all_types'::regclass AND attnum > 0 AND attname NOT IN ('installation_id', 'mon', 'comp')));
-- (attach refuses these, and a trigger that is made by hand takes them)
CREATE TRIGGER by_hand AFTER INSERT ON all_types FOR EACH ROW EXECUTE FUNCTION onside_attribution.track_row(
    'event_name=by hand', 'installation_id=installation_id', 'payload.mon=mon', 'payload.comp=comp');

-- Each setting that an output function looks at, and a name that would be
-- found first if they looked names up here
SET datestyle = 'SQL, DMY';
SET timezone = 'Asia/Kathmandu';
SET intervalstyle = 'iso_8601';
SET extra_float_digits = -15;
SET bytea_output = 'escape';
SET quote_all_identifiers = on;
INSERT INTO all_types (installation_id, i2, i4, i8, bool, num, num2, f4, f8, txt, vc, bp, single, nam, tstz, ts, dat, tim, timtz, iv,
                       uid, js, jsb, byt, mon, en, comp, rng, addr, bits, ints, texts, times, floats, reg, pt,
                       d_price, d_discounted, d_flag, d_code, d_doc, "odd ""name"" é")
VALUES (:user, -32768, 2147483647, 9223372036854775807, true, 9.90, 5, 0.1, 0.1,
        E'tab\t "quoted" \\ é😀', 'varchar ', 'char', 'c', 'name',
        '2026-05-05 12:00:00.120+02', '2026-05-05 12:00:00', '2026-05-05', '12:00:00.5', '12:00:00+02',
        '1 year 2 mons 3 days 04:05:06.7', '550E8400-E29B-41D4-A716-446655440001',
        '{"z": 1.50, "a": [true, null, 1e2], "z": 2, "text": "\u00e9"}', '{"b": 1, "a": {"c": []}}',
        '\x00ff41', '1234.5'::numeric::money, 'Paid "in full"', ROW(1, '2026-05-05 12:00+00'), '[1.5,2.50)', '10.0.0.1/8', B'10110',
        '{1,NULL,3}', '{"a b",NULL,"c\"d"}', '{"2026-05-05 12:00+00"}', '{0.1,1e300,NaN}', 'all_types', '(0.1,2)',
        1, 2.345, false, 'ab', '[1, "two"]', 'odd');
RESET datestyle; RESET timezone; RESET intervalstyle; RESET extra_float_digits; RESET bytea_output;
RESET quote_all_identifiers;
SELECT format('%-20s %s', key, value) FROM onside_attribution.outbox, jsonb_each(payload) ORDER BY key COLLATE "C";
-- It left the session's settings alone.
SELECT count(*) FROM pg_settings WHERE name IN ('DateStyle', 'TimeZone', 'IntervalStyle', 'extra_float_digits', 'bytea_output', 'lc_monetary', 'search_path')
                                   AND source = 'session' AND name <> 'search_path';
SHOW search_path;
TRUNCATE onside_attribution.outbox;

-- NULL is null, everywhere.
INSERT INTO all_types (installation_id) VALUES (:user);
SELECT count(*), count(*) FILTER (WHERE value = 'null') FROM onside_attribution.outbox, jsonb_each(payload);
TRUNCATE onside_attribution.outbox;

-- Numbers: integers and floats as JSON numbers, numeric as its exact text
CREATE TABLE numbers (installation_id uuid, n numeric, f4 real, f8 double precision);
SELECT onside_attribution.attach('numbers', 'numbers', 'installation_id', '{"n": "n", "f4": "f4", "f8": "f8"}');
INSERT INTO numbers VALUES (:user, 0.10, 16777216, 0.1::float8 + 0.2::float8), (:user, 1e20, 1.17549435e-38, 1e22), (:user, -0.000, 3.4028235e38, 5e-324),
                           (:user, 123456789012345678901234567890.1234567890, -0.0, -1.5), (:user, 1e-30, 1e10, 123456789.123456789);
SELECT payload FROM recorded;
TRUNCATE onside_attribution.outbox;
CREATE FUNCTION numbers_try(n numeric, f4 real, f8 double precision) RETURNS text
LANGUAGE sql AS $$ SELECT t.try(format('INSERT INTO t.numbers VALUES (gen_random_uuid(), %L, %L, %L)', n, f4, f8)) $$;
SELECT numbers_try('NaN', 0, 0);
SELECT numbers_try('Infinity', 0, 0);
SELECT numbers_try('-Infinity', 0, 0);
SELECT numbers_try(0, 'NaN', 0);
SELECT numbers_try(0, '-Infinity', 0);
SELECT numbers_try(0, 0, 'NaN');
SELECT numbers_try(0, 0, 'Infinity');
SELECT count(*) FROM onside_attribution.outbox;

-- Times, in UTC; a timestamp without time zone is in UTC already.
CREATE TABLE times (installation_id uuid, tz timestamptz, ts timestamp, d date);
SELECT onside_attribution.attach('times', 'times', 'installation_id', '{"tz": "tz", "ts": "ts", "d": "d"}');
INSERT INTO times VALUES (:user, '2026-05-05 12:00:00.000001-07', '2026-05-05 00:00:00.5', '2024-02-29'),
                         (:user, '0001-01-01 00:00+00', '0001-01-01', '0001-01-01'),
                         (:user, '9999-12-31 23:59:59.999999+00', '9999-12-31 23:59:59.999999', '9999-12-31');
SELECT payload FROM recorded;
TRUNCATE onside_attribution.outbox;
CREATE FUNCTION times_try(tz text, ts text, d text) RETURNS text
LANGUAGE sql AS $$ SELECT t.try(format('INSERT INTO t.times VALUES (gen_random_uuid(), %L, %L, %L)', tz, ts, d)) $$;
SELECT times_try('infinity', NULL, NULL);
SELECT times_try('10000-01-01 00:00+00', NULL, NULL);
SELECT times_try('0001-12-31 23:59:59+00 BC', NULL, NULL);
SELECT times_try(NULL, '-infinity', NULL);
SELECT times_try(NULL, '294276-01-01', NULL);
SELECT times_try(NULL, NULL, 'infinity');
SELECT times_try(NULL, NULL, '-infinity');
SELECT times_try(NULL, NULL, '4714-11-24 BC');
SELECT times_try(NULL, NULL, '5874897-12-31');
SELECT count(*) FROM onside_attribution.outbox;

-- json is a text; what jsonb cannot hold cannot be sent.
CREATE TABLE jsons (installation_id uuid, j json);
SELECT onside_attribution.attach('jsons', 'jsons', 'installation_id', '{"j": "j"}');
INSERT INTO jsons VALUES (:user, '{"a": 1, "a": 2}'), (:user, ' [ 1 , 2 ] '), (:user, '"text"'), (:user, 'null'), (:user, 'true'), (:user, '1.50'), (:user, '{}');
SELECT payload FROM recorded;
TRUNCATE onside_attribution.outbox;
SELECT try($$INSERT INTO jsons VALUES (gen_random_uuid(), '{"a": "\u0000"}')$$);
SELECT try($$INSERT INTO jsons VALUES (gen_random_uuid(), '"\ud83d"')$$);
SELECT try($$INSERT INTO jsons VALUES (gen_random_uuid(), '1e999999')$$);
SELECT count(*) FROM onside_attribution.outbox;
-- The check is a subtransaction; of those around it nothing is lost.
BEGIN;
SAVEPOINT a;
INSERT INTO jsons VALUES (:user, '1');
SELECT try($$INSERT INTO jsons VALUES (gen_random_uuid(), '"\u0000"')$$);
SAVEPOINT b;
INSERT INTO jsons VALUES (:user, '2');
ROLLBACK TO b;
RELEASE a;
INSERT INTO jsons VALUES (:user, '3');
COMMIT;
SELECT payload FROM recorded;
TRUNCATE onside_attribution.outbox;

-- jsonb of every shape
CREATE TABLE jsonbs (installation_id uuid, j jsonb);
SELECT onside_attribution.attach('jsonbs', 'jsonbs', 'installation_id', '{"before": "installation_id", "j": "j", "z": "j"}');
INSERT INTO jsonbs SELECT :user, j::jsonb FROM (VALUES ('null'), ('1.50'), ('"s"'), ('true'), ('[]'), ('{}'), ('[[[]]]'), ('[1, {"a": null}]'), ('{"a": {"b": {}}}')) AS v (j);
SELECT payload FROM recorded;
TRUNCATE onside_attribution.outbox;

-- Values that are stored out of line or compressed, and those that are large
CREATE TABLE large (installation_id uuid, a text, b jsonb, c text, d bytea);
ALTER TABLE large ALTER c SET STORAGE EXTERNAL;
SELECT onside_attribution.attach('large', 'large', 'installation_id', '{"a": "a", "b": "b", "c": "c", "d": "d"}');
INSERT INTO large VALUES (:user, repeat('abc', 10000), jsonb_build_object('k', repeat('v', 10000)), repeat('xyz', 10000), convert_to(repeat('d', 10000), 'UTF8'));
SELECT length(payload ->> 'a'), length(payload -> 'b' ->> 'k'), length(payload ->> 'c'), length(payload ->> 'd') FROM recorded;
SELECT try($$INSERT INTO large VALUES (gen_random_uuid(), repeat('a', 1000000))$$);
SELECT try($$INSERT INTO large VALUES (gen_random_uuid(), repeat('a', 120000000))$$);
UPDATE large SET installation_id = gen_random_uuid();
SELECT count(*) FROM onside_attribution.outbox;
TRUNCATE onside_attribution.outbox;

-- The other fields: uuids may be text, a time a text in ISO 8601.
CREATE TABLE texts (installation_id text, event_id char(40), event_datetime varchar);
SELECT onside_attribution.attach('texts', 'texts', 'installation_id', '{}', 'event_datetime', 'event_id');
INSERT INTO texts VALUES ('550E8400-E29B-41D4-A716-446655440000', '0a0b0c0d-0001-4002-8003-000000000001', '2026-05-05T12:00:00.50+02:00');
SELECT onside_attribution.preview('0a0b0c0d-0001-4002-8003-000000000001');
TRUNCATE onside_attribution.outbox;
INSERT INTO texts VALUES ('550E8400-E29B-41D4-A716-446655440000', NULL, '2026-05-05T12:00:00Z');
SELECT event_id::text ~ '^.{14}4.{4}[89ab]' FROM onside_attribution.outbox;
SELECT try($$INSERT INTO texts VALUES ('x', NULL, '2026-05-05T12:00:00Z')$$);
SELECT try($$INSERT INTO texts VALUES ('', NULL, '2026-05-05T12:00:00Z')$$);
SELECT try($$INSERT INTO texts VALUES (gen_random_uuid(), 'x', '2026-05-05T12:00:00Z')$$);
SELECT try($$INSERT INTO texts VALUES (gen_random_uuid(), '017f22e2-79b0-7cc3-98c4-dc0c0c07398f', '2026-05-05T12:00:00Z')$$);
SELECT try($$INSERT INTO texts VALUES (gen_random_uuid(), NULL, '2026-05-05T12:00:00')$$);
SELECT try($$INSERT INTO texts VALUES (gen_random_uuid(), NULL, '2026-05-05')$$);
SELECT try($$INSERT INTO texts VALUES (gen_random_uuid(), NULL, 'infinity')$$);
SELECT try($$INSERT INTO texts VALUES (gen_random_uuid(), NULL, NULL)$$);
TRUNCATE onside_attribution.outbox;
CREATE TABLE stamps (installation_id uuid, ts timestamp, d date);
SELECT onside_attribution.attach('stamps', 'ts', 'installation_id', '{}', 'ts');
SELECT onside_attribution.attach('stamps', 'd', 'installation_id', '{}', 'd');
SET timezone = 'America/New_York';
INSERT INTO stamps VALUES (:user, '2026-05-05 12:00', '2026-05-05');
SELECT event_name, substring(onside_attribution.preview(event_id), '"event_datetime":"[^"]*"') FROM onside_attribution.outbox ORDER BY id;
RESET timezone;
SELECT try($$INSERT INTO stamps VALUES (gen_random_uuid(), 'infinity', '2026-05-05')$$);
SELECT try($$INSERT INTO stamps VALUES (gen_random_uuid(), '2026-05-05', '5874897-12-31')$$);
