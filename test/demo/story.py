"""The demonstration: a shop, its purchases, and what of them arrives.

A fresh PostgreSQL server with the extension and the sandbox API, both on this
machine alone, live as long as this program.  Each act makes something happen to
the shop and says what can be seen; the last one compares the two sides event by
event.  The exit code is 0 only if all of it was as promised.

Whether a purchase was committed is asked from the shop's own table, and what
arrived is asked from the sandbox, so nothing here believes the extension.
"""

import ctypes
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request

WORK = os.environ["ONSIDE_WORK"]
DATA = os.path.join(WORK, "shop")
CREDENTIALS = os.path.join(WORK, "credentials")

# Nothing succeeds or fails by these: a state that never comes must end, though.
PATIENCE = 60

SHOP = """
CREATE EXTENSION onside_attribution;

CREATE TABLE purchases (
    id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    install_id uuid,
    currency text NOT NULL,
    total numeric(10, 2) NOT NULL,
    status text NOT NULL DEFAULT 'paid',
    paid_at timestamptz NOT NULL DEFAULT now(),
    purchase_uuid uuid NOT NULL DEFAULT gen_random_uuid()
);
"""

ATTACH = """
SELECT onside_attribution.attach('purchases', 'purchase_completed', 'install_id',
           '{"currency": "currency", "amount": "total"}',
           event_datetime => 'paid_at', event_id => 'purchase_uuid');
"""

BUY = """INSERT INTO purchases (install_id, currency, total)
VALUES (gen_random_uuid(), 'USD', 9.99)"""

# pgbench scripts: a purchase, and one that comes to nothing.
PGBENCH_BUY = r"""\set cents random(99, 19999)
INSERT INTO purchases (install_id, currency, total)
    VALUES (gen_random_uuid(), 'EUR', :cents / 100.0);
"""
PGBENCH_ROLLBACK = r"""BEGIN;
INSERT INTO purchases (install_id, currency, total)
    VALUES (gen_random_uuid(), 'EUR', 0.99);
ROLLBACK;
"""


class Screen:
    """What is printed: acts, remarks, a line that moves, and the result."""

    def __init__(self):
        self.live = sys.stdout.isatty()
        self.coloured = self.live and not os.environ.get("NO_COLOR")
        self.drawn = False
        self.last = ""
        self.proofs = []

    def paint(self, text, code):
        return f"\033[{code}m{text}\033[0m" if self.coloured else text

    def say(self, text=""):
        self.finish_line()
        print(text, flush=True)

    def act(self, title):
        self.say()
        self.say(self.paint(title, "1"))

    def code(self, text):
        for line in text.strip().splitlines():
            self.say("    " + self.paint(line, "36"))

    def line(self, text):
        """Draws the moving line; only a terminal sees every state of it."""
        self.last = text
        if self.live:
            print("\r\033[K  " + text, end="", flush=True)
        self.drawn = True

    def finish_line(self):
        if self.drawn:
            print("" if self.live else "  " + self.last, flush=True)
        self.drawn = False

    def prove(self, held, text):
        self.proofs.append(held)
        mark = self.paint("✓", "1;32") if held else self.paint("✗", "1;31")
        self.say(f"  {mark} {text}")

    def result(self):
        failed = self.proofs.count(False)
        self.say()
        if failed:
            self.say(self.paint(f"{failed} of {len(self.proofs)} proofs failed.", "1;31"))
        else:
            self.say(self.paint(f"All {len(self.proofs)} proofs held.", "1;32"))
        return failed == 0


class Sandbox:
    """The sandbox API, test/sandbox."""

    def __init__(self):
        ports = os.path.join(WORK, "ports")
        self.process = subprocess.Popen(
            [sys.executable, "-B", "test/sandbox/sandbox_api.py", "--port-file", ports,
             "--user", "shop", "--password", "secret", "--parent-pid", str(os.getpid())],
            stdin=subprocess.DEVNULL)
        wait_for(lambda: os.path.exists(ports) or self.process.poll() is not None,
                 "the sandbox API")
        with open(ports, encoding="ascii") as file:
            self.port, self.control = map(int, file.read().split())
        self.url = f"http://127.0.0.1:{self.port}/attribution-api/v1/events"
        # No proxy of the environment is asked.
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        with self.opener.open(f"http://127.0.0.1:{self.control}{path}", data, PATIENCE) as reply:
            return json.load(reply)

    def report(self):
        return self.ask("/report")

    def behave(self, *rules):
        self.ask("/behave", list(rules))

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Server:
    """A throwaway PostgreSQL server.  It keeps fsync on: this is about durability."""

    def __init__(self, endpoint):
        with open(CREDENTIALS, "w", encoding="ascii",
                  opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write("shop:secret\n")
        self.run("initdb", "--no-sync", "--auth=trust", "--username=postgres",
                 "--encoding=UTF8", "--no-locale", "-D", DATA)
        with open(os.path.join(DATA, "postgresql.conf"), "a", encoding="ascii") as file:
            file.write(f"""
listen_addresses = ''
unix_socket_directories = '{WORK}'
shared_preload_libraries = 'onside_attribution'
onside_attribution.endpoint = '{endpoint}'
onside_attribution.credentials_file = '{CREDENTIALS}'
""")
        os.environ.update(PGHOST=WORK, PGPORT="5432", PGUSER="postgres", PGDATABASE="postgres")
        self.start()

    @staticmethod
    def run(*command):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}")
        return done.stdout

    def start(self):
        self.run("pg_ctl", "start", "--wait", "--silent", "-D", DATA,
                 "--log", os.path.join(WORK, "shop.log"))

    def stop(self, mode="fast"):
        self.run("pg_ctl", "stop", "--wait", "--silent", "-D", DATA, f"--mode={mode}")

    def sql(self, command):
        return self.run("psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-c", command).strip()

    def status(self):
        return json.loads(self.sql("SELECT row_to_json(s) FROM onside_attribution.status s"))

    def committed(self):
        return int(self.sql("SELECT count(*) FROM purchases"))

    def traffic(self, transactions, rate):
        """Starts four clients who buy, and now and then change their mind."""
        scripts = []
        for name, text, weight in (("buy", PGBENCH_BUY, 9), ("regret", PGBENCH_ROLLBACK, 1)):
            path = os.path.join(WORK, name + ".sql")
            with open(path, "w", encoding="ascii") as file:
                file.write(text)
            scripts += ["-f", f"{path}@{weight}"]
        return subprocess.Popen(
            ["pgbench", "-n", "-c", "4", "-t", str(transactions // 4), "-R", str(rate), *scripts],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Buyer:
    """A client with a connection of its own, by libpq: a psql would have its
    start measured, and what is looked at here takes less than a millisecond."""

    TUPLES_OK = 2

    def __init__(self):
        self.libpq = ctypes.CDLL(os.path.join(Server.run("pg_config", "--libdir").strip(), "libpq.so.5"))
        for name, result, *arguments in (
                ("PQconnectdb", ctypes.c_void_p, ctypes.c_char_p),
                ("PQerrorMessage", ctypes.c_char_p, ctypes.c_void_p),
                ("PQexec", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p),
                ("PQresultStatus", ctypes.c_int, ctypes.c_void_p),
                ("PQgetvalue", ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int),
                ("PQclear", None, ctypes.c_void_p)):
            function = getattr(self.libpq, name)
            function.restype, function.argtypes = result, arguments
        self.connection = self.libpq.PQconnectdb(b"")

    def commit(self, statement):
        """Returns the first value of a statement, and when it had committed."""
        result = self.libpq.PQexec(self.connection, statement.encode())
        committed = time.time()
        if self.libpq.PQresultStatus(result) != self.TUPLES_OK:
            raise RuntimeError(self.libpq.PQerrorMessage(self.connection).decode())
        value = self.libpq.PQgetvalue(result, 0, 0).decode()
        self.libpq.PQclear(result)
        return value, committed


def beside(ms):
    """Of a difference: an event may be there before its client has the answer."""
    return f"{abs(ms):.2f} ms {'before' if ms < 0 else 'after'}"


def wait_for(condition, what):
    """Polls; returns what the condition returned."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {PATIENCE} seconds in vain for {what}")
        time.sleep(0.02)


class Story:
    def __init__(self, screen):
        self.screen = screen
        screen.act("A throwaway server and the sandbox API, both on this machine alone")
        self.sandbox = Sandbox()
        screen.say(f"  the API listens on {self.sandbox.url}")
        self.server = Server(self.sandbox.url)
        screen.say(f"  {self.server.sql('SELECT version()').split(' on ')[0]} "
                   "preloads onside_attribution and sends there")
        self.never = set()

    def tell(self):
        self.set_up_the_shop()
        self.one_purchase()
        self.many_purchases()
        self.rollbacks()
        self.failures()
        self.crash()
        self.compare()
        self.show_status()

    def end(self):
        if os.path.exists(os.path.join(DATA, "postmaster.pid")):
            self.server.stop()
        self.sandbox.stop()

    # -- helpers -----------------------------------------------------------

    def draw(self):
        """The moving line: what is committed, what has arrived."""
        # In this order, or more might seem to arrive than is committed.
        arrived = self.sandbox.report()["distinct"]
        committed = self.server.committed()
        width = 30
        filled = width * arrived // max(committed, arrived, 1)
        self.screen.line(f"committed {committed:6,}   arrived {arrived:6,}   "
                         f"[{'#' * filled}{'.' * (width - filled)}]")
        return committed, arrived

    def draw_until(self, condition, what):
        def step():
            return condition(*self.draw())
        wait_for(step, what)

    def draw_while(self, process):
        self.draw_until(lambda *_: process.poll() is not None, "the end of the traffic")
        if process.returncode:
            raise RuntimeError(f"pgbench ended with {process.returncode}")

    def draw_until_equal(self):
        self.draw_until(lambda committed, arrived: committed == arrived,
                        "the last purchases to arrive")
        if self.server.sql(f"SELECT onside_attribution.flush('{PATIENCE} s')") != "t":
            raise RuntimeError("flush() says that something is not delivered")

    def buy_one(self, buyer):
        """Returns the event_id, and the milliseconds from the moment when the
        client has the answer to its COMMIT to the arrival."""
        uuid, committed = buyer.commit(BUY + " RETURNING purchase_uuid")
        wait_for(lambda: uuid in self.sandbox.ask("/events"), "a purchase to arrive")
        return uuid, (self.sandbox.ask("/arrivals")[uuid][1] - committed) * 1000

    # -- acts --------------------------------------------------------------

    def set_up_the_shop(self):
        self.screen.act("The shop has a table of purchases; one call makes its trigger")
        self.server.sql(SHOP)
        self.screen.code(ATTACH)
        self.server.sql(ATTACH)
        wait_for(lambda: self.server.status()["worker_pid"], "the worker")
        self.screen.say("  no restart: the worker is there since CREATE EXTENSION committed")

    def one_purchase(self):
        self.screen.act("1. One purchase")
        self.screen.code(BUY)
        buyer = Buyer()
        uuid, first = self.buy_one(buyer)
        self.screen.say("  has arrived as")
        self.screen.code(self.text_of(uuid))
        more = [self.buy_one(buyer)[1] for _ in range(20)]
        self.screen.say(f"  {beside(first)} the client had the answer to its COMMIT, connecting to the API "
                        f"included; 20 more, one at a time: median {beside(statistics.median(more))} it")

    def text_of(self, uuid):
        event, = (e for e in self.sandbox.ask("/kept") if e["event_id"] == uuid)
        return json.dumps(event, indent=2)

    def many_purchases(self):
        self.screen.act("2. Four thousand transactions of four clients, one in ten rolled back")
        self.draw_while(self.server.traffic(4000, 2000))
        self.draw_until_equal()
        report = self.sandbox.report()
        self.screen.finish_line()
        self.screen.say(f"  in {report['accepted_requests']:,} requests; "
                        f"the largest had {report['max_events']:,} events")

    def rollbacks(self):
        self.screen.act("3. Rollback")
        before = self.sandbox.report()["distinct"]
        many = BUY + "\nFROM generate_series(1, 1000)"
        many = many.replace("VALUES (gen_random_uuid(), 'USD', 9.99)",
                            "SELECT gen_random_uuid(), 'USD', 9.99")
        rolled_back = self.server.sql(f"BEGIN; {many} RETURNING purchase_uuid; ROLLBACK").split()
        to_savepoint = self.server.sql(
            f"BEGIN; {BUY}; SAVEPOINT s; {many} RETURNING purchase_uuid; "
            "ROLLBACK TO SAVEPOINT s; COMMIT").split()
        self.never.update(rolled_back, to_savepoint)
        self.screen.say(f"  {len(rolled_back):,} purchases rolled back; {len(to_savepoint):,} more "
                        "rolled back to a savepoint, in a transaction that committed one")
        self.draw_until_equal()
        arrived = self.sandbox.ask("/events").keys()
        self.screen.prove(
            len(self.never) == 2000 and not self.never & arrived
            and self.sandbox.report()["distinct"] == before + 1,
            "none of the 2,000 arrived, the one that was committed did")

    def failures(self):
        self.screen.act("4. Under way: answers get lost, the worker is ended, the API is away")
        traffic = self.server.traffic(6000, 1500)
        start = self.server.committed()
        self.draw_until(lambda committed, _: committed > start + 500, "traffic")

        duplicates = self.sandbox.report()["duplicates"]
        self.sandbox.behave({"fault": "reset_after_upload", "accept": True, "times": 2})
        self.draw_until(lambda *_: self.sandbox.report()["duplicates"] > duplicates,
                        "what was accepted without an answer to come again")
        self.screen.say("  - two requests were accepted and their connections cut before the answer:"
                        " only a resend can be sure")

        worker = self.server.status()["worker_pid"]
        self.server.sql(f"SELECT pg_terminate_backend({worker})")
        successor = wait_for(
            lambda: self.server.status()["worker_pid"] not in (None, worker)
            and self.server.status()["worker_pid"], "a new worker")
        self.draw()
        self.screen.say(f"  - worker {worker} was ended, worker {successor} has taken over")

        self.sandbox.behave({"status": 503})
        away_since = self.server.committed()
        self.draw_until(
            lambda committed, _: committed > away_since + 1000
            and self.server.status()["state"] == "backing_off", "the back-off")
        status = self.server.status()
        self.screen.say(f"  - the API answers 503; state {status['state']}, "
                        f"{status['pending']:,} pending, and the shop goes on selling")
        self.sandbox.behave()
        self.draw()
        self.screen.say("  - the API is back")
        self.draw_while(traffic)
        self.draw_until_equal()

    def crash(self):
        self.screen.act("5. The server crashes in the middle of traffic")
        traffic = self.server.traffic(100000, 2000)
        start = self.server.committed()
        self.draw_until(lambda committed, _: committed > start + 1000, "traffic")
        self.server.stop("immediate")
        traffic.wait()
        self.screen.say("  - stopped with -m immediate")
        self.server.start()
        self.screen.say("  - started again")
        self.draw_until_equal()

    def compare(self):
        self.screen.act("What was committed, and what arrived")
        report = self.sandbox.report()
        arrived = self.sandbox.ask("/events")
        committed = set(self.server.sql("SELECT purchase_uuid FROM purchases").split())
        lost = committed - arrived.keys()
        extra = arrived.keys() - committed
        again = sum(1 for count in arrived.values() if count > 1)
        dead = int(self.server.sql("SELECT count(*) FROM onside_attribution.dead_letter"))
        pending = int(self.server.sql("SELECT count(*) FROM onside_attribution.pending"))

        prove = self.screen.prove
        prove(len(committed) > 0 and not lost,
              f"{len(committed):,} purchases were committed, {len(lost):,} of them lost")
        prove(not extra and not self.never & arrived.keys(),
              f"{len(arrived):,} events arrived, {len(extra):,} of them not committed or rolled back")
        prove(report["mismatched"] == 0,
              f"{again:,} events were sent again after a failure, {report['mismatched']:,} of them "
              "with other bytes")
        self.screen.say("    (always with the same event_id, by which the API knows them: counted once)")
        prove(dead == 0 and pending == 0, f"{dead:,} in dead_letter, {pending:,} pending")

    def show_status(self):
        self.screen.act("The view for whoever operates it")
        self.screen.code("SELECT * FROM onside_attribution.status \\gx")
        for line in self.server.run("psql", "-Xqx", "-c",
                                    "SELECT * FROM onside_attribution.status").strip().splitlines():
            self.screen.say("  " + line)


def main():
    # An end from outside takes the same way as any other: through end().
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    screen = Screen()
    story = None
    try:
        story = Story(screen)
        story.tell()
        return 0 if screen.result() else 1
    except RuntimeError as error:
        screen.say(f"The demonstration could not go on: {error}")
        log = os.path.join(WORK, "shop.log")
        if os.path.exists(log):
            with open(log, encoding="utf-8", errors="replace") as file:
                screen.say("The end of the server's log:")
                screen.say("".join(file.readlines()[-30:]))
        return 1
    finally:
        if story:
            story.end()


if __name__ == "__main__":
    sys.exit(main())
