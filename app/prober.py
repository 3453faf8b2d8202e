"""Prober: knows whether the stream is away. After a failure no group is sent to it, until a probe, on a connection of
its own, finds it taking writes again.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import gevent
from gevent.lock import BoundedSemaphore

from app import log
from app.batch import Batch
from app.errors import StreamUnavailable

logger = logging.getLogger(__name__)


class Stream(Protocol):
    """Redis: `appender.Appender`."""

    def append(self, batches: Sequence[Batch]) -> list[StreamUnavailable | None]:
        """Adds batches; says for each why it was refused."""

    def open(self) -> None:
        """Connects; raises StreamUnavailable if it cannot."""

    def probe(self, max_bytes: int) -> None:
        """Raises StreamUnavailable unless the stream takes writes and is within its bytes."""


class Bounds(NamedTuple):
    """Longest that a group waits for the stream, and most bytes that the stream may have."""

    deadline_s: float
    stream_max_bytes: int


class Prober:
    """Looks after the stream.

    Args:
        stream: The one that groups go by.
        own: The same, on a connection of its own.
        bounds: When it counts as away.
        on_change: Called when it has come or gone.

    Attributes:
        is_available: The stream is not away.
        turn: To use the connection that groups go by.
    """

    def __init__(self, stream: Stream, own: Stream, bounds: Bounds, on_change: Callable[[], None]) -> None:
        self.is_available = True
        self.turn = BoundedSemaphore()
        self._stream = stream
        self._own = own
        self._bounds = bounds
        self._on_change = on_change

    def look(self) -> bool:
        """Returns whether the stream was found."""
        failure = self._failure()
        # A late reply may be this worker's own slowness; whether requests wait too long, they find out themselves.
        if not self.is_available or failure and failure.cause != "deadline":
            self.note(failure)
        return failure is None

    def note(self, error: StreamUnavailable | None) -> None:
        """Takes down how the stream was found by whoever used it; logs once per change of state."""
        if self.is_available == (error is None):
            return
        if error:
            logger.error(log.line("redis_unavailable", fallback="wal", cause=error.cause, detail=error))
        else:
            logger.warning(log.line("redis_available"))
        self.is_available = error is None
        self._on_change()

    def _failure(self) -> StreamUnavailable | None:
        # Back below nine tenths, not at the bound, so as not to swing between the two.
        share = 1.0 if self.is_available else 0.9
        try:
            self._own.open()
            with gevent.Timeout(self._bounds.deadline_s):
                self._own.probe(int(self._bounds.stream_max_bytes * share))
            if not self.is_available:
                # Ahead: on a slow network the round trips of opening alone would cost the next group its deadline.
                with self.turn:
                    self._stream.open()
        except gevent.Timeout:
            return StreamUnavailable("deadline", f"no reply within {self._bounds.deadline_s} s")
        except StreamUnavailable as error:
            return error
        return None
