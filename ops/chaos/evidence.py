"""What an experiment leaves behind: marks, samples of the service, answers to the load, log lines and the verdict.

Data alone, with what a judge asks of it. All times are Unix time in seconds.
"""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec


class Mark(msgspec.Struct, frozen=True):
    """What was done to the service, and when."""

    at: float
    name: str


class Sample(msgspec.Struct, frozen=True):
    """What the admin listener said at one moment.

    Args:
        values: By name; what could not be told is not there.
        held: By consumer, its pending entries and for how many ms it has been idle; None: it could not be told.
    """

    at: float
    values: dict[str, float]
    held: dict[str, tuple[int, int]] | None = None


class Answer(msgspec.Struct, frozen=True):
    """What one request was told, or that it never was.

    Args:
        kind: accepted, rejected or unknown.
        status: 0: there was no answer.
        durability, batch_id: What a 202 promised.
        latency_s: From sending to answer.
    """

    at: float
    kind: str
    status: int
    events: int
    latency_s: float
    durability: str = ""
    batch_id: str = ""


class LogLine(msgspec.Struct, frozen=True):
    """One line of a program's log; `event` is its first word after the head."""

    at: float
    program: str
    event: str
    text: str

    def field(self, name: str) -> str:
        """Returns the value of `name=value`, unquoted, or an empty text."""
        before, _, after = self.text.partition(f" {name}=")
        return "" if not after else after.split('"')[1] if after.startswith('"') else after.split(" ")[0]


class Evidence(msgspec.Struct):
    """All of one experiment.

    Args:
        name: Of the experiment.
        facts: What else the judge has to know: settings, names, counts.
        verdict: What the verifier says, as its JSON; empty where it could not judge.
        audit: What the audit says, as its JSON; empty where there was none.
    """

    name: str
    marks: list[Mark] = []
    samples: list[Sample] = []
    answers: list[Answer] = []
    lines: list[LogLine] = []
    facts: dict[str, Any] = {}
    verdict: dict[str, Any] = {}
    audit: dict[str, Any] = {}

    def at(self, name: str) -> float:
        """Returns when a mark was set; the end of all time where it never was."""
        return next((mark.at for mark in self.marks if mark.name == name), float("inf"))

    def answered(self, start: float, end: float) -> list[Answer]:
        """Returns the answers between two moments."""
        return [answer for answer in self.answers if start <= answer.at < end]

    def values(self, name: str, start: float, end: float) -> list[float]:
        """Returns what was sampled between two moments, where it could be told."""
        return [sample.values[name] for sample in self.samples if start <= sample.at < end and name in sample.values]

    def said(self, program: str, event: str, start: float, end: float = float("inf")) -> list[LogLine]:
        """Returns lines of the programs whose names begin so."""
        return [line for line in self.lines
                if line.event == event and line.program.startswith(program) and start <= line.at < end]


def rate(answers: Sequence[Answer], start: float, end: float) -> float:
    """Returns accepted requests per second."""
    return sum(answer.kind == "accepted" for answer in answers) / max(1e-9, end - start)


def percentile(values: Iterable[float], share: float) -> float:
    """Returns the smallest value that at least that share of them do not exceed; 0 where there is none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def median(values: Sequence[float]) -> float:
    """Returns the median; 0 where there is none."""
    return statistics.median(values) if values else 0.0
