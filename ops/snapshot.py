"""Snapshots: how the database is read from beside the service, also through a pooler.

A pooler by transaction gives one connection of its own to many clients in turn. What a session sets stays there, and is
the next one's: read only, it refuses others' COPY. So all that is set here ends with the transaction that it is for;
and nothing is asked for when connecting, which pgbouncer refuses or forgets.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

_BEGIN = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL statement_timeout = %s"


def connect(url: str, name: str) -> Connection:
    """Returns a connection that notices within seconds that the server's host has gone.

    Args:
        url: libpq URL.
        name: What PostgreSQL shows of us.

    Raises:
        psycopg2.Error: There is none.
    """
    return psycopg2.connect(
        url, connect_timeout=5, application_name=f"spillway {name}", keepalives_idle=5, keepalives_interval=2,
        keepalives_count=3, tcp_user_timeout=8000,
    )


@contextmanager
def of(connection: Connection, timeout_s: int) -> Iterator[Cursor]:
    """Yields a cursor to which everything is as it was when it first asked; the transaction ends with it.

    Args:
        connection: Not in a transaction.
        timeout_s: Longest that a statement may take.

    Raises:
        psycopg2.Error: The server is away, or refuses.
    """
    with connection, connection.cursor() as cursor:
        cursor.execute(_BEGIN, (f"{timeout_s}s",))
        yield cursor
