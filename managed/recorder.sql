/*
 * recorder.sql
 *      The recording half of onside_attribution in plain SQL, for a PostgreSQL 15 or
 *      later on which nobody can install C: RDS, Cloud SQL, Azure, Supabase, Neon.
 *
 * Run it as the role that owns the database; it needs no superuser:
 *
 *      psql -v ON_ERROR_STOP=1 --single-transaction -f recorder.sql shop
 *
 * It makes the schema onside_attribution, with the functions by which the extension
 * records events, and a publication of the same name.  A small cluster that has
 * the extension subscribes to that, and sends: see docs/managed.md.
 *
 * To remove it: DROP PUBLICATION onside_attribution; DROP SCHEMA onside_attribution
 * CASCADE.  The latter drops the triggers of attached tables, too.
 *
 * Whoever calls track(), or writes to a table that is attached, needs
 *
 *      GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA onside_attribution TO app;
 *
 * and nothing on the tables: the functions that write to them are SECURITY DEFINER.
 * Nothing that a user has written runs in one of those: a mapper, a condition and
 * a column's type are evaluated by track_row(), as whoever writes the row.
 */
\set ON_ERROR_STOP on

DO $$
BEGIN
    IF pg_catalog.current_setting('server_version_num')::integer < 150000 THEN
        RAISE feature_not_supported USING MESSAGE = 'the recorder needs PostgreSQL 15 or later';
    END IF;
    IF pg_catalog.getdatabaseencoding() <> 'UTF8' THEN
        RAISE feature_not_supported USING MESSAGE = 'the recorder needs a database whose encoding is UTF8';
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'onside_attribution') THEN
        RAISE duplicate_object USING MESSAGE = 'this database has the extension onside_attribution, which records by itself';
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'onside_attribution') THEN
        RAISE duplicate_schema USING MESSAGE = 'this database has a schema onside_attribution already',
            HINT = 'To remove the recorder, see "Removing it" in docs/managed.md.';
    END IF;
END
$$;

SET search_path = pg_catalog, pg_temp;
SET check_function_bodies = on;

CREATE SCHEMA onside_attribution;

/* ---------------------------------------------------------------------------
 * Tables
 */

/*
 * The log.  It keeps a week, so that a subscription that is made anew, with its initial
 * copy, brings what was recorded while there was none.  Ten partitions take turns, one a
 * day: today's, a week before it, and two that have been emptied; see make_room().
 */
CREATE SEQUENCE onside_attribution.outbox_id_seq;

CREATE FUNCTION onside_attribution.today() RETURNS date
LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN (clock_timestamp() AT TIME ZONE 'UTC')::date;

CREATE FUNCTION onside_attribution.part_of(day date) RETURNS smallint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (((day - date '2000-01-01') % 10 + 10) % 10)::smallint;

/* Of the advisory locks, of which each partition has one: shared by who writes it, alone by who empties it. */
CREATE FUNCTION onside_attribution.lock_class() RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 1869506404;

CREATE TABLE onside_attribution.outbox (
    event_id uuid NOT NULL,
    event_name text NOT NULL,
    payload jsonb NOT NULL,
    event_datetime timestamptz NOT NULL DEFAULT now(),
    installation_id uuid NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    id bigint NOT NULL DEFAULT nextval('onside_attribution.outbox_id_seq'),
    part smallint NOT NULL DEFAULT onside_attribution.part_of(onside_attribution.today())
) PARTITION BY LIST (part);

DO $$
BEGIN
    FOR i IN 0 .. 9 LOOP
        EXECUTE format('CREATE TABLE onside_attribution.outbox_%s PARTITION OF onside_attribution.outbox FOR VALUES IN (%s)', i, i);
        -- A publication of the shop's own may have all tables, with DELETE.
        EXECUTE format('ALTER TABLE onside_attribution.outbox_%s REPLICA IDENTITY FULL', i);
    END LOOP;
END
$$;

/* What a transaction has made of its deferred rows; its partitions are emptied with those of the outbox. */
CREATE TABLE onside_attribution.seen (
    part smallint NOT NULL,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    key bytea NOT NULL,
    PRIMARY KEY (part, key, xid)
) PARTITION BY LIST (part);

DO $$
BEGIN
    FOR i IN 0 .. 9 LOOP
        EXECUTE format('CREATE TABLE onside_attribution.seen_%s PARTITION OF onside_attribution.seen FOR VALUES IN (%s)', i, i);
    END LOOP;
END
$$;

/* Through which day room has been made. */
CREATE TABLE onside_attribution.room (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    day date NOT NULL
);
INSERT INTO onside_attribution.room (day) VALUES (onside_attribution.today() + 2);

/* Rows of attached tables that are no valid events.  The columns are those of the extension. */
CREATE TABLE onside_attribution.dead_letter (
    event_id uuid,
    event_name text,
    payload jsonb,
    event_datetime timestamptz,
    installation_id uuid,
    http_status integer,
    error text NOT NULL,
    attempts integer NOT NULL DEFAULT 0,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    failed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    source text,
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    retry_at timestamptz
);

/* What distinguishes the keys of this database from those of others. */
CREATE TABLE onside_attribution.namespace (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO onside_attribution.namespace DEFAULT VALUES;

CREATE TYPE onside_attribution.event AS (installation_id uuid, payload jsonb, event_datetime timestamptz, event_id uuid);

CREATE PUBLICATION onside_attribution
    FOR TABLE onside_attribution.outbox (event_id, event_name, payload, event_datetime, installation_id, recorded_at)
    WITH (publish = 'insert', publish_via_partition_root = true);

/* ---------------------------------------------------------------------------
 * Events
 */

/* A time as the API is told it. */
CREATE FUNCTION onside_attribution.iso(t timestamptz) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
RETURN regexp_replace(to_char(t AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'), '\.?0+$', '') || 'Z';

CREATE FUNCTION onside_attribution.is_in_range(t timestamptz) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN t >= timestamptz '0001-01-01 00:00:00+00' AND t < timestamptz '10000-01-01 00:00:00+00';

CREATE FUNCTION onside_attribution.is_v4(id text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN id COLLATE "C" ~* '^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$';

CREATE FUNCTION onside_attribution.is_uuid(id text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN id COLLATE "C" ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$';

/* An event as the API is told it. */
CREATE FUNCTION onside_attribution.render(
    event_name text, payload jsonb, event_datetime timestamptz, event_id uuid, installation_id uuid) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '{"event_name":' || to_json(event_name)::text || ',"payload":' || payload::text
    || ',"event_datetime":"' || onside_attribution.iso(event_datetime)
    || '","event_id":"' || event_id::text || '","installation_id":"' || installation_id::text || '"}';

/*
 * Is it too large for a request, by the digits of its numbers alone?  1e131071 takes a few bytes
 * in jsonb, and 131,072 as text: so they are added up one by one, before all of them are text.
 */
CREATE FUNCTION onside_attribution.has_huge_numbers(payload jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    number jsonb;
    size bigint := 0;
BEGIN
    IF pg_column_size(payload) < 2000 AND pg_column_compression(payload) IS NULL THEN
        RETURN false;
    END IF;
    FOR number IN SELECT * FROM jsonb_path_query(payload, 'strict $.** ? (@.type() == "number")') LOOP
        size := size + length(number::text);
        IF size > 1000000 THEN
            RETURN true;
        END IF;
    END LOOP;
    RETURN false;
END
$$;

/*
 * Has it so many levels that a PostgreSQL with a smaller max_stack_depth could not read it?  Then the
 * subscription would fail for ever.
 */
CREATE FUNCTION onside_attribution.is_too_deep(payload jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN NOT (pg_column_size(payload) < 1000 AND pg_column_compression(payload) IS NULL)
    AND jsonb_path_exists(payload, 'strict $.**{500} ? (@.type() == "array" || @.type() == "object")');

/* What is wrong with an event; NULL if it can be sent.  As src/log/event.c has it. */
CREATE TYPE onside_attribution.problem AS (field text, state text, message text, hint text);

CREATE FUNCTION onside_attribution.problem_of(
    event_name text, installation_id uuid, payload jsonb, event_datetime timestamptz, event_id uuid)
RETURNS onside_attribution.problem
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    name_hint constant text := 'An event name has 1 to 255 characters and no control characters, e.g. purchase_completed.';
    size bigint;
    is_too_deep boolean := false;
BEGIN
    IF event_name IS NULL THEN
        RETURN ROW('event_name', '22004', 'event_name must not be null', name_hint)::onside_attribution.problem;
    ELSIF length(event_name) > 255 THEN
        RETURN ROW('event_name', '22023', 'event_name must not be longer than 255 characters', name_hint)::onside_attribution.problem;
    ELSIF event_name COLLATE "C" ~ '^[ \u00a0\u1680\u2000-\u200d\u2028\u2029\u202f\u205f\u2060\u3000\ufeff]*$' THEN
        RETURN ROW('event_name', '22023', 'event_name must not be empty or blank', name_hint)::onside_attribution.problem;
    ELSIF event_name COLLATE "C" ~ '[\u0001-\u001f\u007f-\u009f]' THEN
        RETURN ROW('event_name', '22023', 'event_name must not contain control characters', name_hint)::onside_attribution.problem;
    ELSIF installation_id IS NULL THEN
        RETURN ROW('installation_id', '22004', 'installation_id must not be null',
                'Pass the identifier that the Onside SDK returned in the app.')::onside_attribution.problem;
    ELSIF payload IS NULL THEN
        RETURN ROW('payload', '22004', 'payload must not be null', 'Pass a JSON object; {} if there is nothing to say.')::onside_attribution.problem;
    ELSIF jsonb_typeof(payload) <> 'object' THEN
        RETURN ROW('payload', '22023', 'payload must be a JSON object',
                'Pass a JSON object, e.g. {"currency": "USD", "amount": "9.99"}.')::onside_attribution.problem;
    ELSIF event_datetime IS NULL THEN
        RETURN ROW('event_datetime', '22004', 'event_datetime must not be null', 'Pass the time at which the event occurred.')::onside_attribution.problem;
    ELSIF NOT onside_attribution.is_in_range(event_datetime) THEN
        RETURN ROW('event_datetime', '22023', 'event_datetime must be finite and in years 1 to 9999',
                'Pass the time at which the event occurred.')::onside_attribution.problem;
    ELSIF event_id IS NULL THEN
        RETURN ROW('event_id', '22004', 'event_id must not be null', 'Pass a version 4 UUID, or leave it out to have one made.')::onside_attribution.problem;
    ELSIF NOT onside_attribution.is_v4(event_id::text) THEN
        RETURN ROW('event_id', '22023', 'event_id must be a version 4 UUID',
                'Use gen_random_uuid(), or leave it out to have one made.')::onside_attribution.problem;
    END IF;
    BEGIN
        size := CASE WHEN onside_attribution.has_huge_numbers(payload) THEN NULL
            ELSE octet_length(onside_attribution.render(event_name, payload, event_datetime, event_id, installation_id)) END;
        is_too_deep := size < 1000000 AND onside_attribution.is_too_deep(payload);
    EXCEPTION WHEN statement_too_complex THEN
        is_too_deep := true;
    WHEN program_limit_exceeded THEN
        size := NULL;
    END;
    IF is_too_deep THEN
        RETURN ROW('payload', '54000', 'payload is nested too deeply: it has more than 500 levels',
                'The sending side could not read it. Pass a payload that is flat.')::onside_attribution.problem;
    END IF;
    -- {"events":[ and ]} are around it.
    IF size IS NULL OR size + 13 >= 1000000 THEN
        RETURN ROW('payload', '54000',
                CASE WHEN size IS NULL OR pg_column_size(payload) >= 8000000 THEN 'payload is too large: the event has more than 1000000 bytes as JSON'
                    ELSE format('payload is too large: the event has %s bytes as JSON', size) END,
                'A request must stay below 1000000 bytes, and an event cannot be split.')::onside_attribution.problem;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION onside_attribution.throw(problem onside_attribution.problem) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = problem.state, MESSAGE = 'invalid event: ' || problem.message, HINT = problem.hint,
        SCHEMA = 'onside_attribution', TABLE = 'outbox', COLUMN = problem.field;
END
$$;

/* ---------------------------------------------------------------------------
 * The log
 */

/*
 * Empties the partitions of tomorrow and the day after, once a day: nobody writes there yet, and
 * what is in them is older than a week.  Nobody waits for that: who finds one locked, or
 * somebody else at it, leaves it for the next.  The lock is held until the caller's
 * transaction ends; until then whoever reads the whole outbox waits, and who records, should
 * that be after midnight, writes elsewhere (see part_to_write()).
 *
 * A clock that was ahead for a while has left a day behind that is yet to come; one that has jumped ahead looks
 * like days without an event; and a restored schema has no day.  Then nothing is emptied: what a wrong clock
 * takes for old, or has written, may be of this week.
 */
CREATE FUNCTION onside_attribution.make_room() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    today constant date := onside_attribution.today();
    made date;
BEGIN
    INSERT INTO onside_attribution.room (day) SELECT today + 2 WHERE NOT EXISTS (SELECT FROM onside_attribution.room)
    ON CONFLICT DO NOTHING;
    SELECT day INTO made FROM onside_attribution.room WHERE day NOT BETWEEN today + 2 AND today + 3 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    FOR i IN CASE WHEN made < today - 3 THEN 3 WHEN made < today THEN 1 ELSE made - today + 1 END .. 2 LOOP
        IF NOT pg_try_advisory_xact_lock(onside_attribution.lock_class(), onside_attribution.part_of(today + i)) THEN
            RETURN;
        END IF;
        EXECUTE format('LOCK TABLE onside_attribution.outbox_%1$s, onside_attribution.seen_%1$s IN ACCESS EXCLUSIVE MODE NOWAIT',
                       onside_attribution.part_of(today + i));
        IF onside_attribution.today() <> today THEN
            RETURN;             -- midnight has come while it waited: others may write there
        END IF;
        EXECUTE format('TRUNCATE onside_attribution.outbox_%1$s, onside_attribution.seen_%1$s', onside_attribution.part_of(today + i));
    END LOOP;
    UPDATE onside_attribution.room SET day = today + 2;
EXCEPTION WHEN lock_not_available OR object_in_use OR deadlock_detected OR serialization_failure OR unique_violation THEN
    NULL;
END
$$;

/*
 * The partition of a day, or if a transaction that is still open has emptied that, before midnight, of the last
 * day before of which that is not so.  A transaction empties two at most.
 */
CREATE FUNCTION onside_attribution.part_to_write(day date) RETURNS smallint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    FOR i IN 0 .. 4 LOOP
        IF pg_try_advisory_xact_lock_shared(onside_attribution.lock_class(), onside_attribution.part_of(day - i)) THEN
            RETURN onside_attribution.part_of(day - i);
        END IF;
    END LOOP;
    RETURN onside_attribution.part_of(day);
END
$$;

/* Writes one event, which is valid.  A transaction tries once to make room. */
CREATE FUNCTION onside_attribution.append(
    event_name text, installation_id uuid, payload jsonb, event_datetime timestamptz, event_id uuid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    today constant date := onside_attribution.today();
    part constant smallint := onside_attribution.part_to_write(today);
BEGIN
    INSERT INTO onside_attribution.outbox (event_id, event_name, payload, event_datetime, installation_id, part)
    VALUES (event_id, event_name, payload, event_datetime, installation_id, part);
    IF NOT EXISTS (SELECT FROM onside_attribution.room r WHERE r.day BETWEEN today + 2 AND today + 3)
        AND current_setting('onside_recorder.room_tried_by', true) IS DISTINCT FROM pg_current_xact_id()::text THEN
        PERFORM set_config('onside_recorder.room_tried_by', pg_current_xact_id()::text, true);
        PERFORM onside_attribution.make_room();
    END IF;
END
$$;

/* Is it the first time in this transaction?  What the key says may be long.  Only what writes an event calls it. */
CREATE FUNCTION onside_attribution.is_first(key text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    day constant date := (now() AT TIME ZONE 'UTC')::date;
    hash constant bytea := sha256(convert_to($1, 'UTF8'));
BEGIN
    INSERT INTO onside_attribution.seen (part, key)
    SELECT onside_attribution.part_to_write(day), hash
    WHERE NOT EXISTS (SELECT FROM onside_attribution.seen s WHERE s.part IN (SELECT onside_attribution.part_of(day - i) FROM generate_series(1, 4) i)
                          AND s.xid = pg_current_xact_id() AND s.key = hash)
    ON CONFLICT DO NOTHING;
    RETURN FOUND;
END
$$;

/* ---------------------------------------------------------------------------
 * Recording by functions
 */

/*
 * Writes one event; what is wrong with it if it is not written.  For those who may not
 * write to the log themselves.  "once": not if a transaction has said this before.
 */
CREATE FUNCTION onside_attribution.check_and_append(
    event_name text, installation_id uuid, payload jsonb, event_datetime timestamptz, event_id uuid, once text DEFAULT NULL)
RETURNS onside_attribution.problem
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem constant onside_attribution.problem :=
        onside_attribution.problem_of(event_name, installation_id, payload, event_datetime, event_id);
BEGIN
    IF problem IS NULL AND (once IS NULL OR onside_attribution.is_first(once)) THEN
        PERFORM onside_attribution.append(event_name, installation_id, payload, event_datetime, event_id);
    END IF;
    RETURN problem;
END
$$;

CREATE FUNCTION onside_attribution.track(
    event_name text,
    installation_id uuid,
    payload jsonb,
    event_datetime timestamptz DEFAULT now(),
    event_id uuid DEFAULT NULL)
RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    problem onside_attribution.problem;
BEGIN
    event_id := coalesce(event_id, gen_random_uuid());
    problem := onside_attribution.check_and_append(event_name, installation_id, payload, event_datetime, event_id);
    IF problem IS NOT NULL THEN
        PERFORM onside_attribution.throw(problem);
    END IF;
    RETURN event_id;
END
$$;

CREATE FUNCTION onside_attribution.purchase(
    installation_id uuid,
    amount numeric,
    currency text,
    event_datetime timestamptz DEFAULT NULL,
    event_id uuid DEFAULT NULL,
    extra jsonb DEFAULT '{}')
RETURNS onside_attribution.event
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem onside_attribution.problem;
BEGIN
    problem := CASE
        WHEN amount IS NULL THEN
            ('amount', '22004', 'amount must not be null', 'Pass the price that was paid.')::onside_attribution.problem
        WHEN currency IS NULL THEN
            ('currency', '22004', 'currency must not be null', 'Pass an ISO 4217 code, e.g. USD.')::onside_attribution.problem
        WHEN amount IN ('NaN', 'Infinity', '-Infinity') THEN
            ('amount', '22023', 'amount must be a finite number', 'Pass the price that was paid.')::onside_attribution.problem
        WHEN currency = '' THEN
            ('currency', '22023', 'currency must not be empty', 'Pass an ISO 4217 code, e.g. USD.')::onside_attribution.problem
        WHEN jsonb_typeof(extra) <> 'object' THEN
            ('extra', '22023', 'extra must be a JSON object', 'Its keys are added to the payload.')::onside_attribution.problem
        WHEN extra ?| '{amount,currency}' THEN
            ('extra', '22023', 'extra must not have the keys "amount" and "currency"',
             'Pass them as the function''s own arguments.')::onside_attribution.problem
    END;
    IF problem IS NOT NULL AND installation_id IS NULL THEN
        -- Bought outside the app, it is no event, and no price needs to be right.
        RETURN (NULL::uuid, NULL::jsonb, event_datetime, event_id);
    ELSIF problem IS NOT NULL THEN
        PERFORM onside_attribution.throw(problem);
    END IF;
    RETURN (installation_id,
            jsonb_build_object('currency', upper(currency COLLATE "C"), 'amount', amount::text) || coalesce(extra, '{}'),
            event_datetime, event_id);
END
$$;

CREATE FUNCTION onside_attribution.track_purchase(
    installation_id uuid,
    amount numeric,
    currency text,
    event_datetime timestamptz DEFAULT now(),
    event_id uuid DEFAULT NULL,
    extra jsonb DEFAULT '{}')
RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN onside_attribution.track('purchase_completed', installation_id,
        (onside_attribution.purchase(installation_id, amount, currency, extra => extra)).payload, event_datetime, event_id);
END
$$;

CREATE FUNCTION onside_attribution.amount(minor_units numeric, digits integer)
RETURNS numeric
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    result numeric;
BEGIN
    IF minor_units IN ('NaN', 'Infinity', '-Infinity') THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'amount: minor_units must be a finite number',
            HINT = 'Pass the price in minor units, for example 990 cents.';
    ELSIF digits NOT BETWEEN 0 AND 30 THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'amount: digits must be from 0 to 30',
            HINT = 'It says how many digits the currency has after the point: 2 for USD, 0 for JPY.';
    END IF;
    result := trim_scale(minor_units * ('1e-' || digits)::numeric);
    RETURN CASE WHEN scale(result) < digits THEN round(result, digits) ELSE result END;
END
$$;

CREATE FUNCTION onside_attribution.event_id(VARIADIC parts text[])
RETURNS uuid
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    hint constant text := 'Pass what makes the event unique, for example event_id(''orders'', id::text).';
    bytes bytea := '';
    part text;
    number integer := 0;
BEGIN
    IF parts IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = '22004', MESSAGE = 'event_id: a part must not be null', HINT = hint;
    ELSIF cardinality(parts) = 0 THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'event_id: there must be a part', HINT = hint;
    END IF;
    FOREACH part IN ARRAY parts LOOP
        number := number + 1;
        IF part IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = '22004', MESSAGE = format('event_id: part %s must not be null', number), HINT = hint;
        ELSIF part = '' THEN
            RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('event_id: part %s must not be empty', number), HINT = hint;
        END IF;
        bytes := bytes || int8send(octet_length(part)) || convert_to(part, 'UTF8');
    END LOOP;
    bytes := substr(sha256(bytes), 1, 16);
    bytes := set_byte(bytes, 6, get_byte(bytes, 6) & 15 | 64);
    bytes := set_byte(bytes, 8, get_byte(bytes, 8) & 63 | 128);
    RETURN encode(bytes, 'hex')::uuid;
END
$$;

/* ISO 8601 with a UTC offset; NULL if it is something else. */
CREATE FUNCTION onside_attribution.parse_datetime(str text) RETURNS timestamptz
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    m constant text[] := regexp_match(str, '^(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?(?:[Zz]|([+-])(\d\d)(?::?(\d\d))?)$');
    t timestamp;
    shift interval;
BEGIN
    IF m IS NULL OR m[1] = '0000' OR m[4]::integer > 23 OR m[5]::integer > 59 OR m[6]::integer > 60
        OR m[9]::integer > 15 OR m[10]::integer > 59 OR str !~ '^[ -~]*$' THEN
        RETURN NULL;
    END IF;
    t := make_date(m[1]::integer, m[2]::integer, m[3]::integer)
        + make_interval(hours => m[4]::integer, mins => m[5]::integer)
        + coalesce(m[6]::integer, 0) * interval '1 s'
        + rpad(left(coalesce(m[7], '0'), 6), 6, '0')::integer * interval '1 us';
    shift := make_interval(hours => coalesce(m[9]::integer, 0), mins => coalesce(m[10]::integer, 0));
    RETURN (CASE m[8] WHEN '+' THEN t - shift WHEN '-' THEN t + shift ELSE t END) AT TIME ZONE 'UTC';
EXCEPTION WHEN datetime_field_overflow OR numeric_value_out_of_range THEN
    RETURN NULL;
END
$$;

CREATE FUNCTION onside_attribution.track_batch(events jsonb)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem onside_attribution.problem;
    element jsonb;
    number bigint := 0;
    key text;
    value jsonb;
    str text;
    datetime timestamptz;
    uuids uuid[];
BEGIN
    IF events IS NULL THEN
        PERFORM onside_attribution.throw(('events', '22004', 'events must not be null', 'Pass a JSON array of events.'));
    END IF;
    IF jsonb_typeof(events) = 'object' AND (SELECT count(*) = 1 FROM jsonb_object_keys(events)) THEN
        events := coalesce(events -> 'events', 'null');
    END IF;
    IF jsonb_typeof(events) <> 'array' THEN
        PERFORM onside_attribution.throw(('events', '22023',
            'events must be a JSON array of events or an object with just that as "events"',
            'Pass what the API''s documentation shows as a request''s body.'));
    END IF;
    FOR element IN SELECT * FROM jsonb_array_elements(events) LOOP
        number := number + 1;
        problem := NULL;
        datetime := NULL;
        uuids := ARRAY[NULL, NULL];
        IF jsonb_typeof(element) <> 'object' THEN
            problem := ('events', '22023', 'events must contain JSON objects alone', 'Pass each event as the API''s documentation shows it.');
        ELSE
            FOR key, value IN SELECT * FROM jsonb_each(element) LOOP
                EXIT WHEN problem IS NOT NULL;
                IF key NOT IN ('event_name', 'payload', 'event_datetime', 'event_id', 'installation_id') THEN
                    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('invalid event: "%s" is not a field of an event', key),
                        HINT = 'Put an event''s own properties into its payload.', DETAIL = format('event %s of the batch', number);
                ELSIF value = 'null' OR key = 'payload' THEN
                    CONTINUE;
                ELSIF jsonb_typeof(value) <> 'string' THEN
                    problem := (key, '22023', key || ' must be a JSON string', 'Pass the event as the API''s documentation shows it.');
                    CONTINUE;
                END IF;
                str := value #>> '{}';
                IF key = 'event_datetime' THEN
                    datetime := onside_attribution.parse_datetime(str);
                    IF datetime IS NULL THEN
                        problem := (key, '22023', 'event_datetime must be an ISO 8601 date and time with a UTC offset', 'For example 2026-05-05T12:00:00Z.');
                    END IF;
                ELSIF key <> 'event_name' THEN
                    IF NOT onside_attribution.is_uuid(str) THEN
                        problem := (key, '22023', key || ' must be a UUID', 'Pass it as 8-4-4-4-12 hexadecimal digits.');
                    ELSE
                        uuids[CASE key WHEN 'event_id' THEN 1 ELSE 2 END] := str::uuid;
                    END IF;
                END IF;
            END LOOP;
            IF problem IS NULL THEN
                uuids[1] := coalesce(uuids[1], gen_random_uuid());
                problem := onside_attribution.problem_of(element ->> 'event_name', uuids[2],
                    nullif(element -> 'payload', 'null'), datetime, uuids[1]);
            END IF;
        END IF;
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = problem.state, MESSAGE = 'invalid event: ' || problem.message, HINT = problem.hint,
                DETAIL = format('event %s of the batch', number),
                SCHEMA = 'onside_attribution', TABLE = 'outbox', COLUMN = problem.field;
        END IF;
        PERFORM onside_attribution.append(element ->> 'event_name', uuids[2], element -> 'payload', datetime, uuids[1]);
    END LOOP;
    RETURN number;
END
$$;

/* As the caller, who has to be allowed to read the outbox. */
CREATE FUNCTION onside_attribution.preview(event_id uuid) RETURNS text
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
    SELECT onside_attribution.render(o.event_name, o.payload, o.event_datetime, o.event_id, o.installation_id)
    FROM onside_attribution.outbox o WHERE o.event_id = $1 LIMIT 1
$$;

/* ---------------------------------------------------------------------------
 * Recording by triggers
 */

/* What is beneath domains. */
CREATE FUNCTION onside_attribution.base_type(type oid) RETURNS oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE t AS (
        SELECT oid, typtype, typbasetype FROM pg_type WHERE oid = $1
        UNION ALL
        SELECT b.oid, b.typtype, b.typbasetype FROM t JOIN pg_type b ON t.typtype = 'd' AND b.oid = t.typbasetype)
    SELECT oid FROM t WHERE typtype <> 'd'
$$;

/* What is beneath domains and arrays. */
CREATE FUNCTION onside_attribution.innermost_type(type oid) RETURNS oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE t AS (
        SELECT oid, typtype, typbasetype, typelem, typsubscript FROM pg_type WHERE oid = $1
        UNION ALL
        SELECT b.oid, b.typtype, b.typbasetype, b.typelem, b.typsubscript FROM t
        JOIN pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype WHEN t.typsubscript = 'array_subscript_handler'::regproc THEN t.typelem END)
    SELECT oid FROM t WHERE typtype <> 'd' AND typsubscript <> 'array_subscript_handler'::regproc
$$;

/*
 * A trigger's arguments, "target=value", as an object; the payload is an array of
 * [key, column].  They are those of the extension.
 */
CREATE FUNCTION onside_attribution.read_arguments(arguments text[]) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    hint constant text := 'For example track_row(''event_name=purchase_completed'', ''installation_id=install_id'', ''payload.amount=total'').';
    result jsonb := '{}';
    payload jsonb := '[]';
    seen text[] := '{}';
    argument text;
    target text;
    value text;
BEGIN
    IF cardinality(arguments) > 2000 THEN
        RAISE EXCEPTION USING ERRCODE = '22023', HINT = hint, MESSAGE = 'track_row: there are more than 2000 arguments';
    END IF;
    FOREACH argument IN ARRAY arguments LOOP
        target := split_part(argument, '=', 1);
        value := substr(argument, length(target) + 2);
        IF strpos(argument, '=') = 0 OR value = '' THEN
            RAISE EXCEPTION USING ERRCODE = '22023', HINT = hint,
                MESSAGE = format('track_row: argument "%s" is not of the form target=column', argument);
        ELSIF target = ANY (seen) THEN
            RAISE EXCEPTION USING ERRCODE = '22023', HINT = hint, MESSAGE = format('track_row: "%s" is given twice', target);
        ELSIF target LIKE 'payload.%' THEN
            payload := payload || jsonb_build_array(jsonb_build_array(substr(target, length('payload.') + 1), value));
        ELSIF target IN ('event_name', 'installation_id', 'event_datetime', 'event_id', 'event_id.namespace', 'event_id.source',
                         'mapper', 'search_path') THEN
            result := result || jsonb_build_object(target, value);
        ELSE
            RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('track_row: "%s" is not a field of an event', target),
                HINT = 'The fields are event_name, and installation_id, event_datetime, event_id and payload.KEY, or mapper.';
        END IF;
        seen := seen || target;
    END LOOP;
    IF NOT result ? 'event_name' THEN
        RAISE EXCEPTION USING ERRCODE = '22004', HINT = hint, MESSAGE = 'track_row: "event_name" is missing';
    ELSIF NOT result ? 'mapper' AND NOT result ? 'installation_id' THEN
        RAISE EXCEPTION USING ERRCODE = '22004', HINT = hint, MESSAGE = 'track_row: "installation_id" is missing';
    ELSIF result ? 'mapper' AND (result ?| '{installation_id,event_datetime,event_id}' OR payload <> '[]') THEN
        RAISE EXCEPTION USING ERRCODE = '22023', HINT = hint, MESSAGE = 'track_row: mapper and columns exclude each other';
    END IF;
    RETURN result || jsonb_build_object('payload', payload);
END
$$;

/* The same of a trigger in the catalog, which somebody may have made by hand; NULL if they are no mapping. */
CREATE FUNCTION onside_attribution.mapping_of(arguments bytea) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN onside_attribution.read_arguments(array_agg(convert_from(decode(a, 'escape'), 'UTF8') ORDER BY n))
        FROM unnest(string_to_array(encode(arguments, 'escape'), '\000')) WITH ORDINALITY x (a, n) WHERE a <> '';
EXCEPTION WHEN data_exception OR null_value_not_allowed THEN
    RETURN NULL;
END
$$;

/* A date's midnight; what is out of an event's range is infinite. */
CREATE FUNCTION onside_attribution.midnight(day date) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN day BETWEEN date '0001-01-01' AND date '9999-12-31' THEN day::timestamp AT TIME ZONE 'UTC'
    WHEN day IS NOT NULL THEN timestamptz 'infinity' END;

/* json as jsonb, or why that is impossible. */
CREATE FUNCTION onside_attribution.read_json(value json, OUT result jsonb, OUT problem text)
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    result := value::jsonb;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    result := to_jsonb(value::text);
    problem := SQLERRM;
END
$$;

/*
 * Why a column cannot be mapped to a field, with an SQLSTATE and a hint; no row if it can.
 */
CREATE FUNCTION onside_attribution.column_problem(relid oid, field text, col text, OUT state text, OUT message text, OUT hint text)
RETURNS SETOF record
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    att pg_attribute;
    base oid;
    relname constant text := (SELECT c.relname FROM pg_class c WHERE c.oid = relid);
BEGIN
    SELECT * INTO att FROM pg_attribute a WHERE a.attrelid = relid AND a.attname = col AND a.attnum > 0 AND NOT a.attisdropped;
    IF NOT FOUND THEN
        RETURN QUERY SELECT '42703', format('column "%s" of relation "%s", mapped to %s, does not exist', col, relname, field),
            'Was it renamed? Detach the event and attach it again with the column''s new name.';
        RETURN;
    END IF;
    base := onside_attribution.base_type(att.atttypid);
    IF att.attgenerated NOT IN ('', 's') THEN
        RETURN QUERY SELECT '0A000', format('column "%s" of relation "%s", mapped to %s, is a virtual generated column', col, relname, field),
            'Map a stored column.';
    ELSIF field = 'event_id' AND base NOT IN ('uuid'::regtype, 'text'::regtype, 'varchar'::regtype, 'bpchar'::regtype,
                                              'int2'::regtype, 'int4'::regtype, 'int8'::regtype)
        OR field = 'installation_id' AND base NOT IN ('uuid'::regtype, 'text'::regtype, 'varchar'::regtype, 'bpchar'::regtype)
        OR field = 'event_datetime' AND base NOT IN ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype,
                                                     'text'::regtype, 'varchar'::regtype) THEN
        RETURN QUERY SELECT '42804', format('column "%s" of relation "%s" has type %s, which cannot be %s', col, relname,
                                            format_type(att.atttypid, NULL), field),
            CASE field WHEN 'event_datetime' THEN 'Map a column of type timestamp with time zone.'
                WHEN 'event_id' THEN 'Map a column of type uuid, bigint, integer, smallint or text.'
                ELSE 'Map a column of type uuid.' END;
    END IF;
END
$$;

/*
 * The expressions that make JSON of a column of "n", and say what is wrong with its
 * value.  No cast that a user can have made is looked up: unknown types are shown by
 * their output functions.
 */
CREATE FUNCTION onside_attribution.column_expressions(relid oid, field text, col text, OUT value text, OUT problem text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    base constant oid := onside_attribution.base_type((SELECT atttypid FROM pg_attribute
        WHERE attrelid = relid AND attname = col AND attnum > 0 AND NOT attisdropped));
    x constant text := format('n.%I', col);
    time text;
BEGIN
    CASE
        WHEN base IS NULL THEN
            value := quote_literal('null') || '::jsonb';
        WHEN base IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'bool'::regtype) THEN
            value := format('to_jsonb(%s::%s)', x, base::regtype);
        WHEN base IN ('numeric'::regtype, 'float4'::regtype, 'float8'::regtype) THEN
            value := format(CASE WHEN base = 'numeric'::regtype THEN 'to_jsonb(%s::%s::text)' ELSE 'to_jsonb(%s::%s)' END, x, base::regtype);
            problem := format('CASE WHEN %s::%s IN (''NaN'', ''Infinity'', ''-Infinity'') THEN %L END', x, base::regtype,
                              field || ' must not be NaN or infinite');
        WHEN base IN ('text'::regtype, 'varchar'::regtype) THEN
            value := format('to_jsonb(%s::text)', x);
        WHEN base = 'bpchar'::regtype THEN
            value := format('to_jsonb(%s::bpchar::text)', x);
        WHEN base IN ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype) THEN
            time := format(CASE base WHEN 'timestamptz'::regtype THEN '%s::timestamptz' WHEN 'date'::regtype THEN 'onside_attribution.midnight(%s::date)'
                ELSE '(%s::timestamp AT TIME ZONE ''UTC'')' END, x);
            value := format('CASE WHEN onside_attribution.is_in_range(%s) THEN to_jsonb(%s) ELSE to_jsonb(%s::%s::text) END', time,
                           CASE WHEN base = 'date'::regtype THEN format('left(onside_attribution.iso(%s), 10)', time)
                               ELSE format('onside_attribution.iso(%s)', time) END, x, base::regtype);
            problem := format('CASE WHEN NOT onside_attribution.is_in_range(%s) THEN %L END', time,
                              field || ' must be finite and in years 1 to 9999');
        WHEN base = 'uuid'::regtype THEN
            value := format('to_jsonb(%s::uuid::text)', x);
        WHEN base = 'jsonb'::regtype THEN
            value := x || '::jsonb';
        WHEN base = 'json'::regtype THEN
            value := format('(onside_attribution.read_json(%s::json)).result', x);
            problem := format('%L || (onside_attribution.read_json(%s::json)).problem', field || ' cannot be sent as JSON: ', x);
        ELSE
            value := format('CASE WHEN %s IS DISTINCT FROM NULL THEN to_jsonb(format(''%%s'', %s)) END', x, x);
    END CASE;
    value := format('coalesce(%s, ''null''::jsonb)', value);
END
$$;

/* What is made of a row: by columns or a mapper. */
CREATE TYPE onside_attribution.made AS (
    installation_id text, payload jsonb, problem onside_attribution.problem, event_datetime timestamptz, has_datetime boolean, key text);

/* What is made of a row of which no event can be made. */
CREATE FUNCTION onside_attribution.no_event(field text, state text, message text, hint text) RETURNS onside_attribution.made
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ('?', NULL, ($1, $2, $3, $4)::onside_attribution.problem, NULL, true, NULL)::onside_attribution.made
$$;

/*
 * A query that makes events of the rows of a source, "n".  That of a mapper is executed
 * with the mapper's search_path, so nothing in it depends on one.  Of mappers of one name the one is meant that takes
 * rows of the table that was attached: of which "relid" may be a partition.
 */
CREATE FUNCTION onside_attribution.query_of(relid oid, mapping jsonb, source text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    entry record;
    broken onside_attribution.problem;
    expressions record;
    pairs text[] := '{}';
    problems text[] := '{}';
    base oid;
    datetime text := 'NULL::timestamptz';
    argument oid;
BEGIN
    IF mapping ? 'mapper' THEN
        argument := (SELECT t.typrelid FROM pg_proc p JOIN pg_namespace s ON s.oid = p.pronamespace JOIN pg_type t ON t.oid = p.proargtypes[0]
                     WHERE format('%I.%I', s.nspname, p.proname) = mapping ->> 'mapper' AND p.pronargs = 1 AND t.typrelid <> 0
                       AND p.prorettype = 'onside_attribution.event'::regtype
                       AND t.typrelid = coalesce((mapping ->> 'attached')::oid, relid));
        IF argument IS NULL THEN
            RAISE undefined_function USING MESSAGE = format('mapper %s does not exist', mapping ->> 'mapper'),
                HINT = 'Create it again, or detach the event with onside_attribution.detach().';
        END IF;
        -- A partition's columns may stand in another order than the table's.
        RETURN format('SELECT e.installation_id::pg_catalog.text, e.payload, NULL::onside_attribution.problem, e.event_datetime, true, e.event_id::pg_catalog.text FROM %s, LATERAL %s(%s) e',
            source, mapping ->> 'mapper',
            CASE WHEN argument = relid THEN format('(n.*)::%s', argument::regclass)
                ELSE format('ROW(%s)::%s', (SELECT string_agg(format('n.%I', a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute a
                                            WHERE a.attrelid = argument AND a.attnum > 0 AND NOT a.attisdropped), argument::regclass) END);
    END IF;

    FOR entry IN
        SELECT f.field, f.col FROM (
            SELECT 'installation_id' AS field, mapping ->> 'installation_id' AS col, 0::bigint AS place
            UNION ALL SELECT 'event_datetime', mapping ->> 'event_datetime', 1
            UNION ALL SELECT 'event_id', mapping ->> 'event_id', 2
            UNION ALL SELECT 'payload.' || (p.pair ->> 0), p.pair ->> 1, 2 + p.n
                FROM jsonb_array_elements(mapping -> 'payload') WITH ORDINALITY AS p (pair, n)) f
        WHERE f.col IS NOT NULL ORDER BY f.place
    LOOP
        IF broken IS NULL THEN
            SELECT entry.field, c.state, c.message, c.hint INTO broken
            FROM onside_attribution.column_problem(relid, entry.field, entry.col) c;
        END IF;
        CONTINUE WHEN entry.field NOT LIKE 'payload.%';
        expressions := onside_attribution.column_expressions(relid, entry.field, entry.col);
        pairs := pairs || format('(%L, %s)', substr(entry.field, length('payload.') + 1), expressions.value);
        IF expressions.problem IS NOT NULL THEN
            problems := problems || format('(SELECT (%L, ''22023'', p, %L)::onside_attribution.problem FROM (SELECT %s) x (p) WHERE p IS NOT NULL)',
                entry.field,
                CASE WHEN expressions.problem LIKE '%read_json%' THEN 'Store it as jsonb to have it checked earlier.'
                    WHEN expressions.problem LIKE '%NaN%' THEN 'JSON has no such number.'
                    ELSE 'ISO 8601 can express no other time.' END,
                expressions.problem);
        END IF;
    END LOOP;

    IF broken IS NOT NULL THEN
        problems := format('%L::onside_attribution.problem', broken) || problems;
    ELSIF mapping ? 'event_datetime' THEN
        base := onside_attribution.base_type((SELECT atttypid FROM pg_attribute
            WHERE attrelid = relid AND attname = mapping ->> 'event_datetime' AND attnum > 0 AND NOT attisdropped));
        datetime := format(CASE base
            WHEN 'timestamptz'::regtype THEN 'n.%I::timestamptz'
            WHEN 'timestamp'::regtype THEN '(n.%I::timestamp AT TIME ZONE ''UTC'')'
            WHEN 'date'::regtype THEN 'onside_attribution.midnight(n.%I::date)'
            ELSE 'onside_attribution.parse_datetime(n.%I::text COLLATE "C")' END, mapping ->> 'event_datetime');
        IF base IN ('text'::regtype, 'varchar'::regtype) THEN
            problems := format('CASE WHEN n.%I IS NOT NULL AND %s IS NULL THEN (''event_datetime'', ''22023'', '
                || '''event_datetime must be an ISO 8601 date and time with a UTC offset'', ''For example 2026-05-05T12:00:00Z.'')::onside_attribution.problem END',
                mapping ->> 'event_datetime', datetime) || problems;
        END IF;
    END IF;
    RETURN format('SELECT %s, %s, %s, %s, %L::boolean, %s FROM %s',
        CASE WHEN broken.field = 'installation_id' THEN quote_literal('?') ELSE format('n.%I::text', mapping ->> 'installation_id') END,
        CASE WHEN pairs = '{}' THEN '''{}''::jsonb'
            ELSE format('(SELECT jsonb_object_agg(k, v) FROM (VALUES %s) x (k, v))', array_to_string(pairs, ', ')) END,
        CASE WHEN problems = '{}' THEN 'NULL::onside_attribution.problem' ELSE format('coalesce(%s)', array_to_string(problems, ', ')) END,
        datetime, mapping ? 'event_datetime',
        CASE WHEN mapping ? 'event_id' AND broken IS NULL THEN format('n.%I::text', mapping ->> 'event_id') ELSE 'NULL::text' END,
        source);
END
$$;

CREATE FUNCTION onside_attribution.namespace_id() RETURNS uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT n.id FROM onside_attribution.namespace n
$$;

/* The table, or if that is a partition, its root, as an event_id says it. */
CREATE FUNCTION onside_attribution.id_source(relid oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
    WHERE c.oid = coalesce(pg_partition_root($1), $1)
$$;

/*
 * Writes a dead letter; NULL if this was said "once" before; false if somebody has locked the table.  The purchase waits
 * a second for that, once a transaction.
 */
CREATE FUNCTION onside_attribution.reject(
    event_name text, installation_id uuid, payload jsonb, event_datetime timestamptz, event_id uuid, error text, source text, once text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $$
BEGIN
    IF current_setting('onside_recorder.waited_in', true) = pg_current_xact_id()::text THEN
        LOCK TABLE onside_attribution.dead_letter IN ROW EXCLUSIVE MODE NOWAIT;
    END IF;
    IF once IS NOT NULL AND NOT onside_attribution.is_first(once) THEN
        RETURN NULL;
    END IF;
    INSERT INTO onside_attribution.dead_letter (event_name, installation_id, payload, event_datetime, event_id, error, source)
    VALUES ($1, $2, $3, $4, $5, $6, $7);
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    PERFORM set_config('onside_recorder.waited_in', pg_current_xact_id()::text, true);
    RETURN false;
END
$$;

/* Does on_invalid_event say that the purchase fails with its event? */
CREATE FUNCTION onside_attribution.must_be_valid() RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT lower(current_setting('onside_attribution.on_invalid_event', true)) IS NOT DISTINCT FROM 'error'
$$;

/*
 * Records what was made of a row, skips it, or lets the row through without.  Of a deferred
 * trigger's row "place" says which one it is, and which of its events: none is recorded twice.
 */
CREATE FUNCTION onside_attribution.settle(relid oid, mapping jsonb, made onside_attribution.made, place text DEFAULT NULL) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem onside_attribution.problem := made.problem;
    installation uuid;
    datetime timestamptz := CASE WHEN made.has_datetime THEN made.event_datetime ELSE now() END;
    id uuid;
    relname constant text := (SELECT c.relname FROM pg_class c WHERE c.oid = relid);
    col text;
    detail text;
    kept boolean;
BEGIN
    IF made.installation_id IS NULL OR made.installation_id = '' THEN
        RETURN 'skipped';
    END IF;
    IF mapping ? 'mapper' THEN
        datetime := coalesce(datetime, now());
    END IF;
    IF onside_attribution.is_uuid(made.installation_id) THEN
        installation := made.installation_id;
    ELSIF problem IS NULL THEN
        problem := ('installation_id', '22023', 'installation_id must be a UUID', 'It has 8-4-4-4-12 hexadecimal digits.');
    END IF;
    IF made.key = '' THEN
        problem := coalesce(problem, ROW('event_id', '22023', 'event_id must not be empty',
            'It is the row''s key, or a version 4 UUID, or NULL to have one made.')::onside_attribution.problem);
    ELSIF made.key IS NULL THEN
        id := gen_random_uuid();
    ELSIF mapping ? 'mapper' OR onside_attribution.is_v4(made.key) THEN
        id := made.key;
    ELSIF NOT mapping ? 'event_id.namespace' AND onside_attribution.namespace_id() IS NULL THEN
        problem := coalesce(problem, ROW('event_id', '55000', 'event_id cannot be made: the table onside_attribution.namespace is empty',
            'Put its row back: INSERT INTO onside_attribution.namespace (id) VALUES (gen_random_uuid());')::onside_attribution.problem);
    ELSE
        id := onside_attribution.event_id(
            coalesce(mapping ->> 'event_id.namespace', onside_attribution.namespace_id()::text),
            lower((mapping ->> 'event_name') COLLATE "C"),
            coalesce(mapping ->> 'event_id.source', onside_attribution.id_source(relid)),
            made.key);
    END IF;
    IF problem IS NULL THEN
        problem := onside_attribution.check_and_append(mapping ->> 'event_name', installation, made.payload, datetime, id,
            CASE WHEN made.key IS NOT NULL THEN split_part(place, E'\t', 1) || E'\t' || id ELSE place END);
    END IF;
    IF problem IS NULL THEN
        RETURN 'recorded';
    END IF;

    col := coalesce(CASE WHEN NOT mapping ? 'mapper' THEN mapping ->> nullif(problem.field, 'payload') END, (SELECT p.pair ->> 1 FROM jsonb_array_elements(mapping -> 'payload') p (pair)
                                                WHERE 'payload.' || (p.pair ->> 0) = problem.field));
    detail := format('Rows of table "%s" are reported as event "%s"%s.', relname, mapping ->> 'event_name',
                     CASE WHEN mapping ? 'mapper' THEN format(', by the mapper %s', mapping ->> 'mapper')
                         WHEN col IS NOT NULL THEN format(', with column "%s" as %s', col, problem.field) ELSE '' END);
    IF onside_attribution.must_be_valid() THEN
        RAISE EXCEPTION USING ERRCODE = problem.state, MESSAGE = 'invalid event: ' || problem.message, DETAIL = detail,
            HINT = problem.hint || ' To let such rows through, set onside_attribution.on_invalid_event to dead_letter.',
            TABLE = relname, COLUMN = coalesce(col, '');
    END IF;
    kept := onside_attribution.reject(mapping ->> 'event_name', installation, made.payload, datetime, id, problem.message,
        (SELECT format('%I.%I', s.nspname, c.relname) FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
         WHERE c.oid = coalesce(pg_partition_root(relid), relid)), place || E'\t' || problem.message);
    IF kept IS NULL THEN
        RETURN 'recorded';
    END IF;
    RAISE WARNING USING ERRCODE = problem.state, MESSAGE = 'invalid event: ' || problem.message,
        DETAIL = detail || CASE WHEN kept THEN ' This row was let through and its event put into dead_letter.'
            ELSE format(' This row was let through. Its event is kept in this message alone, since dead_letter is locked by another session: %s.',
                        jsonb_build_object('installation_id', installation, 'payload', made.payload, 'event_datetime', datetime, 'event_id', id)) END,
        HINT = problem.hint, TABLE = relname, COLUMN = coalesce(col, '');
    RETURN 'dead_letter';
END
$$;

/* The mapper has failed: the row's purchase comes first, unless the error says nothing about the row. */
CREATE FUNCTION onside_attribution.passes_through(state text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT left($1, 2) IN ('57', '40', '53', '58', 'XX') OR onside_attribution.must_be_valid()
$$;

/*
 * Those by which the text of any type is the same in every session.  Until the end of the transaction; returns what
 * they were, for the way back.
 */
CREATE FUNCTION onside_attribution.use_settings(
    settings text[] DEFAULT '{"ISO, YMD",UTC,postgres,1,hex,C,base64,off,on}') RETURNS text[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    names constant text[] := '{datestyle,timezone,intervalstyle,extra_float_digits,bytea_output,lc_monetary,xmlbinary,quote_all_identifiers,standard_conforming_strings}';
    before text[] := '{}';
BEGIN
    FOR i IN 1 .. cardinality(names) LOOP
        before[i] := current_setting(names[i]);
        IF before[i] <> settings[i] THEN
            PERFORM set_config(names[i], settings[i], true);
        END IF;
    END LOOP;
    RETURN before;
END
$$;

/*
 * A trigger's WHEN clause, as PostgreSQL has understood it: all names in it are resolved, and its constants can be
 * read in any session.  NULL if it has none.
 */
CREATE FUNCTION onside_attribution.condition_of(trigger oid) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
    before constant text[] := onside_attribution.use_settings();
    definition constant text := pg_get_triggerdef(trigger);
BEGIN
    PERFORM onside_attribution.use_settings(before);
    RETURN substring(definition, $re$ WHEN (\(.*\)) EXECUTE FUNCTION onside_attribution\.track_row\((?:'(?:[^']|'')*'(?:, )?)*\)$$re$);
END
$f$;

/* The same condition of OLD: each "new." that is neither in a string nor in a name. */
CREATE FUNCTION onside_attribution.condition_on_old(condition text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(CASE m.token[1] WHEN 'new.' THEN 'old.' ELSE m.token[1] END, '' ORDER BY m.n)
    FROM regexp_matches(condition COLLATE "C", $re$('(?:[^']|'')*'|"(?:[^"]|"")*"|\mnew\.|[^'"n]+|.)$re$, 'g') WITH ORDINALITY m (token, n)
$$;

/* Does it have this outside of its strings and quoted names? */
CREATE FUNCTION onside_attribution.mentions(condition text, pattern text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT regexp_replace(condition COLLATE "C", $re$'(?:[^']|'')*'|"(?:[^"]|"")*"$re$, '', 'g') ~ pattern
$$;

CREATE FUNCTION onside_attribution.has_system_column(condition text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT onside_attribution.mentions(condition, '\m(new|old)\.(tableoid|ctid|xmin|xmax|cmin|cmax)\M')
$$;

/* What FROM takes for a table's own rows: those of its partitions, but not of tables that inherit from it. */
CREATE FUNCTION onside_attribution.rows_of(relid regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE c.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END || $1::text FROM pg_class c WHERE c.oid = $1
$$;

/*
 * The primary key of a table: its columns, in words for a person, as a text that no other key has, as the text of a row of
 * the table that has nothing else, and as conditions on "n" and the row $1, by the operators of its index; NULL if there is none.
 */
CREATE FUNCTION onside_attribution.key_of(
    relid oid, OUT columns text, OUT description text, OUT identity text, OUT key_row text, OUT is_same text, OUT is_after text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    part record;
    names text;
    places text;
    row_values text;
BEGIN
    FOR part IN
        SELECT a.attname,
            (SELECT array_agg(format('OPERATOR(%I.%s)', s.nspname, o.oprname) ORDER BY m.amopstrategy)
             FROM pg_opclass c JOIN pg_amop m ON m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype
                 AND m.amoppurpose = 's'
             JOIN pg_operator o ON o.oid = m.amopopr JOIN pg_namespace s ON s.oid = o.oprnamespace
             WHERE c.oid = i.indclass[k.n - 1]) AS operators
        FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_am am ON am.oid = x.relam AND am.amname = 'btree',
            unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, n), pg_attribute a
        WHERE i.indrelid = $1 AND i.indisprimary AND k.n <= i.indnkeyatts AND a.attrelid = $1 AND a.attnum = k.attnum
        ORDER BY k.n DESC
    LOOP
        columns := concat_ws(', ', format('n.%I', part.attname), columns);
        names := concat_ws(', ', replace(quote_ident(part.attname), '%', '%%'), names);
        places := concat_ws(', ', '%s', places);
        row_values := concat_ws(', ', format('($1).%I', part.attname), row_values);
        is_same := concat_ws(' AND ', format('n.%1$I %2$s ($1).%1$I', part.attname, part.operators[3]), is_same);
        is_after := CASE WHEN is_after IS NULL THEN format('n.%1$I %2$s ($1).%1$I', part.attname, part.operators[5])
            ELSE format('n.%1$I %2$s ($1).%1$I AND (n.%1$I %3$s ($1).%1$I OR %4$s)', part.attname, part.operators[4], part.operators[5], is_after) END;
    END LOOP;
    IF columns IS NOT NULL THEN
        description := format('SELECT format(%L, %s)', format('(%s)=(%s)', names, places), row_values);
        identity := format('SELECT ROW(%s)::text', row_values);
        key_row := format('(ROW(%s)::%s)::text', (SELECT string_agg(CASE WHEN a.attnum = ANY (i.indkey::int2[]) OR t.typnotnull THEN format('n.%I', a.attname) ELSE 'NULL' END, ', ' ORDER BY a.attnum)
            FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid, pg_index i
            WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND i.indrelid = $1 AND i.indisprimary), $1::regclass);
    END IF;
END
$$;

/*
 * What is made of some rows.  A mapper runs with the search_path of attach(), and with these settings (NULL: as they
 * are); if it fails, what it did is undone, each row is tried alone, and the purchases come first.  ("anyarray": PL/pgSQL
 * then has a plan for each type of row.)
 */
CREATE FUNCTION onside_attribution.made_of(relid oid, mapping jsonb, rows anyarray, settings text[] DEFAULT NULL)
RETURNS onside_attribution.made[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    outer_query constant text := 'SELECT coalesce(pg_catalog.array_agg((e.*)::onside_attribution.made), ''{}'') FROM (%s) e';
    query text;
    results onside_attribution.made[] := '{}';
    before text[];
    describe text;
    place text;
BEGIN
    BEGIN
        query := format(outer_query, onside_attribution.query_of(relid, mapping, 'pg_catalog.unnest($1) n'));
        IF NOT mapping ? 'mapper' THEN
            before := onside_attribution.use_settings();
            EXECUTE query INTO results USING rows;
            PERFORM onside_attribution.use_settings(before);
            RETURN results;
        END IF;
        IF settings IS NOT NULL THEN
            PERFORM onside_attribution.use_settings(settings);
        END IF;
        PERFORM pg_catalog.set_config('search_path', coalesce(mapping ->> 'search_path', 'pg_catalog, pg_temp'), true);
        EXECUTE query INTO results USING rows;
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        RETURN results;
    EXCEPTION WHEN OTHERS OR assert_failure THEN
        IF onside_attribution.passes_through(SQLSTATE) THEN
            RAISE;
        END IF;
        IF cardinality(rows) = 1 THEN
            describe := (SELECT k.description FROM onside_attribution.key_of(relid) k);
            IF describe IS NOT NULL THEN
                EXECUTE describe INTO place USING rows[1];
            END IF;
            RETURN ARRAY[onside_attribution.no_event('mapper', SQLSTATE, concat_ws(', in row ', regexp_replace(SQLERRM, '^invalid event: ', ''), place),
                CASE WHEN SQLSTATE = '42501' THEN 'Whoever writes the row must be allowed to do that, and to use the schemas of the table and the mapper.'
                    WHEN mapping ? 'mapper' THEN 'Mend the mapper with CREATE OR REPLACE FUNCTION.' ELSE 'Mend the row, or map other columns.' END)];
        END IF;
    END;
    FOR i IN 1 .. coalesce(cardinality(rows), 0) LOOP
        results := results || onside_attribution.made_of(relid, mapping, rows[i:i], settings);
    END LOOP;
    RETURN results;
END
$$;

/*
 * The trigger function.  A deferred trigger's row is read again by its primary key, and its condition looked at
 * again: what is gone, or does not meet it any more, is no event.
 */
CREATE FUNCTION onside_attribution.track_row() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    trigger constant pg_trigger := (SELECT t FROM pg_trigger t WHERE t.tgrelid = TG_RELID AND t.tgname = TG_NAME);
    attached constant regclass := (
        WITH RECURSIVE up AS (
            SELECT t.oid, t.tgparentid, t.tgrelid FROM pg_trigger t WHERE t.tgrelid = TG_RELID AND t.tgname = TG_NAME
            UNION ALL
            SELECT t.oid, t.tgparentid, t.tgrelid FROM up JOIN pg_trigger t ON t.oid = up.tgparentid)
        SELECT up.tgrelid FROM up WHERE up.tgparentid = 0);
    mapping constant jsonb := onside_attribution.read_arguments(TG_ARGV) || jsonb_build_object('attached', attached::oid);
    source constant text := quote_ident(trigger.tgnewtable) || ' n';
    key record;
    condition text;
    row_security text;
    meets boolean := true;
    place text;
    before text[];
    query text;
    r record;
    made onside_attribution.made;
    results onside_attribution.made[];
    n integer := 0;
BEGIN
    IF TG_WHEN <> 'AFTER' OR TG_OP NOT IN ('INSERT', 'UPDATE') THEN
        RAISE trigger_protocol_violated USING MESSAGE = 'track_row must be fired AFTER INSERT or UPDATE',
            HINT = 'Make the trigger with onside_attribution.attach().';
    ELSIF TG_LEVEL = 'STATEMENT' AND trigger.tgnewtable IS NULL THEN
        RAISE trigger_protocol_violated USING MESSAGE = 'track_row FOR EACH STATEMENT needs a transition table',
            HINT = 'Add REFERENCING NEW TABLE AS new_rows to the trigger.';
    END IF;

    IF TG_LEVEL = 'ROW' AND NOT trigger.tgdeferrable THEN
        FOREACH made IN ARRAY onside_attribution.made_of(TG_RELID, mapping, ARRAY[NEW]) LOOP
            PERFORM onside_attribution.settle(TG_RELID, mapping, made);
        END LOOP;

    ELSIF TG_LEVEL = 'ROW' THEN
        key := onside_attribution.key_of(TG_RELID);
        BEGIN
            -- A policy that hides the row is to be an error, and no row that is gone.
            row_security := current_setting('row_security');
            PERFORM set_config('row_security', 'off', true);
            EXECUTE format('SELECT (n.*)::%1$s AS r FROM %3$s n WHERE %2$s', attached, coalesce(key.is_same, '(n.*)::text = ($1)::text'), onside_attribution.rows_of(attached)) INTO r USING NEW;
            PERFORM set_config('row_security', row_security, true);
            IF r IS NULL THEN
                RETURN NULL;
            END IF;
            condition := CASE WHEN trigger.tgqual IS NOT NULL THEN onside_attribution.condition_of(trigger.oid) END;
            IF condition IS NULL THEN
                NULL;
            ELSIF TG_OP = 'UPDATE' THEN
                EXECUTE format('SELECT %s FROM unnest(ARRAY[$1]) new, unnest(ARRAY[$2]) old', condition) INTO meets USING r.r, OLD;
            ELSE
                EXECUTE format('SELECT %s FROM unnest(ARRAY[$1]) new', condition) INTO meets USING r.r;
            END IF;
            IF meets IS NOT TRUE THEN
                RETURN NULL;
            END IF;
        EXCEPTION WHEN OTHERS OR assert_failure THEN
            IF onside_attribution.passes_through(SQLSTATE) THEN
                RAISE;
            END IF;
            EXECUTE coalesce(key.description, 'SELECT ($1)::text') INTO place USING NEW;
            results := ARRAY[onside_attribution.no_event('deferred', SQLSTATE, format('row %s cannot be read again at the end of the transaction: %s', place, SQLERRM),
                'Whoever commits must be allowed to read the row. Or attach the event without deferred.')];
        END;
        IF results IS NULL THEN
            results := onside_attribution.made_of(attached, mapping, ARRAY[r.r]);
        END IF;
        before := onside_attribution.use_settings();
        EXECUTE coalesce(key.identity, 'SELECT ($1)::text') INTO place USING NEW;
        PERFORM onside_attribution.use_settings(before);
        place := concat_ws('/', attached::oid, mapping ->> 'event_name', place);
        FOREACH made IN ARRAY results LOOP
            n := n + 1;
            PERFORM onside_attribution.settle(TG_RELID, mapping, made, place || E'\t' || n);
        END LOOP;

    ELSE
        BEGIN
            IF NOT mapping ? 'mapper' THEN
                before := onside_attribution.use_settings();
                FOR made IN EXECUTE onside_attribution.query_of(TG_RELID, mapping, source) LOOP
                    PERFORM onside_attribution.settle(TG_RELID, mapping, made);
                END LOOP;
                PERFORM onside_attribution.use_settings(before);
                RETURN NULL;
            END IF;
            query := format('SELECT coalesce(pg_catalog.array_agg((e.*)::onside_attribution.made), ''{}'') FROM (%s) e',
                            onside_attribution.query_of(TG_RELID, mapping, source));
            PERFORM pg_catalog.set_config('search_path', coalesce(mapping ->> 'search_path', 'pg_catalog, pg_temp'), true);
            EXECUTE query INTO results;
            PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        EXCEPTION WHEN OTHERS OR assert_failure THEN
            IF onside_attribution.passes_through(SQLSTATE) THEN
                RAISE;
            END IF;
            results := NULL;
        END;
        IF results IS NOT NULL THEN
            FOREACH made IN ARRAY results LOOP
                PERFORM onside_attribution.settle(TG_RELID, mapping, made);
            END LOOP;
            RETURN NULL;
        END IF;
        -- Row by row, so that the bad ones alone become dead letters; or without their values, if they cannot be read.
        BEGIN
            FOR r IN EXECUTE format('SELECT (n.*)::%s AS r FROM %s', TG_RELID::regclass, source) LOOP
                FOREACH made IN ARRAY onside_attribution.made_of(TG_RELID, mapping, ARRAY[r.r]) LOOP
                    PERFORM onside_attribution.settle(TG_RELID, mapping, made);
                END LOOP;
            END LOOP;
        EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
            IF onside_attribution.passes_through(SQLSTATE) THEN
                RAISE;
            END IF;
            made := onside_attribution.no_event('mapper', SQLSTATE, SQLERRM,
                'Whoever writes the row must be allowed to use the schemas of the table and the mapper.');
            FOR r IN EXECUTE format('SELECT FROM %s', source) LOOP
                PERFORM onside_attribution.settle(TG_RELID, mapping, made);
            END LOOP;
        END;
    END IF;
    RETURN NULL;
END
$$;

/* ---------------------------------------------------------------------------
 * Attaching
 */

/*
 * Roles that may write to a table, and not record what they write.
 */
CREATE FUNCTION onside_attribution.roles_without_right(relid oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(r.rolname, ', ' ORDER BY r.rolname) FROM pg_roles r
    WHERE r.rolcanlogin AND has_table_privilege(r.oid, relid, 'INSERT, UPDATE')
      AND NOT (has_schema_privilege(r.oid, 'onside_attribution', 'USAGE')
               AND has_function_privilege(r.oid, 'onside_attribution.track(text, uuid, jsonb, timestamptz, uuid)', 'EXECUTE')
               AND has_function_privilege(r.oid, 'onside_attribution.settle(oid, jsonb, onside_attribution.made, text)', 'EXECUTE'))
$$;

/*
 * attach() for a caller with that search_path, of which those schemas exist.  It holds for names in the condition,
 * and for the mapper.
 */
CREATE FUNCTION onside_attribution.attach_for(
    path text,
    schemas name[],
    source regclass,
    event_name text,
    installation_id name,
    payload jsonb,
    event_datetime name,
    event_id name,
    operation text,
    condition text,
    mapper regproc,
    becomes text,
    deferred boolean)
RETURNS name
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    rel pg_class;
    problem onside_attribution.problem;
    arguments text[];
    events text := upper(operation);
    trigger_name text;
    entry record;
    for_each_row boolean;
    clause text;
    old_timeout constant text := current_setting('lock_timeout');
    missing text;
    second_name text;
    command text;
    resolved text;
    on_old boolean := false;
BEGIN
    missing := CASE WHEN source IS NULL THEN 'source' WHEN operation IS NULL THEN 'operation' WHEN deferred IS NULL THEN 'deferred'
        WHEN event_name IS NULL THEN 'event_name'
        WHEN mapper IS NULL AND installation_id IS NULL THEN 'installation_id'
        WHEN mapper IS NULL AND payload IS NULL THEN 'payload' END;
    IF missing IS NOT NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'attach: ' || missing || ' must not be null',
            HINT = 'installation_id and payload are needed unless there is a mapper; event_datetime, event_id, condition and becomes may be left out.';
    END IF;
    SELECT * INTO rel FROM pg_class c WHERE c.oid = source;
    IF NOT FOUND THEN
        RAISE undefined_table USING MESSAGE = format('relation with OID %s does not exist', source::oid);
    END IF;
    IF rel.relkind NOT IN ('r', 'p') OR rel.relpersistence = 't' OR rel.relnamespace IN ('pg_catalog'::regnamespace, 'onside_attribution'::regnamespace) THEN
        RAISE wrong_object_type USING MESSAGE = format('attach: "%s" is no table of the shop', rel.relname),
            HINT = 'Attach an ordinary or a partitioned table.';
    END IF;
    problem := onside_attribution.problem_of(event_name, NULL, NULL, NULL, NULL);
    IF problem.field = 'event_name' THEN
        PERFORM onside_attribution.throw(problem);
    ELSIF events NOT IN ('INSERT', 'UPDATE', 'INSERT OR UPDATE') THEN
        RAISE invalid_parameter_value USING MESSAGE = format('attach: operation "%s" is not known', operation),
            HINT = 'It is INSERT, UPDATE or INSERT OR UPDATE.';
    ELSIF becomes IS NOT NULL AND (condition IS NOT NULL OR events <> 'INSERT') THEN
        RAISE invalid_parameter_value USING MESSAGE = 'attach: becomes takes the place of operation and condition',
            HINT = 'It is an event when a row is inserted or updated, the expression is true now, and it was not before.';
    ELSIF mapper IS NOT NULL AND (installation_id IS NOT NULL OR payload IS NOT NULL OR event_datetime IS NOT NULL OR event_id IS NOT NULL) THEN
        RAISE invalid_parameter_value USING MESSAGE = 'attach: mapper and columns exclude each other',
            HINT = 'What the mapper returns has installation_id, payload, event_datetime and event_id.';
    ELSIF deferred AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = source AND i.indisprimary) THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = format('attach: table "%s" has no primary key', rel.relname),
            DETAIL = 'With deferred, a row is read again by its primary key at the end of the transaction.', HINT = 'Add one, or leave out deferred.';
    ELSIF deferred AND rel.relrowsecurity THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = format('attach: table "%s" has row security', rel.relname),
            DETAIL = 'With deferred, a row is read again at the end of the transaction, and a policy may hide it from whoever commits.', HINT = 'Leave out deferred.';
    ELSIF becomes IS NOT NULL AND EXISTS (SELECT FROM pg_namespace s WHERE s.nspname = 'new') THEN
        RAISE feature_not_supported USING MESSAGE = 'attach: becomes cannot be used in a database that has a schema "new"',
            HINT = 'Attach an event to INSERT and another one to UPDATE, with conditions.';
    END IF;

    arguments := ARRAY['event_name=' || event_name];
    IF mapper IS NULL THEN
        IF jsonb_typeof(payload) <> 'object' THEN
            RAISE invalid_parameter_value USING MESSAGE = 'attach: payload must be a JSON object',
                HINT = 'It maps keys to column names, e.g. {"amount": "total"}.';
        END IF;
        arguments := arguments || ('installation_id=' || installation_id);
        FOR entry IN SELECT * FROM jsonb_each(payload) LOOP
            IF jsonb_typeof(entry.value) <> 'string' OR entry.value = '""' THEN
                RAISE invalid_parameter_value USING MESSAGE = 'attach: payload must map each key to a column name',
                    HINT = 'For example {"amount": "total"}.';
            ELSIF strpos(entry.key, '=') > 0 THEN
                RAISE invalid_parameter_value USING MESSAGE = 'attach: a key of payload must not contain "="',
                    HINT = 'It separates key and column in the trigger''s arguments.';
            END IF;
            arguments := arguments || format('payload.%s=%s', entry.key, entry.value #>> '{}');
        END LOOP;
        arguments := arguments || ('event_datetime=' || event_datetime) || ('event_id=' || event_id);
        arguments := array_remove(arguments, NULL);
        FOR entry IN
            SELECT c.* FROM unnest(arguments[2:]) a,
                LATERAL (SELECT split_part(a, '=', 1) AS field, substr(a, strpos(a, '=') + 1) AS col) f,
                LATERAL onside_attribution.column_problem(source, f.field, f.col) c
        LOOP
            RAISE EXCEPTION USING ERRCODE = entry.state, MESSAGE = 'attach: ' || entry.message, TABLE = rel.relname,
                HINT = CASE entry.state WHEN '42703' THEN 'Names of columns are taken as written; upper and lower case differ.' ELSE entry.hint END;
        END LOOP;
        FOR entry IN
            SELECT p.key, p.value AS col, a.atttypid AS type, onside_attribution.base_type(a.atttypid) AS base, onside_attribution.innermost_type(a.atttypid) AS inner_type,
                   p.key ~* 'amount|price|revenue' AS is_amount
            FROM jsonb_each_text(payload) p JOIN pg_attribute a ON a.attrelid = source AND a.attname = p.value
        LOOP
            IF entry.inner_type = 'money'::regtype OR (SELECT t.typtype = 'c' FROM pg_type t WHERE t.oid = entry.inner_type) THEN
                RAISE datatype_mismatch USING TABLE = rel.relname, COLUMN = entry.col,
                    MESSAGE = format('attach: column "%s" of relation "%s" has type %s, %s', entry.col, rel.relname, format_type(entry.type, NULL),
                        CASE WHEN entry.inner_type = 'money'::regtype THEN 'which has no currency and reads differently under each lc_monetary'
                            ELSE 'a composite type, for which JSON has no agreed form' END),
                    HINT = 'Attach a mapper in place of columns, which says what is meant.';
            ELSIF entry.is_amount AND entry.base IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) THEN
                RAISE WARNING USING MESSAGE = format('payload.%s is an integer: if it is in cents, use amount(%I, 2)', entry.key, entry.col),
                    DETAIL = format('Column "%s" of "%s" is sent as it is: 990 stays 990 and does not become 9.90.', entry.col, rel.relname),
                    HINT = format('Attach a mapper in place of columns: a function that returns onside_attribution.purchase(..., onside_attribution.amount(%I, 2), ...).', entry.col);
            ELSIF entry.is_amount AND entry.base IN ('float4'::regtype, 'float8'::regtype) THEN
                RAISE WARNING USING MESSAGE = format('payload.%s is a floating-point number, which is not exact: use numeric', entry.key),
                    DETAIL = format('Column "%s" of "%s" has type %s: 0.1 + 0.2 is sent as 0.30000000000000004.', entry.col, rel.relname, format_type(entry.type, NULL)),
                    HINT = format('Change the column''s type to numeric, or attach a mapper in place of columns, with round(%I::numeric, 2).', entry.col);
            END IF;
        END LOOP;
        IF event_id IS NOT NULL THEN
            IF onside_attribution.namespace_id() IS NULL THEN
                RAISE object_not_in_prerequisite_state USING MESSAGE = 'attach: the table onside_attribution.namespace is empty',
                    HINT = 'Put its row back: INSERT INTO onside_attribution.namespace (id) VALUES (...), with the id that the arguments of this database''s triggers have, or gen_random_uuid() if there are none.';
            END IF;
            arguments := arguments || ('event_id.namespace=' || onside_attribution.namespace_id()::text)
                || ('event_id.source=' || onside_attribution.id_source(source));
            IF NOT EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = event_id
                           WHERE i.indrelid = source AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indnkeyatts = 1
                             AND i.indkey[0] = a.attnum AND i.indpred IS NULL) THEN
                RAISE WARNING USING MESSAGE = format('column "%s" of "%s", mapped to event_id, is not unique', event_id, rel.relname),
                    DETAIL = 'Rows with the same value are one event to the API: it takes the first and ignores the others.',
                    HINT = 'Map the primary key, or add a unique index on the column.';
            END IF;
        END IF;
    ELSE
        IF NOT EXISTS (SELECT FROM pg_proc p WHERE p.oid = mapper) THEN
            RAISE undefined_function USING MESSAGE = format('function with OID %s does not exist', mapper::oid);
        ELSIF NOT EXISTS (SELECT FROM pg_proc p JOIN pg_type t ON t.oid = p.proargtypes[0]
                       WHERE p.oid = mapper AND p.pronargs = 1 AND p.prokind = 'f' AND t.typrelid = source
                         AND p.prorettype = 'onside_attribution.event'::regtype
                         AND p.pronamespace <> pg_my_temp_schema()) THEN
            RAISE invalid_function_definition USING MESSAGE = format('attach: %s is no mapper of "%s"', mapper, rel.relname),
                HINT = format('It is a function that takes a %s and RETURNS SETOF onside_attribution.event.', source);
        END IF;
        arguments := arguments
            || (SELECT format('mapper=%I.%I', s.nspname, p.proname) FROM pg_proc p
                JOIN pg_namespace s ON s.oid = p.pronamespace WHERE p.oid = mapper)
            || (SELECT 'search_path=' || string_agg(quote_ident(s), ', ' ORDER BY n)
                FROM unnest(schemas || 'pg_temp'::name) WITH ORDINALITY x (s, n)
                WHERE s NOT LIKE 'pg\_temp\_%' AND (s <> 'pg_catalog' OR n > 1));
    END IF;

    trigger_name := 'onside_' || event_name;
    IF octet_length(trigger_name) >= 64 THEN
        trigger_name := left(trigger_name, 54 - (octet_length(trigger_name) - length(trigger_name)))
            || '_' || left(md5(event_name), 8);
    END IF;
    IF EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = source AND t.tgname = trigger_name) THEN
        RAISE duplicate_object USING MESSAGE = format('trigger "%s" for relation "%s" already exists', trigger_name, rel.relname),
            HINT = 'To attach the event in another way, detach it first.';
    END IF;

    second_name := 'onside2_' || substr(trigger_name, 8);
    WHILE octet_length(second_name) > 63 LOOP
        second_name := left(second_name, -1);
    END LOOP;

    -- Nobody must wait for long behind the lock of CREATE TRIGGER.
    IF old_timeout = '0' THEN
        PERFORM set_config('lock_timeout', '2s', true);
    END IF;
    IF becomes IS NOT NULL AND rel.relkind = 'p' AND mapper IS NULL AND event_id IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = format('attach: becomes needs an event_id for the partitioned table "%s"', rel.relname),
            DETAIL = 'A row that moves to another partition is inserted again.', HINT = 'Map event_id to the table''s key.';
    END IF;

    -- Two triggers, if what is so of an UPDATE is not so of an INSERT: "becomes" is a condition on OLD, too, and
    -- one on OLD binds the UPDATE alone.
    for_each_row := condition IS NOT NULL OR becomes IS NOT NULL OR deferred OR rel.relkind = 'p' OR rel.relispartition
        OR events = 'INSERT OR UPDATE'
        OR EXISTS (SELECT FROM pg_inherits i WHERE source IN (i.inhrelid, i.inhparent));
    clause := format('EXECUTE FUNCTION onside_attribution.track_row(%s)',
        (SELECT string_agg(quote_literal(a), ', ' ORDER BY n) FROM unnest(arguments) WITH ORDINALITY x (a, n)));
    command := format('CREATE %sTRIGGER %%I AFTER %%s ON %s%s %s%%s %s', CASE WHEN deferred THEN 'CONSTRAINT ' ELSE '' END, replace(source::text, '%', '%%'),
        CASE WHEN deferred THEN ' DEFERRABLE INITIALLY DEFERRED' ELSE '' END,
        CASE WHEN for_each_row THEN 'FOR EACH ROW' ELSE 'REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT' END, replace(clause, '%', '%%'));
    BEGIN
        PERFORM pg_catalog.set_config('search_path', path, true);
        EXECUTE pg_catalog.format(command, trigger_name, CASE WHEN becomes IS NULL THEN events ELSE 'INSERT' END,
            CASE WHEN coalesce(becomes, condition) IS NOT NULL THEN pg_catalog.format(E' WHEN (%s\n)', coalesce(becomes, condition)) ELSE '' END);
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    EXCEPTION WHEN invalid_object_definition THEN
        IF coalesce(becomes, condition) IS NULL OR SQLERRM NOT LIKE '%OLD%' THEN
            RAISE;
        ELSIF becomes IS NOT NULL OR events <> 'INSERT OR UPDATE' THEN
            RAISE invalid_object_definition USING MESSAGE = format('attach: %s must not refer to OLD', CASE WHEN becomes IS NULL THEN 'condition' ELSE 'becomes' END),
                HINT = 'A row that is inserted has no OLD. Attach the event to UPDATE, or to INSERT OR UPDATE, with a condition, which then binds the UPDATE alone.';
        END IF;
        on_old := true;
    END;
    IF on_old THEN
        PERFORM pg_catalog.set_config('search_path', path, true);
        EXECUTE pg_catalog.format(command, second_name, 'UPDATE', pg_catalog.format(E' WHEN (%s\n)', condition));
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        EXECUTE format(command, trigger_name, 'INSERT', '');
    ELSIF becomes IS NOT NULL THEN
        resolved := (SELECT onside_attribution.condition_of(t.oid) FROM pg_trigger t WHERE t.tgrelid = source AND t.tgname = trigger_name);
    END IF;
    IF deferred AND EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = source AND t.tgname IN (trigger_name, second_name) AND t.tgqual IS NOT NULL
                                AND onside_attribution.has_system_column(onside_attribution.condition_of(t.oid))) THEN
        RAISE feature_not_supported USING MESSAGE = 'attach: with deferred, a condition must not refer to a system column',
            HINT = 'The row is read again at the end of the transaction. Leave out deferred.';
    END IF;
    IF becomes IS NOT NULL THEN
        EXECUTE format(command, second_name, 'UPDATE',
            format(' WHEN (%s AND %s IS NOT TRUE)', resolved, onside_attribution.condition_on_old(resolved)));
    END IF;
    PERFORM set_config('lock_timeout', old_timeout, true);

    missing := onside_attribution.roles_without_right(source);
    IF missing IS NOT NULL THEN
        RAISE WARNING USING MESSAGE = format('roles that may write "%s" but not record its events: %s', rel.relname, missing),
            DETAIL = 'Their statements fail.',
            HINT = 'GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA onside_attribution TO them.';
    END IF;
    RETURN trigger_name;
END
$$;

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
LANGUAGE plpgsql AS $$
BEGIN
    -- Nothing here is looked up in the caller's search_path.
    RETURN onside_attribution.attach_for(pg_catalog.current_setting('search_path'), pg_catalog.current_schemas(false),
        source, event_name, installation_id, payload, event_datetime, event_id, operation, condition, mapper, becomes, deferred);
END
$$;

/*
 * An attachment can take two triggers with the same arguments: t is the one for INSERT, and u the one for UPDATE.
 */
CREATE VIEW onside_attribution.attached AS
    WITH RECURSIVE trigger AS (
        SELECT t.*, t.tgtype::integer & 20 AS events,
            substring(pg_get_triggerdef(t.oid, true), ' WHEN \((.*)\) EXECUTE FUNCTION ') AS condition
        FROM pg_trigger t
        WHERE t.tgfoid = 'onside_attribution.track_row()'::regprocedure AND t.tgparentid = 0 AND NOT t.tgisinternal),
    clone AS (
        SELECT t.oid AS trigger, t.oid, t.tgenabled FROM trigger t
        UNION ALL
        SELECT c.trigger, p.oid, p.tgenabled FROM clone c JOIN pg_trigger p ON p.tgparentid = c.oid)
    SELECT t.tgrelid::regclass AS source,
           m.mapping ->> 'event_name' AS event_name,
           t.tgname AS trigger_name,
           m.mapping ->> 'installation_id' AS installation_id,
           CASE WHEN NOT m.mapping ? 'mapper' THEN (SELECT coalesce(jsonb_object_agg(p.pair ->> 0, p.pair -> 1), '{}')
               FROM jsonb_array_elements(m.mapping -> 'payload') p (pair)) END AS payload,
           m.mapping ->> 'event_datetime' AS event_datetime,
           m.mapping ->> 'event_id' AS event_id,
           m.mapping ->> 'mapper' AS mapper,
           CASE WHEN u.oid IS NOT NULL OR t.events = 20 THEN 'INSERT OR UPDATE' WHEN t.events = 4 THEN 'INSERT' ELSE 'UPDATE' END AS operation,
           CASE WHEN u.oid IS NULL THEN t.condition WHEN t.condition IS NULL THEN u.condition END AS condition,
           CASE WHEN u.oid IS NOT NULL THEN t.condition END AS becomes,
           t.tgdeferrable AS deferred,
           CASE WHEN t.tgtype::integer & 1 = 1 OR u.oid IS NOT NULL THEN 'ROW' ELSE 'STATEMENT' END AS level,
           (SELECT CASE WHEN bool_and(c.tgenabled NOT IN ('O', 'A')) THEN false
                WHEN bool_and(c.tgenabled IN ('O', 'A')) AND (t.tgnewtable IS NULL OR NOT EXISTS (
                    SELECT FROM pg_inherits i WHERE t.tgrelid IN (i.inhrelid, i.inhparent))) THEN true
            END FROM clone c WHERE c.trigger IN (t.oid, u.oid)) AS enabled
    FROM trigger t
    LEFT JOIN trigger u ON t.tgrelid = u.tgrelid AND t.tgargs = u.tgargs AND t.events = 4 AND u.events = 16,
         LATERAL (SELECT onside_attribution.mapping_of(t.tgargs) AS mapping OFFSET 0) m
    WHERE t.events <> 16
       OR NOT EXISTS (SELECT FROM trigger i WHERE i.tgrelid = t.tgrelid AND i.tgargs = t.tgargs AND i.events = 4);

CREATE FUNCTION onside_attribution.detach(source regclass, event_name text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text;
    deferred boolean;
    found_one boolean := false;
    old_timeout constant text := current_setting('lock_timeout');
BEGIN
    IF source IS NULL OR event_name IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = format('detach: %s must not be null', CASE WHEN source IS NULL THEN 'source' ELSE 'event_name' END),
            HINT = 'See the view onside_attribution.attached.';
    END IF;
    IF old_timeout = '0' THEN
        PERFORM set_config('lock_timeout', '2s', true);
    END IF;
    FOR name, deferred IN
        SELECT t.tgname, t.tgdeferrable FROM pg_trigger t
        WHERE t.tgrelid = $1 AND t.tgfoid = 'onside_attribution.track_row()'::regprocedure AND t.tgparentid = 0
          AND onside_attribution.mapping_of(t.tgargs) ->> 'event_name' = $2
    LOOP
        -- DROP TRIGGER would drop what a deferred one still has to report, too; ALTER TABLE refuses.
        BEGIN
            IF deferred THEN
                EXECUTE format('ALTER TABLE %s DISABLE TRIGGER %I', source, name);
            END IF;
        EXCEPTION WHEN object_in_use THEN
            RAISE object_in_use USING HINT = 'Commit first, or have them reported now by SET CONSTRAINTS ALL IMMEDIATE.',
                MESSAGE = format('event "%s" cannot be detached from table "%s": this transaction has rows that are reported at its end', event_name,
                                 (SELECT c.relname FROM pg_class c WHERE c.oid = source));
        END;
        EXECUTE format('DROP TRIGGER %I ON %s', name, source);
        found_one := true;
    END LOOP;
    PERFORM set_config('lock_timeout', old_timeout, true);
    RETURN found_one;
END
$$;

/*
 * Records the rows that an attached table holds, a thousand a transaction, in the order of the primary key.  A row
 * that the trigger has reported, too, is the same event to the API.  A row whose primary key is changed meanwhile may be
 * passed over.
 *
 * What is set here is set until the next COMMIT, so each transaction does it anew.
 */
CREATE PROCEDURE onside_attribution.backfill(
    source regclass,
    event_name text,
    since timestamptz DEFAULT NULL,
    until timestamptz DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
    mapping pg_catalog.jsonb;
    trigger pg_catalog.oid;
    key pg_catalog.record;
    condition pg_catalog.text;
    chunk pg_catalog.text;
    rows pg_catalog.text;
    last pg_catalog.text;
    next pg_catalog.text;
    made onside_attribution.made;
    results onside_attribution.made[];
    before pg_catalog.text[];
    recorded pg_catalog.int8 := 0;
    most pg_catalog.int4;
BEGIN
    PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    -- Of two triggers the one for INSERT.
    SELECT onside_attribution.mapping_of(t.tgargs), t.oid INTO mapping, trigger
    FROM pg_trigger t
    WHERE t.tgrelid = $1 AND t.tgfoid = 'onside_attribution.track_row()'::regprocedure AND t.tgparentid = 0 AND NOT t.tgisinternal
        AND onside_attribution.mapping_of(t.tgargs) ->> 'event_name' = $2
    ORDER BY t.tgtype::integer & 4 DESC LIMIT 1;
    key := onside_attribution.key_of(source);
    condition := onside_attribution.condition_of(trigger);
    IF mapping IS NULL THEN
        RAISE undefined_object USING MESSAGE = format('backfill: event "%s" is not attached to "%s"', event_name, source),
            HINT = 'See the view onside_attribution.attached.';
    ELSIF NOT mapping ?| '{event_id,mapper}' THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = 'backfill: the event has no event_id of the row',
            HINT = 'Attach it with event_id: then a row that is reported twice is one event to the API.';
    ELSIF NOT mapping ?| '{event_datetime,mapper}' AND (since IS NOT NULL OR until IS NOT NULL) THEN
        RAISE invalid_parameter_value USING MESSAGE = 'backfill: since and until need a mapped event_datetime',
            HINT = 'They say when the events occurred, and no column does. Leave them out, or attach the event with event_datetime.';
    ELSIF key.columns IS NULL THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = format('backfill: table "%s" has no primary key', source),
            HINT = 'It tells how far backfill has come. Add one.';
    ELSIF onside_attribution.has_system_column(condition) THEN
        RAISE feature_not_supported USING MESSAGE = format('backfill: the condition of "%s" refers to a system column', event_name),
            HINT = 'Attach the event with a condition on columns of the table.';
    ELSIF onside_attribution.mentions(condition, $re$\mold\.$re$) THEN
        RAISE NOTICE USING MESSAGE = format('the condition of "%s" refers to OLD, which is taken to be all NULL', event_name);
    END IF;
    IF NOT mapping ?| '{event_datetime,mapper}' THEN
        RAISE NOTICE USING MESSAGE = format('the events of "%s" are dated now, since no event_datetime is mapped', source);
    END IF;

    -- A chunk is in memory as a whole: of wide rows it has fewer.
    EXECUTE format('SELECT greatest(1, least(1000, 50000000 / coalesce(max(pg_column_size((n.*)::%s)), 1)))::integer FROM (SELECT n.* FROM %s n LIMIT 100) n',
                   source, onside_attribution.rows_of(source)) INTO most;

    LOOP
        PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
        IF row_security_active(source) THEN
            RAISE feature_not_supported USING MESSAGE = format('backfill: row security of "%s" applies to %s',
                    (SELECT c.relname FROM pg_class c WHERE c.oid = source), current_user),
                HINT = 'Have a role call it that sees all rows: the table''s owner, or one with BYPASSRLS.';
        END IF;
        -- The next rows are those of which the primary key is greater than the last one's.  The last of them is taken
        -- by the same statement: by the next one, other rows may be there.
        chunk := format('WITH chunk AS MATERIALIZED (SELECT n.* FROM %s n %s ORDER BY %s LIMIT %s)', onside_attribution.rows_of(source),
            CASE WHEN last IS NOT NULL THEN 'WHERE ' || replace(key.is_after, '($1)', format('($1::%s)', source)) ELSE '' END, key.columns, most);
        rows := CASE WHEN condition IS NULL THEN 'chunk n'
            ELSE format('(SELECT new.* FROM (SELECT (x.*)::%1$s AS r FROM chunk x) y, pg_catalog.unnest(ARRAY[y.r]) new, pg_catalog.unnest(ARRAY[NULL::%1$s]) old WHERE %2$s) n',
                        source, condition) END;
        -- The condition is looked at before a mapper's search_path is set.
        before := onside_attribution.use_settings();
        EXECUTE format('%s SELECT (SELECT %s FROM chunk n ORDER BY %s OFFSET %s), '
                       'onside_attribution.made_of($2, $3, (SELECT array_agg((n.*)::%s) FROM %s), $4)', chunk, key.key_row, key.columns, most - 1, source, rows)
            INTO next, results USING last, source, mapping, before;
        FOREACH made IN ARRAY results LOOP
            CONTINUE WHEN made.problem IS NULL AND (made.event_datetime < since OR made.event_datetime > until);
            IF made.installation_id <> '' AND made.problem IS NULL AND (made.key IS NULL OR made.key = '' AND NOT mapping ? 'mapper') THEN
                RAISE null_value_not_allowed USING MESSAGE = 'backfill: an event without an event_id of the row',
                    HINT = 'A row that is reported twice would be two events. Map a column that is not NULL, or have the mapper return an event_id.';
            ELSIF made.installation_id <> '' AND made.problem IS NULL AND mapping ? 'mapper' AND made.event_datetime IS NULL THEN
                RAISE null_value_not_allowed USING MESSAGE = format('backfill: mapper %s has returned an event whose event_datetime is NULL', mapping ->> 'mapper'),
                    HINT = 'Have it return the time of the purchase: without one the event would be dated now.';
            END IF;
            IF onside_attribution.settle(source, mapping, made) = 'recorded' THEN
                recorded := recorded + 1;
            END IF;
        END LOOP;
        COMMIT;
        EXIT WHEN next IS NULL;
        last := next;
    END LOOP;
    RAISE NOTICE 'backfill of "%" has come to its end: % event% recorded', source, recorded, CASE WHEN recorded <> 1 THEN 's' ELSE '' END;
END
$$;

/* ---------------------------------------------------------------------------
 * Looking after it
 */

/* Waits half a second for a lock: whoever holds it may be what one wants to know of. */
CREATE FUNCTION onside_attribution.doctor()
RETURNS TABLE (check_name text, ok boolean, detail text, hint text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $$
DECLARE
    slot record;
    n bigint;
    trigger record;
    broken text;
    remedy text;
    size text;
BEGIN
    RETURN QUERY SELECT 'wal_level', current_setting('wal_level') = 'logical', 'wal_level is ' || current_setting('wal_level'),
        CASE WHEN current_setting('wal_level') <> 'logical' THEN
            'Logical replication is switched on by your provider''s settings; see docs/managed.md. It takes a restart.' END;
    broken := CASE
        WHEN (SELECT c.relrowsecurity FROM pg_class c WHERE c.oid = 'onside_attribution.outbox'::regclass) THEN
            'row security of the outbox hides it from the sending side: ALTER TABLE onside_attribution.outbox DISABLE ROW LEVEL SECURITY'
        WHEN NOT EXISTS (SELECT FROM pg_publication p WHERE p.pubname = 'onside_attribution') THEN 'there is no publication onside_attribution'
        WHEN NOT EXISTS (SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
                         WHERE p.pubname = 'onside_attribution' AND p.pubinsert AND p.pubviaroot AND r.prrelid = 'onside_attribution.outbox'::regclass
                           AND r.prqual IS NULL AND (r.prattrs IS NULL OR '1 2 3 4 5 6' = r.prattrs::text)) THEN
            'the publication onside_attribution does not have all of the outbox: its inserts, by way of the root, every row, and the columns that recorder.sql lists' END;
    RETURN QUERY SELECT 'publication', broken IS NULL, coalesce(broken, 'the publication onside_attribution has the outbox'),
        CASE WHEN broken IS NOT NULL THEN 'Make it again by the statement in recorder.sql; if it was gone, start over on the sending side, too: see docs/managed.md.' END;
    n := 0;
    FOR slot IN
        SELECT s.slot_name, s.active, s.wal_status, s.safe_wal_size, s.confirmed_flush_lsn,
               pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn) AS held,
               pg_wal_lsn_diff(pg_current_wal_lsn(), s.confirmed_flush_lsn) AS behind
        FROM pg_replication_slots s
        WHERE s.database = current_database() AND s.plugin = 'pgoutput' AND NOT s.temporary AND s.slot_name LIKE 'onside%'
        ORDER BY s.slot_name
    LOOP
        n := n + 1;
        RETURN QUERY SELECT 'slot ' || slot.slot_name, slot.active AND slot.wal_status IN ('reserved', 'extended'),
            CASE WHEN slot.wal_status = 'lost' THEN 'its WAL has been removed: nothing arrives through it any more'
                ELSE format('%s, %s behind, holds %s of WAL%s', CASE WHEN slot.active THEN 'in use' ELSE 'nobody reads it' END,
                            pg_size_pretty(slot.behind), pg_size_pretty(slot.held),
                            coalesce(', ' || pg_size_pretty(slot.safe_wal_size) || ' more and it is lost', '')) END,
            CASE WHEN slot.wal_status = 'lost' THEN 'On the sending side, DROP SUBSCRIPTION and CREATE SUBSCRIPTION again: its initial copy brings what this outbox still holds, a week.'
                WHEN slot.wal_status = 'unreserved' THEN 'It is about to be lost. Let the sending side catch up, or raise max_slot_wal_keep_size.'
                WHEN NOT slot.active THEN 'Is the sending cluster running, and its subscription enabled?' END;
    END LOOP;
    IF n = 0 THEN
        RETURN QUERY SELECT 'slot', false, 'no slot whose name begins with "onside" is in this database: nobody subscribes',
            'On the sending cluster: CREATE SUBSCRIPTION onside_... PUBLICATION onside_attribution; see docs/managed.md. Until then the outbox keeps what is recorded for a week.';
    END IF;
    BEGIN
        SELECT count(*) INTO n FROM onside_attribution.attached a;
        FOR trigger IN SELECT a.*, c.relrowsecurity FROM onside_attribution.attached a JOIN pg_class c ON c.oid = a.source LOOP
            SELECT c.message INTO broken
            FROM (SELECT 'installation_id' AS field, trigger.installation_id AS col UNION ALL SELECT 'event_datetime', trigger.event_datetime
                  UNION ALL SELECT 'event_id', trigger.event_id
                  UNION ALL SELECT 'payload.' || key, value FROM jsonb_each_text(coalesce(trigger.payload, '{}'))) f,
                LATERAL onside_attribution.column_problem(trigger.source, f.field, f.col) c
            WHERE f.col IS NOT NULL LIMIT 1;
            IF broken IS NULL AND trigger.mapper IS NOT NULL AND NOT EXISTS (
                SELECT FROM pg_proc p JOIN pg_namespace s ON s.oid = p.pronamespace JOIN pg_type t ON t.oid = p.proargtypes[0]
                WHERE format('%I.%I', s.nspname, p.proname) = trigger.mapper AND p.pronargs = 1 AND t.typrelid = trigger.source) THEN
                broken := format('mapper %s does not exist', trigger.mapper);
            END IF;
            remedy := 'Detach the event and attach it again.';
            broken := coalesce(broken, CASE
                WHEN trigger.event_name IS NULL THEN 'its arguments are no mapping'
                WHEN NOT trigger.enabled THEN 'it is disabled'
                WHEN trigger.enabled IS NULL AND trigger.level = 'STATEMENT' THEN
                    'the table has become a partition, or has a parent or a child by now, and what is written by way of the parent is not reported'
                WHEN trigger.enabled IS NULL THEN 'the one for the other operation, or that of a partition, is disabled, or it is itself'
                WHEN trigger.deferred AND (SELECT k.columns IS NULL FROM onside_attribution.key_of(trigger.source) k) THEN
                    'it is deferred, and the table has no primary key any more'
                WHEN trigger.deferred AND trigger.relrowsecurity THEN 'it is deferred, and the table has row security, which may hide the row' END);
            IF broken IS NULL THEN
                broken := 'roles that may write the table but not record its events, so that their statements fail: '
                    || onside_attribution.roles_without_right(trigger.source);
                remedy := 'GRANT USAGE ON SCHEMA onside_attribution TO PUBLIC, and GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA onside_attribution TO them.';
            END IF;
            IF broken IS NOT NULL THEN
                RETURN QUERY SELECT 'attached', false, format('trigger %s on %s: %s', trigger.trigger_name, trigger.source, broken), remedy;
                n := -1;
            END IF;
        END LOOP;
        IF onside_attribution.namespace_id() IS NULL THEN
            RETURN QUERY SELECT 'attached', false, 'the table onside_attribution.namespace is empty: no event_id can be made of a key',
                format('INSERT INTO onside_attribution.namespace (id) VALUES (%s);',
                    coalesce((SELECT quote_literal(onside_attribution.mapping_of(t.tgargs) ->> 'event_id.namespace') FROM pg_trigger t
                              WHERE t.tgfoid = 'onside_attribution.track_row()'::regprocedure
                                AND onside_attribution.mapping_of(t.tgargs) ? 'event_id.namespace' LIMIT 1), 'gen_random_uuid()'));
            n := -1;
        END IF;
    EXCEPTION WHEN lock_not_available THEN
        RETURN QUERY SELECT 'attached', NULL::boolean, 'an attached table, or namespace, is locked by another session', 'See pg_locks.';
        n := -1;
    END;
    RETURN QUERY SELECT 'privileges', x.names IS NULL, coalesce('anybody may record events, or write to tables of the recorder: ' || x.names, 'nobody may record to whom it was not granted'),
        CASE WHEN x.names IS NOT NULL THEN 'A dump without privileges was restored. Run the statements under "Rights" in recorder.sql again, and grant what your roles need.' END
    FROM (SELECT string_agg(o.name, ', ' ORDER BY o.name)
          FROM (SELECT p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner)) FROM pg_proc p
                WHERE p.pronamespace = 'onside_attribution'::regnamespace AND p.prosecdef
                UNION ALL SELECT c.oid::regclass::text, c.relacl FROM pg_class c
                WHERE c.relnamespace = 'onside_attribution'::regnamespace AND c.relkind IN ('r', 'p', 'S')) o (name, acl)
          WHERE EXISTS (SELECT FROM aclexplode(o.acl) a WHERE a.grantee = 0 AND a.privilege_type IN ('EXECUTE', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER'))) x (names);
    IF n >= 0 THEN
        RETURN QUERY SELECT 'attached', true, format('%s attached', CASE n WHEN 0 THEN 'nothing is' WHEN 1 THEN '1 event is' ELSE n || ' events are' END), NULL;
    END IF;
    BEGIN
        SELECT count(*) INTO n FROM (SELECT FROM onside_attribution.dead_letter LIMIT 10000) d;
        RETURN QUERY SELECT 'dead_letters', n = 0, format('%s no valid event%s', CASE n WHEN 0 THEN 'no row was' WHEN 1 THEN '1 row was' ELSE n || ' rows were' END, coalesce(', the last at ' || (SELECT max(d.failed_at) FROM onside_attribution.dead_letter d), '')),
            CASE WHEN n > 0 THEN 'onside_attribution.dead_letter says why. Mend the rows or the mapping, record them with track(), and delete them there.' END;
    EXCEPTION WHEN lock_not_available THEN
        RETURN QUERY SELECT 'dead_letters', NULL::boolean, 'dead_letter is locked by another session', 'See pg_locks.';
    END;
    BEGIN
        size := (SELECT pg_size_pretty(sum(pg_total_relation_size(i.inhrelid))) FROM pg_inherits i WHERE i.inhparent = 'onside_attribution.outbox'::regclass);
    EXCEPTION WHEN lock_not_available THEN
        NULL;
    END;
    SELECT count(*) INTO n FROM pg_inherits i WHERE i.inhparent = 'onside_attribution.outbox'::regclass AND NOT i.inhdetachpending;
    RETURN QUERY SELECT 'outbox', n = 10 AND coalesce(r.day BETWEEN onside_attribution.today() AND onside_attribution.today() + 3, false),
        format('it holds %s', coalesce(size, 'what another session has locked')),
        CASE WHEN n <> 10 THEN 'A partition has been detached, and purchases of its day fail. Attach it again: outbox_N FOR VALUES IN (N), from 0 to 9.'
            WHEN r.day < onside_attribution.today() THEN 'Nothing was recorded lately, or a session holds a lock on its oldest partition; see pg_locks.'
            WHEN r.day <= onside_attribution.today() + 3 THEN NULL
            ELSE 'The schema was restored without its rows, or the clock has been set back. The next event that is recorded mends it.' END
    FROM (SELECT) one LEFT JOIN onside_attribution.room r ON true;
END
$$;

/* As the caller, who has to be allowed to delete. */
CREATE FUNCTION onside_attribution.forget(installation_id uuid) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    n bigint;
    m bigint;
BEGIN
    IF installation_id IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'forget: installation_id must not be null',
            HINT = 'Pass the installation whose events are to be removed.';
    ELSIF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = 'forget: a transaction of isolation level ' || current_setting('transaction_isolation')
                || ' does not see what was committed after it began',
            HINT = 'Call it in a transaction of its own, with BEGIN ISOLATION LEVEL READ COMMITTED.';
    END IF;
    DELETE FROM onside_attribution.outbox o WHERE o.installation_id = $1;
    GET DIAGNOSTICS n = ROW_COUNT;
    DELETE FROM onside_attribution.dead_letter d WHERE d.installation_id = $1;
    GET DIAGNOSTICS m = ROW_COUNT;
    RAISE NOTICE 'what the sending side has of it is there' USING HINT = 'Call forget() there, too, after this has been committed.';
    RETURN n + m;
END
$$;

CREATE FUNCTION onside_attribution.elsewhere(name text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE feature_not_supported USING MESSAGE = name || ' is on the sending side',
        HINT = 'This database records, and a cluster that has the extension subscribes to it and sends. Ask there; doctor() tells of this side.';
END
$$;

CREATE FUNCTION onside_attribution.flush(timeout interval DEFAULT '30 s') RETURNS boolean
LANGUAGE sql RETURN onside_attribution.elsewhere('flush()')::boolean;
CREATE FUNCTION onside_attribution.pause(reason text DEFAULT NULL) RETURNS void
LANGUAGE sql AS $$ SELECT onside_attribution.elsewhere('pause()') $$;
CREATE FUNCTION onside_attribution.resume() RETURNS void
LANGUAGE sql AS $$ SELECT onside_attribution.elsewhere('resume()') $$;
CREATE FUNCTION onside_attribution.retry_dead_letters(event_ids uuid[] DEFAULT NULL) RETURNS bigint
LANGUAGE sql RETURN onside_attribution.elsewhere('retry_dead_letters()')::bigint;
CREATE FUNCTION onside_attribution.replay(since timestamptz, until timestamptz DEFAULT now()) RETURNS bigint
LANGUAGE sql RETURN onside_attribution.elsewhere('replay()')::bigint;
CREATE FUNCTION onside_attribution.stats_reset() RETURNS void
LANGUAGE sql AS $$ SELECT onside_attribution.elsewhere('stats_reset()') $$;
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY '{status,stats,stats_histogram,pending,aside,failed,subscriptions}'::text[] LOOP
        EXECUTE format('CREATE VIEW onside_attribution.%I AS SELECT onside_attribution.elsewhere(%L) AS state', name, name);
        EXECUTE format('COMMENT ON VIEW onside_attribution.%I IS %L', name, 'Is on the sending side, and says so');
    END LOOP;
END
$$;

/* ---------------------------------------------------------------------------
 * Rights and descriptions
 */

-- A session may read backslashes, and write names, in another way.  use_settings() sets that for its caller.
DO $$
DECLARE
    routine regprocedure;
BEGIN
    FOR routine IN SELECT oid FROM pg_proc WHERE pronamespace = 'onside_attribution'::regnamespace AND proconfig IS NOT NULL AND proname <> 'use_settings' LOOP
        EXECUTE format('ALTER ROUTINE %s SET standard_conforming_strings = on', routine);
        EXECUTE format('ALTER ROUTINE %s SET quote_all_identifiers = off', routine);
    END LOOP;
END
$$;

-- ALTER DEFAULT PRIVILEGES may have granted something.  TRIGGER on the outbox would be this role's rights.
DO $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT DISTINCT quote_ident(pg_get_userbyid(a.grantee))
        FROM (SELECT relacl, relowner FROM pg_class WHERE relnamespace = 'onside_attribution'::regnamespace
              UNION ALL SELECT proacl, proowner FROM pg_proc WHERE pronamespace = 'onside_attribution'::regnamespace
              UNION ALL SELECT nspacl, nspowner FROM pg_namespace WHERE nspname = 'onside_attribution') o (acl, owner),
            LATERAL aclexplode(o.acl) a
        WHERE a.grantee NOT IN (0, o.owner)
    LOOP
        EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA onside_attribution FROM %s', grantee);
        EXECUTE format('REVOKE ALL ON ALL SEQUENCES IN SCHEMA onside_attribution FROM %s', grantee);
        EXECUTE format('REVOKE ALL ON ALL ROUTINES IN SCHEMA onside_attribution FROM %s', grantee);
        EXECUTE format('REVOKE ALL ON SCHEMA onside_attribution FROM %s', grantee);
    END LOOP;
END
$$;
REVOKE ALL ON ALL TABLES IN SCHEMA onside_attribution FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA onside_attribution FROM PUBLIC;
REVOKE ALL ON SCHEMA onside_attribution FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA onside_attribution FROM PUBLIC;

-- Mappers call these, as whoever writes a row.
GRANT USAGE ON SCHEMA onside_attribution TO PUBLIC;
GRANT EXECUTE ON FUNCTION onside_attribution.event_id(text[]), onside_attribution.amount(numeric, integer),
    onside_attribution.purchase(uuid, numeric, text, timestamptz, uuid, jsonb),
    onside_attribution.throw(onside_attribution.problem) TO PUBLIC;

COMMENT ON SCHEMA onside_attribution IS 'Records events for Onside; a cluster with the extension onside_attribution subscribes and sends them';
COMMENT ON TABLE onside_attribution.outbox IS 'The log of events, of the last week. Written by the functions alone';
COMMENT ON TABLE onside_attribution.dead_letter IS 'Rows of attached tables that are no valid events, with the reason';
COMMENT ON TABLE onside_attribution.namespace IS 'What distinguishes this database''s keys: the first part of event_ids that are made of a key';
COMMENT ON FUNCTION onside_attribution.track(text, uuid, jsonb, timestamptz, uuid) IS
    'Records one event in the current transaction. Out: its event_id. Errors: 22004 for a missing field, 22023 for a bad value, 54000 for an event that no request can hold';
COMMENT ON FUNCTION onside_attribution.track_purchase(uuid, numeric, text, timestamptz, uuid, jsonb) IS
    'Records a purchase_completed event. Out: its event_id. Errors: as track()';
COMMENT ON FUNCTION onside_attribution.track_batch(jsonb) IS 'Records an array of events in the API''s shape, all or none. Out: how many. Errors: as track()';
COMMENT ON FUNCTION onside_attribution.purchase(uuid, numeric, text, timestamptz, uuid, jsonb) IS 'For mappers: an event with the payload of track_purchase()';
COMMENT ON FUNCTION onside_attribution.amount(numeric, integer) IS 'For mappers: minor units as an amount, amount(990, 2) is 9.90';
COMMENT ON FUNCTION onside_attribution.event_id(text[]) IS 'For mappers: a stable version 4 UUID of a key';
COMMENT ON FUNCTION onside_attribution.attach(regclass, text, name, jsonb, name, name, text, text, regproc, text, boolean) IS
    'Makes the triggers that report rows of a table, by CREATE TRIGGER as the caller. Out: the trigger''s name';
COMMENT ON FUNCTION onside_attribution.detach(regclass, text) IS 'Drops them. Out: whether there was one';
COMMENT ON PROCEDURE onside_attribution.backfill(regclass, text, timestamptz, timestamptz) IS 'Records the rows that an attached table holds, a thousand a transaction';
COMMENT ON FUNCTION onside_attribution.track_row() IS 'The trigger function that attach() uses';
COMMENT ON FUNCTION onside_attribution.preview(uuid) IS 'The event as it is sent; NULL if the outbox does not have it. For those who may read the outbox';
COMMENT ON FUNCTION onside_attribution.forget(uuid) IS 'Removes the events of an installation from this database. Out: how many. The sending side has a forget() of its own';
COMMENT ON TYPE onside_attribution.event IS 'What a mapper returns: an event without its name';
COMMENT ON FUNCTION onside_attribution.doctor() IS 'What there is to know on this side: wal_level, publication, slots, triggers, dead letters';
COMMENT ON VIEW onside_attribution.attached IS 'Which tables report which events';

RESET search_path;
