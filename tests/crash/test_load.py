"""Hand-over 4, stream → PostgreSQL, and 5, stream → dead letters: SIGKILL before and after every step of them."""

import signal

import pytest
import redis

from app import dead_letter, stream
from tests import journal

POINTS = [
    "after:read", "before:load", "before:enter", "after:enter", "before:copy", "after:copy", "after:load", "before:ack",
    "after:ack",
]


def run_victim(point, tmp_path, redis_url, database_url):
    process = journal.start(
        "-m", "tests.crash.consumer_victim", log=tmp_path / "log", CRASH_POINT=point, CRASH_MARK=str(tmp_path / "mark"),
        REDIS_URL=redis_url, DATABASE_URL=database_url, SPILLWAY_CONSUMER_NAME="consumer-00",
    )
    assert process.wait(timeout=journal.DEADLINE_S) == -signal.SIGKILL, (tmp_path / "log").read_text()


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_load_stores_each_event_once_after_the_restart(point, tmp_path, redis_url, database_url):
    client = redis.Redis.from_url(redis_url)
    stream.ensure_group(client)
    batches = [journal.make_batch(f"batch {number}") for number in range(5)]
    journal.append(client, *batches)

    run_victim(point, tmp_path, redis_url, database_url)
    journal.drain(redis_url, database_url)

    expected = {one.batch_id: journal.messages(one, f"batch {number}") for number, one in enumerate(batches)}
    assert journal.stored(database_url) == expected


@pytest.mark.parametrize("point", ["before:bury", "after:bury"])
def test_a_conflict_is_buried_once_whenever_its_consumer_is_killed(point, tmp_path, redis_url, database_url):
    client = redis.Redis.from_url(redis_url)
    first, second = journal.make_batch("first", key="k"), journal.make_batch("second", key="k")
    journal.append(client, first)
    journal.drain(redis_url, database_url)
    journal.append(client, second)

    run_victim(point, tmp_path, redis_url, database_url)
    journal.drain(redis_url, database_url)

    assert journal.stored(database_url) == {first.batch_id: journal.messages(first, "first")}
    letters = client.xrange(stream.DEAD_LETTERS)
    found = [(letter[b"reason"], stream.batch_of(letter)) for _, letter in letters]
    assert found == [(b"idempotency_conflict", second)]


def test_a_consumer_killed_again_and_again_ends_with_every_event_once(tmp_path, redis_url, database_url):
    client = redis.Redis.from_url(redis_url)
    stream.ensure_group(client)
    batches = [journal.make_batch(f"batch {number}") for number in range(5)]
    journal.append(client, *batches)
    for number, point in enumerate(("after:read", "after:enter", "before:copy", "after:copy")):
        (tmp_path / str(number)).mkdir()
        run_victim(point, tmp_path / str(number), redis_url, database_url)
    journal.drain(redis_url, database_url)
    assert sorted(journal.stored(database_url)) == sorted(one.batch_id for one in batches)
    assert all(len(found) == 3 for found in journal.stored(database_url).values())
    assert client.xlen(stream.DEAD_LETTERS) == 0


@pytest.mark.parametrize("point", [
    "before:sift", "before:enter", "before:bury_events", "after:bury_events", "after:sift", "before:ack", "after:ack",
])
def test_a_killed_sifting_buries_bad_events_once_and_stores_the_others_once(point, tmp_path, redis_url, database_url):
    client = redis.Redis.from_url(redis_url)
    stream.ensure_group(client)
    one = journal.bad_at(journal.make_batch("event", count=10), 3, 7)
    journal.append(client, journal.make_batch("other"), one)

    run_victim(point, tmp_path, redis_url, database_url)
    journal.drain(redis_url, database_url)

    good = [message for index, message in enumerate(journal.messages(one)) if index not in (3, 7)]
    assert journal.stored(database_url)[one.batch_id] == good
    letters = [dead_letter.letter_of(*found) for found in client.xrange(stream.DEAD_LETTERS)]
    assert [(letter.death.reason, letter.batch.batch_id, letter.index) for letter in letters] == [
        (dead_letter.BAD_EVENT, one.batch_id, 3), (dead_letter.BAD_EVENT, one.batch_id, 7)
    ]


def test_a_batch_that_kills_its_consumers_is_loaded_alone_then_buried_and_spares_the_others(
    tmp_path, redis_url, database_url
):
    client = redis.Redis.from_url(redis_url)
    stream.ensure_group(client)
    batches = [journal.make_batch(f"batch {number}") for number in range(5)]
    killer = journal.make_batch("killer")
    journal.append(client, *batches[:2], killer, *batches[2:])
    deaths = 0
    while client.xlen(stream.STREAM):
        process = journal.start(
            "-m", "tests.crash.consumer_victim", log=tmp_path / "log", CRASH_POINT="poison:killer", CRASH_MARK="/none",
            REDIS_URL=redis_url, DATABASE_URL=database_url, SPILLWAY_CONSUMER_NAME="consumer-00",
        )
        journal.until(lambda: process.poll() is not None or not client.xlen(stream.STREAM), "the consumer to die")
        deaths += process.poll() is not None
        process.terminate()
        process.wait(timeout=journal.DEADLINE_S)
    assert deaths == 4
    assert sorted(journal.stored(database_url)) == sorted(one.batch_id for one in batches)
    letter, = [dead_letter.letter_of(*found) for found in client.xrange(stream.DEAD_LETTERS)]
    assert (letter.death.reason, letter.batch) == (dead_letter.KILLS, killer)
