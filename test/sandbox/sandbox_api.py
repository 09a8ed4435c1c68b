#!/usr/bin/env python3
"""The sandbox API: a strict server of the attribution events API, on loopback.

Tests, the demo and the benchmarks deliver to this server instead of the real
one; `make install` installs it as onside-sandbox, for the tests of shops.  It does two things that a mock usually does not: it refuses everything
that the API's description does not allow, so that a delivery that passes here
is a correct one, and it misbehaves on request in the ways in which networks,
proxies and servers do.

Threads and who owns what
    The main thread runs an asyncio loop with the data listener: each
    connection is a Connection, which parses HTTP/1.1 by hand, because most
    faults are about bytes that an HTTP library would not let us send.
    A second listener, the control port, has a thread per request, so that it
    answers while every data connection hangs in a fault.  They share
        Recorder   what arrived; one lock, held for a batch or for a snapshot
        Rules      how to misbehave; replaced whole by the control thread, its
                   counters are moved by the loop's thread only
        Settings   limits, credentials, poison; single attributes, replaced whole

One request's way
    first byte -> Rules (reset at start) -> head -> Rules (reset in the body)
    -> body whole -> Rules -> checks of the head, then of the events -> Recorder
    -> answer.  A batch is recorded when its body is whole, before any delay of
    the answer: that is what a server does which takes the batch and whose
    answer comes too late.

Speed
    An event costs one call of json's C scanner on the text of the whole body.
    The scanner says where the event ends, so the exact text of each event is a
    slice, and "the second arrival has the same bytes" is one hash of it.  Only
    first arrivals are kept for every event (as a tuple, which the garbage
    collector need not visit); a second arrival makes a second entry.

See docs/sandbox.md for the options and the control protocol.
"""

import argparse
import asyncio
import base64
import collections
import email.utils
import hmac
import http
import http.server
import itertools
import json
import os
import random
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zlib
from datetime import datetime

API_PATH = "/attribution-api/v1/events"
MAX_BODY = 1000000              # a body of this many bytes is refused
MAX_EVENTS = 1000               # more events than this are refused
MAX_HEAD = 65536
DRAIN_LIMIT = 64 * 1024 * 1024  # a refused body is read up to here, see Connection
REQUEST_RECORDS = 10000
FAULT_LIMIT = 120.0             # seconds after which an endless fault ends
PUMP_CHUNK = 16384
RETAINED_INPUT = 4 * 1024 * 1024

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
REQUEST_LINE = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
BARE_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?")
JSON_TYPE = re.compile(r'application/json(?:\s*;\s*charset="?utf-8"?)?', re.I)

PROLOGUE = re.compile(r'[ \t\r\n]*\{[ \t\r\n]*"events"[ \t\r\n]*:[ \t\r\n]*\[[ \t\r\n]*')
SEPARATOR = re.compile(r"[ \t\r\n]*([,\]])[ \t\r\n]*")
EPILOGUE = re.compile(r"\}[ \t\r\n]*\Z")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
HEX4 = "[0-9a-f]{4}"
UUID4 = re.compile(f"{HEX4}{HEX4}-{HEX4}-4[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-{HEX4}{HEX4}{HEX4}")
UUID_ANY = re.compile(f"{HEX4}{HEX4}-{HEX4}-{HEX4}-{HEX4}-{HEX4}{HEX4}{HEX4}")
# The ranges of date and time are left to datetime, which knows the calendar.
DATETIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?"
    r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])")
FIELDS = ("event_name", "payload", "event_datetime", "event_id", "installation_id")


class Refused(Exception):
    """The request is answered with this status; the connection lives on."""

    def __init__(self, status, error, headers=()):
        super().__init__(error)
        self.status = status
        self.error = error
        self.headers = dict(headers)

    def answer(self):
        return Answer(self.status, self.headers, error_body(self.error))


class ProtocolError(Refused):
    """What was sent is not HTTP/1.1: where the next request starts is unknown,
    so the connection is closed after the answer."""


# ---------------------------------------------------------------------------
# Validation: pure functions from the bytes of a body to events or a refusal
# ---------------------------------------------------------------------------

def refuse_constant(token):
    raise ValueError(f"{token} is not JSON")


def unique_object(pairs):
    result = dict(pairs)
    if len(result) != len(pairs):
        seen = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))
        raise ValueError(f"duplicate key {json.dumps(twice)}")
    return result


DECODER = json.JSONDecoder(object_pairs_hook=unique_object, parse_constant=refuse_constant)


def refuse_top_level(text):
    """Find the words for a body that does not begin with {"events": [."""
    try:
        DECODER.decode(text)
    except (ValueError, RecursionError) as e:
        raise Refused(400, f"malformed JSON: {e}")
    raise Refused(400, 'top level: must be exactly {"events": [...]}')


def scan_event(text, pos, index):
    try:
        return DECODER.scan_once(text, pos)
    except StopIteration:
        raise Refused(400, f"events[{index}]: malformed JSON: a value is expected")
    except (ValueError, RecursionError) as e:
        raise Refused(400, f"events[{index}]: malformed JSON: {e}")


def split_events(body):
    """Return the events as (value, exact text) pairs, or raise Refused."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise Refused(400, f"the body is not UTF-8: {e.reason} at byte {e.start}")
    prologue = PROLOGUE.match(text)
    if not prologue:
        refuse_top_level(text)
    pos = prologue.end()
    if text.startswith("]", pos):
        raise Refused(400, "events: must hold at least one event")
    events = []
    while True:
        value, end = scan_event(text, pos, len(events))
        events.append((value, text[pos:end]))
        separator = SEPARATOR.match(text, end)
        if not separator:
            raise Refused(400, f"events[{len(events) - 1}]: malformed JSON: , or ] is expected after it")
        pos = separator.end()
        if separator.group(1) == "]":
            break
    if not EPILOGUE.match(text, pos):
        raise Refused(400, "top level: only } may follow the array of events")
    if SURROGATE.search(text):
        refuse_lone_surrogates(events)
    return events


def refuse_lone_surrogates(events):
    """Half a surrogate pair passes the grammar but is no Unicode text."""
    for index, (value, _) in enumerate(events):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise Refused(400, f"events[{index}]: a \\u escape is half a surrogate pair")


def refuse_event(index, event):
    """Find the words for an event that check_events() did not like."""
    at = f"events[{index}]"
    if type(event) is not dict:
        raise Refused(400, f"{at}: must be an object")
    for field in FIELDS:
        if field not in event:
            raise Refused(400, f"{at}.{field}: is missing")
    for field in event:
        if field not in FIELDS:
            raise Refused(400, f"{at}.{field}: is not a field of an event")
    if type(event["event_name"]) is not str or not event["event_name"]:
        raise Refused(400, f"{at}.event_name: must be a string that is not empty")
    if type(event["payload"]) is not dict:
        raise Refused(400, f"{at}.payload: must be an object")
    for field, pattern, kind in (("event_id", UUID4, "a UUIDv4"),
                                 ("installation_id", UUID_ANY, "a UUID")):
        if type(event[field]) is not str or not pattern.fullmatch(event[field]):
            raise Refused(400, f"{at}.{field}: must be {kind} in canonical lower-case form")
    raise Refused(400, f"{at}.event_datetime: must be an ISO 8601 date and time with Z or an offset")


def check_events(events):
    """Check the five fields of every event; return the event_ids in order."""
    ids = []
    uuid4, uuid_any, iso = UUID4.fullmatch, UUID_ANY.fullmatch, DATETIME.fullmatch
    real = datetime.fromisoformat
    for index, (event, _) in enumerate(events):
        try:
            name = event["event_name"]
            when = event["event_datetime"]
            event_id = event["event_id"]
            good = (len(event) == 5
                    and type(event) is dict
                    and type(name) is str and name
                    and type(event["payload"]) is dict
                    and uuid4(event_id)
                    and uuid_any(event["installation_id"])
                    and iso(when)
                    and real(when[:19]))
        except (KeyError, TypeError, ValueError, IndexError):
            good = False
        if not good:
            refuse_event(index, event)
        ids.append(event_id)
    if len(set(ids)) != len(ids):
        refuse_repeated_id(ids)
    return ids


def refuse_repeated_id(ids):
    seen = {}
    for index, event_id in enumerate(ids):
        if event_id in seen:
            raise Refused(400, f"events[{index}].event_id: is the event_id of events[{seen[event_id]}] too")
        seen[event_id] = index


def check_poison(events, poison):
    for index, (_, raw) in enumerate(events):
        if poison in raw:
            raise Refused(400, f"events[{index}].payload: is poisoned (sandbox rule)")


def parse_events(body):
    """Return the events of a body that need not be valid, as far as they are
    objects with an event_id."""
    try:
        events = json.loads(bytes(body))["events"]
        return [e for e in events if type(e) is dict and type(e.get("event_id")) is str]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def count_events(body):
    """Count the events of a body that is answered without being validated."""
    try:
        return len(json.loads(bytes(body))["events"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0


def error_body(error):
    return (json.dumps({"error": error}) + "\n").encode()


# ---------------------------------------------------------------------------
# Recorder: what arrived
# ---------------------------------------------------------------------------

# Events that passed; in sink mode only their number is known.
Batch = collections.namedtuple("Batch", "count ids events", defaults=((), ()))


class Recorder:
    """What arrived.  Every method takes the lock; none waits for the network."""

    def __init__(self, keep_events, log_path, keep_history=False, show=None):
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.waiters = 0
        self.keep_events = keep_events
        self.keep_history = keep_history
        self.under_way = {}             # event_id -> the connection that it is on
        self.log = open(log_path, "a", buffering=1 << 20) if log_path else None
        self.show = show                # a stream that gets each accepted event's text
        self.started = time.time()
        self.open_connections = 0
        self.accepted_connections = 0   # ever; a reset does not renumber them
        self.in_progress = 0
        self.clear()

    def clear(self):
        with self.lock:
            self.first = {}             # event_id -> (epoch of first arrival, hash)
            self.again = {}             # event_id -> [count, epoch of last arrival]
            self.mismatched = set()
            self.history = {}           # event_id -> what history_of() names
            self.twice_in_request = 0
            self.twice_in_flight = 0
            self.kept = []
            self.records = collections.deque(maxlen=REQUEST_RECORDS)
            self.requests = 0
            self.accepted_requests = 0
            self.events_accepted = 0
            self.connections = 0
            self.max_body = 0
            self.max_events = 0
            self.max_concurrent = 0
            self.by_status = collections.Counter()
            self.by_fault = collections.Counter()
            self.first_arrival = None
            self.last_arrival = None

    def connection_opened(self):
        with self.lock:
            self.connections += 1
            self.open_connections += 1
            self.accepted_connections += 1
            return self.accepted_connections

    def connection_closed(self):
        with self.lock:
            self.open_connections -= 1

    def request_begun(self):
        with self.lock:
            self.in_progress += 1
            self.max_concurrent = max(self.max_concurrent, self.in_progress)

    def request_seen(self, record, batch=None):
        """The request is whole, or will never be: it counts from now on.  Its
        batch, if that is accepted, is recorded in the same step, so that no
        report shows the one without the other."""
        with self.lock:
            if batch:
                self._accept(batch)
            self.requests += 1
            self.records.append(record)
            self.max_body = max(self.max_body, record["body_bytes"])
            self.max_events = max(self.max_events, record["events"])
            if record["fault"]:
                self.by_fault[record["fault"]] += 1
            if record["status"] is not None:
                self.by_status[str(record["status"])] += 1
            if self.waiters:
                self.changed.notify_all()

    def events_came(self, ids, connection):
        """Note that the connection has a request with these events to answer.
        One that another connection has, which its client has not given up, is
        in flight twice."""
        now = time.time()
        with self.lock:
            self.twice_in_request += len(ids) - len(set(ids))
            for event_id in ids:
                other = self.under_way.get(event_id)
                if other is not None and other is not connection and not other.gone():
                    self.twice_in_flight += 1
                self.under_way[event_id] = connection
                entry = self.history.setdefault(event_id, [0, now, now, None, None])
                entry[0] += 1
                entry[2] = now

    def events_answered(self, ids, connection, answer):
        with self.lock:
            for event_id in ids:
                if self.under_way.get(event_id) is connection:
                    del self.under_way[event_id]
                entry = self.history.get(event_id)
                if entry:
                    entry[3] = entry[3] or answer
                    entry[4] = answer

    def history_of(self):
        """Return a snapshot as [(event_id, what is known of it)]."""
        with self.lock:
            history = [(event_id, tuple(entry)) for event_id, entry in self.history.items()]
            accepted = set(self.first)
        for event_id, (came, first, last, first_answer, last_answer) in history:
            yield event_id, {"came": came, "first": first, "last": last,
                             "first_answer": first_answer, "last_answer": last_answer,
                             "accepted": event_id in accepted}

    def request_ended(self, record, status, duration):
        with self.lock:
            self.in_progress -= 1
            record["duration"] = duration
            if record["status"] is None:
                record["status"] = status
                self.by_status["none" if status is None else str(status)] += 1

    def _accept(self, batch):
        now = time.time()
        self.accepted_requests += 1
        self.events_accepted += batch.count
        self.last_arrival = now
        if self.first_arrival is None:
            self.first_arrival = now
        first = self.first
        for event_id, (_, raw) in zip(batch.ids, batch.events):
            if event_id in first:
                self._arrived_again(event_id, raw, now)
                continue
            first[event_id] = (now, hash(raw))
            if len(self.kept) < self.keep_events:
                self.kept.append(raw)
        if self.log:
            self.log.writelines([f"{now:.6f} {event_id} {zlib.crc32(raw.encode()):08x}\n"
                                 for event_id, (_, raw) in zip(batch.ids, batch.events)])
        if self.show:
            self._show(batch)

    def _show(self, batch):
        """Write a line for each event.  Nobody has to read them to the end."""
        try:
            # A line end in JSON is a blank, wherever it may be.
            self.show.writelines((re.sub(r"[\r\n]+", " ", raw) + "\n").encode() for _, raw in batch.events)
            self.show.flush()
        except (OSError, ValueError):
            self.show = None

    def _arrived_again(self, event_id, raw, now):
        entry = self.again.setdefault(event_id, [1, now])
        entry[0] += 1
        entry[1] = now
        if self.first[event_id][1] != hash(raw):
            self.mismatched.add(event_id)

    def report(self):
        with self.lock:
            if self.log:
                self.log.flush()
            return self._report()

    def _report(self):
        distinct = len(self.first)
        # In sink mode nothing is known about repetition.
        repeated = self.events_accepted - distinct if distinct else 0
        return {
            "requests": self.requests,
            "accepted_requests": self.accepted_requests,
            "events_accepted": self.events_accepted,
            "distinct": distinct,
            "duplicates": repeated,
            "mismatched": len(self.mismatched),
            "twice_in_request": self.twice_in_request,
            "twice_in_flight": self.twice_in_flight,
            "max_body": self.max_body,
            "max_events": self.max_events,
            "max_concurrent": self.max_concurrent,
            "in_progress": self.in_progress,
            "connections": self.connections,
            "open_connections": self.open_connections,
            "by_status": dict(self.by_status),
            "by_fault": dict(self.by_fault),
            "first_arrival": self.first_arrival,
            "last_arrival": self.last_arrival,
            "started": self.started,
            "now": time.time(),
        }

    def wait(self, goals, timeout):
        """Return the report as soon as every goal is met or the time is up."""
        def met():
            report = self._report()
            return all(report[name] >= goal for name, goal in goals.items())

        with self.changed:
            self.waiters += 1
            reached = self.changed.wait_for(met, timeout)
            self.waiters -= 1
            return dict(self._report(), reached=bool(reached))

    def arrivals(self):
        """Return a snapshot as [(event_id, count, first, last)]."""
        with self.lock:
            first = list(self.first.items())
            again = {event_id: tuple(entry) for event_id, entry in self.again.items()}
        for event_id, (arrived, _) in first:
            count, last = again.get(event_id, (1, arrived))
            yield event_id, count, arrived, last

    def request_records(self):
        with self.lock:
            return [dict(record) for record in self.records]

    def kept_events(self):
        with self.lock:
            return list(self.kept)

    def close(self):
        with self.lock:
            if self.log:
                self.log.close()
                self.log = None


# ---------------------------------------------------------------------------
# Settings: limits, credentials, poison
# ---------------------------------------------------------------------------

class Settings:
    def __init__(self, options):
        self.max_body = MAX_BODY
        self.max_events = MAX_EVENTS
        self.poison = options.poison
        self.sink = options.sink
        self.credentials_file = options.credentials_file
        self.file_seen = None
        self.set_credentials(options.user, options.password)
        self.read_credentials_file()

    def set_credentials(self, user, password):
        token = base64.b64encode(f"{user}:{password}".encode())
        self.authorization = b"Basic " + token

    def read_credentials_file(self):
        """The file holds user:password in its first line and is read again
        whenever it has become another file."""
        if not self.credentials_file:
            return
        st = os.stat(self.credentials_file)
        identity = (st.st_ino, st.st_size, st.st_mtime_ns)
        if identity == self.file_seen:
            return
        with open(self.credentials_file, encoding="utf-8") as f:
            user, _, password = f.readline().rstrip("\r\n").partition(":")
        self.set_credentials(user, password)
        self.file_seen = identity

    def authorized(self, header):
        self.read_credentials_file()
        scheme, _, token = header.partition(b" ")
        return hmac.compare_digest(scheme.capitalize() + b" " + token.strip(), self.authorization)


# ---------------------------------------------------------------------------
# Rules: how to misbehave
# ---------------------------------------------------------------------------

AT_START, IN_BODY, AT_END = "start", "body", "end"


def is_number(value):
    return type(value) in (int, float) and value >= 0


def is_count(value):
    return type(value) is int and value >= 0


def is_text(value):
    return type(value) is str


def is_ascending(value):
    return type(value) is list and len(value) == 2 and all(map(is_number, value)) and value[0] <= value[1]


def is_header(value):
    return is_text(value) or type(value) is list and all(map(is_text, value))


# What a rule can ask of a request, of its connection, and of an event in it.
REQUEST_MATCHES = {"min_events": is_count, "max_events": is_count, "contains": is_text}
CONNECTION_MATCHES = {"connection_up_to": is_count, "connection_every": lambda v: is_count(v) and v > 0}
EVENT_MATCHES = {
    "event_id": lambda v: is_text(v) or is_header(v),
    "event_name": is_text,
    "payload": lambda v: type(v) is dict,
    "older_than": lambda v: is_text(v) and bool(DATETIME.fullmatch(v)),
    "at": lambda v: is_count(v) and v > 0,
    "every": lambda v: is_count(v) and v > 0,
    "block": is_ascending,
    "share": is_ascending,
}
MATCHES = {**REQUEST_MATCHES, **CONNECTION_MATCHES, **EVENT_MATCHES}


def is_match(value):
    return type(value) is dict and all(k in MATCHES and MATCHES[k](v) for k, v in value.items())


def instant(text):
    return datetime.fromisoformat(re.sub(r"\.[0-9]+", "", text).replace("Z", "+00:00"))


def share_of(event_id):
    """Where an event_id is between 0 and 1, the same in each run."""
    return zlib.crc32(event_id.encode()) / 2 ** 32


RULE_KEYS = {
    "times": lambda v: v is None or is_count(v),
    "skip": is_count,
    "from": is_number,
    "until": is_number,
    "chance": lambda v: is_number(v) and v <= 1,
    "seed": is_count,
    "one_of": lambda v: type(v) is list and bool(v),
    "status": lambda v: type(v) is int and 200 <= v <= 599,
    "headers": lambda v: type(v) is dict and all(map(is_header, v.values())),
    "body": is_text,
    "delay": lambda v: is_number(v) or is_ascending(v),
    "fault": lambda v: v in FAULTS,
    "accept": lambda v: type(v) is bool,
    "match": is_match,
    "bytes": is_count,
    "interval": is_number,
    "after": is_number,
    "when": lambda v: v in ("later", "next_request"),
    "every": lambda v: is_count(v) and v > 0,
    "location": is_text,
}
EARLY_RULE_KEYS = {"times", "skip", "from", "until", "chance", "seed", "fault", "bytes", "match"}
ANSWER_KEYS = set(RULE_KEYS) - {"times", "skip", "from", "until", "chance", "one_of", "match"}


class Request:
    """What rules look at: a body, its events once somebody asks for them, and
    the connection."""

    def __init__(self, connection, body=b""):
        self.connection = connection
        self.body = body
        self._events = None

    def events(self):
        if self._events is None:
            self._events = parse_events(self.body)
        return self._events


class Rule:
    def __init__(self, spec, keys=RULE_KEYS):
        if type(spec) is not dict:
            raise ValueError("a rule must be an object")
        for key, value in spec.items():
            if key not in keys:
                raise ValueError(f"a rule has no key {key}")
            if not RULE_KEYS[key](value):
                raise ValueError(f"{key}: not a value for it: {json.dumps(value)}")
        self.spec = spec
        self.fault = spec.get("fault")
        self.phase = FAULTS[self.fault].phase if self.fault else AT_END
        self.match = spec.get("match") or {}
        self.of_event = {k: v for k, v in self.match.items() if k in EVENT_MATCHES}
        if self.phase != AT_END and not (EARLY_RULE_KEYS.issuperset(spec)
                                         and set(self.match) <= set(CONNECTION_MATCHES)
                                         and ("match" not in spec or self.match)):
            raise ValueError(f"{self.fault} takes only {', '.join(sorted(EARLY_RULE_KEYS))}, "
                             f"and a match only of {', '.join(CONNECTION_MATCHES)}")
        self.choices = [Rule(choice, ANSWER_KEYS) for choice in spec.get("one_of", ())]
        if any(choice.phase != AT_END for choice in self.choices):
            raise ValueError("one_of: the body is read before one is drawn")
        self.random = random.Random(spec.get("seed", 0))
        self.left = spec.get("times")
        self.skip = spec.get("skip", 0)
        self.used = 0

    def get(self, key, default=None):
        value = self.spec.get(key)
        return default if value is None else value

    def delay(self):
        value = self.get("delay", 0)
        return self.random.uniform(*value) if type(value) is list else value

    def matches(self, request, rules):
        return (self._matches_connection(request.connection, rules)
                and self._matches_request(request)
                and (not self.of_event
                     or any(self._matches_event(event, place, rules)
                            for place, event in enumerate(request.events(), 1))))

    def _matches_connection(self, connection, rules):
        number = connection.number - rules.connections_before
        return (number <= self.match.get("connection_up_to", number)
                and number % self.match.get("connection_every", 1) == 0)

    def _matches_request(self, request):
        match = self.match
        if "contains" in match and match["contains"].encode() not in request.body:
            return False
        if "min_events" in match or "max_events" in match:
            events = count_events(request.body)
            return match.get("min_events", 0) <= events <= match.get("max_events", events)
        return True

    def _matches_event(self, event, place, rules):
        return all(self._has(key, value, event, place, rules) for key, value in self.of_event.items())

    @staticmethod
    def _has(key, value, event, place, rules):
        event_id = event["event_id"]
        if key == "event_id":
            return event_id == value or event_id in value
        if key == "event_name":
            return event.get("event_name") == value
        if key == "payload":
            payload = event.get("payload")
            return type(payload) is dict and all(payload.get(k) == v for k, v in value.items())
        if key == "older_than":
            when = event.get("event_datetime")
            return is_text(when) and bool(DATETIME.fullmatch(when)) and instant(when) < instant(value)
        if key == "at":
            return place == value
        if key == "share":
            return value[0] <= share_of(event_id) < value[1]
        number = rules.number_of(event_id)
        return number % value == 0 if key == "every" else value[0] <= number <= value[1]

    def take(self, since):
        """Say whether it is this rule's turn, so many seconds after the rules
        were made, and count it."""
        if not self.get("from", 0) <= since < self.get("until", since + 1):
            return False
        if "chance" in self.spec and self.random.random() >= self.spec["chance"]:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.left is not None:
            self.left -= 1
        self.used += 1
        return True

    def acting(self):
        """The rule that says what is done: this one, or one that it draws."""
        if not self.choices:
            return self
        choice = self.random.choice(self.choices)
        choice.used += 1
        return choice

    def answers_itself(self):
        """True if the answer is the rule's and not what validation says."""
        return self.get("status", 204) != 204

    def records(self):
        if "accept" in self.spec:
            return self.spec["accept"]
        if self.answers_itself() or self.flapped_down():
            return False
        return not self.fault or FAULTS[self.fault].delivers

    def flapped_down(self):
        """True if the request just taken falls into a flap's dead half."""
        return self.fault == "flap" and (self.used - 1) // self.get("every", 1) % 2 == 0

    def describe(self):
        return dict(self.spec, used=self.used, left=self.left)


class Rules:
    """The rules, and what they count from: the moment when they were made, the
    connections until then, and the events as they came since."""

    def __init__(self, specs=(), generation=0, connections_before=0):
        if type(specs) not in (list, tuple):
            raise ValueError("a list of rules is expected")
        self.rules = [Rule(spec) for spec in specs]
        self.generation = generation
        self.connections_before = connections_before
        self.made = time.monotonic()
        self.numbers = {}
        self.numbering = any(k in rule.of_event for rule in self.rules for k in ("every", "block"))

    def number_of(self, event_id):
        return self.numbers.setdefault(event_id, len(self.numbers) + 1)

    def _turn(self, rule):
        return rule.take(time.monotonic() - self.made)

    def pick_early(self, phase, connection):
        """Pick a rule that acts before the body is known.  A rule in front of
        it which is not used up has the first say, and that comes later."""
        for rule in self.rules:
            if rule.left == 0:
                continue
            if rule.phase != phase:
                return None
            if rule.matches(Request(connection), self) and self._turn(rule):
                return rule
        return None

    def pick(self, request):
        if self.numbering:
            for event in request.events():
                self.number_of(event["event_id"])
        for rule in self.rules:
            if (rule.left != 0 and rule.phase == AT_END and rule.matches(request, self)
                    and self._turn(rule)):
                return rule.acting()
        return None

    def describe(self):
        return [rule.describe() for rule in self.rules]


# ---------------------------------------------------------------------------
# HTTP/1.1: heads, bodies, answers
# ---------------------------------------------------------------------------

class Head:
    __slots__ = ("method", "path", "headers", "expect")

    def __init__(self, raw):
        lines = raw.split(b"\r\n")
        match = REQUEST_LINE.fullmatch(lines[0])
        if not match:
            raise ProtocolError(400, "malformed request line")
        if match.group(3, 4) != (b"1", b"1"):
            raise ProtocolError(505, "only HTTP/1.1 is spoken here")
        self.method = match.group(1).decode()
        self.path = match.group(2).decode()
        self.headers = {}
        for line in lines[1:]:
            self._add(line)
        if b"host" not in self.headers:
            raise ProtocolError(400, "the Host header is missing")
        self.expect = b"expect" in self.headers

    def _add(self, line):
        name, colon, value = line.partition(b":")
        if not colon or not TOKEN.fullmatch(name) or BARE_CONTROL.search(value):
            raise ProtocolError(400, "malformed header line")
        name = name.lower()
        if name in self.headers:
            raise ProtocolError(400, f"header {name.decode()} is there twice")
        self.headers[name] = value.strip(b" \t")

    def text(self, name):
        return self.headers.get(name, b"").decode("latin-1")

    def closes(self):
        return "close" in self.text(b"connection").lower()

    def body_reader(self, max_body):
        coding = self.headers.get(b"transfer-encoding")
        length = self.headers.get(b"content-length")
        if coding is not None:
            if length is not None:
                raise ProtocolError(400, "both Content-Length and Transfer-Encoding")
            if coding.lower() != b"chunked":
                raise ProtocolError(501, "unknown Transfer-Encoding")
            return ChunkedBody(max_body)
        if length is None:
            if self.method in ("POST", "PUT", "PATCH"):
                raise ProtocolError(411, "Content-Length is missing")
            length = b"0"
        if not length.isdigit() or len(length) > 15:
            raise ProtocolError(400, "malformed Content-Length")
        return LengthBody(int(length), max_body)


class LengthBody:
    """A body with Content-Length; what is too large is read and dropped."""

    def __init__(self, length, max_body):
        self.left = length
        self.size = 0
        self.too_large = length >= max_body
        self.data = bytearray()

    def take(self, buf):
        """Move what belongs to the body out of buf; True when it is whole."""
        n = min(len(buf), self.left)
        if not self.too_large:
            self.data += buf[:n]
        del buf[:n]
        self.left -= n
        self.size += n
        return self.left == 0

    def hopeless(self):
        return self.left + self.size > DRAIN_LIMIT


class ChunkedBody:
    """A chunked body; `left` is None at a size line, -1 in the trailers, else
    what is missing of the chunk and the line end behind it."""

    def __init__(self, max_body):
        self.max_body = max_body
        self.left = None
        self.size = 0
        self.too_large = False
        self.data = bytearray()

    def take(self, buf):
        while True:
            if self.left is None or self.left == -1:
                line, end, _ = buf.partition(b"\r\n")
                if not end:
                    if len(buf) > 4096:
                        raise ProtocolError(400, "chunk size line or trailer without an end")
                    return False
                del buf[:len(line) + 2]
                if self.left == -1:
                    if not line:
                        return True
                else:
                    self._chunk_begins(line)
            elif not self._chunk_goes_on(buf):
                return False

    def _chunk_begins(self, line):
        match = CHUNK_LINE.fullmatch(line)
        if not match:
            raise ProtocolError(400, "malformed chunk size")
        size = int(match.group(1), 16)
        self.left = size + 2 if size else -1

    def _chunk_goes_on(self, buf):
        n = min(len(buf), self.left - 2)
        if n > 0:
            self.size += n
            self.too_large = self.too_large or self.size >= self.max_body
            if not self.too_large:
                self.data += buf[:n]
            del buf[:n]
            self.left -= n
        if self.left > 2 or len(buf) < 2:
            return False
        if buf[:2] != b"\r\n":
            raise ProtocolError(400, "a chunk is longer than its size says")
        del buf[:2]
        self.left = None
        return True

    def hopeless(self):
        return self.size > DRAIN_LIMIT


class Answer:
    __slots__ = ("status", "headers", "body")

    def __init__(self, status, headers=(), body=b""):
        self.status = status
        self.headers = dict(headers)
        self.body = body

    def closes(self):
        return any(name.lower() == "connection" and value.lower() == "close"
                   for name, value in self.fields())

    def fields(self):
        """The headers; one whose value is a list is there several times."""
        for name, values in self.headers.items():
            for value in values if type(values) is list else (values,):
                yield name, value

    def head(self, *extra, date=True):
        """Return the status line and headers, without the empty line."""
        try:
            reason = http.HTTPStatus(self.status).phrase
        except ValueError:
            reason = "Unknown"
        lines = [f"HTTP/1.1 {self.status} {reason}"]
        if date and not any(name.lower() == "date" for name in self.headers):
            lines.append(f"Date: {http_date()}")
        lines += [f"{name}: {value}" for name, value in self.fields()]
        lines += extra
        return ("\r\n".join(lines) + "\r\n").encode("latin-1")

    def render(self, date=True, head_only=False):
        if self.status == 204:
            return self.head(date=date) + b"\r\n"
        extra = [f"Content-Length: {len(self.body)}"]
        if not any(name.lower() == "content-type" for name in self.headers):
            extra.append("Content-Type: application/json")
        return self.head(*extra, date=date) + b"\r\n" + (b"" if head_only else self.body)


NO_CONTENT = Answer(204)
date_cache = (0, "")


def http_date():
    global date_cache
    now = int(time.time())
    if date_cache[0] != now:
        date_cache = (now, email.utils.formatdate(now, usegmt=True))
    return date_cache[1]


# ---------------------------------------------------------------------------
# Faults that act when the body is whole: coroutines (connection, rule, answer)
# that return the status which they sent, or None.  `answer` is what a healthy
# server would have said.
# ---------------------------------------------------------------------------

async def answer_normally(conn, rule, answer):
    return conn.send(answer)


async def reset_after_upload(conn, rule, answer):
    conn.reset()


async def close_no_answer(conn, rule, answer):
    conn.close()


async def black_hole(conn, rule, answer):
    await asyncio.Event().wait()


async def slow_loris(conn, rule, answer):
    wire = itertools.chain(answer.head(), itertools.cycle(b"X-Slow: yes\r\n"))
    for byte in itertools.islice(wire, rule.get("bytes")):
        if conn.gone():
            break
        conn.write(bytes((byte,)))
        await asyncio.sleep(rule.get("interval", 0.2))
    conn.close()
    return answer.status


async def pump(conn, chunk, limit):
    """Send chunk again and again, no faster than the peer reads."""
    sent = 0
    while not conn.gone() and (limit is None or sent < limit):
        conn.write(chunk)
        sent += len(chunk)
        await conn.writable.wait()
        await asyncio.sleep(0.001)
    conn.close()


async def endless_headers(conn, rule, answer):
    status = rule.get("status", 204)
    conn.write(Answer(status).head())
    line = b"X-Endless: " + b"x" * 100 + b"\r\n"
    await pump(conn, line * (PUMP_CHUNK // len(line)), rule.get("bytes"))
    return status


async def endless_body(conn, rule, answer):
    status = rule.get("status", 503)
    conn.write(Answer(status).head("Transfer-Encoding: chunked") + b"\r\n")
    chunk = b"%x\r\n%s\r\n" % (PUMP_CHUNK, b"x" * PUMP_CHUNK)
    await pump(conn, chunk, rule.get("bytes"))
    return status


async def garbage(conn, rule, answer):
    text = rule.get("body")
    conn.write(b"\x16\x03\x00\xff\xfe not HTTP \x00\r\n\r\n" * 4 if text is None else text.encode("latin-1"))
    conn.close()


async def bad_chunk(conn, rule, answer):
    status = rule.get("status", 503)
    conn.write(Answer(status).head("Transfer-Encoding: chunked") + b"\r\nZZ\r\nhello\r\n0\r\n\r\n")
    conn.close()
    return status


async def truncated_body(conn, rule, answer):
    status = rule.get("status", 503)
    conn.write(Answer(status).head("Content-Length: 1000") + b"\r\n" + b'{"error": "the rest')
    conn.close()
    return status


async def body_on_204(conn, rule, answer):
    if answer.status != 204:
        return conn.send(answer)
    body = rule.get("body", "surprise").encode()
    conn.write(answer.head(f"Content-Length: {len(body)}") + b"\r\n" + body)
    return 204


async def continue_first(conn, rule, answer):
    conn.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    conn.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n")
    return conn.send(answer)


async def stale_keepalive(conn, rule, answer):
    status = conn.send(answer)
    if rule.get("when", "later") == "next_request":
        conn.close_on_next = True
    else:
        conn.loop.call_later(rule.get("after", 0.05), conn.close)
    return status


async def redirect(conn, rule, answer):
    status = rule.get("status", 302)
    headers = {"Location": rule.get("location", "/elsewhere")}
    headers.update(rule.get("headers", {}))
    return conn.send(Answer(status, headers))


async def no_date(conn, rule, answer):
    return conn.send(answer, date=False)


async def big_error(conn, rule, answer):
    body = b"x" * rule.get("bytes", 10 * 1024 * 1024)
    return conn.send(Answer(rule.get("status", 400), {"Content-Type": "text/plain"}, body))


async def flap(conn, rule, answer):
    if conn.flapped_down:
        conn.reset()
        return None
    return conn.send(answer)


class Fault:
    """`delivers`: the client gets the real answer, so the batch is recorded
    unless the rule says otherwise."""

    def __init__(self, play, phase=AT_END, delivers=False):
        self.play = play
        self.phase = phase
        self.delivers = delivers


FAULTS = {
    "reset_before_read": Fault(None, AT_START),
    "reset_during_upload": Fault(None, IN_BODY),
    "reset_after_upload": Fault(reset_after_upload),
    "close_no_answer": Fault(close_no_answer),
    "black_hole": Fault(black_hole),
    "slow_loris": Fault(slow_loris),
    "endless_headers": Fault(endless_headers),
    "endless_body": Fault(endless_body),
    "garbage": Fault(garbage),
    "bad_chunk": Fault(bad_chunk),
    "truncated_body": Fault(truncated_body),
    "body_on_204": Fault(body_on_204, delivers=True),
    "continue_first": Fault(continue_first, delivers=True),
    "stale_keepalive": Fault(stale_keepalive, delivers=True),
    "redirect": Fault(redirect),
    "no_date": Fault(no_date, delivers=True),
    "big_error": Fault(big_error),
    "flap": Fault(flap, delivers=True),
}


# ---------------------------------------------------------------------------
# Connection: one client's connection to the data port
# ---------------------------------------------------------------------------

class Connection(asyncio.Protocol):
    """Requests are handled one after the other; what comes while one is being
    answered (pipelining) waits in buf.

    A request whose head is refused (404, 405, 401, 415) or whose body is too
    large (413) is read to its end before it is answered: a server that answers
    and closes while the client still sends makes the client's kernel throw the
    answer away, and which of both happens would be chance.  With Expect:
    100-continue the client waits, so there the refusal comes at once.
    """

    def __init__(self, sandbox):
        self.sandbox = sandbox
        self.recorder = sandbox.recorder
        self.settings = sandbox.settings
        self.loop = sandbox.loop
        self.buf = bytearray()
        self.writable = asyncio.Event()
        self.writable.set()
        self.task = None
        self.close_on_next = False
        self.flapped_down = False
        self.served = 0
        self._next_request()

    def _next_request(self):
        self.began = None       # monotonic time of the request's first byte
        self.head = None
        self.reader = None
        self.refusal = None     # what the head alone earns, if anything
        self.rule = None
        self.record = None
        self.ids = ()           # of the events that wait for an answer

    @property
    def rules(self):
        return self.sandbox.rules

    # -- transport's side ---------------------------------------------------

    def connection_made(self, transport):
        self.transport = transport
        self.sock = transport.get_extra_info("socket")
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = self.recorder.connection_opened()
        self.sandbox.connections.add(self)
        self.rules_seen = self.rules.generation
        self._reset_at_start()

    def connection_lost(self, exc):
        self.sandbox.connections.discard(self)
        self.recorder.connection_closed()
        self.writable.set()
        if self.task:
            self.task.cancel()
        if self.began is not None:
            if self.record is None:
                self._see(error="the client closed before the request was whole")
            elif self.rule and not self.rule.fault:
                self.record["error"] = "the client closed before the answer"
            self._answered("none")
            self._end(None)

    def pause_writing(self):
        self.writable.clear()

    def resume_writing(self):
        self.writable.set()

    def data_received(self, data):
        self.buf += data
        if self.task is None:
            self.advance()
        elif len(self.buf) > RETAINED_INPUT:
            self.transport.pause_reading()

    def gone(self):
        return self.transport.is_closing()

    def write(self, data):
        # Once the client can read a final status, it may send the events again.
        if self.ids and data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._answered(data[9:12].decode())
        if not self.gone():
            self.transport.write(data)

    def close(self):
        self._answered("none")
        self.transport.close()

    def _answered(self, answer):
        if self.ids:
            self.recorder.events_answered(self.ids, self, answer)
            self.ids = ()

    def reset(self):
        """Close with RST instead of FIN, throwing away what is in flight."""
        self._answered("none")
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass                # the peer has closed it already
        self.transport.abort()

    # -- reading ------------------------------------------------------------

    def advance(self):
        """Go as far as what has arrived allows."""
        try:
            while self.buf and self.task is None and not self.gone():
                if self.began is None and not self._begin():
                    return
                if self.head is None and not self._read_head():
                    return
                if not self._read_body():
                    return
                self._handle()
        except ProtocolError as e:
            self._answer_and_close(e)

    def _begin(self):
        self.began = time.monotonic()
        self.began_at = time.time()
        self.recorder.request_begun()
        if self.close_on_next:
            self._see(fault="stale_keepalive")
            self.close()
            return False
        # connection_made() has asked for the connection's first request.
        if (self.served or self.rules_seen != self.rules.generation) and self._reset_at_start():
            return False
        return True

    def _reset_at_start(self):
        if not self.rules.pick_early(AT_START, self):
            return False
        if self.began is None:
            self.began = time.monotonic()
            self.began_at = time.time()
            self.recorder.request_begun()
        self._see(fault="reset_before_read")
        self.reset()
        return True

    def _read_head(self):
        end = self.buf.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEAD:
            if len(self.buf) > MAX_HEAD:
                raise ProtocolError(431, "the head of the request is too large")
            return False
        raw = bytes(self.buf[:end])
        del self.buf[:end + 4]
        self.head = head = Head(raw)
        self.reader = head.body_reader(self.settings.max_body)
        self.refusal = self._judge_head(head)
        self.rule = self.rules.pick_early(IN_BODY, self)
        if head.expect:
            self._answer_expect()
        if self.reader.hopeless():
            raise ProtocolError(413, "the body is too large")
        return True

    def _judge_head(self, head):
        if head.path != API_PATH:
            return Refused(404, f"there is nothing at {head.path}")
        if head.method != "POST":
            return Refused(405, f"{head.method} is not allowed", {"Allow": "POST"})
        if not self.settings.authorized(head.headers.get(b"authorization", b"")):
            return Refused(401, "the credentials are missing or wrong",
                           {"WWW-Authenticate": 'Basic realm="attribution-api", charset="UTF-8"'})
        if not JSON_TYPE.fullmatch(head.text(b"content-type")):
            return Refused(415, "Content-Type must be application/json")
        if head.text(b"content-encoding") not in ("", "identity"):
            return Refused(415, "no Content-Encoding is understood")
        return None

    def _answer_expect(self):
        if self.head.text(b"expect").lower() != "100-continue":
            raise ProtocolError(417, "only Expect: 100-continue is understood")
        refusal = self.refusal
        if refusal is None and self.reader.too_large:
            refusal = Refused(413, "the body is too large")
        if refusal is None or self.rules.rules:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            raise ProtocolError(refusal.status, refusal.error, refusal.headers)

    def _read_body(self):
        whole = self.reader.take(self.buf)
        if self.rule and (whole or self.reader.size >= self.rule.get("bytes", 1)):
            self._see(fault="reset_during_upload")
            self.reset()
            return False
        if not whole and self.reader.hopeless():
            raise ProtocolError(413, "the body is too large")
        return whole

    # -- deciding and answering ---------------------------------------------

    def _handle(self):
        body = self.reader.data
        request = Request(self, body)
        self.rule = rule = self.rules.pick(request) if self.rules.rules else None
        if self.recorder.keep_history:
            self.ids = [event["event_id"] for event in request.events()]
            self.recorder.events_came(self.ids, self)
        if rule is None:
            answer, count, batch = self._judge(body)
        else:
            answer, count, batch = self._judge_by_rule(rule, body)
        error = None
        if answer.status >= 400 and not (rule and rule.answers_itself()):
            error = json.loads(answer.body)["error"]
        delay = rule.delay() if rule else 0
        at_once = rule is None or not (rule.fault or delay)
        self._see(events=count, batch=batch, error=error, fault=rule.fault if rule else None,
                  status=answer.status if at_once else None)
        if at_once:
            self._end(self.send(answer))
            return
        self.flapped_down = rule.flapped_down()
        self.task = self.loop.create_task(self._play(rule, answer, delay))

    def _judge(self, body):
        """Return the strict server's (answer, number of events, Batch or None)."""
        try:
            if self.refusal:
                raise self.refusal
            if self.reader.too_large:
                raise Refused(413, "the body is too large")
            if self.settings.sink:
                batch = Batch(body.count(b'"event_id":'))
            else:
                batch = self._validate(body)
            return NO_CONTENT, batch.count, batch
        except Refused as e:
            return e.answer(), count_events(body), None

    def _validate(self, body):
        events = split_events(body)
        if len(events) > self.settings.max_events:
            raise Refused(413, f"events: {len(events)} are more than {self.settings.max_events}")
        ids = check_events(events)
        poison = self.settings.poison
        if poison is not None and poison.encode() in body:
            check_poison(events, poison)
        return Batch(len(ids), ids, events)

    def _judge_by_rule(self, rule, body):
        record = rule.records()
        if rule.answers_itself() and not record:
            count, batch = count_events(body), None
        else:
            answer, count, batch = self._judge(body)
        if rule.answers_itself():
            text = rule.get("body")
            answer = Answer(rule.spec["status"], {},
                            error_body("sandbox rule") if text is None else text.encode())
        if rule.get("headers"):
            answer = Answer(answer.status, dict(answer.headers, **rule.spec["headers"]), answer.body)
        return answer, count, batch if record else None

    async def _play(self, rule, answer, delay):
        if delay:
            await asyncio.sleep(delay)
        play = FAULTS[rule.fault].play if rule.fault else answer_normally
        try:
            status = await asyncio.wait_for(play(self, rule, answer), FAULT_LIMIT)
        except asyncio.TimeoutError:
            status = None
            self.close()
        self.task = None
        self._end(status)
        if not self.gone():
            self.transport.resume_reading()
            self.advance()

    def send(self, answer, date=True):
        """Write an answer as it should be; return its status."""
        self.write(answer.render(date=date, head_only=self.head.method == "HEAD"))
        if answer.closes() or self.head.closes():
            self.close()
        return answer.status

    def _answer_and_close(self, refusal):
        refusal.headers["Connection"] = "close"
        self._see(error=refusal.error, status=refusal.status)
        self.write(refusal.answer().render())
        self._end(refusal.status)
        self.close()

    def _see(self, events=0, batch=None, fault=None, error=None, status=None):
        head = self.head
        self.record = {
            "time": self.began_at,
            "connection": self.number,
            "method": head.method if head else None,
            "path": head.path if head else None,
            "status": status,
            "events": events,
            "accepted": batch is not None,
            "body_bytes": self.reader.size if self.reader else 0,
            "duration": None,
            "fault": fault,
            "error": error,
            "expect": head.expect if head else False,
            "user_agent": head.text(b"user-agent") if head else None,
        }
        self.recorder.request_seen(self.record, batch)

    def _end(self, status):
        if self.began is None:
            return
        self.recorder.request_ended(self.record, status, time.monotonic() - self.began)
        self.served += 1
        self._next_request()


# ---------------------------------------------------------------------------
# Control: a thread per request
# ---------------------------------------------------------------------------

class ControlServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host, port, sandbox):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sandbox = sandbox
        super().__init__((host, port), ControlHandler)

    def server_bind(self):
        # HTTPServer's own asks the resolver for the host's name.
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, request, client_address):
        """A client that went away while it was answered is none of our business."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class ControlHandler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self._dispatch({"/report": self.get_report, "/wait": self.get_wait,
                        "/events": self.get_events, "/arrivals": self.get_arrivals,
                        "/kept": self.get_kept, "/requests": self.get_requests,
                        "/history": self.get_history,
                        "/behave": self.get_behave})

    def do_POST(self):
        self._dispatch({"/behave": self.post_behave, "/poison": self.post_poison,
                        "/limits": self.post_limits, "/credentials": self.post_credentials,
                        "/reset": self.post_reset, "/tls": self.post_tls,
                        "/stop": self.post_stop})

    def _dispatch(self, routes):
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query))
        self.sandbox = self.server.sandbox
        self.recorder = self.sandbox.recorder
        handler = routes.get(url.path)
        if handler is None:
            self._reply({"error": f"no {self.command} {url.path}"}, 404)
            return
        try:
            reply = handler()
        except (ValueError, TypeError, KeyError, OSError) as e:
            self._reply({"error": f"{type(e).__name__}: {e}"}, 400)
            return
        if reply is not None:
            self._reply(reply)

    def _reply(self, value, status=200):
        data = (json.dumps(value) + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, opening, pieces, closing):
        """Answer without a length: the end is the end of the connection."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(opening)
        pieces = iter(pieces)
        comma = ""
        while True:
            some = list(itertools.islice(pieces, 5000))
            if not some:
                break
            self.wfile.write((comma + ",\n".join(some)).encode())
            comma = ",\n"
        self.wfile.write(closing)

    def _posted(self):
        length = int(self.headers.get("Content-Length") or 0)
        return json.loads(self.rfile.read(length) or b"{}")

    def _posted_object(self, *keys):
        value = self._posted()
        if type(value) is not dict or not set(value) <= set(keys):
            raise ValueError(f"an object with {', '.join(keys)} is expected")
        return value

    def get_report(self):
        return self.recorder.report()

    def get_wait(self):
        query = dict(self.query)
        timeout = min(float(query.pop("timeout", 30)), 600.0)
        names = {"distinct": "distinct", "requests": "requests", "events": "events_accepted"}
        if not query or not set(query) <= set(names):
            raise ValueError("wait for distinct, requests or events")
        return self.recorder.wait({names[k]: int(v) for k, v in query.items()}, timeout)

    def get_events(self):
        self._stream(b"{", (f'"{event_id}":{count}' for event_id, count, _, _
                            in self.recorder.arrivals()), b"}\n")

    def get_arrivals(self):
        self._stream(b"{", (f'"{event_id}":[{count},{first!r},{last!r}]'
                            for event_id, count, first, last in self.recorder.arrivals()), b"}\n")

    def get_history(self):
        self._stream(b"{", (f'"{event_id}":{json.dumps(known)}'
                            for event_id, known in self.recorder.history_of()), b"}\n")

    def get_kept(self):
        """The events in the very text in which they were sent."""
        self._stream(b"[", self.recorder.kept_events(), b"]\n")

    def get_requests(self):
        self._stream(b"[", map(json.dumps, self.recorder.request_records()), b"]\n")

    def get_behave(self):
        return self.sandbox.rules.describe()

    def post_behave(self):
        self.sandbox.behave(self._posted())
        return self.sandbox.rules.describe()

    def post_poison(self):
        contains = self._posted_object("contains").get("contains")
        if contains is not None and (type(contains) is not str or not contains):
            raise ValueError("contains must be a string that is not empty, or null")
        self.sandbox.settings.poison = contains
        return {"contains": contains}

    def post_limits(self):
        limits = self._posted_object("max_body", "max_events")
        if not all(is_count(v) for v in limits.values()):
            raise ValueError("a limit is a whole number")
        settings = self.sandbox.settings
        settings.max_body = limits.get("max_body", settings.max_body)
        settings.max_events = limits.get("max_events", settings.max_events)
        return {"max_body": settings.max_body, "max_events": settings.max_events}

    def post_credentials(self):
        value = self._posted_object("user", "password")
        self.sandbox.settings.set_credentials(value["user"], value["password"])
        return {"user": value["user"]}

    def post_reset(self):
        self.recorder.clear()
        return {}

    def post_tls(self):
        value = self._posted_object("cert", "key")
        self.sandbox.reload_tls(value["cert"], value["key"])
        return {}

    def post_stop(self):
        self._reply({})
        self.sandbox.stop_from_thread()


# ---------------------------------------------------------------------------
# Sandbox: the parts put together, and their end
# ---------------------------------------------------------------------------

def tls_context(cert, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    context.set_alpn_protocols(["http/1.1"])
    return context


class Sandbox:
    def __init__(self, options):
        self.options = options
        self.recorder = Recorder(options.keep_events, options.log, options.history,
                                 sys.stdout.buffer if options.show_events else None)
        self.settings = Settings(options)
        self.rules = Rules(options.behave)
        self.connections = set()
        self.server = None

    def behave(self, specs):
        self.rules = Rules(specs, self.rules.generation + 1, self.recorder.accepted_connections)

    async def run(self):
        self.loop = asyncio.get_running_loop()
        self.stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self.stopping.set)
        options = self.options
        context = tls_context(options.tls_cert, options.tls_key) if options.tls_cert else None
        self.listener = listen(options.host, options.port)
        await self._serve(context)
        control = ControlServer(options.host, options.control_port, self)
        threading.Thread(target=control.serve_forever, daemon=True).start()
        self._announce(self.listener.getsockname()[1], control.server_port)
        watchers = [self.loop.create_task(self._watch_end())]
        if options.progress:
            watchers.append(self.loop.create_task(Progress(self.recorder).run()))
        await self.stopping.wait()
        self.server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        self.recorder.close()

    async def _serve(self, context):
        """Listen with this TLS context (None: without TLS).  Each server has a
        duplicate of one listening socket, so that a change of certificate
        loses no connection and leaves nothing of the old one behind."""
        old = self.server
        self.server = await self.loop.create_server(
            lambda: Connection(self), sock=self.listener.dup(), ssl=context)
        if old:
            old.close()

    def _announce(self, port, control_port):
        ports = f"{port} {control_port}\n"
        if not self.options.port_file:
            sys.stdout.write(ports)
            sys.stdout.flush()
            return
        partial = f"{self.options.port_file}.{os.getpid()}"
        with open(partial, "w") as f:
            f.write(ports)
        os.replace(partial, self.options.port_file)

    async def _watch_end(self):
        """End with the parent, or when the lifetime is over."""
        deadline = time.monotonic() + (self.options.max_lifetime or float("inf"))
        parent = self.options.parent_pid
        ours = parent is not None and os.getppid() == parent
        while time.monotonic() < deadline:
            if parent is not None and not (os.getppid() == parent if ours else is_alive(parent)):
                break
            await asyncio.sleep(min(1.0, max(0.0, deadline - time.monotonic())))
        self.stopping.set()

    def stop_from_thread(self):
        self.loop.call_soon_threadsafe(self.stopping.set)

    def reload_tls(self, cert, key):
        context = tls_context(cert, key)
        asyncio.run_coroutine_threadsafe(self._serve(context), self.loop).result(10)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def listen(host, port):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(1024)
    return sock


class Progress:
    """One line about what arrives: redrawn on a terminal, else one a second."""

    def __init__(self, recorder):
        self.recorder = recorder
        self.tty = sys.stderr.isatty()
        self.past = collections.deque()     # (time, events) of the last second
        self.shown = None

    async def run(self):
        try:
            while True:
                self.show()
                await asyncio.sleep(0.1 if self.tty else 1.0)
        finally:
            self.show()
            if self.tty:
                sys.stderr.write("\n")

    def show(self):
        r = self.recorder.report()
        state = (r["requests"], r["events_accepted"], r["distinct"])
        line = (f"{r['events_accepted']:,} events  {r['distinct']:,} distinct  "
                f"{r['duplicates']:,} again  {r['requests']:,} requests  "
                f"{self._rate(r['events_accepted']):,.0f} events/s")
        if self.tty:
            sys.stderr.write(f"\r{line}\x1b[K")
        elif state != self.shown:
            sys.stderr.write(line + "\n")
        self.shown = state
        sys.stderr.flush()

    def _rate(self, events):
        now = time.monotonic()
        self.past.append((now, events))
        while len(self.past) > 2 and now - self.past[0][0] > 1.0:
            self.past.popleft()
        since, before = self.past[0]
        return max(0, events - before) / (now - since) if now > since else 0.0


# ---------------------------------------------------------------------------
# The server's own speed
# ---------------------------------------------------------------------------

def bench_event():
    event = {"event_name": "purchase_completed",
             "payload": {"currency": "USD", "amount": "9.99"},
             "event_datetime": "2026-05-05T12:00:00.123456Z",
             "event_id": str(uuid.uuid4()), "installation_id": str(uuid.uuid4())}
    text = json.dumps(event)
    return text[:-1] + " " * (249 - len(text)) + "}"


def bench_request(events):
    body = ('{"events":[' + ",".join(bench_event() for _ in range(events)) + "]}").encode()
    token = base64.b64encode(b"sandbox:sandbox")
    return (b"POST " + API_PATH.encode() + b" HTTP/1.1\r\nHost: localhost\r\n"
            b"Authorization: Basic " + token + b"\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)) + body


def bench_once(requests, flags):
    """Return (seconds, the server's CPU seconds) for sending the requests."""
    with tempfile.TemporaryDirectory() as where:
        port_file = os.path.join(where, "port")
        child = subprocess.Popen([sys.executable, os.path.abspath(__file__), "--port", "0",
                                  "--port-file", port_file, "--max-lifetime", "300",
                                  "--parent-pid", str(os.getpid())] + flags)
        deadline = time.monotonic() + 10
        while not os.path.exists(port_file) and time.monotonic() < deadline:
            time.sleep(0.01)
        with open(port_file) as f:
            port = int(f.read().split()[0])
        sock = socket.create_connection(("127.0.0.1", port))
        answers = sock.makefile("rb")
        began = time.monotonic()
        # One request is always on its way while the server works on another.
        sock.sendall(requests[0])
        for request in requests[1:] + [b""]:
            sock.sendall(request)
            if not answers.readline().startswith(b"HTTP/1.1 204"):
                raise SystemExit("the server refused the benchmark's batch")
            while answers.readline() != b"\r\n":
                pass
        seconds = time.monotonic() - began
        child.send_signal(signal.SIGTERM)
        _, _, usage = os.wait4(child.pid, 0)
        child.returncode = 0
        return seconds, usage.ru_utime + usage.ru_stime


def self_bench(events):
    for size in (1000, 10, 1):
        count = max(size, events if size == 1000 else events // 20 * min(size, 10) // 2)
        requests = [bench_request(size) for _ in range(max(1, count // size))]
        for name, flags in (("strict", []), ("sink", ["--sink"])):
            seconds, cpu = bench_once(requests, flags)
            total = size * len(requests)
            print(f"{name:6}  {size:4} events a request: {total:7} events in {seconds:6.2f} s = "
                  f"{total / seconds:10,.0f} events/s, {len(requests) / seconds:8,.0f} requests/s, "
                  f"server's CPU {cpu:.2f} s (its start included)")


EPILOG = """\
It prints "PORT CONTROL_PORT" when it listens.  Let the extension send there:

  onside_attribution.endpoint = 'http://127.0.0.1:PORT/attribution-api/v1/events'

and ask the control port what arrived, or tell it to misbehave:

  onside-sandbox --control-port PORT --ask '/wait?distinct=1&timeout=10'
  onside-sandbox --control-port PORT --ask /kept
  onside-sandbox --control-port PORT --ask /behave --post '[{"status": 503, "times": 3}]'

docs/sandbox.md has all requests and rules; Debian has it in /usr/share/doc/onside-sandbox."""


def rules_of(text):
    """The rules of --behave, as POST /behave takes them."""
    try:
        specs = json.loads(text)
        Rules(specs)
    except (ValueError, TypeError, KeyError) as e:
        raise argparse.ArgumentTypeError(f"these are no rules: {e}")
    return specs


def parse_options(argv):
    p = argparse.ArgumentParser(
        prog="onside-sandbox", epilog=EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="A strict server of the Onside attribution events API on loopback, for tests.")
    p.add_argument("--host", choices=("127.0.0.1", "::1"), default="127.0.0.1", help="where it listens")
    p.add_argument("--port", type=int, default=0, help="the API's port; 0 picks a free one")
    p.add_argument("--control-port", type=int, default=0, help="the control port, likewise")
    p.add_argument("--port-file", help='gets "PORT CONTROL_PORT"; without it they go to stdout')
    p.add_argument("--user", default="sandbox", help="whom it knows (sandbox)")
    p.add_argument("--password", default="sandbox", help="and by which password (sandbox)")
    p.add_argument("--credentials-file", help="user:password in the first line; read again when it changes")
    p.add_argument("--show-events", action="store_true", help="print each accepted event, a line of JSON")
    p.add_argument("--progress", action="store_true", help="show on stderr how much arrives")
    p.add_argument("--behave", metavar="RULES", type=rules_of, default=[],
                   help="how to misbehave: a JSON array of rules")
    p.add_argument("--poison", metavar="TEXT", help="refuse events whose text contains this")
    p.add_argument("--sink", action="store_true", help="count events, do not look at them")
    p.add_argument("--keep-events", type=int, metavar="N", default=1000,
                   help="how many first events are kept whole (1000)")
    p.add_argument("--history", action="store_true", help="note of each event how often it came and its answers")
    p.add_argument("--log", metavar="FILE", help="append a line 'epoch event_id crc32' for each accepted event")
    p.add_argument("--tls-cert", metavar="FILE", help="speak TLS with this certificate, in PEM")
    p.add_argument("--tls-key", metavar="FILE", help="its key")
    p.add_argument("--parent-pid", metavar="PID", type=int, help="end when this process does")
    p.add_argument("--max-lifetime", metavar="SECONDS", type=float, default=0, help="end after so long; 0: do not")
    p.add_argument("--ask", metavar="REQUEST",
                   help="do not serve: print what a sandbox's control port answers to this, such as /report; "
                        "the exit status is 1 if it refuses, or if what /wait waits for does not come")
    p.add_argument("--post", metavar="JSON", help="with --ask: POST this rather than GET")
    p.add_argument("--self-bench", type=int, nargs="?", const=200000, metavar="EVENTS",
                   help="measure the server's own speed and end")
    options = p.parse_args(argv)
    if bool(options.tls_cert) != bool(options.tls_key):
        p.error("--tls-cert and --tls-key go together")
    if options.poison == "":
        p.error("--poison must not be empty")
    if options.ask and not options.control_port:
        p.error("--ask needs the --control-port of the sandbox to ask")
    if options.post is not None and not options.ask:
        p.error("--post goes with --ask")
    return options


def ask(options):
    """Print what a running sandbox says; return the exit status."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    # No proxy of the environment is for loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = None if options.post is None else options.post.encode()
    try:
        with opener.open(f"http://{host}:{options.control_port}{options.ask}", body) as reply:
            text = reply.read().decode()
    except urllib.error.HTTPError as e:
        sys.stderr.write(e.read().decode())
        return 1
    except (OSError, ValueError) as e:
        sys.stderr.write(f"onside-sandbox: {options.ask}: {e}\n")
        return 1
    sys.stdout.buffer.write(text.encode())
    answer = json.loads(text)
    return 1 if type(answer) is dict and answer.get("reached") is False else 0


def main():
    options = parse_options(sys.argv[1:])
    if options.self_bench:
        self_bench(options.self_bench)
        return 0
    if options.ask:
        return ask(options)
    asyncio.run(Sandbox(options).run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
