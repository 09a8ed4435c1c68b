-- aside holds pending events.  What somebody inserts is checked as in the outbox;
-- an UPDATE is refused; and forget() takes all of an installation, wherever it is.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup

CREATE FUNCTION aside_try(event_name text DEFAULT 'e', installation_id uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000',
                          payload jsonb DEFAULT '{}', event_datetime text DEFAULT 'now', event_id uuid DEFAULT NULL, error text DEFAULT 'no') RETURNS text
LANGUAGE sql AS $$
    SELECT t.try(format('INSERT INTO onside_attribution.aside (event_name, installation_id, payload, event_datetime, event_id, error)
                         VALUES (%L, %L, %L, %L, %L, %L)', event_name, installation_id, payload, event_datetime, event_id, error))
$$;

-- What is the extension's is filled in; what comes from elsewhere keeps its age.
BEGIN;
INSERT INTO onside_attribution.aside (event_name, payload, event_datetime, installation_id, error)
VALUES ('e', '{"a": 1}', '2026-05-05 12:00+00', '550e8400-e29b-41d4-a716-446655440000', '')
RETURNING event_id::text ~ '^.{14}4.{4}[89ab]' AS v4, recorded_at BETWEEN now() AND clock_timestamp() AS recorded,
          failed_at BETWEEN now() AND clock_timestamp() AS failed, http_status, id IS NOT NULL AS id;
INSERT INTO onside_attribution.aside (event_id, event_name, payload, event_datetime, installation_id, recorded_at, failed_at, http_status, error, id)
VALUES ('0a0b0c0d-0001-4002-8003-000000000001', 'e', '{}', '2026-05-05 12:00+00', '550e8400-e29b-41d4-a716-446655440000',
        '2020-02-02 02:02+00', '2020-02-02 02:03+00', 503, 'away', '0a0b0c0d-0001-4002-8003-000000000002'),
       (NULL, 'later', '{}', '2026-05-05 12:00+00', '550e8400-e29b-41d4-a716-446655440000', 'infinity', NULL, NULL, 'x', gen_random_uuid()),
       (NULL, 'earlier', '{}', '2026-05-05 12:00+00', '550e8400-e29b-41d4-a716-446655440000', '-infinity', NULL, NULL, 'x', gen_random_uuid())
RETURNING recorded_at AT TIME ZONE 'UTC' = '2020-02-02 02:02' AS kept, recorded_at BETWEEN now() AND clock_timestamp() AS now,
          failed_at AT TIME ZONE 'UTC' = '2020-02-02 02:03' AS failed_kept, http_status, error;
COMMIT;
SELECT onside_attribution.preview('0a0b0c0d-0001-4002-8003-000000000001');

-- They are pending, and come before what is in the log.
SELECT FROM onside_attribution.track('in the log', '550e8400-e29b-41d4-a716-446655440001', '{}');
SELECT event_name, xid IS NULL AS aside FROM onside_attribution.pending;
SELECT onside_attribution.flush('0');
-- And so are not replayed.
SELECT onside_attribution.replay('-infinity', 'infinity');

-- The rules hold here, too.
SELECT aside_try();
SELECT aside_try(event_name => NULL);
SELECT aside_try(event_name => ' ');
SELECT aside_try(event_name => E'a\u0001');
SELECT aside_try(event_name => repeat('x', 256));
SELECT aside_try(payload => NULL);
SELECT aside_try(payload => '[]');
SELECT aside_try(event_datetime => 'infinity');
SELECT aside_try(event_datetime => NULL);
SELECT aside_try(installation_id => NULL);
SELECT aside_try(event_id => '0a0b0c0d-0001-1002-8003-000000000001');
SELECT aside_try(error => NULL);
SELECT aside_try(payload => jsonb_build_object('x', repeat('x', 1000000)));
SELECT try('UPDATE onside_attribution.aside SET error = ''x''');
SET session_replication_role = replica;
SELECT aside_try(payload => '[]');
SELECT try('UPDATE onside_attribution.aside SET error = ''x''');
RESET session_replication_role;

-- A DELETE withdraws, and so does TRUNCATE.
DELETE FROM onside_attribution.aside WHERE event_name <> 'later';
SELECT event_name FROM onside_attribution.pending;
TRUNCATE onside_attribution.aside;
SELECT event_name FROM onside_attribution.pending;
TRUNCATE onside_attribution.outbox;

-- A dead letter that was sent and has got no answer is one that was sent.
INSERT INTO onside_attribution.dead_letter
    (event_id, event_name, payload, event_datetime, installation_id, http_status, error, attempts, recorded_at, failed_at, retry_at)
SELECT gen_random_uuid(), name, '{}', now(), '550e8400-e29b-41d4-a716-446655440000', status, 'x', attempts, now(), now(), retry_at
FROM (VALUES ('timed out', NULL, 4, now() + interval '1 min'), ('refused', 400, 1, NULL), ('never sent', NULL, 0, NULL))
    AS d(name, status, attempts, retry_at);
SELECT onside_attribution.retry_dead_letters();
SELECT event_name FROM onside_attribution.pending ORDER BY 1;
SELECT event_name FROM onside_attribution.dead_letter;

-- forget(): from all three, and of nobody else.
SELECT aside_try(event_name => 'aside');
SELECT aside_try(event_name => 'somebody else''s', installation_id => '550e8400-e29b-41d4-a716-446655440001');
SELECT FROM onside_attribution.track('somebody else''s', '550e8400-e29b-41d4-a716-446655440001', '{}');
INSERT INTO onside_attribution.outbox (event_name, payload, installation_id, segment)
SELECT 'segment', '{}', '550e8400-e29b-41d4-a716-446655440000', n FROM generate_series(1, 3) AS n;
BEGIN;
SELECT onside_attribution.forget('550e8400-e29b-41d4-a716-446655440000');
SELECT onside_attribution.forget('550e8400-e29b-41d4-a716-446655440000');
ROLLBACK;
-- Also what the transaction itself has recorded, and at any isolation level.
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT FROM onside_attribution.track('mine', '550e8400-e29b-41d4-a716-446655440000', '{}');
SELECT onside_attribution.forget('550e8400-e29b-41d4-a716-446655440000');
COMMIT;
SELECT event_name FROM onside_attribution.pending;
SELECT count(*) FROM onside_attribution.dead_letter;
SELECT onside_attribution.forget('550e8400-e29b-41d4-a716-446655440009');
SELECT try('SELECT onside_attribution.forget(NULL)');
BEGIN READ ONLY;
SELECT try($$SELECT onside_attribution.forget('550e8400-e29b-41d4-a716-446655440001')$$);
ROLLBACK;

-- Nobody may, unless he was granted that; and EXECUTE is all that it takes.
CREATE ROLE regress_onside_forgets;
GRANT USAGE ON SCHEMA t TO regress_onside_forgets;
SET ROLE regress_onside_forgets;
SELECT t.try($$SELECT onside_attribution.forget('550e8400-e29b-41d4-a716-446655440001')$$);
RESET ROLE;
GRANT USAGE ON SCHEMA onside_attribution TO regress_onside_forgets;
SET ROLE regress_onside_forgets;
SELECT t.try($$SELECT onside_attribution.forget('550e8400-e29b-41d4-a716-446655440001')$$);
RESET ROLE;
GRANT EXECUTE ON FUNCTION onside_attribution.forget TO regress_onside_forgets;
SET ROLE regress_onside_forgets;
SELECT onside_attribution.forget('550e8400-e29b-41d4-a716-446655440001');
SELECT t.try('SELECT FROM onside_attribution.aside');
SELECT t.try('DELETE FROM onside_attribution.outbox');
RESET ROLE;
SELECT count(*) FROM onside_attribution.pending;
DROP OWNED BY regress_onside_forgets;
DROP ROLE regress_onside_forgets;

-- An event_name of any length lets a purchase through.
SET onside_attribution.on_invalid_event = dead_letter;
CREATE TABLE bought (install_id uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000');
DO $$ BEGIN
    EXECUTE format('CREATE TRIGGER long AFTER INSERT ON t.bought FOR EACH ROW EXECUTE FUNCTION onside_attribution.track_row(%L, ''installation_id=install_id'')',
        'event_name=' || (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 100) AS n));
END $$;
SET client_min_messages = error;
INSERT INTO bought DEFAULT VALUES;
SELECT length(event_name), error, attempts, retry_at, chances FROM onside_attribution.dead_letter;
