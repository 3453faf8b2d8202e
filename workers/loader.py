"""Loads batches into PostgreSQL: ledger rows and events in one transaction, each batch once.

HANDOVER 4: stream → PostgreSQL (tests/crash/test_load.py). Copied by COPY, confirmed by COMMIT. The one border where
psycopg2's errors are read.
"""

import io
import re
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
from workers.lookout import Lookout
from workers.sieve import Refusal
from workers.trial import Trial
from workers.watchdog import Watchdog

_COPY_PIECE_BYTES = 1 << 18

# The URL's own parameters win over these.
_CONNECTION: dict[str, Any] = {
    "connect_timeout": 5, "keepalives": 1, "keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3,
    "tcp_user_timeout": 8000, "target_session_attrs": "read-write", "client_encoding": "UTF8",
}
# Within each transaction, in the round trip of its BEGIN, and gone with it: poolers refuse them as `options` of the
# start-up packet, and hand a session on with what was set in it. A consumer that stops within its transaction must not
# hold its ledger rows against the others for ever. A wait for a lock ends before the statement's time does, to be told
# from a statement that is slow.
_LIMITS = {"statement_timeout": 1, "idle_in_transaction_session_timeout": 1, "lock_timeout": 3}
_LOCK_TIMEOUT_MS = 10_000
_PID = "SELECT pg_backend_pid()"  # behind a pooler it is another for each transaction, and not what libpq was told
_NOTHING_HEARD = re.compile("timeout expired|server login has been failing")


def parameters(url: str, name: str) -> dict[str, Any]:
    """Returns how the loader connects; `spillway doctor` and `status` connect so, too. Raises psycopg2.Error."""
    return {**_CONNECTION, "application_name": f"spillway {name}", **parse_dsn(url)}


def begin(url: str, timeout_s: float) -> str:
    """Returns what begins a load's transaction, with limits but for those that the URL sets. Raises psycopg2.Error."""
    own = parse_dsn(url).get("options", "")
    limits = {name: min(int(timeout_s * 1000 / part), _LOCK_TIMEOUT_MS if part > 1 else 1 << 31)
              for name, part in _LIMITS.items() if name not in own}
    return "; ".join(["BEGIN", *(f"SET LOCAL {name} = {value_ms}" for name, value_ms in limits.items())])


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
        self._parameters = parameters(url, name)
        self._begin = begin(url, timeout_s)
        self._watchdog = Watchdog(timeout_s)
        self._lookout = Lookout(self._parameters, timeout_s)
        self._refusal: Misconfigured | None = None
        self._is_direct = False
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
            Unavailable, Locked, Misconfigured: It is away, waits for a lock, or an operator has to mend something; and
                what `bury` raises.

        Durability:
            Durable on return; unknown if it raises, as the COMMIT may have happened: load the same again.
        """
        if any(batch.version != FORMAT for batch in batches):
            raise Misconfigured("format", f"another format than {FORMAT}: upgrade the consumer")
        with metric.load_seconds.time(), self._transaction() as cursor:
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

    def prove(self, like: Batch) -> None:
        """Returns if PostgreSQL takes a batch of that size, of which nothing stays.

        Raises:
            Poison, Unavailable, Locked, Misconfigured: It does not.
        """
        with self._transaction() as cursor:
            cursor.execute(f"SAVEPOINT proof; {schema.CHECK_AT_ONCE}")
            one = ledger.specimen(like.count, len(like.payload))
            ledger.enter(cursor, [one], ["0-1"])
            copy(cursor, [one], "SAVEPOINT row")
            cursor.execute("ROLLBACK TO proof")

    def prepare(self) -> None:
        """Connects, and makes the tables, and today's partition if that is missing, so that the first load need not.

        Raises:
            Unavailable, Locked, Misconfigured: It cannot.
        """
        with self._translated():
            self._open()

    def close(self) -> None:
        """Drops the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _transaction(self) -> Iterator[Cursor]:
        with self._translated():
            connection = self._open()
        with self._translated(is_loading=True), self._watchdog.guard(connection), connection.cursor() as cursor:
            cursor.execute(self._begin if self._is_direct else f"{self._begin}; {_PID}")
            pid = connection.info.backend_pid if self._is_direct else cursor.fetchall()[0][0]
            with self._lookout.over(pid):
                yield cursor
                cursor.execute("COMMIT")  # HANDOVER 4, confirm
            self._lookout.note_committed()

    @contextmanager
    def _translated(self, is_loading: bool = False) -> Iterator[None]:
        try:
            yield
        except (psycopg2.Error, ValueError) as error:
            found = translated(error, is_loading, self._lookout.has_seen_blockers())
            self._undo(found)
            raise found from error
        except BaseException:
            self.close()
            raise

    def _undo(self, error: Poison | Unavailable) -> None:
        try:
            if self._connection and isinstance(error, Poison):
                with self._watchdog.guard(self._connection), self._connection.cursor() as cursor:
                    return cursor.execute("ROLLBACK")
        except psycopg2.Error:
            pass  # A connection that cannot do that is of no more use.
        self.close()

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = self._connected()
            pid = self._connection.info.backend_pid
            with self._watchdog.guard(self._connection), self._lookout.over(pid):
                # Rows of today in DEFAULT would keep its partition from being made. The others are the keeper's.
                if not schema.ensure(self._connection):
                    partition.make_today(self._connection)
        return self._connection

    def _connected(self) -> Connection:
        """Connects; what was refused is so until something else is heard.

        A pooler whose login was refused lets those that come after wait, until it tries again, for longer than we do.
        """
        try:
            connection: Connection = psycopg2.connect(**self._parameters)
        except psycopg2.OperationalError as error:
            found = translated(error, is_loading=False)
            if isinstance(found, Misconfigured):
                self._refusal = found
            elif self._refusal and _NOTHING_HEARD.search(str(error)):
                raise self._refusal from error
            else:
                self._refusal = None
            raise
        self._refusal = None
        connection.autocommit = True  # BEGIN is ours.
        with self._watchdog.guard(connection), connection.cursor() as cursor:
            cursor.execute(_PID)
            self._is_direct = cursor.fetchall() == [(connection.info.backend_pid,)]
        return connection


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
