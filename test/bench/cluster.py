"""The throwaway server, the sink, and what a benchmark asks of them.

Connections are libpq's through ctypes, because that is there wherever
PostgreSQL is and a driver for Python may not be.
"""

import array
import ctypes
import json
import os
import subprocess
import sys
import time
import urllib.request

WORK = os.environ["ONSIDE_WORK"]
BINARIES = os.path.join(WORK, "bench")
LOG = os.path.join(WORK, "server.log")
PATIENCE = 1800

# What a server of this size would have.  Checkpoints stay out of the way, and
# so does the JIT compiler, since not every build has it.  All else is the
# default: fsync, synchronous_commit, full_page_writes and autovacuum are on.
SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "24GB",
    "checkpoint_timeout": "1h",
    "wal_buffers": "16MB",
    "maintenance_work_mem": "256MB",
    "max_connections": "60",
    "jit": "off",
}
SHOWN = list(SETTINGS) + ["fsync", "synchronous_commit", "full_page_writes", "autovacuum",
                          "wal_level", "onside_attribution.batch_max_events",
                          "onside_attribution.max_in_flight",
                          "onside_attribution.segment_size"]


class Failure(Exception):
    pass


def wait_until(what, condition, pause=0.01):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise Failure(f"waited in vain for {what}")
        time.sleep(pause)


# ---------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------

def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def status_number(pid, name):
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        for line in status:
            if line.startswith(name + ":"):
                return int(line.split()[1])
    raise Failure(f"/proc/{pid}/status has no {name}")


def private_memory(pid):
    """Bytes of memory that are the process's own."""
    return 1024 * status_number(pid, "RssAnon")


def program(name, *arguments, **options):
    return subprocess.Popen([os.path.join(BINARIES, name), *map(str, arguments)], **options)


def end(process):
    process.terminate()
    process.wait()


# ---------------------------------------------------------------------------
# libpq
# ---------------------------------------------------------------------------

def load_libpq():
    libdir = subprocess.run(["pg_config", "--libdir"], check=True, capture_output=True,
                            text=True).stdout.strip()
    path = os.path.join(libdir, "libpq.so.5")
    pq = ctypes.CDLL(path if os.path.exists(path) else "libpq.so.5")
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
            ("PQconnectdb", pointer, [text]), ("PQstatus", number, [pointer]),
            ("PQerrorMessage", text, [pointer]), ("PQexec", pointer, [pointer, text]),
            ("PQresultStatus", number, [pointer]), ("PQntuples", number, [pointer]),
            ("PQnfields", number, [pointer]), ("PQclear", None, [pointer]),
            ("PQgetvalue", text, [pointer, number, number]),
            ("PQgetisnull", number, [pointer, number, number]),
            ("PQfinish", None, [pointer]), ("PQbackendPID", number, [pointer])):
        function = getattr(pq, name)
        function.restype = result
        function.argtypes = arguments
    return pq


PQ = load_libpq()


class Connection:
    def __init__(self, conninfo):
        self.handle = PQ.PQconnectdb(conninfo.encode())
        if PQ.PQstatus(self.handle) != 0:
            raise Failure(PQ.PQerrorMessage(self.handle).decode())
        self.pid = PQ.PQbackendPID(self.handle)

    def rows(self, sql):
        result = PQ.PQexec(self.handle, sql.encode())
        try:
            if PQ.PQresultStatus(result) not in (1, 2):
                raise Failure(PQ.PQerrorMessage(self.handle).decode() + sql)
            return [tuple(None if PQ.PQgetisnull(result, row, column)
                          else PQ.PQgetvalue(result, row, column).decode()
                          for column in range(PQ.PQnfields(result)))
                    for row in range(PQ.PQntuples(result))]
        finally:
            PQ.PQclear(result)

    def value(self, sql):
        return self.rows(sql)[0][0]

    def run(self, *commands):
        for sql in commands:
            self.rows(sql)

    def seconds(self, sql):
        start = time.perf_counter()
        self.rows(sql)
        return time.perf_counter() - start

    def close(self):
        PQ.PQfinish(self.handle)
        self.handle = None


# ---------------------------------------------------------------------------
# The sink
# ---------------------------------------------------------------------------

class Sink:
    def __init__(self):
        self.process = program("sink", stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"
        self.open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def get(self, path):
        with self.open(self.url + path, timeout=60) as answer:
            return answer.read()

    def reset(self, delay=0, stamps=False):
        """Forgets all, and answers after so many seconds from now on."""
        self.get(f"/reset?delay_us={round(delay * 1e6)}&stamps={int(stamps)}")

    def counts(self):
        return json.loads(self.get("/counts"))

    def arrivals(self, count):
        """When each of the events 0 to count - 1 arrived first, in ns."""
        flat = array.array("q", self.get("/arrivals"))
        arrived = array.array("q", [0]) * count
        for number, stamp in zip(reversed(flat[::2]), reversed(flat[1::2])):
            if number < count:
                arrived[number] = stamp
        if 0 in arrived:
            raise Failure("a purchase did not arrive")
        return arrived

    def wait_for(self, events, process=None):
        """Waits until so many events have come and are answered; returns the counts."""
        def enough():
            if process and process.poll() not in (None, 0):
                raise Failure("the consumer failed")
            counts = self.counts()
            return counts["events"] >= events and counts["answered"] == counts["requests"]
        wait_until(f"{events} events", enough)
        return self.counts()


# ---------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------

class Server:
    def __init__(self, sink):
        self.data = os.path.join(WORK, "shop")
        self.sockets = os.path.join(WORK, "tmp")
        self.conninfo = f"host={self.sockets} dbname=shop user=bench"
        credentials = os.path.join(WORK, "credentials")
        with open(credentials, "w", opener=lambda path, flags: os.open(path, flags, 0o600),
                  encoding="ascii") as file:
            file.write("bench:bench\n")
        self.command("initdb", "-D", self.data, "-U", "bench", "-A", "trust", "-E", "UTF8",
                     "--locale=C.UTF-8", "--no-sync")
        settings = dict(SETTINGS, **{
            "listen_addresses": "",
            "unix_socket_directories": self.sockets,
            "shared_preload_libraries": "onside_attribution",
            "onside_attribution.endpoint": sink.url + "/events",
            "onside_attribution.credentials_file": credentials,
        })
        with open(os.path.join(self.data, "postgresql.conf"), "a", encoding="ascii") as conf:
            for name, value in settings.items():
                conf.write(f"{name} = '{value}'\n")
        self.db = None
        self.start("postgres")
        self.db.run("CREATE DATABASE shop")
        self.db.close()
        self.db = self.connect()
        self.db.run("CREATE EXTENSION onside_attribution")
        wait_until("the worker", self.worker)

    @staticmethod
    def command(*arguments, **options):
        done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, check=False, **options)
        if done.returncode != 0:
            sys.stderr.write(done.stdout)
            raise Failure(f"{arguments[0]} failed")
        return done.stdout

    def connect(self, name="bench", dbname="shop"):
        return Connection(f"{self.conninfo} dbname={dbname} application_name={name}")

    def start(self, dbname="shop", **settings):
        """With settings that come before those of ALTER SYSTEM."""
        options = " ".join(f"-c {name.replace('__', '.')}={value}"
                           for name, value in settings.items())
        self.command("pg_ctl", "-D", self.data, "-l", LOG, "-w", "-t", "120", "-o", options,
                     "start")
        self.db = self.connect(dbname=dbname)

    def stop(self):
        self.db.close()
        self.command("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")

    def postmaster(self):
        with open(os.path.join(self.data, "postmaster.pid"), encoding="ascii") as file:
            return int(file.readline())

    def set(self, **settings):
        """Sets what a reload is enough for, and sees that it has come into force."""
        for name, value in settings.items():
            name = name.replace("__", ".")
            self.db.run(f"ALTER SYSTEM SET {name} = '{value}'")
            self.db.run("SELECT pg_reload_conf()")
            wait_until(name, lambda name=name, value=value:
                       self.db.value(f"SHOW {name}") == str(value))

    # The extension -----------------------------------------------------------

    def worker(self):
        pid = self.db.value("SELECT worker_pid FROM onside_attribution.status")
        return pid and int(pid)

    def pause(self):
        self.db.run("SELECT onside_attribution.pause('benchmark')")
        wait_until("the pause", lambda: self.db.value(
            "SELECT state = 'paused' AND in_flight = 0 FROM onside_attribution.status") == "t")

    def resume(self):
        self.db.run("SELECT onside_attribution.resume()")

    def flush(self):
        if self.db.value(f"SELECT onside_attribution.flush('{PATIENCE} s')") != "t":
            raise Failure("flush gave up")

    def wal_position(self):
        return int(self.db.value("SELECT pg_current_wal_insert_lsn() - '0/0'"))
