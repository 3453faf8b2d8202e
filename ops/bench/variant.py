"""What the choices of the sink cost: a bare COPY into the table as it is made, and into ones with one thing changed.

Each is made from the service's own schema in a schema of its own, filled once and dropped; nothing else is touched. It
takes its transactions in turn with a table as it is made: what changes meanwhile must not be taken for what the change
does.
"""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import NamedTuple

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from ops.bench import binary_copy, cpu, limit
from ops.bench.body import Bodies, events
from ops.bench.figure import Figure
from ops.bench.rig import Rig
from workers import schema

PART = "table"
_SIZE = 1000
# May change every setting; `ops.postgres_server` gives it the password of ours.
_SUPERUSER = "postgres"

_ONE_TABLE = """
CREATE TABLE one_table (LIKE log_events INCLUDING ALL);
DROP TABLE log_events;
ALTER TABLE one_table RENAME TO log_events
"""
_UNLOGGED = """
DO $$
DECLARE part regclass;
BEGIN
    FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'log_events'::regclass LOOP
        EXECUTE format('ALTER TABLE %s SET UNLOGGED', part);
    END LOOP;
END $$
"""
_BYTES = """
SELECT sum(pg_table_size(oid)), sum(pg_indexes_size(oid)) FROM pg_class
WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND relname <> 'log_batches'
"""
_WAL_BYTES = "SELECT pg_current_wal_insert_lsn() - '0/0'"


class Variant(NamedTuple):
    """One choice that was not taken.

    Attributes:
        case: What it is about.
        name: What is done instead.
        change: SQL that makes it of the table as it is made, empty still; or sets something for the session.
        is_binary: The rows come in COPY's binary format.
    """

    case: str
    name: str
    change: str = ""
    is_binary: bool = False


AS_MADE = Variant("as it is made", "COPY and COMMIT")
VARIANTS = (
    Variant("attributes", "as json", "ALTER TABLE log_events ALTER attributes TYPE json"),
    Variant("attributes", "as text", "ALTER TABLE log_events ALTER attributes TYPE text"),
    Variant("indexes", "no BRIN", "DROP INDEX log_events_ts, log_events_received_at"),
    Variant("indexes", "and btree on ts", "CREATE INDEX ON log_events (ts)"),
    Variant("indexes", "and btree on (service, ts)", "CREATE INDEX ON log_events (service, ts)"),
    Variant("indexes", "and btree on trace_id", "CREATE INDEX ON log_events (trace_id)"),
    Variant("indexes", "and GIN on attributes", "CREATE INDEX ON log_events USING gin (attributes jsonb_path_ops)"),
    Variant("partitions", "none, one table", _ONE_TABLE),
    Variant("COPY", "binary instead of text", is_binary=True),
    Variant("WAL of PostgreSQL", "wal_compression off", "SET wal_compression = off"),
    Variant("WAL of PostgreSQL", "synchronous_commit off, unsafe", "SET synchronous_commit = off"),
    Variant("WAL of PostgreSQL", "UNLOGGED, emptied by a crash", _UNLOGGED),
)


class TableBench:
    """Copies the same rows again and again.

    Args:
        rig: Whose PostgreSQL it is.
        event_count: Rows, no two of them alike: what an index costs depends on it.
        copy_bytes: Of one transaction.
    """

    def __init__(self, rig: Rig, event_count: int, copy_bytes: int) -> None:
        self._url = rig.facts.database_url
        self._event_count = event_count
        self._rows = list(Bodies(events(event_count), _SIZE).transactions(event_count, copy_bytes))
        self._binary_rows = [binary_copy.encoded(rows) for rows in self._rows]

    def measure(self) -> Iterator[Figure]:
        """Measures one round."""
        figures, as_made = [], []
        for variant in VARIANTS:
            found, beside = self._pair(variant)
            as_made.append(beside)
            figures += [
                Figure(PART, variant.case, variant.name, "events/s", found.rate, AS_MADE.case, beside.rate,
                       found.facts),
                Figure(PART, variant.case, f"{variant.name}, CPU", "us", found.cpu_us, AS_MADE.case, beside.cpu_us),
            ]
        yield from _of_all(as_made)
        yield from figures

    def _pair(self, variant: Variant) -> tuple["_Copied", "_Copied"]:
        """Returns what a variant took, and what the table as it is made did in the same moments."""
        with ExitStack() as ends:
            one, other = (ends.enter_context(_side(self._url, *each))
                          for each in ((variant, "variant"), (AS_MADE, "as_made")))
            for number, rows in enumerate(self._rows):
                sides = [(one, self._binary_rows[number] if variant.is_binary else rows), (other, rows)]
                for side, its_rows in sides[::1 if number % 2 else -1]:  # neither is always the first
                    side.copy(its_rows)
            return one.copied(self._event_count), other.copied(self._event_count)


class _Copied(NamedTuple):
    """Events/s; and, an event, µs of CPU that PostgreSQL's process for the connection used, and bytes."""

    rate: float
    cpu_us: float
    facts: dict[str, float]


class _Side:
    """One of two tables that take the same rows, and what it has taken for them."""

    def __init__(self, cursor: Cursor, variant: Variant) -> None:
        self._cursor = cursor
        self._statement = statement(variant)
        self._spent_s = self._wal_bytes = 0.0
        self._pid = cursor.connection.info.backend_pid
        self._cpu_s = cpu.seconds(self._pid)

    def copy(self, rows: bytes) -> None:
        """Copies and commits one transaction."""
        before, = _numbers(self._cursor, _WAL_BYTES)
        self._spent_s += limit.copy_s(self._cursor, [rows], self._statement)
        self._wal_bytes += _numbers(self._cursor, _WAL_BYTES)[0] - before

    def copied(self, event_count: int) -> _Copied:
        """Returns what so many events have taken."""
        cpu_us = (cpu.seconds(self._pid) - self._cpu_s) / event_count * 1e6
        sizes = zip(("table", "indexes", "WAL"), (*_numbers(self._cursor, _BYTES), self._wal_bytes))
        facts = {f"bytes {name}": size / event_count for name, size in sizes}
        return _Copied(event_count / self._spent_s, cpu_us, facts)


def _of_all(as_made: Sequence[_Copied]) -> Iterator[Figure]:
    facts = {name: statistics.median(one.facts[name] for one in as_made) for name in as_made[0].facts}
    rate, cpu_us = (statistics.median(values) for values in zip(*((one.rate, one.cpu_us) for one in as_made)))
    yield Figure(PART, AS_MADE.case, AS_MADE.name, "events/s", rate, facts=facts)
    yield Figure(PART, AS_MADE.case, f"{AS_MADE.name}, CPU", "us", cpu_us)


@contextmanager
def _side(url: str, variant: Variant, name: str) -> Iterator[_Side]:
    with closing(psycopg2.connect(url, user=_SUPERUSER)) as connection, made(connection, variant, name) as cursor:
        yield _Side(cursor, variant)


def statement(variant: Variant) -> str:
    """Returns the COPY by which rows come into it."""
    return schema.COPY.replace("FORMAT text", "FORMAT binary") if variant.is_binary else schema.COPY


@contextmanager
def made(connection: Connection, variant: Variant, name: str = "variant") -> Iterator[Cursor]:
    """Makes the tables of a variant, empty, and drops them; yields a cursor that finds them first.

    Args:
        connection: A superuser's, with nothing begun; what is set for its session is taken back.
        variant: What is made.
        name: Of the schema, which is not there yet.
    """
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE SCHEMA {name}; SET search_path = {name}")
        try:
            connection.autocommit = False
            schema.ensure(connection)
            connection.autocommit = True
            if variant.change:
                cursor.execute(variant.change)
            yield cursor
        finally:
            connection.rollback()
            connection.autocommit = True
            cursor.execute("RESET ALL")
            cursor.execute(f"DROP SCHEMA {name} CASCADE")


def _numbers(cursor: Cursor, query: str) -> Sequence[float]:
    cursor.execute(query)
    return [float(number) for number in cursor.fetchone() or ()]
