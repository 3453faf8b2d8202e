"""The variants of the table that the benchmark measures: each is what its name says, holds the same rows, and is gone
afterwards.
"""

from contextlib import closing

import psycopg2
import pytest

from ops.bench import binary_copy, limit
from ops.bench.body import Bodies, events
from ops.bench.variant import AS_MADE, VARIANTS, made, statement
from workers import schema

# With escapes and NULLs, which text and binary write differently.
ODD = [b'{"message": "a\\tb\\nc \\\\N \\u00e9", "level": "odd"}', b'{"message": "", "attributes": {"a": "\\\\\\""}}']
BRIN = {"brin (ts)", "brin (received_at) WITH (autosummarize='on')"}
CHANGES = {
    "as json": {"attributes": "json"},
    "as text": {"attributes": "text"},
    "no BRIN": {"indexes": set()},
    "and btree on ts": {"indexes": BRIN | {"btree (ts)"}},
    "and btree on (service, ts)": {"indexes": BRIN | {"btree (service, ts)"}},
    "and btree on trace_id": {"indexes": BRIN | {"btree (trace_id)"}},
    "and GIN on attributes": {"indexes": BRIN | {"gin (attributes jsonb_path_ops)"}},
    "none, one table": {"kind": "r"},
    "binary instead of text": {},
    "wal_compression off": {"wal_compression": "off"},
    "synchronous_commit off, unsafe": {"synchronous_commit": "off"},
    "UNLOGGED, emptied by a crash": {"persistence": {"u"}},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)


@pytest.fixture(scope="module")
def rows():
    bodies = Bodies([*events(100), *ODD], 102)
    return next(bodies.transactions(102, 1 << 20))


@pytest.fixture
def connection(database_url):
    with closing(psycopg2.connect(database_url, user="postgres")) as connection:
        yield connection


def asked(cursor, query):
    cursor.execute(query)
    return [value for value, in cursor.fetchall()]


def shape(cursor):
    """Returns what the variants differ in."""
    return {
        "attributes": asked(cursor, "SELECT format_type(atttypid, NULL) FROM pg_attribute"
                                    " WHERE attrelid = 'log_events'::regclass AND attname = 'attributes'")[0],
        "indexes": set(asked(cursor, "SELECT regexp_replace(pg_get_indexdef(indexrelid), '.* USING ', '')"
                                     " FROM pg_index WHERE indrelid = 'log_events'::regclass")),
        "kind": asked(cursor, "SELECT relkind FROM pg_class WHERE oid = 'log_events'::regclass")[0],
        "persistence": set(asked(cursor, "SELECT relpersistence FROM pg_class WHERE relkind = 'r' AND relnamespace ="
                                         " current_schema()::regnamespace AND relname <> 'log_batches'")),
        "wal_compression": asked(cursor, "SHOW wal_compression")[0],
        "synchronous_commit": asked(cursor, "SHOW synchronous_commit")[0],
    }


def stored(connection, variant, rows):
    """Returns the rows that a variant holds, as text, once they were copied."""
    with made(connection, variant) as cursor:
        limit.copy_s(cursor, [binary_copy.encoded(rows) if variant.is_binary else rows], statement(variant))
        return asked(cursor, "SELECT (received_at, batch_id, batch_index, ts, level, severity, service, host, message,"
                             " trace_id, span_id, attributes::text::jsonb)::text FROM log_events ORDER BY batch_index")


@each_variant
def test_a_variant_differs_from_the_table_as_it_is_made_in_what_its_name_says(variant, connection):
    with made(connection, AS_MADE) as cursor:
        as_made = shape(cursor)
    assert as_made == {"attributes": "jsonb", "indexes": BRIN, "kind": "p", "persistence": {"p"},
                       "wal_compression": as_made["wal_compression"], "synchronous_commit": "on"}
    assert as_made["wal_compression"] != "off"
    with made(connection, variant) as cursor:
        assert shape(cursor) == as_made | CHANGES[variant.name]
    with made(connection, AS_MADE) as cursor:
        assert shape(cursor) == as_made


@each_variant
def test_a_variant_holds_the_same_rows(variant, connection, rows):
    expected = stored(connection, AS_MADE, rows)
    assert len(expected) == 102 and len(set(expected)) == 102
    assert stored(connection, variant, rows) == expected


def test_of_a_variant_nothing_is_left_and_the_services_own_table_is_not_touched(connection, rows):
    schema.ensure(connection)
    connection.autocommit = True
    with connection.cursor() as cursor:
        limit.copy_s(cursor, [rows], schema.COPY)
        with pytest.raises(psycopg2.DataError), made(connection, AS_MADE) as inner:
            limit.copy_s(inner, [rows, b"no row\n"], schema.COPY)
        assert asked(cursor, "SELECT count(*) FROM log_events") == [102]
        assert asked(cursor, "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema$'") == [
            "public"]
