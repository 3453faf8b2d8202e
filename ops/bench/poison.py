"""Poison: a backlog in which PostgreSQL refuses one event in 100,000, loaded by one consumer, beside one without."""

from collections.abc import Iterator

import msgspec

from app.batch import Batch
from ops.bench import drain
from ops.bench.figure import Figure
from ops.bench.plan import Plan
from ops.bench.rig import Rig
from ops.errors import BenchFailed

PART = "poison"
EVERY = 100_000
_SIZE = 1000


def measure(rig: Rig, plan: Plan) -> Iterator[Figure]:
    """Measures one round.

    Raises:
        BenchFailed: Something else was refused than what should be.
    """
    rig.scale(1)
    before, _ = _drained(rig, plan, is_poisoned=False)
    rate, facts = _drained(rig, plan, is_poisoned=True)
    wanted, found = plan.drain_events // EVERY, rig.refused()
    if found != wanted:
        raise BenchFailed(f"PostgreSQL refused {found} events, and should have refused {wanted}")
    after, _ = _drained(rig, plan, is_poisoned=False)
    # Before and after: what changes meanwhile must not be taken for what poison does.
    yield Figure(PART, f"one event in {EVERY:,} refused", "stream to COMMIT", "events/s", rate, "none refused",
                 (before + after) / 2, facts)


def poisoned(batches: Iterator[Batch], every: int) -> Iterator[Batch]:
    """Yields the batches, of so many events one that PostgreSQL refuses: in the middle of the batch in their middle."""
    count = 0
    for one in batches:
        count += one.count
        if (count - every // 2) % every < one.count:
            lines = one.payload.split(b"\n")
            place = one.count // 2
            lines[place] = lines[place].rpartition(b"\t")[0] + b"\tno JSON"
            one = msgspec.structs.replace(one, payload=b"\n".join(lines))
        yield one


def _drained(rig: Rig, plan: Plan, is_poisoned: bool) -> tuple[float, dict[str, float]]:
    rig.clear()
    batches = plan.bodies[_SIZE].fresh(plan.drain_events // _SIZE)
    return drain.drained(rig, poisoned(batches, EVERY) if is_poisoned else batches, plan.drain_events)
