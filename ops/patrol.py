"""The patrol: audits again and again, shows what stands as metrics, and says once what has changed."""

import logging
import threading
import time
from datetime import UTC, datetime, timedelta

import redis

from app import log
from app.errors import StreamUnavailable
from ops import auditor, metric
from ops.auditor import Auditor
from ops.balance import Gap
from ops.errors import NotReady

logger = logging.getLogger(__name__)

_EVERY_S = 60.0
_MOST_OF_TIME = 20  # an audit takes at most one twentieth of the time, and the servers' with it
_WINDOW = timedelta(hours=1)
_RETENTION = timedelta(days=7)

_Place = tuple[str, str, int]  # the minute, the check, the events


class Patrol:
    """Audits what is new, and prunes what is old.

    Args:
        auditor: Of the service.
        client: Of its Redis.
    """

    def __init__(self, auditor: Auditor, client: redis.Redis) -> None:
        self._auditor = auditor
        self._client = client
        self._seen: set[_Place] = set()
        self._standing: set[_Place] = set()
        self._faults: tuple[str, ...] = ()
        self._is_away = False

    def step(self) -> None:
        """Audits once. A gap stands once a second audit has found it.

        Raises:
            NotReady, StreamUnavailable: A server is away; what the metrics say grows old.
        """
        report = self._auditor.audit_news(datetime.now(UTC) - _WINDOW)
        found = {(minute, gap.check, gap.events): gap for minute, gap in report.findings}
        standing = {place: gap for place, gap in found.items() if place in self._seen}
        self._note(standing, report.stream.faults)
        self._seen = set(found)
        metric.audit_gap.set(sum(abs(events) for _, _, events in standing))
        metric.audit_unbalanced.set(len({minute for minute, _, _ in standing}))
        metric.invariant_broken.set(bool(report.stream.faults))
        metric.audit_timestamp.set(time.time())
        auditor.prune(self._client, report, datetime.now(UTC) - _RETENTION)

    def run(self, stop: threading.Event, every_s: float = _EVERY_S) -> None:
        """Repeats `step` until `stop` is set; goes on when a server is away."""
        while not stop.is_set():
            begun_at = time.monotonic()
            try:
                self.step()
                self._note_away(None)
            except (NotReady, StreamUnavailable) as error:
                self._note_away(error)
            took_s = time.monotonic() - begun_at
            stop.wait(max(every_s - took_s, (_MOST_OF_TIME - 1) * took_s))

    def _note(self, standing: dict[_Place, Gap], faults: tuple[str, ...]) -> None:
        for place in sorted(standing.keys() - self._standing):
            gap = standing[place]
            logger.critical(log.line("audit_unbalanced", minute=place[0], check=gap.check, events=gap.events,
                                     detail=gap.text))
        if self._standing and not standing:
            logger.warning(log.line("audit_balanced"))
        for fault in faults if not self._faults else ():
            logger.critical(log.line("stream_invariant_broken", detail=fault))
        if self._faults and not faults:
            logger.warning(log.line("stream_invariant_holds"))
        self._standing, self._faults = set(standing), faults

    def _note_away(self, error: NotReady | StreamUnavailable | None) -> None:
        if error and not self._is_away:
            logger.warning(log.line("audit_waiting", detail=error))
        if not error and self._is_away:
            logger.warning(log.line("audit_resumed"))
        self._is_away = error is not None
