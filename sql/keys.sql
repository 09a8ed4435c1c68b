-- The event_id of a row whose key is no version 4 UUID: of any key type, the same
-- whoever reports it; and the helpers of mappers.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup

SELECT onside_attribution.event_id('orders', '51'), onside_attribution.event_id(VARIADIC ARRAY['orders', '51']);
SELECT onside_attribution.event_id('ab', 'c') <> onside_attribution.event_id('a', 'bc') AS parts_are_told_apart;
SELECT onside_attribution.event_id(NULL);
SELECT onside_attribution.event_id('a', NULL);
SELECT onside_attribution.event_id('a', '');
SELECT onside_attribution.event_id(VARIADIC '{}');
SELECT onside_attribution.event_id(VARIADIC NULL);

SELECT onside_attribution.amount(990, 2), onside_attribution.amount(500, 0), onside_attribution.amount(-1, 3),
    onside_attribution.amount(990.00, 2), onside_attribution.amount(990.5, 2), onside_attribution.amount(0, 2),
    onside_attribution.amount(100000, 2), onside_attribution.amount(12345678901234567890123456789, 18);
SELECT onside_attribution.amount('NaN', 2);
SELECT onside_attribution.amount('Infinity', 2);
SELECT onside_attribution.amount(1, -1);
SELECT onside_attribution.amount(1, 31);
SELECT onside_attribution.amount(NULL, 2) IS NULL AS null_is_null;

SELECT * FROM onside_attribution.purchase('550e8400-e29b-41d4-a716-446655440000', 9.90, 'usd');
SELECT payload, event_datetime AT TIME ZONE 'UTC', event_id FROM onside_attribution.purchase(NULL, 1, 'EUR', '2026-05-05 12:00+00', '3346c9a9-2201-438e-8609-6180e40e5021', '{"plan": "yearly"}');
SELECT onside_attribution.purchase('550e8400-e29b-41d4-a716-446655440000', NULL, 'EUR');
SELECT onside_attribution.purchase('550e8400-e29b-41d4-a716-446655440000', 1, NULL);
SELECT onside_attribution.purchase('550e8400-e29b-41d4-a716-446655440000', 1, '');
SELECT onside_attribution.purchase('550e8400-e29b-41d4-a716-446655440000', 'NaN', 'EUR');
SELECT onside_attribution.purchase('550e8400-e29b-41d4-a716-446655440000', '-Infinity', 'EUR');
SELECT onside_attribution.purchase('550e8400-e29b-41d4-a716-446655440000', 1, 'EUR', extra => '[]');
SELECT onside_attribution.purchase('550e8400-e29b-41d4-a716-446655440000', 1, 'EUR', extra => '{"amount": 1}');
-- What was bought outside the app is no event, whatever else it lacks
SELECT onside_attribution.purchase(NULL, NULL, 'EUR');
SELECT onside_attribution.purchase(NULL, 1, NULL);
SELECT onside_attribution.purchase(NULL, 1, '');
SELECT onside_attribution.purchase(NULL, 'NaN', 'EUR');
SELECT onside_attribution.purchase(NULL, '-Infinity', 'EUR');
SELECT onside_attribution.purchase(NULL, 1, 'EUR', extra => '[]');
SELECT onside_attribution.purchase(NULL, 1, 'EUR', extra => '{"amount": 1}');
SELECT onside_attribution.purchase(NULL, NULL, NULL, NULL, NULL, NULL);

-- Whoever writes a table may call them.
CREATE ROLE regress_onside_writer;
SET ROLE regress_onside_writer;
SELECT onside_attribution.event_id('a'), onside_attribution.amount(1, 2), (onside_attribution.purchase(NULL, 1, 'EUR')).payload;
RESET ROLE;
DROP ROLE regress_onside_writer;

-- Each type of key, at row level and at statement level, in partitions and not.
CREATE DOMAIN key_domain AS bigint;
CREATE FUNCTION expected(name text, source text, value text) RETURNS uuid LANGUAGE sql
    RETURN (SELECT onside_attribution.event_id(n.id::text, lower(name), source, value) FROM onside_attribution.namespace n);
CREATE PROCEDURE try(type text, value text, shown text) LANGUAGE plpgsql AS $$
DECLARE
    level text;
    seen uuid;
BEGIN
    FOREACH level IN ARRAY ARRAY['statement', 'row', 'partition'] LOOP
        EXECUTE format('CREATE TABLE keyed (k %s PRIMARY KEY, install uuid DEFAULT gen_random_uuid()) %s', type,
            CASE level WHEN 'partition' THEN 'PARTITION BY HASH (k)' ELSE '' END);
        IF level = 'partition' THEN
            CREATE TABLE keyed_0 PARTITION OF keyed FOR VALUES WITH (MODULUS 1, REMAINDER 0);
        END IF;
        PERFORM onside_attribution.attach('keyed', 'Bought', 'install', '{}', event_id => 'k',
            condition => CASE level WHEN 'row' THEN 'true' END);
        EXECUTE format('INSERT INTO keyed VALUES (%L)', value);
        SELECT event_id INTO STRICT seen FROM onside_attribution.outbox;
        IF seen IS DISTINCT FROM (CASE WHEN shown IS NULL THEN value::uuid ELSE expected('Bought', 't.keyed', shown) END) THEN
            RAISE WARNING '% at level %: %', type, level, seen;
        END IF;
        -- Renamed, it reports the same event.
        ALTER TABLE keyed RENAME TO renamed;
        EXECUTE format('DELETE FROM renamed; DELETE FROM onside_attribution.outbox; INSERT INTO renamed VALUES (%L)', value);
        IF (SELECT event_id FROM onside_attribution.outbox) <> seen THEN
            RAISE WARNING '% at level %: another one once it is renamed', type, level;
        END IF;
        DELETE FROM onside_attribution.outbox;
        DROP TABLE renamed;
    END LOOP;
END $$;
CALL try('smallint', '-7', '-7');
CALL try('integer', '51', '51');
CALL try('bigint', '9223372036854775807', '9223372036854775807');
CALL try('key_domain', '5', '5');
CALL try('text', 'Bestellung 7 ', 'Bestellung 7 ');
CALL try('varchar(20)', 'x', 'x');
CALL try('char(8)', 'ab', 'ab');
CALL try('uuid', '018f6d3e-5b7a-7000-8000-000000000001', '018f6d3e-5b7a-7000-8000-000000000001');
CALL try('uuid', '3346c9a9-2201-438e-8609-6180e40e5021', NULL);
CALL try('text', '3346C9A9-2201-438E-8609-6180E40E5021', NULL);

-- NULL has a fresh one; an empty text is none.
CREATE TABLE keyed (k text, install uuid DEFAULT gen_random_uuid());
SELECT onside_attribution.attach('keyed', 'bought', 'install', '{}', event_id => 'k');
INSERT INTO keyed VALUES (NULL);
SELECT count(event_id) FROM onside_attribution.outbox;
SET onside_attribution.on_invalid_event = error;
INSERT INTO keyed VALUES ('');
RESET onside_attribution.on_invalid_event;
DELETE FROM onside_attribution.outbox;
DROP TABLE keyed;

-- What can be no key; and an installation_id that is empty is none.
CREATE TABLE keyed (n numeric, at timestamptz, j jsonb, install text, id int PRIMARY KEY, two int);
SELECT onside_attribution.attach('keyed', 'a', 'install', '{}', event_id => 'n');
SELECT onside_attribution.attach('keyed', 'a', 'install', '{}', event_id => 'at');
SELECT onside_attribution.attach('keyed', 'a', 'install', '{}', event_id => 'j');
SELECT onside_attribution.attach('keyed', 'a', 'install', '{}', event_id => 'two');
INSERT INTO keyed (id, two, install) VALUES (1, 1, ''), (2, 2, NULL);
SELECT count(*) FROM onside_attribution.outbox;
DROP TABLE keyed;

-- A row from a dump takes the place of the namespace that is there.
INSERT INTO onside_attribution.namespace (id) VALUES ('11111111-1111-4111-8111-111111111111');
COPY onside_attribution.namespace (singleton, id) FROM stdin;
t	22222222-2222-4222-8222-222222222222
\.
SELECT * FROM onside_attribution.namespace;
DROP PROCEDURE try(text, text, text);
DROP FUNCTION expected(text, text, text);
DROP DOMAIN key_domain;

-- amount() is exact, with as many digits as it is told.
SELECT count(*) FILTER (WHERE onside_attribution.amount(n, d) * ('1' || repeat('0', d))::numeric <> n OR scale(onside_attribution.amount(n, d)) <> d), count(*)
FROM (VALUES (0::numeric), (1), (-1), (990), (100), (123456789012345678901234567890), (-99), (1000000), (7), (9223372036854775808)) v (n), generate_series(0, 30) d;
