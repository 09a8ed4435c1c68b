"""Measures, in a throwaway copy of the tree; called by test/bench/bench.

Writes one JSON object a line to file descriptor 3: first what was measured
where, then the values of each round of each figure as they come.  What they
mean is report.py's business.
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
import types

import cluster
import shop

BENCHMARKS = ("recording", "everyday", "draining", "latency", "round_trip", "footprint",
              "snapshot")

SIZES = {
    "quick": {
        "rounds": 3,
        "pgbench_seconds": 4,
        "backlog": 200_000,
        "idle_purchases": 200,
        "busy_seconds": 6,
        "round_trip_seconds": 3,
        "most_pending": 500_000,
        "open_rows": 200_000,
        "idle_seconds": 60,
        "snapshot_minutes": 1,
    },
    "full": {
        "rounds": 7,
        "pgbench_seconds": 12,
        "backlog": 1_000_000,
        "idle_purchases": 1500,
        "busy_seconds": 30,
        "round_trip_seconds": 7,
        "most_pending": 10_000_000,
        "open_rows": 2_000_000,
        "idle_seconds": 300,
        "snapshot_minutes": 10,
    },
}


def cpu_model():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        for line in info:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def memory_gb():
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def build():
    """The extension, and the programs of this directory."""
    here = os.path.dirname(os.path.abspath(__file__))
    jobs = f"-j{os.cpu_count()}"
    cluster.Server.command("make", "-s", jobs, "install", "with_llvm=no")
    cluster.Server.command("make", "-s", jobs, "-C", here, f"BINARIES={cluster.BINARIES}")


def machine(server):
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": memory_gb(),
        "kernel": platform.release(),
        "postgresql": server.db.value("SHOW server_version"),
        "settings": {name: server.db.value(f"SHOW {name}") for name in cluster.SHOWN},
        "load_at_start": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", choices=SIZES, default="quick")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK")
    options = parser.parse_args()
    chosen = options.benchmarks or BENCHMARKS
    for name in chosen:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name}; there are " + ", ".join(BENCHMARKS))
    size = types.SimpleNamespace(**SIZES[options.scale])
    if options.rounds:
        size.rounds = options.rounds

    samples = os.fdopen(3, "w", encoding="utf-8")

    def record(**values):
        print(json.dumps(values), file=samples, flush=True)

    build()
    sink = cluster.Sink()
    server = cluster.Server(sink)
    shop.set_up(server)
    record(figure="machine", scale=options.scale, size=vars(size), **machine(server))

    start = time.monotonic()

    def say(text):
        print(f"{time.monotonic() - start:6.0f} s  {text}", flush=True)

    for name in chosen:
        def out(figure, number, name=name, **values):
            record(figure=f"{name}.{figure}", round=number, values=values)
            if figure.endswith("_over_time"):
                return
            say(f"{name}.{figure} {number + 1}: " + ", ".join(
                f"{key} {value:.4g}" for key, value in values.items()
                if isinstance(value, (int, float))))

        server.db.run("CHECKPOINT")
        importlib.import_module(name).measure(server, sink, out, size)
    say("done")
    server.stop()


if __name__ == "__main__":
    try:
        main()
    except (cluster.Failure, subprocess.SubprocessError, OSError) as failure:
        if os.path.exists(cluster.LOG):
            with open(cluster.LOG, encoding="utf-8", errors="replace") as log:
                sys.stderr.writelines(log.readlines()[-20:])
        sys.exit(f"bench: {failure}")
