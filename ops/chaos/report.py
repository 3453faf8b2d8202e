"""What the experiments have shown: the checklist as a table, and all of it as JSON."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ops.chaos.box import Box
from ops.chaos.evidence import Answer, Evidence, percentile

_WIDTH = 118


class Tick(msgspec.Struct, frozen=True):
    """One box of the checklist, ticked or not, and by what."""

    text: str
    is_ticked: bool
    evidence: str


class Result(msgspec.Struct, frozen=True):
    """One experiment, judged."""

    evidence: Evidence
    ticks: list[Tick]

    @property
    def is_ticked(self) -> bool:
        """Whether all of its boxes are."""
        return all(tick.is_ticked for tick in self.ticks)


def judge(evidence: Evidence, boxes: Sequence[Box]) -> Result:
    """Returns the experiment with its boxes ticked or not."""
    return Result(evidence, [Tick(box.text, *box.judge(evidence)) for box in boxes])


def table(results: Sequence[Result]) -> str:
    """Returns the boxes as text, with the evidence below each."""
    lines = []
    for result in results:
        lines.append(f"\n{result.evidence.name}")
        for tick in result.ticks:
            lines += textwrap.wrap(f"[{'x' if tick.is_ticked else ' '}] {tick.text}", _WIDTH, initial_indent="  ",
                                   subsequent_indent="      ")
            lines += textwrap.wrap(tick.evidence, _WIDTH, initial_indent="        ", subsequent_indent="        ")
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> str:
    """Returns the end of it in one line."""
    ticks = [tick for result in results for tick in result.ticks]
    ticked = sum(tick.is_ticked for tick in ticks)
    return f"\n{ticked} of {len(ticks)} boxes ticked in {len(results)} experiments"


def document(results: Sequence[Result], facts: Mapping[str, Any]) -> str:
    """Returns everything as JSON; answers by second, as there may be a great many."""
    return msgspec.json.format(msgspec.json.encode({
        **facts,
        "is_ticked": all(result.is_ticked for result in results),
        "experiments": [
            {
                "name": result.evidence.name,
                "boxes": msgspec.to_builtins(result.ticks),
                "marks": msgspec.to_builtins(result.evidence.marks),
                "facts": result.evidence.facts,
                "verdict": result.evidence.verdict,
                "audit": result.evidence.audit,
                "samples": msgspec.to_builtins(result.evidence.samples),
                "seconds": seconds(result.evidence),
            } for result in results
        ],
    })).decode()


def seconds(evidence: Evidence) -> list[dict[str, Any]]:
    """Returns the answers by the second in which they came: how many by outcome, and the latencies' quantiles in s."""
    by_second: dict[int, list[Answer]] = {}
    for answer in evidence.answers:
        by_second.setdefault(int(answer.at), []).append(answer)
    rows = []
    for at, answers in sorted(by_second.items()):
        outcomes: dict[str, int] = {}
        for answer in answers:
            name = f"202 {answer.durability}" if answer.kind == "accepted" else str(answer.status or "no answer")
            outcomes[name] = outcomes.get(name, 0) + 1
        latencies = [answer.latency_s for answer in answers if answer.kind == "accepted"]
        rows.append({"at": at, "outcomes": outcomes, "ack_p50_s": percentile(latencies, 0.5),
                     "ack_p99_s": percentile(latencies, 0.99)})
    return rows
