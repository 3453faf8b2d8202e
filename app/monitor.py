"""`GET /batches/<id>`: the status monitor that a 202 points to (RFC 9110, section 15.3.3). Reads the ledger.

Whoever waits here holds one of the connections that `/ingest` is posted on: few may, and none for long, however long
the database is silent.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from uuid import UUID

import falcon
import gevent
import msgspec
import psycopg2
from falcon import Request, Response
from gevent.event import AsyncResult
from gevent.lock import BoundedSemaphore
from gevent.threadpool import ThreadPool

from app import batch

_MAX_QUERIES = 2
_MAX_WAITING = 16
_DEADLINE_S = 3.0
_CONNECT_S = 2  # libpq takes no less

_Row = dict[str, object] | None

# Nothing is set for a session: behind a pooler it is somebody else's a moment later, and one may refuse `options`. The
# server's own timeout is for what only waits there: a backend that waits for a lock does not see that we are gone.
_QUERY = """
SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = '2s';
SELECT event_count, dead_events, received_at, loaded_at, part_counts FROM log_batches WHERE batch_id IN (%s, %s)
ORDER BY part_counts IS NOT NULL
"""


class Monitor:
    """The resource. psycopg2 would block every request of the worker, so that queries run in threads of their own.

    Args:
        url: libpq URL.
        deadline_s: Longest that a query may take, and longest that a request waits for its turn.
    """

    def __init__(self, url: str, deadline_s: float = _DEADLINE_S) -> None:
        self._url = url
        self._deadline_s = deadline_s
        self._threads = ThreadPool(_MAX_QUERIES)
        self._turns = BoundedSemaphore(_MAX_QUERIES)
        self._waiting_count = 0

    def on_get(self, req: Request, resp: Response, batch_id: UUID) -> None:
        """Answers 200 once the batch is stored; 404 before, and for what was never accepted; 503 when unknown."""
        try:
            row = self._row(str(batch_id))
        except psycopg2.Error as error:
            raise falcon.HTTPServiceUnavailable(description="the database does not answer", retry_after=1) from error
        if row is None:
            raise falcon.HTTPNotFound(
                description="not stored: on its way, or never accepted", headers={"Retry-After": "1"}
            )
        resp.data = msgspec.json.encode({"batch_id": str(batch_id), "state": "stored", **row})

    def _row(self, batch_id: str) -> _Row:
        with self._place():
            query = _Query(self._url, batch_id)
            asked = self._threads.spawn(query.run)
            asked.rawlink(lambda _: self._end(query))
            return _answer(asked, query, self._deadline_s)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Waits until a thread is free, which `_end` says again.

        Raises:
            psycopg2.OperationalError: It took too long, or too many wait.
        """
        if self._waiting_count >= _MAX_WAITING:
            raise psycopg2.OperationalError("too many wait for an answer")
        self._waiting_count += 1
        try:
            if not self._turns.acquire(timeout=self._deadline_s):
                raise psycopg2.OperationalError("those before have not been answered")
            yield
        finally:
            self._waiting_count -= 1

    def _end(self, query: "_Query") -> None:
        query.close()
        self._turns.release()


def _answer(asked: "AsyncResult[_Row]", query: "_Query", deadline_s: float) -> "_Row":
    try:
        row: _Row = asked.get(timeout=deadline_s)
        return row
    except gevent.Timeout as error:
        query.cut()
        raise psycopg2.OperationalError(f"no answer from PostgreSQL in {deadline_s:g} s") from error


class _Query:
    """One question to the ledger, on a connection of its own. `run` belongs to a thread, all else to the hub.

    libpq waits in C, where neither an exception nor, while the server is stopped, its own timeouts reach it: what ends
    the wait is to shut its socket down.
    """

    def __init__(self, url: str, batch_id: str) -> None:
        self._url = url
        self._batch_id = batch_id
        self._is_cut = False
        self._line: int | None = None

    def run(self) -> _Row:
        """Returns what the ledger says of a request: of its batch, or of its part in a merged one."""
        connection = psycopg2.connect(self._url, connect_timeout=_CONNECT_S)
        try:
            # A descriptor of our own: the connection's number may mean another file by the time that it is cut.
            self._line = os.dup(connection.fileno())
            if self._is_cut:  # after the line is there: whoever comes first, one of the two sees the other
                return None
            with connection, connection.cursor() as cursor:
                cursor.execute(_QUERY, (self._batch_id, batch.whole_id(self._batch_id)))
                row = cursor.fetchone()
        except psycopg2.errors.UndefinedTable:
            return None  # No consumer has run yet.
        finally:
            connection.close()
        return _stored(self._batch_id, *row) if row else None

    def cut(self) -> None:
        """Ends it, wherever it waits; before it is connected, libpq's own deadline does."""
        self._is_cut = True
        if self._line is not None:
            with suppress(OSError), socket.socket(fileno=os.dup(self._line)) as line:
                line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Lets go of the connection's line, once `run` has ended."""
        if self._line is not None:
            os.close(self._line)


def _stored(
    batch_id: str, count: int, dead: list[int], received_at: datetime, stored_at: datetime, parts: list[int] | None
) -> _Row:
    places = range(count) if parts is None else batch.places_of_part(batch_id, parts)
    return {
        "event_count": len(places), "dead_count": sum(index in places for index in dead), "received_at": received_at,
        "stored_at": stored_at,
    } if places else None
