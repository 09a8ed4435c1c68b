"""Draws what a dashboard would show, as SVG, from the data of a Prometheus.

usage: picture.py PROMETHEUS-ADDRESS DASHBOARD.json PICTURE.svg [--database NAME]

It is no Grafana: it asks Prometheus each query of the dashboard, for the time
for which there is data in the last hour, and draws the answers plainly.
"""

import argparse
import html
import json
import math
import time
import urllib.parse
import urllib.request

COLOURS = ["#336791", "#d0803c", "#5a9a4e", "#b0413e", "#7a5195", "#8a8a8a", "#c9a227", "#2a9d8f"]
STATES = {
    "idle": "#5a9a4e", "sending": "#336791", "backing_off": "#c9a227", "paused": "#8a8a8a",
    "unauthorized": "#b0413e", "misconfigured": "#b0413e", "refusing": "#b0413e",
    "disabled": "#8a8a8a", "not_running": "#222222"}

COLUMNS = 3
WIDTH, HEIGHT = 316, 172            # of a panel
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 42, 22
POINTS = 150


def ask(address, promql, start, end, step):
    """[({label: value}, [(time, value)])], without what is no number."""
    parameters = urllib.parse.urlencode(
        {"query": promql, "start": start, "end": end, "step": step})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{address}/api/v1/query_range?{parameters}") as answer:
        result = json.load(answer)["data"]["result"]
    series = []
    for one in result:
        points = [(float(t), float(value)) for t, value in one["values"]]
        points = [(t, value) for t, value in points if math.isfinite(value)]
        if points:
            series.append((one["metric"], points))
    return series


def legend(template, labels, database):
    for name, value in labels.items():
        template = template.replace("{{%s}}" % name, value)
    # There is one database: its name says nothing.
    return template.removeprefix(database).strip() if database else template


def text(x, y, what, size=10, anchor="start", weight="normal", colour="#222"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
            f'font-weight="{weight}" fill="{colour}">{html.escape(what)}</text>')


def nice(top):
    """The least of 1, 2, 2.5, 5 times a power of ten that is not below."""
    if top <= 0:
        return 1
    power = 10 ** math.floor(math.log10(top))
    return next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= top * 0.999)


def number(value, unit):
    if value == 0:
        return "0"
    if unit == "s":
        if value < 1:
            return f"{value * 1000:.3g} ms"
        return f"{value:.3g} s" if value < 120 else f"{value / 60:.3g} min"
    suffix = {"bytes": "B", "Bps": "B/s"}.get(unit, "")
    for power, prefix in ((9, "G"), (6, "M"), (3, "k")):
        if value >= 10 ** power:
            return f"{value / 10 ** power:.3g} {prefix}{suffix}"
    return f"{value:.3g} {suffix}".strip()


def clock(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def runs(points, step):
    """[beginning, length] of points without a gap, so that they are one bar."""
    found = []
    for t, _ in points:
        if found and t - sum(found[-1]) < step / 2:
            found[-1][1] += step
        else:
            found.append([t, step])
    return found


class Panel:
    def __init__(self, x, y, start, end):
        self.x, self.y, self.start, self.end = x, y, start, end
        self.parts = []

    def along(self, t):
        return self.x + LEFT + (t - self.start) / (self.end - self.start) * (WIDTH - LEFT - RIGHT)

    def title(self, what):
        self.parts += [
            f'<rect x="{self.x}" y="{self.y}" width="{WIDTH - 6}" height="{HEIGHT - 6}" '
            'rx="3" fill="#fff" stroke="#d8dde3"/>',
            text(self.x + 10, self.y + 18, what, 12, weight="bold")]

    def time_axis(self):
        span = self.end - self.start
        step = next((s for s in (5, 10, 30, 60, 120, 300, 600) if span / s <= 6), 1200)
        for tick in range(0, int(span) + 1, step):
            self.parts.append(text(self.along(self.start + tick), self.y + HEIGHT - 12,
                                   clock(tick), 9, "middle", colour="#666"))

    def lines(self, series, unit):
        lower, upper = self.y + HEIGHT - BOTTOM - 4, self.y + TOP
        top = nice(max(value for _, points in series for _, value in points))
        for share in (0, 0.5, 1):
            height = lower - share * (lower - upper)
            self.parts += [
                f'<path d="M{self.x + LEFT} {height:.1f}h{WIDTH - LEFT - RIGHT}" stroke="#e6e9ed"/>',
                text(self.x + LEFT - 5, height + 3, number(share * top, unit), 9, "end", colour="#666")]
        place = self.x + 10
        for i, (name, points) in enumerate(series):
            colour = COLOURS[i % len(COLOURS)]
            path = "".join(f"L{self.along(t):.1f} {lower - value / top * (lower - upper):.1f}"
                           for t, value in points)
            self.parts.append(f'<path d="M{path[1:]}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
            if len(series) > 1:
                self.parts += [
                    f'<rect x="{place}" y="{self.y + 26}" width="7" height="7" fill="{colour}"/>',
                    text(place + 10, self.y + 33, name, 9, colour="#444")]
                place += 18 + 5.2 * len(name)

    def bars(self, series, step):
        """One row a name, coloured while there is a value."""
        height = min(20, (HEIGHT - TOP - BOTTOM) / len(series))
        for i, (name, points) in enumerate(series):
            y = self.y + 32 + i * height
            colour = STATES.get(name.split()[-1], COLOURS[0])
            for t, length in runs(points, step):
                x = self.along(t)
                width = min(self.along(t + length), self.x + WIDTH - RIGHT) - x
                if width > 0:
                    self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
                                      f'height="{height - 4:.1f}" fill="{colour}"/>')
            self.parts.append(text(self.x + 5, y + height / 2 + 1, name, 8, colour="#444"))


def draw(address, dashboard, database):
    now = time.time()
    known = ask(address, "max(onside_attribution_pending)", now - 3600, now, 1)
    if not known:
        raise SystemExit("there are no data")
    start, end = known[0][1][0][0], known[0][1][-1][0]
    step = max((end - start) / POINTS, 0.5)
    parts = []
    for i, one in enumerate(dashboard["panels"]):
        panel = Panel(6 + i % COLUMNS * WIDTH, 6 + i // COLUMNS * HEIGHT, start, end)
        panel.title(one["title"])
        series = []
        for target in one["targets"]:
            promql = target["expr"].replace("$__rate_interval", f"{max(math.ceil(2 * step), 5)}s")
            promql = promql.replace("$datname", database or ".*").replace("$instance", ".*")
            series += [(legend(target["legendFormat"], labels, database), points)
                       for labels, points in ask(address, promql, start, end, step)]
        if not series:
            panel.parts.append(text(panel.x + WIDTH / 2, panel.y + HEIGHT / 2, "no data", anchor="middle"))
        elif one["type"] == "state-timeline":
            panel.bars(series, step)
        else:
            panel.lines(series, one["fieldConfig"]["defaults"]["unit"])
        panel.time_axis()
        parts += panel.parts
    width = COLUMNS * WIDTH + 6
    height = math.ceil(len(dashboard["panels"]) / COLUMNS) * HEIGHT + 6
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{width}" height="{height}" fill="#f4f5f7"/>', *parts, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("address")
    parser.add_argument("dashboard")
    parser.add_argument("picture")
    parser.add_argument("--database")
    arguments = parser.parse_args()
    with open(arguments.dashboard, encoding="utf-8") as file:
        dashboard = json.load(file)
    picture = draw(arguments.address, dashboard, arguments.database)
    with open(arguments.picture, "w", encoding="utf-8") as file:
        file.write(picture)


if __name__ == "__main__":
    main()
