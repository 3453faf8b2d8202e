"""A box of the checklist, what ticks it, and the questions that several of them ask of the evidence.

Pure: from evidence to findings.
"""

from collections.abc import Callable
from typing import NamedTuple

from ops.chaos.evidence import Answer, Evidence, rate

_LEAST_RATE = 0.9
_LONGEST_SILENCE_S = 3.0
# What the audit counts → what it is called here.
_AUDITED = {"added": "events added to the stream", "loaded": "released as loaded", "duplicate": "as duplicates",
            "buried": "buried", "in_stream": "in the stream", "ledger": "in the ledger", "rows": "rows"}


class Finding(NamedTuple):
    """Whether a box is ticked, and by what."""

    is_ticked: bool
    evidence: str


class Box(NamedTuple):
    """One line of the checklist, or one beyond it."""

    text: str
    judge: Callable[[Evidence], Finding]


def all_accepted(evidence: Evidence, start: float, end: float) -> Finding:
    """Whether every request was accepted, as often as before, and without a pause."""
    answers = evidence.answered(start, end)
    refused = [one for one in answers if one.kind == "unknown"]
    before_at = evidence.at("baseline")
    before = rate(evidence.answered(before_at, _broken_at(evidence)), before_at, _broken_at(evidence))
    during = rate(answers, start, end)
    silence_s = _longest_silence(answers, start, end)
    accepted = sum(one.kind == "accepted" for one in answers)
    text = (f"{accepted:,} answers 202 and {len(refused)} failures in {end - start:.0f} s; {during:.0f} accepted a "
            f"second, {before:.0f} before; longest pause {silence_s:.1f} s")
    is_held = not refused and during >= _LEAST_RATE * before > 0 and silence_s <= _LONGEST_SILENCE_S
    return Finding(is_held, text + first_of(refused))


def nothing_lost(evidence: Evidence) -> Finding:
    """Whether the verifier found every promise kept."""
    verdict = evidence.verdict
    if not verdict:
        return Finding(False, "the verifier could not judge")
    accepted = verdict["outcomes"]["accepted"]
    broken = {kind: tally["events"] for kind, tally in verdict["faults"].items() if tally["batches"]}
    found = ", ".join(f"{events:,} {kind}" for kind, events in broken.items()) or "0 missing, 0 duplicate, 0 altered"
    return Finding(verdict["clean"] and accepted["events"] > 0,
                   f"{accepted['events']:,} events of {accepted['batches']:,} accepted requests held against the rows: "
                   f"{found}")


def drained(evidence: Evidence) -> Finding:
    """Whether nothing was left on its way, and no promise of the interface was broken."""
    left = evidence.facts["wal_left"]
    interface = "kept" if evidence.facts["is_interface_kept"] else "broken: see locust's log"
    after_s = evidence.at("drained") - evidence.at("load ended")
    is_drained = evidence.facts["is_drained"] and not left and evidence.facts["is_interface_kept"]
    return Finding(is_drained, f"stream and WAL empty {after_s:.1f} s after the load ended; segments left: "
                               f"{', '.join(left) or 'none'}; interface {interface}")


def balanced(evidence: Evidence) -> Finding:
    """Whether the audit accounts for every event."""
    audit = evidence.audit
    if not audit:
        return Finding(False, "there was no audit")
    totals, faults = audit["totals"], audit["stream"]["faults"]
    seen = ", ".join(f"{totals[name]:,} {text}" for name, text in _AUDITED.items())
    amiss = "; ".join([*(f"{gap['minute']}: {gap['text']}" for gap in audit["unbalanced"][:3]), *faults[:3]])
    return Finding(audit["balanced"] and totals["in_stream"] == 0,
                   f"{seen}; gap {audit['gap_events']:,}{'; ' + amiss if amiss else ''}")


def logged(evidence: Evidence, program: str, event: str, start: float, end: float = float("inf")) -> Finding:
    """Whether the programs have logged this, with the first such line."""
    lines = evidence.said(program, event, start, end)
    return Finding(bool(lines), lines[0].text if lines else f"no line {event} in the log of {program}")


def first_of(failed: list[Answer]) -> str:
    """Returns how the first of some failures was told; empty where there is none."""
    return f"; the first: {failed[0].status or 'no answer'} after {failed[0].latency_s:.1f} s" if failed else ""


def first_when(evidence: Evidence, name: str, value: float, start: float, end: float) -> float:
    """Returns when a value was first sampled; the end of all time where it never was."""
    return next((sample.at for sample in evidence.samples
                 if start <= sample.at < end and sample.values.get(name) == value), float("inf"))


def _broken_at(evidence: Evidence) -> float:
    return next(mark.at for mark in evidence.marks if mark.name.startswith("inject"))


def _longest_silence(answers: list[Answer], start: float, end: float) -> float:
    times = [start, *sorted(one.at for one in answers if one.kind == "accepted"), end]
    return max(later - earlier for earlier, later in zip(times, times[1:]))


NO_LOSS = Box("Query PostgreSQL to confirm that all data is eventually processed and stored. There should be no data "
              "loss.", nothing_lost)
WHOLE = Box("Beyond the checklist: all drains, and `/ingest` breaks no promise of its interface.", drained)
BALANCED = Box("Beyond the checklist: `spillway audit` balances: every event is accounted for.", balanced)
