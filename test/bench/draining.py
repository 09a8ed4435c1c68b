"""How quickly a backlog is sent to an API that costs nothing."""

import subprocess
import time

import cluster
import shop
from recording import in_turn

COPY = f"COPY (SELECT {shop.EVENT_AS_SQL} FROM copy_of_outbox) TO '/dev/null'"


def by_copy(server, sink, events):
    """The floor: one backend reads the same rows and makes the same bytes."""
    server.db.run("SET max_parallel_workers_per_gather = 0")
    seconds = server.db.seconds(COPY)
    server.db.run("RESET max_parallel_workers_per_gather")
    return {"copy": events / seconds}


def by_worker(server, sink, events):
    worker = server.worker()
    sink.reset()
    cpu = cluster.cpu_seconds(worker)
    sink_cpu = cluster.cpu_seconds(sink.process.pid)
    start = time.monotonic_ns()
    server.resume()
    counts = sink.wait_for(events)
    server.flush()
    return {"ours": events / (counts["last"] - start) * 1e9,
            "requests": counts["requests"],
            "bytes_per_event": counts["bytes"] / counts["events"],
            "cpu_per_million": (cluster.cpu_seconds(worker) - cpu) / events * 1e6,
            "sink_cpu_per_million":
                (cluster.cpu_seconds(sink.process.pid) - sink_cpu) / events * 1e6}


def by_consumer(server, sink, events, processes=1, delay=0):
    """The alternative, which ends when the queue is empty."""
    sink.reset(delay=delay)
    start = time.monotonic_ns()
    consumers = [cluster.program("consumer", server.conninfo, sink.url + "/events",
                                 shop.EVENT_AS_SQL, "once", stdout=subprocess.PIPE, text=True)
                 for _ in range(processes)]
    said = [consumer.communicate()[0] for consumer in consumers]
    elapsed = time.monotonic_ns() - start
    if any(consumer.returncode for consumer in consumers) or sink.counts()["events"] != events:
        raise cluster.Failure("the consumer did not send what there was")
    return {"consumer": events / elapsed * 1e9,
            "consumer_cpu_per_million": sum(map(float, said)) / events * 1e6}


def measure(server, sink, out, size):
    events = size.backlog
    ways = [by_copy, by_worker, by_consumer]
    for number in range(size.rounds):
        server.pause()
        for what in ("outbox", "copy_of_outbox", "queue"):
            shop.load(server, what, events)
        server.db.run("ANALYZE queue")
        values = {}
        for way in in_turn(ways, number):
            values.update(way(server, sink, events))
        out("drain", number, events=events, **values)
        shop.empty(server)
