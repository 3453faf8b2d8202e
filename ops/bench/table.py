"""The figures as text, ratios first, and as Markdown with where they were made."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ops.bench import latency
from ops.bench.figure import Line

_PREFACE = """\
# Results

Written by `spillway bench`. The ratios are what to quote: a rate is that of one machine on one day, and a virtual disk
may confirm a sync that no medium has seen.
"""
_HEAD = f"{'ratio':>6} {'(range)':>18}  {'':31} {'median':>11} {'':10} {'of':>12}"


def render(lines: Sequence[Line]) -> str:
    """Returns everything that was measured."""
    parts = ["Medians over the rounds; a ratio and its limit are of the same round.", _HEAD]
    for part in dict.fromkeys(line.part for line in lines):
        rounds = max(len(line.rounds) for line in lines if line.part == part)
        parts.append(f"{part}, {rounds} round{'s' * (rounds != 1)}")
        case = ""
        for line in (line for line in lines if line.part == part):
            if line.case != case:
                parts.append(f"  {line.case}")
            case = line.case
            parts.append(_row(line))
    parts += _latencies([line for line in lines if line.part == latency.PART and line.facts])
    parts += _grid("CPU, us an event", lines, "cpu_us ", ",.2f")
    parts += _grid("Bytes an event", lines, "bytes ", ",.0f")
    parts += _grid("Resident memory, MiB", lines, "memory MiB ", ",.0f")
    parts += _grid("Redis's rewriting of its file, between the turns", lines, "rewrite ", ",.1f")
    parts += _grid("Consumers behind when the load ended, events; and s until they had caught up", lines, "", ",.1f",
                   ("backlog events", "catch-up s", "restart to loaded s"))
    return "\n".join(parts)


def _row(line: Line) -> str:
    ratio = span = limit = ""
    if line.ratio is not None and line.ratio_min is not None and line.ratio_max is not None:
        kind = ".2f" if line.ratio >= 0.1 else ".4f"
        ratio, span = f"{line.ratio:{kind}}", f"({line.ratio_min:{kind}} to {line.ratio_max:{kind}})"
        limit = f"{line.limit:12{_kind(line.unit)}} {line.limit_name}"
    kind = _kind(line.unit)
    return f"{ratio:>6} {span:>18}  {line.what:31} {line.value:11{kind}} {line.unit:10} {limit}".rstrip()


def _latencies(lines: Sequence[Line]) -> list[str]:
    """Returns the quantiles by rate, and what the generator itself came to."""
    if not lines:
        return []
    names = list(lines[0].facts)
    head = "".join(f"{_broken(name)[0]:>11}" for name in names), "".join(f"{_broken(name)[1]:>11}" for name in names)
    rows = [f"  {line.case:24}" + "".join(f"{line.facts[name]:11{_kind(name)}}" for name in names) for line in lines]
    title = "Acknowledgement, open loop: ms from when a request was due"
    return ["", title, f"  {'':24}{head[0]}", f"  {'':24}{head[1]}", *rows]


def _kind(name: str) -> str:
    return ",.2f" if name.endswith(("ms", "us")) else ",.0f"


def _broken(name: str) -> tuple[str, str]:
    """Returns the name in two lines of a narrow column."""
    short = name.replace("generator ", "").replace("requests", "req").replace("most waiting", "waiting")
    first, _, rest = short.rpartition(" ")
    return first[-10:], rest


def _grid(title: str, lines: Iterable[Line], prefix: str, kind: str, names: Sequence[str] = ()) -> list[str]:
    """Returns a table of the facts with that prefix, or of those named, by line."""
    found = [line for line in lines if line.part != latency.PART]
    columns = dict.fromkeys(name for line in found for name in line.facts
                            if (name in names if names else name.startswith(prefix)))
    if not columns:
        return []
    widths = {name: max(10, len(name.removeprefix(prefix)) + 1) for name in columns}
    rows = ["", title, f"  {'':58}" + "".join(f"{name.removeprefix(prefix):>{widths[name]}}" for name in columns)]
    for line in found:
        if any(name in line.facts for name in columns):
            cells = (f"{line.facts[name]:{widths[name]}{kind}}" if name in line.facts else " " * widths[name]
                     for name in columns)
            rows.append(f"  {f'{line.case}, {line.what}':58}" + "".join(cells))
    return rows


def markdown(facts: Mapping[str, Any], text: str) -> str:
    """Returns the table with commit, command and machine, as `ops/bench/RESULTS.md` keeps it."""
    rows = "\n".join(f"| {name.replace('_', ' ')} | {_cell(value)} |" for name, value in facts.items())
    return f"{_PREFACE}\n| | |\n|---|---|\n{rows}\n\n```\n{text}\n```\n"


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {one}" for name, one in value.items())
    return f"`{value}`" if str(value).startswith("spillway ") else str(value)
