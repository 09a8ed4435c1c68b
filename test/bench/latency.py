"""From commit to arrival.

"Commit" is when the client has the answer to its COMMIT, "arrival" when the sink
has read the whole body; one clock stamps both.  An arrival before the client's
answer counts as negative.
"""

import array
import os
import subprocess

import cluster
import shop
from recording import in_turn, percentile

# The table that is bought from, and who sends meanwhile; "direct" is the floor:
# the buyer itself, after its commit.
WAYS = {
    "direct": ("bare", None),
    "ours": ("by_id", None),
    "poll": ("queued", ("poll", "100")),
    "listen": ("queued_notify", ("listen",)),
}


class Buyer:
    """test/bench/purchases.c, and what it has noted in the end."""

    def __init__(self, server, table, per_second, count, connections, port=None):
        self.count = count
        self.path = os.path.join(cluster.WORK, "purchases.ns")
        self.process = cluster.program("purchases", server.conninfo, table, per_second, count,
                                       connections, self.path, *([port] if port else []))

    def notes(self):
        """Arrays: when each purchase was due, sent and committed."""
        if self.process.wait() != 0:
            raise subprocess.SubprocessError("the purchases failed")
        flat = array.array("q")
        with open(self.path, "rb") as file:
            flat.fromfile(file, 3 * self.count)
        return flat[::3], flat[1::3], flat[2::3]


def start_consumer(server, sink, way):
    mode = WAYS[way][1]
    return mode and cluster.program("consumer", server.conninfo, sink.url + "/events",
                                    shop.EVENT_AS_SQL, *mode)


def percentiles(values, prefix):
    ordered = sorted(values)
    return {f"{prefix}_{name}": percentile(ordered, share) / 1e6
            for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1))}


def one(server, sink, way, per_second, count, connections):
    """Milliseconds of one way of sending."""
    sink.reset(stamps=True)
    consumer = start_consumer(server, sink, way)
    try:
        buyer = Buyer(server, WAYS[way][0], per_second, count, connections,
                      sink.port if way == "direct" else None)
        _, _, committed = buyer.notes()
        sink.wait_for(count, consumer)
    finally:
        if consumer:
            cluster.end(consumer)
    arrived = sink.arrivals(count)
    shop.empty(server)
    return percentiles([a - c for a, c in zip(arrived, committed)], way)


def beside_open_rows(server, sink, out, size):
    """Idle, while another session has recorded many events and not committed them."""
    for number in range(size.rounds):
        other = server.connect("open_rows")
        other.run("BEGIN", *[shop.RECORD_ALONE] * (size.open_rows // shop.ROWS))
        values = one(server, sink, "ours", 40, size.idle_purchases, 1)
        other.run("ROLLBACK")
        other.close()
        out("beside_open_rows", number, open_rows=size.open_rows, **values)


def measure(server, sink, out, size):
    loads = {
        "idle": (40, size.idle_purchases, 1),
        "busy": (1000, 1000 * size.busy_seconds, 8),
    }
    for load, (per_second, count, connections) in loads.items():
        for number in range(size.rounds):
            values = {}
            for way in in_turn(list(WAYS), number):
                values.update(one(server, sink, way, per_second, count, connections))
            out(load, number, purchases=count, **values)
    beside_open_rows(server, sink, out, size)
