"""Redis down: what is accepted from the WAL alone, beside what the same load came to with Redis just before.

The consumers have nothing to load meanwhile, and the two cores are the edge's alone: the ratio may be above 1.
"""

import json
import time
from collections.abc import Iterator

from ops import listener
from ops.bench import cpu, limit, passage
from ops.bench.end_to_end import case
from ops.bench.figure import Figure
from ops.bench.plan import CONNECTIONS, Plan
from ops.bench.rig import Rig
from ops.errors import BenchFailed

PART = "redis-down"
SIZES = (1, 1000)
_SWITCH_S = 30.0


def measure(rig: Rig, plan: Plan) -> Iterator[Figure]:
    """Measures one round."""
    for size in SIZES:
        normal = passage.run(rig, plan, size)
        rig.clear()
        rig.stop("redis")
        body = plan.bodies[size].bodies[0]
        posted = _await_wal(rig, body)
        before = rig.usage()
        tally = plan.generator.run(rig.ingest, plan.bodies[size].bodies, CONNECTIONS[size], plan.load_s)
        accepted = tally.answers * size
        spent = cpu.per_event(before, rig.usage(), accepted)
        synced = limit.sync(rig.stack.state)
        back_at = time.monotonic()
        rig.start("redis")
        rig.await_stored(accepted + posted * size)
        facts = spent | {"restart to loaded s": time.monotonic() - back_at}
        rate = accepted / tally.seconds
        yield Figure(PART, case(size), "accepted from the WAL", "events/s", rate, "accepted with Redis",
                     normal.acknowledged, facts)
        yield Figure(PART, case(size), "accepted from the WAL", "events/s", rate, "one fdatasync a post",
                     synced.rate * size)


def _await_wal(rig: Rig, body: bytes) -> int:
    """Posts until the WAL answers, and returns how many were accepted."""
    deadline = time.monotonic() + _SWITCH_S
    accepted = 0
    while time.monotonic() < deadline:
        reply = listener.ask(rig.ingest, "/ingest", _SWITCH_S, body)
        accepted += reply.status == 202
        if reply.status == 202 and json.loads(reply.body)["durability"] == "wal":
            return accepted
    raise BenchFailed(f"no request was accepted from the WAL within {_SWITCH_S:.0f} s of Redis's end")
