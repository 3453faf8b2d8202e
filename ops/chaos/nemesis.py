"""Faults drawn by chance from the list, one after the other, and judged as the checklist is."""

from collections.abc import Iterator, Sequence
from random import Random

from ops.chaos.box import WHOLE, Box, Finding, balanced, nothing_lost
from ops.chaos.evidence import Answer, Evidence
from ops.chaos.experiment import Experiment
from ops.chaos.fault import FAULTS
from ops.chaos.stage import Stage
from ops.chaos.supervised import Supervised
from ops.errors import ChaosFailed

_SHORTEST_S = 2.0
_LONGEST_S = 12.0
_RECOVER_S = 90.0
_CALM_S = (2.0, 6.0)
# After a fault is over: connections that it cut are found to be by whoever uses them next.
_GRACE_S = 2.0


def experiment(minutes: float, seed: int, names: Sequence[str] | None) -> Experiment:
    """Returns the experiment: for so long, faults by this seed, drawn from these (None: all that lose nothing)."""
    return Experiment(lambda stage: _play(stage, 60 * minutes, Random(seed), names), BOXES)


def draws(chance: Random, names: Sequence[str]) -> Iterator[tuple[str, float, float]]:
    """Yields faults for ever, with how long each stays, and how long the calm after it is, in seconds."""
    while names:
        yield chance.choice(names), chance.uniform(_SHORTEST_S, _LONGEST_S), chance.uniform(*_CALM_S)


def _play(stage: Stage, duration_s: float, chance: Random, names: Sequence[str] | None) -> Evidence:
    target = stage.target
    if not isinstance(target, Supervised):
        raise ChaosFailed("the nemesis breaks what supervisor runs; leave --compose out")
    wanted = [FAULTS[name] for name in names] if names else [one for one in FAULTS.values() if not one.is_lossy]
    lacking = {one.name: lack for one in wanted if (lack := one.lacks(target))}
    for name, lack in lacking.items():
        stage.mark(f"left out {name}", lack)
    drawn = [one.name for one in wanted if one.name not in lacking]
    facts = stage.evidence.facts
    facts |= {"left_out": lacking, "not_recovered": [], "injected": []}
    with stage.played():
        stage.baseline()
        ends_at = stage.elapsed_s() + duration_s
        for name, hold_s, calm_s in draws(chance, drawn):
            if stage.elapsed_s() >= ends_at:
                break
            with stage.broken(name):
                stage.hold(hold_s)
            facts["injected"].append(name)
            loaded = stage.latest.values.get("loaded_events", 0.0)
            if not stage.until(lambda seen: seen.values.get("loaded_events", 0.0) != loaded, _RECOVER_S):
                facts["not_recovered"].append(name)
            stage.hold(calm_s)
        return stage.finish()


def _refusals(evidence: Evidence) -> Finding:
    """Whether clients were refused only where a fault in force allows it."""
    periods = _periods(evidence)
    failed = [one for one in evidence.answers if one.kind == "unknown"]
    wrong = [one for one in failed if not _is_allowed(one, periods)]
    accepted = sum(one.kind == "accepted" for one in evidence.answers)
    shown = "".join(f"; {_told(one)} at {one.at - evidence.marks[0].at:.1f} s" for one in wrong[:3])
    return Finding(not wrong and accepted > 0,
                   f"{accepted:,} requests accepted; {len(failed)} failed, {len(wrong)} of them where no fault allows "
                   f"it{shown}")


def _recovers(evidence: Evidence) -> Finding:
    stuck = evidence.facts["not_recovered"]
    left_out = ", ".join(evidence.facts["left_out"])
    return Finding(not stuck and bool(evidence.facts["injected"]),
                   f"{len(evidence.facts['injected'])} faults; rows came again within {_RECOVER_S:.0f} s after each"
                   f"{' but ' + ', '.join(stuck) if stuck else ''}{'; left out: ' + left_out if left_out else ''}")


def _kept(evidence: Evidence) -> Finding:
    """Whether every promise was kept, but for those that a fault is meant to break."""
    lossy = [mark.at for mark in evidence.marks
             if mark.name.startswith("healed ") and FAULTS[mark.name.removeprefix("healed ")].is_lossy]
    found = nothing_lost(evidence)
    if found.is_ticked or not lossy or not evidence.verdict:
        return found
    broken = {kind for kind, tally in evidence.verdict["faults"].items() if tally["batches"]}
    answers = {one.batch_id: one for one in evidence.answers if one.batch_id}
    named = [answers[fault["batch_id"]] for fault in evidence.verdict["named"] if fault["batch_id"] in answers]
    is_meant = broken == {"missing"} and all(one.durability == "stream" and one.at < max(lossy) for one in named)
    return Finding(is_meant, f"{found.evidence}; of those named, all were in Redis when it was emptied: {is_meant}")


def _balanced(evidence: Evidence) -> Finding:
    found = balanced(evidence)
    if found.is_ticked or not any(FAULTS[name].is_lossy for name in evidence.facts["injected"]):
        return found
    # The counts were emptied with the stream: that has to show.
    return Finding(not evidence.audit["balanced"], f"the loss is seen: {found.evidence}")


def _periods(evidence: Evidence) -> list[tuple[float, float, frozenset[str]]]:
    periods, begun = [], {}
    for mark in evidence.marks:
        kind, _, name = mark.name.partition(" ")
        if kind == "inject":
            begun[name] = mark.at
        elif kind == "healed" and name in begun:
            periods.append((begun[name], mark.at + _GRACE_S, FAULTS[name].refusals))
    return periods


def _is_allowed(answer: Answer, periods: Sequence[tuple[float, float, frozenset[str]]]) -> bool:
    # It was sent or answered while the fault was in force.
    return any(start <= answer.at and answer.at - answer.latency_s <= end and _told(answer) in refusals
               for start, end, refusals in periods)


def _told(answer: Answer) -> str:
    return str(answer.status or "no answer")


BOXES = (
    Box("Requests are refused only where a fault allows it.", _refusals),
    Box("Rows come again by themselves after each fault.", _recovers),
    Box("Nothing acknowledged is lost, nothing is stored twice.", _kept),
    WHOLE,
    Box("`spillway audit` balances.", _balanced),
)
