"""One passage: closed-loop load from HTTP to rows, with the consumers loading meanwhile."""

import time
from typing import NamedTuple

from ops.bench import cpu
from ops.bench.plan import CONNECTIONS, Plan
from ops.bench.rig import Rig


class Passage(NamedTuple):
    """What went through.

    Attributes:
        acknowledged: Events/s answered with 202 while the load lasted.
        stored: Events/s until the last was committed and released.
        event_count: Rows.
        backlog: Events acknowledged and not committed when the load ended.
        facts: CPU an event by process, and how long the consumers took to catch up.
    """

    acknowledged: float
    stored: float
    event_count: int
    backlog: int
    facts: dict[str, float]


def run(rig: Rig, plan: Plan, size: int) -> Passage:
    """Loads for `plan.load_s` in batches of that size, and waits for the rows.

    Raises:
        BenchFailed: A request was refused, or the rows did not come.
    """
    rig.clear()
    before = rig.usage()
    tally = plan.generator.run(rig.ingest, plan.bodies[size].bodies, CONNECTIONS[size], plan.load_s)
    ended_at = time.monotonic()
    accepted = tally.answers * size
    backlog = max(0, accepted - rig.stored())
    stored = rig.await_stored(accepted)
    drain_s = time.monotonic() - ended_at
    spent = cpu.per_event(before, rig.usage(), stored) | {"cpu_us load generator": tally.cpu_s / stored * 1e6}
    return Passage(accepted / tally.seconds, stored / (tally.seconds + drain_s), stored, backlog,
                   spent | {"backlog events": float(backlog), "catch-up s": drain_s})
