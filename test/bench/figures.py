"""What the figures are: from the values of the rounds to medians and targets."""

import collections
import statistics


class Spread:
    """Median, least and greatest of what the rounds gave."""

    def __init__(self, values):
        self.median = statistics.median(values)
        self.least = min(values)
        self.greatest = max(values)


class Results:
    """The samples of a run: by figure, the values of each round."""

    def __init__(self, samples):
        self.machine = None
        self.rounds = collections.defaultdict(list)
        for sample in samples:
            if sample["figure"] == "machine":
                self.machine = sample
            else:
                self.rounds[sample["figure"]].append(sample["values"])

    def spread(self, figure, function):
        """Of a function of a round's values, None where there is none."""
        rounds = self.rounds.get(figure)
        try:
            return Spread([function(values) for values in rounds]) if rounds else None
        except KeyError:            # the run is older than what the figure needs
            return None


def of(name, factor=1):
    return lambda values: values[name] * factor


def bulk_extra(name):
    """Microseconds that a purchase takes longer than without."""
    return lambda values: (values[name] - values["bare"]) / values["events"] * 1e6


def more_than_bare(name, suffix=""):
    return lambda values: values[name] - values["bare" + suffix]


def quotient(one, other):
    return lambda values: one(values) / other(values)


def median_of(prefix, *whens):
    """Of the repetitions that are within one round of the snapshot benchmark."""
    return lambda values: statistics.median(
        value for name, value in values.items()
        if any(name.startswith(f"{prefix}_{when}_") for when in whens))


class Figure:
    """A line of the table.

    ours, floor, alternative: functions of a round's values; the alternative can
    be of another figure.  compare says with what ours is compared round by round
    ("floor" or "alternative"), or that it stands for itself (None).  The target
    is ("<=" or ">=", number), of the ratio if there is one, else of ours.
    """

    def __init__(self, source, title, unit, ours, floor=None, alternative=None, compare=None,
                 target=None, alternative_source=None):
        self.source = source
        self.title = title
        self.unit = unit
        self.ours = ours
        self.floor = floor
        self.alternative = alternative
        self.compare = compare
        self.target = target
        self.alternative_source = alternative_source or source

    def ratio(self):
        if self.compare is None:
            return None
        return quotient(self.ours, self.floor if self.compare == "floor" else self.alternative)


def latency_figures(load, targets):
    when = {"idle": "idle", "busy": "1,000 purchases/s"}[load]
    for name, title in (("p50", "p50"), ("p99", "p99"), ("p999", "p99.9")):
        yield Figure(f"latency.{load}", f"commit to arrival, {when}, {title}", "ms",
                     of(f"ours_{name}"), of(f"direct_{name}"), of(f"poll_{name}"),
                     target=targets.get(name))


def round_trip_figures():
    for delay in (0.05, 0.2):
        for in_flight in (1, 2, 4, 8, 16):
            yield Figure(f"round_trip.{delay * 1000:.0f}_ms",
                         f"API {delay * 1000:.0f} ms away, {in_flight} in flight", "events/s",
                         of(f"ours_{in_flight}"),
                         lambda values, n=in_flight: n * 1000 / values["delay"],
                         of(f"consumer_{in_flight}") if in_flight in (1, 8) else None,
                         compare="floor",
                         target=(">=", 0.9) if (delay, in_flight) == (0.05, 8) else None)


FIGURES = [
    Figure("recording.bulk", "recording 200,000 at once: extra time", "µs/event",
           bulk_extra("attached"), lambda v: v["floor"] / v["events"] * 1e6, bulk_extra("queued"),
           compare="floor", target=("<=", 0.8)),
    Figure("recording.bulk", "the same, beside rows that are ready-made", "µs/event",
           bulk_extra("attached"), lambda v: v["ready_made"] / v["events"] * 1e6, bulk_extra("queued"),
           compare="floor"),
    Figure("recording.bulk", "the same by a mapper with a join, beside plpgsql with it", "µs/event",
           bulk_extra("mapped"), bulk_extra("attached"), bulk_extra("joined"),
           compare="alternative", target=("<=", 0.35)),
    Figure("recording.full_speed_fsync_on", "8 clients, as quick as they can, API 50 ms away", "purchases/s",
           of("attached_distant"), of("bare"), of("queued"), compare="floor", target=(">=", 0.92)),
    Figure("recording.full_speed_fsync_on", "the same, API on this machine", "purchases/s",
           of("attached"), of("bare"), of("queued"), compare="floor"),
    Figure("recording.full_speed_fsync_on", "the same, sending paused", "purchases/s",
           of("attached_paused"), of("bare"), of("queued"), compare="floor"),
    Figure("recording.full_speed_fsync_off", "the same, sending, fsync = off", "purchases/s",
           of("attached"), of("bare"), of("queued"), compare="floor"),
    Figure("recording.steady", "1,000 purchases/s: time of one, p50", "ms",
           of("attached_p50"), of("bare_p50"), of("queued_p50"), compare="floor"),
    Figure("recording.steady", "1,000 purchases/s: time of one, p99", "ms",
           of("attached_p99"), of("bare_p99"), of("queued_p99"), compare="floor"),
    Figure("everyday.instructions", "instructions of the session for a purchase, more than without",
           "", more_than_bare("attached"), None, more_than_bare("queued")),
    Figure("everyday.load", "1,000 purchases/s: processor time of the sessions, more than without",
           "µs/event", more_than_bare("attached_session_us", "_session_us"), None,
           more_than_bare("queued_session_us", "_session_us")),
    Figure("everyday.load", "the same: processor time of the worker, API 50 ms away", "µs/event",
           of("attached_distant_worker_us")),
    Figure("everyday.load", "the same: processor time of the worker, API on this machine",
           "µs/event", of("attached_worker_us")),
    Figure("everyday.load", "the same: wake-ups of the worker, API 50 ms away", "times/s",
           of("attached_distant_wake_ups")),
    Figure("everyday.load", "the same: wake-ups of the worker, API on this machine", "times/s",
           of("attached_wake_ups")),
    Figure("draining.drain", "draining, beside COPY", "events/s",
           of("ours"), of("copy"), of("consumer"), compare="floor", target=(">=", 1)),
    Figure("draining.drain", "draining, beside a consumer", "events/s",
           of("ours"), of("copy"), of("consumer"), compare="alternative", target=(">=", 3)),
    *latency_figures("idle", {"p50": ("<=", 0.3), "p99": ("<=", 2)}),
    *latency_figures("busy", {}),
    *(Figure("latency.beside_open_rows",
             f"commit to arrival, idle, beside {{open_rows:,}} open rows of another session, {name}",
             "ms", of(f"ours_{name}"), target=target)
      for name, target in (("p50", None), ("p99", ("<=", 5)))),
    *round_trip_figures(),
    Figure("footprint.bytes", "WAL, recorded 200,000 at once", "bytes/event",
           of("wal_ours"), of("wal_floor"), of("wal_queued"), compare="floor",
           target=("<=", 1.05)),
    Figure("footprint.single_bytes", "WAL, recorded one at a time", "bytes/event",
           of("wal_ours"), None, of("wal_queued")),
    Figure("footprint.bytes", "table", "bytes/event",
           of("table_ours"), of("table_floor"), of("table_queued"), compare="floor"),
    Figure("footprint.bytes", "index", "bytes/event",
           of("index_ours"), of("index_floor"), of("index_queued"), compare="floor"),
    Figure("footprint.memory", "worker's memory with {pending:,} pending, over a backend's", "MB",
           lambda v: v["worker"] - v["idle_backend"], target=("<=", 64)),
    Figure("footprint.restart", "restart with {pending:,} pending: the first request has arrived", "s",
           of("first"), of("ready"), target=("<=", 2)),
    Figure("draining.drain", "worker's processor time", "s/million",
           of("cpu_per_million"), None, of("consumer_cpu_per_million")),
    Figure("footprint.wake_ups", "idle worker wakes up", "times/min",
           of("per_minute"), target=("<=", 6)),
]

SNAPSHOT_FIGURES = [
    *(Figure("snapshot.ours", f"{title}, snapshot held for {{minutes}} min", "events/s",
             median_of(what, "with"), median_of(what, "before", "after"),
             median_of(what, "with"), compare="floor", target=(">=", 0.95),
             alternative_source="snapshot.poll")
      for what, title in (("record", "recording in bulk"), ("drain", "draining"))),
    *(Figure("snapshot.ours", f"commit to arrival at 2,000/s, snapshot held, {name}", "ms",
             of(f"held_last_quarter_{name}"), of(f"without_all_{name}"),
             of(f"held_last_quarter_{name}"), alternative_source="snapshot.poll")
      for name in ("p50", "p99")),
    *(Figure("snapshot.ours_over_time", f"{title} of the outbox, snapshot held: at most", unit,
             of(name, factor), None, of(name, factor),
             alternative_source="snapshot.poll_over_time")
      for name, title, unit, factor in (("dead_rows", "dead rows", "rows", 1),
                                        ("bytes", "size", "MB", 2**-20))),
]
FIGURES += SNAPSHOT_FIGURES
