"""The load of a large shop: 1,000 purchases a second, each in a transaction of its own.

What that takes of the processors, of the sessions and of the worker, and how often
the worker wakes up; and, where there is valgrind, how many instructions a session
executes for a purchase, which no other load on the machine changes.
"""

import glob
import os
import re
import shutil
import subprocess
import sys

import cluster
import shop
from recording import in_turn, run_pgbench

PER_SECOND = 1000

# Purchases of one session that are counted, after others to warm up.
COUNTED = 2000
WARM_UP = 500

ONE_SESSION = """SET synchronous_commit = off
SET plan_cache_mode = force_generic_plan
PREPARE buy AS INSERT INTO {table} (purchase_id, installation_id, currency, amount, paid_at) """ \
    """VALUES (gen_random_uuid(), gen_random_uuid(), 'USD', 9.99, now())
"""


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return set(file.read().split())


def ended_cpu_seconds(pid):
    """Processor time of the children that have ended."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def load(server, sink, out, size):
    """Processor time of sessions and worker, and the worker's wake-ups."""
    worker = server.worker()
    postmaster = server.postmaster()
    for number in range(size.rounds):
        values = {}
        for variant in in_turn(["bare", "attached", "attached_distant", "queued"], number):
            before = children(postmaster)
            sessions = ended_cpu_seconds(postmaster)
            cpu = cluster.cpu_seconds(worker)
            switches = cluster.status_number(worker, "voluntary_ctxt_switches")
            said = run_pgbench(server, sink, variant, "-R", str(PER_SECOND),
                               "-T", str(size.pgbench_seconds))
            cluster.wait_until("the sessions to end",
                               lambda before=before: children(postmaster) <= before)
            count = int(re.search(r"actually processed: (\d+)", said)[1])
            values[variant + "_session_us"] = \
                (ended_cpu_seconds(postmaster) - sessions) / count * 1e6
            if variant.startswith("attached"):
                values[variant + "_worker_us"] = (cluster.cpu_seconds(worker) - cpu) / count * 1e6
                values[variant + "_wake_ups"] = PER_SECOND / count * (
                    cluster.status_number(worker, "voluntary_ctxt_switches") - switches)
        out("load", number, **values)


def executed(server, table, purchases):
    """Instructions of a process that makes so many purchases in single-user mode."""
    counts = os.path.join(cluster.WORK, "tmp", "callgrind")
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", f"--callgrind-out-file={counts}",
         shutil.which("postgres"), "--single", "-D", server.data, "shop"],
        input=ONE_SESSION.format(table=table) + "EXECUTE buy\n" * purchases,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    for path in glob.glob(counts + "*"):
        os.remove(path)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or not found or "ERROR:" in done.stderr:
        sys.stderr.write(done.stderr)
        raise cluster.Failure("valgrind failed")
    return int(found[1])


def instructions(server, out):
    """For a purchase, in a session alone and with a worker that does not run."""
    if shutil.which("valgrind") is None:
        return
    server.stop()
    values = {table: (executed(server, table, WARM_UP + COUNTED)
                      - executed(server, table, WARM_UP)) / COUNTED
              for table in ("bare", "attached", "queued")}
    server.start()
    shop.empty(server)
    out("instructions", 0, **values)


def measure(server, sink, out, size):
    load(server, sink, out, size)
    instructions(server, out)
