"""While somebody keeps a snapshot open for minutes, and business goes on.

Both ways get the same: purchases at a steady rate, once without and once with a
REPEATABLE READ transaction that has a snapshot and has not touched the outbox
or the queue.  Dead rows and sizes are looked at all the while; how quickly
purchases are recorded and a backlog is sent is measured before, at the end with
the snapshot still open, and after.
"""

import time

import cluster
import latency
import shop
from draining import by_consumer

PER_SECOND = 2000
CONNECTIONS = 16
LOOKS = 30                          # at the tables, while a snapshot is open

TABLES = {
    "ours": """SELECT relid FROM pg_stat_user_tables
        WHERE schemaname = 'onside_attribution'""",
    "poll": "SELECT 'queue'::regclass",
}
LOOK = """SELECT sum(n_dead_tup), sum(pg_total_relation_size(relid))
FROM pg_stat_user_tables WHERE relid IN ({tables})"""


def backlog_rates(server, sink, way):
    """Events/s: recorded in bulk, and sent."""
    table = latency.WAYS[way][0]
    if way == "ours":
        server.pause()
    record = shop.ROWS / server.db.seconds(shop.BULK[table])
    if way == "ours":
        sink.reset()
        start = time.monotonic_ns()
        server.resume()
        drain = shop.ROWS / (sink.wait_for(shop.ROWS)["last"] - start) * 1e9
        server.flush()
    else:
        drain = by_consumer(server, sink, shop.ROWS)["consumer"]
    server.db.run(f"TRUNCATE {table}")
    return record, drain


def rates(server, sink, way, when):
    values = {}
    for number in range(3):
        record, drain = backlog_rates(server, sink, way)
        values[f"record_{when}_{number}"] = record
        values[f"drain_{when}_{number}"] = drain
    return values


def business(server, sink, out, way, seconds, held):
    """Purchases for so long; looks at the tables, and at how late events are."""
    count = int(PER_SECOND * seconds)
    sink.reset(stamps=True)
    consumer = latency.start_consumer(server, sink, way)
    start = time.monotonic()
    buyer = latency.Buyer(server, latency.WAYS[way][0], PER_SECOND, count, CONNECTIONS)
    number = 0
    try:
        while buyer.process.poll() is None:
            if held:
                dead, size = server.db.rows(LOOK.format(tables=TABLES[way]))[0]
                out(f"{way}_over_time", number, seconds=time.monotonic() - start,
                    dead_rows=int(dead), bytes=int(size))
                number += 1
            time.sleep(seconds / LOOKS)
        due, _, committed = buyer.notes()
        sink.wait_for(count, consumer)
    finally:
        if consumer:
            cluster.end(consumer)
    arrived = sink.arrivals(count)
    server.db.run(f"TRUNCATE {latency.WAYS[way][0]}")
    late = [a - c for a, c in zip(arrived, committed)]
    last = late[-len(late) // 4:]
    return {"per_second": count / (max(committed) - due[0]) * 1e9,
            **latency.percentiles(late, "all"), **latency.percentiles(last, "last_quarter")}


def vacuum(server, way):
    """What autovacuum would do to the queue within a minute, were it not for the snapshot."""
    if way == "poll":
        server.db.run("VACUUM queue")


def with_snapshot(server, sink, out, way, size):
    values = rates(server, sink, way, "before")
    vacuum(server, way)
    without = business(server, sink, out, way, 60 * size.snapshot_minutes / 4, False)
    vacuum(server, way)
    holder = server.connect("holder")
    try:
        holder.run("BEGIN ISOLATION LEVEL REPEATABLE READ")
        holder.value("SELECT count(*) FROM pg_class")
        held = business(server, sink, out, way, 60 * size.snapshot_minutes, True)
        values.update(rates(server, sink, way, "with"))
    finally:
        holder.close()
    vacuum(server, way)
    values.update(rates(server, sink, way, "after"))
    values.update({f"without_{name}": value for name, value in without.items()})
    values.update({f"held_{name}": value for name, value in held.items()})
    out(way, 0, minutes=size.snapshot_minutes, **values)
    shop.empty(server)


def measure(server, sink, out, size):
    for way in ("ours", "poll"):
        with_snapshot(server, sink, out, way, size)
