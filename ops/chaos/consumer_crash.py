"""Experiment 3: a consumer dies with entries in its hands, and others take them over."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ops.chaos import interrupt
from ops.chaos.box import BALANCED, NO_LOSS, WHOLE, Box, Finding
from ops.chaos.evidence import Evidence, Sample
from ops.chaos.recorder import held
from ops.chaos.stage import Stage
from ops.errors import ChaosFailed

_TRIES = 400
_CLAIM_SLACK_S = 5.0


def play(stage: Stage) -> Evidence:
    """A consumer that holds entries is killed with SIGKILL, and stays down until others have taken them over."""
    facts = stage.evidence.facts
    facts["consumers"] = len(stage.target.consumers())
    if facts["consumers"] < 2:
        raise ChaosFailed("there are fewer than two consumers: nobody could take over")
    with stage.played():
        stage.baseline()
        with _all_run_afterwards(stage):
            process, facts["victim"], facts["held"] = _crash(stage)
            stage.mark("injected", f"{process} is killed, with {facts['held']} entries pending")
            crashed_at = time.time()
            stage.until(lambda seen: seen.at > crashed_at and _held(seen, facts["victim"]) == 0,
                        facts["claim_idle_s"] + 30.0)
            stage.hold(5.0)
        stage.hold(5.0)
        return stage.finish()


@contextmanager
def _all_run_afterwards(stage: Stage) -> Iterator[None]:
    """Whatever happens, no consumer stays frozen or down."""
    consumers = stage.target.consumers()
    try:
        yield
    finally:
        with interrupt.postponed():
            stage.mark("heal")
            for process in consumers:
                stage.target.start(process)
            stage.mark("healed")


def _crash(stage: Stage) -> tuple[str, str, int]:
    """Kills the first consumer that has entries pending while it is stopped; returns its names and how many it has."""
    target = stage.target
    for attempt in range(_TRIES):
        consumers = target.consumers()
        process = consumers[attempt % len(consumers)]
        victim = target.consumer_of(process)
        target.freeze(process)
        count, _ = (held(target.places.admin_url) or {}).get(victim, (0, 0))
        if count:
            stage.mark("inject")
            target.crash(process)
            return process, victim, count
        target.thaw(process)
        time.sleep(0.01 * (attempt % 7))
    raise ChaosFailed("no consumer had entries pending at any moment: the load is too low to crash one at work")


def _held(seen: Sample, consumer: str) -> int:
    """Returns how many entries it has; -1 where that could not be told."""
    return -1 if seen.held is None else seen.held.get(consumer, (0, 0))[0]


def _pending_become_idle(evidence: Evidence) -> Finding:
    victim, start = evidence.facts["victim"], evidence.at("injected")
    seen = [sample.held[victim] for sample in evidence.samples
            if sample.held and victim in sample.held and start <= sample.at < evidence.at("heal")]
    idle = [idle_ms for count, idle_ms in seen if count]
    return Finding(len(idle) >= 2 and idle[-1] > idle[0],
                   f"{victim}, one of {evidence.facts['consumers']} consumers, held {evidence.facts['held']} entries; "
                   f"they were idle for {max(idle, default=0) / 1000:.1f} s at most")


def _claimed(evidence: Evidence) -> Finding:
    victim, start = evidence.facts["victim"], evidence.at("injected")
    lines = [line for line in evidence.said("consumer", "entries_claimed", start)
             if line.field("from_consumer") == victim]
    after_s = lines[-1].at - start if lines else float("inf")
    limit_s = evidence.facts["claim_idle_s"] + _CLAIM_SLACK_S
    counted = evidence.values("claimed_entries", start, evidence.at("verified"))
    gained = max(counted, default=0.0) - min(counted, default=0.0)
    return Finding(bool(lines) and after_s <= limit_s and gained >= evidence.facts["held"],
                   f"{gained:,.0f} entries claimed {after_s:.1f} s after the kill (idle time "
                   f"{evidence.facts['claim_idle_s']} s) · {lines[0].text if lines else 'no line entries_claimed'}")


BOXES = (
    Box("Messages that were being processed by the killed consumer will become idle.", _pending_become_idle),
    Box("After the idle timeout, the healthy consumer should claim the pending messages from the dead consumer.",
        _claimed),
    NO_LOSS,
    WHOLE,
    BALANCED,
)
