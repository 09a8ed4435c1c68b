\set ECHO none
-- What every file of these tests begins with:
--
--   \getenv abs_srcdir PG_ABS_SRCDIR
--   \set setup :abs_srcdir '/sql/include/setup.sql'
--   \i :setup
--
-- A new extension, a schema "t" for what the test makes, and try(), which says
-- how a command fails.  Nothing is sent, should the server be one that could.
SET client_encoding = 'UTF8';
SET client_min_messages = warning;

DO $$
BEGIN
    EXECUTE format('ALTER DATABASE %I SET onside_attribution.enabled = off',
                   current_database());
    -- Another test's events would keep the extension from being dropped.
    IF to_regclass('onside_attribution.outbox') IS NOT NULL THEN
        TRUNCATE onside_attribution.outbox, onside_attribution.aside;
    END IF;
END
$$;

DROP SCHEMA IF EXISTS t CASCADE;
DROP EXTENSION IF EXISTS onside_attribution;
CREATE EXTENSION onside_attribution;
CREATE SCHEMA t;
SET search_path = t;

-- "ok", or the error: SQLSTATE, message, hint, and the context's first line
-- where it is ours.  An event's size is left out: its time is shorter when
-- the microseconds end in zeros.  So is the hint about an unknown function,
-- which differs between the versions of PostgreSQL.
CREATE FUNCTION try(command text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    state text;
    message text;
    hint text;
    context text;
BEGIN
    EXECUTE command;
    RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE,
                            message = MESSAGE_TEXT,
                            hint = PG_EXCEPTION_HINT,
                            context = PG_EXCEPTION_CONTEXT;
    RETURN concat_ws(E'\n', state || ' ' || regexp_replace(message, 'has \d+ bytes', 'has N bytes'),
                     '  ' || CASE WHEN state <> '42883' THEN nullif(hint, '') END,
                     '  ' || substring(context, 'event \d+ of the batch|condition of attach'));
END
$$;

-- The outbox without what differs from run to run.
CREATE VIEW recorded AS
    SELECT event_name, payload, installation_id
    FROM onside_attribution.outbox
    ORDER BY xid, id;

\pset tuples_only on
\pset format unaligned
SET client_min_messages = notice;
\set ECHO all
