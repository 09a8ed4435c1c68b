-- What is recorded and sent does not depend on a session's settings; and the
-- settings of the extension are what the documentation says.
\getenv abs_srcdir PG_ABS_SRCDIR
\set setup :abs_srcdir '/sql/include/setup.sql'
\i :setup

\set user '''550e8400-e29b-41d4-a716-446655440000'''
CREATE TABLE source (install_id uuid, at timestamptz, ts timestamp, d date, iv interval, f float8, mon money, byt bytea, times timestamptz[], txt text, uid uuid);
CREATE TRIGGER report AFTER INSERT ON source REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.track_row(
    'event_name=row', 'installation_id=install_id', 'payload.at=at', 'payload.ts=ts', 'payload.d=d', 'payload.iv=iv', 'payload.f=f', 'payload.mon=mon',
    'payload.byt=byt', 'payload.times=times', 'payload.txt=txt', 'event_datetime=at', 'event_id=uid');
PREPARE fill(uuid, uuid) AS
    WITH w AS (INSERT INTO source VALUES (:user, '2026-05-05T12:00:00.5Z', '2026-05-04T12:00:00', '2026-05-04', 'P1Y2M3DT4H5M6.7S', 0.1::float8 + 0.2::float8,
                                          1234.5::numeric::money, '\x00ff41', ARRAY['2026-05-05T12:00:00Z'::timestamptz], 'é€', $1))
    SELECT onside_attribution.track('track', :user, '{"n": 1.50, "f": 1e-7, "text": "é€"}', '2026-05-05T12:00:00.5Z', $2) IS NOT NULL;
CREATE FUNCTION set_all(a text, b text, c text, d text, e text) RETURNS text LANGUAGE sql AS $$
    SELECT concat_ws('|', set_config('datestyle', a, false), set_config('timezone', b, false), set_config('intervalstyle', c, false),
                     set_config('extra_float_digits', d, false), set_config('bytea_output', e, false))
$$;
SELECT set_all('ISO, MDY', 'UTC', 'postgres', '1', 'hex');
EXECUTE fill('0a0b0c0d-0001-4002-8003-000000000001', '0a0b0c0d-0001-4002-8003-000000000011');
SELECT onside_attribution.preview('0a0b0c0d-0001-4002-8003-000000000001');
SELECT onside_attribution.preview('0a0b0c0d-0001-4002-8003-000000000011');
CREATE TABLE previews AS
    SELECT right(event_id::text, 2)::int / 10 AS way, 'none' AS settings, regexp_replace(onside_attribution.preview(event_id), '0a0b0c0d-0001-4002-8003-\d+', 'id') AS text
    FROM onside_attribution.outbox;
CREATE FUNCTION keep() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE n bigint;
BEGIN
    INSERT INTO t.previews
        SELECT right(event_id::text, 2)::int / 10, current_setting('datestyle') || current_setting('timezone') || current_setting('client_encoding'),
               regexp_replace(onside_attribution.preview(event_id), '0a0b0c0d-0001-4002-8003-\d+', 'id')
        FROM onside_attribution.outbox;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END
$$;
-- Recorded under other settings, read under those and others
SELECT set_all('SQL, DMY', 'Asia/Kathmandu', 'iso_8601', '-15', 'escape');
EXECUTE fill('0a0b0c0d-0001-4002-8003-000000000002', '0a0b0c0d-0001-4002-8003-000000000012');
SELECT keep();
SELECT set_all('German', 'America/St_Johns', 'sql_standard', '3', 'hex');
EXECUTE fill('0a0b0c0d-0001-4002-8003-000000000003', '0a0b0c0d-0001-4002-8003-000000000013');
SELECT keep();
SELECT set_all('Postgres, YMD', 'Pacific/Auckland', 'postgres_verbose', '0', 'escape') IS NOT NULL;
SELECT keep();
SELECT set_all('ISO, YMD', '<+13>-13', 'postgres', '1', 'hex');
SET lc_numeric = 'C'; SET lc_time = 'C'; SET quote_all_identifiers = on;
-- Where they can still be set, which is until 18
DO $$
BEGIN
    SET standard_conforming_strings = off;
    SET escape_string_warning = off;
EXCEPTION WHEN OTHERS THEN NULL;
END
$$;
EXECUTE fill('0a0b0c0d-0001-4002-8003-000000000004', '0a0b0c0d-0001-4002-8003-000000000014');
SELECT keep();
RESET lc_numeric; RESET lc_time; RESET quote_all_identifiers; RESET standard_conforming_strings;
DO $$
BEGIN
    RESET escape_string_warning;
EXCEPTION WHEN OTHERS THEN NULL;
END
$$;
-- A client of another encoding that has these characters too
SET client_encoding = 'WIN1252';
EXECUTE fill('0a0b0c0d-0001-4002-8003-000000000005', '0a0b0c0d-0001-4002-8003-000000000015');
SELECT keep();
SET client_encoding = 'UTF8';
SELECT way, count(*), count(DISTINCT text) FROM previews GROUP BY way ORDER BY way;
SELECT count(*), count(DISTINCT payload) FROM onside_attribution.outbox WHERE event_name = 'row';
RESET datestyle; RESET timezone; RESET intervalstyle; RESET extra_float_digits; RESET bytea_output;

-- The settings themselves.  (max_databases can only be set at server start;
-- without preloading it has no effect.)
SELECT name, vartype, boot_val, unit, min_val, max_val, enumvals, CASE WHEN name NOT LIKE '%max_databases' THEN context END
FROM pg_settings WHERE name LIKE 'onside\_attribution.%' ORDER BY name COLLATE "C";
-- There is none for a password, and none that does not exist.
SELECT try('SET onside_attribution.password = ''x''');
SELECT try('SET onside_attribution.batch_max_event = 5');
-- Out of range, or no value at all
SELECT try('SET onside_attribution.batch_max_events = 0');
SELECT try('SET onside_attribution.batch_max_events = 1001');
SELECT try('SET onside_attribution.batch_max_bytes = 1000001');
SELECT try('SET onside_attribution.batch_max_bytes = ''1 MB''');
SELECT try('SET onside_attribution.max_in_flight = 0');
SELECT try('SET onside_attribution.on_invalid_event = ''ignore''');
SELECT try('SET onside_attribution.retention = ''-1 s''');
SELECT try('SET onside_attribution.retention = ''7 days''');
SELECT try('SET onside_attribution.current_segment = 2');
-- Credentials must not go over the wire in clear text.
CREATE FUNCTION endpoint_try(url text) RETURNS text LANGUAGE sql AS $$
    SELECT split_part(t.try(format('SET onside_attribution.endpoint = %L', url)), E'\n', 1)
$$;
SELECT format('%-50s %s', url, endpoint_try(url)) FROM (VALUES
    ('https://onside.io/attribution-api/v1/events'), ('https://localhost:8443/x'), ('http://127.0.0.1:8080/x'), ('http://[::1]:8080/x'), ('http://localhost/x'),
    ('http://onside.io/attribution-api/v1/events'), ('http://127.0.0.1.example.com/'), ('http://localhost.example.com/'), ('http://127.0.0.1@example.com/'),
    ('https://user:password@onside.io/'), ('ftp://127.0.0.1/'), ('file:///etc/passwd'), ('onside.io'), ('https://'), ('')) AS urls (url);
-- All but max_databases can be set for a database.
DO $$
DECLARE
    setting record;
BEGIN
    FOR setting IN SELECT * FROM pg_settings WHERE name LIKE 'onside\_attribution.%' AND name NOT IN ('onside_attribution.max_databases', 'onside_attribution.current_segment') LOOP
        EXECUTE format('ALTER DATABASE %I SET %s = %L', current_database(), setting.name, setting.boot_val);
        EXECUTE format('ALTER DATABASE %I RESET %s', current_database(), setting.name);
    END LOOP;
    EXECUTE format('ALTER DATABASE %I SET onside_attribution.enabled = off', current_database());
END
$$;
-- Where data and credentials go is for superusers to say, and for whom they
-- let; what a trigger does with an invalid row, for each session.
CREATE ROLE regress_onside_settings;
GRANT USAGE ON SCHEMA t TO regress_onside_settings;
SET ROLE regress_onside_settings;
SELECT name FROM pg_settings WHERE name LIKE 'onside\_attribution.%' AND context = 'user';
SELECT format('%-40s %s', name, public_try) FROM (VALUES
    ('endpoint'), ('credentials_file'), ('ca_file'), ('proxy'), ('enabled'), ('batch_max_events'), ('max_in_flight'), ('linger'), ('request_timeout'), ('retention'), ('segment_size')) AS n (name),
    LATERAL (SELECT has_parameter_privilege('onside_attribution.' || name, 'SET') AS public_try) AS p;
SELECT left(try('SET onside_attribution.endpoint = ''https://example.com/'''), 5);
SELECT left(try('SHOW onside_attribution.credentials_file'), 5);
SELECT left(try('SHOW onside_attribution.proxy'), 5);
SELECT left(try('SHOW onside_attribution.proxy_credentials_file'), 5);
SET onside_attribution.on_invalid_event = 'dead_letter';
RESET ROLE;
GRANT SET ON PARAMETER onside_attribution.linger TO regress_onside_settings;
SET ROLE regress_onside_settings;
SET onside_attribution.linger = '5ms';
RESET ROLE;
REVOKE SET ON PARAMETER onside_attribution.linger FROM regress_onside_settings;
DROP OWNED BY regress_onside_settings;
DROP ROLE regress_onside_settings;
