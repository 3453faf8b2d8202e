"""Hand-over 6, dead letters → stream: the replaying process is killed before and after each step, and begun again."""

import signal
from contextlib import closing

import psycopg2
import pytest
import redis

from app import dead_letter, stream
from tests import journal
from tests.letter import bury, letters, lone

POINTS = [
    "before:page", "after:page", "before:replay", "before:execute", "before:send", "after:send", "after:execute",
    "after:replay",
]


@pytest.fixture
def client(redis_url):
    with closing(redis.Redis.from_url(redis_url)) as client:
        stream.ensure_group(client)
        yield client


def run_victim(point, directory, redis_url, status):
    victim = journal.start(
        "-m", "tests.crash.dlq_victim", log=directory / "log", CRASH_POINT=point, CRASH_MARK=str(directory / "mark"),
        REDIS_URL=redis_url, SPILLWAY_DATA_DIR=str(directory),
    )
    assert victim.wait(timeout=journal.DEADLINE_S) == status, (directory / "log").read_text()


def store_without(client, redis_url, database_url, index):
    """Returns a batch that is stored, one event of which is a letter instead."""
    one = journal.make_batch()
    journal.append(client, one)
    journal.drain(redis_url, database_url)
    connection = psycopg2.connect(database_url)
    with closing(connection), connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM log_events WHERE batch_index = %s", (index,))
        cursor.execute("UPDATE log_batches SET dead_events = %s", ([index],))
    bury(client, lone(one, index), dead_letter.BAD_EVENT)
    return one


def prepare(client, redis_url, database_url):
    """Makes letters of batches and of an event, and returns what is to be stored once they are replayed."""
    lacking = store_without(client, redis_url, database_url, 1)
    batches = [journal.make_batch(f"batch {number}") for number in range(4)]
    for one in batches:
        bury(client, one)
    expected = {one.batch_id: journal.messages(one, f"batch {number}") for number, one in enumerate(batches)}
    return expected | {lacking.batch_id: journal.messages(lacking)}


def check(expected, client, redis_url, database_url):
    assert not letters(client) and not client.exists(stream.DEAD_EVENTS)
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == expected
    assert not letters(client)


@pytest.mark.parametrize("point", POINTS)
def test_a_replay_that_is_killed_and_begun_again_stores_each_event_once(
    point, client, tmp_path, redis_url, database_url
):
    expected = prepare(client, redis_url, database_url)
    run_victim(point, tmp_path, redis_url, -signal.SIGKILL)
    with client.pipeline() as at_once:
        assert sum(at_once.xlen(stream.STREAM).xlen(stream.DEAD_LETTERS).execute()) == 5, "in the one or the other"
    run_victim(point, tmp_path, redis_url, 0)
    check(expected, client, redis_url, database_url)


def test_a_replay_that_is_killed_again_and_again_while_rows_are_stored_ends_with_each_event_once(
    client, tmp_path, redis_url, database_url
):
    expected = prepare(client, redis_url, database_url)
    for number, point in enumerate(POINTS):
        (tmp_path / str(number)).mkdir()
        run_victim(point, tmp_path / str(number), redis_url, -signal.SIGKILL)
        journal.drain(redis_url, database_url)
    check(expected, client, redis_url, database_url)
