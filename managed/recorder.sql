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
 * copy, brings what was recorded while there was none.  Each weekday plus two has a
 * partition; see make_room().
 */
CREATE SEQUENCE onside_attribution.outbox_id_seq;

CREATE FUNCTION onside_attribution.today() RETURNS date
LANGUAGE sql VOLATILE PARALLEL SAFE
RETURN (clock_timestamp() AT TIME ZONE 'UTC')::date;

CREATE FUNCTION onside_attribution.part_of(day date) RETURNS smallint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ((day - date '2000-01-01') % 9)::smallint;

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
    FOR i IN 0 .. 8 LOOP
        EXECUTE format('CREATE TABLE onside_attribution.outbox_%s PARTITION OF onside_attribution.outbox FOR VALUES IN (%s)', i, i);
    END LOOP;
END
$$;

/* Through which day room has been made. */
CREATE TABLE onside_attribution.room (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    day date NOT NULL
);
INSERT INTO onside_attribution.room (day) VALUES (onside_attribution.today() + 2);

/* Rows of attached tables that are no valid events. */
CREATE TABLE onside_attribution.dead_letter (
    event_id uuid,
    event_name text,
    payload jsonb,
    event_datetime timestamptz,
    installation_id uuid,
    error text NOT NULL,
    failed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    source text,
    id uuid PRIMARY KEY DEFAULT gen_random_uuid()
);

/* What a transaction has made of its deferred rows; emptied with the outbox. */
CREATE TABLE onside_attribution.seen (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    key text NOT NULL,
    PRIMARY KEY (xid, key)
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
RETURN id ~* '^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$';

CREATE FUNCTION onside_attribution.is_uuid(id text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN id ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$';

/* An event as the API is told it. */
CREATE FUNCTION onside_attribution.render(
    event_name text, payload jsonb, event_datetime timestamptz, event_id uuid, installation_id uuid) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '{"event_name":' || to_json(event_name)::text || ',"payload":' || payload::text
    || ',"event_datetime":"' || onside_attribution.iso(event_datetime)
    || '","event_id":"' || event_id::text || '","installation_id":"' || installation_id::text || '"}';

/* What is wrong with an event; NULL if it can be sent.  As src/record/event.c has it. */
CREATE TYPE onside_attribution.problem AS (field text, state text, message text, hint text);

CREATE FUNCTION onside_attribution.problem_of(
    event_name text, installation_id uuid, payload jsonb, event_datetime timestamptz, event_id uuid)
RETURNS onside_attribution.problem
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    name_hint constant text := 'An event name has 1 to 255 characters and no control characters, e.g. purchase_completed.';
    size bigint;
BEGIN
    IF event_name IS NULL THEN
        RETURN ROW('event_name', '22004', 'event_name must not be null', name_hint)::onside_attribution.problem;
    ELSIF length(event_name) > 255 THEN
        RETURN ROW('event_name', '22023', 'event_name must not be longer than 255 characters', name_hint)::onside_attribution.problem;
    ELSIF event_name ~ '^[ \u00a0\u1680\u2000-\u200d\u2028\u2029\u202f\u205f\u2060\u3000\ufeff]*$' THEN
        RETURN ROW('event_name', '22023', 'event_name must not be empty or blank', name_hint)::onside_attribution.problem;
    ELSIF event_name ~ '[\u0001-\u001f\u007f-\u009f]' THEN
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
        size := octet_length(onside_attribution.render(event_name, payload, event_datetime, event_id, installation_id));
    EXCEPTION WHEN program_limit_exceeded THEN
        RETURN ROW('payload', '54000', 'payload is too large: the event has more than 1000000 bytes as JSON',
                'A request must stay below 1000000 bytes, and an event cannot be split.')::onside_attribution.problem;
    END;
    -- {"events":[ and ]} are around it.
    IF size + 13 >= 1000000 THEN
        RETURN ROW('payload', '54000',
                CASE WHEN pg_column_size(payload) >= 8000000 THEN 'payload is too large: the event has more than 1000000 bytes as JSON'
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
 * Empties the partition of the day after tomorrow, which is a week old, once a day.  Nobody
 * waits for that: who finds it locked, or somebody else at it, leaves it for the next.
 * The lock is held until the caller's transaction ends, and nobody writes there for
 * two days.
 */
CREATE FUNCTION onside_attribution.make_room() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    today constant date := onside_attribution.today();
BEGIN
    PERFORM FROM onside_attribution.room WHERE day < today + 2 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    EXECUTE format('LOCK TABLE onside_attribution.outbox_%s IN ACCESS EXCLUSIVE MODE NOWAIT', onside_attribution.part_of(today + 2));
    EXECUTE format('TRUNCATE onside_attribution.outbox_%s', onside_attribution.part_of(today + 2));
    DELETE FROM onside_attribution.seen WHERE xid < pg_snapshot_xmin(pg_current_snapshot());
    UPDATE onside_attribution.room SET day = today + 2;
EXCEPTION WHEN lock_not_available OR object_in_use OR deadlock_detected THEN
    NULL;
END
$$;

/* Writes one event, which is valid. */
CREATE FUNCTION onside_attribution.append(
    event_name text, installation_id uuid, payload jsonb, event_datetime timestamptz, event_id uuid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    INSERT INTO onside_attribution.outbox (event_id, event_name, payload, event_datetime, installation_id)
    VALUES (event_id, event_name, payload, event_datetime, installation_id);
    IF EXISTS (SELECT FROM onside_attribution.room r WHERE r.day < onside_attribution.today() + 2) THEN
        PERFORM onside_attribution.make_room();
    END IF;
END
$$;

/* ---------------------------------------------------------------------------
 * Recording by functions
 */

/*
 * Writes one event; what is wrong with it if it is not written.  For those who may not
 * write to the log themselves.
 */
CREATE FUNCTION onside_attribution.check_and_append(
    event_name text, installation_id uuid, payload jsonb, event_datetime timestamptz, event_id uuid)
RETURNS onside_attribution.problem
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem constant onside_attribution.problem :=
        onside_attribution.problem_of(event_name, installation_id, payload, event_datetime, event_id);
BEGIN
    IF problem IS NULL THEN
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
        uuids := '{NULL,NULL}';
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

CREATE FUNCTION onside_attribution.preview(event_id uuid) RETURNS text
LANGUAGE sql STABLE STRICT SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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
 * [key, column].  They are those of the extension, and condition and becomes.
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
                         'mapper', 'search_path', 'condition', 'becomes') THEN
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

/*
 * A query that makes events of the rows of a source, "n".  $1 is a row, if that is the source.
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
        argument := (SELECT p.proargtypes[0] FROM pg_proc p JOIN pg_namespace s ON s.oid = p.pronamespace
                     WHERE format('%I.%I', s.nspname, p.proname) = mapping ->> 'mapper' AND p.pronargs = 1
                     ORDER BY (SELECT t.typrelid FROM pg_type t WHERE t.oid = p.proargtypes[0]) <> relid LIMIT 1);
        IF argument IS NULL THEN
            RAISE undefined_function USING MESSAGE = format('mapper %s does not exist', mapping ->> 'mapper'),
                HINT = 'Create it again, or detach the event with onside_attribution.detach().';
        END IF;
        RETURN format('SELECT e.installation_id::text, e.payload, NULL::onside_attribution.problem, e.event_datetime, true, e.event_id::text FROM %s, LATERAL %s(%s) e',
            source, mapping ->> 'mapper',
            CASE WHEN (SELECT t.typrelid FROM pg_type t WHERE t.oid = argument) = relid THEN format('(n.*)::%s', argument::regtype)
                ELSE format('jsonb_populate_record(NULL::%s, to_jsonb(n.*))', argument::regtype) END);
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
            ELSE 'onside_attribution.parse_datetime(n.%I::text)' END, mapping ->> 'event_datetime');
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

/* Is it the first time in this transaction? */
CREATE FUNCTION onside_attribution.is_first(key text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO onside_attribution.seen (key) VALUES ($1) ON CONFLICT DO NOTHING;
    RETURN FOUND;
END
$$;

CREATE FUNCTION onside_attribution.reject(
    event_name text, installation_id uuid, payload jsonb, event_datetime timestamptz, event_id uuid, error text, source text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO onside_attribution.dead_letter (event_name, installation_id, payload, event_datetime, event_id, error, source)
    VALUES ($1, $2, $3, $4, $5, $6, $7)
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
    IF problem IS NULL AND place IS NOT NULL THEN
        problem := onside_attribution.problem_of(mapping ->> 'event_name', installation, made.payload, datetime, id);
    END IF;
    IF place IS NOT NULL AND NOT onside_attribution.is_first(concat_ws(E'\t',
            CASE WHEN problem IS NULL AND made.key IS NOT NULL THEN split_part(place, E'\t', 1) || E'\t' || id ELSE place END, problem.message)) THEN
        RETURN 'recorded';
    END IF;
    IF problem IS NULL THEN
        problem := onside_attribution.check_and_append(mapping ->> 'event_name', installation, made.payload, datetime, id);
    END IF;
    IF problem IS NULL THEN
        RETURN 'recorded';
    END IF;

    col := coalesce(mapping ->> nullif(problem.field, 'payload'), (SELECT p.pair ->> 1 FROM jsonb_array_elements(mapping -> 'payload') p (pair)
                                                WHERE 'payload.' || (p.pair ->> 0) = problem.field));
    detail := format('Rows of table "%s" are reported as event "%s"%s.', relname, mapping ->> 'event_name',
                     CASE WHEN col IS NOT NULL THEN format(', with column "%s" as %s', col, problem.field) ELSE '' END);
    IF current_setting('onside_attribution.on_invalid_event', true) = 'error' THEN
        RAISE EXCEPTION USING ERRCODE = problem.state, MESSAGE = 'invalid event: ' || problem.message, DETAIL = detail,
            HINT = problem.hint || ' To let such rows through, set onside_attribution.on_invalid_event to dead_letter.',
            TABLE = relname, COLUMN = coalesce(col, '');
    END IF;
    RAISE WARNING USING ERRCODE = problem.state, MESSAGE = 'invalid event: ' || problem.message,
        DETAIL = detail || ' This row was let through and its event put into dead_letter.',
        HINT = problem.hint, TABLE = relname, COLUMN = coalesce(col, '');
    PERFORM onside_attribution.reject(mapping ->> 'event_name', installation, made.payload, datetime, id, problem.message,
        (SELECT format('%I.%I', s.nspname, c.relname) FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
         WHERE c.oid = coalesce(pg_partition_root(relid), relid)));
    RETURN 'dead_letter';
END
$$;

/* The mapper has failed: the row's purchase comes first, unless the error says nothing about the row. */
CREATE FUNCTION onside_attribution.passes_through(state text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT left($1, 2) IN ('57', '40', '53', '58', 'XX')
        OR current_setting('onside_attribution.on_invalid_event', true) = 'error'
$$;

/*
 * The trigger function.  The settings are those by which the text of any type is the same in
 * every session.
 *
 * A deferred trigger's row is read again by its primary key: "source" is then the row as it is
 * now, and none if it is gone.
 */
CREATE FUNCTION onside_attribution.track_row() RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET datestyle = 'ISO, YMD' SET timezone = 'UTC' SET intervalstyle = 'postgres' SET extra_float_digits = 1
SET bytea_output = 'hex' SET lc_monetary = 'C' SET xmlbinary = 'base64' SET quote_all_identifiers = off AS $$
DECLARE
    mapping constant jsonb := onside_attribution.read_arguments(TG_ARGV);
    trigger constant pg_trigger := (SELECT t FROM pg_trigger t WHERE t.tgrelid = TG_RELID AND t.tgname = TG_NAME);
    source text := CASE TG_LEVEL WHEN 'ROW' THEN '(SELECT ($1).*) n' ELSE format('%I n', trigger.tgnewtable) END;
    condition constant text := coalesce(mapping ->> 'becomes', mapping ->> 'condition');
    meets boolean := true;
    met boolean := false;
    made onside_attribution.made;
    query text;
    place text;
    n integer := 0;
    sources text[];
    results onside_attribution.made[];
BEGIN
    IF TG_WHEN <> 'AFTER' OR TG_OP NOT IN ('INSERT', 'UPDATE') THEN
        RAISE trigger_protocol_violated USING MESSAGE = 'track_row must be fired AFTER INSERT or UPDATE',
            HINT = 'Make the trigger with onside_attribution.attach().';
    ELSIF TG_LEVEL = 'STATEMENT' AND trigger.tgnewtable IS NULL THEN
        RAISE trigger_protocol_violated USING MESSAGE = 'track_row FOR EACH STATEMENT needs a transition table',
            HINT = 'Add REFERENCING NEW TABLE AS new_rows to the trigger.';
    END IF;
    IF TG_LEVEL = 'ROW' THEN
        IF trigger.tgdeferrable THEN
            SELECT coalesce(format('(SELECT t.* FROM %s t WHERE ', coalesce(pg_partition_root(TG_RELID), TG_RELID)::regclass)
                                || string_agg(format('t.%I = ($1).%I', a.attname, a.attname), ' AND ') || ') n', source),
                   'SELECT concat_ws(''/'', ' || string_agg(format('($1).%I', a.attname), ', ') || ')'
            INTO source, query
            FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
            WHERE i.indrelid = TG_RELID AND i.indisprimary;
            EXECUTE coalesce(query, 'SELECT ($1)::text') INTO place USING NEW;
            place := concat_ws('/', coalesce(pg_partition_root(TG_RELID), TG_RELID)::oid, mapping ->> 'event_name', place);
        END IF;
        IF condition IS NOT NULL THEN
            query := format(E'SELECT (%s\n) FROM %s', condition, left(source, -1) || 'new');
            IF TG_OP = 'UPDATE' AND NOT mapping ? 'becomes' THEN
                EXECUTE query || ', (SELECT ($2).*) old' INTO meets USING NEW, OLD;
            ELSE
                EXECUTE query INTO meets USING NEW;
            END IF;
            IF TG_OP = 'UPDATE' AND mapping ? 'becomes' THEN
                EXECUTE format(E'SELECT (%s\n) FROM (SELECT ($1).*) new', condition) INTO met USING OLD;
            END IF;
            IF meets IS NOT TRUE OR met THEN
                RETURN NULL;
            END IF;
        END IF;
    END IF;

    IF NOT mapping ? 'mapper' THEN
        FOR made IN EXECUTE onside_attribution.query_of(TG_RELID, mapping, source) USING NEW LOOP
            PERFORM onside_attribution.settle(TG_RELID, mapping, made, place);
        END LOOP;
        RETURN NULL;
    END IF;

    -- A mapper has the search_path of attach().  What it did is undone if it fails; then it
    -- is called for each row, so that the bad ones alone become dead letters.
    sources := ARRAY[source];
    WHILE sources <> '{}' LOOP
        BEGIN
            query := format('SELECT array_agg(e::onside_attribution.made) FROM (%s) e',
                            onside_attribution.query_of(TG_RELID, mapping, sources[1]));
            PERFORM set_config('search_path', coalesce(mapping ->> 'search_path', 'pg_catalog, pg_temp'), true);
            EXECUTE query INTO results USING NEW;
            PERFORM set_config('search_path', 'pg_catalog, pg_temp', true);
        EXCEPTION WHEN OTHERS THEN
            IF onside_attribution.passes_through(SQLSTATE) THEN
                RAISE;
            ELSIF TG_LEVEL = 'STATEMENT' AND sources[1] = source THEN
                results := '{}';
                EXECUTE format('SELECT $1 || array_agg(format(''(SELECT x.* FROM %1$I x OFFSET %%s LIMIT 1) n'', row_number - 1))
                                FROM (SELECT row_number() OVER () FROM %1$I) x', trigger.tgnewtable) INTO sources USING sources;
            ELSE
                results := ARRAY[('?', NULL, ('mapper', SQLSTATE, regexp_replace(SQLERRM, '^invalid event: ', ''), 'Mend the mapper with CREATE OR REPLACE FUNCTION.')::onside_attribution.problem,
                    NULL, true, NULL)::onside_attribution.made];
            END IF;
        END;
        FOREACH made IN ARRAY coalesce(results, '{}') LOOP
            n := n + 1;
            PERFORM onside_attribution.settle(TG_RELID, mapping, made, place || E'\t' || n);
        END LOOP;
        sources := sources[2:];
    END LOOP;
    RETURN NULL;
END
$$;

/* ---------------------------------------------------------------------------
 * Attaching
 */

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
#variable_conflict use_variable
DECLARE
    rel pg_catalog.pg_class;
    problem onside_attribution.problem;
    arguments text[];
    events text := pg_catalog.upper(operation);
    trigger_name text;
    entry record;
    for_each_row boolean;
    clause text;
    old_timeout constant text := pg_catalog.current_setting('lock_timeout');
    missing text;
BEGIN
    missing := CASE WHEN source IS NULL THEN 'source' WHEN operation IS NULL THEN 'operation' WHEN deferred IS NULL THEN 'deferred'
        WHEN event_name IS NULL THEN 'event_name'
        WHEN mapper IS NULL AND installation_id IS NULL THEN 'installation_id'
        WHEN mapper IS NULL AND payload IS NULL THEN 'payload' END;
    IF missing IS NOT NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'attach: ' || missing || ' must not be null',
            HINT = 'installation_id and payload are needed unless there is a mapper; event_datetime, event_id, condition and becomes may be left out.';
    END IF;
    SELECT * INTO rel FROM pg_catalog.pg_class c WHERE c.oid = source;
    IF rel.relkind NOT IN ('r', 'p') OR rel.relpersistence = 't' OR rel.relnamespace IN ('pg_catalog'::regnamespace, 'onside_attribution'::regnamespace) THEN
        RAISE wrong_object_type USING MESSAGE = pg_catalog.format('attach: "%s" is no table of the shop', rel.relname),
            HINT = 'Attach an ordinary or a partitioned table.';
    END IF;
    problem := onside_attribution.problem_of(event_name, NULL, NULL, NULL, NULL);
    IF problem.field = 'event_name' THEN
        PERFORM onside_attribution.throw(problem);
    ELSIF events NOT IN ('INSERT', 'UPDATE', 'INSERT OR UPDATE') THEN
        RAISE invalid_parameter_value USING MESSAGE = pg_catalog.format('attach: operation "%s" is not known', operation),
            HINT = 'It is INSERT, UPDATE or INSERT OR UPDATE.';
    ELSIF becomes IS NOT NULL AND (condition IS NOT NULL OR events <> 'INSERT') THEN
        RAISE invalid_parameter_value USING MESSAGE = 'attach: becomes takes the place of operation and condition',
            HINT = 'It is an event when a row is inserted or updated, the expression is true now, and it was not before.';
    ELSIF mapper IS NOT NULL AND (installation_id IS NOT NULL OR payload IS NOT NULL OR event_datetime IS NOT NULL OR event_id IS NOT NULL) THEN
        RAISE invalid_parameter_value USING MESSAGE = 'attach: mapper and columns exclude each other',
            HINT = 'What the mapper returns has installation_id, payload, event_datetime and event_id.';
    ELSIF deferred AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = source AND i.indisprimary) THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = pg_catalog.format('attach: table "%s" has no primary key', rel.relname),
            DETAIL = 'With deferred, a row is read again by its primary key at the end of the transaction.', HINT = 'Add one, or leave out deferred.';
    END IF;

    arguments := ARRAY['event_name=' || event_name];
    IF mapper IS NULL THEN
        IF pg_catalog.jsonb_typeof(payload) <> 'object' THEN
            RAISE invalid_parameter_value USING MESSAGE = 'attach: payload must be a JSON object',
                HINT = 'It maps keys to column names, e.g. {"amount": "total"}.';
        END IF;
        arguments := arguments || ('installation_id=' || installation_id);
        FOR entry IN SELECT * FROM pg_catalog.jsonb_each(payload) LOOP
            IF pg_catalog.jsonb_typeof(entry.value) <> 'string' OR entry.value = '""' THEN
                RAISE invalid_parameter_value USING MESSAGE = 'attach: payload must map each key to a column name',
                    HINT = 'For example {"amount": "total"}.';
            ELSIF pg_catalog.strpos(entry.key, '=') > 0 THEN
                RAISE invalid_parameter_value USING MESSAGE = 'attach: a key of payload must not contain "="',
                    HINT = 'It separates key and column in the trigger''s arguments.';
            END IF;
            arguments := arguments || pg_catalog.format('payload.%s=%s', entry.key, entry.value #>> '{}');
        END LOOP;
        arguments := arguments || ('event_datetime=' || event_datetime) || ('event_id=' || event_id);
        arguments := pg_catalog.array_remove(arguments, NULL);
        FOR entry IN
            SELECT c.* FROM pg_catalog.unnest(arguments[2:]) a,
                LATERAL (SELECT pg_catalog.split_part(a, '=', 1) AS field, pg_catalog.substr(a, pg_catalog.strpos(a, '=') + 1) AS col) f,
                LATERAL onside_attribution.column_problem(source, f.field, f.col) c
        LOOP
            RAISE EXCEPTION USING ERRCODE = entry.state, MESSAGE = 'attach: ' || entry.message, TABLE = rel.relname,
                HINT = CASE entry.state WHEN '42703' THEN 'Names of columns are taken as written; upper and lower case differ.' ELSE entry.hint END;
        END LOOP;
        FOR entry IN
            SELECT p.key, p.value AS col, a.atttypid AS type, onside_attribution.base_type(a.atttypid) AS base, onside_attribution.innermost_type(a.atttypid) AS inner_type,
                   p.key ~* 'amount|price|revenue' AS is_amount
            FROM pg_catalog.jsonb_each_text(payload) p JOIN pg_catalog.pg_attribute a ON a.attrelid = source AND a.attname = p.value
        LOOP
            IF entry.inner_type = 'money'::regtype OR (SELECT t.typtype = 'c' FROM pg_catalog.pg_type t WHERE t.oid = entry.inner_type) THEN
                RAISE datatype_mismatch USING TABLE = rel.relname, COLUMN = entry.col,
                    MESSAGE = pg_catalog.format('attach: column "%s" of relation "%s" has type %s, %s', entry.col, rel.relname, pg_catalog.format_type(entry.type, NULL),
                        CASE WHEN entry.inner_type = 'money'::regtype THEN 'which has no currency and reads differently under each lc_monetary'
                            ELSE 'a composite type, for which JSON has no agreed form' END),
                    HINT = 'Attach a mapper in place of columns, which says what is meant.';
            ELSIF entry.is_amount AND entry.base IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) THEN
                RAISE WARNING USING MESSAGE = pg_catalog.format('payload.%s is an integer: if it is in cents, use amount(%I, 2)', entry.key, entry.col),
                    DETAIL = pg_catalog.format('Column "%s" of "%s" is sent as it is: 990 stays 990 and does not become 9.90.', entry.col, rel.relname),
                    HINT = pg_catalog.format('Attach a mapper in place of columns: a function that returns onside_attribution.purchase(..., onside_attribution.amount(%I, 2), ...).', entry.col);
            ELSIF entry.is_amount AND entry.base IN ('float4'::regtype, 'float8'::regtype) THEN
                RAISE WARNING USING MESSAGE = pg_catalog.format('payload.%s is a floating-point number, which is not exact: use numeric', entry.key),
                    DETAIL = pg_catalog.format('Column "%s" of "%s" has type %s: 0.1 + 0.2 is sent as 0.30000000000000004.', entry.col, rel.relname, pg_catalog.format_type(entry.type, NULL)),
                    HINT = pg_catalog.format('Change the column''s type to numeric, or attach a mapper in place of columns, with round(%I::numeric, 2).', entry.col);
            END IF;
        END LOOP;
        IF event_id IS NOT NULL THEN
            IF onside_attribution.namespace_id() IS NULL THEN
                RAISE object_not_in_prerequisite_state USING MESSAGE = 'attach: the table onside_attribution.namespace is empty',
                    HINT = 'Put its row back: INSERT INTO onside_attribution.namespace (id) VALUES (...), with the id that the arguments of this database''s triggers have, or gen_random_uuid() if there are none.';
            END IF;
            arguments := arguments || ('event_id.namespace=' || onside_attribution.namespace_id()::text)
                || ('event_id.source=' || onside_attribution.id_source(source));
            IF NOT EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attname = event_id
                           WHERE i.indrelid = source AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indnkeyatts = 1
                             AND i.indkey[0] = a.attnum AND i.indpred IS NULL) THEN
                RAISE WARNING USING MESSAGE = pg_catalog.format('column "%s" of "%s", mapped to event_id, is not unique', event_id, rel.relname),
                    DETAIL = 'Rows with the same value are one event to the API: it takes the first and ignores the others.',
                    HINT = 'Map the primary key, or add a unique index on the column.';
            END IF;
        END IF;
    ELSE
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_type t ON t.oid = p.proargtypes[0]
                       WHERE p.oid = mapper AND p.pronargs = 1 AND p.prokind = 'f' AND t.typrelid = source
                         AND p.prorettype = 'onside_attribution.event'::regtype
                         AND p.pronamespace <> pg_catalog.pg_my_temp_schema()) THEN
            RAISE invalid_function_definition USING MESSAGE = pg_catalog.format('attach: %s is no mapper of "%s"', mapper, rel.relname),
                HINT = pg_catalog.format('It is a function that takes a %s and RETURNS SETOF onside_attribution.event.', source);
        END IF;
        arguments := arguments
            || (SELECT pg_catalog.format('mapper=%I.%I', s.nspname, p.proname) FROM pg_catalog.pg_proc p
                JOIN pg_catalog.pg_namespace s ON s.oid = p.pronamespace WHERE p.oid = mapper)
            || (SELECT 'search_path=' || pg_catalog.string_agg(pg_catalog.quote_ident(s), ', ' ORDER BY n)
                FROM pg_catalog.unnest(pg_catalog.current_schemas(false) || 'pg_temp'::name) WITH ORDINALITY x (s, n)
                WHERE s NOT LIKE 'pg\_temp\_%');
    END IF;

    trigger_name := 'onside_' || event_name;
    IF pg_catalog.octet_length(trigger_name) >= 64 THEN
        trigger_name := pg_catalog.left(trigger_name, 54 - (pg_catalog.octet_length(trigger_name) - pg_catalog.length(trigger_name)))
            || '_' || pg_catalog.left(pg_catalog.md5(event_name), 8);
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = source AND t.tgname = trigger_name) THEN
        RAISE duplicate_object USING MESSAGE = pg_catalog.format('trigger "%s" for relation "%s" already exists', trigger_name, rel.relname),
            HINT = 'To attach the event in another way, detach it first.';
    END IF;

    -- Nobody must wait for long behind the lock of CREATE TRIGGER.
    IF old_timeout = '0' THEN
        PERFORM pg_catalog.set_config('lock_timeout', '2s', true);
    END IF;
    IF becomes IS NOT NULL THEN
        events := 'INSERT OR UPDATE';
        arguments := arguments || ('becomes=' || becomes);
    ELSIF deferred AND condition IS NOT NULL THEN
        arguments := arguments || ('condition=' || condition);
    END IF;
    IF becomes IS NOT NULL AND rel.relkind = 'p' AND mapper IS NULL AND event_id IS NULL THEN
        RAISE invalid_parameter_value USING MESSAGE = pg_catalog.format('attach: becomes needs an event_id for the partitioned table "%s"', rel.relname),
            DETAIL = 'A row that moves to another partition is inserted again.', HINT = 'Map event_id to the table''s key.';
    END IF;
    for_each_row := condition IS NOT NULL OR becomes IS NOT NULL OR deferred OR rel.relkind = 'p' OR rel.relispartition
        OR events = 'INSERT OR UPDATE'
        OR EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE source IN (i.inhrelid, i.inhparent));
    clause := pg_catalog.format('%s EXECUTE FUNCTION onside_attribution.track_row(%s)',
        CASE WHEN coalesce(becomes, condition) IS NOT NULL THEN pg_catalog.format(E' WHEN (%s\n)', coalesce(becomes, condition)) ELSE '' END,
        (SELECT pg_catalog.string_agg(pg_catalog.quote_literal(a), ', ' ORDER BY n) FROM pg_catalog.unnest(arguments) WITH ORDINALITY x (a, n)));
    clause := pg_catalog.format('ON %s%s %s%s', source, CASE WHEN deferred THEN ' DEFERRABLE INITIALLY DEFERRED' ELSE '' END,
        CASE WHEN for_each_row THEN 'FOR EACH ROW' ELSE 'REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT' END, clause);
    BEGIN
        EXECUTE pg_catalog.format('CREATE %sTRIGGER %I AFTER %s %s', CASE WHEN deferred THEN 'CONSTRAINT ' ELSE '' END, trigger_name, events, clause);
    EXCEPTION WHEN invalid_object_definition THEN
        -- A condition on OLD binds the UPDATE alone.
        IF events <> 'INSERT OR UPDATE' OR condition IS NULL OR SQLERRM NOT LIKE '%OLD%' THEN
            RAISE;
        END IF;
        EXECUTE pg_catalog.format('CREATE %sTRIGGER %I AFTER UPDATE %s', CASE WHEN deferred THEN 'CONSTRAINT ' ELSE '' END, 'onside2_' || pg_catalog.substr(trigger_name, 8), clause);
        EXECUTE pg_catalog.format('CREATE %sTRIGGER %I AFTER INSERT %s', CASE WHEN deferred THEN 'CONSTRAINT ' ELSE '' END, trigger_name,
            pg_catalog.replace(pg_catalog.replace(clause, pg_catalog.format(E' WHEN (%s\n)', condition), ''),
                               pg_catalog.format(', %L', 'condition=' || condition), ''));
    END;
    PERFORM pg_catalog.set_config('lock_timeout', old_timeout, true);

    SELECT pg_catalog.string_agg(DISTINCT r.rolname, ', ') INTO missing
    FROM pg_catalog.pg_roles r
    WHERE pg_catalog.has_table_privilege(r.oid, source, 'INSERT, UPDATE') AND r.rolcanlogin
      AND NOT (pg_catalog.has_function_privilege(r.oid, 'onside_attribution.track(text, uuid, jsonb, timestamptz, uuid)', 'EXECUTE'));
    IF missing IS NOT NULL THEN
        RAISE WARNING USING MESSAGE = pg_catalog.format('roles that may write "%s" but not record its events: %s', rel.relname, missing),
            DETAIL = 'Their statements fail.',
            HINT = 'GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA onside_attribution TO them.';
    END IF;
    RETURN trigger_name;
END
$$;

/* The arguments of a trigger. */
CREATE FUNCTION onside_attribution.arguments_of(arguments bytea) RETURNS text[]
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(convert_from(decode(a, 'escape'), 'UTF8') ORDER BY n)
    FROM unnest(string_to_array(encode($1, 'escape'), '\000')) WITH ORDINALITY x (a, n) WHERE a <> ''
$$;

CREATE VIEW onside_attribution.attached AS
    WITH RECURSIVE clone AS (
        SELECT t.oid AS trigger, t.oid, t.tgenabled FROM pg_trigger t
        WHERE t.tgfoid = 'onside_attribution.track_row()'::regprocedure AND t.tgparentid = 0
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
           CASE WHEN u.oid IS NOT NULL OR t.tgtype::integer & 20 = 20 THEN 'INSERT OR UPDATE'
               WHEN t.tgtype::integer & 4 = 4 THEN 'INSERT' ELSE 'UPDATE' END AS operation,
           CASE WHEN NOT m.mapping ? 'becomes' THEN
               substring(pg_get_triggerdef(coalesce(u.oid, t.oid), true), ' WHEN \((.*)\) EXECUTE FUNCTION ') END AS condition,
           m.mapping ->> 'becomes' AS becomes,
           t.tgdeferrable AS deferred,
           CASE WHEN t.tgtype::integer & 1 = 1 THEN 'ROW' ELSE 'STATEMENT' END AS level,
           (SELECT CASE WHEN bool_and(c.tgenabled IN ('O', 'A')) THEN true
                WHEN bool_and(c.tgenabled NOT IN ('O', 'A')) THEN false
            END FROM clone c WHERE c.trigger IN (t.oid, u.oid)) AS enabled
    FROM pg_trigger t
    LEFT JOIN pg_trigger u ON u.tgrelid = t.tgrelid AND u.tgfoid = t.tgfoid AND u.tgname = 'onside2_' || substr(t.tgname, 8),
         LATERAL (SELECT onside_attribution.read_arguments(onside_attribution.arguments_of(t.tgargs)) AS mapping) m
    WHERE t.tgfoid = 'onside_attribution.track_row()'::regprocedure AND t.tgparentid = 0 AND NOT t.tgisinternal
      AND t.tgname NOT LIKE 'onside2\_%';

CREATE FUNCTION onside_attribution.detach(source regclass, event_name text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    name text;
    found_one boolean := false;
BEGIN
    IF source IS NULL OR event_name IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = pg_catalog.format('detach: %s must not be null', CASE WHEN source IS NULL THEN 'source' ELSE 'event_name' END),
            HINT = 'See the view onside_attribution.attached.';
    END IF;
    FOR name IN
        SELECT t.tgname FROM pg_catalog.pg_trigger t
        WHERE t.tgrelid = $1 AND t.tgfoid = 'onside_attribution.track_row()'::regprocedure AND t.tgparentid = 0
          AND 'event_name=' || $2 = ANY (onside_attribution.arguments_of(t.tgargs))
    LOOP
        EXECUTE pg_catalog.format('DROP TRIGGER %I ON %s', name, source);
        found_one := true;
    END LOOP;
    RETURN found_one;
END
$$;

/*
 * Records the rows that an attached table holds, a thousand a transaction, in the order of
 * the primary key.  A row that the trigger has reported, too, is the same event to the API.
 */
CREATE PROCEDURE onside_attribution.backfill(
    source regclass,
    event_name text,
    since timestamptz DEFAULT NULL,
    until timestamptz DEFAULT NULL)
LANGUAGE plpgsql AS $$
DECLARE
    mapping jsonb;
    query text;
    last jsonb;
    keys text;
    row_keys text;
    condition text;
    chunk text;
    made onside_attribution.made;
    next jsonb;
    recorded bigint := 0;
BEGIN
    PERFORM pg_catalog.set_config('datestyle', 'ISO, YMD', false), pg_catalog.set_config('timezone', 'UTC', false),
        pg_catalog.set_config('extra_float_digits', '1', false), pg_catalog.set_config('intervalstyle', 'postgres', false),
        pg_catalog.set_config('bytea_output', 'hex', false), pg_catalog.set_config('xmlbinary', 'base64', false);
    SELECT onside_attribution.read_arguments(onside_attribution.arguments_of(t.tgargs)), a.condition INTO mapping, condition
    FROM onside_attribution.attached a JOIN pg_catalog.pg_trigger t ON t.tgrelid = a.source AND t.tgname = a.trigger_name
    WHERE a.source = $1 AND a.event_name = $2;
    IF mapping IS NULL THEN
        RAISE undefined_object USING MESSAGE = pg_catalog.format('backfill: event "%s" is not attached to "%s"', event_name, source),
            HINT = 'See the view onside_attribution.attached.';
    ELSIF NOT mapping ?| '{event_id,mapper}' THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = 'backfill: the event has no event_id of the row',
            HINT = 'Attach it with event_id: then a row that is reported twice is one event to the API.';
    END IF;
    SELECT pg_catalog.string_agg(pg_catalog.format('n.%I', a.attname), ', ' ORDER BY k.n),
           pg_catalog.string_agg(pg_catalog.format('(l.r).%I', a.attname), ', ' ORDER BY k.n) INTO keys, row_keys
    FROM pg_catalog.pg_index i, pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY k (attnum, n), pg_catalog.pg_attribute a
    WHERE i.indrelid = source AND i.indisprimary AND a.attrelid = source AND a.attnum = k.attnum;
    IF keys IS NULL THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = pg_catalog.format('backfill: table "%s" has no primary key', source),
            HINT = 'It tells how far backfill has come. Add one.';
    END IF;
    condition := coalesce(mapping ->> 'becomes', condition, 'true');
    IF condition ~* '\mold\M' THEN
        RAISE feature_not_supported USING MESSAGE = 'backfill: the condition speaks of OLD, and a row that is there has none',
            HINT = 'Attach it with becomes, or without OLD, for the backfill.';
    END IF;
    LOOP
        -- The next rows are those of which the primary key is greater than the last one's.
        chunk := pg_catalog.format('(SELECT n.* FROM %1$s n WHERE $1 IS NULL OR (%2$s) > (SELECT %3$s FROM (SELECT jsonb_populate_record(NULL::%1$s, $1)) l (r)) '
                                   || 'ORDER BY %2$s LIMIT 1000)', source, keys, row_keys);
        EXECUTE pg_catalog.format('SELECT to_jsonb(n.*) FROM %s n ORDER BY %s OFFSET 999', chunk, keys) INTO next USING last;
        query := onside_attribution.query_of(source, mapping,
            pg_catalog.format(E'(SELECT new.* FROM %s new WHERE %s\n) n', chunk, condition));
        FOR made IN EXECUTE query USING last LOOP
            CONTINUE WHEN made.event_datetime < since OR made.event_datetime >= until;
            IF made.installation_id <> '' AND made.key IS NULL THEN
                RAISE null_value_not_allowed USING MESSAGE = 'backfill: an event without an event_id of the row',
                    HINT = 'A row that is reported twice would be two events. Map a column that is not NULL, or have the mapper return an event_id.';
            END IF;
            IF onside_attribution.settle(source, mapping, made) = 'recorded' THEN
                recorded := recorded + 1;
            END IF;
        END LOOP;
        COMMIT;
        EXIT WHEN next IS NULL;
        last := next;
    END LOOP;
    RAISE NOTICE 'backfill of "%" has come to its end: % events recorded', source, recorded;
END
$$;

/* ---------------------------------------------------------------------------
 * Looking after it
 */

CREATE FUNCTION onside_attribution.doctor()
RETURNS TABLE (check_name text, ok boolean, detail text, hint text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    slot record;
    n bigint;
    trigger record;
    broken text;
BEGIN
    RETURN QUERY SELECT 'wal_level', current_setting('wal_level') = 'logical', 'wal_level is ' || current_setting('wal_level'),
        CASE WHEN current_setting('wal_level') <> 'logical' THEN
            'Logical replication is switched on by your provider''s settings; see docs/managed.md. It takes a restart.' END;
    RETURN QUERY SELECT 'publication', p.oid IS NOT NULL,
        CASE WHEN p.oid IS NOT NULL THEN 'the publication onside_attribution has the outbox' ELSE 'the publication onside_attribution does not have the outbox' END,
        CASE WHEN p.oid IS NULL THEN 'Make it again; the statement is in recorder.sql.' END
    FROM (SELECT 1) one LEFT JOIN (pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = 'onside_attribution.outbox'::regclass)
        ON p.pubname = 'onside_attribution' AND p.pubinsert AND p.pubviaroot;
    n := 0;
    FOR slot IN
        SELECT s.slot_name, s.active, s.wal_status, s.safe_wal_size, s.confirmed_flush_lsn,
               pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn) AS held,
               pg_wal_lsn_diff(pg_current_wal_lsn(), s.confirmed_flush_lsn) AS behind
        FROM pg_replication_slots s WHERE s.database = current_database() AND s.plugin = 'pgoutput' AND NOT s.temporary
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
        RETURN QUERY SELECT 'slot', false, 'no subscription has a slot in this database',
            'On the sending cluster: CREATE SUBSCRIPTION ... PUBLICATION onside_attribution; see docs/managed.md. Until then the outbox keeps what is recorded for a week.';
    END IF;
    SELECT count(*) INTO n FROM onside_attribution.attached a;
    FOR trigger IN SELECT a.*, onside_attribution.read_arguments(onside_attribution.arguments_of(t.tgargs)) AS mapping
        FROM onside_attribution.attached a JOIN pg_trigger t ON t.tgrelid = a.source AND t.tgname = a.trigger_name
    LOOP
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
        IF broken IS NULL AND trigger.enabled IS NOT TRUE THEN
            broken := CASE WHEN trigger.enabled IS NULL THEN 'the one for the other operation, or that of a partition, is disabled, or it is itself' ELSE 'it is disabled' END;
        END IF;
        IF broken IS NOT NULL THEN
            RETURN QUERY SELECT 'attached', false, format('trigger %s on %s: %s', trigger.trigger_name, trigger.source, broken),
                'Detach the event and attach it again.';
            n := -1;
        END IF;
    END LOOP;
    IF onside_attribution.namespace_id() IS NULL THEN
        RETURN QUERY SELECT 'attached', false, 'the table onside_attribution.namespace is empty: no event_id can be made of a key',
            format('INSERT INTO onside_attribution.namespace (id) VALUES (%s);',
                coalesce((SELECT quote_literal(substr(a.argument, 20)) FROM pg_trigger t, unnest(onside_attribution.arguments_of(t.tgargs)) a (argument)
                          WHERE t.tgfoid = 'onside_attribution.track_row()'::regprocedure AND a.argument LIKE 'event_id.namespace=%' LIMIT 1), 'gen_random_uuid()'));
        n := -1;
    END IF;
    IF n >= 0 THEN
        RETURN QUERY SELECT 'attached', true, format('%s events of tables are attached', n), NULL;
    END IF;
    SELECT count(*) INTO n FROM (SELECT FROM onside_attribution.dead_letter LIMIT 10000) d;
    RETURN QUERY SELECT 'dead_letters', n = 0, format('%s rows were no valid events%s', n, coalesce(', the last at ' || (SELECT max(d.failed_at) FROM onside_attribution.dead_letter d), '')),
        CASE WHEN n > 0 THEN 'onside_attribution.dead_letter says why. Mend the rows or the mapping, record them with track(), and delete them there.' END;
    RETURN QUERY SELECT 'outbox', r.day >= onside_attribution.today(),
        format('it holds %s', pg_size_pretty((SELECT sum(pg_total_relation_size(i.inhrelid)) FROM pg_inherits i WHERE i.inhparent = 'onside_attribution.outbox'::regclass))),
        CASE WHEN r.day < onside_attribution.today() THEN 'Nothing was recorded lately, or a session holds a lock on its oldest partition; see pg_locks.' END
    FROM onside_attribution.room r;
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
CREATE FUNCTION onside_attribution.forget(installation_id uuid) RETURNS bigint
LANGUAGE sql RETURN onside_attribution.elsewhere('forget()')::bigint;
CREATE VIEW onside_attribution.status AS
    SELECT onside_attribution.elsewhere('status') AS state;

/* ---------------------------------------------------------------------------
 * Rights and descriptions
 */

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
COMMENT ON FUNCTION onside_attribution.doctor() IS 'What there is to know on this side: wal_level, publication, slots, triggers, dead letters';
COMMENT ON VIEW onside_attribution.attached IS 'Which tables report which events';

RESET search_path;
