"""Partitions of `log_events`, one a day (UTC) on the event's time, made so that nobody waits for it.

To attach one, PostgreSQL locks the DEFAULT partition against everybody, and looks through it for rows of that day. So
the lock is waited for briefly, as all who come later wait behind; and where DEFAULT is large, a CHECK that excludes the
day, the guard, is added and validated before, beside loads: then PostgreSQL need not look.

    nothing → guarded → validated → attached, and the guard is gone

Each arrow is a transaction, of which what locks is sent as one message: a client that stops leaves no lock behind.
Killed in between, whoever comes next goes on from there. As long as a guard stands, a row of its day is refused
(`blame` has its load wait), so a day that has begun gets none.
"""

import logging
from collections.abc import Collection
from datetime import UTC, date, datetime
from enum import Enum
from typing import Any, NamedTuple

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from app import log
from workers import schema, transaction

logger = logging.getLogger(__name__)

_LOOK_S = 60
_SCAN_S = 1800  # who reads or loads meanwhile does not notice
_VACUUM_MS = 3000
# So much of DEFAULT is looked through within some 20 ms.
_LARGE_BYTES = 32 << 20

_NAMES = """
SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = to_regclass('log_events')
"""
_GUARDS = f"""
SELECT substring(conname, '{schema.GUARD}(20[0-9]{{6}})$')
FROM pg_constraint WHERE conrelid = to_regclass('log_events_default') AND conname ~ '^{schema.GUARD}20[0-9]{{6}}$'
"""
# Not to_regclass for the partition: it may answer from a cache that has not heard yet what a lock was waited for.
_LOOK = """
SELECT relation.oid IS NOT NULL, coalesce(relispartition, false), coalesce(relkind = 'r', false), (
    SELECT convalidated FROM pg_constraint WHERE conrelid = to_regclass('log_events_default') AND conname = %(guard)s
), pg_relation_size(to_regclass('log_events_default'))
FROM (VALUES (%(name)s)) AS wanted (name)
LEFT JOIN pg_class AS relation ON relname = name AND relnamespace = current_schema()::regnamespace
"""
# By its index on the time, of which LIMIT 1 alone would think little.
_HAS_ROWS = """
SET LOCAL enable_seqscan = off;
SELECT EXISTS (SELECT FROM log_events_default WHERE ts >= '{start} 00:00Z' AND ts < '{end} 00:00Z')
"""
_IS_EMPTY = "SELECT NOT EXISTS (SELECT FROM {name})"
_ADD_GUARD = """
ALTER TABLE log_events_default ADD CONSTRAINT {guard} CHECK (ts < '{start} 00:00Z' OR ts >= '{end} 00:00Z') NOT VALID
"""
_VALIDATE = "ALTER TABLE log_events_default VALIDATE CONSTRAINT {guard}"
_DROP_GUARD = "ALTER TABLE log_events_default DROP CONSTRAINT IF EXISTS {guard}"
# Who loads or reads is not kept waiting by this lock, nor by who waits for it; an autovacuum gives way to it after a
# second (`deadlock_timeout`), and would not to a lock that is waited for as briefly as that which follows.
_KEEP_VACUUM_OUT = f"""
SET LOCAL lock_timeout = {_VACUUM_MS};
LOCK TABLE log_events_default IN SHARE UPDATE EXCLUSIVE MODE;
"""
_BRIEFLY = f"SET LOCAL lock_timeout = {transaction.LOCK_MS}; SET LOCAL statement_timeout = {transaction.HOLD_MS};"


class Result(Enum):
    """What became of a day; the values are labels of a metric."""

    MADE = "made"
    BUSY = "busy"
    LOCKED = "locked"
    SLOW = "slow"
    ROWS = "rows"
    LARGE = "large"
    FORBIDDEN = "forbidden"
    OCCUPIED = "occupied"


WHY = {
    Result.BUSY: "another process is making it",
    Result.LOCKED: "a lock was not to be had",
    Result.SLOW: "it took longer than others may wait",
    Result.ROWS: "rows in default",
    Result.LARGE: "default is too large to be looked through",
    Result.FORBIDDEN: "this role may not create tables",
    Result.OCCUPIED: "another table has its name, or its day",
}

_RESULTS = {
    psycopg2.errors.LockNotAvailable: Result.LOCKED,
    psycopg2.errors.DeadlockDetected: Result.LOCKED,
    psycopg2.errors.QueryCanceled: Result.SLOW,
    psycopg2.errors.CheckViolation: Result.ROWS,
    psycopg2.errors.InsufficientPrivilege: Result.FORBIDDEN,
    psycopg2.errors.DuplicateTable: Result.BUSY,
    psycopg2.errors.DuplicateObject: Result.BUSY,
    psycopg2.errors.UniqueViolation: Result.BUSY,
    psycopg2.errors.UndefinedObject: Result.BUSY,  # the guard: somebody has dropped it
    psycopg2.errors.InvalidObjectDefinition: Result.OCCUPIED,
    psycopg2.errors.DatatypeMismatch: Result.OCCUPIED,
    psycopg2.errors.WrongObjectType: Result.OCCUPIED,
}


class _State(NamedTuple):
    """How far a day is. `is_valid` is None where it has no guard, `default_bytes` where there is no DEFAULT."""

    is_there: bool
    is_attached: bool
    is_table: bool
    is_valid: bool | None
    default_bytes: int | None


def made(connection: Connection) -> set[str]:
    """Returns the names of the partitions that there are. Raises psycopg2.Error."""
    with transaction.autocommit(connection), connection.cursor() as cursor:
        cursor.execute(_NAMES)
        return {name for name, in cursor.fetchall()}


def make(connection: Connection, day: date, is_waiting: bool = False) -> Result:
    """Makes the partition of a day, as far as that goes without keeping anybody waiting.

    Args:
        connection: Nothing is begun on it.
        is_waiting: Waits, as long as for a lock, for another process that may be making it.

    Raises:
        psycopg2.Error: Something else than a `Result` is in the way.
    """
    with transaction.autocommit(connection), connection.cursor() as cursor:
        try:
            return _made(cursor, day, is_waiting)
        except transaction.Busy:
            return Result.BUSY
        except tuple(_RESULTS) as error:
            return next(found for kind, found in _RESULTS.items() if isinstance(error, kind))


def make_today(connection: Connection) -> None:
    """Makes the partition of today, for whoever is about to load and has found none: with one try, and if it fails its
    rows go to DEFAULT. Raises psycopg2.Error if the connection is lost."""
    today = datetime.now(UTC).date()
    try:
        why = WHY.get(make(connection, today, is_waiting=True))
    except psycopg2.Error as error:
        if connection.closed:
            raise
        why = str(error).strip()
    if why:
        logger.warning(log.line("partition_refused", day=today, why=why))


def drop_guards(connection: Connection, wanted: Collection[date]) -> dict[date, Result]:
    """Drops guards of other days, whose partition somebody else has made, or that are due no more.

    Returns:
        The days whose guard could not be dropped yet.

    Raises:
        psycopg2.Error: Something else is in the way.
    """
    left = {}
    with transaction.autocommit(connection), connection.cursor() as cursor:
        cursor.execute(_GUARDS)
        days = {datetime.strptime(digits, "%Y%m%d").date() for digits, in cursor.fetchall()}
        for day in sorted(days.difference(wanted)):
            try:
                _drop_guard(cursor, schema.words_of(day)["guard"])
            except transaction.Busy:
                left[day] = Result.BUSY
            except psycopg2.errors.LockNotAvailable:
                left[day] = Result.LOCKED
    return left


def _made(cursor: Cursor, day: date, is_waiting: bool) -> Result:
    words = schema.words_of(day)
    state = _look(cursor, words)
    if state.is_valid is None and not state.is_attached and state.default_bytes is not None:
        if _has_rows(cursor, words):
            return Result.ROWS
        if state.default_bytes > _LARGE_BYTES:
            if day <= datetime.now(UTC).date():
                return Result.LARGE
            with transaction.brief(cursor):
                cursor.execute(f"{_KEEP_VACUUM_OUT} {_BRIEFLY} {_ADD_GUARD}; COMMIT".format(**words))
            state = state._replace(is_valid=False)
    if state.is_valid is False and not _is_validated(cursor, words):
        return Result.LARGE
    return _attach(cursor, words, is_waiting)


def _is_validated(cursor: Cursor, words: dict[str, str]) -> bool:
    try:
        with transaction.brief(cursor, transaction.SCANNING, _SCAN_S * 1000):
            cursor.execute(f"{_KEEP_VACUUM_OUT} {_VALIDATE}; COMMIT".format(**words))
    except psycopg2.errors.QueryCanceled:
        _drop_guard(cursor, words["guard"])
        return False
    except psycopg2.errors.CheckViolation:
        _drop_guard(cursor, words["guard"])  # a row came before it
        raise
    return True


def _attach(cursor: Cursor, words: dict[str, str], is_waiting: bool) -> Result:
    with transaction.brief(cursor, is_waiting=is_waiting):
        state = _look(cursor, words)
        if state.is_attached:
            return Result.MADE
        if state.is_there and not (state.is_table and _answer(cursor, _IS_EMPTY.format(**words))):
            return Result.OCCUPIED
        if not state.is_there:
            cursor.execute(schema.CREATE_DAY.format(**words))
        if state.default_bytes is not None:
            cursor.execute(_KEEP_VACUUM_OUT)
        drop = f"{_DROP_GUARD};" if state.is_valid is not None else ""
        cursor.execute(f"{_BRIEFLY} {schema.ATTACH_DAY} {drop} COMMIT".format(**words))
    return Result.MADE


def _drop_guard(cursor: Cursor, guard: str) -> None:
    with transaction.brief(cursor):
        cursor.execute(f"{_KEEP_VACUUM_OUT} {_BRIEFLY} {_DROP_GUARD}; COMMIT".format(guard=guard))


def _has_rows(cursor: Cursor, words: dict[str, str]) -> bool:
    with transaction.brief(cursor, 0, _LOOK_S * 1000):
        return bool(_answer(cursor, _HAS_ROWS.format(**words)))


def _look(cursor: Cursor, words: dict[str, str]) -> _State:
    cursor.execute(_LOOK, words)
    [row] = cursor.fetchall()
    return _State(*row)


def _answer(cursor: Cursor, question: str) -> Any:
    cursor.execute(question)
    [(answer,)] = cursor.fetchall()
    return answer
