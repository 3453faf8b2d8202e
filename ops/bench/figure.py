"""A figure: one thing measured in one round, beside its limit; and what the rounds of it come to."""

import math
import statistics
from collections.abc import Iterable, Sequence

import msgspec


class Figure(msgspec.Struct, frozen=True):
    """One measurement.

    Args:
        part: Of the benchmark.
        case: What was varied, such as the size of the batches.
        what: What was measured.
        unit: Of the value and the limit.
        limit_name: What it is held against; empty where there is nothing.
        limit: Measured in the same round; 0 where there is none.
        facts: What else was seen, by name with its unit.
    """

    part: str
    case: str
    what: str
    unit: str
    value: float
    limit_name: str = ""
    limit: float = 0.0
    facts: dict[str, float] = {}

    @property
    def ratio(self) -> float | None:
        """The value as a part of its limit."""
        return self.value / self.limit if self.limit else None


class Line(msgspec.Struct, frozen=True):
    """The rounds of one measurement: medians, and the range of the ratios.

    The median of the ratios, which are taken within a round, is not the ratio of the medians.
    """

    part: str
    case: str
    what: str
    unit: str
    value: float
    limit_name: str
    limit: float
    ratio: float | None
    ratio_min: float | None
    ratio_max: float | None
    facts: dict[str, float]
    rounds: list[Figure]


def lines(figures: Iterable[Figure]) -> list[Line]:
    """Returns a line for each thing that was measured, in the order in which it was first."""
    found: dict[tuple[str, ...], list[Figure]] = {}
    for figure in figures:
        found.setdefault((figure.part, figure.case, figure.what, figure.limit_name), []).append(figure)
    return [_line(rounds) for rounds in found.values()]


def _line(rounds: Sequence[Figure]) -> Line:
    first = rounds[0]
    ratios = [figure.ratio for figure in rounds if figure.ratio is not None]
    facts = {name: statistics.median(figure.facts[name] for figure in rounds if name in figure.facts)
             for name in dict.fromkeys(name for figure in rounds for name in figure.facts)}
    return Line(
        first.part, first.case, first.what, first.unit, statistics.median(figure.value for figure in rounds),
        first.limit_name, statistics.median(figure.limit for figure in rounds),
        statistics.median(ratios) if ratios else None, min(ratios, default=None), max(ratios, default=None),
        facts, list(rounds),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Returns the smallest of the ascending values that at least that share of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
