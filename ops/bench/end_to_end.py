"""From HTTP to COMMIT, by the size of the batches: beside a bare COPY of the same rows, and for single events beside
what stock gunicorn answers empty. Also with the write-ahead log before Redis (`SPILLWAY_WAL=always`).
"""

from collections.abc import Iterator

from psycopg2.extensions import connection as Connection

from ops.bench import limit, passage
from ops.bench.figure import Figure
from ops.bench.passage import Passage
from ops.bench.plan import CONNECTIONS, Plan
from ops.bench.rig import Rig

PART = "end-to-end"
_ALWAYS_SIZES = (1, 1000)
WAYS = {"stored": "HTTP to COMMIT", "acknowledged": "acknowledged", "always": "HTTP to COMMIT, WAL=always",
        "posts": "posts acknowledged"}


def case(size: int) -> str:
    """Returns how batches of a size are called."""
    return f"batches of {size:,}"


def measure(rig: Rig, always: Rig, bare: Connection, empty_url: str, plan: Plan, copy_bytes: int) -> Iterator[Figure]:
    """Measures one round.

    Args:
        rig: The stack as it is set.
        always: One that writes ahead.
        bare: A connection to the tables for the bare COPY.
        empty_url: Where stock gunicorn answers empty.
        plan: How long, and what.
        copy_bytes: Of one transaction of the bare COPY.
    """
    for size in plan.bodies:
        found = passage.run(rig, plan, size)
        copied = limit.copy_rate(bare, plan.bodies[size], found.event_count, copy_bytes)
        yield Figure(PART, case(size), WAYS["stored"], "events/s", found.stored, "bare COPY", copied, found.facts)
        yield Figure(PART, case(size), WAYS["acknowledged"], "events/s", found.acknowledged, "bare COPY", copied)
        if size == 1:
            empty = plan.generator.run(empty_url, [], CONNECTIONS[1], plan.load_s)
            yield Figure(PART, case(1), WAYS["posts"], "requests/s", found.acknowledged,
                         "one stock gunicorn gevent worker, empty", empty.rate)
        if size in _ALWAYS_SIZES:
            yield _written_ahead(passage.run(always, plan, size), found, size)


def _written_ahead(ahead: Passage, normal: Passage, size: int) -> Figure:
    return Figure(PART, case(size), WAYS["always"], "events/s", ahead.stored, "WAL=fallback", normal.stored,
                  ahead.facts)
