-- track and track_purchase record what is a valid event, and refuse what is
-- not with an SQLSTATE, the field's name and a hint.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup

\set user '''550e8400-e29b-41d4-a716-446655440000'''
CREATE FUNCTION track_try(event_name text DEFAULT 'e',
                          installation_id uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000',
                          payload jsonb DEFAULT '{}',
                          event_datetime text DEFAULT 'now',
                          event_id uuid DEFAULT NULL) RETURNS text
LANGUAGE sql AS $$
    SELECT t.try(format('SELECT onside_attribution.track(%L, %L, %L, %L, %L)',
                        event_name, installation_id, payload, event_datetime, event_id))
$$;

-- The event is what was passed, and the event_id what is returned.
SELECT onside_attribution.track('purchase_completed', :user, '{"currency": "USD", "amount": "9.99"}',
                                '2026-05-05 12:00:00+00', '0a0b0c0d-0001-4002-8003-000000000001');
SELECT event_id, event_name, payload, event_datetime AT TIME ZONE 'UTC', installation_id
FROM onside_attribution.outbox;

-- It is sent in the API's shape.
SELECT onside_attribution.preview('0a0b0c0d-0001-4002-8003-000000000001');
SELECT onside_attribution.preview('0a0b0c0d-0001-4002-8003-000000000001')::jsonb =
       '{"event_name": "purchase_completed", "payload": {"currency": "USD", "amount": "9.99"},
         "event_datetime": "2026-05-05T12:00:00Z", "event_id": "0a0b0c0d-0001-4002-8003-000000000001",
         "installation_id": "550e8400-e29b-41d4-a716-446655440000"}';
-- No event, no preview.
SELECT onside_attribution.preview('0a0b0c0d-0001-4002-8003-00000000ffff') IS NULL;

-- Without an event_id it gets a new one, a version 4 UUID.
SELECT count(DISTINCT id), bool_and(id::text ~ '^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$')
FROM (SELECT onside_attribution.track('e', :user, '{}') AS id FROM generate_series(1, 1000)) AS made;
-- Without an event_datetime it has the transaction's time.
BEGIN;
SELECT onside_attribution.track('e', :user, '{}', event_id => '0a0b0c0d-0001-4002-8003-000000000002');
SELECT event_datetime = now(), recorded_at >= now(), xid = pg_current_xact_id()
FROM onside_attribution.outbox WHERE event_id = '0a0b0c0d-0001-4002-8003-000000000002';
ROLLBACK;
-- The rolled back event is none.
SELECT count(*) FROM onside_attribution.outbox WHERE event_id = '0a0b0c0d-0001-4002-8003-000000000002';
TRUNCATE onside_attribution.outbox;

-- event_name
SELECT track_try(event_name => NULL);
SELECT track_try(event_name => '');
SELECT track_try(event_name => E'a\nb');
SELECT track_try(event_name => E'a\x01');
SELECT track_try(event_name => E'\x1f');
SELECT track_try(event_name => E'a\x7fb');
SELECT track_try(event_name => U&'a\0080');
SELECT track_try(event_name => U&'a\009F');
SELECT track_try(event_name => U&'a\00A0');
SELECT track_try(event_name => U&'\00A0');
SELECT track_try(event_name => ' ');
SELECT track_try(event_name => repeat('x', 255));
SELECT track_try(event_name => repeat('x', 256));
SELECT track_try(event_name => repeat('ж', 255));
SELECT track_try(event_name => repeat('ж', 256));
SELECT track_try(event_name => repeat('😀', 255));
SELECT track_try(event_name => repeat('😀', 256));
SELECT track_try(event_name => repeat('x', 1000000));
-- It is kept as written, whatever its case, and escaped where JSON wants that.
SELECT track_try(event_name => 'Purchase_COMPLETED "é😀\');
SELECT event_name FROM recorded ORDER BY event_name COLLATE "C" LIMIT 2;
SELECT onside_attribution.preview(event_id)::jsonb ->> 'event_name' = event_name
FROM onside_attribution.outbox WHERE event_name LIKE 'Purchase%';
SELECT substring(onside_attribution.preview(event_id), '^.*"payload"')
FROM onside_attribution.outbox WHERE event_name LIKE 'Purchase%';
TRUNCATE onside_attribution.outbox;

-- installation_id
SELECT track_try(installation_id => NULL);
SELECT track_try(installation_id => '00000000-0000-0000-0000-000000000000');
SELECT track_try(installation_id => '017f22e2-79b0-7cc3-98c4-dc0c0c07398f');
SELECT track_try(installation_id => 'FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF');
SELECT installation_id FROM recorded;
TRUNCATE onside_attribution.outbox;

-- payload
SELECT track_try(payload => NULL);
SELECT track_try(payload => 'null');
SELECT track_try(payload => '[]');
SELECT track_try(payload => '[{}]');
SELECT track_try(payload => '"text"');
SELECT track_try(payload => '1');
SELECT track_try(payload => 'true');
SELECT track_try(payload => '{}');
SELECT track_try(payload => '{"a": {"b": [1, null, {"c": 1.50}]}, "": "", "x": "\u0001\t\"\\/é"}');
SELECT substring(onside_attribution.preview(event_id), '"payload".*,"event_datetime"')
FROM onside_attribution.outbox ORDER BY id;
TRUNCATE onside_attribution.outbox;

-- event_datetime
SELECT track_try(event_datetime => NULL);
SELECT track_try(event_datetime => 'infinity');
SELECT track_try(event_datetime => '-infinity');
SELECT track_try(event_datetime => '0001-12-31 23:59:59.999999+00 BC');
SELECT track_try(event_datetime => '0001-01-01 00:00:00+00');
SELECT track_try(event_datetime => '9999-12-31 23:59:59.999999+00');
SELECT track_try(event_datetime => '10000-01-01 00:00:00+00');
SELECT track_try(event_datetime => '294276-12-31 23:59:59.999999+00');
SELECT track_try(event_datetime => '2026-05-05 12:00:00.100+02');
SELECT track_try(event_datetime => '2026-05-05 12:00:00.000001-15:59');
SELECT substring(onside_attribution.preview(event_id), '"event_datetime":"[^"]*"')
FROM onside_attribution.outbox ORDER BY xid, id;
TRUNCATE onside_attribution.outbox;

-- event_id: version 4 of the RFC's variant alone
SELECT track_try(event_id => '0a0b0c0d-0001-4002-8003-000000000001');
SELECT track_try(event_id => '0a0b0c0d-0001-4002-b003-000000000001');
SELECT track_try(event_id => '0a0b0c0d-0001-4002-7003-000000000001');
SELECT track_try(event_id => '0a0b0c0d-0001-4002-c003-000000000001');
SELECT track_try(event_id => '2c5ea4c0-4067-11e9-8bad-9b1deb4d3b7d');
SELECT track_try(event_id => '017f22e2-79b0-7cc3-98c4-dc0c0c07398f');
SELECT track_try(event_id => '00000000-0000-0000-0000-000000000000');
SELECT count(*) FROM onside_attribution.outbox;
TRUNCATE onside_attribution.outbox;

-- An event must fit a request alone: {"events":[ and ]} around it, below
-- 1,000,000 bytes.
SELECT track_try(event_datetime => '2026-05-05 12:00:00+00', payload => jsonb_build_object('x', repeat('y', 999801)));
SELECT length(onside_attribution.preview(event_id)) + length('{"events":[]}') FROM onside_attribution.outbox;
SELECT onside_attribution.track('e', :user, jsonb_build_object('x', repeat('y', 999802)), '2026-05-05 12:00:00+00');
SELECT track_try(payload => jsonb_build_object('x', repeat('y', 20000000)));
-- Escapes and multibyte characters count as they are sent.
SELECT track_try(payload => jsonb_build_object('x', repeat(E'\x01', 170000)));
SELECT track_try(payload => jsonb_build_object('x', repeat('é', 500000)));
SELECT track_try(payload => jsonb_build_object('x', repeat('é', 490000)));
-- So do the digits of numbers that jsonb keeps in a few bytes.
SELECT track_try(payload => '{"x": 1e131071}');
SELECT track_try(payload => '{"x": [1e131071, 1e131071, {"y": [1e131071, 1e131071]}, 1e131071, 1e131071, 1e131071]}');
SELECT track_try(payload => '{"x": [1e131071, 1e131071, {"y": [1e131071, 1e131071]}, 1e131071, 1e131071, 1e131071, 1e131071]}');
SELECT try($$SELECT onside_attribution.track('e', gen_random_uuid(),
                                             ('{"x": [' || repeat('1e131071,', 50000) || '1]}')::jsonb)$$);
SELECT track_try(payload => ('{"x": [' || repeat('0,', 300000) || '0]}')::jsonb);
SELECT track_try(payload => ('{"x": [' || repeat('0,', 334000) || '0]}')::jsonb);
SELECT track_try(payload => ('{"x": [' || repeat('[],', 249000) || '0]}')::jsonb);
SELECT count(*) FROM onside_attribution.outbox;
TRUNCATE onside_attribution.outbox;

-- A read-only transaction records nothing.
BEGIN READ ONLY;
SELECT track_try();
ROLLBACK;

-- track_purchase: the payload, with the amount's exact digits and scale
SELECT onside_attribution.track_purchase(:user, 9.90, 'USD', event_id => '0a0b0c0d-0001-4002-8003-000000000001',
                                         event_datetime => '2026-05-05 12:00:00+00');
SELECT onside_attribution.preview('0a0b0c0d-0001-4002-8003-000000000001');
TRUNCATE onside_attribution.outbox;
SELECT count(onside_attribution.track_purchase(:user, amount, 'USD')) FROM (VALUES
    (9.90), (1e10), (0.000000001), (-5.00), (0), (0.00), (-0.0), (123456789012345678901234567890.123456789),
    (5::numeric(12, 4)), (1e-20), ('1e3')) AS amounts (amount);
SELECT payload FROM recorded;
TRUNCATE onside_attribution.outbox;
-- Its keys and those of extra
SELECT count(onside_attribution.track_purchase(:user, 1.5, 'EUR', extra => '{"sku": "gold", "n": 2, "tax": {"vat": [0.19, null]}}'));
SELECT count(onside_attribution.track_purchase(:user, 1.5, 'EUR', extra => NULL));
SELECT count(onside_attribution.track_purchase(:user, 1.5, 'EUR', extra => '{"Amount": 1, "amounts": 2}'));
SELECT event_name, payload FROM recorded;
TRUNCATE onside_attribution.outbox;

CREATE FUNCTION purchase_try(amount numeric DEFAULT 1, currency text DEFAULT 'USD',
                             installation_id uuid DEFAULT '550e8400-e29b-41d4-a716-446655440000',
                             extra jsonb DEFAULT '{}', event_datetime timestamptz DEFAULT now(),
                             event_id uuid DEFAULT NULL) RETURNS text
LANGUAGE sql AS $$
    SELECT t.try(format('SELECT onside_attribution.track_purchase(%L, %L, %L, %L, %L, %L)',
                        installation_id, amount, currency, event_datetime, event_id, extra))
$$;
SELECT purchase_try(amount => NULL);
SELECT purchase_try(amount => 'NaN');
SELECT purchase_try(amount => 'Infinity');
SELECT purchase_try(amount => '-Infinity');
SELECT purchase_try(currency => NULL);
SELECT purchase_try(currency => '');
SELECT purchase_try(installation_id => NULL);
SELECT purchase_try(event_datetime => NULL);
SELECT purchase_try(event_datetime => 'infinity');
SELECT purchase_try(event_id => '017f22e2-79b0-7cc3-98c4-dc0c0c07398f');
SELECT purchase_try(extra => '[]');
SELECT purchase_try(extra => '"amount"');
SELECT purchase_try(extra => 'null');
SELECT purchase_try(extra => '{"amount": 5}');
SELECT purchase_try(extra => '{"sku": "gold", "currency": "EUR"}');
SELECT purchase_try(extra => jsonb_build_object('x', repeat('y', 1000000)));
SELECT count(*) FROM onside_attribution.outbox;
