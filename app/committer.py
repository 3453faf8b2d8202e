"""Group commit: one committer a worker process takes all waiting batches and makes them durable together.

No request holds a connection. There is a lane to the stream and one to the WAL, and what hangs in one of them does not
keep the other waiting: what the stream does not confirm goes on to the WAL, all of it under one sync; while the stream
is away, or in write-ahead mode, what waits goes there at once.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

import gevent

from app import log, metric
from app.batch import Batch
from app.errors import NotDurable, StreamUnavailable
from app.lane import Lane
from app.parcel import STREAM, WAL, Parcel, Queue, batches_of, confirm, fail
from app.prober import Bounds, Prober, Stream
from app.ticket import Ticket

logger = logging.getLogger(__name__)

_MAX_GROUP_BYTES = 8 << 20
_PROBE_EVERY_S = 0.5


class Wal(Protocol):
    """The write-ahead log: `spill.Spill`. No call takes longer than its deadline."""

    def append(self, batches: Sequence[Batch]) -> None:
        """Writes batches; raises NotDurable for all of them."""

    def check(self) -> None:
        """Raises NotDurable unless there is room."""

    def seal(self) -> None:
        """Ends the segment at hand; waits for nothing."""

    def busy_s(self) -> float:
        """Returns for how long the disk has not answered."""


class Committer:
    """Owns the way from a request to a durable store.

    Args:
        stream: Where groups go first.
        wal: Where they go when the stream does not confirm.
        own: The stream, on a connection of its own, for probing.
        bounds: When the stream counts as away.
        is_wal_first: Write-ahead mode: groups go to the WAL alone.
        stall_s: A lane that has not come round for so long has stalled.

    Attributes:
        next_id: As `Queue.next_id`: committed before the next one is asked for, its batch may be merged.
    """

    def __init__(self, stream: Stream, wal: Wal, own: Stream, bounds: Bounds, is_wal_first: bool = False,
                 stall_s: float = 10.0) -> None:
        self._stream = stream
        self._wal = wal
        self._deadline_s = bounds.deadline_s
        self._is_wal_first = is_wal_first
        self._stall_s = stall_s
        self._waiting = Queue()
        self._for_wal = Queue()
        self.next_id = self._waiting.next_id
        self._has_spilled = False
        self._prober = Prober(stream, own, bounds, self._route)
        self._to_stream = Lane(STREAM, self._taken_for_stream, self._append)
        self._to_wal = Lane(WAL, self._taken_for_wal, self._spill)
        self._lane = self._to_stream  # of what waits
        self._route()
        gevent.spawn(self._look_after)

    def commit(self, batch: Batch | None, is_for_wal: bool = False, sent_bytes: int = 0) -> str:
        """Returns what made the batch durable, `STREAM` or `WAL`; without a batch, what would.

        Args:
            batch: To be stored.
            is_for_wal: Not to be offered to the stream. That says nothing about the stream: others go there.
            sent_bytes: The body that it was made of, as sent; for the metrics.

        Raises:
            NotDurable: Nothing did; whether it is stored is unknown.

        Durability:
            Durable on return.
        """
        ticket = Ticket(batch, sent_bytes)
        queue = self._for_wal if is_for_wal else self._waiting
        if not queue:
            (self._to_wal if is_for_wal else self._lane).wake()
        queue.put(ticket)
        return ticket.wait()

    def check(self) -> None:
        """Returns if a batch that came now would be confirmed, and no lane has stalled; waits no longer than for that.

        Raises:
            NotDurable: It would not, or one has: the detail names it.
        """
        stalled = self._stalled()
        if not stalled:
            with gevent.Timeout(self._stall_s, False):
                self.commit(None)
                return
            stalled = self._stalled()
        names = " and ".join(stalled) or "?"
        raise NotDurable("stalled", f"lane {names}: has not come round for {self._stall_s:g} s")

    def ended(self) -> list[str]:
        """Returns the names of lanes whose greenlets have ended: what they carry is refused until a restart."""
        return [lane.name for lane in (self._to_stream, self._to_wal) if not lane.is_alive]

    def _stalled(self) -> list[str]:
        return [name for name, busy_s in self._busy_s().items() if busy_s >= self._stall_s]

    def _busy_s(self) -> dict[str, float]:
        """Returns for how long each lane has not come round although it has work."""
        # Past its deadline the WAL's lane goes on, and refuses what comes: its thread is where it hangs.
        return {STREAM: self._to_stream.busy_s(), WAL: max(self._to_wal.busy_s(), self._wal.busy_s())}

    def _route(self) -> None:
        """Sets the lane that takes what waits."""
        self._lane = self._to_stream if self._prober.is_available and not self._is_wal_first else self._to_wal
        if self._waiting:
            self._lane.wake()

    def _taken_for_stream(self) -> list[Parcel]:
        return self._waiting.take(_MAX_GROUP_BYTES) if self._lane is self._to_stream else []

    def _taken_for_wal(self) -> list[Parcel]:
        if self._lane is self._to_wal:
            self._for_wal.add(self._waiting.take(_MAX_GROUP_BYTES))
        return self._for_wal.take(_MAX_GROUP_BYTES)

    def _append(self, group: list[Parcel]) -> None:
        """Appends a group to the stream, answers what that confirmed, and hands the rest on."""
        try:
            with self._prober.turn, gevent.Timeout(self._deadline_s):
                outcomes = iter(self._stream.append(batches_of(group)))
        except gevent.Timeout:
            return self._hand_on(group, StreamUnavailable("deadline", f"no reply within {self._deadline_s} s"))
        except StreamUnavailable as error:
            return self._hand_on(group, error)
        confirmed: list[Parcel] = []
        left: list[Parcel] = []
        refusal = None
        try:
            for parcel in group:
                outcome = next(outcomes) if parcel.batch else None
                refusal = outcome or refusal
                (left if outcome else confirmed).append(parcel)
        finally:
            confirm(confirmed, STREAM)
        if refusal:
            self._hand_on(left, refusal)

    def _hand_on(self, group: list[Parcel], error: StreamUnavailable) -> None:
        """Leaves to the WAL's lane what the stream has not confirmed."""
        self._prober.note(error)
        if not self._for_wal:
            self._to_wal.wake()
        self._for_wal.add(group)

    def _spill(self, group: list[Parcel]) -> None:
        """Writes a group to the WAL and answers it."""
        batches = batches_of(group)
        try:
            if batches:
                self._has_spilled = True
                self._wal.append(batches)
            else:
                self._wal.check()
        except NotDurable as error:
            fail(group, error)
        else:
            confirm(group, WAL)

    def _look_after(self) -> None:
        """Probes the stream, tells how the lanes are, and ends a segment that nothing more will go to."""
        while True:
            gevent.sleep(_PROBE_EVERY_S)
            try:
                for name, busy_s in self._busy_s().items():
                    metric.lane_stalled.labels(name).set(busy_s)
                # Not while the stream is away: rare requests would then take a segment each.
                if self._prober.look() and not self._has_spilled:
                    self._wal.seal()
                self._has_spilled = False
            except Exception:
                logger.exception(log.line("probe_failed"))  # The next one may do better.
