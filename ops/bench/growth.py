"""The curve over the table: a backlog in the stream, loaded into a table that has grown, beside one that is empty."""

from collections.abc import Iterator

from ops.bench import curve, drain
from ops.bench.curve import Turn
from ops.bench.figure import Figure
from ops.bench.plan import Plan
from ops.bench.rig import Rig

_SIZE = 1000
_DRAINS = 2  # times what `drain` takes: some seconds, of which the one consumer that ends last has little to itself
_EVENTS_PER_BATCH = 100  # of the rows that the table is filled with
_FILL_BYTES = 32 << 20
_FILL_LEDGER = """
INSERT INTO log_batches (batch_id, body_sha256, event_count, received_at)
SELECT gen_random_uuid(), decode(repeat('00', 32), 'hex'), {per_batch}, now() FROM generate_series(1, {count})
"""


def measure(empty: Rig, grown: Rig, plan: Plan, rounds: int) -> Iterator[Figure]:
    """Measures at each size of the table and the ledger; a size is the least, as each round adds a backlog to it.

    What a size was reached by is vacuumed before the rounds, which PostgreSQL would else do within them; what a turn
    itself gives it to do is left to it. Before each turn all that is dirty is written down.

    Args:
        empty: A stack whose tables are emptied before each turn.
        grown: One whose tables grow.
    """
    rows = 0
    grown.clear()
    with curve.unwatched(empty, grown):
        for wanted in plan.table_rows:
            _fill(grown, plan, wanted - rows)
            turns = curve.by_turns(lambda: _turn(empty, plan, True), lambda: _turn(grown, plan, not wanted), rounds)
            for found, first in turns:
                yield Figure(curve.PART, f"table of {wanted:,} rows", curve.STORED, "events/s", found.rate,
                             "empty table", first, found.facts)
            rows = grown.stored()


def _turn(rig: Rig, plan: Plan, is_emptied: bool) -> Turn:
    if is_emptied:
        rig.clear()
    rewrite_s = rig.settle()
    event_count = _DRAINS * plan.drain_events
    rate, facts = drain.drained(rig, plan.bodies[_SIZE].fresh(event_count // _SIZE), event_count)
    return Turn(rate, facts | curve.memory(rig) | {"rewrite s": rewrite_s})


def _fill(rig: Rig, plan: Plan, row_count: int) -> None:
    """Adds rows by COPY, and batches to the ledger that have none."""
    if row_count <= 0:
        return
    for rows in plan.bodies[_SIZE].transactions(row_count, _FILL_BYTES):
        rig.copy(rows)
    rig.execute(_FILL_LEDGER.format(per_batch=_EVENTS_PER_BATCH, count=row_count // _EVENTS_PER_BATCH))
    rig.execute("VACUUM (ANALYZE) log_events, log_batches")
