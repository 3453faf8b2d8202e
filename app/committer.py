"""Group commit: one committer a worker process takes all waiting batches and makes them durable together.

No request holds a connection, and while one group is on its way the next one gathers: the busier the worker, the
larger the groups, and the more small requests share a parcel. What the stream does not confirm goes to the WAL, all of
it under one sync; after a failure later groups go there at once, until a probe on a connection of its own finds the
stream taking writes again.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from app import log, metric
from app.batch import Batch
from app.errors import NotDurable, StreamUnavailable
from app.parcel import Parcel, Queue
from app.ticket import Ticket, wake

logger = logging.getLogger(__name__)

_MAX_GROUP_BYTES = 8 << 20
_PROBE_EVERY_S = 0.5

STREAM, WAL = "stream", "wal"
_ACCEPTED = {one: (metric.accepted_batches.labels(one), metric.accepted_events.labels(one)) for one in (STREAM, WAL)}


class Stream(Protocol):
    """Redis: `appender.Appender`."""

    def append(self, batches: Sequence[Batch]) -> list[StreamUnavailable | None]:
        """Adds batches; says for each why it was refused."""

    def open(self) -> None:
        """Connects; raises StreamUnavailable if it cannot."""

    def probe(self, max_bytes: int) -> None:
        """Raises StreamUnavailable unless the stream takes writes and is within its bytes."""


class Wal(Protocol):
    """The write-ahead log: `spill.Spill`."""

    def append(self, batches: Sequence[Batch]) -> None:
        """Writes batches; raises NotDurable for all of them."""

    def seal(self) -> None:
        """Ends the segment at hand."""


class Bounds(NamedTuple):
    """Longest that a group waits for the stream, and most bytes that the stream may have."""

    deadline_s: float
    stream_max_bytes: int


class Committer:
    """Owns the way from a request to a durable store.

    Args:
        stream: Where groups go first.
        wal: Where they go when the stream does not confirm.
        prober: The stream, on a connection of its own.
        bounds: When the stream counts as away.
        is_wal_first: Write-ahead mode: groups go to the WAL alone.
        spawn: Starts greenlets.

    Attributes:
        next_id: As `Queue.next_id`: committed before the next one is asked for, its batch may be merged.
    """

    def __init__(self, stream: Stream, wal: Wal, prober: Stream, bounds: Bounds, is_wal_first: bool = False,
                 spawn: Callable[..., object] = gevent.spawn) -> None:
        self._stream = stream
        self._wal = wal
        self._prober = prober
        self._bounds = bounds
        self._is_wal_first = is_wal_first
        self._waiting = Queue()
        self.next_id = self._waiting.next_id
        self._oldest_at = 0.0
        self._has_waiting = Event()
        self._is_available = True
        self._stream_turn = BoundedSemaphore()
        self._wal_turn = BoundedSemaphore()
        self._wal_failure: NotDurable | None = None
        self._has_spilled = False
        spawn(self._run)
        spawn(self._probe)

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
        if not self._waiting:
            self._oldest_at = time.monotonic()
            self._has_waiting.set()
        self._waiting.put(ticket, is_for_wal)
        return ticket.wait()

    def _run(self) -> None:
        while True:
            self._has_waiting.wait()
            group, oldest_at = self._take(), self._oldest_at
            self._oldest_at = time.monotonic()
            try:
                self._spilled(group if self._is_wal_first or not self._is_available else self._streamed(group))
                metric.tally.observe(metric.commit_seconds, time.monotonic() - oldest_at)
            except Exception as error:
                # A fault of ours must not end the one greenlet that answers every request; nothing is acknowledged.
                logger.exception(log.line("commit_failed"))
                _fail(group, NotDurable("internal", f"a fault of this service: {error!r}"))

    def _take(self) -> list[Parcel]:
        group = self._waiting.take(_MAX_GROUP_BYTES)
        if not self._waiting:
            self._has_waiting.clear()
        metric.tally.observe(metric.group_batches, len(group))
        return group

    def _streamed(self, group: list[Parcel]) -> list[Parcel]:
        """Appends a group to the stream, answers what that confirmed, and returns the rest."""
        left = [one for one in group if one.is_for_wal]
        if left and not (group := [one for one in group if not one.is_for_wal]):
            return left
        try:
            with self._stream_turn, gevent.Timeout(self._bounds.deadline_s):
                outcomes = iter(self._stream.append(_batches(group)))
        except gevent.Timeout:
            self._note(StreamUnavailable("deadline", f"no reply within {self._bounds.deadline_s} s"))
            return group + left
        except StreamUnavailable as error:
            self._note(error)
            return group + left
        confirmed: list[Parcel] = []
        try:
            for parcel in group:
                refusal = next(outcomes) if parcel.batch else None
                if refusal:
                    self._note(refusal)
                (left if refusal else confirmed).append(parcel)
        finally:
            _confirm(confirmed, STREAM)
        return left

    def _spilled(self, group: list[Parcel]) -> None:
        """Writes what is left of a group to the WAL and answers it."""
        batches = _batches(group)
        try:
            if batches:
                self._has_spilled = True
                with self._wal_turn:
                    self._wal.append(batches)
                self._wal_failure = None
            elif group and self._wal_failure:
                raise self._wal_failure
        except NotDurable as error:
            self._wal_failure = error
            _fail(group, error)
        else:
            _confirm(group, WAL)

    def _probe(self) -> None:
        """Looks after the stream on a connection of its own, and ends a segment that nothing more will go to."""
        while True:
            gevent.sleep(_PROBE_EVERY_S)
            try:
                self._look_after()
            except Exception:
                logger.exception(log.line("probe_failed"))  # The next one may do better.

    def _look_after(self) -> None:
        failure = self._probed()
        # A late reply may be this worker's own slowness; whether requests wait too long, they find out themselves.
        if not self._is_available or failure and failure.cause != "deadline":
            self._note(failure)
        # Not while the stream is away: rare requests would then take a segment each.
        if not failure and not self._has_spilled:
            with self._wal_turn:
                self._wal.seal()
        self._has_spilled = False

    def _probed(self) -> StreamUnavailable | None:
        # Back below nine tenths, not at the bound, so as not to swing between the two.
        share = 1.0 if self._is_available else 0.9
        try:
            self._prober.open()
            with gevent.Timeout(self._bounds.deadline_s):
                self._prober.probe(int(self._bounds.stream_max_bytes * share))
            if not self._is_available:
                # Ahead: on a slow network the round trips of opening alone would cost the next group its deadline.
                with self._stream_turn:
                    self._stream.open()
        except gevent.Timeout:
            return StreamUnavailable("deadline", f"no reply within {self._bounds.deadline_s} s")
        except StreamUnavailable as error:
            return error
        return None

    def _note(self, error: StreamUnavailable | None) -> None:
        """Logs once per change of state."""
        if error and self._is_available:
            logger.error(log.line("redis_unavailable", fallback="wal", cause=error.cause, detail=error))
        if not error and not self._is_available:
            logger.warning(log.line("redis_available"))
        self._is_available = error is None


def _batches(group: list[Parcel]) -> list[Batch]:
    return [parcel.batch for parcel in group if parcel.batch]


def _confirm(group: list[Parcel], durability: str) -> None:
    tickets = [ticket for parcel in group for ticket in parcel.tickets]
    for ticket in tickets:
        ticket.settle(durability)
    wake(tickets)
    if batches := _batches(group):
        accepted_batches, accepted_events = _ACCEPTED[durability]
        metric.tally.add(accepted_batches, sum([1 for ticket in tickets if ticket.batch]))
        metric.tally.add(accepted_events, sum([batch.count for batch in batches]))
        metric.tally.add(metric.body_bytes, sum([ticket.sent_bytes for ticket in tickets]))


def _fail(group: list[Parcel], error: NotDurable) -> None:
    left = [ticket for parcel in group for ticket in parcel.tickets if not ticket.is_done]
    for ticket in left:
        ticket.settle("", error)
    wake(left)
