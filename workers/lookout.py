"""Sees whom a load waits for, while it waits: afterwards nobody knows, and a wait is not told from a slow server.

The load's own connection is busy waiting, so this is a thread with a connection of its own, opened for the first load
that takes long, and closed after it. What it cannot see, as for a role without pg_monitor or a server that has no
connection left, is not known: that harms no load.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

from app import log
from workers import metric
from workers.errors import Blocker

logger = logging.getLogger(__name__)

_LONGEST_NAP_S = 1.0
_CONNECT_TIMEOUT_S = 3
# Never more of a query than its beginning: it may hold what clients have sent.
_BLOCKERS = """
SELECT DISTINCT pid, coalesce(application_name, ''), coalesce(state, ''), coalesce(query_start::text, ''),
    coalesce(left(regexp_replace(query, '\\s+', ' ', 'g'), 80), '')
FROM unnest(pg_blocking_pids(%s)) AS pid LEFT JOIN pg_stat_activity USING (pid) ORDER BY pid
"""


class Lookout:
    """One thread, which looks once a second after loads that take longer than that.

    Args:
        parameters: How it connects.
        timeout_s: Longest that a load may take; where that is short, it looks more often.
    """

    def __init__(self, parameters: dict[str, Any], timeout_s: float) -> None:
        self._parameters = parameters | {"connect_timeout": _CONNECT_TIMEOUT_S}
        self._nap_s = min(_LONGEST_NAP_S, timeout_s / 8)
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._began_at = 0.0
        self._blockers: Sequence[Blocker] = ()
        self._said: frozenset[int] = frozenset()
        threading.Thread(target=self._watch, name="lookout", daemon=True).start()

    @contextmanager
    def over(self, pid: int) -> Iterator[None]:
        """Looks after the backend `pid` until what is within ends; behind a pooler it has to be asked for its pid."""
        with self._lock:
            self._pid, self._began_at, self._blockers = pid, time.monotonic(), ()
        try:
            yield
        finally:
            with self._lock:
                self._pid = None

    def note_committed(self) -> None:
        """Says, if a lock was waited for before, that it is no more."""
        self._blockers = ()
        if self._said:
            self._said = frozenset()
            logger.warning(log.line("lock_is_free"))

    def has_seen_blockers(self) -> bool:
        """Tells, once, whether the last waited for somebody when it was last looked at."""
        with self._lock:
            blockers, self._blockers = self._blockers, ()
            return bool(blockers)

    def _watch(self) -> None:
        connection: Connection | None = None
        while True:
            time.sleep(self._nap_s)
            with self._lock:
                pid, began_at = self._pid, self._began_at
            try:
                if pid is not None and time.monotonic() - began_at >= self._nap_s:
                    connection = connection or self._connected()
                    self._note(pid, began_at, _blockers(connection, pid))
                    continue
            except psycopg2.Error:
                self._note(pid or 0, began_at, ())  # What cannot be seen is not known.
            if connection is not None:
                with suppress(psycopg2.Error):
                    connection.close()
                connection = None

    def _connected(self) -> Connection:
        connection: Connection = psycopg2.connect(**self._parameters)
        connection.autocommit = True
        return connection

    def _note(self, pid: int, began_at: float, blockers: Sequence[Blocker]) -> None:
        with self._lock:
            if (self._pid, self._began_at) != (pid, began_at):
                return  # That load is over.
            self._blockers = blockers
            pids = frozenset(one.pid for one in blockers)
            is_news = bool(pids) and pids != self._said
            self._said = pids or self._said
        if blockers:
            metric.lock_wait_seconds.inc(self._nap_s)
        if is_news:
            logger.warning(log.line("load_waits_for_lock", blocked_by="; ".join(map(str, blockers))))


def _blockers(connection: Connection, pid: int) -> list[Blocker]:
    with connection.cursor() as cursor:
        cursor.execute(_BLOCKERS, [pid])
        return [Blocker(*row) for row in cursor.fetchall()]
