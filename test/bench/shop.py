"""The shop's tables, and who records its purchases in which way."""

ROWS = 200_000

# An event's JSON, built by SQL from columns named as the outbox's.  Its bytes
# are those that the extension sends, which is checked.
EVENT_AS_SQL = (
    """'{"event_name":' || to_json(event_name)::text || ',"payload":' || payload::text"""
    """ || ',"event_datetime":"' || to_char(event_datetime AT TIME ZONE 'UTC',"""
    """ 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || '","event_id":"' || event_id"""
    """ || '","installation_id":"' || installation_id || '"}'""")

COLUMNS = "purchase_id, installation_id, currency, amount, paid_at"

# bare           nothing is recorded
# attached       by the extension's trigger; makes the event_id
# by_id          the same; the event_id is the purchase_id
# queued         by a trigger as one writes it by hand, into a queue table
# queued_notify  the same, and it wakes the consumer
# mapped         by a mapper that joins the buyer, whose row has the installation_id
# joined         by a trigger as one writes it by hand, with the same join
TABLES = ("bare", "attached", "by_id", "queued", "queued_notify", "mapped", "joined")

# What goes into the outbox for a purchase, as plain SQL has it.
EVENTS = """SELECT gen_random_uuid(), 'purchase_completed',
           jsonb_build_object('currency', currency, 'amount', amount::text),
           paid_at, installation_id, now(), pg_current_xact_id(), n, 1 FROM sample"""
EVENT_COLUMNS = """event_id, event_name, payload, event_datetime, installation_id,
           recorded_at, xid, id, segment"""

BULK = {table: f"INSERT INTO {table} SELECT {COLUMNS} FROM sample" for table in TABLES}
BULK["floor"] = f"INSERT INTO copy_of_outbox ({EVENT_COLUMNS}) {EVENTS}"
BULK["ready_made"] = f"INSERT INTO copy_of_outbox ({EVENT_COLUMNS}) TABLE ready_made"
BULK["track_loop"] = """DO $$
DECLARE p record;
BEGIN
    FOR p IN SELECT * FROM sample LOOP
        PERFORM onside_attribution.track_purchase(p.installation_id, p.amount, p.currency,
                                                  p.paid_at);
    END LOOP;
END $$"""

# Events without purchases, and so without a lock on their table.
RECORD_ALONE = """SELECT count(onside_attribution.track_purchase(installation_id, amount, currency,
                                                             paid_at)) FROM sample"""

# The microseconds never end in 0, so they are the same six digits everywhere.
SCHEMA = [
    f"""CREATE TABLE sample AS
    SELECT n, gen_random_uuid() AS purchase_id, gen_random_uuid() AS installation_id,
           (ARRAY['USD', 'EUR', 'GBP', 'JPY'])[1 + n % 4] AS currency,
           round((0.49 + n % 10000 / 100.0)::numeric, 2)::numeric(12, 2) AS amount,
           timestamptz '2026-05-05 12:00:00Z' + n * interval '1 ms' + interval '1 us' AS paid_at
    FROM generate_series(1, {ROWS}) n""",
    "CREATE INDEX ON sample (n)",
    "VACUUM ANALYZE sample",
    """CREATE TABLE copy_of_outbox (LIKE onside_attribution.outbox)
    WITH (autovacuum_enabled = off)""",
    "CREATE INDEX ON copy_of_outbox (xid, id) WITH (deduplicate_items = off)",
    f"CREATE TABLE ready_made ({EVENT_COLUMNS}) AS {EVENTS}",
    "VACUUM ANALYZE ready_made",
    """CREATE TABLE queue (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        event_id uuid NOT NULL,
        event_name text NOT NULL,
        payload jsonb NOT NULL,
        event_datetime timestamptz NOT NULL,
        installation_id uuid NOT NULL)""",
    """CREATE FUNCTION enqueue() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO queue (event_id, event_name, payload, event_datetime, installation_id)
        VALUES (NEW.purchase_id, 'purchase_completed',
                jsonb_build_object('currency', NEW.currency, 'amount', NEW.amount::text),
                NEW.paid_at, NEW.installation_id);
        IF TG_ARGV[0] = 'notify' THEN
            NOTIFY purchases;
        END IF;
        RETURN NULL;
    END $$""",
    *(f"""CREATE TABLE {table} (
        purchase_id uuid NOT NULL,
        installation_id uuid NOT NULL,
        currency text NOT NULL,
        amount numeric(12, 2) NOT NULL,
        paid_at timestamptz NOT NULL)""" for table in TABLES),
    """CREATE TRIGGER enqueue AFTER INSERT ON queued
    FOR EACH ROW EXECUTE FUNCTION enqueue('')""",
    """CREATE TRIGGER enqueue AFTER INSERT ON queued_notify
    FOR EACH ROW EXECUTE FUNCTION enqueue('notify')""",
    """SELECT onside_attribution.attach('attached', 'purchase_completed', 'installation_id',
        '{"currency": "currency", "amount": "amount"}', event_datetime => 'paid_at')""",
    """SELECT onside_attribution.attach('by_id', 'purchase_completed', 'installation_id',
        '{"currency": "currency", "amount": "amount"}', event_datetime => 'paid_at',
        event_id => 'purchase_id')""",
    "CREATE TABLE buyer AS SELECT purchase_id AS id, installation_id FROM sample",
    "ALTER TABLE buyer ADD PRIMARY KEY (id)",
    "VACUUM ANALYZE buyer",
    """CREATE FUNCTION purchase_of(m mapped) RETURNS SETOF onside_attribution.event
    LANGUAGE sql STABLE AS $$
        SELECT p.* FROM buyer b, LATERAL onside_attribution.purchase(
            b.installation_id, m.amount, m.currency, m.paid_at) p
        WHERE b.id = m.purchase_id
    $$""",
    "SELECT onside_attribution.attach('mapped', 'purchase_completed', mapper => 'purchase_of')",
    """CREATE FUNCTION track() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM onside_attribution.track_purchase(b.installation_id, NEW.amount, NEW.currency,
                                                  NEW.paid_at)
        FROM buyer b WHERE b.id = NEW.purchase_id;
        RETURN NULL;
    END $$""",
    "CREATE TRIGGER track AFTER INSERT ON joined FOR EACH ROW EXECUTE FUNCTION track()",
    # A backlog is made by many transactions.
    f"""CREATE PROCEDURE load(what text, events integer) LANGUAGE plpgsql AS $$
    DECLARE
        done integer := 0;
        step CONSTANT integer := 1000;
        source CONSTANT text := ' FROM sample WHERE n > $1 AND n <= $1 + $2';
        sql CONSTANT text := CASE what
            WHEN 'outbox' THEN 'INSERT INTO attached SELECT {COLUMNS}' || source
            WHEN 'copy_of_outbox' THEN
                $s$INSERT INTO copy_of_outbox ({EVENT_COLUMNS}) {EVENTS}
                   WHERE n > $1 AND n <= $1 + $2$s$
            WHEN 'queue' THEN
                $s$INSERT INTO queue (event_id, event_name, payload, event_datetime,
                                      installation_id)
                   SELECT gen_random_uuid(), 'purchase_completed',
                          jsonb_build_object('currency', currency, 'amount', amount::text),
                          paid_at, installation_id$s$ || source
            END;
    BEGIN
        WHILE done < events LOOP
            EXECUTE sql USING done % {ROWS}, least(step, events - done);
            done := done + step;
            COMMIT;
        END LOOP;
    END $$""",
]


def set_up(server):
    server.db.run(*SCHEMA)
    check_bytes(server)


def check_bytes(server):
    """Is the JSON that SQL builds the extension's, byte by byte?"""
    db = server.db
    db.run("BEGIN", f"INSERT INTO attached SELECT {COLUMNS} FROM sample WHERE n <= 100")
    differing = db.value(f"""
        SELECT count(*) FROM onside_attribution.outbox
        WHERE onside_attribution.preview(event_id) IS DISTINCT FROM {EVENT_AS_SQL}""")
    if differing != "0":
        raise SystemExit("The events that SQL builds are not those that the extension sends.")
    db.run("ROLLBACK")


def load(server, what, events):
    """Fills the outbox, its copy or the queue; quickly, but on disk in the end."""
    server.db.run("SET synchronous_commit = off", f"CALL load('{what}', {events})",
                  "RESET synchronous_commit",
                  "SELECT pg_logical_emit_message(true, 'bench', '')")


def empty(server):
    """Sends what is pending and forgets the purchases."""
    server.resume()
    server.flush()
    server.db.run("TRUNCATE " + ", ".join(TABLES) + ", queue, copy_of_outbox")
