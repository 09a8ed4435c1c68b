-- A direct INSERT or COPY into the outbox is checked like any other event, and
-- its place in the log is nothing that can be forged.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup

-- event_id and event_datetime may be left out.
BEGIN;
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id)
VALUES ('e', '{"a": 1}', '550e8400-e29b-41d4-a716-446655440000')
RETURNING event_name, payload, installation_id, event_datetime = now() AS now,
          event_id::text ~ '^.{14}4.{4}[89ab]' AS v4, xid = pg_current_xact_id() AS xid, id,
          recorded_at >= now() AND recorded_at <= clock_timestamp() AS recorded;
INSERT INTO onside_attribution.outbox (event_id, event_name, payload, event_datetime, installation_id)
VALUES ('0a0b0c0d-0001-4002-8003-000000000001', 'e', '{}', '2026-05-05 12:00+00', '550e8400-e29b-41d4-a716-446655440000')
RETURNING event_id, id;
SAVEPOINT s;
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id)
VALUES ('savepoint', '{}', '550e8400-e29b-41d4-a716-446655440000') RETURNING xid = pg_current_xact_id(), id;
ROLLBACK TO s;
COMMIT;
SELECT onside_attribution.preview('0a0b0c0d-0001-4002-8003-000000000001');
SELECT event_name, payload, event_id IS NOT NULL FROM onside_attribution.pending;
TRUNCATE onside_attribution.outbox;

-- xid and id are this transaction's, whatever is inserted; recorded_at stays
-- what it was when the row comes from elsewhere, but is not in the future.
BEGIN;
INSERT INTO onside_attribution.outbox
    (event_name, payload, installation_id, recorded_at, xid, id)
VALUES ('e', '{}', '550e8400-e29b-41d4-a716-446655440000', '2020-02-02 02:02+00', '3', 77),
       ('e', '{}', '550e8400-e29b-41d4-a716-446655440000', 'infinity', '18446744073709551615', -1),
       ('e', '{}', '550e8400-e29b-41d4-a716-446655440000', '-infinity', NULL, NULL)
RETURNING xid = pg_current_xact_id(), id, recorded_at AT TIME ZONE 'UTC' = '2020-02-02 02:02' AS kept,
          recorded_at BETWEEN now() AND clock_timestamp() AS now;
COMMIT;
SELECT count(*) FROM onside_attribution.pending;
TRUNCATE onside_attribution.outbox;

-- Every segment can be written to, by either name; there are three.
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id, segment)
SELECT 'routed ' || n, '{}', '550e8400-e29b-41d4-a716-446655440000', n FROM generate_series(1, 3) AS n;
INSERT INTO onside_attribution.outbox_2 (event_name, payload, installation_id, segment)
VALUES ('direct 2', '{}', '550e8400-e29b-41d4-a716-446655440000', 2);
SELECT tableoid::regclass, event_name FROM onside_attribution.outbox ORDER BY event_name;
SELECT event_name FROM onside_attribution.pending;
SELECT try($$INSERT INTO onside_attribution.outbox (event_name, payload, installation_id, segment)
             VALUES ('e', '{}', '550e8400-e29b-41d4-a716-446655440000', 4)$$);
SELECT try($$INSERT INTO onside_attribution.outbox_2 (event_name, payload, installation_id, segment)
             VALUES ('e', '{}', '550e8400-e29b-41d4-a716-446655440000', 3)$$);
TRUNCATE onside_attribution.outbox;

-- The rules hold here, too.
CREATE FUNCTION insert_try(event_name text DEFAULT 'e', installation_id uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000',
                           payload jsonb DEFAULT '{}', event_datetime text DEFAULT 'now', event_id uuid DEFAULT NULL) RETURNS text
LANGUAGE sql AS $$
    SELECT t.try(format('INSERT INTO onside_attribution.outbox (event_name, installation_id, payload, event_datetime, event_id)
                         VALUES (%L, %L, %L, %L, %L)', event_name, installation_id, payload, event_datetime, event_id))
$$;
SELECT insert_try(event_name => NULL);
SELECT insert_try(event_name => '');
SELECT insert_try(event_name => E'\t');
SELECT insert_try(event_name => repeat('x', 256));
SELECT insert_try(installation_id => NULL);
SELECT insert_try(payload => NULL);
SELECT insert_try(payload => '[]');
SELECT insert_try(payload => jsonb_build_object('x', repeat('y', 1000000)));
SELECT insert_try(event_datetime => NULL);
SELECT insert_try(event_datetime => 'infinity');
SELECT insert_try(event_datetime => '10000-01-01 00:00+00');
SELECT insert_try(event_id => '017f22e2-79b0-7cc3-98c4-dc0c0c07398f');
SELECT count(*) FROM onside_attribution.outbox;
-- One bad row of many, and none is in.
SELECT try($$INSERT INTO onside_attribution.outbox (event_name, payload, installation_id)
             SELECT 'e', CASE n WHEN 7 THEN '[]' ELSE '{}' END::jsonb, gen_random_uuid() FROM generate_series(1, 10) AS n$$);
SELECT count(*) FROM onside_attribution.outbox;

-- INSERT ... SELECT
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id)
SELECT 'e', jsonb_build_object('n', n), '550e8400-e29b-41d4-a716-446655440000' FROM generate_series(1, 1000) AS n;
SELECT count(*), count(DISTINCT event_id), count(DISTINCT xid), min(id), max(id) FROM onside_attribution.outbox;
TRUNCATE onside_attribution.outbox;

-- COPY, with a line's own or without an event_id
COPY onside_attribution.outbox (event_id, event_name, payload, event_datetime, installation_id) FROM stdin;
0a0b0c0d-0001-4002-8003-000000000001	copied	{"a": "b"}	2026-05-05 12:00:00+00	550e8400-e29b-41d4-a716-446655440000
\N	copied	{"a": "\\u00e9"}	2026-05-05 12:00:00.25+00	550e8400-e29b-41d4-a716-446655440000
\.
COPY onside_attribution.outbox (event_name, payload, installation_id, xid, id, recorded_at) FROM stdin (FORMAT csv);
copied too,"{""a"": 1}",550e8400-e29b-41d4-a716-446655440000,3,4,2020-01-01 00:00:00+00
\.
SELECT event_name, payload, event_id IS NOT NULL AS event_id, xid::text::bigint > 3 AS xid, id FROM onside_attribution.pending;
SELECT onside_attribution.preview('0a0b0c0d-0001-4002-8003-000000000001');
TRUNCATE onside_attribution.outbox;
COPY onside_attribution.outbox (event_name, payload, installation_id) FROM stdin;
good	{}	550e8400-e29b-41d4-a716-446655440000
	{}	550e8400-e29b-41d4-a716-446655440000
\.
SELECT count(*) FROM onside_attribution.outbox;

-- It is append-only.
INSERT INTO onside_attribution.outbox (event_id, event_name, payload, installation_id)
VALUES ('0a0b0c0d-0001-4002-8003-000000000001', 'e', '{}', '550e8400-e29b-41d4-a716-446655440000');
SELECT try('UPDATE onside_attribution.outbox SET payload = ''{"changed": true}''');
SELECT try('UPDATE onside_attribution.outbox SET xid = pg_current_xact_id()');
SELECT try('UPDATE onside_attribution.outbox SET segment = 2');
SELECT try('UPDATE onside_attribution.outbox_1 SET id = 5');
SELECT try($$MERGE INTO onside_attribution.outbox o USING (VALUES (1)) AS v ON true
             WHEN MATCHED THEN UPDATE SET event_name = 'x'$$);
SELECT payload FROM recorded;
TRUNCATE onside_attribution.outbox;

-- Nor is that different for a session in which triggers do not fire.
SET session_replication_role = replica;
SELECT insert_try(payload => '[]');
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id, recorded_at, xid, id)
VALUES ('replicated', '{}', '550e8400-e29b-41d4-a716-446655440000', '2020-01-01 00:00+00', '3', 4);
SELECT event_name, xid::text::bigint > 3, id FROM onside_attribution.outbox;
SELECT try('UPDATE onside_attribution.outbox SET event_name = ''x''');
RESET session_replication_role;
TRUNCATE onside_attribution.outbox;

-- It stays enabled.
SELECT try('ALTER TABLE onside_attribution.outbox_1 DISABLE TRIGGER ALL');
SELECT try('ALTER TABLE onside_attribution.outbox_1 ENABLE TRIGGER onside_before_change');

-- The trigger's function is for nothing else.
CREATE TABLE other (a int);
CREATE TRIGGER other AFTER INSERT ON other FOR EACH ROW EXECUTE FUNCTION onside_attribution.before_change();
SELECT try('INSERT INTO other VALUES (1)');
DROP TRIGGER other ON other;
CREATE TRIGGER other BEFORE INSERT ON other FOR EACH ROW EXECUTE FUNCTION onside_attribution.before_change();
SELECT try('INSERT INTO other VALUES (1)');

-- A DBA's own indexes are kept up by both ways in.
BEGIN;
CREATE INDEX ON onside_attribution.outbox (installation_id);
CREATE INDEX ON onside_attribution.outbox USING gin (payload);
SELECT onside_attribution.track(name, '550e8400-e29b-41d4-a716-446655440000', '{"k": "v"}') IS NOT NULL FROM unnest('{e,f,e}'::text[]) AS name;
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id) VALUES ('e', '{"k": "v"}', '550e8400-e29b-41d4-a716-446655440000');
SET LOCAL enable_seqscan = off;
SELECT count(*) FROM onside_attribution.outbox WHERE payload @> '{"k": "v"}';
SET LOCAL enable_bitmapscan = off;
EXPLAIN (COSTS OFF) SELECT FROM onside_attribution.outbox_1 WHERE installation_id = '550e8400-e29b-41d4-a716-446655440000';
SELECT count(*) FROM onside_attribution.outbox WHERE installation_id = '550e8400-e29b-41d4-a716-446655440000';
ROLLBACK;
-- Those that would refuse rows or run code are refused.
SELECT try('CREATE INDEX ON onside_attribution.outbox ((payload ->> ''k''))');
SELECT try('CREATE INDEX ON onside_attribution.outbox (event_id) WHERE event_name = ''e''');
SELECT try('CREATE UNIQUE INDEX ON onside_attribution.outbox_1 (event_id)');
