"""How much is measured, and in which sizes: all of it, or the smallest run that still measures everything."""

from typing import NamedTuple

from ops.bench.body import Bodies, events
from ops.bench.load import Generator

SIZES = (1, 10, 100, 1000, 10_000)
# Connections by size of batch: enough that requests gather in both workers while a group is on its way.
CONNECTIONS = {1: 256, 10: 128, 100: 64, 1000: 16, 10_000: 8}


class Plan(NamedTuple):
    """The measure of a run.

    Attributes:
        generator: Of closed-loop load.
        bodies: The same events, by the size of the batches.
        load_s: Of each closed-loop load.
        latency_s: At each rate of the open-loop load.
        drain_events: In the backlog that consumers drain.
        table_events: Rows that each variant of the table takes.
        backlogs: Single-event batches that wait in the stream, ascending.
        hold_s: For how long each of them is held, at least.
        table_rows: Sizes of the table, ascending.
        turns: That each has in a round beside another checkout's.
    """

    generator: Generator
    bodies: dict[int, Bodies]
    load_s: int
    latency_s: float
    drain_events: int
    table_events: int
    backlogs: tuple[int, ...]
    hold_s: float
    table_rows: tuple[int, ...]
    turns: int


def make(generator: Generator, is_quick: bool) -> Plan:
    """Returns the plan of a run; makes the events."""
    pool = events(10_000 if is_quick else 50_000)
    bodies = {size: Bodies(pool, size) for size in SIZES}
    if is_quick:
        return Plan(generator, bodies, 1, 2.0, 100_000, 50_000, (1_000, 10_000), 1.0, (0, 100_000), 1)
    return Plan(generator, bodies, 2, 10.0, 400_000, 200_000, (1_000, 10_000, 100_000, 1_000_000), 6.0,
                (0, 1_000_000, 5_000_000, 20_000_000), 6)
