"""An API that is far away: throughput by requests in flight."""

import time

import draining
import shop

IN_FLIGHT = (1, 2, 4, 8, 16)
CONSUMERS = (1, 8)
BATCH = 1000


def by_worker(server, sink, events):
    start = time.monotonic_ns()
    server.resume()
    counts = sink.wait_for(events)
    return events / (counts["last"] - start) * 1e9


def measure(server, sink, out, size):
    usual = server.db.value("SHOW onside_attribution.max_in_flight")
    for delay in (0.05, 0.2):
        name = f"{delay * 1000:.0f}_ms"
        for number in range(min(size.rounds, 3)):
            values = {}
            for in_flight in IN_FLIGHT:
                ideal = in_flight * BATCH / delay
                server.pause()
                server.set(onside_attribution__max_in_flight=in_flight)
                events = whole_batches(min(ideal * size.round_trip_seconds, 1_000_000))
                shop.load(server, "outbox", events)
                sink.reset(delay=delay)
                values[f"ours_{in_flight}"] = by_worker(server, sink, events)
                sink.reset()
                shop.empty(server)
            for processes in CONSUMERS:
                events = whole_batches(processes * BATCH / delay * size.round_trip_seconds)
                shop.load(server, "queue", events)
                values[f"consumer_{processes}"] = draining.by_consumer(
                    server, sink, events, processes, delay)["consumer"]
                sink.reset()
                shop.empty(server)
            out(name, number, delay=delay, **values)
    server.set(onside_attribution__max_in_flight=usual)


def whole_batches(events):
    return max(BATCH, int(events) // BATCH * BATCH)
