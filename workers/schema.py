"""Every statement that the loader and the keeper send, and how the tables are made: safely when several start at once.

`log_events` has a partition a day on the event's time, made ahead by the keeper, and a DEFAULT one for what falls
outside, so that a strange time is no outage. Nothing on it is unique: duplicates are removed per batch, by the ledger
`log_batches`.
"""

import logging
from datetime import UTC, date, datetime, timedelta

from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from app import log
from app.batch import COLUMNS
from workers import transaction

logger = logging.getLogger(__name__)

# Begins the name of a CHECK that refuses the rows of a day for as long as its partition is in the making.
GUARD = "spillway_without_"

_LOOK = """
SELECT to_regclass('log_events') IS NOT NULL, to_regclass('log_events_default') IS NOT NULL,
    to_regclass('log_batches') IS NOT NULL, to_regclass(%s) IS NOT NULL,
    ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass('log_batches') AND NOT attisdropped)
"""
_EVENTS = """
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
"""
_DEFAULT = "CREATE TABLE IF NOT EXISTS log_events_default PARTITION OF log_events DEFAULT;"
_BATCHES = """
CREATE TABLE IF NOT EXISTS log_batches (
    batch_id uuid PRIMARY KEY,
    body_sha256 bytea NOT NULL,
    event_count integer NOT NULL,
    received_at timestamptz NOT NULL,
    loaded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS log_batches_received_at ON log_batches USING brin (received_at) WITH (autosummarize = on);
"""
# Added one by one, where an older version has made the table: an index would have loads wait while it is built.
_COLUMNS = {
    "dead_events": """
ALTER TABLE log_batches ADD COLUMN IF NOT EXISTS dead_events integer[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN log_batches.dead_events IS 'batch_index of events that were refused and are not stored';
""",
    "entry_id": """
ALTER TABLE log_batches ADD COLUMN IF NOT EXISTS entry_id text;
COMMENT ON COLUMN log_batches.entry_id IS 'the stream entry by which the batch came to be stored';
""",
    "part_counts": """
ALTER TABLE log_batches ADD COLUMN IF NOT EXISTS part_counts smallint[];
COMMENT ON COLUMN log_batches.part_counts IS 'of several requests that were stored as one: events of each, in order';
""",
}

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
# Not CREATE … PARTITION OF: that would lock the parent against every COPY.
CREATE_DAY = "CREATE TABLE {name} (LIKE log_events INCLUDING DEFAULTS INCLUDING COMMENTS);"
ATTACH_DAY = "ALTER TABLE log_events ATTACH PARTITION {name} FOR VALUES FROM ('{start} 00:00Z') TO ('{end} 00:00Z');"
COPY = f"COPY log_events ({', '.join(COLUMNS)}) FROM STDIN WITH (FORMAT text, ENCODING 'UTF8')"


def ensure(connection: Connection) -> bool:
    """Makes the tables, or what tables of an older version lack, and returns whether today (UTC) has a partition.

    Tables that are new have those of yesterday, today and tomorrow. Where nothing is to be done it is one transaction.

    Raises:
        psycopg2.Error: Among others LockNotAvailable, as nobody is to wait behind us for long: try again.
    """
    with transaction.autocommit(connection), connection.cursor() as cursor:
        lacking, has_today = _look(cursor)
        for statements in lacking:
            with transaction.brief(cursor, is_waiting=True):
                if statements in _look(cursor)[0]:  # else another was first
                    cursor.execute(f"{statements} COMMIT")
        if lacking:
            logger.warning(log.line("schema_made"))
            has_today = _look(cursor)[1]
        return has_today


def partition_of(day: date) -> str:
    """Returns the name of a day's partition."""
    return f"log_events_{day:%Y%m%d}"


def words_of(day: date) -> dict[str, str]:
    """Returns what stands in statements about a day and its partition."""
    return {"name": partition_of(day), "guard": f"{GUARD}{day:%Y%m%d}", "start": f"{day}",
            "end": f"{day + timedelta(days=1)}"}


def _look(cursor: Cursor) -> tuple[list[str], bool]:
    """Returns the statements that make what lacks, and whether today has a partition."""
    today = datetime.now(UTC).date()
    cursor.execute(_LOOK, [partition_of(today)])
    [(has_events, has_default, has_batches, has_today, columns)] = cursor.fetchall()
    lacking = []
    if not has_default:
        lacking.append(_DEFAULT if has_events else _events(today))
    if not has_batches:
        lacking.append("".join((_BATCHES, *_COLUMNS.values())))
    else:
        lacking += [statement for column, statement in _COLUMNS.items() if column not in columns]
    return lacking, has_today


def _events(today: date) -> str:
    """Returns what makes the table with the days around today; its partitions are locked by nobody else yet."""
    days = [words_of(today + timedelta(days=offset)) for offset in (-1, 0, 1)]
    return _EVENTS + _DEFAULT + "".join((CREATE_DAY + ATTACH_DAY).format(**words) for words in days)
