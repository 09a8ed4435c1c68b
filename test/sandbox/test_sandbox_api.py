"""Tests of the sandbox API itself: /usr/bin/python3 -m unittest test_sandbox_api

What the extension's tests conclude rests on this server being as strict as it
says and on each fault being on the wire what its name says.  So everything is
driven through real sockets, and answers are looked at byte by byte.
"""

import base64
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import unittest
import uuid
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
SERVER = os.path.join(HERE, "sandbox_api.py")
PATH = "/attribution-api/v1/events"
LIMIT = 10      # seconds after which anything that is waited for has failed


def event(**changes):
    value = {"event_name": "purchase_completed", "payload": {"amount": "9.99"},
             "event_datetime": "2026-05-05T12:00:00Z",
             "event_id": str(uuid.uuid4()), "installation_id": str(uuid.uuid4())}
    value.update(changes)
    return value


def batch(*events):
    return json.dumps({"events": list(events)}).encode()


def basic(user, password):
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def request(body, method="POST", path=PATH, **headers):
    """Return the bytes of a request; a header that is None is left out."""
    fields = {"Host": "localhost", "Authorization": basic("sandbox", "sandbox"),
              "Content-Type": "application/json", "Content-Length": str(len(body))}
    fields.update({name.replace("_", "-"): value for name, value in headers.items()})
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Answer:
    def __init__(self, stream):
        status_line = stream.readline()
        if not status_line:
            raise EOFError("closed without an answer")
        self.status = int(status_line.split()[1])
        self.headers = {}
        for line in iter(stream.readline, b"\r\n"):
            name, _, value = line.decode("latin-1").partition(":")
            self.headers[name.lower()] = value.strip()
        length = 0 if self.status == 204 else int(self.headers.get("content-length", 0))
        self.body = stream.read(length)

    def error(self):
        return json.loads(self.body)["error"]


class Server:
    def __init__(self, *options):
        self.dir = tempfile.TemporaryDirectory()
        port_file = os.path.join(self.dir.name, "ports")
        self.process = subprocess.Popen(
            [sys.executable, SERVER, "--port-file", port_file, "--parent-pid", str(os.getpid()),
             "--max-lifetime", "120", *options])
        deadline = time.monotonic() + LIMIT
        while not os.path.exists(port_file):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        with open(port_file) as f:
            self.port, self.control_port = map(int, f.read().split())

    def stop(self):
        self.process.terminate()
        self.process.wait(LIMIT)
        self.dir.cleanup()

    def control(self, path, value=None, expect=200):
        conn = http.client.HTTPConnection("127.0.0.1", self.control_port, timeout=LIMIT)
        body = None if value is None else json.dumps(value)
        conn.request("GET" if value is None else "POST", path, body)
        answer = conn.getresponse()
        data = answer.read()
        conn.close()
        if answer.status != expect:
            raise AssertionError(f"{path}: {answer.status} {data!r}")
        return json.loads(data)

    def connect(self):
        return Client(self.port)


class Client:
    def __init__(self, port, context=None):
        self.sock = socket.create_connection(("127.0.0.1", port), LIMIT)
        if context:
            self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
        self.stream = self.sock.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stream.close()
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)

    def post(self, body, **headers):
        self.send(request(body, **headers))
        return Answer(self.stream)

    def rest(self):
        return self.stream.read()


class SandboxTest(unittest.TestCase):
    """One server for all tests of a class, healthy and empty for each."""
    options = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.options)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()

    def setUp(self):
        self.server.control("/behave", [])
        self.server.control("/poison", {})
        self.server.control("/limits", {"max_body": 1000000, "max_events": 1000})
        self.server.control("/credentials", {"user": "sandbox", "password": "sandbox"})
        self.server.control("/reset", {})

    def post(self, body, **headers):
        with self.server.connect() as client:
            return client.post(body, **headers)

    def behave(self, **rule):
        self.server.control("/behave", [rule])

    def report(self):
        return self.server.control("/report")


class Strictness(SandboxTest):
    """Everything that the API's description does not allow is refused."""

    def refused(self, body, words, status=400):
        answer = self.post(body)
        self.assertEqual(answer.status, status, body[:200])
        self.assertIn(words, answer.error())
        self.assertEqual(self.report()["events_accepted"], 0)

    def test_a_good_batch_is_204_without_body(self):
        answer = self.post(batch(event(), event()))
        self.assertEqual((answer.status, answer.body), (204, b""))
        self.assertNotIn("content-length", answer.headers)
        self.assertIn("date", answer.headers)
        self.assertEqual(self.report()["distinct"], 2)

    def test_json(self):
        good = json.dumps(event()).encode()
        for body, words in (
                (b"", "malformed JSON"), (b"{", "malformed JSON"), (b"\xff", "not UTF-8"),
                (b"\xef\xbb\xbf" + batch(event()), "malformed JSON"),
                (b"[]", "top level"), (b"{}", "top level"), (b'{"events":{}}', "top level"),
                (b'{"events":[]}', "at least one"),
                (b'{"x":1,"events":[' + good + b"]}", "top level"),
                (b'{"events":[' + good + b'],"x":1}', "top level"),
                (b'{"events":[' + good + b'],"events":[' + good + b"]}", "top level"),
                (b'{"events":[' + good + b"]}x", "top level"),
                (b'{"events":[' + good + b",]}", "events[1]: malformed"),
                (b'{"events":[' + good + b" " + good + b"]}", "events[0]: malformed"),
                (b'{"events":[' + good + b",3]}", "events[1]: must be an object"),
                (b'{"events":[' + good.replace(b'"9.99"', b"NaN") + b"]}", "events[0]: malformed"),
                (b'{"events":[' + good.replace(b'"9.99"', b"-Infinity") + b"]}", "events[0]: malformed"),
                (b'{"events":[' + good.replace(b'"9.99"', b'"\\ud800"') + b"]}", "surrogate"),
                (b'{"events":[' + good.replace(b'"9.99"', b"[" * 100000) + b"]}", "events[0]: malformed"),
                (b'{"events":[' + good.replace(b'"9.99"', b'1,"amount":2') + b"]}", "duplicate key"),
                (b'{"events":[' + good.replace(b'{"event_name"', b'{"payload":{},"event_name"') + b"]}",
                 "duplicate key")):
            with self.subTest(body=body[:60], words=words):
                self.refused(body, words)

    def test_fields(self):
        upper = str(uuid.uuid4()).upper()
        for field, values in {
                "event_name": ("", 1, None),
                "payload": ([], "x", None, 1),
                "event_id": (str(uuid.uuid1()), upper, uuid.uuid4().hex, "{%s}" % uuid.uuid4(), 1, None,
                             "550e8400-e29b-41d4-c716-446655440000", str(uuid.uuid4()) + "\n"),
                "installation_id": (upper, uuid.uuid4().hex, "", 1, None),
                "event_datetime": ("", "2026-05-05", "2026-05-05T12:00:00", "2026-05-05 12:00:00Z",
                                   "2026-02-30T12:00:00Z", "2026-05-05T25:00:00Z", "2026-05-05T12:00:60Z",
                                   "2026-05-05T12:00:00+24:00", "2026-05-05T12:00:00+02",
                                   "٢٠٢٦-05-05T12:00:00Z", 1777982400, None)}.items():
            for value in values:
                with self.subTest(field=field, value=value):
                    self.refused(batch(event(), event(**{field: value})), f"events[1].{field}:")

    def test_fields_missing_and_unknown(self):
        for field in event():
            short = event()
            del short[field]
            self.refused(batch(short), f"events[0].{field}: is missing")
            # As many fields as there should be, one of them another.
            self.refused(batch(dict(short, other=1)), f"events[0].{field}: is missing")
        self.refused(batch(event(other=1)), "events[0].other: is not a field")

    def test_what_is_allowed(self):
        for changes in ({"installation_id": str(uuid.uuid1())}, {"payload": {}},
                        {"event_datetime": "2026-05-05T12:00:00.123456+05:30"},
                        {"event_datetime": "2024-02-29T23:59:59.1-00:00"},
                        {"event_name": "é\U0001f600"}, {"payload": {"deep": [[{"a": 1}]]}}):
            with self.subTest(changes=changes):
                self.assertEqual(self.post(batch(event(**changes))).status, 204)

    def test_one_event_id_twice_in_a_request(self):
        twice = event()
        self.refused(batch(event(), twice, twice), "events[2].event_id: is the event_id of events[1]")

    def test_too_many_events(self):
        self.assertEqual(self.post(batch(*[event() for _ in range(1000)])).status, 204)
        self.server.control("/reset", {})
        self.refused(batch(*[event() for _ in range(1001)]), "1001", 413)
        self.assertEqual(self.report()["max_events"], 1001)

    def test_too_large_body(self):
        padded = batch(event(payload={"x": ""}))
        fill = 1000000 - len(padded)
        self.refused(padded.replace(b'""', b'"' + b"x" * fill + b'"'), "too large", 413)
        under = padded.replace(b'""', b'"' + b"x" * (fill - 1) + b'"')
        self.assertEqual(self.post(under).status, 204)
        self.assertEqual(self.report()["max_body"], 1000000)

    def test_lowered_limits(self):
        self.server.control("/limits", {"max_body": 300, "max_events": 1})
        self.assertEqual(self.post(batch(event(), event())).status, 413)
        self.server.control("/limits", {"max_body": 1000000})
        self.assertEqual(self.post(batch(event(), event())).status, 413)
        self.assertEqual(self.post(batch(event())).status, 204)

    def test_method_path_type_and_credentials(self):
        good = batch(event())
        with self.server.connect() as client:
            for headers, status in (
                    ({"method": "PUT"}, 405), ({"path": PATH + "/"}, 404), ({"path": PATH + "?a=1"}, 404),
                    ({"Content_Type": None}, 415), ({"Content_Type": "text/json"}, 415),
                    ({"Content_Type": "application/json; charset=latin-1"}, 415),
                    ({"Content_Encoding": "gzip"}, 415),
                    ({"Authorization": None}, 401), ({"Authorization": basic("sandbox", "x")}, 401),
                    ({"Content_Type": "application/json; charset=utf-8"}, 204)):
                with self.subTest(headers=headers):
                    self.assertEqual(client.post(good, **headers).status, status)
            client.send(request(b"", method="GET", Content_Length=None))
            self.assertEqual(Answer(client.stream).headers["allow"], "POST")
        self.assertIn("Basic", self.post(good, Authorization=None).headers["www-authenticate"])

    def test_credentials_change(self):
        self.server.control("/credentials", {"user": "ü", "password": "p:w"})
        self.assertEqual(self.post(batch(event())).status, 401)
        self.assertEqual(self.post(batch(event()), Authorization=basic("ü", "p:w")).status, 204)

    def test_poison(self):
        self.server.control("/poison", {"contains": '"poison"'})
        bad = event(payload={"poison": 1})
        self.refused(batch(event(), bad, event()), "events[1].payload: is poisoned")
        self.assertEqual(self.post(batch(event())).status, 204)
        self.server.control("/poison", {"contains": None})
        self.assertEqual(self.post(batch(bad)).status, 204)

    def test_malformed_http_closes(self):
        for data, status in (
                (b"nonsense\r\n\r\n", 400), (b"POST / HTTP/1.0\r\nHost: x\r\n\r\n", 505),
                (b"POST / HTTP/1.1\r\n\r\n", 400),
                (request(b"", Content_Length=None), 411), (request(b"", Content_Length="-1"), 400),
                (request(b"", Transfer_Encoding="chunked"), 400),
                (request(b"", X="a\nb"), 400), (request(b"").replace(b"Host", b"Host "), 400),
                (request(b"", X="x" * 70000), 431),
                (request(b"zz\r\n", Content_Length=None, Transfer_Encoding="chunked"), 400)):
            with self.subTest(data=data[:60]), self.server.connect() as client:
                client.send(data)
                answer = Answer(client.stream)
                self.assertEqual((answer.status, answer.headers["connection"]), (status, "close"))


class Wire(SandboxTest):
    """Keep-alive, pipelining, chunked bodies, Expect."""

    def test_byte_by_byte(self):
        with self.server.connect() as client:
            for byte in request(batch(event())):
                client.send(bytes((byte,)))
            self.assertEqual(Answer(client.stream).status, 204)

    def test_pipelining(self):
        with self.server.connect() as client:
            client.send(b"".join(request(batch(event())) for _ in range(20)))
            self.assertEqual([Answer(client.stream).status for _ in range(20)], [204] * 20)
        self.assertEqual(self.report()["connections"], 1)

    def test_pipelining_behind_a_delay(self):
        self.behave(times=1, delay=0.2, status=503)
        with self.server.connect() as client:
            client.send(request(batch(event())) + request(batch(event())))
            self.assertEqual([Answer(client.stream).status for _ in range(2)], [503, 204])

    def test_chunked(self):
        body = batch(*[event() for _ in range(50)])
        head = request(b"", Content_Length=None, Transfer_Encoding="chunked")
        for size in (1, 7, 100000):
            chunks = b"".join(b"%X;ext=1\r\n%s\r\n" % (len(body[i:i + size]), body[i:i + size])
                              for i in range(0, len(body), size))
            with self.subTest(size=size), self.server.connect() as client:
                client.send(head + chunks + b"0\r\nTrailer: x\r\n\r\n")
                self.assertEqual(Answer(client.stream).status, 204)
                self.assertEqual(client.post(batch(event())).status, 204)

    def test_chunked_too_large(self):
        with self.server.connect() as client:
            client.send(request(b"", Content_Length=None, Transfer_Encoding="chunked"))
            for _ in range(20):
                client.send(b"%x\r\n%s\r\n" % (65536, b" " * 65536))
            client.send(b"0\r\n\r\n")
            self.assertEqual(Answer(client.stream).status, 413)

    def test_expect(self):
        body = batch(event())
        with self.server.connect() as client:
            client.send(request(body, Expect="100-continue")[:-len(body)])
            self.assertEqual(client.stream.readline(), b"HTTP/1.1 100 Continue\r\n")
            client.stream.readline()
            client.send(body)
            self.assertEqual(Answer(client.stream).status, 204)
        self.assertTrue(self.server.control("/requests")[-1]["expect"])
        with self.server.connect() as client:
            client.send(request(b"", Expect="100-continue", Content_Length="5000000"))
            self.assertEqual(Answer(client.stream).status, 413)

    def test_connection_close(self):
        with self.server.connect() as client:
            client.post(batch(event()), Connection="close")
            self.assertEqual(client.rest(), b"")


class Records(SandboxTest):
    """What arrived is told exactly."""
    options = ("--keep-events", "3")

    def test_counts_arrivals_and_mismatches(self):
        one, two = event(), event()
        before = time.time()
        self.post(batch(one, two))
        self.post(batch(one))
        self.post(batch(dict(two, event_name="other")))
        report = self.report()
        self.assertEqual(
            {k: report[k] for k in ("requests", "accepted_requests", "events_accepted", "distinct",
                                    "duplicates", "mismatched", "max_events", "connections")},
            {"requests": 3, "accepted_requests": 3, "events_accepted": 4, "distinct": 2,
             "duplicates": 2, "mismatched": 1, "max_events": 2, "connections": 3})
        self.assertEqual(self.server.control("/events"), {one["event_id"]: 2, two["event_id"]: 2})
        count, first, last = self.server.control("/arrivals")[one["event_id"]]
        self.assertEqual(count, 2)
        self.assertTrue(before <= first < last <= time.time())

    def test_a_refused_batch_leaves_nothing(self):
        self.post(batch(event(), event(event_name="")))
        self.assertEqual(self.server.control("/events"), {})
        record = self.server.control("/requests")[-1]
        self.assertEqual((record["status"], record["events"], record["accepted"]), (400, 2, False))
        self.assertIn("events[1].event_name", record["error"])

    def test_first_events_are_kept(self):
        events = [event(payload={"n": n}) for n in range(5)]
        self.post(batch(*events))
        self.assertEqual(self.server.control("/kept"), events[:3])

    def test_request_record(self):
        with self.server.connect() as client:
            client.post(batch(event()), User_Agent="me/1")
            client.post(batch(event()))
        first, second = self.server.control("/requests")
        self.assertEqual(first["user_agent"], "me/1")
        self.assertEqual(first["connection"], second["connection"])
        self.assertEqual((first["status"], first["method"], first["path"]), (204, "POST", PATH))
        self.assertGreater(first["duration"], 0)

    def test_concurrency(self):
        self.behave(fault="black_hole")
        with self.server.connect() as one, self.server.connect() as two:
            one.send(request(batch(event())))
            two.send(request(batch(event())))
            self.assertTrue(self.server.control("/wait?requests=2&timeout=10")["reached"])
        self.assertEqual(self.report()["max_concurrent"], 2)

    def test_wait(self):
        self.post(batch(event()))
        self.assertTrue(self.server.control("/wait?distinct=1&timeout=10")["reached"])
        began = time.monotonic()
        self.assertFalse(self.server.control("/wait?distinct=2&timeout=0.2")["reached"])
        self.assertLess(time.monotonic() - began, 5)

    def test_control_refuses_nonsense(self):
        for path, value in (("/behave", {}), ("/behave", [{"fault": "x"}]), ("/behave", [{"x": 1}]),
                            ("/behave", [{"times": "1"}]), ("/poison", {"contains": ""}),
                            ("/behave", [{"fault": "reset_before_read", "match": {}}]),
                            ("/limits", {"max_body": "x"}), ("/credentials", {"user": "x"})):
            with self.subTest(path=path, value=value):
                self.assertIn("error", self.server.control(path, value, expect=400))
        self.server.control("/nowhere", expect=404)


class Faults(SandboxTest):
    """Each fault does on the wire what its name says, and records as written."""

    def exchange(self, **rule):
        """Return all bytes that come back for one good request."""
        self.behave(**rule)
        with self.server.connect() as client:
            client.send(request(batch(event()), Connection="close"))
            return client.rest()

    def assert_reset(self, **rule):
        self.behave(**rule)
        with self.assertRaises(ConnectionResetError), self.server.connect() as client:
            client.send(request(batch(event())))
            client.rest()

    def accepted(self):
        return self.report()["events_accepted"]

    def test_status(self):
        self.behave(times=2, skip=1, status=429, headers={"Retry-After": "2"}, body="slow down")
        with self.server.connect() as client:
            answers = [client.post(batch(event())) for _ in range(4)]
        self.assertEqual([a.status for a in answers], [204, 429, 429, 204])
        self.assertEqual((answers[1].headers["retry-after"], answers[1].body), ("2", b"slow down"))
        self.assertEqual(self.accepted(), 2)
        self.assertEqual(self.server.control("/behave")[0]["used"], 2)

    def test_status_with_accept(self):
        self.behave(status=500, accept=True)
        self.assertEqual(self.post(batch(event())).status, 500)
        self.assertEqual(self.accepted(), 1)
        self.assertEqual(self.post(batch(event(event_name=""))).status, 500)
        self.assertEqual(self.accepted(), 1)

    def test_status_204_is_still_strict(self):
        self.behave(status=204, headers={"X-Extra": "1"})
        self.assertEqual(self.post(batch(event())).headers["x-extra"], "1")
        self.assertEqual(self.post(b"{}").status, 400)

    def test_match(self):
        self.server.control("/behave", [
            {"status": 500, "match": {"contains": "no hex"}}, {"status": 501, "match": {"max_events": 1}},
            {"status": 502, "match": {"min_events": 3}}])
        statuses = [self.post(b).status for b in (
            batch(event(event_name="no hex")), batch(event()), batch(event(), event()),
            batch(event(), event(), event()))]
        self.assertEqual(statuses, [500, 501, 204, 502])

    def test_headers_may_replace_date(self):
        self.behave(status=503, headers={"Date": "Thu, 01 Jan 1970 00:00:00 GMT"})
        self.assertIn("1970", self.post(batch(event())).headers["date"])

    def test_delay_records_on_arrival(self):
        self.behave(delay=0.3)
        with self.server.connect() as client:
            client.send(request(batch(event())))
            self.server.control("/wait?distinct=1&timeout=10")
            self.assertEqual(self.report()["in_progress"], 1)
            self.assertEqual(Answer(client.stream).status, 204)

    def test_reset_before_read(self):
        self.assert_reset(fault="reset_before_read", times=1)
        self.assertEqual(self.post(batch(event())).status, 204)
        self.assertEqual(self.report()["by_fault"], {"reset_before_read": 1})

    def test_reset_before_read_on_a_kept_connection(self):
        with self.server.connect() as client:
            self.assertEqual(client.post(batch(event())).status, 204)
            self.behave(fault="reset_before_read", times=1)
            with self.assertRaises(ConnectionResetError):
                client.post(batch(event()))

    def test_reset_during_upload(self):
        self.behave(fault="reset_during_upload", bytes=10)
        with self.assertRaises(ConnectionResetError), self.server.connect() as client:
            client.send(request(b" " * 10, Content_Length="900000"))
            client.rest()
        record = self.server.control("/requests")[-1]
        self.assertEqual((record["fault"], record["body_bytes"]), ("reset_during_upload", 10))

    def test_reset_after_upload(self):
        self.assert_reset(fault="reset_after_upload")
        self.assertEqual(self.accepted(), 0)
        self.assert_reset(fault="reset_after_upload", accept=True)
        self.assertEqual(self.accepted(), 1)

    def test_close_no_answer(self):
        self.assertEqual(self.exchange(fault="close_no_answer"), b"")

    def test_black_hole(self):
        self.behave(fault="black_hole")
        with self.server.connect() as client:
            client.sock.settimeout(0.3)
            client.send(request(batch(event())))
            with self.assertRaises(TimeoutError if sys.version_info >= (3, 10) else socket.timeout):
                client.sock.recv(1)
        self.assertEqual(self.accepted(), 0)

    def test_slow_loris(self):
        began = time.monotonic()
        data = self.exchange(fault="slow_loris", bytes=200, interval=0.002)
        self.assertEqual(len(data), 200)
        self.assertTrue(data.startswith(b"HTTP/1.1 204 "))
        self.assertNotIn(b"\r\n\r\n", data)
        self.assertGreater(time.monotonic() - began, 0.3)

    def test_endless_headers(self):
        data = self.exchange(fault="endless_headers", bytes=300000)
        self.assertGreater(len(data), 300000)
        self.assertNotIn(b"\r\n\r\n", data)

    def test_endless_body(self):
        data = self.exchange(fault="endless_body", bytes=300000)
        self.assertIn(b"Transfer-Encoding: chunked", data)
        self.assertFalse(data.endswith(b"0\r\n\r\n"))

    def test_an_endless_fault_ends_with_its_client(self):
        self.behave(fault="endless_body")
        with self.server.connect() as client:
            client.send(request(batch(event())))
            client.stream.read(100000)
        deadline = time.monotonic() + LIMIT
        while self.report()["in_progress"] and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertEqual(self.report()["in_progress"], 0)

    def test_garbage(self):
        self.assertFalse(self.exchange(fault="garbage").startswith(b"HTTP"))

    def test_bad_chunk(self):
        self.assertIn(b"\r\n\r\nZZ\r\n", self.exchange(fault="bad_chunk"))

    def test_truncated_body(self):
        head, _, body = self.exchange(fault="truncated_body", status=400).partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 400"))
        self.assertIn(b"Content-Length: 1000", head)
        self.assertLess(len(body), 1000)

    def test_body_on_204(self):
        self.behave(fault="body_on_204", body="hello")
        with self.server.connect() as client:
            answer = client.post(batch(event()))
            self.assertEqual(answer.status, 204)
            self.assertEqual(client.stream.read(5), b"hello")
        self.assertEqual(self.accepted(), 1)

    def test_continue_first(self):
        data = self.exchange(fault="continue_first")
        self.assertEqual([part.split()[1] for part in data.split(b"\r\n\r\n") if part],
                         [b"100", b"103", b"204"])
        self.assertEqual(self.accepted(), 1)

    def test_stale_keepalive(self):
        self.behave(fault="stale_keepalive", times=1)
        with self.server.connect() as client:
            self.assertEqual(client.post(batch(event())).status, 204)
            self.assertEqual(client.rest(), b"")

    def test_stale_keepalive_closes_on_the_next_request(self):
        self.behave(fault="stale_keepalive", times=1, when="next_request")
        with self.server.connect() as client:
            self.assertEqual(client.post(batch(event())).status, 204)
            with self.assertRaises(EOFError):
                client.post(batch(event()))
        self.assertEqual(self.accepted(), 1)

    def test_redirect(self):
        data = self.exchange(fault="redirect", status=307, location="http://127.0.0.1:1/x")
        self.assertTrue(data.startswith(b"HTTP/1.1 307 "))
        self.assertIn(b"Location: http://127.0.0.1:1/x\r\n", data)
        self.assertEqual(self.accepted(), 0)

    def test_no_date(self):
        data = self.exchange(fault="no_date", status=503, headers={"Retry-After": "5"})
        self.assertTrue(data.startswith(b"HTTP/1.1 503 "))
        self.assertNotIn(b"Date:", data)

    def test_big_error(self):
        data = self.exchange(fault="big_error", bytes=3000000)
        self.assertTrue(data.startswith(b"HTTP/1.1 400 "))
        self.assertGreater(len(data), 3000000)

    def test_flap(self):
        self.behave(fault="flap", every=2)
        seen = []
        for _ in range(8):
            try:
                seen.append(self.post(batch(event())).status)
            except ConnectionResetError:
                seen.append(None)
        self.assertEqual(seen, [None, None, 204, 204] * 2)
        self.assertEqual(self.accepted(), 4)

    def test_control_answers_during_faults(self):
        self.behave(fault="black_hole")
        with self.server.connect() as client:
            client.send(request(batch(event())))
            began = time.monotonic()
            self.report()
            self.assertLess(time.monotonic() - began, 2)


class RulesByContent(SandboxTest):
    """A rule finds the events, connections and moments that it is for."""
    options = ("--history",)

    def statuses(self, *bodies):
        with self.server.connect() as client:
            return [client.post(body).status for body in bodies]

    def by(self, **match):
        self.server.control("/behave", [{"status": 500, "match": match}])

    def test_content(self):
        one, other = event(event_name="bad", payload={"a": 1, "b": "x"}), event()
        for match in ({"event_id": one["event_id"]}, {"event_id": [one["event_id"]]},
                      {"event_name": "bad"}, {"payload": {"b": "x"}}, {"payload": {"a": 1, "b": "x"}},
                      {"event_name": "bad", "event_id": one["event_id"]}):
            with self.subTest(match=match):
                self.by(**match)
                self.assertEqual(self.statuses(batch(other), batch(other, one), batch(one)), [204, 500, 500])
        # What is asked of an event is asked of a single one.
        self.by(event_name="bad", event_id=other["event_id"])
        self.assertEqual(self.statuses(batch(other, one)), [204])

    def test_age(self):
        self.by(older_than="2026-05-05T12:00:00Z")
        self.assertEqual(self.statuses(
            batch(event()), batch(event(event_datetime="2026-05-05T11:59:59.9Z")),
            batch(event(event_datetime="2026-05-05T13:59:59+02:00"))), [204, 500, 500])

    def test_position(self):
        self.by(at=2)
        self.assertEqual(self.statuses(batch(event()), batch(event(), event())), [204, 500])
        events = [event() for _ in range(6)]
        self.by(every=3)
        self.assertEqual(self.statuses(*[batch(e) for e in events + events]), [204, 204, 500] * 4)
        self.by(block=[2, 4])
        self.assertEqual(self.statuses(*[batch(e) for e in events + events]),
                         [204, 500, 500, 500, 204, 204] * 2)

    def test_share(self):
        events = [event() for _ in range(400)]
        answers = []
        for share in ([0, 0.25], [0.25, 1]):
            self.by(share=share)
            answers.append(self.statuses(*[batch(e) for e in events]))
        self.assertTrue(all(set(pair) == {204, 500} for pair in zip(*answers)))
        self.assertTrue(50 < answers[0].count(500) < 150)

    def test_moments(self):
        self.server.control("/behave", [{"status": 500, "until": 0.3}, {"status": 501, "from": 3600}])
        self.assertEqual(self.statuses(batch(event())), [500])
        deadline = time.monotonic() + LIMIT
        while self.statuses(batch(event())) == [500] and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(self.statuses(batch(event())), [204])

    def test_connections(self):
        with self.server.connect() as old:
            self.assertEqual(old.post(batch(event())).status, 204)
            self.by(connection_up_to=1)
            self.assertEqual([old.post(batch(event())).status for _ in range(2)], [500, 500])
            self.assertEqual([self.statuses(*[batch(event())] * 2) for _ in range(2)],
                             [[500, 500], [204, 204]])
            self.assertEqual(old.post(batch(event())).status, 500)
        self.by(connection_every=2)
        self.assertEqual([self.statuses(batch(event()))[0] for _ in range(4)], [204, 500] * 2)
        self.behave(fault="reset_before_read", match={"connection_up_to": 1})
        with self.assertRaises(ConnectionResetError):
            self.statuses(batch(event()))
        self.assertEqual(self.statuses(batch(event())), [204])

    def test_draws(self):
        seen = []
        for seed in (1, 1, 2):
            self.server.control("/behave", [{"seed": seed, "chance": 0.5, "one_of": [
                {"status": 500}, {"status": 413}, {"status": 400, "delay": [0, 0.01]}]}])
            seen.append(self.statuses(*[batch(event()) for _ in range(100)]))
        self.assertEqual(set(seen[0]), {204, 400, 413, 500})
        self.assertEqual(seen[0], seen[1])
        self.assertNotEqual(seen[0], seen[2])

    def test_a_header_several_times(self):
        self.behave(status=503, headers={"Retry-After": ["1", "2"]})
        with self.server.connect() as client:
            client.send(request(batch(event()), Connection="close"))
            self.assertIn(b"Retry-After: 1\r\nRetry-After: 2\r\n", client.rest())

    def test_history(self):
        one, two = event(), event()
        self.server.control("/behave", [{"times": 1, "status": 500}, {"times": 1, "fault": "close_no_answer"}])
        self.post(batch(one))
        with self.assertRaises(EOFError):
            self.post(batch(one, two))
        self.post(batch(one))
        known = self.server.control("/history")
        self.assertEqual([[known[e["event_id"]][k] for k in ("came", "first_answer", "last_answer", "accepted")]
                          for e in (one, two)], [[3, "500", "204", True], [1, "none", "none", False]])
        self.assertLess(known[one["event_id"]]["first"], known[one["event_id"]]["last"])

    def test_the_same_event_twice(self):
        one = event()
        self.post(batch(one, one))
        self.behave(fault="black_hole")
        for given_up, twice in ((True, 0), (False, 1)):
            with self.server.connect() as first, self.server.connect() as second:
                seen = self.report()["requests"]
                first.send(request(batch(one)))
                self.server.control(f"/wait?requests={seen + 1}&timeout=10")
                if given_up:
                    first.stream.close()
                    first.sock.close()
                second.send(request(batch(one)))
                self.server.control(f"/wait?requests={seen + 2}&timeout=10")
                self.assertEqual(self.report()["twice_in_flight"], twice)
        self.assertEqual(self.report()["twice_in_request"], 1)

    def test_nonsense(self):
        for rule in ({"match": {"at": 0}}, {"match": {"share": 0.5}}, {"match": {"older_than": "1 h"}},
                     {"one_of": []}, {"one_of": [{"times": 1}]}, {"one_of": [{"fault": "reset_before_read"}]},
                     {"fault": "reset_before_read", "match": {"at": 1}}, {"delay": [2, 1]}, {"chance": 2}):
            with self.subTest(rule=rule):
                self.server.control("/behave", [rule], expect=400)


class Middle(unittest.TestCase):
    """What stands in front: a proxy that may refuse."""

    def setUp(self):
        self.where = tempfile.TemporaryDirectory()
        self.addCleanup(self.where.cleanup)
        self.server = Server()
        self.addCleanup(self.server.stop)

    def start(self, *options):
        port_file = os.path.join(self.where.name, "middle")
        process = subprocess.Popen([sys.executable, "-B", os.path.join(HERE, "middle.py"), *options,
                                    "--port-file", port_file, "--parent-pid", str(os.getpid()),
                                    "--max-lifetime", "60"])
        self.addCleanup(lambda: (process.terminate(), process.wait(LIMIT)))
        deadline = time.monotonic() + LIMIT
        while not os.path.exists(port_file) and time.monotonic() < deadline:
            time.sleep(0.01)
        with open(port_file) as f:
            return int(f.read())

    def test_a_proxy(self):
        answer = os.path.join(self.where.name, "answer")
        port = self.start("--answer", answer, "--user", "u", "--password", "p")
        there = f"127.0.0.1:{self.server.port}"

        def connect(**headers):
            with Client(port) as client:
                client.send(request(b"", "CONNECT", there, Content_Length=None, Authorization=None, **headers))
                status = Answer(client.stream).status
                return client.post(batch(event())).status if status == 200 else status

        self.assertEqual(connect(), 407)
        self.assertEqual(connect(Proxy_Authorization=basic("u", "p")), 204)
        with Client(port) as client:
            self.assertEqual(client.post(batch(event()), path=f"http://{there}{PATH}",
                                         Proxy_Authorization=basic("u", "p")).status, 204)
        with open(answer, "wb") as f:
            f.write(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual(connect(Proxy_Authorization=basic("u", "p")), 502)
        with open(answer + ".log") as f:
            heads = f.read().split("\n\n")[:-1]
        self.assertEqual([head.split()[0] for head in heads], ["CONNECT", "CONNECT", "POST", "CONNECT"])
        self.assertIn("\nProxy-Authorization: " + basic("u", "p"), heads[1])
        self.assertEqual(self.server.control("/report")["events_accepted"], 2)
        with open(answer, "wb") as f:
            f.write(b"\x05\xff")
        with socket.create_connection(("127.0.0.1", port), LIMIT) as client:
            client.sendall(b"\x05\x01\x00")
            self.assertEqual(client.recv(10), b"\x05\xff", "a SOCKS proxy that takes nobody")


class Sink(SandboxTest):
    options = ("--sink",)

    def test_events_are_only_counted(self):
        body = json.dumps({"events": [event(), event()]}, separators=(",", ":")).encode()
        self.assertEqual(self.post(body).status, 204)
        report = self.report()
        self.assertEqual((report["events_accepted"], report["distinct"], report["duplicates"]), (2, 0, 0))
        self.assertTrue(self.server.control("/wait?events=2&timeout=5")["reached"])


class Options(unittest.TestCase):
    """Options that need a server of their own, and its end."""

    def serve(self, *options):
        server = Server(*options)
        self.addCleanup(server.stop)
        return server

    def ends(self, process):
        self.assertEqual(process.wait(LIMIT), 0)

    def test_credentials_file_is_read_again(self):
        with tempfile.NamedTemporaryFile("w") as f:
            f.write("a:b\n")
            f.flush()
            server = self.serve("--credentials-file", f.name)
            with server.connect() as client:
                self.assertEqual(client.post(batch(event()), Authorization=basic("a", "b")).status, 204)
                f.write("never the first line\n")
                f.seek(0)
                f.write("a:c\n")
                f.flush()
                self.assertEqual(client.post(batch(event()), Authorization=basic("a", "b")).status, 401)
                self.assertEqual(client.post(batch(event()), Authorization=basic("a", "c")).status, 204)

    def test_log(self):
        with tempfile.TemporaryDirectory() as where:
            path = os.path.join(where, "log")
            server = self.serve("--log", path)
            one = event()
            with server.connect() as client:
                client.post(batch(one))
            server.control("/report")
            with open(path) as f:
                epoch, event_id, crc = f.read().split()
            self.assertEqual(event_id, one["event_id"])
            self.assertEqual(int(crc, 16), zlib.crc32(json.dumps(one).encode()))
            self.assertLess(abs(float(epoch) - time.time()), 60)

    def test_tls_and_its_reload(self):
        with tempfile.TemporaryDirectory() as where:
            pairs = []
            for name in ("one", "two"):
                cert, key = (os.path.join(where, f"{name}.{kind}") for kind in ("crt", "key"))
                subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                                "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                                "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
                                "-keyout", key, "-out", cert], check=True, capture_output=True)
                pairs.append((cert, key))
            server = self.serve("--tls-cert", pairs[0][0], "--tls-key", pairs[0][1])

            def post(ca):
                with Client(server.port, ssl.create_default_context(cafile=ca)) as client:
                    return client.post(batch(*[event() for _ in range(1000)])).status

            self.assertEqual(post(pairs[0][0]), 204)
            server.control("/tls", {"cert": pairs[1][0], "key": pairs[1][1]})
            with self.assertRaises(ssl.SSLCertVerificationError):
                post(pairs[0][0])
            self.assertEqual(post(pairs[1][0]), 204)
            server.control("/tls", {"cert": "/nonexistent", "key": "/nonexistent"}, expect=400)
            server.control("/behave", [{"fault": "reset_after_upload"}])
            # The ssl module shows a reset as one or the other.
            with self.assertRaises((ConnectionResetError, EOFError)):
                post(pairs[1][0])

    def test_ends_on_sigterm_with_open_connections(self):
        server = self.serve()
        server.control("/behave", [{"fault": "black_hole"}])
        with server.connect() as client:
            client.send(request(batch(event())))
            server.control("/wait?requests=1&timeout=5")
            server.process.send_signal(signal.SIGTERM)
            self.ends(server.process)

    def test_ends_on_stop(self):
        server = self.serve()
        server.control("/stop", {})
        self.ends(server.process)

    def test_ends_with_its_lifetime(self):
        self.ends(self.serve("--max-lifetime", "0.3").process)

    def test_ends_with_its_parent(self):
        other = subprocess.Popen(["sleep", "60"])
        server = self.serve("--parent-pid", str(other.pid))
        other.terminate()
        other.wait()
        self.ends(server.process)


if __name__ == "__main__":
    unittest.main()
