"""Consumers that are killed, stopped or gone: others take over what they had, and nobody touches what it has lost."""

import itertools
import os
import signal
from contextlib import closing

import psycopg2
import pytest
from prometheus_client import REGISTRY

from app import count, dead_letter, stream
from app.dead_letter import Death
from tests import journal
from tests.conftest import execute
from tests.journal import until
from workers.entry import REFUSED, SET_ASIDE
from workers.inbox import Inbox

IDLE = {"SPILLWAY_SINK_TIMEOUT_S": "1", "SPILLWAY_CLAIM_IDLE_S": "2"}
DEATH = Death(dead_letter.SINK, "detail", "", 1, "", "", "nobody")


@pytest.fixture
def consumer(redis_url, database_url, tmp_path):
    """A factory of consumer processes; each has its log in `.log`."""
    processes = []

    def start(name, **settings):
        process = journal.start(
            "-m", "workers.consumer", log=tmp_path / name, REDIS_URL=redis_url, DATABASE_URL=database_url,
            SPILLWAY_CONSUMER_NAME=name, SPILLWAY_PARTITION_DAYS="1", **{**IDLE, **settings},
        )
        process.log = tmp_path / name
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def check_stored_once(database_url, batches):
    assert journal.stored(database_url) == {one.batch_id: journal.messages(one) for one in batches}


def is_drained(client):
    return client.xlen(stream.STREAM) == 0


def owners(client):
    return {row["consumer"] for row in client.xpending_range(stream.STREAM, stream.GROUP, "-", "+", 1000)}


def slow_down(redis_url, database_url):
    """Makes every load hang at its COPY until `pace` allows it, by an advisory lock."""
    journal.make_consumer(redis_url, database_url)._loader.prepare()
    execute(database_url, "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
                          " $$ BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END $$")
    execute(database_url, "CREATE TRIGGER wait AFTER INSERT ON log_events EXECUTE FUNCTION wait()")


def is_loading(database_url):
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity"
                       " WHERE query LIKE '%COPY log_events%' AND state = 'active' AND pid <> pg_backend_pid()")
        return cursor.fetchone()[0] > 0


def test_what_a_killed_consumer_had_is_taken_over_by_a_living_one_and_its_name_goes(
    client, consumer, redis_url, database_url
):
    slow_down(redis_url, database_url)
    batches = [journal.make_batch() for _ in range(20)]
    with closing(psycopg2.connect(database_url)) as pace, pace.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(7)")
        victim = consumer("victim", SPILLWAY_SINK_TIMEOUT_S="1")
        journal.append(client, *batches)
        until(lambda: is_loading(database_url), "the victim to load")
        os.kill(victim.pid, signal.SIGKILL)
    heir = consumer("heir")
    until(lambda: is_drained(client), "all to be stored")
    check_stored_once(database_url, batches)
    assert "entries_claimed" in heir.log.read_text() and "from_consumer=victim" in heir.log.read_text()
    until(lambda: [one["name"] for one in client.xinfo_consumers(stream.STREAM, stream.GROUP)] == [b"heir"],
          "the victim's name to be removed")


def test_a_consumer_that_is_stopped_within_its_load_for_longer_than_the_idle_time_loses_it_and_harms_nothing(
    client, consumer, redis_url, database_url
):
    slow_down(redis_url, database_url)
    batches = [journal.make_batch() for _ in range(5)]
    with closing(psycopg2.connect(database_url)) as pace, pace.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(7)")
        victim = consumer("victim", SPILLWAY_SINK_TIMEOUT_S="60", SPILLWAY_CLAIM_IDLE_S="120")
        journal.append(client, *batches)
        until(lambda: is_loading(database_url), "the victim to load")
        os.kill(victim.pid, signal.SIGSTOP)
        heir = consumer("heir", SPILLWAY_SINK_POLICY="hold")
        until(lambda: owners(client) == {b"heir"}, "the other to take over")
        until(lambda: "load_failed" in heir.log.read_text(), "it to find the ledger's rows locked")
    os.kill(victim.pid, signal.SIGCONT)
    until(lambda: is_drained(client), "all to be released")
    check_stored_once(database_url, batches)
    assert client.xlen(stream.DEAD_LETTERS) == 0


def test_who_has_lost_an_entry_neither_releases_nor_buries_nor_keeps_it(client, redis_url):
    entry_id, = journal.append(client, journal.make_batch())
    victim = Inbox(client, "victim", 1 << 20)
    entry, = victim.read()
    client.xclaim(stream.STREAM, stream.GROUP, "thief", 0, [entry_id])
    victim.ack([(entry, count.LOADED)])
    victim.bury(entry_id, DEATH)
    assert victim.keep([entry]) == []
    assert (client.xlen(stream.STREAM), client.xlen(stream.DEAD_LETTERS)) == (1, 0)
    assert owners(client) == {b"thief"}
    thief = Inbox(client, "thief", 1 << 20)
    assert [found.entry_id for found in thief.read()] == [entry_id]
    thief.bury(entry_id, DEATH)
    thief.bury(entry_id, DEATH)
    assert (client.xlen(stream.STREAM), client.xlen(stream.DEAD_LETTERS), owners(client)) == (0, 1, set())


@pytest.mark.parametrize("count", [2, 4])
def test_consumers_that_race_for_the_same_entries_store_each_once(count, client, consumer, database_url):
    batches = [journal.make_batch() for _ in range(300)]
    for number in range(count):
        consumer(f"racer-{number}", SPILLWAY_SINK_TIMEOUT_S="1")
    for number in range(0, 300, 10):
        journal.append(client, *batches[number:number + 10], *batches[number:number + 2])
        found = client.xpending_range(stream.STREAM, stream.GROUP, "-", "+", 100)
        if found:  # steals from whoever has them, as a consumer does that takes another for dead
            client.xclaim(stream.STREAM, stream.GROUP, f"racer-{number % count}", 0,
                          [row["message_id"] for row in found], justid=True)
    until(lambda: is_drained(client), "all to be stored")
    check_stored_once(database_url, batches)
    assert client.xpending(stream.STREAM, stream.GROUP)["pending"] == 0


def test_an_entry_that_was_deleted_under_a_consumer_that_is_gone_is_counted_as_lost(client, redis_url, caplog):
    gone, kept = journal.append(client, journal.make_batch(), journal.make_batch())
    client.xreadgroup(stream.GROUP, "gone", {stream.STREAM: ">"})
    client.xdel(stream.STREAM, gone)
    clock = iter(range(0, 1000, 10))
    inbox = Inbox(client, "heir", 1 << 20, claim_idle_s=0.001, monotonic=lambda: next(clock))
    found = until(lambda: inbox.read(), "the other entry")
    assert [entry.entry_id for entry in found] == [kept]
    until(lambda: inbox.read() is not None and "entries_lost" in caplog.text, "the loss to be said")
    assert owners(client) == {b"heir"}


def test_names_of_consumers_that_have_entries_or_are_at_work_stay(client):
    journal.append(client, journal.make_batch())
    client.xreadgroup(stream.GROUP, "has entries", {stream.STREAM: ">"})
    client.xgroup_createconsumer(stream.STREAM, stream.GROUP, "gone")
    clock = iter(range(0, 1000, 10))
    inbox = Inbox(client, "alive", 1 << 20, claim_idle_s=3600, monotonic=lambda: next(clock))
    inbox.read()
    inbox.read()
    names = {one["name"] for one in client.xinfo_consumers(stream.STREAM, stream.GROUP)}
    assert names >= {b"has entries", b"gone"}


def test_of_what_is_set_aside_that_is_taken_which_has_waited_longest(client):
    ids = journal.append(client, *(journal.make_batch() for _ in range(3)))
    client.xreadgroup(stream.GROUP, "gone", {stream.STREAM: ">"})
    for entry_id, idle_s in zip(ids, (61, 65, 63), strict=True):
        client.xclaim(stream.STREAM, stream.GROUP, SET_ASIDE, 0, [entry_id], idle=idle_s * 1000, retrycount=REFUSED,
                      justid=True)
    clock = itertools.count(0, 10)
    inbox = Inbox(client, "heir", 1 << 20, monotonic=lambda: next(clock))
    taken = []
    for _ in ids:
        taken += [entry.entry_id for entry in until(inbox.read, "one")]
        client.xack(stream.STREAM, stream.GROUP, taken[-1])
    assert taken == [ids[1], ids[2], ids[0]]


def test_what_is_set_aside_is_counted_also_while_it_is_tried(client):
    ids = journal.append(client, *(journal.make_batch() for _ in range(3)))
    client.xreadgroup(stream.GROUP, "gone", {stream.STREAM: ">"})
    client.xclaim(stream.STREAM, stream.GROUP, SET_ASIDE, 0, ids, idle=61_000, retrycount=REFUSED, justid=True)
    clock = itertools.count(0, 10)
    assert len(until(Inbox(client, "heir", 1 << 20, monotonic=lambda: next(clock)).read, "one")) == 1
    assert REGISTRY.get_sample_value("ingest_set_aside_entries") == 3


def test_deliveries_count_deaths_and_not_the_rounds_of_a_consumer_that_lives(client, redis_url, database_url):
    entry_id, = journal.append(client, journal.make_batch())

    def deliveries():
        row, = client.xpending_range(stream.STREAM, stream.GROUP, "-", "+", 10)
        return row["times_delivered"]

    for deaths in range(3):  # each a new process that ends without a word
        inbox = Inbox(client, "consumer-00", 1 << 20)
        entry, = inbox.read()
        assert (entry.deliveries, deliveries()) == (deaths + 1, deaths + 1)
    assert entry.is_suspect
    kept, = inbox.keep([entry])
    assert (kept.deliveries, deliveries()) == (1, 1)


def test_a_suspect_is_read_alone(client):
    ids = journal.append(client, *(journal.make_batch() for _ in range(4)))
    client.xreadgroup(stream.GROUP, "consumer-00", {stream.STREAM: ">"})
    client.xclaim(stream.STREAM, stream.GROUP, "consumer-00", 0, [ids[1]], retrycount=5, justid=True)
    inbox = Inbox(client, "consumer-00", 1 << 20)
    assert [[entry.entry_id for entry in inbox.read()] for _ in range(3)] == [[ids[0]], [ids[1]], ids[2:]]


@pytest.mark.parametrize("place", [499, 500, 501])
def test_a_suspect_is_read_alone_wherever_in_a_long_backlog_it_is(place, client):
    ids = journal.append(client, *(journal.make_batch(count=1) for _ in range(600)))
    client.xreadgroup(stream.GROUP, "consumer-00", {stream.STREAM: ">"})
    client.xclaim(stream.STREAM, stream.GROUP, "consumer-00", 0, [ids[place]], retrycount=5, justid=True)
    inbox = Inbox(client, "consumer-00", 1 << 20)
    found = [inbox.read() for _ in range(3)]
    assert [[entry.entry_id for entry in part] for part in found] == [ids[:place], [ids[place]], ids[place + 1:]]
    assert found[1][0].deliveries == 6
