/* onside_attribution--0.9.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION onside_attribution" to load this file. \quit

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

CREATE FUNCTION onside_attribution.outbox_before_insert() RETURNS trigger
LANGUAGE C AS 'MODULE_PATHNAME', 'onside_outbox_before_insert';

CREATE TABLE onside_attribution.outbox_1 PARTITION OF onside_attribution.outbox FOR VALUES IN (1)
    WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE TABLE onside_attribution.outbox_2 PARTITION OF onside_attribution.outbox FOR VALUES IN (2)
    WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE TABLE onside_attribution.outbox_3 PARTITION OF onside_attribution.outbox FOR VALUES IN (3)
    WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);

CREATE INDEX outbox_1_xid_id_idx ON onside_attribution.outbox_1 (xid, id);
CREATE INDEX outbox_2_xid_id_idx ON onside_attribution.outbox_2 (xid, id);
CREATE INDEX outbox_3_xid_id_idx ON onside_attribution.outbox_3 (xid, id);

CREATE TRIGGER onside_outbox_before_insert BEFORE INSERT OR UPDATE ON onside_attribution.outbox_1
    FOR EACH ROW EXECUTE FUNCTION onside_attribution.outbox_before_insert();
CREATE TRIGGER onside_outbox_before_insert BEFORE INSERT OR UPDATE ON onside_attribution.outbox_2
    FOR EACH ROW EXECUTE FUNCTION onside_attribution.outbox_before_insert();
CREATE TRIGGER onside_outbox_before_insert BEFORE INSERT OR UPDATE ON onside_attribution.outbox_3
    FOR EACH ROW EXECUTE FUNCTION onside_attribution.outbox_before_insert();

ALTER TABLE onside_attribution.outbox_1 ENABLE ALWAYS TRIGGER onside_outbox_before_insert;
ALTER TABLE onside_attribution.outbox_2 ENABLE ALWAYS TRIGGER onside_outbox_before_insert;
ALTER TABLE onside_attribution.outbox_3 ENABLE ALWAYS TRIGGER onside_outbox_before_insert;

/*
 * How far delivery has come; written by the worker alone.  '1:1:' has seen
 * nothing, so everything in the outbox is still to be sent.
 */
CREATE TABLE onside_attribution.delivery_cursor (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    settled pg_snapshot NOT NULL,
    settled_window pg_snapshot,
    settled_xid xid8,
    settled_id bigint,
    segment smallint NOT NULL,
    delivered bigint NOT NULL,
    dead_lettered bigint NOT NULL,
    requests bigint NOT NULL,
    retries bigint NOT NULL,
    not_before timestamptz,
    CHECK ((settled_window IS NULL) OPERATOR(pg_catalog.=) (settled_xid IS NULL)),
    CHECK ((settled_window IS NULL) OPERATOR(pg_catalog.=) (settled_id IS NULL))
) WITH (fillfactor = 10);

INSERT INTO onside_attribution.delivery_cursor VALUES
    (true, '1:1:', NULL, NULL, NULL, 1, 0, 0, 0, 0, NULL);

/* What a DBA has decided; written by pause() and resume(). */
CREATE TABLE onside_attribution.control (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    paused boolean NOT NULL,
    pause_reason text,
    paused_at timestamptz
);

INSERT INTO onside_attribution.control VALUES (true, false, NULL, NULL);

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
    failed_at timestamptz NOT NULL
);

CREATE INDEX dead_letter_event_id_idx ON onside_attribution.dead_letter (event_id);

CREATE VIEW onside_attribution.pending AS
    SELECT o.event_id, o.event_name, o.payload, o.event_datetime,
           o.installation_id, o.recorded_at, o.xid, o.id
    FROM onside_attribution.outbox o,
         onside_attribution.delivery_cursor c
    WHERE NOT pg_catalog.pg_visible_in_snapshot(o.xid, c.settled)
      AND (c.settled_window IS NULL
           OR NOT pg_catalog.pg_visible_in_snapshot(o.xid, c.settled_window)
           OR (o.xid, o.id) OPERATOR(pg_catalog.>) (c.settled_xid, c.settled_id))
    ORDER BY o.xid, o.id;

/*
 * A dump carries what is still to be sent, and the dead letters.
 */
SELECT pg_catalog.pg_extension_config_dump('onside_attribution.outbox_1',
    'WHERE (xid, id) IN (SELECT p.xid, p.id FROM onside_attribution.pending p)');
SELECT pg_catalog.pg_extension_config_dump('onside_attribution.outbox_2',
    'WHERE (xid, id) IN (SELECT p.xid, p.id FROM onside_attribution.pending p)');
SELECT pg_catalog.pg_extension_config_dump('onside_attribution.outbox_3',
    'WHERE (xid, id) IN (SELECT p.xid, p.id FROM onside_attribution.pending p)');
SELECT pg_catalog.pg_extension_config_dump('onside_attribution.dead_letter', '');

/*
 * Recording
 */

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
    installation_id name,
    payload jsonb,
    event_datetime name DEFAULT NULL,
    event_id name DEFAULT NULL,
    operation text DEFAULT 'INSERT',
    condition text DEFAULT NULL)
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
    OUT event_id text)
LANGUAGE C STABLE STRICT
AS 'MODULE_PATHNAME', 'onside_trigger_mapping';

CREATE VIEW onside_attribution.attached AS
    SELECT t.tgrelid::regclass AS source,
           m.event_name,
           t.tgname AS trigger_name,
           m.installation_id,
           m.payload,
           m.event_datetime,
           m.event_id,
           CASE t.tgtype::integer & 20
               WHEN 4 THEN 'INSERT'
               WHEN 16 THEN 'UPDATE'
               ELSE 'INSERT OR UPDATE'
           END AS operation,
           pg_catalog.substring(pg_catalog.pg_get_triggerdef(t.oid, true),
                                ' WHEN \((.*)\) EXECUTE FUNCTION ') AS condition,
           CASE t.tgtype::integer & 1 WHEN 1 THEN 'ROW' ELSE 'STATEMENT' END AS level,
           t.tgenabled <> 'D' AS enabled
    FROM pg_catalog.pg_trigger t,
         LATERAL onside_attribution.trigger_mapping(t.oid) m
    WHERE t.tgfoid = 'onside_attribution.track_row()'::regprocedure
      AND t.tgparentid = 0
      AND NOT t.tgisinternal;

/*
 * Operating it
 */

CREATE FUNCTION onside_attribution.flush(timeout interval DEFAULT '30 s')
RETURNS boolean
LANGUAGE C VOLATILE STRICT
AS 'MODULE_PATHNAME', 'onside_flush';

CREATE FUNCTION onside_attribution.pause(reason text DEFAULT NULL)
RETURNS void
LANGUAGE C VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'onside_pause';

CREATE FUNCTION onside_attribution.resume()
RETURNS void
LANGUAGE C VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'onside_resume';

/*
 * What an invalid row of a source table left in dead_letter was never sent and
 * cannot be; it is put back only if it is asked for, with the error that says
 * what is wrong with it.
 */
CREATE FUNCTION onside_attribution.retry_dead_letters(event_ids uuid[] DEFAULT NULL)
RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH moved AS (
        DELETE FROM onside_attribution.dead_letter d
        WHERE CASE WHEN event_ids IS NULL THEN d.http_status IS NOT NULL
                   ELSE d.event_id = ANY (event_ids) END
        RETURNING d.*
    ), recorded AS (
        INSERT INTO onside_attribution.outbox
            (event_id, event_name, payload, event_datetime, installation_id)
        SELECT m.event_id, m.event_name, m.payload, m.event_datetime, m.installation_id
        FROM moved m
        ORDER BY m.failed_at
        RETURNING 1
    )
    SELECT count(*) FROM recorded
$$;

CREATE FUNCTION onside_attribution.replay(
    since timestamptz,
    until timestamptz DEFAULT pg_catalog.now())
RETURNS bigint
LANGUAGE sql VOLATILE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
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

/*
 * Nothing is for everybody; the status is for monitoring.
 */
REVOKE ALL ON ALL ROUTINES IN SCHEMA onside_attribution FROM PUBLIC;
GRANT USAGE ON SCHEMA onside_attribution TO pg_monitor;
GRANT EXECUTE ON FUNCTION onside_attribution.worker_status() TO pg_monitor;
GRANT SELECT ON onside_attribution.status TO pg_monitor;
