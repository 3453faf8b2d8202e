"""The curves: what becomes of the rate as there are more workers, a longer backlog or a larger table, and of memory.

Those of the backlog and the table are in `backlog` and `growth`; over the size of batches and the number of consumers,
in `end_to_end` and `drain`. Each point is held against the first of its curve right beside it: two stacks run at once,
are measured by turns, and whichever's turn it is not has nothing to do. So what the machine gives, which drifts by half
within minutes, is in both; and the first point is a point too, held against its like, which shows what is left of that.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from ops.bench import cpu, passage
from ops.bench.end_to_end import case
from ops.bench.figure import Figure
from ops.bench.plan import Plan
from ops.bench.rig import Rig

PART = "curves"
STORED = "stream to COMMIT"
WORKER_COUNTS = (1, 2)
_SIZES = (1, 1000)
_MIB = 1 << 20


class Turn(NamedTuple):
    """What a stack did in its turn: events/s, and facts of a figure."""

    rate: float
    facts: dict[str, float]


def workers(rigs: dict[int, Rig], plan: Plan) -> Iterator[Figure]:
    """Measures a round end to end with each number of gunicorn workers.

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


def by_turns(first: Callable[[], Turn], point: Callable[[], Turn], rounds: int) -> Iterator[tuple[Turn, float]]:
    """Yields what the point did in each round, and events/s of the first, before and after it, in the mean.

    Args:
        first: Has its turn before each of the point's, and after the last.
    """
    before = first().rate
    for _ in range(rounds):
        found = point()
        after = first().rate
        yield found, (before + after) / 2
        before = after


@contextmanager
def unwatched(*rigs: Rig) -> Iterator[None]:
    """Keeps the watch of stacks from looking into what they have.

    It takes at most a twentieth of the time, but at a stretch: of a long backlog, one turn and not the next. And rows
    that came by no batch it would count again and again.
    """
    with ExitStack() as ends:
        for rig in rigs:
            ends.callback(rig.pause, False, "watch")
            rig.pause(True, "watch")
        yield


def memory(rig: Rig) -> dict[str, float]:
    """Returns what each process holds, as facts of a figure."""
    return {f"memory MiB {name}": held / _MIB for name, held in cpu.resident(rig.stack).items()}
