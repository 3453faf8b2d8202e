"""Transactions that change tables while others load: they wait for a lock briefly, and hold none for long."""

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

# Locks of the service, of one transaction at a time. One is for making and changing, which is soon done, the other for
# reading through a table. The number is "spillway" cut to 31 bits, and arbitrary.
MAKING = 1936747883
SCANNING = MAKING + 1
# Whoever comes behind us waits for both at most: until a lock is had or given up, and until it is let go.
LOCK_MS, HOLD_MS = 100, 150
_STEP_MS = 5000

# Set for the transaction alone: behind a pooler the session is another's next. Read committed: what is looked for once
# the lock is had was committed by then.
_BEGIN = """
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = {lock_ms}; SET LOCAL statement_timeout = {statement_ms};
SET LOCAL idle_in_transaction_session_timeout = {idle_ms}; SELECT {lock}
"""
_HOLDERS = """
SELECT string_agg(DISTINCT format('%%s %%s', pid, application_name), ', ')
FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE relation = to_regclass(%s) AND granted AND pid <> pg_backend_pid()
"""


class Busy(Exception):
    """Another process is at the same work."""


@contextmanager
def autocommit(connection: Connection) -> Iterator[None]:
    """Has statements be transactions by themselves, as `brief` wants it."""
    before, connection.autocommit = connection.autocommit, True
    try:
        yield
    finally:
        if not connection.closed:
            connection.autocommit = before


@contextmanager
def brief(
    cursor: Cursor, key: int = MAKING, statement_ms: int = _STEP_MS, is_waiting: bool = False
) -> Iterator[None]:
    """Begins a transaction, which is the caller's to COMMIT: in one message with what locks, or a client that stops
    between the two would keep the lock. What is not committed is rolled back.

    Args:
        cursor: Of a connection with `autocommit`.
        key: Which of the service's locks it takes; 0 for none.
        statement_ms: Longest that a statement may take.
        is_waiting: Waits for the service's lock as long as for any other.

    Raises:
        Busy: Another process has the service's lock.
        psycopg2.Error: As it comes.
    """
    lock = f"pg_advisory_xact_lock({key}) IS NOT NULL" if is_waiting else f"pg_try_advisory_xact_lock({key})"
    try:
        cursor.execute(_BEGIN.format(lock_ms=LOCK_MS, statement_ms=statement_ms, idle_ms=_STEP_MS,
                                     lock=lock if key else "true"))
        [(has_lock,)] = cursor.fetchall()
        if not has_lock:
            raise Busy
        yield
    finally:
        connection = cursor.connection
        if not connection.closed and connection.info.transaction_status != TRANSACTION_STATUS_IDLE:
            cursor.execute("ROLLBACK")


def holders(connection: Connection, table: str) -> str:
    """Returns who has a lock on a table now, pid and application of each. Raises psycopg2.Error."""
    with autocommit(connection), connection.cursor() as cursor:
        cursor.execute(_HOLDERS, [table])
        [(found,)] = cursor.fetchall()
    return found or "nobody any more"
