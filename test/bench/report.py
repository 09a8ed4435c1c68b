"""Makes a table of a run: report.py RESULTS, from RESULTS.jsonl."""

import json
import sys

import figures

EXPLAINED = """Each cell is the median of the rounds, and in parentheses the least and the greatest of them. Within a round
the variants take turns. A ratio is that of one round; the median is taken of the ratios. See test/bench/README.md
for what each figure means, and what its floor and its alternative are."""


def number(value):
    """Three significant digits, or whole if it is large."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def cell(spread, unit=""):
    if spread is None:
        return ""
    text = number(spread.median)
    if unit:
        text += " " + unit
    if number(spread.least) != number(spread.greatest):
        text += f" ({number(spread.least)} – {number(spread.greatest)})"
    return text


def most(spread):
    """What grew: only the greatest counts."""
    if spread:
        spread.median = spread.least = spread.greatest
    return spread


def line(results, figure):
    ours = results.spread(figure.source, figure.ours)
    if ours is None:
        return None
    floor = figure.floor and results.spread(figure.source, figure.floor)
    alternative = figure.alternative and results.spread(figure.alternative_source,
                                                        figure.alternative)
    if figure.source.endswith("_over_time"):
        ours, alternative = most(ours), most(alternative)
    ratio = figure.compare and results.spread(figure.source, figure.ratio())
    target = met = ""
    if figure.target:
        sign, bound = figure.target
        value = (ratio or ours).median
        target = {"<=": "≤ ", ">=": "≥ "}[sign] + number(bound) + ("" if ratio else " " + figure.unit)
        met = "yes" if (value <= bound if sign == "<=" else value >= bound) else "**no**"
    title = figure.title.format(**results.rounds[figure.source][0])
    against = f" × {figure.compare}" if ratio else ""
    return [title, cell(ours, figure.unit), cell(floor), cell(alternative),
            cell(ratio) + against, target, met]


def table(results):
    yield "| figure | ours | floor | alternative | ratio | target | met |"
    yield "|---|---|---|---|---|---|---|"
    for figure in figures.FIGURES:
        cells = line(results, figure)
        if cells:
            yield "| " + " | ".join(cells) + " |"


def variants(results):
    """All that was measured, for those who want to know."""
    for source, rounds in results.rounds.items():
        if source.endswith("_over_time"):
            continue
        yield f"| {source} | {len(rounds)} | " + ", ".join(
            f"{name} {cell(results.spread(source, figures.of(name)))}" for name in rounds[0]) + " |"


def machine_lines(machine):
    settings = ", ".join(f"{name} = {value}" for name, value in machine["settings"].items())
    yield (f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, "
           f"Linux {machine['kernel']}, PostgreSQL {machine['postgresql']}, {machine['date']}; "
           f"scale {machine['scale']}, {machine['size']['rounds']} rounds; "
           f"load average at the start {machine['load_at_start']:.2f}.")
    yield ""
    yield f"Settings: {settings}."


def markdown(results):
    yield "# Measured"
    yield ""
    yield from machine_lines(results.machine)
    yield ""
    yield EXPLAINED
    yield ""
    yield from table(results)
    yield ""
    yield "## All variants"
    yield ""
    yield "| figure | rounds | medians |"
    yield "|---|---|---|"
    yield from variants(results)


def main(path):
    with open(path + ".jsonl", encoding="utf-8") as file:
        results = figures.Results(json.loads(text) for text in file)
    if results.machine is None:
        sys.exit("bench: nothing was measured")
    text = "\n".join(markdown(results)) + "\n"
    with open(path + ".md", "w", encoding="utf-8") as file:
        file.write(text)
    print(text)
    print(f"Written to {path}.jsonl and .md")


if __name__ == "__main__":
    main(sys.argv[1])
