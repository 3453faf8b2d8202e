"""The keeper is killed between the steps of a partition, and before what it left is taken away: another goes on."""

import signal
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest

from tests import journal
from tests.conftest import execute
from tests.journal import until
from workers import schema
from workers.loader import Loader

POINTS = ["before:look", "after:look", "before:validate", "after:validate", "before:attach", "after:attach"]


@pytest.fixture
def tables(database_url):
    """The URL of a database whose DEFAULT is too large to be looked through while others wait."""
    with closing(Loader(database_url, "consumer-00", 30)) as loader:
        loader.prepare()
    execute(database_url, "INSERT INTO log_events (ts, received_at, batch_id, batch_index, message, attributes)"
                          " SELECT '2001-01-01', '2001-01-01', gen_random_uuid(), 0, repeat('strange', 40), '{}'"
                          " FROM generate_series(1, 120000)")
    return database_url


def day(offset):
    return datetime.now(UTC).date() + timedelta(days=offset)


def found(url, query):
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return {value for value, in cursor.fetchall()}


def has_partitions(url):
    names = found(url, "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'log_events'::regclass")
    return {schema.partition_of(day(offset)) for offset in range(-1, 4)} <= names


def guards(url):
    return found(url, "SELECT format('%s %s', conname, convalidated) FROM pg_constraint"
                      f" WHERE starts_with(conname, '{schema.GUARD}')")


def start(tables, tmp_path, crash_point):
    return journal.start(
        "-m", "tests.crash.keeper_victim", log=tmp_path / "log", DATABASE_URL=tables, SPILLWAY_PARTITION_DAYS="3",
        CRASH_POINT=crash_point, CRASH_MARK=str(tmp_path / "mark"),
    )


@pytest.mark.parametrize("crash_point", POINTS)
def test_a_keeper_that_is_killed_leaves_what_the_next_one_finishes_and_loads_go_on(crash_point, tables, tmp_path):
    victim = start(tables, tmp_path, crash_point)
    assert victim.wait(60) == -signal.SIGKILL
    guarded = f"{schema.GUARD}{day(2):%Y%m%d}"
    assert guards(tables) == {
        "before:validate": {f"{guarded} f"}, "after:validate": {f"{guarded} t"}, "before:attach": {f"{guarded} t"},
    }.get(crash_point, set())
    with closing(Loader(tables, "consumer-00", 30)) as loader:
        loader.load([journal.make_batch()], ["1-1"], lambda events: None)
    successor = start(tables, tmp_path, crash_point)
    until(lambda: (tmp_path / "log").read_text().count("keeper_started") == 2, "the next one")
    try:
        until(lambda: has_partitions(tables), "all the partitions")
        until(lambda: guards(tables) == set(), "no guard to be left")
    finally:
        successor.terminate()
        assert successor.wait(30) == 0


@pytest.mark.parametrize("crash_point", ["before:drop", "after:drop"])
def test_a_guard_that_is_due_no_more_is_dropped_by_the_next_one(crash_point, tables, tmp_path):
    execute(tables, f"ALTER TABLE log_events_default ADD CONSTRAINT {schema.GUARD}{day(9):%Y%m%d}"
                    " CHECK (ts < '2100-01-01')")
    victim = start(tables, tmp_path, crash_point)
    assert victim.wait(60) == -signal.SIGKILL
    assert len(guards(tables)) == (crash_point == "before:drop")
    successor = start(tables, tmp_path, crash_point)
    until(lambda: (tmp_path / "log").read_text().count("keeper_started") == 2, "the next one")
    try:
        until(lambda: guards(tables) == set() and has_partitions(tables), "no guard to be left")
    finally:
        successor.terminate()
        assert successor.wait(30) == 0
