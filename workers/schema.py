"""Every statement that the loader sends, and how the tables are made: safely when several start at once.

`log_events` has a partition a day on the event's time, made ahead, and a DEFAULT one for what falls outside, so that a
strange time is no outage. Nothing on it is unique: duplicates are removed per batch, by the ledger `log_batches`.
"""

import logging
from datetime import UTC, date, datetime, time, timedelta

import psycopg2
from psycopg2.extensions import connection as Connection

from app import log
from app.batch import COLUMNS

logger = logging.getLogger(__name__)

# Locks of the service, held until the end of the transaction; the number is "spillway" cut to 31 bits, and arbitrary.
_LOCK = "SET LOCAL lock_timeout = '10s'; SELECT pg_advisory_xact_lock(1936747883)"
_IS_MADE = """
SELECT to_regclass('log_events_default') IS NOT NULL AND EXISTS (
    SELECT FROM pg_attribute WHERE attrelid = to_regclass('log_batches') AND attname = 'part_counts'
)
"""
_MAKE = """
CREATE TABLE IF NOT EXISTS log_events (
    ts timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    batch_id uuid NOT NULL,
    batch_index integer NOT NULL,
    level text,
    severity smallint,
    service text,
    host text,
    message text NOT NULL,
    trace_id text,
    span_id text,
    attributes jsonb NOT NULL
) PARTITION BY RANGE (ts);
COMMENT ON COLUMN log_events.severity IS 'OpenTelemetry severity number, 1 to 24, where the level says one';
CREATE INDEX IF NOT EXISTS log_events_ts ON log_events USING brin (ts);
CREATE INDEX IF NOT EXISTS log_events_received_at ON log_events USING brin (received_at) WITH (autosummarize = on);
CREATE TABLE IF NOT EXISTS log_events_default PARTITION OF log_events DEFAULT;
CREATE TABLE IF NOT EXISTS log_batches (
    batch_id uuid PRIMARY KEY,
    body_sha256 bytea NOT NULL,
    event_count integer NOT NULL,
    received_at timestamptz NOT NULL,
    loaded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
ALTER TABLE log_batches ADD COLUMN IF NOT EXISTS dead_events integer[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN log_batches.dead_events IS 'batch_index of events that were refused and are not stored';
ALTER TABLE log_batches ADD COLUMN IF NOT EXISTS entry_id text;
COMMENT ON COLUMN log_batches.entry_id IS 'the stream entry by which the batch came to be stored';
ALTER TABLE log_batches ADD COLUMN IF NOT EXISTS part_counts smallint[];
COMMENT ON COLUMN log_batches.part_counts IS 'of several requests that were stored as one: events of each, in order';
CREATE INDEX IF NOT EXISTS log_batches_received_at ON log_batches USING brin (received_at) WITH (autosummarize = on);
"""

ENTER = """
INSERT INTO log_batches (batch_id, body_sha256, event_count, received_at, entry_id, part_counts)
SELECT id, decode(sha256, 'hex'), events, received_at, entry_id, string_to_array(parts, ' ')::smallint[]
FROM unnest(%s::uuid[], %s::text[], %s::integer[], %s::timestamptz[], %s::text[], %s::text[])
    AS fresh (id, sha256, events, received_at, entry_id, parts)
ORDER BY id
ON CONFLICT (batch_id) DO NOTHING
RETURNING batch_id::text
"""
KNOWN = """
SELECT batch_id::text, encode(body_sha256, 'hex'), entry_id FROM log_batches WHERE batch_id = ANY (%s::uuid[])
"""
FORGET = "DELETE FROM log_batches WHERE batch_id = ANY (%s::uuid[])"
LACKING = "SELECT batch_id::text, dead_events FROM log_batches WHERE batch_id = ANY (%s::uuid[]) ORDER BY 1 FOR UPDATE"
ADD_LACKING = "UPDATE log_batches SET dead_events = dead_events || %s::integer[] WHERE batch_id = %s"
TAKE_LACKING = """
UPDATE log_batches SET dead_events = ARRAY(SELECT unnest(dead_events) EXCEPT SELECT unnest(%s::integer[]))
WHERE batch_id = %s
"""
# What COMMIT would refuse is refused with its row.
CHECK_AT_ONCE = "SET CONSTRAINTS ALL IMMEDIATE"
COPY = f"COPY log_events ({', '.join(COLUMNS)}) FROM STDIN WITH (FORMAT text, ENCODING 'UTF8')"

# Not to_regclass: it may answer from a cache that has not heard yet what the lock was waited for.
_PARTITION_EXISTS = """
SELECT EXISTS (SELECT FROM pg_class WHERE relname = %s AND relnamespace = current_schema()::regnamespace)
"""
# Not CREATE … PARTITION OF: that would lock the parent against every COPY.
_MAKE_PARTITION = "CREATE TABLE {name} (LIKE log_events INCLUDING DEFAULTS INCLUDING COMMENTS)"
_ATTACH_PARTITION = """
ALTER TABLE log_events ATTACH PARTITION {name} FOR VALUES FROM ('{start} 00:00Z') TO ('{end} 00:00Z')
"""
_PARTITIONS = """
SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = to_regclass('log_events')
"""


def ensure(connection: Connection) -> None:
    """Makes the tables where they are missing. Raises psycopg2.Error."""
    with connection, connection.cursor() as cursor:
        cursor.execute(_IS_MADE)
        # Asked first: even CREATE INDEX IF NOT EXISTS would wait for every load at work.
        if not cursor.fetchone()[0]:  # type: ignore[index]
            cursor.execute(_LOCK)
            cursor.execute(_MAKE)
            logger.warning(log.line("schema_made"))


def partitions_until(connection: Connection) -> float:
    """Returns up to when every day from today (UTC) on has a partition, in Unix seconds. Raises psycopg2.Error."""
    with connection, connection.cursor() as cursor:
        cursor.execute(_PARTITIONS)
        names = {name for name, in cursor.fetchall()}
    day = datetime.now(UTC).date()
    while _partition_of(day) in names:
        day += timedelta(days=1)
    return datetime.combine(day, time(), UTC).timestamp()


def ensure_partitions(connection: Connection, days_ahead: int) -> None:
    """Makes the partitions from yesterday to `days_ahead` days from now (UTC). Raises psycopg2.Error."""
    today = datetime.now(UTC).date()
    for offset in range(-1, days_ahead + 1):
        day = today + timedelta(days=offset)
        try:
            _ensure_partition(connection, day)
        except psycopg2.errors.CheckViolation:
            # The DEFAULT partition holds rows of that day already. They stay there, and so do those that follow.
            logger.warning(log.line("partition_refused", day=day, why="rows in default"))
        except psycopg2.errors.InsufficientPrivilege:
            # Rows go to DEFAULT then, until somebody who may makes it.
            return logger.warning(log.line("partition_refused", day=day, why="this role may not create tables"))


def _partition_of(day: date) -> str:
    return f"log_events_{day:%Y%m%d}"


def _ensure_partition(connection: Connection, day: date) -> None:
    name = _partition_of(day)
    with connection, connection.cursor() as cursor:
        cursor.execute(_PARTITION_EXISTS, (name,))
        if cursor.fetchone()[0]:  # type: ignore[index]
            return
        cursor.execute(_LOCK)
        cursor.execute(_PARTITION_EXISTS, (name,))
        if not cursor.fetchone()[0]:  # type: ignore[index]
            cursor.execute(_MAKE_PARTITION.format(name=name))
            cursor.execute(_ATTACH_PARTITION.format(name=name, start=day, end=day + timedelta(days=1)))
