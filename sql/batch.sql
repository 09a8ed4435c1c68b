-- track_batch takes the API's own shapes, records all of a batch or nothing
-- of it, and says which event is wrong and why.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup

-- The body that the API's documentation shows
SELECT onside_attribution.track_batch('{
    "events": [
      {
        "event_name": "purchase_completed",
        "payload": {
          "currency": "USD",
          "amount": "9.99"
        },
        "event_datetime": "2026-05-05T12:00:00Z",
        "event_id": "550e8400-e29b-41d4-a716-446655440000",
        "installation_id": "550e8400-e29b-41d4-a716-446655440000"
      }
    ]
  }');
SELECT onside_attribution.preview('550e8400-e29b-41d4-a716-446655440000');
TRUNCATE onside_attribution.outbox;

-- Its array alone; event_id may be left out, or null; and order is kept.
SELECT onside_attribution.track_batch('[
    {"event_name": "one", "payload": {}, "event_datetime": "2026-05-05T12:00:00Z", "installation_id": "550E8400-E29B-41D4-A716-446655440001"},
    {"event_name": "two", "payload": {"a": [1.50, {"b": null}]}, "event_datetime": "2026-05-05T12:00:00Z", "event_id": null,
     "installation_id": "550e8400-e29b-41d4-a716-446655440002"}]');
SELECT * FROM recorded;
SELECT bool_and(event_id::text ~ '^.{14}4.{4}[89ab]'), count(DISTINCT event_id) FROM onside_attribution.outbox;
TRUNCATE onside_attribution.outbox;

-- None is none.
SELECT onside_attribution.track_batch('[]');
SELECT onside_attribution.track_batch('{"events": []}');
-- One id twice is the API's business: it makes them one event.
SELECT onside_attribution.track_batch(jsonb_build_array(event, event))
FROM (SELECT '{"event_name": "e", "payload": {}, "event_datetime": "2026-05-05T12:00:00Z",
               "event_id": "0a0b0c0d-0001-4002-8003-000000000001", "installation_id": "550e8400-e29b-41d4-a716-446655440000"}'::jsonb) AS e (event);
TRUNCATE onside_attribution.outbox;

-- More than a request holds
SELECT onside_attribution.track_batch(jsonb_agg(jsonb_build_object(
    'event_name', 'e', 'payload', jsonb_build_object('n', n), 'event_datetime', '2026-05-05T12:00:00Z',
    'installation_id', '550e8400-e29b-41d4-a716-446655440000') ORDER BY n))
FROM generate_series(1, 2500) AS n;
SELECT count(*), count(DISTINCT event_id), count(DISTINCT xid), min(id), max(id),
       bool_and((payload ->> 'n')::int = id) FROM onside_attribution.outbox;
TRUNCATE onside_attribution.outbox;

-- What is no batch
CREATE FUNCTION batch_try(events jsonb) RETURNS text
LANGUAGE sql AS $$ SELECT t.try(format('SELECT onside_attribution.track_batch(%L)', events)) $$;
SELECT batch_try(NULL);
SELECT batch_try('null');
SELECT batch_try('5');
SELECT batch_try('"text"');
SELECT batch_try('{}');
SELECT batch_try('{"event": []}');
SELECT batch_try('{"events": {}}');
SELECT batch_try('{"events": null}');
SELECT batch_try('{"events": [], "more": 1}');
SELECT batch_try('{"event_name": "e", "payload": {}}');
SELECT batch_try('[1]');
SELECT batch_try('[null]');
SELECT batch_try('["text"]');
SELECT batch_try('[[]]');
SELECT batch_try('[{}]');
SELECT batch_try('[{"events": []}]');

-- What is no event: a good one before it, so that all or nothing is seen
CREATE FUNCTION event_try(change jsonb, without text DEFAULT '') RETURNS text
LANGUAGE sql AS $$
    SELECT t.batch_try(jsonb_build_array(good, good - without || change, good))
    FROM (SELECT '{"event_name": "e", "payload": {}, "event_datetime": "2026-05-05T12:00:00Z",
                   "event_id": "0a0b0c0d-0001-4002-8003-000000000001",
                   "installation_id": "550e8400-e29b-41d4-a716-446655440000"}'::jsonb) AS g (good)
$$;
SELECT event_try('{}', 'event_name');
SELECT event_try('{"event_name": null}');
SELECT event_try('{"event_name": 5}');
SELECT event_try('{"event_name": ["e"]}');
SELECT event_try('{"event_name": ""}');
SELECT event_try('{"event_name": "a\u0007"}');
SELECT event_try(jsonb_build_object('event_name', repeat('x', 256)));
SELECT event_try('{}', 'payload');
SELECT event_try('{"payload": null}');
SELECT event_try('{"payload": []}');
SELECT event_try('{"payload": "{}"}');
SELECT event_try(jsonb_build_object('payload', jsonb_build_object('x', repeat('y', 1000000))));
SELECT event_try('{}', 'installation_id');
SELECT event_try('{"installation_id": null}');
SELECT event_try('{"installation_id": 5}');
SELECT event_try('{"installation_id": ""}');
SELECT event_try('{"installation_id": "550e8400e29b41d4a716446655440000"}');
SELECT event_try('{"installation_id": "{550e8400-e29b-41d4-a716-446655440000}"}');
SELECT event_try('{"installation_id": "550e8400-e29b-41d4-a716-44665544000g"}');
SELECT event_try('{"installation_id": "550e8400-e29b-41d4-a716-4466554400000"}');
SELECT event_try('{"event_id": 5}');
SELECT event_try('{"event_id": {}}');
SELECT event_try('{"event_id": "x"}');
SELECT event_try('{"event_id": "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"}');
SELECT event_try('{}', 'event_datetime');
SELECT event_try('{"event_datetime": null}');
SELECT event_try('{"event_datetime": 1777982400}');
SELECT event_try('{"event_datetime": "now"}');
SELECT event_try('{"event_datetime": "infinity"}');
SELECT event_try('{"Event_Name": "e"}');
SELECT event_try('{"note": "x"}');
SELECT count(*) FROM onside_attribution.outbox;

-- ISO 8601 has many forms of a time; without an offset it means nothing.
CREATE FUNCTION datetime_try(datetime text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    result text;
BEGIN
    result := t.event_try(jsonb_build_object('event_datetime', datetime, 'event_id', null));
    IF result = 'ok' THEN
        SELECT substring(onside_attribution.preview(event_id), '"event_datetime":"([^"]*)"') INTO result
        FROM onside_attribution.outbox ORDER BY id OFFSET 1 LIMIT 1;
        TRUNCATE onside_attribution.outbox;
    END IF;
    RETURN split_part(result, E'\n', 1);
END
$$;
SELECT format('%-40s %s', datetime, datetime_try(datetime)) FROM (VALUES
    ('2026-05-05T12:00:00Z'),
    ('2026-05-05t12:00:00z'),
    ('2026-05-05 12:00:00Z'),
    ('2026-05-05T12:00Z'),
    ('2026-05-05T12:00:00.5Z'),
    ('2026-05-05T12:00:00,25Z'),
    ('2026-05-05T12:00:00.123456Z'),
    ('2026-05-05T12:00:00.1234567899Z'),
    ('2026-05-05T12:00:00+02:00'),
    ('2026-05-05T12:00:00-0730'),
    ('2026-05-05T12:00:00+02'),
    ('2024-02-29T23:59:59Z'),
    ('2016-12-31T23:59:60Z'),
    ('0001-01-01T00:00:00Z'),
    ('9999-12-31T23:59:59.999999Z'),
    ('0001-01-01T00:00:00+01:00'),
    ('9999-12-31T23:59:59-01:00'),
    ('0000-01-01T00:00:00Z'),
    ('10000-01-01T00:00:00Z'),
    ('2023-02-29T00:00:00Z'),
    ('2026-13-01T00:00:00Z'),
    ('2026-00-01T00:00:00Z'),
    ('2026-04-31T00:00:00Z'),
    ('2026-05-05T24:00:00Z'),
    ('2026-05-05T12:60:00Z'),
    ('2026-05-05T12:00:61Z'),
    ('2026-05-05T12:00:00'),
    ('2026-05-05'),
    ('2026-05-05T12Z'),
    ('2026-05-05T12:00:00.Z'),
    ('2026-05-05T12:00:00+2'),
    ('2026-05-05T12:00:00+02:'),
    ('2026-05-05T12:00:00+02:0'),
    ('2026-05-05T12:00:00+16:00'),
    ('2026-05-05T12:00:00+01:60'),
    ('2026-05-05T12:00:00Z '),
    (' 2026-05-05T12:00:00Z'),
    ('2026-5-5T12:00:00Z'),
    ('+2026-05-05T12:00:00Z'),
    ('20260505T120000Z'),
    ('2026-05-05T12:00:00 UTC'),
    ('')) AS forms (datetime);
