"""`GET /batches/<id>`: the status monitor that a 202 points to (RFC 9110, section 15.3.3). Reads the ledger."""

from datetime import datetime
from uuid import UUID

import falcon
import msgspec
import psycopg2
from falcon import Request, Response
from gevent.threadpool import ThreadPool

from app import batch

_MAX_QUERIES = 2
_QUERY = """
SELECT event_count, dead_events, received_at, loaded_at, part_counts FROM log_batches WHERE batch_id IN (%s, %s)
ORDER BY part_counts IS NOT NULL
"""


class Monitor:
    """The resource. psycopg2 would block every request of the worker, so that queries run in threads of their own.

    Args:
        url: libpq URL.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._threads = ThreadPool(_MAX_QUERIES)

    def on_get(self, req: Request, resp: Response, batch_id: UUID) -> None:
        """Answers 200 once the batch is stored; 404 before, and for what was never accepted."""
        try:
            row = self._threads.apply(self._row, (str(batch_id),))
        except psycopg2.Error as error:
            raise falcon.HTTPServiceUnavailable(description="the database does not answer", retry_after=1) from error
        if row is None:
            raise falcon.HTTPNotFound(
                description="not stored: on its way, or never accepted", headers={"Retry-After": "1"}
            )
        resp.data = msgspec.json.encode({"batch_id": str(batch_id), "state": "stored", **row})

    def _row(self, batch_id: str) -> dict[str, object] | None:
        """Returns what the ledger says of a request: of its batch, or of its part in a merged one."""
        connection = psycopg2.connect(self._url, connect_timeout=2, options="-c statement_timeout=2s")
        try:
            with connection.cursor() as cursor:
                cursor.execute(_QUERY, (batch_id, batch.whole_id(batch_id)))
                row = cursor.fetchone()
        except psycopg2.errors.UndefinedTable:
            return None  # No consumer has run yet.
        finally:
            connection.close()
        return _stored(batch_id, *row) if row else None


def _stored(
    batch_id: str, count: int, dead: list[int], received_at: datetime, stored_at: datetime, parts: list[int] | None
) -> dict[str, object] | None:
    places = range(count) if parts is None else batch.places_of_part(batch_id, parts)
    return {
        "event_count": len(places), "dead_count": sum(index in places for index in dead), "received_at": received_at,
        "stored_at": stored_at,
    } if places else None
