"""A client-side deadline for calls into PostgreSQL.

A server that is stopped, or whose disk hangs, defeats keepalives (its kernel answers) and its own timeouts (its timers
do not run). libpq waits in C, where no exception reaches it: what ends the wait is to shut its socket down.
"""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg2
from psycopg2.extensions import connection as Connection


@contextmanager
def deadline(connection: Connection, timeout_s: float) -> Iterator[None]:
    """Cuts the connection if the calls within take longer, all together.

    Raises:
        psycopg2.OperationalError: They did. What they have done is unknown.
    """
    has_passed = threading.Event()
    # A descriptor of our own: the connection's number may mean another file by the time that it is cut.
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        timer = threading.Timer(timeout_s, _cut, (line, has_passed))
        timer.daemon = True
        timer.start()
        try:
            yield
        except psycopg2.Error as error:
            if has_passed.is_set():
                raise psycopg2.OperationalError(f"PostgreSQL did not answer within {timeout_s:g} s") from error
            raise
        finally:
            timer.cancel()


def _cut(line: socket.socket, has_passed: threading.Event) -> None:
    has_passed.set()
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
