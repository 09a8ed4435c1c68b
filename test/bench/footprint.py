"""What it takes: WAL, disk, memory, processor time, wake-ups."""

import time

import cluster
import shop
from recording import in_turn

SEGMENTS = """SELECT sum(pg_{what}(inhrelid)) FROM pg_inherits
WHERE inhparent = 'onside_attribution.outbox'::regclass"""


def outbox_bytes(server, what):
    return int(server.db.value(SEGMENTS.format(what=what)))


def wal_and_disk(server, sink, out, size):
    """Bytes for each event, recorded 200,000 at once."""
    for number in range(min(size.rounds, 3)):
        server.pause()
        table, index = (outbox_bytes(server, what) for what in ("relation_size", "indexes_size"))
        wal = {}
        for variant in in_turn(["bare", "attached", "floor", "queued"], number):
            before = server.wal_position()
            server.db.run(shop.BULK[variant])
            wal[variant] = server.wal_position() - before
        values = {
            "wal_ours": wal["attached"] - wal["bare"],
            "wal_floor": wal["floor"],
            "wal_queued": wal["queued"] - wal["bare"],
            "table_ours": outbox_bytes(server, "relation_size") - table,
            "index_ours": outbox_bytes(server, "indexes_size") - index,
        }
        for name, relation in (("floor", "copy_of_outbox"), ("queued", "queue")):
            for part, what in (("table", "relation_size"), ("index", "indexes_size")):
                values[f"{part}_{name}"] = int(
                    server.db.value(f"SELECT pg_{what}('{relation}')"))
        out("bytes", number, **{name: value / shop.ROWS for name, value in values.items()})
        shop.empty(server)


def single_purchases(server, sink, out, size):
    """WAL for each event of purchases that come one at a time, commit included."""
    count = 2000
    for number in range(min(size.rounds, 3)):
        server.pause()
        wal = {}
        for table in in_turn(["bare", "attached", "queued"], number):
            before = server.wal_position()
            server.db.run("SET synchronous_commit = off", f"""DO $$ BEGIN
                FOR i IN 1..{count} LOOP
                    INSERT INTO {table} SELECT {shop.COLUMNS} FROM sample WHERE n = i;
                    COMMIT;
                END LOOP; END $$""", "RESET synchronous_commit")
            wal[table] = server.wal_position() - before
        out("single_bytes", number, wal_ours=(wal["attached"] - wal["bare"]) / count,
            wal_queued=(wal["queued"] - wal["bare"]) / count)
        shop.empty(server)


def restart(server, sink):
    """Stops the server with all that is pending, and starts it again.  Seconds until it
    takes connections, and until the first request has arrived."""
    server.set(onside_attribution__enabled="off")
    server.resume()
    server.stop()
    sink.reset()
    start = time.monotonic_ns()
    server.start(onside_attribution__enabled="on")
    ready = time.monotonic_ns()
    cluster.wait_until("the first request", lambda: sink.counts()["requests"], pause=0.001)
    return (ready - start) / 1e9, (sink.counts()["first"] - start) / 1e9


def memory(server, sink, out, size):
    """The worker's own memory while it works off a large backlog, after a restart."""
    server.pause()
    shop.load(server, "outbox", size.most_pending)
    ready, first = restart(server, sink)
    out("restart", 0, pending=size.most_pending, ready=ready, first=first)
    idle = server.connect()
    idle.value("SELECT 1")
    worker = server.worker()
    most = 0
    while sink.counts()["events"] < size.most_pending:
        most = max(most, cluster.private_memory(worker))
        time.sleep(0.05)
    server.flush()
    out("memory", 0, pending=size.most_pending, worker=most / 2**20,
        idle_backend=cluster.private_memory(idle.pid) / 2**20,
        cpu_per_million=cluster.cpu_seconds(worker) / size.most_pending * 1e6)
    idle.close()
    shop.empty(server)
    server.set(onside_attribution__enabled="on")


def wake_ups(server, sink, out, size):
    """How often a worker with nothing to do looks around."""
    worker = server.worker()
    # What came before is delivered; a small segment stays for a day.
    server.flush()
    time.sleep(20)
    before = cluster.status_number(worker, "voluntary_ctxt_switches")
    cpu = cluster.cpu_seconds(worker)
    time.sleep(size.idle_seconds)
    switches = cluster.status_number(worker, "voluntary_ctxt_switches") - before
    out("wake_ups", 0, per_minute=switches * 60 / size.idle_seconds, seconds=size.idle_seconds,
        cpu_ms_per_minute=(cluster.cpu_seconds(worker) - cpu) * 60000 / size.idle_seconds)


def measure(server, sink, out, size):
    wal_and_disk(server, sink, out, size)
    single_purchases(server, sink, out, size)
    wake_ups(server, sink, out, size)
    memory(server, sink, out, size)
