"""Lane: a way to a store. It takes what waits for it as a group, carries that there, and comes round for the next.

While one group is on its way the next one gathers: the busier the worker, the larger the groups. The lanes go each at
its own pace: what keeps one of them waiting must not keep the other.
"""

import logging
import time
from collections.abc import Callable

import gevent
from gevent.event import Event

from app import log, metric
from app.errors import NotDurable
from app.parcel import Parcel, fail

logger = logging.getLogger(__name__)


class Lane:
    """Owns a greenlet.

    Args:
        name: Of the store: `STREAM` or `WAL`.
        take: Returns a group of what waits; an empty one: nothing does.
        carry: Brings a group to the store, and answers it.

    Attributes:
        is_alive: Its greenlet has not ended. All that comes after its end is refused.
    """

    def __init__(self, name: str, take: Callable[[], list[Parcel]], carry: Callable[[list[Parcel]], None]) -> None:
        self.name = name
        self.is_alive = True
        self._take = take
        self._carry = carry
        self._has_work = Event()
        self._oldest_at = 0.0
        self._began_at = 0.0  # 0: it waits for work
        gevent.spawn(self._run).link(self._end)

    def wake(self) -> None:
        """Says that something waits, where nothing did."""
        self._oldest_at = time.monotonic()
        self._has_work.set()

    def busy_s(self) -> float:
        """Returns for how long it has not come round although it has work."""
        return time.monotonic() - self._began_at if self._began_at else 0.0

    def _run(self) -> None:
        while True:
            group, oldest_at = self._take(), self._oldest_at
            if not group:
                self._began_at = 0.0
                self._has_work.clear()
                self._has_work.wait()
                continue
            self._began_at = self._oldest_at = time.monotonic()
            metric.tally.observe(metric.group_batches, len(group))
            try:
                self._carry(group)
                metric.tally.observe(metric.commit_seconds, time.monotonic() - oldest_at)
            except Exception as error:
                # A fault of ours must not end the greenlet that answers every request; nothing is acknowledged.
                logger.exception(log.line("commit_failed"))
                fail(group, _internal(error))
            except BaseException as error:
                fail(group, _internal(error))
                raise

    def _end(self, greenlet: gevent.Greenlet) -> None:
        """Sees to it that nobody waits for what comes no more."""
        self.is_alive = False
        self._began_at = self._began_at or time.monotonic()
        logger.critical(log.line("lane_ended", lane=self.name, why=repr(greenlet.exception or greenlet.value)))
        gevent.spawn(self._refuse)

    def _refuse(self) -> None:
        while True:
            while group := self._take():
                fail(group, NotDurable("internal", f"the lane {self.name} has ended; send it again"))
            self._has_work.clear()
            self._has_work.wait()


def _internal(error: BaseException) -> NotDurable:
    return NotDurable("internal", f"a fault of this service: {error!r}")
