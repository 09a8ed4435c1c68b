/* onside_attribution--0.9--1.0.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION onside_attribution UPDATE TO '1.0'" to load this file. \quit

-- Whatever the control file says: nothing in here is looked up elsewhere.
SET LOCAL search_path = pg_catalog, pg_temp;

-- What runs with the owner's rights executes no trigger or rule that somebody
-- has put on one of the tables.
ALTER FUNCTION onside_attribution.pause(text) SET session_replication_role = replica;
ALTER FUNCTION onside_attribution.resume() SET session_replication_role = replica;
ALTER FUNCTION onside_attribution.retry_dead_letters(uuid[]) SET session_replication_role = replica;

-- Two calls at once do not record the same event.
CREATE OR REPLACE FUNCTION onside_attribution.replay(
    since timestamptz,
    until timestamptz DEFAULT pg_catalog.now())
RETURNS bigint
LANGUAGE sql VOLATILE STRICT SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET session_replication_role = replica
AS $$
    -- Another call must see what this one has recorded.
    SELECT pg_advisory_xact_lock('pg_class'::regclass::oid::integer,
                                 'onside_attribution.outbox'::regclass::oid::integer);
    WITH settled AS (
        SELECT DISTINCT ON (o.event_id) o.*
        FROM onside_attribution.outbox o
        WHERE o.recorded_at >= since AND o.recorded_at <= until
          AND NOT EXISTS (SELECT FROM onside_attribution.pending p
                          WHERE p.event_id = o.event_id)
          AND NOT EXISTS (SELECT FROM onside_attribution.dead_letter d
                          WHERE d.event_id = o.event_id)
        ORDER BY o.event_id, o.recorded_at
    ), recorded AS (
        INSERT INTO onside_attribution.outbox
            (event_id, event_name, payload, event_datetime, installation_id)
        SELECT s.event_id, s.event_name, s.payload, s.event_datetime, s.installation_id
        FROM settled s
        ORDER BY s.xid, s.id
        RETURNING 1
    )
    SELECT count(*) FROM recorded
$$;

COMMENT ON FUNCTION onside_attribution.track_row() IS
    'Trigger function, AFTER INSERT or UPDATE: FOR EACH ROW, or FOR EACH STATEMENT with REFERENCING NEW TABLE (manual: CREATE TRIGGER). '
    'Its arguments are target=column: event_name (a literal instead of a column) and installation_id, which must be there, event_datetime, event_id and payload.KEY. '
    'A row with a NULL installation_id is skipped. Errors: as track(), unless on_invalid_event says otherwise; 42703, 42804, 0A000 for a mapped column that '
    'does not exist, has an unsuitable type or is a virtual generated one; 22023, 22004 for its arguments; 39P01 if fired in another way';
COMMENT ON FUNCTION onside_attribution.attach(regclass, text, name, jsonb, name, name, text, text) IS
    'Makes a trigger that records an event for each inserted or updated row of a table. In: installation_id, event_datetime, event_id: columns; payload: '
    'an object of keys and columns; operation: INSERT, UPDATE or INSERT OR UPDATE; condition: a WHEN clause (manual: CREATE TRIGGER). Out: the trigger''s name. '
    'Needs TRIGGER on the table. Errors: 22004, 22023 for the arguments; 42703, 42804, 0A000 for a column as track_row(); 42809 if it is no table; 42501 without the '
    'privilege; 42601 for a condition that is no expression; 42P17 for one of an INSERT that refers to OLD; 42710 if the event is attached to the table already; '
    'else as CREATE TRIGGER';
COMMENT ON COLUMN onside_attribution.pending.event_id IS 'As in the outbox';
COMMENT ON COLUMN onside_attribution.pending.event_name IS 'As in the outbox';
COMMENT ON COLUMN onside_attribution.pending.payload IS 'As in the outbox';
COMMENT ON COLUMN onside_attribution.pending.event_datetime IS 'As in the outbox';
COMMENT ON COLUMN onside_attribution.pending.installation_id IS 'As in the outbox';
COMMENT ON COLUMN onside_attribution.pending.recorded_at IS 'When the event was recorded';
COMMENT ON COLUMN onside_attribution.pending.xid IS 'Transaction that inserted it';
COMMENT ON COLUMN onside_attribution.pending.id IS '(xid, id) is the event''s place in the log';
COMMENT ON COLUMN onside_attribution.delivery_cursor.singleton IS 'Always true: there is one row';
COMMENT ON COLUMN onside_attribution.control.singleton IS 'Always true: there is one row';

/*
 * Statistics
 */

CREATE FUNCTION onside_attribution.delivery_stats(
    OUT recorded bigint,
    OUT skipped bigint,
    OUT delivered bigint,
    OUT dead_lettered bigint,
    OUT events_sent bigint,
    OUT bytes_sent bigint,
    OUT connections bigint,
    OUT requests bigint,
    OUT retries bigint,
    OUT back_offs bigint,
    OUT responses_204 bigint,
    OUT responses_other_2xx bigint,
    OUT responses_3xx bigint,
    OUT responses_400 bigint,
    OUT responses_401_403 bigint,
    OUT responses_408_425 bigint,
    OUT responses_413 bigint,
    OUT responses_429 bigint,
    OUT responses_other_4xx bigint,
    OUT responses_503 bigint,
    OUT responses_other_5xx bigint,
    OUT timeouts bigint,
    OUT connection_failures bigint,
    OUT malformed bigint,
    OUT delivery_count bigint,
    OUT delivery_ms_sum double precision,
    OUT delivery_ms_p50 double precision,
    OUT delivery_ms_p90 double precision,
    OUT delivery_ms_p99 double precision,
    OUT delivery_ms_max double precision,
    OUT request_count bigint,
    OUT request_ms_sum double precision,
    OUT request_ms_p50 double precision,
    OUT request_ms_p90 double precision,
    OUT request_ms_p99 double precision,
    OUT request_ms_max double precision,
    OUT stats_reset timestamptz)
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'onside_stats';

CREATE VIEW onside_attribution.stats AS
    SELECT * FROM onside_attribution.delivery_stats();

CREATE FUNCTION onside_attribution.delivery_histogram(
    OUT metric text,
    OUT le double precision,
    OUT count bigint)
RETURNS SETOF record
LANGUAGE C VOLATILE ROWS 252
AS 'MODULE_PATHNAME', 'onside_stats_histogram';

CREATE VIEW onside_attribution.stats_histogram AS
    SELECT * FROM onside_attribution.delivery_histogram();

CREATE FUNCTION onside_attribution.stats_reset()
RETURNS void
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'onside_stats_reset';

COMMENT ON FUNCTION onside_attribution.delivery_stats() IS
    'Beneath the view stats, which says what the columns are';
COMMENT ON FUNCTION onside_attribution.delivery_histogram() IS
    'Beneath the view stats_histogram, which says what the columns are';
COMMENT ON FUNCTION onside_attribution.stats_reset() IS
    'Begins the statistics of the current database anew: all of stats and stats_histogram, nothing of status';
COMMENT ON VIEW onside_attribution.stats IS
    'What delivery from this database has done since stats_reset, in one row. Survives a restart of the worker and of the server, but not a crash; '
    'is not replicated. All NULL where nothing can have been counted: on a standby, or without preloading. Times are in milliseconds';
COMMENT ON COLUMN onside_attribution.stats.recorded IS
    'Events committed by sessions of this server; not those of prepared transactions and of logical replication';
COMMENT ON COLUMN onside_attribution.stats.skipped IS 'Rows of attached tables that had no installation_id and so are no events; counted when read, even if the transaction is rolled back';
COMMENT ON COLUMN onside_attribution.stats.delivered IS 'Events delivered';
COMMENT ON COLUMN onside_attribution.stats.dead_lettered IS 'Events that the API refused for good';
COMMENT ON COLUMN onside_attribution.stats.events_sent IS 'Events in requests, each as often as it was sent';
COMMENT ON COLUMN onside_attribution.stats.bytes_sent IS 'Bytes of the requests'' bodies';
COMMENT ON COLUMN onside_attribution.stats.connections IS 'Connections made';
COMMENT ON COLUMN onside_attribution.stats.requests IS 'HTTP requests begun. One that libcurl repeats by itself, because a kept connection turned out to be closed, counts once';
COMMENT ON COLUMN onside_attribution.stats.retries IS 'Those of them that sent once more what a failed request had carried';
COMMENT ON COLUMN onside_attribution.stats.back_offs IS 'Waits that failures have caused';
COMMENT ON COLUMN onside_attribution.stats.responses_204 IS 'Requests answered by 204, the acknowledgement. A request is counted in one of the columns from here to malformed when it ends';
COMMENT ON COLUMN onside_attribution.stats.responses_other_2xx IS 'By any other 2xx, which acknowledges nothing';
COMMENT ON COLUMN onside_attribution.stats.responses_3xx IS 'By 3xx: a redirect, never followed';
COMMENT ON COLUMN onside_attribution.stats.responses_400 IS 'By 400: events were refused';
COMMENT ON COLUMN onside_attribution.stats.responses_401_403 IS 'By 401 or 403: the credentials were';
COMMENT ON COLUMN onside_attribution.stats.responses_408_425 IS 'By 408 or 425: sent again';
COMMENT ON COLUMN onside_attribution.stats.responses_413 IS 'By 413: the body was too large';
COMMENT ON COLUMN onside_attribution.stats.responses_429 IS 'By 429: the API asks to send less';
COMMENT ON COLUMN onside_attribution.stats.responses_other_4xx IS 'By any other 4xx';
COMMENT ON COLUMN onside_attribution.stats.responses_503 IS 'By 503';
COMMENT ON COLUMN onside_attribution.stats.responses_other_5xx IS 'By any other 5xx';
COMMENT ON COLUMN onside_attribution.stats.timeouts IS 'Not answered in time (connect_timeout, request_timeout)';
COMMENT ON COLUMN onside_attribution.stats.connection_failures IS 'Not answered because no connection could be made (name, route, TLS), or it broke';
COMMENT ON COLUMN onside_attribution.stats.malformed IS 'Answered by something that is no complete HTTP answer';
COMMENT ON COLUMN onside_attribution.stats.delivery_count IS 'Events whose delivery was timed, from recorded_at to the acknowledgement. recorded_at is a little before the commit, and the age of a restored event counts';
COMMENT ON COLUMN onside_attribution.stats.delivery_ms_sum IS 'Their times added up';
COMMENT ON COLUMN onside_attribution.stats.delivery_ms_p50 IS 'Half of them took no longer; off by a quarter at most, as the other two';
COMMENT ON COLUMN onside_attribution.stats.delivery_ms_p90 IS '90 % of them took no longer';
COMMENT ON COLUMN onside_attribution.stats.delivery_ms_p99 IS '99 % of them took no longer';
COMMENT ON COLUMN onside_attribution.stats.delivery_ms_max IS 'The longest; exact';
COMMENT ON COLUMN onside_attribution.stats.request_count IS 'Requests that were timed: those with an answer, whatever it was';
COMMENT ON COLUMN onside_attribution.stats.request_ms_sum IS 'Their times added up, each with connecting if it had to';
COMMENT ON COLUMN onside_attribution.stats.request_ms_p50 IS 'Half of them took no longer; off by a quarter at most, as the other two';
COMMENT ON COLUMN onside_attribution.stats.request_ms_p90 IS '90 % of them took no longer';
COMMENT ON COLUMN onside_attribution.stats.request_ms_p99 IS '99 % of them took no longer';
COMMENT ON COLUMN onside_attribution.stats.request_ms_max IS 'The longest; exact';
COMMENT ON COLUMN onside_attribution.stats.stats_reset IS 'Since when all this counts: stats_reset(), a crash, or CREATE EXTENSION';
COMMENT ON VIEW onside_attribution.stats_histogram IS
    'The two distributions of stats, in cumulative buckets as Prometheus has them. Rows can be left out, since each bucket includes those below it; the bounds never change';
COMMENT ON COLUMN onside_attribution.stats_histogram.metric IS 'delivery (of events) or request';
COMMENT ON COLUMN onside_attribution.stats_histogram.le IS 'Upper bound in milliseconds, inclusive; the last is Infinity';
COMMENT ON COLUMN onside_attribution.stats_histogram.count IS 'How many took no longer';

CREATE FUNCTION onside_attribution.doctor()
RETURNS TABLE (check_name text, ok boolean, detail text, hint text)
LANGUAGE C VOLATILE PARALLEL UNSAFE SECURITY DEFINER ROWS 22
SET search_path = pg_catalog, pg_temp SET session_replication_role = replica
SET lock_timeout = '5s'
AS 'MODULE_PATHNAME', 'onside_doctor';

COMMENT ON FUNCTION onside_attribution.doctor() IS
    'Everything to look at when nothing arrives, one row a check. Out: check_name; ok, NULL if it cannot be known; detail, what was found; '
    'hint, what to do, for a row that is not ok. Sends no event; connects to the endpoint and disconnects, for which it takes 5 seconds at most. Errors: 55P03 if a table is locked for long';

/*
 * Backfill: what is remembered of attached events, and how far it has come.
 * Written by attach() and backfill() alone.
 */

CREATE TABLE onside_attribution.attachment (
    source oid NOT NULL,
    event_name text NOT NULL,
    event_id smallint NOT NULL,
    rows_before pg_snapshot NOT NULL,
    attached_by xid8 NOT NULL,
    attached_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    namespace uuid NOT NULL,
    PRIMARY KEY (source, event_name)
);

CREATE TABLE onside_attribution.backfill_state (
    source oid NOT NULL,
    event_name text NOT NULL,
    role oid NOT NULL,
    since timestamptz NOT NULL,
    until timestamptz NOT NULL,
    key_columns smallint[],
    "position" text[],
    recorded bigint NOT NULL DEFAULT 0,
    skipped bigint NOT NULL DEFAULT 0,
    dead_lettered bigint NOT NULL DEFAULT 0,
    not_due bigint NOT NULL DEFAULT 0,
    left_out bigint NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    finished_at timestamptz,
    PRIMARY KEY (source, event_name, role, since, until)
);

CREATE PROCEDURE onside_attribution.backfill(
    source regclass,
    event_name text,
    since timestamptz DEFAULT NULL,
    until timestamptz DEFAULT NULL)
LANGUAGE C
AS 'MODULE_PATHNAME', 'onside_backfill';

CREATE VIEW onside_attribution.backfill_progress AS
    SELECT s.source::regclass AS source,
           s.event_name,
           CASE WHEN s.role <> 0 THEN s.role::regrole END AS role,
           CASE WHEN pg_catalog.isfinite(s.since) THEN s.since END AS since,
           CASE WHEN pg_catalog.isfinite(s.until) THEN s.until END AS until,
           s.recorded,
           s.skipped,
           s.dead_lettered,
           s.not_due,
           s.left_out,
           s."position",
           s.started_at,
           s.updated_at,
           s.finished_at
    FROM onside_attribution.backfill_state s;

COMMENT ON TABLE onside_attribution.attachment IS
    'Since when events have been attached, for backfill(). A row stays when the event is detached: what the trigger has recorded then has been recorded';
COMMENT ON COLUMN onside_attribution.attachment.source IS 'OID of the table';
COMMENT ON COLUMN onside_attribution.attachment.event_name IS 'Event that its rows become';
COMMENT ON COLUMN onside_attribution.attachment.event_id IS 'Number of the column of the event_id when it was attached first; 0 if none was mapped';
COMMENT ON COLUMN onside_attribution.attachment.rows_before IS
    'Rows that are visible in this snapshot have not been written since, so the trigger has not recorded them';
COMMENT ON COLUMN onside_attribution.attachment.attached_by IS 'Transaction that has attached it first';
COMMENT ON COLUMN onside_attribution.attachment.attached_at IS 'When that was';
COMMENT ON COLUMN onside_attribution.attachment.namespace IS 'From which backfill() derives the event_id of a row that has none of its own';

COMMENT ON TABLE onside_attribution.backfill_state IS
    'How far each backfill() has come. A row that is deleted lets it begin anew';
COMMENT ON COLUMN onside_attribution.backfill_state.source IS 'OID of the table';
COMMENT ON COLUMN onside_attribution.backfill_state.event_name IS 'Event that its rows become';
COMMENT ON COLUMN onside_attribution.backfill_state.role IS 'Role whose row security policies decide which rows it sees; 0 if none do';
COMMENT ON COLUMN onside_attribution.backfill_state.since IS 'Argument of backfill(); -infinity for NULL';
COMMENT ON COLUMN onside_attribution.backfill_state.until IS 'Argument of backfill(); infinity for NULL';
COMMENT ON COLUMN onside_attribution.backfill_state.key_columns IS 'Numbers of the columns by which the rows are read; NULL before the first';
COMMENT ON COLUMN onside_attribution.backfill_state."position" IS 'Their values in the last row that was read, as text';
COMMENT ON COLUMN onside_attribution.backfill_state.recorded IS 'See backfill_progress, as for those below';
COMMENT ON COLUMN onside_attribution.backfill_state.skipped IS 'See backfill_progress';
COMMENT ON COLUMN onside_attribution.backfill_state.dead_lettered IS 'See backfill_progress';
COMMENT ON COLUMN onside_attribution.backfill_state.not_due IS 'See backfill_progress';
COMMENT ON COLUMN onside_attribution.backfill_state.left_out IS 'See backfill_progress';
COMMENT ON COLUMN onside_attribution.backfill_state.started_at IS 'See backfill_progress';
COMMENT ON COLUMN onside_attribution.backfill_state.updated_at IS 'See backfill_progress';
COMMENT ON COLUMN onside_attribution.backfill_state.finished_at IS 'See backfill_progress';

COMMENT ON PROCEDURE onside_attribution.backfill(regclass, text, timestamptz, timestamptz) IS
    'Records an event for each row that an attached table holds, in chunks that it commits; called again, it goes on where it has stopped. Rows with an event_id of '
    'their own are recorded under it, also if the trigger has done so; others if they have not been written since the event was attached first. '
    'In: the table, the event, and from when to when the events shall have occurred, both ends included, by the mapped event_datetime. '
    'Needs SELECT on the table. Errors: 2D000 in a transaction block; 42704 if the event is not attached; 42P08 if several triggers report it; 42701 if a column has '
    'the name that it uses for the row; 55000 if the rows have no key or another one than when it was begun, none is known to be unreported, or its row of '
    'backfill_state was deleted meanwhile; 0A000 if the key''s columns have no common order; 22004, 22023 for the arguments; 25006; 42501; else as track_row()';

COMMENT ON VIEW onside_attribution.backfill_progress IS 'How far each backfill() has come, and what has become of the rows';
COMMENT ON COLUMN onside_attribution.backfill_progress.source IS 'Table';
COMMENT ON COLUMN onside_attribution.backfill_progress.event_name IS 'Event that its rows become';
COMMENT ON COLUMN onside_attribution.backfill_progress.role IS 'Role that called it, if row security policies decide which rows it sees; otherwise NULL';
COMMENT ON COLUMN onside_attribution.backfill_progress.since IS 'As it was called';
COMMENT ON COLUMN onside_attribution.backfill_progress.until IS 'As it was called';
COMMENT ON COLUMN onside_attribution.backfill_progress.recorded IS 'Rows that were recorded';
COMMENT ON COLUMN onside_attribution.backfill_progress.skipped IS 'Rows without an installation_id';
COMMENT ON COLUMN onside_attribution.backfill_progress.dead_lettered IS 'Rows that are no valid event and were put into dead_letter';
COMMENT ON COLUMN onside_attribution.backfill_progress.not_due IS 'Rows that do not meet the condition, or lie outside of since and until';
COMMENT ON COLUMN onside_attribution.backfill_progress.left_out IS
    'Rows that were written after the event was attached and have no event_id of their own, so that it cannot be known whether the trigger has recorded them; '
    'and rows for which a condition on OLD is unknown';
COMMENT ON COLUMN onside_attribution.backfill_progress."position" IS 'Key of the last row that was read';
COMMENT ON COLUMN onside_attribution.backfill_progress.started_at IS 'When it was called first';
COMMENT ON COLUMN onside_attribution.backfill_progress.updated_at IS 'When the last chunk was committed';
COMMENT ON COLUMN onside_attribution.backfill_progress.finished_at IS 'When it had read all rows; NULL until then';

REVOKE ALL ON PROCEDURE onside_attribution.backfill(regclass, text, timestamptz, timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION onside_attribution.delivery_stats() FROM PUBLIC;
REVOKE ALL ON FUNCTION onside_attribution.delivery_histogram() FROM PUBLIC;
REVOKE ALL ON FUNCTION onside_attribution.stats_reset() FROM PUBLIC;
REVOKE ALL ON FUNCTION onside_attribution.doctor() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION onside_attribution.delivery_stats() TO pg_monitor;
GRANT EXECUTE ON FUNCTION onside_attribution.delivery_histogram() TO pg_monitor;
GRANT SELECT ON onside_attribution.stats TO pg_monitor;
GRANT SELECT ON onside_attribution.stats_histogram TO pg_monitor;
GRANT EXECUTE ON FUNCTION onside_attribution.doctor() TO pg_monitor;
