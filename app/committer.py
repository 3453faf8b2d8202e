"""Group commit: one committer a worker process takes all waiting batches and confirms them together.

No request holds a connection, and while one group is on its way the next one gathers: the busier the worker, the
larger the groups.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import gevent
from gevent.event import AsyncResult, Event

from app import log, metric
from app.batch import Batch
from app.errors import NotDurable, StreamUnavailable

logger = logging.getLogger(__name__)

_MAX_GROUP_BYTES = 8 << 20

_Group = list[tuple[Batch | None, "AsyncResult[None]"]]


class Log(Protocol):
    """Where groups go: `appender.Appender`."""

    def append(self, batches: Sequence[Batch]) -> list[StreamUnavailable | None]: ...


class Committer:
    """Owns the way from a request to the stream.

    When a group fails, all that waited behind it fail with it: so that nobody waits for the deadline twice.

    Args:
        target: Where groups are appended.
        deadline_s: Longest that one group may take.
        spawn: Starts the committing greenlet.
    """

    def __init__(self, target: Log, deadline_s: float, spawn: Callable[..., object] = gevent.spawn) -> None:
        self._target = target
        self._deadline_s = deadline_s
        self._waiting: _Group = []
        self._has_waiting = Event()
        self._is_available = True
        spawn(self._run)

    def commit(self, batch: Batch | None) -> None:
        """Returns once the batch is confirmed; without a batch, once the target shows a sign of life.

        Raises:
            NotDurable: It was not confirmed; whether it is stored is unknown.

        Durability:
            Durable on return, as the target promises it.
        """
        result: AsyncResult[None] = AsyncResult()
        self._waiting.append((batch, result))
        self._has_waiting.set()
        result.get()

    def _run(self) -> None:
        while True:
            self._has_waiting.wait()
            group = self._take()
            try:
                with gevent.Timeout(self._deadline_s):
                    outcomes = self._target.append([batch for batch, _ in group if batch])
                self._answer(group, outcomes)
            except gevent.Timeout:
                self._fail(group, StreamUnavailable("deadline", f"no reply within {self._deadline_s} s"))
            except StreamUnavailable as error:
                self._fail(group, error)
            except Exception as error:
                # A fault of ours must not end the one greenlet that answers every request; nothing is acknowledged.
                logger.exception(log.line("commit_failed"))
                self._fail(group, StreamUnavailable("internal", repr(error)))

    def _take(self) -> _Group:
        """Takes waiting batches, oldest first, up to the bytes of a group, and at least one."""
        size, count = 0, 0
        for batch, _ in self._waiting:
            size += len(batch.payload) if batch else 0
            if count and size > _MAX_GROUP_BYTES:
                break
            count += 1
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        if not self._waiting:
            self._has_waiting.clear()
        metric.group_batches.observe(count)
        return group

    def _answer(self, group: _Group, outcomes: list[StreamUnavailable | None]) -> None:
        batches = [(batch, result) for batch, result in group if batch]
        refusal = next((outcome for outcome in outcomes if outcome), None)
        self._note(refusal)
        for (_, result), outcome in zip(batches, outcomes, strict=True):
            _settle(result, outcome)
        for batch, result in group:
            if batch is None:
                _settle(result, refusal)

    def _fail(self, group: _Group, error: StreamUnavailable) -> None:
        self._note(error)
        behind, self._waiting = self._waiting, []
        self._has_waiting.clear()
        for _, result in group + behind:
            _settle(result, error)

    def _note(self, error: StreamUnavailable | None) -> None:
        """Logs once per change of state."""
        if error and self._is_available:
            logger.error(log.line("redis_unavailable", cause=error.cause, detail=error))
        if not error and not self._is_available:
            logger.warning(log.line("redis_available"))
        self._is_available = error is None


def _settle(result: "AsyncResult[None]", error: StreamUnavailable | None) -> None:
    if error is None:
        result.set(None)
    else:
        failure = NotDurable("stream", "the buffer did not confirm the batch; send it again")
        failure.__cause__ = error
        result.set_exception(failure)
