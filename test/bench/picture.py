"""The picture of a run: small panels of bars and lines, as SVG."""

import html
import math

import figures

OURS = "#336791"
FLOOR = "#9aa5b1"
ALTERNATIVE = "#d0803c"

WIDTH = 440                         # of a panel
HEIGHT = 210
MARGIN = 12
LABELS = 150                        # room for the names of bars
VALUES = 70                         # and for the numbers at their ends


def text(x, y, what, size=12, anchor="start", weight="normal", colour="#222"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
            f'font-weight="{weight}" fill="{colour}">{html.escape(what)}</text>')


def number(value):
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f} k"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def title(what, remark):
    return [text(MARGIN, 22, what, 14, weight="bold"), text(MARGIN, 38, remark, 11, colour="#666")]


def bars(what, remark, rows, logarithmic=False):
    """rows: (name, Spread, colour); whiskers go from the least to the greatest."""
    rows = [row for row in rows if row[1]]
    if not rows:
        return None
    top = max(spread.greatest for _, spread, _ in rows)
    bottom = 0
    if logarithmic:
        bottom = min(max(spread.median, 0.01) for _, spread, _ in rows) / 2

    def place(value):
        if logarithmic:
            share = math.log(max(value, bottom) / bottom) / math.log(top / bottom)
        else:
            share = max(value, 0) / top
        return LABELS + share * (WIDTH - LABELS - VALUES)

    parts = title(what, remark)
    step = min(28, (HEIGHT - 56) / len(rows))
    for i, (name, spread, colour) in enumerate(rows):
        y = 50 + i * step
        middle = y + step / 2 - 2
        end = place(spread.median)
        least, greatest = place(spread.least), place(spread.greatest)
        parts += [
            text(LABELS - 8, middle + 4, name, 11, "end"),
            f'<rect x="{LABELS}" y="{y:.1f}" width="{max(end - LABELS, 1):.1f}" '
            f'height="{step - 5:.1f}" fill="{colour}"/>',
            f'<path d="M{least:.1f} {middle:.1f}H{greatest:.1f}" stroke="#222"/>',
            text(max(end, greatest) + 6, middle + 4, number(spread.median), 11),
        ]
    return parts


def lines(what, remark, series, log_x=False):
    """series: (name, [(x, y)], colour, dashes); y is logarithmic."""
    series = [one for one in series if one[1]]
    if not series:
        return None
    xs = [x for _, points, _, _ in series for x, _ in points]
    ys = [max(y, 1) for _, points, _, _ in series for _, y in points]
    left, right, upper, lower = 56, WIDTH - 100, 52, HEIGHT - 30

    def along(value, low, high, logarithmic):
        if logarithmic:
            value, low, high = math.log(max(value, 1)), math.log(low), math.log(high)
        return (value - low) / (high - low or 1)

    def x_place(x):
        return left + along(x, min(xs), max(xs), log_x) * (right - left)

    def y_place(y):
        return lower - along(y, min(ys), max(ys), True) * (lower - upper)

    parts = title(what, remark)
    for y in (10**power for power in range(9) if min(ys) <= 10**power <= max(ys)):
        parts += [f'<path d="M{left} {y_place(y):.1f}H{right}" stroke="#ddd"/>',
                  text(left - 6, y_place(y) + 4, number(y), 10, "end", colour="#666")]
    ticks = sorted(set(xs)) if log_x else [min(xs), (min(xs) + max(xs)) / 2, max(xs)]
    for x in ticks:
        parts.append(text(x_place(x), lower + 16, f"{x:.0f}", 10, "middle", colour="#666"))
    taken = []
    for name, points, colour, dashes in series:
        path = "L".join(f"{x_place(x):.1f} {y_place(y):.1f}" for x, y in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2" '
                     f'stroke-dasharray="{dashes}"/>')
        y = y_place(points[-1][1]) + 4
        while any(abs(y - other) < 12 for other in taken):
            y += 12
        taken.append(y)
        parts.append(text(right + 6, y, name, 10, colour=colour))
    return parts


# ---------------------------------------------------------------------------
# The panels
# ---------------------------------------------------------------------------

def recording(results):
    def extra(name):
        return results.spread("recording.bulk", figures.bulk_extra(name))

    floor = results.spread("recording.bulk", lambda v: v["floor"] / v["events"] * 1e6)
    return bars("Recording, 200,000 at once", "µs more for each purchase; less is better", [
        ("statement trigger", extra("attached"), OURS),
        ("plain INSERT … SELECT", floor, FLOOR),
        ("track() in a loop", results.spread(
            "recording.bulk", lambda v: v["track_loop"] / v["events"] * 1e6), OURS),
        ("plpgsql row trigger", extra("queued"), ALTERNATIVE),
        ("the same with NOTIFY", extra("queued_notify"), ALTERNATIVE),
    ])


def full_speed(results):
    def spread(name):
        return results.spread("recording.full_speed_fsync_on", figures.of(name))

    return bars("Eight clients, as quick as they can", "purchases/s; more is better", [
        ("with the trigger", spread("attached"), OURS),
        ("without", spread("bare"), FLOOR),
        ("plpgsql row trigger", spread("queued"), ALTERNATIVE),
        ("the same with NOTIFY", spread("queued_notify"), ALTERNATIVE),
    ])


def draining(results):
    def spread(name):
        return results.spread("draining.drain", figures.of(name))

    return bars("Draining a backlog", "events/s; more is better", [
        ("worker", spread("ours"), OURS),
        ("COPY to /dev/null", spread("copy"), FLOOR),
        ("SKIP LOCKED consumer", spread("consumer"), ALTERNATIVE),
    ])


def latency(results):
    rows = []
    for name, way, colour in (("worker", "ours", OURS), ("sent by the client", "direct", FLOOR),
                              ("LISTEN / NOTIFY", "listen", ALTERNATIVE),
                              ("poll each 100 ms", "poll", ALTERNATIVE)):
        for share in ("p50", "p99"):
            rows.append((f"{name}, {share}",
                         results.spread("latency.idle", figures.of(f"{way}_{share}")), colour))
    return bars("From commit to arrival, idle", "ms, logarithmic; less is better", rows, True)


def round_trip(results):
    series = []
    for delay, dashes in (("50", ""), ("200", "6 3")):
        rounds = results.rounds.get(f"round_trip.{delay}_ms")
        if not rounds:
            continue
        points = [(n, results.spread(f"round_trip.{delay}_ms", figures.of(f"ours_{n}")).median)
                  for n in (1, 2, 4, 8, 16)]
        series += [(f"{delay} ms", points, OURS, dashes),
                   ("ideal", [(n, n * 1000 / rounds[0]["delay"]) for n, _ in points], FLOOR, dashes)]
    return lines("An API far away", "events/s by requests in flight, logarithmic", series, True)


def dead_rows(results):
    series = []
    for name, way, colour in (("outbox", "ours", OURS), ("queue table", "poll", ALTERNATIVE)):
        series.append((name, [(values["seconds"], values["dead_rows"]) for values in
                              results.rounds.get(f"snapshot.{way}_over_time", [])], colour, ""))
    return lines("Dead rows while a snapshot is held", "at 2,000 events/s, by seconds", series)


PANELS = (recording, full_speed, draining, latency, round_trip, dead_rows)


def draw(results):
    panels = [panel for panel in (function(results) for function in PANELS) if panel]
    height = (len(panels) + 1) // 2 * HEIGHT + 40
    machine = results.machine
    footer = (f"{machine['cpu']}, {machine['cores']} cores, PostgreSQL {machine['postgresql']}, "
              f"{machine['date']}; medians, lines from least to greatest")
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" height="{height}" '
             f'viewBox="0 0 {2 * WIDTH} {height}" font-family="sans-serif">',
             '<rect width="100%" height="100%" fill="#fff"/>']
    for i, panel in enumerate(panels):
        parts.append(f'<g transform="translate({i % 2 * WIDTH} {i // 2 * HEIGHT})">')
        parts += panel
        parts.append("</g>")
    parts += [text(MARGIN, height - 14, footer, 11, colour="#666"), "</svg>"]
    return "\n".join(parts) + "\n"
