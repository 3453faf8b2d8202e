"""The report as one page that needs nothing else: the checklist with its evidence, and the time line drawn."""

import io
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ops.chaos.evidence import Evidence
from ops.chaos.report import Result, seconds

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Spillway: chaos report</title><style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430 }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #d7dce3 } .sub { color: #5b6675 }
table { border-collapse: collapse; width: 100% } td { padding: .35rem .5rem; vertical-align: top;
border-bottom: 1px solid #eceff3 } td:first-child { width: 1.5rem; font-weight: 700 } .yes { color: #1a7f37 }
.no { color: #c62828 } .seen { color: #5b6675; font-size: .86em; overflow-wrap: anywhere } svg { width: 100%;
height: auto } .verdict { font-size: 1.25rem; font-weight: 600 } code { font-size: .92em }
</style></head><body>
"""
_COLOURS = {"202 stream": "#2f7ed8", "202 wal": "#e69f00", "no answer": "#c62828", "503": "#c62828"}
_MIB = 1 << 20


def render(results: Sequence[Result], facts: Mapping[str, Any]) -> str:
    """Returns the page."""
    ticks = [tick for result in results for tick in result.ticks]
    ticked = sum(tick.is_ticked for tick in ticks)
    began = datetime.fromtimestamp(results[0].evidence.marks[0].at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    arguments = ", ".join(f"{name} {value}" for name, value in facts["arguments"].items()
                          if value not in ("None", "False"))
    kind = "yes" if ticked == len(ticks) else "no"
    parts = [_HEAD, "<h1>Spillway: chaos report</h1>", f'<p class="sub">{began} · {escape(arguments)}</p>',
             f'<p class="verdict {kind}">{ticked} of {len(ticks)} boxes ticked</p>', *map(_section, results)]
    return "".join(parts) + "</body></html>\n"


def _section(result: Result) -> str:
    rows = "".join(
        f'<tr><td class="{"yes" if tick.is_ticked else "no"}">{"✓" if tick.is_ticked else "✗"}</td>'
        f'<td>{escape(tick.text)}<div class="seen">{escape(tick.evidence)}</div></td></tr>' for tick in result.ticks
    )
    return f"<h2>{escape(result.evidence.name)}</h2><table>{rows}</table>{_drawn(result.evidence)}"


def _drawn(evidence: Evidence) -> str:
    """Returns the time line as SVG: what clients were told, how fast, and where the events were meanwhile."""
    figure = Figure(figsize=(11, 11), layout="constrained")
    panels = figure.subplots(6, 1, sharex=True)
    start = evidence.marks[0].at
    _draw_requests(panels[0], panels[1], evidence, start)
    _draw(panels[2], evidence, start, {"wal_active": ("wal_active", 1.0, "#e69f00")}, "wal_active")
    sizes = panels[2].twinx()
    _draw(sizes, evidence, start, {"wal_bytes": ("WAL, MiB", 1 / _MIB, "#8a5a00")}, "WAL, MiB")
    sizes.set_ylim(0, max(1.05, sizes.get_ylim()[1]))
    _draw(panels[3], evidence, start, {"stream_entries": ("in the stream", 1.0, "#2f7ed8"),
                                       "pending": ("pending", 1.0, "#7b3fb5")}, "batches")
    _draw_loaded(panels[4], evidence, start)
    _draw(panels[5], evidence, start, {"dead_letters": ("dead letters", 1.0, "#c62828")}, "dead letters")
    panels[5].set_xlabel("seconds")
    for panel in panels:
        _draw_faults(panel, evidence, start, panel is panels[0])
        panel.set_ylim(0, max(1.05, panel.get_ylim()[1]))
        panel.grid(alpha=0.25)
        panel.set_xlim(0, evidence.marks[-1].at - start)
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg", metadata={"Date": None})
    return drawing.getvalue()[drawing.getvalue().index("<svg"):]


def _draw_requests(counts: Axes, latencies: Axes, evidence: Evidence, start: float) -> None:
    rows = seconds(evidence)
    times = [row["at"] + 0.5 - start for row in rows]
    names = sorted({name for row in rows for name in row["outcomes"]})
    if rows:
        counts.stackplot(times, [[row["outcomes"].get(name, 0) for row in rows] for name in names], labels=names,
                         colors=[_COLOURS.get(name, "#9aa5b1") for name in names], alpha=0.85)
        counts.legend(loc="upper right", ncols=4, fontsize=8)
    counts.set_ylabel("requests/s")
    for name, colour in (("ack_p50_s", "#2f7ed8"), ("ack_p99_s", "#c62828")):
        latencies.plot(times, [1000 * row[name] for row in rows], label=name[4:7], color=colour, linewidth=1.2)
    latencies.set_ylabel("ack, ms")
    latencies.legend(loc="upper right", ncols=2, fontsize=8)


def _draw(
    panel: Axes, evidence: Evidence, start: float, lines: Mapping[str, tuple[str, float, str]], unit: str,
) -> None:
    for name, (label, factor, colour) in lines.items():
        points = [(one.at - start, factor * one.values[name]) for one in evidence.samples if name in one.values]
        panel.plot(*zip(*points) if points else ((), ()), label=label, color=colour, linewidth=1.3)
    panel.set_ylabel(unit)
    if len(lines) > 1:
        panel.legend(loc="upper right", ncols=2, fontsize=8)


def _draw_loaded(panel: Axes, evidence: Evidence, start: float) -> None:
    counted = [(one.at - start, one.values["loaded_events"]) for one in evidence.samples
               if "loaded_events" in one.values]
    rates = [(later[0], max(0.0, later[1] - earlier[1]) / max(0.05, later[0] - earlier[0]))
             for earlier, later in zip(counted, counted[2:])]
    panel.plot(*zip(*rates) if rates else ((), ()), color="#1a7f37", linewidth=1.3)
    panel.set_ylabel("rows/s")


def _draw_faults(panel: Axes, evidence: Evidence, start: float, is_named: bool) -> None:
    begun: dict[str, float] = {}
    for mark in evidence.marks:
        kind, _, name = mark.name.partition(" ")
        if kind == "inject":
            begun[name] = mark.at
        elif kind == "heal" and name in begun:
            panel.axvspan(begun[name] - start, mark.at - start, color="#c62828", alpha=0.08)
            if is_named:
                panel.annotate(name or "fault", (begun[name] - start, 1.02), xycoords=("data", "axes fraction"),
                               fontsize=8, color="#c62828")
