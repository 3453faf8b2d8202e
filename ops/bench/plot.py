"""The figures drawn, one SVG a part, for a light and a dark page alike."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from ops.bench import curve, drain, end_to_end, latency
from ops.bench.figure import Line

_INK, _BLUE, _ORANGE = "#1c2430", "#1f6fbf", "#b86e00"
# What each colour is on a dark page.
_DARK = {_INK: "#e6edf3", _BLUE: "#6cb2ff", _ORANGE: "#ffb454"}
_SHADES = ("#8a5a00", "#1f6fbf", "#7b3fb5", "#c62828")
_DARK |= dict(zip(_SHADES, ("#e0a84a", "#6cb2ff", "#c297f2", "#ff7b72")))
_STYLE: Any = {
    "svg.hashsalt": "spillway", "font.size": 10, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK,
    "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "grid.color": _INK, "grid.alpha": 0.15, "axes.titlesize": 11, "axes.titlelocation": "left",
}


def draw(lines: Sequence[Line], directory: Path) -> list[Path]:
    """Writes a plot for each part that was measured, and returns where."""
    drawn = []
    with matplotlib.rc_context(_STYLE):
        for name, (part, draw_part) in _PLOTS.items():
            if found := [line for line in lines if line.part == part]:
                figure = Figure(figsize=(8, 3.6), layout="constrained", facecolor="none")
                draw_part(figure, found)
                path = directory / f"{name}.svg"
                path.write_text(_adaptive(figure))
                drawn.append(path)
    return drawn


def _adaptive(figure: Figure) -> str:
    """Returns the figure as SVG whose colours follow the page's."""
    target = io.StringIO()
    figure.savefig(target, format="svg", metadata={"Date": None}, transparent=True)
    rules = "".join(f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
                    for light, dark in _DARK.items() for kind in ("fill", "stroke"))
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    text = re.sub(r" +$", "", target.getvalue(), flags=re.MULTILINE)
    return re.sub(r"(<svg [^>]*>)", rf"\1{style}", text, count=1)


def _end_to_end(figure: Figure, lines: Sequence[Line]) -> None:
    """Draws the ratio to a bare COPY by the size of the batches."""
    found = [line for line in lines if line.what == end_to_end.WAYS["stored"]]
    _bars(figure.subplots(), found, "events in a request", "HTTP to COMMIT",
          lambda case: case.rpartition(" ")[2])


def _drain(figure: Figure, lines: Sequence[Line]) -> None:
    """Draws the ratio to a bare COPY by the number of consumers."""
    _bars(figure.subplots(), sorted(lines, key=lambda line: line.case), "", "stream to COMMIT", str)


def _bars(panel: Axes, lines: Sequence[Line], label: str, title: str, name: Callable[[str], str]) -> None:
    _ratios(panel, lines)
    for at, line in enumerate(lines):
        panel.annotate(f"{line.value:,.0f}/s", (at, line.ratio_max or 0.0), (0, 5), textcoords="offset points",
                       ha="center", fontsize=9)
    panel.set_xticks(range(len(lines)), [name(line.case) for line in lines])
    panel.set_ylim(0, max(1.2, 1.1 * max(line.ratio_max or 0.0 for line in lines)))
    panel.set_xlabel(label)
    panel.set_title(f"{title}, as a part of a bare COPY of the same rows on one connection (the line)")


def _ratios(panel: Axes, lines: Sequence[Line]) -> None:
    """Draws ratios with their range over the rounds, and what they are to."""
    ratios = [line.ratio or 0.0 for line in lines]
    spans = [[ratio - (line.ratio_min or 0.0) for ratio, line in zip(ratios, lines)],
             [(line.ratio_max or 0.0) - ratio for ratio, line in zip(ratios, lines)]]
    panel.bar(range(len(lines)), ratios, 0.6, color=_BLUE, yerr=spans, ecolor=_INK, capsize=4)
    panel.axhline(1, color=_ORANGE, linewidth=1.2)
    panel.set_axisbelow(True)
    panel.grid(axis="y")


def _latency(figure: Figure, lines: Sequence[Line]) -> None:
    """Draws the quantiles by the share of the top rate."""
    panel = figure.subplots()
    found = [line for line in lines if line.facts]
    for name, colour in zip(("p99.9", "p99", "p90", "p50"), reversed(_SHADES)):
        values = [line.facts[f"{name} ms"] for line in found]
        panel.plot(range(len(found)), values, marker="o", color=colour, label=name)
        if name in ("p50", "p99"):
            panel.annotate(f"{values[-1]:,.1f}", (len(found) - 1, values[-1]), (7, -3), textcoords="offset points",
                           fontsize=9, color=colour)
    panel.set_xticks(range(len(found)), [f"{line.case.split()[0]}\n{line.facts['asked requests/s']:,.0f}/s"
                                         for line in found])
    panel.set_xlabel("single-event posts, as a part of the top rate")
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_title("ms from when a request was due to its acknowledgement, open loop")
    panel.legend(loc="upper left", ncols=4, fontsize=9)
    panel.set_ylim(top=4 * panel.get_ylim()[1])
    panel.grid(axis="y")


def _curves(figure: Figure, lines: Sequence[Line]) -> None:
    """Draws each curve, as a part of its first point."""
    groups: Mapping[str, list[Line]] = {
        "gunicorn workers": [line for line in lines if "worker" in line.case],
        "single-event batches that wait": [line for line in lines if line.case.startswith("backlog")],
        "rows in the table": [line for line in lines if line.case.startswith("table")],
    }
    panels = figure.subplots(1, len(groups), sharey=True)
    for panel, (label, found) in zip(panels, groups.items()):
        _ratios(panel, found)
        panel.axhspan(0.9, 1.1, color=_ORANGE, alpha=0.15, linewidth=0, zorder=0)
        for at, line in enumerate(found):
            panel.annotate(f"{line.ratio:.2f}", (at, line.ratio_max or 0.0), (0, 4), textcoords="offset points",
                           ha="center", fontsize=8)
        panel.set_xticks(range(len(found)), [_short(line.case) for line in found], rotation=30, ha="right", fontsize=8)
        panel.set_xlabel(label)
    panels[0].set_ylim(0, 1.15 * max(1.1, *(line.ratio_max or 0.0 for line in lines)))
    figure.suptitle("rate, as a part of that of the first, right beside it (the line; a tenth around it)", fontsize=11)


def _short(case: str) -> str:
    return re.sub(r" workers?| rows| batches$|table of |backlog of ", "", case).replace("batches of ", "by ")


_PLOTS: dict[str, tuple[str, Callable[[Figure, Sequence[Line]], None]]] = {
    "end-to-end": (end_to_end.PART, _end_to_end), "latency": (latency.PART, _latency), "drain": (drain.PART, _drain),
    "curves": (curve.PART, _curves),
}
