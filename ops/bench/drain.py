"""Drain: a backlog that lies in the stream, loaded by so many consumers and nothing else, beside a bare COPY."""

import time
from collections.abc import Iterator

from psycopg2.extensions import connection as Connection

from app.batch import Batch
from ops.bench import cpu, limit
from ops.bench.figure import Figure
from ops.bench.plan import Plan
from ops.bench.rig import Rig

PART = "drain"
CONSUMERS = (4, 3, 2, 1)  # downwards: a stop takes less than a start
_SIZE = 1000


def case(count: int) -> str:
    """Returns how so many consumers are called."""
    return "1 consumer" if count == 1 else f"{count} consumers"


def measure(rig: Rig, bare: Connection, plan: Plan, copy_bytes: int) -> Iterator[Figure]:
    """Measures one round."""
    copied = limit.copy_rate(bare, plan.bodies[_SIZE], plan.drain_events, copy_bytes)
    for count in CONSUMERS:
        rig.scale(count)
        rig.clear()
        batches = plan.bodies[_SIZE].fresh(plan.drain_events // _SIZE)
        rate, facts = drained(rig, batches, plan.drain_events)
        yield Figure(PART, case(count), "stream to COMMIT", "events/s", rate, "bare COPY", copied, facts)


def drained(rig: Rig, batches: Iterator[Batch], event_count: int) -> tuple[float, dict[str, float]]:
    """Fills the stream while the consumers are paused, lets them go; returns events/s and CPU an event.

    Raises:
        BenchFailed: The rows did not come.
    """
    stored = rig.stored()
    rig.pause(True)
    try:
        rig.fill(batches)
        before = rig.usage()
    finally:
        started_at = time.monotonic()
        rig.pause(False)
    rig.await_empty()
    spent_s = time.monotonic() - started_at
    rig.await_stored(stored + event_count)  # not within the time: the ledger of a large table takes long to add up
    return event_count / spent_s, cpu.per_event(before, rig.usage(), event_count)
