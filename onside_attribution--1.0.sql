/* onside_attribution--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION onside_attribution" to load this file. \quit

-- Whatever the control file says: nothing in here is looked up elsewhere.
SET LOCAL search_path = pg_catalog, pg_temp;

-- Fails if somebody has made it before, whose objects would be among ours.
CREATE SCHEMA onside_attribution;

/*
 * The log.  Rows are only ever appended; segments are emptied whole.
 */

CREATE TABLE onside_attribution.outbox (
    event_id uuid NOT NULL,
    event_name text NOT NULL,
    payload jsonb NOT NULL,
    event_datetime timestamptz NOT NULL DEFAULT pg_catalog.now(),
    installation_id uuid NOT NULL,
    recorded_at timestamptz NOT NULL,
    -- An xid from elsewhere must never get in, not even with triggers disabled.
    xid xid8 NOT NULL
        CONSTRAINT xid_is_the_recording_transaction
        CHECK (xid OPERATOR(pg_catalog.=) pg_catalog.pg_current_xact_id()),
    id bigint NOT NULL,
    segment smallint NOT NULL
        DEFAULT COALESCE(pg_catalog.current_setting('onside_attribution.current_segment', true), '1')::smallint
) PARTITION BY LIST (segment);

CREATE FUNCTION onside_attribution.before_change() RETURNS trigger
LANGUAGE C AS 'MODULE_PATHNAME', 'onside_before_change';

CREATE TABLE onside_attribution.outbox_1 PARTITION OF onside_attribution.outbox FOR VALUES IN (1)
    WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE TABLE onside_attribution.outbox_2 PARTITION OF onside_attribution.outbox FOR VALUES IN (2)
    WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE TABLE onside_attribution.outbox_3 PARTITION OF onside_attribution.outbox FOR VALUES IN (3)
    WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);

-- No two rows have the same key, so looking for such is in vain.
CREATE INDEX outbox_1_xid_id_idx ON onside_attribution.outbox_1 (xid, id) WITH (deduplicate_items = off);
CREATE INDEX outbox_2_xid_id_idx ON onside_attribution.outbox_2 (xid, id) WITH (deduplicate_items = off);
CREATE INDEX outbox_3_xid_id_idx ON onside_attribution.outbox_3 (xid, id) WITH (deduplicate_items = off);

CREATE TRIGGER onside_before_change BEFORE INSERT OR UPDATE OR DELETE ON onside_attribution.outbox_1
    FOR EACH ROW EXECUTE FUNCTION onside_attribution.before_change();
CREATE TRIGGER onside_before_change BEFORE INSERT OR UPDATE OR DELETE ON onside_attribution.outbox_2
    FOR EACH ROW EXECUTE FUNCTION onside_attribution.before_change();
CREATE TRIGGER onside_before_change BEFORE INSERT OR UPDATE OR DELETE ON onside_attribution.outbox_3
    FOR EACH ROW EXECUTE FUNCTION onside_attribution.before_change();

ALTER TABLE onside_attribution.outbox_1 ENABLE ALWAYS TRIGGER onside_before_change;
ALTER TABLE onside_attribution.outbox_2 ENABLE ALWAYS TRIGGER onside_before_change;
ALTER TABLE onside_attribution.outbox_3 ENABLE ALWAYS TRIGGER onside_before_change;

-- So that a person can withdraw an event where all tables are published.
ALTER TABLE onside_attribution.outbox REPLICA IDENTITY FULL;
ALTER TABLE onside_attribution.outbox_1 REPLICA IDENTITY FULL;
ALTER TABLE onside_attribution.outbox_2 REPLICA IDENTITY FULL;
ALTER TABLE onside_attribution.outbox_3 REPLICA IDENTITY FULL;

/*
 * How far delivery has come; written by the worker alone.  '1:1:' has seen
 * nothing, so everything in the outbox is still to be sent.
 *
 * This table and "control" say whose they are: written_by is the transaction
 * that wrote the row here, and so its xmin.  The row that is made here says
 * nothing yet.
 */
CREATE TABLE onside_attribution.delivery_cursor (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    written_by xid8,
    settled pg_snapshot NOT NULL,
    settled_window pg_snapshot,
    settled_xid xid8,
    settled_id bigint,
    segment smallint NOT NULL,
    begun_at timestamptz[],
    left_at timestamptz[],
    delivered bigint NOT NULL,
    dead_lettered bigint NOT NULL,
    requests bigint NOT NULL,
    retries bigint NOT NULL,
    refused_in_row integer NOT NULL,
    trouble_since timestamptz,
    not_before timestamptz,
    CHECK ((settled_window IS NULL) OPERATOR(pg_catalog.=) (settled_xid IS NULL)),
    CHECK ((settled_window IS NULL) OPERATOR(pg_catalog.=) (settled_id IS NULL))
);

INSERT INTO onside_attribution.delivery_cursor VALUES
    (true, NULL, '1:1:', NULL, NULL, NULL, 1, NULL, NULL, 0, 0, 0, 0, 0, NULL, NULL);

/* What a DBA has decided; written by pause() and resume(). */
CREATE TABLE onside_attribution.control (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    written_by xid8,
    paused boolean NOT NULL,
    pause_reason text,
    paused_at timestamptz
);

INSERT INTO onside_attribution.control VALUES (true, NULL, false, NULL, NULL);

/*
 * What distinguishes the keys of this database from those of others that report to
 * the same account.  A dump carries it, and its row takes the place of the one that
 * is made here.
 */
CREATE TABLE onside_attribution.namespace (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid()
);

INSERT INTO onside_attribution.namespace DEFAULT VALUES;

CREATE FUNCTION onside_attribution.take_namespace() RETURNS trigger
LANGUAGE C AS 'MODULE_PATHNAME', 'onside_take_namespace';

CREATE TRIGGER onside_take_namespace BEFORE INSERT OR UPDATE OR DELETE ON onside_attribution.namespace
    FOR EACH ROW EXECUTE FUNCTION onside_attribution.take_namespace();
ALTER TABLE onside_attribution.namespace ENABLE ALWAYS TRIGGER onside_take_namespace;

/*
 * A row of state that comes by SQL or by logical replication is dropped, and the
 * rows that are there stay: a cursor from elsewhere would skip events.
 */
CREATE FUNCTION onside_attribution.keep_state() RETURNS trigger
LANGUAGE C AS 'MODULE_PATHNAME', 'onside_keep_state';

CREATE TRIGGER onside_keep_state BEFORE INSERT OR UPDATE OR DELETE ON onside_attribution.delivery_cursor
    FOR EACH ROW EXECUTE FUNCTION onside_attribution.keep_state();
CREATE TRIGGER onside_keep_state BEFORE INSERT OR UPDATE OR DELETE ON onside_attribution.control
    FOR EACH ROW EXECUTE FUNCTION onside_attribution.keep_state();

ALTER TABLE onside_attribution.delivery_cursor ENABLE ALWAYS TRIGGER onside_keep_state;
ALTER TABLE onside_attribution.control ENABLE ALWAYS TRIGGER onside_keep_state;

/*
 * A TRUNCATE that logical replication brings takes along neither what this
 * database has recorded itself and not sent, nor its pause, nor its namespace.
 */
CREATE FUNCTION onside_attribution.before_truncate() RETURNS trigger
LANGUAGE C AS 'MODULE_PATHNAME', 'onside_before_truncate';
CREATE FUNCTION onside_attribution.after_truncate() RETURNS trigger
LANGUAGE C AS 'MODULE_PATHNAME', 'onside_after_truncate';

CREATE TRIGGER onside_before_truncate BEFORE TRUNCATE ON onside_attribution.outbox_1
    FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.before_truncate();
CREATE TRIGGER onside_after_truncate AFTER TRUNCATE ON onside_attribution.outbox_1
    FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.after_truncate();
CREATE TRIGGER onside_before_truncate BEFORE TRUNCATE ON onside_attribution.outbox_2
    FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.before_truncate();
CREATE TRIGGER onside_after_truncate AFTER TRUNCATE ON onside_attribution.outbox_2
    FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.after_truncate();
CREATE TRIGGER onside_before_truncate BEFORE TRUNCATE ON onside_attribution.outbox_3
    FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.before_truncate();
CREATE TRIGGER onside_after_truncate AFTER TRUNCATE ON onside_attribution.outbox_3
    FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.after_truncate();
CREATE TRIGGER onside_before_truncate BEFORE TRUNCATE ON onside_attribution.control
    FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.before_truncate();
CREATE TRIGGER onside_after_truncate AFTER TRUNCATE ON onside_attribution.control
    FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.after_truncate();
CREATE TRIGGER onside_before_truncate BEFORE TRUNCATE ON onside_attribution.namespace
    FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.before_truncate();
CREATE TRIGGER onside_after_truncate AFTER TRUNCATE ON onside_attribution.namespace
    FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.after_truncate();

ALTER TABLE onside_attribution.outbox_1 ENABLE ALWAYS TRIGGER onside_before_truncate;
ALTER TABLE onside_attribution.outbox_1 ENABLE ALWAYS TRIGGER onside_after_truncate;
ALTER TABLE onside_attribution.outbox_2 ENABLE ALWAYS TRIGGER onside_before_truncate;
ALTER TABLE onside_attribution.outbox_2 ENABLE ALWAYS TRIGGER onside_after_truncate;
ALTER TABLE onside_attribution.outbox_3 ENABLE ALWAYS TRIGGER onside_before_truncate;
ALTER TABLE onside_attribution.outbox_3 ENABLE ALWAYS TRIGGER onside_after_truncate;
ALTER TABLE onside_attribution.control ENABLE ALWAYS TRIGGER onside_before_truncate;
ALTER TABLE onside_attribution.control ENABLE ALWAYS TRIGGER onside_after_truncate;
ALTER TABLE onside_attribution.namespace ENABLE ALWAYS TRIGGER onside_before_truncate;
ALTER TABLE onside_attribution.namespace ENABLE ALWAYS TRIGGER onside_after_truncate;

/* What is pending and out of the log's way; the worker's, but see before_change(). */
CREATE TABLE onside_attribution.aside (
    event_id uuid NOT NULL,
    event_name text NOT NULL,
    payload jsonb NOT NULL,
    event_datetime timestamptz NOT NULL,
    installation_id uuid NOT NULL,
    recorded_at timestamptz NOT NULL,
    failed_at timestamptz NOT NULL,
    http_status integer,
    error text NOT NULL,
    -- No sequence: rows also come by logical replication and from a dump.
    id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid()
);

CREATE INDEX aside_recorded_at_id_idx ON onside_attribution.aside (recorded_at, id);

CREATE TRIGGER onside_before_change BEFORE INSERT OR UPDATE OR DELETE ON onside_attribution.aside
    FOR EACH ROW EXECUTE FUNCTION onside_attribution.before_change();
CREATE TRIGGER onside_before_truncate BEFORE TRUNCATE ON onside_attribution.aside
    FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.before_truncate();
CREATE TRIGGER onside_after_truncate AFTER TRUNCATE ON onside_attribution.aside
    FOR EACH STATEMENT EXECUTE FUNCTION onside_attribution.after_truncate();

ALTER TABLE onside_attribution.aside ENABLE ALWAYS TRIGGER onside_before_change;
ALTER TABLE onside_attribution.aside ENABLE ALWAYS TRIGGER onside_before_truncate;
ALTER TABLE onside_attribution.aside ENABLE ALWAYS TRIGGER onside_after_truncate;

CREATE TABLE onside_attribution.dead_letter (
    event_id uuid,
    event_name text,
    payload jsonb,
    event_datetime timestamptz,
    installation_id uuid,
    http_status integer,
    error text NOT NULL,
    attempts integer NOT NULL,
    recorded_at timestamptz NOT NULL,
    failed_at timestamptz NOT NULL,
    retry_at timestamptz,
    source text,
    chances smallint,
    -- No sequence: rows also come by logical replication and from a dump.
    id uuid PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid()
);

CREATE INDEX dead_letter_event_id_idx ON onside_attribution.dead_letter (event_id);
CREATE INDEX dead_letter_chances_idx ON onside_attribution.dead_letter
    (http_status, event_name COLLATE "C", retry_at, id);

/* A cursor that was not written here, or is not there, covers nothing. */
CREATE VIEW onside_attribution.pending WITH (security_barrier) AS
    SELECT o.event_id, o.event_name, o.payload, o.event_datetime,
           o.installation_id, o.recorded_at, o.xid, o.id
    FROM onside_attribution.outbox o
    WHERE NOT EXISTS (SELECT FROM onside_attribution.delivery_cursor c
        WHERE pg_catalog.xid(c.written_by) OPERATOR(pg_catalog.=) c.xmin
          AND (pg_catalog.pg_visible_in_snapshot(o.xid, c.settled)
               OR (pg_catalog.pg_visible_in_snapshot(o.xid, c.settled_window)
                   AND (o.xid, o.id) OPERATOR(pg_catalog.<=) (c.settled_xid, c.settled_id))))
    UNION ALL
    SELECT a.event_id, a.event_name, a.payload, a.event_datetime,
           a.installation_id, a.recorded_at, NULL, NULL
    FROM onside_attribution.aside a
    ORDER BY xid NULLS FIRST, id, recorded_at;

/*
 * For monitoring, which may not read those tables.  The bounds keep it cheap.
 */
CREATE VIEW onside_attribution.failed WITH (security_barrier) AS
    SELECT (SELECT pg_catalog.count(*)
            FROM (SELECT FROM onside_attribution.aside LIMIT 10000) a) AS aside,
           pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-)
               (SELECT a.recorded_at FROM onside_attribution.aside a
                ORDER BY a.recorded_at LIMIT 1) AS oldest_aside_age,
           (SELECT pg_catalog.count(*)
            FROM (SELECT FROM onside_attribution.dead_letter d
                  WHERE d.retry_at IS NOT NULL LIMIT 10000) d) AS dead_letters_retried,
           (SELECT pg_catalog.count(*)
            FROM (SELECT FROM onside_attribution.dead_letter d
                  WHERE d.retry_at IS NULL LIMIT 10000) d) AS dead_letters_left;

/*
 * A dump carries what is still to be sent, and the dead letters.  pg_dump
 * refuses conditions that name a view, so they repeat that of "pending".
 */
SELECT pg_catalog.pg_extension_config_dump('onside_attribution.outbox_1',
    'WHERE NOT EXISTS (SELECT FROM onside_attribution.delivery_cursor c
        WHERE pg_catalog.xid(c.written_by) OPERATOR(pg_catalog.=) c.xmin
          AND (pg_catalog.pg_visible_in_snapshot(xid, c.settled)
               OR (pg_catalog.pg_visible_in_snapshot(xid, c.settled_window)
                   AND (xid, id) OPERATOR(pg_catalog.<=) (c.settled_xid, c.settled_id))))');
SELECT pg_catalog.pg_extension_config_dump('onside_attribution.outbox_2',
    'WHERE NOT EXISTS (SELECT FROM onside_attribution.delivery_cursor c
        WHERE pg_catalog.xid(c.written_by) OPERATOR(pg_catalog.=) c.xmin
          AND (pg_catalog.pg_visible_in_snapshot(xid, c.settled)
               OR (pg_catalog.pg_visible_in_snapshot(xid, c.settled_window)
                   AND (xid, id) OPERATOR(pg_catalog.<=) (c.settled_xid, c.settled_id))))');
SELECT pg_catalog.pg_extension_config_dump('onside_attribution.outbox_3',
    'WHERE NOT EXISTS (SELECT FROM onside_attribution.delivery_cursor c
        WHERE pg_catalog.xid(c.written_by) OPERATOR(pg_catalog.=) c.xmin
          AND (pg_catalog.pg_visible_in_snapshot(xid, c.settled)
               OR (pg_catalog.pg_visible_in_snapshot(xid, c.settled_window)
                   AND (xid, id) OPERATOR(pg_catalog.<=) (c.settled_xid, c.settled_id))))');
SELECT pg_catalog.pg_extension_config_dump('onside_attribution.namespace', '');
SELECT pg_catalog.pg_extension_config_dump('onside_attribution.aside', '');
SELECT pg_catalog.pg_extension_config_dump('onside_attribution.dead_letter', '');

/*
 * Recording
 */

CREATE TYPE onside_attribution.event AS (installation_id uuid, payload jsonb, event_datetime timestamptz, event_id uuid);

CREATE FUNCTION onside_attribution.track(
    event_name text,
    installation_id uuid,
    payload jsonb,
    event_datetime timestamptz DEFAULT pg_catalog.now(),
    event_id uuid DEFAULT NULL)
RETURNS uuid
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'onside_track';

CREATE FUNCTION onside_attribution.track_purchase(
    installation_id uuid,
    amount numeric,
    currency text,
    event_datetime timestamptz DEFAULT pg_catalog.now(),
    event_id uuid DEFAULT NULL,
    extra jsonb DEFAULT '{}')
RETURNS uuid
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'onside_track_purchase';

CREATE FUNCTION onside_attribution.track_batch(events jsonb)
RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'onside_track_batch';

/* For mappers. */
CREATE FUNCTION onside_attribution.purchase(
    installation_id uuid,
    amount numeric,
    currency text,
    event_datetime timestamptz DEFAULT NULL,
    event_id uuid DEFAULT NULL,
    extra jsonb DEFAULT '{}')
RETURNS onside_attribution.event
LANGUAGE C IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'onside_purchase';

CREATE FUNCTION onside_attribution.amount(minor_units numeric, digits integer)
RETURNS numeric
LANGUAGE C IMMUTABLE PARALLEL SAFE STRICT
AS 'MODULE_PATHNAME', 'onside_amount';

CREATE FUNCTION onside_attribution.event_id(VARIADIC parts text[])
RETURNS uuid
LANGUAGE C IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'onside_event_id';

CREATE FUNCTION onside_attribution.track_row()
RETURNS trigger
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'onside_track_row';

CREATE FUNCTION onside_attribution.preview(event_id uuid)
RETURNS text
LANGUAGE C STABLE STRICT
AS 'MODULE_PATHNAME', 'onside_preview';

CREATE FUNCTION onside_attribution.attach(
    source regclass,
    event_name text,
    installation_id name DEFAULT NULL,
    payload jsonb DEFAULT NULL,
    event_datetime name DEFAULT NULL,
    event_id name DEFAULT NULL,
    operation text DEFAULT 'INSERT',
    condition text DEFAULT NULL,
    mapper regproc DEFAULT NULL,
    becomes text DEFAULT NULL,
    deferred boolean DEFAULT false)
RETURNS name
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'onside_attach';

CREATE FUNCTION onside_attribution.detach(source regclass, event_name text)
RETURNS boolean
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'onside_detach';

CREATE FUNCTION onside_attribution.trigger_mapping(
    trigger oid,
    OUT event_name text,
    OUT installation_id text,
    OUT payload jsonb,
    OUT event_datetime text,
    OUT event_id text,
    OUT mapper text)
LANGUAGE C STABLE STRICT
AS 'MODULE_PATHNAME', 'onside_trigger_mapping';

/*
 * An attachment can take two triggers with the same arguments: t is the one for
 * INSERT, and u the one for UPDATE.  In partitions each has clones, which can be
 * disabled by themselves.
 */
CREATE VIEW onside_attribution.attached WITH (security_barrier) AS
    WITH RECURSIVE trigger AS (
        SELECT t.*, t.tgtype::integer & 20 AS events,
            pg_catalog.substring(pg_catalog.pg_get_triggerdef(t.oid, true),
                                 ' WHEN \((.*)\) EXECUTE FUNCTION ') AS condition
        FROM pg_catalog.pg_trigger t
        WHERE t.tgfoid = 'onside_attribution.track_row()'::regprocedure
          AND t.tgparentid = 0
          AND NOT t.tgisinternal),
    clone AS (
        SELECT t.oid AS trigger, t.oid, t.tgenabled FROM trigger t
        UNION ALL
        SELECT c.trigger, p.oid, p.tgenabled FROM clone c JOIN pg_catalog.pg_trigger p ON p.tgparentid = c.oid)
    SELECT t.tgrelid::regclass AS source,
           m.event_name,
           t.tgname AS trigger_name,
           m.installation_id,
           m.payload,
           m.event_datetime,
           m.event_id,
           m.mapper,
           CASE WHEN u.oid IS NOT NULL OR t.events = 20 THEN 'INSERT OR UPDATE'
               WHEN t.events = 4 THEN 'INSERT'
               ELSE 'UPDATE'
           END AS operation,
           CASE WHEN u.oid IS NULL THEN t.condition
               WHEN t.condition IS NULL THEN u.condition
           END AS condition,
           CASE WHEN u.oid IS NOT NULL THEN t.condition END AS becomes,
           t.tgdeferrable AS deferred,
           CASE WHEN t.tgtype::integer & 1 = 1 OR u.oid IS NOT NULL THEN 'ROW' ELSE 'STATEMENT' END AS level,
           (SELECT CASE WHEN pg_catalog.bool_and(c.tgenabled IN ('O', 'A')) THEN true
                WHEN pg_catalog.bool_and(c.tgenabled NOT IN ('O', 'A')) THEN false
            END FROM clone c WHERE c.trigger IN (t.oid, u.oid)) AS enabled
    FROM trigger t
    LEFT JOIN trigger u ON t.tgrelid = u.tgrelid AND t.tgargs = u.tgargs AND t.events = 4 AND u.events = 16,
         LATERAL onside_attribution.trigger_mapping(t.oid) m
    WHERE t.events <> 16
       OR NOT EXISTS (SELECT FROM trigger i WHERE i.tgrelid = t.tgrelid AND i.tgargs = t.tgargs AND i.events = 4);

/*
 * Operating it
 *
 * What runs with the owner's rights runs nothing of anybody else's: the names
 * in it are looked up in pg_catalog, and in the role "replica" no trigger or
 * rule is executed that somebody has put on one of the tables.
 */

CREATE FUNCTION onside_attribution.flush(timeout interval DEFAULT '30 s')
RETURNS boolean
LANGUAGE C VOLATILE STRICT
AS 'MODULE_PATHNAME', 'onside_flush';

CREATE FUNCTION onside_attribution.pause(reason text DEFAULT NULL)
RETURNS void
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'onside_pause';

CREATE FUNCTION onside_attribution.resume()
RETURNS void
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'onside_resume';

/*
 * What an invalid row of a source table left in dead_letter was never sent and
 * cannot be; it is put back only if it is asked for, with the error that says
 * what is wrong with it.
 */
CREATE FUNCTION onside_attribution.retry_dead_letters(event_ids uuid[] DEFAULT NULL)
RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'onside_retry_dead_letters';

CREATE FUNCTION onside_attribution.forget(installation_id uuid)
RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'onside_forget';

CREATE FUNCTION onside_attribution.replay(
    since timestamptz,
    until timestamptz DEFAULT pg_catalog.now())
RETURNS bigint
LANGUAGE C VOLATILE PARALLEL UNSAFE STRICT
AS 'MODULE_PATHNAME', 'onside_replay';

CREATE FUNCTION onside_attribution.worker_status(
    OUT worker_pid integer,
    OUT state text,
    OUT state_reason text,
    OUT pending bigint,
    OUT oldest_pending_age interval,
    OUT in_flight integer,
    OUT delivered bigint,
    OUT dead_lettered bigint,
    OUT requests bigint,
    OUT retries bigint,
    OUT last_success_at timestamptz,
    OUT last_error text,
    OUT last_error_at timestamptz,
    OUT next_attempt_at timestamptz)
LANGUAGE C VOLATILE
AS 'MODULE_PATHNAME', 'onside_worker_status';

CREATE VIEW onside_attribution.status AS
    SELECT * FROM onside_attribution.worker_status();

CREATE FUNCTION onside_attribution.subscription_status(
    OUT name name,
    OUT enabled boolean,
    OUT worker_pid integer,
    OUT tables bigint,
    OUT tables_ready bigint,
    OUT received_lsn pg_lsn,
    OUT last_message_at timestamptz,
    OUT last_message_delay interval,
    OUT errors bigint,
    OUT problem text)
RETURNS SETOF record
LANGUAGE C VOLATILE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'onside_subscription_status';

CREATE VIEW onside_attribution.subscriptions AS
    SELECT * FROM onside_attribution.subscription_status();

/*
 * What each object is, for \dn+, \d+ and \df+.
 *
 * "The API" is the page "Server-to-server attribution events" of Onside's
 * documentation, "the manual" PostgreSQL's.
 */
COMMENT ON SCHEMA onside_attribution IS
    'Attribution events on their way to the Onside attribution API';

COMMENT ON TABLE onside_attribution.outbox IS
    'Log of recorded events, in three segments that are emptied whole, but not while an open transaction has read them';
COMMENT ON COLUMN onside_attribution.outbox.event_id IS
    'Version 4 UUID by which the API tells a repetition (API: Request body); made if NULL is inserted';
COMMENT ON COLUMN onside_attribution.outbox.event_name IS
    'Name of the event, sent as written: 1 to 255 characters, not blanks alone, no control characters; the API ignores case';
COMMENT ON COLUMN onside_attribution.outbox.payload IS
    'Properties of the event: a JSON object';
COMMENT ON COLUMN onside_attribution.outbox.event_datetime IS
    'When the event occurred: finite, years 1 to 9999; sent as ISO 8601 in UTC';
COMMENT ON COLUMN onside_attribution.outbox.installation_id IS
    'Installation identifier that the Onside SDK returned in the app: any UUID';
COMMENT ON COLUMN onside_attribution.outbox.recorded_at IS
    'When the event was recorded; an inserted value is kept unless it is in the future';
COMMENT ON COLUMN onside_attribution.outbox.xid IS
    'Top-level transaction that inserted the row here; set by a trigger, whatever is inserted';
COMMENT ON COLUMN onside_attribution.outbox.id IS
    'Counts the events of a transaction; set by a trigger. (xid, id) is the event''s place in the log';
COMMENT ON COLUMN onside_attribution.outbox.segment IS
    'Segment that holds the row, 1 to 3; by default the one that is written to now';
COMMENT ON TABLE onside_attribution.outbox_1 IS 'Segment 1 of the outbox';
COMMENT ON TABLE onside_attribution.outbox_2 IS 'Segment 2 of the outbox';
COMMENT ON TABLE onside_attribution.outbox_3 IS 'Segment 3 of the outbox';
COMMENT ON INDEX onside_attribution.outbox_1_xid_id_idx IS 'By which the worker reads what has been committed';
COMMENT ON INDEX onside_attribution.outbox_2_xid_id_idx IS 'By which the worker reads what has been committed';
COMMENT ON INDEX onside_attribution.outbox_3_xid_id_idx IS 'By which the worker reads what has been committed';
COMMENT ON CONSTRAINT xid_is_the_recording_transaction ON onside_attribution.outbox IS
    'A transaction number of another server must never be taken for one of this server, not even with triggers disabled';
COMMENT ON TRIGGER onside_before_change ON onside_attribution.outbox_1 IS
    'Checks an inserted event and gives it its place in the log; refuses UPDATE; tells the worker of a DELETE';
COMMENT ON TRIGGER onside_before_change ON onside_attribution.outbox_2 IS
    'Checks an inserted event and gives it its place in the log; refuses UPDATE; tells the worker of a DELETE';
COMMENT ON TRIGGER onside_before_change ON onside_attribution.outbox_3 IS
    'Checks an inserted event and gives it its place in the log; refuses UPDATE; tells the worker of a DELETE';
COMMENT ON FUNCTION onside_attribution.before_change() IS
    'Trigger function of the outbox''s segments and of aside: checks the event, and fills in the extension''s own columns';

COMMENT ON TABLE onside_attribution.delivery_cursor IS
    'How far delivery has come, in one row that the worker alone writes';
COMMENT ON COLUMN onside_attribution.delivery_cursor.written_by IS
    'Transaction that wrote the row; it must be the row''s xmin, or the row counts for nothing';
COMMENT ON COLUMN onside_attribution.delivery_cursor.settled IS
    'All that is visible in this snapshot is settled (manual: System Information Functions, pg_snapshot)';
COMMENT ON COLUMN onside_attribution.delivery_cursor.settled_window IS
    'What became visible up to this snapshot is settled up to (settled_xid, settled_id); NULL between two windows';
COMMENT ON COLUMN onside_attribution.delivery_cursor.settled_xid IS 'See settled_window';
COMMENT ON COLUMN onside_attribution.delivery_cursor.settled_id IS 'See settled_window';
COMMENT ON COLUMN onside_attribution.delivery_cursor.segment IS 'Segment of the outbox that is written to';
COMMENT ON COLUMN onside_attribution.delivery_cursor.begun_at IS 'Since when each segment has had events';
COMMENT ON COLUMN onside_attribution.delivery_cursor.left_at IS 'When writing left each segment; retention counts from then';
COMMENT ON COLUMN onside_attribution.delivery_cursor.delivered IS 'Events delivered since CREATE EXTENSION';
COMMENT ON COLUMN onside_attribution.delivery_cursor.dead_lettered IS 'Events that the worker gave up and put into dead_letter, since CREATE EXTENSION';
COMMENT ON COLUMN onside_attribution.delivery_cursor.requests IS 'HTTP requests since CREATE EXTENSION; a crash can lose the last ones';
COMMENT ON COLUMN onside_attribution.delivery_cursor.refused_in_row IS
    'Events that were refused for good since the API has accepted anything; ten at most';
COMMENT ON COLUMN onside_attribution.delivery_cursor.trouble_since IS
    'Nothing was accepted since then; what is a dead letter since is tried again as soon as something is';
COMMENT ON COLUMN onside_attribution.delivery_cursor.retries IS 'Those of them that sent once more what a failed request had carried';
COMMENT ON COLUMN onside_attribution.delivery_cursor.not_before IS
    'Until when the API asked to wait (Retry-After), so that a restart keeps to it; NULL if it did not';

COMMENT ON FUNCTION onside_attribution.before_truncate() IS
    'Trigger of the segments, aside and control: notes what a replicated TRUNCATE must not take';
COMMENT ON FUNCTION onside_attribution.after_truncate() IS
    'Trigger function: puts back what before_truncate() has noted, or tells the worker what was withdrawn';
COMMENT ON TRIGGER onside_before_truncate ON onside_attribution.outbox_1 IS 'Keeps what is ours from a replicated TRUNCATE';
COMMENT ON TRIGGER onside_after_truncate ON onside_attribution.outbox_1 IS 'Keeps what is ours from a replicated TRUNCATE';
COMMENT ON TRIGGER onside_before_truncate ON onside_attribution.outbox_2 IS 'Keeps what is ours from a replicated TRUNCATE';
COMMENT ON TRIGGER onside_after_truncate ON onside_attribution.outbox_2 IS 'Keeps what is ours from a replicated TRUNCATE';
COMMENT ON TRIGGER onside_before_truncate ON onside_attribution.outbox_3 IS 'Keeps what is ours from a replicated TRUNCATE';
COMMENT ON TRIGGER onside_after_truncate ON onside_attribution.outbox_3 IS 'Keeps what is ours from a replicated TRUNCATE';
COMMENT ON TRIGGER onside_before_truncate ON onside_attribution.aside IS 'Keeps what is ours from a replicated TRUNCATE';
COMMENT ON TRIGGER onside_after_truncate ON onside_attribution.aside IS 'Keeps what is ours from a replicated TRUNCATE';
COMMENT ON TRIGGER onside_before_truncate ON onside_attribution.namespace IS 'Keeps what is ours from a replicated TRUNCATE';
COMMENT ON TRIGGER onside_after_truncate ON onside_attribution.namespace IS 'Keeps what is ours from a replicated TRUNCATE';
COMMENT ON TRIGGER onside_before_truncate ON onside_attribution.control IS 'Keeps what is ours from a replicated TRUNCATE';
COMMENT ON TRIGGER onside_after_truncate ON onside_attribution.control IS 'Keeps what is ours from a replicated TRUNCATE';
COMMENT ON FUNCTION onside_attribution.keep_state() IS
    'Trigger of delivery_cursor and control: drops every row that SQL or an apply worker would write there';
COMMENT ON TRIGGER onside_keep_state ON onside_attribution.delivery_cursor IS 'Keeps rows from elsewhere out; also with session_replication_role = replica';
COMMENT ON TRIGGER onside_keep_state ON onside_attribution.control IS 'Keeps rows from elsewhere out; also with session_replication_role = replica';

COMMENT ON TABLE onside_attribution.control IS 'Whether sending is paused, in one row; written by pause() and resume()';
COMMENT ON COLUMN onside_attribution.control.written_by IS 'As in delivery_cursor';
COMMENT ON COLUMN onside_attribution.control.paused IS 'Whether sending is paused';
COMMENT ON COLUMN onside_attribution.control.pause_reason IS 'What was passed to pause()';
COMMENT ON COLUMN onside_attribution.control.paused_at IS 'When it was paused; NULL if it is not';

COMMENT ON TABLE onside_attribution.namespace IS
    'A random UUID that tells the keys of this database from those of others, in one row that a dump carries';
COMMENT ON COLUMN onside_attribution.namespace.singleton IS 'Always true: there is one row';
COMMENT ON COLUMN onside_attribution.namespace.id IS 'First part of each event_id that is made of a mapped column';
COMMENT ON FUNCTION onside_attribution.take_namespace() IS
    'Trigger function of namespace: an inserted row replaces the present one; logical replication changes nothing';
COMMENT ON TRIGGER onside_take_namespace ON onside_attribution.namespace IS 'Lets the row of a dump in, and keeps rows from elsewhere out';

COMMENT ON TABLE onside_attribution.aside IS
    'Pending events that have failed while others were accepted; they come and go by themselves';
COMMENT ON COLUMN onside_attribution.aside.event_id IS 'As in the outbox';
COMMENT ON COLUMN onside_attribution.aside.event_name IS 'As in the outbox';
COMMENT ON COLUMN onside_attribution.aside.payload IS 'As in the outbox';
COMMENT ON COLUMN onside_attribution.aside.event_datetime IS 'As in the outbox';
COMMENT ON COLUMN onside_attribution.aside.installation_id IS 'As in the outbox';
COMMENT ON COLUMN onside_attribution.aside.recorded_at IS 'When the event was recorded; an inserted value is kept unless it is in the future';
COMMENT ON COLUMN onside_attribution.aside.failed_at IS 'When it had failed last when it was put here; now if NULL is inserted';
COMMENT ON COLUMN onside_attribution.aside.http_status IS 'Status of that failure; NULL: there was no answer';
COMMENT ON COLUMN onside_attribution.aside.error IS 'The API''s words, or the failure of the transport; at most 1024 bytes';
COMMENT ON COLUMN onside_attribution.aside.id IS 'Of this row';
COMMENT ON INDEX onside_attribution.aside_pkey IS 'By which the worker finds a row; its identity for logical replication, too';
COMMENT ON INDEX onside_attribution.aside_recorded_at_id_idx IS 'By which the worker reads what is there, oldest first';
COMMENT ON TRIGGER onside_before_change ON onside_attribution.aside IS
    'Checks an inserted event; refuses UPDATE; tells the worker';

COMMENT ON TABLE onside_attribution.dead_letter IS
    'Events that the API refused, that failed while others were accepted, or that a trigger found invalid';
COMMENT ON COLUMN onside_attribution.dead_letter.event_id IS 'As in the outbox; NULL if an invalid row had none';
COMMENT ON COLUMN onside_attribution.dead_letter.event_name IS 'As in the outbox';
COMMENT ON COLUMN onside_attribution.dead_letter.payload IS 'As in the outbox; a number that JSON does not know (NaN) is kept as text';
COMMENT ON COLUMN onside_attribution.dead_letter.event_datetime IS 'As in the outbox; NULL if an invalid row had none';
COMMENT ON COLUMN onside_attribution.dead_letter.installation_id IS 'As in the outbox; NULL if an invalid row had no UUID';
COMMENT ON COLUMN onside_attribution.dead_letter.http_status IS 'Status of the last failure; NULL if there was no answer, or the event was never sent';
COMMENT ON COLUMN onside_attribution.dead_letter.error IS 'The API''s words, or what is wrong with the row; at most 1024 bytes';
COMMENT ON COLUMN onside_attribution.dead_letter.attempts IS 'How often the event had failed by then; 0 if it was never sent';
COMMENT ON COLUMN onside_attribution.dead_letter.recorded_at IS 'When the event was recorded';
COMMENT ON COLUMN onside_attribution.dead_letter.failed_at IS 'When it was put here, or has failed again';
COMMENT ON COLUMN onside_attribution.dead_letter.retry_at IS
    'From when it gets another chance by itself; NULL: only by a person';
COMMENT ON COLUMN onside_attribution.dead_letter.source IS
    'Table whose trigger recorded it, as schema.table, of a partition the root; NULL if no trigger did, or it is not known';
COMMENT ON COLUMN onside_attribution.dead_letter.chances IS
    'How many second chances have failed; those that come at once after an outage do not count; NULL means 0';
COMMENT ON COLUMN onside_attribution.dead_letter.id IS 'Of this row; an event can be here more than once';
COMMENT ON INDEX onside_attribution.dead_letter_pkey IS 'The identity of a dead letter, also for logical replication';
COMMENT ON INDEX onside_attribution.dead_letter_event_id_idx IS 'For retry_dead_letters()';
COMMENT ON INDEX onside_attribution.dead_letter_chances_idx IS 'By which the worker finds what is due; without it nothing is tried again by itself';

COMMENT ON VIEW onside_attribution.pending IS
    'Committed events that are not settled, oldest first; for monitoring, use status.pending, which does not read the outbox';
COMMENT ON COLUMN onside_attribution.pending.event_id IS 'As in the outbox';
COMMENT ON COLUMN onside_attribution.pending.event_name IS 'As in the outbox';
COMMENT ON COLUMN onside_attribution.pending.payload IS 'As in the outbox';
COMMENT ON COLUMN onside_attribution.pending.event_datetime IS 'As in the outbox';
COMMENT ON COLUMN onside_attribution.pending.installation_id IS 'As in the outbox';
COMMENT ON COLUMN onside_attribution.pending.recorded_at IS 'When the event was recorded';
COMMENT ON COLUMN onside_attribution.pending.xid IS 'Transaction that inserted it; NULL if it is in aside';
COMMENT ON COLUMN onside_attribution.pending.id IS '(xid, id) is the event''s place in the log; NULL if it is in aside';
COMMENT ON VIEW onside_attribution.failed IS
    'How many events have failed and are aside or in dead_letter, in one row. No more than 10000 of each kind are counted';
COMMENT ON COLUMN onside_attribution.failed.aside IS 'Pending events that have failed while others were accepted: rows of aside';
COMMENT ON COLUMN onside_attribution.failed.oldest_aside_age IS 'Time since the first of them was recorded; NULL if there is none';
COMMENT ON COLUMN onside_attribution.failed.dead_letters_retried IS 'Dead letters that get another chance by themselves: those with a retry_at';
COMMENT ON COLUMN onside_attribution.failed.dead_letters_left IS 'Dead letters that only a person can send again';
COMMENT ON COLUMN onside_attribution.delivery_cursor.singleton IS 'Always true: there is one row';
COMMENT ON COLUMN onside_attribution.control.singleton IS 'Always true: there is one row';

COMMENT ON TYPE onside_attribution.event IS
    'What a mapper returns for a row; installation_id NULL: no event; event_datetime NULL: now; event_id NULL: a new one';
COMMENT ON FUNCTION onside_attribution.track(text, uuid, jsonb, timestamptz, uuid) IS
    'Records one event in the current transaction; returns its event_id';
COMMENT ON FUNCTION onside_attribution.track_purchase(uuid, numeric, text, timestamptz, uuid, jsonb) IS
    'Records an event purchase_completed with its amount and currency; returns its event_id';
COMMENT ON FUNCTION onside_attribution.track_batch(jsonb) IS
    'Records many events, all or none, from an array in the API''s own shape; returns how many';
COMMENT ON FUNCTION onside_attribution.purchase(uuid, numeric, text, timestamptz, uuid, jsonb) IS
    'For mappers: an event with the payload that track_purchase() makes';
COMMENT ON FUNCTION onside_attribution.amount(numeric, integer) IS
    'Minor units (cents) as whole units of the currency, exactly: amount(990, 2) is 9.90';
COMMENT ON FUNCTION onside_attribution.event_id(text[]) IS
    'A stable event_id for a key: a version 4 UUID from the SHA-256 over its parts';
COMMENT ON FUNCTION onside_attribution.track_row() IS
    'Trigger function that records rows as events; its arguments are target=column, or mapper=schema.function: see attach()';
COMMENT ON FUNCTION onside_attribution.preview(uuid) IS
    'The JSON of an event exactly as it is sent; NULL if the event is not in outbox, aside or dead_letter';
COMMENT ON FUNCTION onside_attribution.attach(regclass, text, name, jsonb, name, name, text, text, regproc, text, boolean) IS
    'Makes a trigger that records an event for each inserted or updated row of a table; returns its name';
COMMENT ON FUNCTION onside_attribution.detach(regclass, text) IS
    'Drops the triggers by which a table reports an event; returns whether there was one';
COMMENT ON FUNCTION onside_attribution.trigger_mapping(oid) IS
    'What the arguments of a track_row() trigger say, for the view attached';

COMMENT ON VIEW onside_attribution.attached IS 'Which tables report which events, with their mapping';
COMMENT ON COLUMN onside_attribution.attached.source IS 'Table';
COMMENT ON COLUMN onside_attribution.attached.event_name IS 'Event that its rows become';
COMMENT ON COLUMN onside_attribution.attached.trigger_name IS 'Trigger that does it';
COMMENT ON COLUMN onside_attribution.attached.installation_id IS 'Column of the installation_id';
COMMENT ON COLUMN onside_attribution.attached.payload IS 'Keys of the payload, each with its column';
COMMENT ON COLUMN onside_attribution.attached.event_datetime IS 'Column of the event''s time; NULL: the start of the transaction';
COMMENT ON COLUMN onside_attribution.attached.event_id IS 'Column of the event_id; NULL: one is made';
COMMENT ON COLUMN onside_attribution.attached.mapper IS 'Function that makes the events, instead of columns';
COMMENT ON COLUMN onside_attribution.attached.operation IS 'INSERT, UPDATE or INSERT OR UPDATE';
COMMENT ON COLUMN onside_attribution.attached.condition IS 'The trigger''s WHEN clause, if it refers to OLD that of an UPDATE alone; NULL for none';
COMMENT ON COLUMN onside_attribution.attached.becomes IS 'What a row has to become; NULL if that is not how it was attached';
COMMENT ON COLUMN onside_attribution.attached.deferred IS 'Whether the trigger fires at the end of the transaction';
COMMENT ON COLUMN onside_attribution.attached.level IS 'ROW or STATEMENT';
COMMENT ON COLUMN onside_attribution.attached.enabled IS 'Whether its triggers fire; NULL if some do, and others, or those of some partitions, do not: doctor() names them';

COMMENT ON FUNCTION onside_attribution.flush(interval) IS
    'Waits until every event committed before the call is settled; returns false on timeout';
COMMENT ON FUNCTION onside_attribution.pause(text) IS
    'Stops sending in this database from the commit on, across restarts; the reason is shown in status';
COMMENT ON FUNCTION onside_attribution.resume() IS
    'Starts sending in this database again from the commit on, and ends any wait at once';
COMMENT ON FUNCTION onside_attribution.retry_dead_letters(uuid[]) IS
    'Moves dead letters back into the outbox under their event_ids; NULL: all that were sent; returns how many';
COMMENT ON FUNCTION onside_attribution.forget(uuid) IS
    'Deletes everything about an installation from outbox, aside and dead_letter; returns how many rows';
COMMENT ON FUNCTION onside_attribution.replay(timestamptz, timestamptz) IS
    'Records delivered events again that the outbox still holds, by the time of recording; returns how many';
COMMENT ON FUNCTION onside_attribution.worker_status() IS
    'Beneath the view status, which says what the columns are';

COMMENT ON VIEW onside_attribution.status IS
    'How sending in this database stands, in one row; while a worker runs it costs the same whatever the backlog';
COMMENT ON COLUMN onside_attribution.status.worker_pid IS 'Process that sends; NULL if there is none';
COMMENT ON COLUMN onside_attribution.status.state IS
    'idle, sending, backing_off, paused, unauthorized, misconfigured, refusing, disabled or not_running';
COMMENT ON COLUMN onside_attribution.status.state_reason IS 'Whose fault it looks like, since when, what is tried next, and what to do about it; NULL if all is well';
COMMENT ON COLUMN onside_attribution.status.pending IS
    'Events committed and not settled; without a worker at most 10000 are counted; NULL after three crashes';
COMMENT ON COLUMN onside_attribution.status.oldest_pending_age IS 'Time since the first of them was recorded';
COMMENT ON COLUMN onside_attribution.status.in_flight IS 'Requests under way';
COMMENT ON COLUMN onside_attribution.status.delivered IS 'Events delivered since CREATE EXTENSION';
COMMENT ON COLUMN onside_attribution.status.dead_lettered IS 'Events that the worker gave up and put into dead_letter, since CREATE EXTENSION';
COMMENT ON COLUMN onside_attribution.status.requests IS 'HTTP requests since CREATE EXTENSION';
COMMENT ON COLUMN onside_attribution.status.retries IS 'Those of them that sent once more what a failed request had carried';
COMMENT ON COLUMN onside_attribution.status.last_success_at IS 'When the API took a request last, since the worker was started';
COMMENT ON COLUMN onside_attribution.status.last_error IS 'What went wrong last, since the worker was started: the status and the API''s words, or the failure of the transport';
COMMENT ON COLUMN onside_attribution.status.last_error_at IS 'When that was';
COMMENT ON COLUMN onside_attribution.status.next_attempt_at IS 'When the next request may go; NULL if nothing is waited for';

COMMENT ON FUNCTION onside_attribution.subscription_status() IS
    'Beneath the view subscriptions, which says what the columns are';

COMMENT ON VIEW onside_attribution.subscriptions IS
    'The subscriptions that bring events of other servers into the outbox, one row each; none on a standby';
COMMENT ON COLUMN onside_attribution.subscriptions.name IS 'The subscription';
COMMENT ON COLUMN onside_attribution.subscriptions.enabled IS 'Is it enabled? An error disables it if it has disable_on_error';
COMMENT ON COLUMN onside_attribution.subscriptions.worker_pid IS 'Its apply worker; NULL if none is running, as for some seconds after an error';
COMMENT ON COLUMN onside_attribution.subscriptions.tables IS 'How many tables of the extension it writes to';
COMMENT ON COLUMN onside_attribution.subscriptions.tables_ready IS 'Those of them whose initial copy has ended';
COMMENT ON COLUMN onside_attribution.subscriptions.received_lsn IS 'How far its worker has received the publishing server''s WAL';
COMMENT ON COLUMN onside_attribution.subscriptions.last_message_at IS 'When its worker heard of the publishing server last: every 30 s or more often';
COMMENT ON COLUMN onside_attribution.subscriptions.last_message_delay IS
    'How long that message was under way, by the clocks of both servers. It grows while the worker does not keep up';
COMMENT ON COLUMN onside_attribution.subscriptions.errors IS 'Errors of its workers since pg_stat_reset_subscription_stats() or a crash';
COMMENT ON COLUMN onside_attribution.subscriptions.problem IS 'What keeps events from coming in; NULL if nothing does';

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
    'What delivery has done since stats_reset, in one row; survives a restart, not a crash; not replicated; times in ms';
COMMENT ON COLUMN onside_attribution.stats.recorded IS
    'Events committed by sessions of this server; not those of prepared transactions and of logical replication';
COMMENT ON COLUMN onside_attribution.stats.skipped IS 'Rows of attached tables without an installation_id or an event; counted even if the transaction is rolled back';
COMMENT ON COLUMN onside_attribution.stats.delivered IS 'Events delivered';
COMMENT ON COLUMN onside_attribution.stats.dead_lettered IS 'Events that the worker gave up and put into dead_letter';
COMMENT ON COLUMN onside_attribution.stats.events_sent IS 'Events in requests, each as often as it was sent';
COMMENT ON COLUMN onside_attribution.stats.bytes_sent IS 'Bytes of the requests'' bodies';
COMMENT ON COLUMN onside_attribution.stats.connections IS 'Connections made';
COMMENT ON COLUMN onside_attribution.stats.requests IS 'HTTP requests begun; with libcurl 7.80 or later also those that it repeats by itself on a new connection';
COMMENT ON COLUMN onside_attribution.stats.retries IS 'Those of them that sent once more what a failed request had carried';
COMMENT ON COLUMN onside_attribution.stats.back_offs IS 'Requests that failed otherwise than by 400 or 413: the failures after which the worker may have to wait';
COMMENT ON COLUMN onside_attribution.stats.responses_204 IS 'Requests answered by 204; each request is counted in one of the columns from here to malformed';
COMMENT ON COLUMN onside_attribution.stats.responses_other_2xx IS 'By any other 2xx, which acknowledges nothing';
COMMENT ON COLUMN onside_attribution.stats.responses_3xx IS 'By 3xx: a redirect, never followed';
COMMENT ON COLUMN onside_attribution.stats.responses_400 IS 'By 400: the API refuses events';
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
COMMENT ON COLUMN onside_attribution.stats.delivery_count IS 'Events whose delivery was timed, from recorded_at, a little before the commit, to the acknowledgement';
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
    'The two distributions of stats, in cumulative buckets as Prometheus has them';
COMMENT ON COLUMN onside_attribution.stats_histogram.metric IS 'delivery (of events) or request';
COMMENT ON COLUMN onside_attribution.stats_histogram.le IS 'Upper bound in milliseconds, inclusive; the last is Infinity';
COMMENT ON COLUMN onside_attribution.stats_histogram.count IS 'How many took no longer';

CREATE FUNCTION onside_attribution.doctor()
RETURNS TABLE (check_name text, ok boolean, detail text, hint text)
LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 24
AS 'MODULE_PATHNAME', 'onside_doctor';

COMMENT ON FUNCTION onside_attribution.doctor() IS
    'Everything to look at when nothing arrives, one row a check, with a hint where it is not ok; waits for no lock';

/*
 * Backfill, and how far each has come.  backfill() alone writes that.
 */

CREATE TABLE onside_attribution.backfill_state (
    source oid NOT NULL,
    event_name text NOT NULL,
    since timestamptz NOT NULL,
    until timestamptz NOT NULL,
    pass smallint NOT NULL,
    done oid[] NOT NULL,
    "partition" oid NOT NULL,
    file oid NOT NULL,
    place tid NOT NULL,
    estimated bigint NOT NULL,
    rows_read bigint NOT NULL,
    recorded bigint NOT NULL,
    skipped bigint NOT NULL,
    dead_lettered bigint NOT NULL,
    not_due bigint NOT NULL,
    started_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    before bigint[],
    now bigint[],
    finished_at timestamptz,
    PRIMARY KEY (source, event_name, since, until)
);

CREATE TRIGGER onside_keep_state BEFORE INSERT OR UPDATE OR DELETE ON onside_attribution.backfill_state
    FOR EACH ROW EXECUTE FUNCTION onside_attribution.keep_state();
ALTER TABLE onside_attribution.backfill_state ENABLE ALWAYS TRIGGER onside_keep_state;

CREATE PROCEDURE onside_attribution.backfill(
    source regclass,
    event_name text,
    since timestamptz DEFAULT NULL,
    until timestamptz DEFAULT NULL)
LANGUAGE C
AS 'MODULE_PATHNAME', 'onside_backfill';

CREATE VIEW onside_attribution.backfill_progress WITH (security_barrier) AS
    SELECT s.source::regclass AS source,
           s.event_name,
           CASE WHEN pg_catalog.isfinite(s.since) THEN s.since END AS since,
           CASE WHEN pg_catalog.isfinite(s.until) THEN s.until END AS until,
           s.rows_read,
           s.estimated AS estimated_rows,
           CASE WHEN s."partition" <> 0 THEN s."partition"::regclass END AS "partition",
           s.recorded,
           s.skipped,
           s.dead_lettered,
           s.not_due,
           s.started_at,
           s.updated_at,
           s.finished_at
    FROM onside_attribution.backfill_state s;

COMMENT ON TRIGGER onside_keep_state ON onside_attribution.backfill_state IS 'Keeps rows from elsewhere out; also with session_replication_role = replica';
COMMENT ON TABLE onside_attribution.backfill_state IS
    'How far each backfill() has come. Without its row a backfill begins anew';
COMMENT ON COLUMN onside_attribution.backfill_state.source IS 'OID of the table';
COMMENT ON COLUMN onside_attribution.backfill_state.event_name IS 'Event that its rows become';
COMMENT ON COLUMN onside_attribution.backfill_state.since IS 'Argument of backfill(); -infinity for NULL';
COMMENT ON COLUMN onside_attribution.backfill_state.until IS 'Argument of backfill(); infinity for NULL';
COMMENT ON COLUMN onside_attribution.backfill_state.pass IS '1: rows that were there when it began; 2: those written during the first pass; 3: those written since';
COMMENT ON COLUMN onside_attribution.backfill_state.done IS 'Partitions that were read in full, or the table';
COMMENT ON COLUMN onside_attribution.backfill_state."partition" IS 'That is being read, or the table; 0 before the first';
COMMENT ON COLUMN onside_attribution.backfill_state.file IS 'Its relfilenode';
COMMENT ON COLUMN onside_attribution.backfill_state.place IS 'ctid of the last row that was read there';
COMMENT ON COLUMN onside_attribution.backfill_state.estimated IS 'Rows of the table when it began, as VACUUM and ANALYZE have left the number';
COMMENT ON COLUMN onside_attribution.backfill_state.rows_read IS 'See backfill_progress, as for those below';
COMMENT ON COLUMN onside_attribution.backfill_state.recorded IS 'See backfill_progress';
COMMENT ON COLUMN onside_attribution.backfill_state.skipped IS 'See backfill_progress';
COMMENT ON COLUMN onside_attribution.backfill_state.dead_lettered IS 'See backfill_progress';
COMMENT ON COLUMN onside_attribution.backfill_state.not_due IS 'See backfill_progress';
COMMENT ON COLUMN onside_attribution.backfill_state.started_at IS 'See backfill_progress';
COMMENT ON COLUMN onside_attribution.backfill_state.updated_at IS 'See backfill_progress';
COMMENT ON COLUMN onside_attribution.backfill_state.before IS 'Snapshot that earlier passes have read up to; NULL in the first pass';
COMMENT ON COLUMN onside_attribution.backfill_state.now IS 'The same for this pass; NULL in the last one';
COMMENT ON COLUMN onside_attribution.backfill_state.finished_at IS 'See backfill_progress';

COMMENT ON PROCEDURE onside_attribution.backfill(regclass, text, timestamptz, timestamptz) IS
    'Records an event for each row that an attached table holds, in committed chunks; goes on where it was stopped';

COMMENT ON VIEW onside_attribution.backfill_progress IS 'How far each backfill() has come, and what has become of the rows';
COMMENT ON COLUMN onside_attribution.backfill_progress.source IS 'Table';
COMMENT ON COLUMN onside_attribution.backfill_progress.event_name IS 'Event that its rows become';
COMMENT ON COLUMN onside_attribution.backfill_progress.since IS 'As it was called';
COMMENT ON COLUMN onside_attribution.backfill_progress.until IS 'As it was called';
COMMENT ON COLUMN onside_attribution.backfill_progress.rows_read IS 'Rows that were read so far; a row that was written meanwhile is read again';
COMMENT ON COLUMN onside_attribution.backfill_progress.estimated_rows IS 'Rows of the table when it began, as VACUUM and ANALYZE have left the number; 0 if they never have';
COMMENT ON COLUMN onside_attribution.backfill_progress."partition" IS 'Partition that is being read, or the table; NULL before the first';
COMMENT ON COLUMN onside_attribution.backfill_progress.recorded IS 'Events that were recorded';
COMMENT ON COLUMN onside_attribution.backfill_progress.skipped IS 'Rows without an installation_id, or of which the mapper makes no event; of several events of a row each that has none';
COMMENT ON COLUMN onside_attribution.backfill_progress.dead_lettered IS 'Events that are not valid, and rows whose mapper has failed, which were put into dead_letter';
COMMENT ON COLUMN onside_attribution.backfill_progress.not_due IS 'Rows that do not meet the condition, and events outside of since and until';
COMMENT ON COLUMN onside_attribution.backfill_progress.started_at IS 'When it was called first';
COMMENT ON COLUMN onside_attribution.backfill_progress.updated_at IS 'When the last chunk was committed';
COMMENT ON COLUMN onside_attribution.backfill_progress.finished_at IS 'When it had read all rows; NULL until then';

/*
 * Nothing is for everybody; the status is for monitoring.
 */
-- ALTER DEFAULT PRIVILEGES may have granted something of it to others.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT DISTINCT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)::text)
        FROM (SELECT relacl, relowner FROM pg_catalog.pg_class WHERE relnamespace = 'onside_attribution'::pg_catalog.regnamespace
              UNION ALL SELECT proacl, proowner FROM pg_catalog.pg_proc WHERE pronamespace = 'onside_attribution'::pg_catalog.regnamespace
              UNION ALL SELECT nspacl, nspowner FROM pg_catalog.pg_namespace WHERE nspname = 'onside_attribution') o (acl, owner),
            LATERAL pg_catalog.aclexplode(o.acl) a
        WHERE a.grantee NOT IN (0, o.owner)
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON ALL TABLES IN SCHEMA onside_attribution FROM %s', grantee);
        EXECUTE pg_catalog.format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA onside_attribution FROM %s', grantee);
        EXECUTE pg_catalog.format('REVOKE ALL ON ALL ROUTINES IN SCHEMA onside_attribution FROM %s', grantee);
        EXECUTE pg_catalog.format('REVOKE ALL ON SCHEMA onside_attribution FROM %s', grantee);
    END LOOP;
END
$$;
REVOKE ALL ON ALL TABLES IN SCHEMA onside_attribution FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA onside_attribution FROM PUBLIC;
REVOKE ALL ON SCHEMA onside_attribution FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA onside_attribution FROM PUBLIC;
-- Names in a mapper, which runs as whoever writes the row.
GRANT USAGE ON SCHEMA onside_attribution TO PUBLIC;
GRANT EXECUTE ON FUNCTION onside_attribution.event_id(text[]),
    onside_attribution.amount(numeric, integer),
    onside_attribution.purchase(uuid, numeric, text, timestamptz, uuid, jsonb) TO PUBLIC;
GRANT USAGE ON SCHEMA onside_attribution TO pg_monitor;
GRANT EXECUTE ON FUNCTION onside_attribution.worker_status() TO pg_monitor;
GRANT SELECT ON onside_attribution.status TO pg_monitor;
GRANT EXECUTE ON FUNCTION onside_attribution.subscription_status() TO pg_monitor;
GRANT SELECT ON onside_attribution.subscriptions TO pg_monitor;
GRANT EXECUTE ON FUNCTION onside_attribution.delivery_stats() TO pg_monitor;
GRANT EXECUTE ON FUNCTION onside_attribution.delivery_histogram() TO pg_monitor;
GRANT SELECT ON onside_attribution.stats TO pg_monitor;
GRANT SELECT ON onside_attribution.stats_histogram TO pg_monitor;
GRANT EXECUTE ON FUNCTION onside_attribution.doctor() TO pg_monitor;
GRANT SELECT ON onside_attribution.failed TO pg_monitor;
