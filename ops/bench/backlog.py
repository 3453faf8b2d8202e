"""The curve over the backlog: the rate while so many single-event batches wait, beside that while the fewest do.

A backlog that is drained has each length for a moment alone, and a short one is less than a load. So its length is
held, by a filler (`filler`), which both stacks pay for alike: with Redis's CPU, and with its memory for the stock. What
waits is what was not given to a consumer yet.

A load takes up to thousands of such batches and up to seconds, and a turn ends in the midst of one. So events are not
counted from the turn's beginning to its end, but for each consumer from the first load that it let go of within the
turn to the last: whole loads, over the time that they took. CPU is that of the turn, over as many events as the rate
makes of its time.

Redis rewrites its file before each turn, and not within one: a fact of each figure says how long that takes, which
grows with the backlog. It does so each time that its file has doubled.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice

from app.batch import Batch
from ops.bench import cpu, curve, load
from ops.bench.curve import Turn
from ops.bench.figure import Figure
from ops.bench.filler import Filler
from ops.bench.plan import Plan
from ops.bench.rig import Rig
from ops.errors import BenchFailed

# Consumers stand still while others are filled and have their turn: nobody may give them up meanwhile.
SETTINGS = {"SPILLWAY_SINK_TIMEOUT_S": "1200", "SPILLWAY_CLAIM_IDLE_S": "3600"}
_STOCK_PER_S = 25_000  # more than is loaded; what lacks all the same is made within the turn
_POLL_S = 0.001
_LEAST_LOADS = 2  # of each consumer, whole within a turn
_LONGEST_TURN_S = 120.0


class Progress:
    """What one consumer lets go of within a turn.

    Args:
        total: Events that it had before.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._marks: list[tuple[float, int]] = []

    def note(self, at_s: float, total: int) -> None:
        """Notes how many it has let go of by then; times ascend."""
        if total > self._total:
            self._marks.append((at_s, total))
            self._total = total

    @property
    def load_count(self) -> int:
        """Loads that began and ended within the turn, or more of them seen as one."""
        return max(0, len(self._marks) - 1)

    @property
    def rate(self) -> float:
        """Events/s over those."""
        (began_at, before), (ended_at, after) = self._marks[0], self._marks[-1]
        return (after - before) / (ended_at - began_at)


class Backlog:
    """A backlog whose length is held; the consumers stand still but in a turn.

    Args:
        rig: Whose stream it is in.
        filler: Of that stream.
        batches: To begin with, as many as are ever wanted.
    """

    def __init__(self, rig: Rig, filler: Filler, batches: Iterator[Batch]) -> None:
        self._rig = rig
        self._filler = filler
        self._batches = batches

    def fill(self, length: int) -> None:
        """Makes it so long."""
        self._rig.fill(islice(self._batches, max(0, length - self._rig.waiting())))

    def turn(self, length: int, least_s: float) -> Turn:
        """Lets the consumers load for so long at least, while so many batches wait, but for what they have just taken.

        Raises:
            BenchFailed: One of them does not come to two whole loads.
        """
        self.fill(length)
        self._filler.stock(round(_STOCK_PER_S * least_s))
        rewrite_s = self._rig.settle()
        consumers = {one.pid: Progress(self._rig.loaded(one.pid)) for one in self._rig.consumers()}
        before, own_s, redis_s = self._rig.usage(), time.process_time(), self._filler.redis_s()
        began_at = time.monotonic()
        self._rig.pause(False)
        try:
            with load.steady():
                self._hold(length, consumers, began_at, least_s)
            spent_s, own_s = time.monotonic() - began_at, time.process_time() - own_s
            after, held, redis_s = self._rig.usage(), curve.memory(self._rig), self._filler.redis_s() - redis_s
        finally:
            self._rig.pause(True)
        rate = sum(one.rate for one in consumers.values())
        count = round(rate * spent_s)
        spent = {"cpu_us load generator": own_s / count * 1e6, "cpu_us of redis, adding": redis_s / count * 1e6}
        return Turn(rate, cpu.per_event(before, after, count) | spent | held | {"rewrite s": rewrite_s})

    def _hold(self, length: int, consumers: dict[int, Progress], began_at: float, least_s: float) -> None:
        while True:
            now = time.monotonic()
            for pid, one in consumers.items():
                one.note(now, self._rig.loaded(pid))
            if now - began_at >= least_s and all(one.load_count >= _LEAST_LOADS for one in consumers.values()):
                return
            if now - began_at > _LONGEST_TURN_S:
                raise BenchFailed(f"a consumer did not load {_LEAST_LOADS} times within {_LONGEST_TURN_S:.0f} s")
            if not self._filler.add(length):
                time.sleep(_POLL_S)


def measure(short: Rig, long: Rig, plan: Plan, rounds: int) -> Iterator[Figure]:
    """Measures at each length, ascending.

    Args:
        short: A stack that has the first length, always.
        long: One whose backlog grows.
    """
    first, *_ = plan.backlogs
    with ExitStack() as ends:
        ends.enter_context(curve.unwatched(short, long))
        one, other = (_backlog(ends, rig, plan) for rig in (short, long))
        for length in plan.backlogs:
            other.fill(length)  # takes long, and would stand between a turn and the one that it is held against
            turns = curve.by_turns(
                lambda: one.turn(first, plan.hold_s), lambda: other.turn(length, plan.hold_s), rounds,
            )
            for found, limit in turns:
                yield Figure(curve.PART, f"backlog of {length:,} batches", curve.STORED, "events/s", found.rate,
                             f"{first:,} batches", limit, found.facts)


def _backlog(ends: ExitStack, rig: Rig, plan: Plan) -> Backlog:
    batches = plan.bodies[1].fresh(sys.maxsize)
    filler = Filler(rig.facts.redis_url, batches)
    ends.callback(filler.close)
    ends.callback(rig.pause, False)
    rig.pause(True)
    return Backlog(rig, filler, batches)
