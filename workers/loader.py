"""Loads batches into PostgreSQL: ledger rows and events in one transaction, each batch once.

HANDOVER 4: stream → PostgreSQL (tests/crash/test_load.py). Copied by COPY, confirmed by COMMIT. The one border where
psycopg2's errors are read.
"""

import io
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from psycopg2.extensions import parse_dsn

from app.batch import FORMAT, Batch
from workers import metric, schema
from workers.errors import Unavailable

_COPY_PIECE_BYTES = 1 << 18
_PARTITIONS_EVERY_S = 3600.0

# The URL's own parameters win over these.
_CONNECTION: dict[str, Any] = {
    "connect_timeout": 5, "keepalives": 1, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3,
    "tcp_user_timeout": 8000, "target_session_attrs": "read-write", "client_encoding": "UTF8",
    # A consumer that stops within its transaction must not hold its ledger rows against the others for ever.
    "options": "-c statement_timeout=60s -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s",
}


class Outcome(NamedTuple):
    """What became of the batches of a load, by their positions in it.

    Attributes:
        stored: Committed with their events.
        duplicates: Known to the ledger, with the same body: acknowledge them.
        conflicts: Known to the ledger with another body: an idempotency key that was used twice.
    """

    stored: list[int]
    duplicates: list[int]
    conflicts: list[int]


class Loader:
    """Owns the connection, which it opens when it is needed and drops after every error.

    Args:
        url: libpq URL.
        name: Shown in `pg_stat_activity`.
        partition_days: Partitions made ahead.
    """

    def __init__(self, url: str, name: str, partition_days: int) -> None:
        self._parameters = {**_CONNECTION, "application_name": f"spillway {name}", **parse_dsn(url)}
        self._partition_days = partition_days
        self._connection: Connection | None = None
        self._partitions_due_at = 0.0

    def load(self, batches: Sequence[Batch]) -> Outcome:
        """Stores the batches that the ledger does not know.

        Raises:
            Unavailable: PostgreSQL is away or refuses.

        Durability:
            Durable on return; unknown if it raises, as the COMMIT may have happened: load the same again.
        """
        strangers = {batch.version for batch in batches} - {FORMAT}
        if strangers:
            raise Unavailable("format", f"batches of format {strangers}; this consumer knows {FORMAT}: upgrade it")
        try:
            with metric.load_seconds.time():
                return self._loaded(batches)
        except psycopg2.Error as error:
            self.close()
            raise Unavailable(error.pgcode or type(error).__name__, str(error).strip()) from error

    def prepare(self) -> None:
        """Connects, and makes the tables and the partitions that are due, so that the first load need not.

        Raises:
            Unavailable: PostgreSQL is away or refuses.
        """
        try:
            self._open()
        except psycopg2.Error as error:
            self.close()
            raise Unavailable(error.pgcode or type(error).__name__, str(error).strip()) from error

    def close(self) -> None:
        """Drops the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = psycopg2.connect(**self._parameters)
            schema.ensure(self._connection)
            self._partitions_due_at = 0.0
        if time.monotonic() >= self._partitions_due_at:
            schema.ensure_partitions(self._connection, self._partition_days)
            self._partitions_due_at = time.monotonic() + _PARTITIONS_EVERY_S
        return self._connection

    def _loaded(self, batches: Sequence[Batch]) -> Outcome:
        with self._open() as connection, connection.cursor() as cursor:  # COMMIT at its end: HANDOVER 4, confirm
            first = {batch.batch_id: index for index, batch in reversed(list(enumerate(batches)))}
            entered = _enter(cursor, [batches[index] for index in first.values()])
            outcome = _sorted_out(batches, first, entered, _known(cursor, first.keys() - entered))
            _copy(cursor, [batches[index] for index in outcome.stored])
        return outcome


def _enter(cursor: Cursor, batches: Sequence[Batch]) -> set[str]:
    """Enters batches, each once, into the ledger and returns the ids that were new."""
    columns = zip(*((batch.batch_id, batch.sha256, str(batch.count), batch.received_at) for batch in batches))
    # Ids, digests, numbers and times need no quotes within an array's text.
    cursor.execute(schema.ENTER, [f"{{{','.join(column)}}}" for column in columns])
    return {batch_id for batch_id, in cursor.fetchall()}


def _known(cursor: Cursor, batch_ids: set[str]) -> dict[str, str]:
    if not batch_ids:
        return {}
    cursor.execute(schema.KNOWN, [f"{{{','.join(batch_ids)}}}"])
    return dict(cursor.fetchall())


def _sorted_out(
    batches: Sequence[Batch], first: dict[str, int], entered: set[str], known: dict[str, str]
) -> Outcome:
    outcome = Outcome([], [], [])
    for index, batch in enumerate(batches):
        if batch.batch_id in entered and first[batch.batch_id] == index:
            outcome.stored.append(index)
        elif batch.sha256 == known.get(batch.batch_id, batches[first[batch.batch_id]].sha256):
            outcome.duplicates.append(index)
        else:
            outcome.conflicts.append(index)
    return outcome


def _copy(cursor: Cursor, batches: Sequence[Batch]) -> None:
    if not batches:
        return
    # HANDOVER 4, copy
    cursor.copy_expert(schema.COPY, io.BytesIO(b"".join([batch.payload for batch in batches])), _COPY_PIECE_BYTES)
    expected = sum(batch.count for batch in batches)
    if cursor.rowcount != expected:
        raise psycopg2.DataError(f"COPY took {cursor.rowcount} rows of {expected}: a payload does not hold its count")
