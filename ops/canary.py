"""The canary: an event of our own that goes the way of everybody's, and is looked for in the table.

Most go as any client's do; every tenth asks for the write-ahead log, which would otherwise not be tried until it is
needed. Late is not lost: one is lost when the database has answered for the whole deadline and had no row of it.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection

from app import batch, log
from ops import listener, metric, snapshot

logger = logging.getLogger(__name__)

STREAM, WAL = "stream", "wal"

_EVERY_S = 30.0
_FIRST_AFTER_S = 10.0  # the listener may be starting, too
_WAL_EVERY = 10
_DEADLINE_S = 600.0
_FORGOTTEN_AFTER = 6  # deadlines
_ANSWER_S = 10.0
_STATEMENT_S = 10
_YOUNG_S = 10.0
_POLL_S, _SLOW_POLL_S = 0.2, 5.0

_STORED = """
SELECT cardinality(dead_events) = 0 AND EXISTS (
    SELECT FROM log_events WHERE received_at = one.received_at AND batch_id = one.batch_id
) FROM log_batches AS one WHERE batch_id = %s
"""


@dataclass
class Flight:
    """A canary that was accepted.

    Args:
        batch_id: Of its batch.
        path: `STREAM` or `WAL`, as it was asked for.
        sent_at: On the monotonic clock.
        asked_at: When the database was asked about it last.
        answered_s: For how long the database has answered that it has no row.
    """

    batch_id: str
    path: str
    sent_at: float
    asked_at: float
    answered_s: float = 0.0
    is_lost: bool = False


class Canary:
    """Sends canaries and looks for them, from one thread.

    Args:
        url: Of ingest.
        database_url: Where rows are looked for.
        token: What makes ingest take one by the WAL; empty: it cannot be asked to.
        deadline_s: After so much time in which the database has answered, one that has no row is lost.
        every_s: From one to the next.
        monotonic: The clock, in seconds.
    """

    def __init__(
        self, url: str, database_url: str, token: str, deadline_s: float = _DEADLINE_S, every_s: float = _EVERY_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._database_url = database_url
        self._token = token
        self._deadline_s = deadline_s
        self._every_s = every_s
        self._monotonic = monotonic
        self._due_at = monotonic() + min(_FIRST_AFTER_S, every_s)
        self._number = 0
        self._connection: Connection | None = None
        self._is_refused = self._is_away = False
        self.flights: list[Flight] = []

    def run(self, stop: threading.Event) -> None:
        """Repeats `step` until `stop` is set."""
        while not stop.is_set():
            self.step()
            stop.wait(_POLL_S)

    def step(self) -> None:
        """Sends one if it is due, and looks for those that are on their way. Raises nothing because of a server."""
        if self._monotonic() >= self._due_at:
            self._number += 1
            # The second one of a process: a WAL that does not work shows within a minute.
            self.send(WAL if self._token and self._number % _WAL_EVERY == 2 else STREAM)
            self._due_at = max(self._due_at + self._every_s, self._monotonic())
        now = self._monotonic()
        due = [one for one in self.flights
               if now - one.asked_at >= (_POLL_S if now - one.sent_at < _YOUNG_S else _SLOW_POLL_S)]
        try:
            for one in due:
                self._look_for(one)
                self._note_away(None)
        except psycopg2.Error as error:
            self._close()
            for one in self.flights:
                one.asked_at = self._monotonic()  # this time was none that it was looked for in
            self._note_away(error)

    def send(self, path: str) -> None:
        """Posts one canary."""
        metric.canary_sent.labels(path).inc()
        sent_at = self._monotonic()
        try:
            answer = self._posted(path)
            self.flights.append(Flight(answer["batch_id"], path, sent_at, sent_at))
            if path == WAL and answer["durability"] != WAL:
                logger.error(log.line("canary_not_in_wal", why="ingest runs with another SPILLWAY_CANARY_TOKEN"))
            self._note_refused(None)
        except (*listener.ERRORS, ValueError, KeyError) as error:
            metric.canary_refused.inc()
            self._note_refused(error)

    def _posted(self, path: str) -> Any:
        """Returns what a 202 says. Raises OSError, HTTPException, or ValueError for any other answer."""
        headers = {"Idempotency-Key": f"{batch.CANARY} {uuid.uuid4()}"}
        if path == WAL:
            headers[batch.CANARY_HEADER] = self._token
        event = {"level": "INFO", "service": batch.CANARY, "message": f"canary by the {path}"}
        reply = listener.ask(self._url, "/ingest", _ANSWER_S, json.dumps(event).encode(), headers)
        if reply.status != 202:
            raise ValueError(f"{reply.status}: {reply.text}")
        return json.loads(reply.body)

    def _look_for(self, one: Flight) -> None:
        is_stored = self._is_stored(one.batch_id)
        now = self._monotonic()
        one.answered_s += min(now - one.asked_at, 2 * _SLOW_POLL_S)  # we may have been stopped ourselves
        one.asked_at = now
        if is_stored:
            self.flights.remove(one)
            metric.canary_latency.labels(one.path).observe(now - one.sent_at)
            metric.canary_timestamp.set(time.time())
            if one.is_lost:
                logger.warning(log.line("canary_came_late", batch=one.batch_id, after_s=round(now - one.sent_at)))
        elif one.answered_s >= self._deadline_s and not one.is_lost:
            one.is_lost = True
            metric.canary_lost.labels(one.path).inc()
            logger.critical(log.line("canary_lost", batch=one.batch_id, path=one.path, after_s=round(one.answered_s)))
        elif one.answered_s >= self._deadline_s * _FORGOTTEN_AFTER:
            self.flights.remove(one)

    def _is_stored(self, batch_id: str) -> bool:
        """Asks the database. Raises psycopg2.Error."""
        if self._connection is None:
            self._connection = snapshot.connect(self._database_url, "canary")
        try:
            with snapshot.of(self._connection, _STATEMENT_S) as cursor:
                cursor.execute(_STORED, (batch_id,))
                row = cursor.fetchone()
        except psycopg2.errors.UndefinedTable:
            return False  # No consumer has run yet.
        return row is not None and bool(row[0])

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _note_refused(self, error: Exception | None) -> None:
        if error and not self._is_refused:
            logger.error(log.line("canary_refused", detail=error))
        if not error and self._is_refused:
            logger.warning(log.line("canary_accepted"))
        self._is_refused = error is not None

    def _note_away(self, error: psycopg2.Error | None) -> None:
        if error and not self._is_away:
            logger.warning(log.line("canary_waiting", detail=" ".join(str(error).split())))
        if not error and self._is_away:
            logger.warning(log.line("canary_resumed"))
        self._is_away = error is not None
