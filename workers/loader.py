"""Loads batches into PostgreSQL: ledger rows and events in one transaction, each batch once.

HANDOVER 4: stream → PostgreSQL (tests/crash/test_load.py). Copied by COPY, confirmed by COMMIT. The one border where
psycopg2's errors are read.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from psycopg2.extensions import parse_dsn

from app.batch import FORMAT, Batch
from workers import ledger, metric, partition, schema
from workers.blame import translated
from workers.errors import Misconfigured, Poison, Unavailable
from workers.ledger import DeadEvent, Verdict
from workers.sieve import Refusal
from workers.trial import Trial
from workers.watchdog import Watchdog

_COPY_PIECE_BYTES = 1 << 18

# The URL's own parameters win over these.
_CONNECTION: dict[str, Any] = {
    "connect_timeout": 5, "keepalives": 1, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3,
    "tcp_user_timeout": 8000, "target_session_attrs": "read-write", "client_encoding": "UTF8",
}
# A consumer that stops within its transaction must not hold its ledger rows against the others for ever.
_OPTIONS = "-c statement_timeout={0}s -c idle_in_transaction_session_timeout={0}s -c lock_timeout={1}s"
_LOCK_TIMEOUT_S = 10


def parameters(url: str, name: str, timeout_s: int) -> dict[str, Any]:
    """Returns how the loader connects; `spillway doctor` looks at what becomes of it. Raises psycopg2.Error."""
    options = _OPTIONS.format(timeout_s, min(_LOCK_TIMEOUT_S, timeout_s))
    return {**_CONNECTION, "options": options, "application_name": f"spillway {name}", **parse_dsn(url)}


class Outcome(NamedTuple):
    """What became of the batches of a load, by their positions in it.

    Attributes:
        stored: Committed with their events, but for `dead_count` of those.
        known: Stored by this very entry, in a load that did not live to release it.
        duplicates: Known to the ledger, with the same body, by another entry: acknowledge them.
        conflicts: Known to the ledger with another body: an idempotency key that was used twice.
        orphans: Lone events whose batch the ledger does not know yet.
        refused: Not stored, and why: bury them.
        dead_count: Events that were handed over for burial before COMMIT.
    """

    stored: list[int]
    known: list[int]
    duplicates: list[int]
    conflicts: list[int]
    orphans: list[int]
    refused: dict[int, Refusal]
    dead_count: int = 0


class Loader:
    """Owns the connection, which it opens when it is needed and drops after every error.

    Args:
        url: libpq URL.
        name: Shown in `pg_stat_activity`.
        timeout_s: Longest that a transaction may take.
    """

    def __init__(self, url: str, name: str, timeout_s: int) -> None:
        self._parameters = parameters(url, name, timeout_s)
        self._watchdog = Watchdog(timeout_s)
        self._connection: Connection | None = None

    def load(
        self, batches: Sequence[Batch], entry_ids: Sequence[str], bury: Callable[[list[DeadEvent]], None],
        is_strict: bool = False,
    ) -> Outcome:
        """Stores the batches that the ledger does not know, but for what PostgreSQL refuses of them.

        Args:
            entry_ids: Of their entries, by which the ledger tells what was loaded and not released from copies.
            bury: Makes dead letters of events durable. Called before COMMIT: killed in between, the whole is done
                again, while the other order would lose them.
            is_strict: What COMMIT would refuse is refused with its row.

        Raises:
            Poison: It refuses the whole, and no event of it alone: try again, strictly, or with fewer.
            Unavailable, Misconfigured: It is away, or an operator has to mend something; and what `bury` raises.

        Durability:
            Durable on return; unknown if it raises, as the COMMIT may have happened: load the same again.
        """
        with metric.load_seconds.time(), self._transaction(batches) as cursor:
            if is_strict:
                cursor.execute(schema.CHECK_AT_ONCE)
            verdict = ledger.enter(cursor, batches, entry_ids)
            trial = Trial(cursor, [batches[index] for index in verdict.fresh], copy)
            trial.run()
            refused = {verdict.fresh[number]: refusal for number, refusal in trial.refused.items()}
            ledger.settle(cursor, [batches[index] for index in refused], trial.dead)
            if trial.dead:
                bury(trial.dead)
        return _outcome(verdict, refused, len(trial.dead))

    def prove(self) -> None:
        """Returns if PostgreSQL takes a batch of one event, which is rolled back.

        Raises:
            Poison, Unavailable, Misconfigured: It does not.
        """
        with self._transaction([]) as cursor:
            cursor.execute("SAVEPOINT proof")
            one = ledger.specimen()
            ledger.enter(cursor, [one], ["0-1"])
            copy(cursor, [one], "SAVEPOINT row")
            cursor.execute("ROLLBACK TO proof")

    def prepare(self) -> None:
        """Connects, and makes the tables, and today's partition if that is missing, so that the first load need not.

        Raises:
            Unavailable, Misconfigured: It cannot.
        """
        with self._transaction([]):
            pass

    def close(self) -> None:
        """Drops the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _transaction(self, batches: Sequence[Batch]) -> Iterator[Cursor]:
        strangers = {batch.version for batch in batches} - {FORMAT}
        if strangers:
            raise Misconfigured("format", f"batches of format {strangers}; this consumer knows {FORMAT}: upgrade it")
        try:
            connection = self._open()
            with self._watchdog.guard(connection):
                with connection.cursor() as cursor:
                    yield cursor
                connection.commit()  # HANDOVER 4, confirm
        except (psycopg2.Error, ValueError) as error:
            found = translated(error)
            self._undo(found)
            raise found from error
        except BaseException:
            self.close()
            raise

    def _undo(self, error: Poison | Unavailable) -> None:
        try:
            if self._connection and isinstance(error, Poison):
                return self._connection.rollback()
        except psycopg2.Error:
            pass  # A connection that cannot do that is of no more use.
        self.close()

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = psycopg2.connect(**self._parameters)
            with self._watchdog.guard(self._connection):
                # Rows of today in DEFAULT would keep its partition from being made. The others are the keeper's.
                if not schema.ensure(self._connection):
                    partition.make_today(self._connection)
        return self._connection


def _outcome(verdict: Verdict, refused: dict[int, Refusal], dead_count: int) -> Outcome:
    stored = [index for index in verdict.fresh if index not in refused]
    return Outcome(
        stored, verdict.known, verdict.duplicates, verdict.conflicts, verdict.orphans, refused, dead_count
    )


def copy(cursor: Cursor, batches: Sequence[Batch], before: str) -> None:
    """Copies the batches' rows, and runs statements before, in the same round trip. Raises psycopg2.Error."""
    # HANDOVER 4, copy
    rows = io.BytesIO(b"".join([batch.payload for batch in batches]))
    cursor.copy_expert(f"{before}; {schema.COPY}", rows, _COPY_PIECE_BYTES)
    expected = sum(batch.count for batch in batches)
    if cursor.rowcount != expected:
        raise psycopg2.DataError(f"COPY took {cursor.rowcount} rows of {expected}: a payload does not hold its count")
