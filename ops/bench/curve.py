"""The curves: what becomes of the rate as there are more workers, a longer backlog or a larger table, and of memory.

Over the size of batches and the number of consumers they are in `end_to_end` and `drain`. Each point is held against
the first of its curve.
"""

import time
from collections.abc import Iterator

from ops.bench import cpu, drain, passage
from ops.bench.end_to_end import case
from ops.bench.figure import Figure
from ops.bench.plan import Plan
from ops.bench.rig import Rig

PART = "curves"
WORKER_COUNTS = (1, 2)
_SIZES = (1, 1000)
_SEGMENTS = 10
_POLL_S = 0.02
_TABLE_SIZE = 1000
_EVENTS_PER_BATCH = 100  # of the rows that a table is filled with
_FILL_BYTES = 32 << 20
_MIB = 1 << 20
_FILL_LEDGER = """
INSERT INTO log_batches (batch_id, body_sha256, event_count, received_at)
SELECT gen_random_uuid(), decode(repeat('00', 32), 'hex'), 0, now() FROM generate_series(1, {count})
"""


def workers(rigs: dict[int, Rig], plan: Plan) -> Iterator[Figure]:
    """Measures end to end with each number of gunicorn workers.

    Args:
        rigs: A stack for each number, ascending.
    """
    for size in _SIZES:
        first = 0.0
        for count, rig in rigs.items():
            found = passage.run(rig, plan, size)
            first = first or found.acknowledged
            yield Figure(PART, f"{count} worker{'s' * (count > 1)}, {case(size)}", "acknowledged", "events/s",
                         found.acknowledged, "1 worker", first, found.facts)


def backlog(rig: Rig, plan: Plan) -> Iterator[Figure]:
    """Drains backlogs of single-event batches, the longest tenth by tenth; each is held against the whole of that."""
    found = []
    for count in plan.backlogs[:-1]:
        rig.clear()
        found.append((f"backlog of {count:,} batches", *drain.drained(rig, plan.bodies[1].fresh(count), count)))
    rig.clear()
    longest = plan.backlogs[-1]
    whole, tenths = _by_tenths(rig, plan, longest)
    for case_name, rate, facts in [*found, (f"backlog of {longest:,} batches", whole, {}), *tenths]:
        yield Figure(PART, case_name, "stream to COMMIT", "events/s", rate, f"all of {longest:,} batches", whole, facts)


def _by_tenths(rig: Rig, plan: Plan, count: int) -> tuple[float, list[tuple[str, float, dict[str, float]]]]:
    """Returns the events/s of the whole, and case, events/s and memory of each tenth, or of what went at once."""
    rig.pause(True)
    try:
        rig.fill(plan.bodies[1].fresh(count))
    finally:
        started_at = last_at = time.monotonic()
        rig.pause(False)
    tenths, last_left = [], count
    while last_left:
        while (left := rig.entries()) > max(0, last_left - count // _SEGMENTS):
            time.sleep(_POLL_S)
        at = time.monotonic()
        tenths.append((f"backlog of {count:,} batches, {100 * left / count:.0f} % left",
                       (last_left - left) / (at - last_at), _memory(rig)))
        last_at, last_left = at, left
    whole = count / (last_at - started_at)
    rig.await_stored(count)
    return whole, tenths


def table(rig: Rig, plan: Plan) -> Iterator[Figure]:
    """Measures end to end while the table and the ledger grow."""
    first, rows = 0.0, 0
    rig.clear()
    for wanted in plan.table_rows:
        _fill(rig, plan, wanted - rows)
        rows = wanted
        before = rig.stored()
        rate, stored = _into_table(rig, plan)
        rows += stored - before
        first = first or rate
        yield Figure(PART, f"table of {wanted:,} rows", "HTTP to COMMIT", "events/s", rate, "empty table", first,
                     _memory(rig))
    rig.clear()


def _into_table(rig: Rig, plan: Plan) -> tuple[float, int]:
    before = rig.stored()
    tally = plan.generator.run(rig.ingest, plan.bodies[_TABLE_SIZE].bodies, 8, plan.load_s)
    ended_at = time.monotonic()
    stored = rig.await_stored(before + tally.answers * _TABLE_SIZE)
    return (stored - before) / (tally.seconds + time.monotonic() - ended_at), stored


def _fill(rig: Rig, plan: Plan, row_count: int) -> None:
    """Adds rows by COPY, and batches to the ledger that have none."""
    if row_count <= 0:
        return
    for rows in plan.bodies[_TABLE_SIZE].transactions(row_count, _FILL_BYTES):
        rig.copy(rows)
    rig.execute(_FILL_LEDGER.format(count=row_count // _EVENTS_PER_BATCH))


def _memory(rig: Rig) -> dict[str, float]:
    return {f"memory MiB {name}": held / _MIB for name, held in cpu.resident(rig.stack).items()}
