"""A client-side deadline for calls into PostgreSQL.

A server that is stopped, or whose disk hangs, defeats keepalives (its kernel answers) and its own timeouts (its timers
do not run). libpq waits in C, where no exception reaches it: what ends the wait is to shut its socket down.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg2
from psycopg2.extensions import connection as Connection

_LONGEST_NAP_S = 0.5


class Overdue(psycopg2.OperationalError):
    """What was guarded took too long, and its connection was cut. What it has done is unknown."""


class Watchdog:
    """One thread, which looks up now and then; starting one for each call would cost more than many a load.

    Args:
        timeout_s: Longest that what it guards may take, give or take a tenth or half a second.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._line: socket.socket | None = None
        self._due_at = 0.0
        self._has_cut = False
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def guard(self, connection: Connection) -> Iterator[None]:
        """Cuts the connection if the calls within take too long, all together. One at a time.

        Raises:
            Overdue: They did. What they have done is unknown.
        """
        # A descriptor of our own: the connection's number may mean another file by the time that it is cut.
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            with self._lock:
                self._line, self._due_at, self._has_cut = line, time.monotonic() + self._timeout_s, False
            try:
                yield
            except psycopg2.Error as error:
                if self._has_cut:
                    raise Overdue(f"no answer from PostgreSQL in {self._timeout_s:g} s") from error
                raise
            finally:
                with self._lock:
                    self._line = None

    def _watch(self) -> None:
        while True:
            time.sleep(min(_LONGEST_NAP_S, self._timeout_s / 10))
            with self._lock, suppress(OSError):
                if self._line and time.monotonic() >= self._due_at:
                    self._has_cut = True
                    self._line.shutdown(socket.SHUT_RDWR)
