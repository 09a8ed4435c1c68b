"""What recording costs: in bulk, at a steady rate, and at full speed."""

import glob
import os
import re

import cluster
import shop

BUY = """INSERT INTO {table} (purchase_id, installation_id, currency, amount, paid_at)
VALUES (gen_random_uuid(), gen_random_uuid(), 'USD', 9.99, now());
"""

# Who sends what is recorded, meanwhile.
CONSUMERS = {"queued": ("poll", "100"), "queued_notify": ("listen",)}


def in_turn(variants, number):
    """The variants in another order each time."""
    first = number % len(variants)
    return variants[first:] + variants[:first]


def bulk(server, sink, out, size):
    variants = ["bare", "attached", "floor", "ready_made", "queued", "queued_notify", "track_loop",
                "mapped", "joined"]
    for number in range(-1, size.rounds):
        server.pause()
        values = {variant: server.db.seconds(shop.BULK[variant])
                  for variant in in_turn(variants, number)}
        if number >= 0:             # the one before is to warm up
            out("bulk", number, events=shop.ROWS, **values)
        shop.empty(server)


def run_pgbench(server, sink, variant, *options):
    """Runs it against a table while somebody sends: to the sink beside it, unless
    the variant says that it is 50 ms away, or that nothing is sent."""
    table = variant.removesuffix("_paused").removesuffix("_distant")
    script = os.path.join(cluster.WORK, "buy.sql")
    with open(script, "w", encoding="ascii") as file:
        file.write(BUY.format(table=table))
    if variant.endswith("_paused"):
        server.pause()
    if variant.endswith("_distant"):
        sink.reset(delay=0.05)
    consumer = None
    if table in CONSUMERS:
        consumer = cluster.program("consumer", server.conninfo, sink.url + "/events",
                                   shop.EVENT_AS_SQL, *CONSUMERS[table])
    try:
        return server.command("pgbench", "-n", "-M", "prepared", "-c", "8", "-j", "2",
                              "-f", script, *options, "-h", server.sockets, "-U", "bench", "shop",
                              cwd=os.path.join(cluster.WORK, "tmp"))
    finally:
        if consumer:
            cluster.end(consumer)
        sink.reset()
        shop.empty(server)


def percentile(ordered, share):
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def steady(server, sink, out, size):
    """1,000 purchases a second: how long does one take?"""
    for number in range(size.rounds):
        values = {}
        for variant in in_turn(["bare", "attached", "queued", "queued_notify"], number):
            run_pgbench(server, sink, variant, "-R", "1000", "-T", str(size.pgbench_seconds), "--log",
                        "--log-prefix=steady")
            took = []
            for path in glob.glob(os.path.join(cluster.WORK, "tmp", "steady.*")):
                with open(path, encoding="ascii") as log:
                    took += [int(line.split()[2]) for line in log]
                os.remove(path)
            took.sort()
            values[variant + "_p50"] = percentile(took, 0.5) / 1000
            values[variant + "_p99"] = percentile(took, 0.99) / 1000
        out("steady", number, **values)


def full_speed(server, sink, out, size):
    """As many purchases as eight clients can make."""
    variants = ["bare", "attached_distant", "attached", "attached_paused", "queued", "queued_notify"]
    for fsync in ("on", "off"):
        server.set(fsync=fsync)
        for number in range(size.rounds):
            values = {}
            for variant in in_turn(variants, number):
                said = run_pgbench(server, sink, variant, "-T", str(size.pgbench_seconds))
                values[variant] = float(re.search(r"tps = ([0-9.]+)", said)[1])
            out("full_speed_fsync_" + fsync, number, **values)
    server.set(fsync="on")


def measure(server, sink, out, size):
    bulk(server, sink, out, size)
    steady(server, sink, out, size)
    full_speed(server, sink, out, size)
