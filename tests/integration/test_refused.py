"""Batches that PostgreSQL fails on while it takes others, without an SQLSTATE that blames the data: real consumers find
them by ever smaller loads, load their neighbours, and bury them alone, or hold them."""

import threading

import pytest

from app import dead_letter, stream
from tests import journal
from tests.conftest import execute
from tests.journal import until
from tests.sink import add_trigger, check_stored_once, is_drained, letters, make_tables
from workers.entry import SET_ASIDE
from workers.errors import Unavailable

QUICK = {"SPILLWAY_SINK_TIMEOUT_S": "1", "SPILLWAY_CLAIM_IDLE_S": "2", "SPILLWAY_SINK_RETRIES": "2"}

HARMS = {
    "raises": ("RAISE EXCEPTION 'not this one';", "P0001"),
    "sleeps": ("PERFORM pg_sleep(3);", "57014"),
    "internal error": ("RAISE EXCEPTION 'corrupt' USING ERRCODE = 'XX000';", "XX000"),
    "ends its backend": ("PERFORM pg_terminate_backend(pg_backend_pid());", "OperationalError"),
    "an external routine": ("RAISE EXCEPTION 'no' USING ERRCODE = '39000';", "39000"),
}
OPERATOR = ("PERFORM 1 FROM lacking;", "42P01")


def set_aside(client):
    """Returns the entries that are refused alone."""
    return {row["message_id"] for row in client.xpending_range(
        stream.STREAM, stream.GROUP, "-", "+", 1000, consumername=SET_ASIDE)}


@pytest.mark.parametrize("what", HARMS)
def test_what_postgresql_fails_on_alone_is_buried_for_that_and_its_neighbours_are_stored(
    what, client, consumer, redis_url, database_url
):
    body, sqlstate = HARMS[what]
    make_tables(redis_url, database_url)
    add_trigger(database_url, body)
    batches = [journal.make_batch() for _ in range(40)]
    bad = [journal.make_batch("bad"), journal.make_batch("bad")]
    journal.append(client, *batches[:20], bad[0], *batches[20:25], bad[1], *batches[25:39])
    process = consumer(**QUICK)
    until(lambda: len(journal.stored(database_url)) == 39, "the neighbours to be stored")
    journal.append(client, batches[39])
    until(lambda: is_drained(client), "the bad ones to be buried")
    check_stored_once(database_url, batches)
    found = letters(client)
    assert {letter.batch.batch_id for letter in found} == {one.batch_id for one in bad}
    assert {(letter.death.reason, letter.death.sqlstate, letter.death.attempts) for letter in found} == {
        (dead_letter.REFUSED, sqlstate, 3)
    }
    assert process.log.read_text().count("batch_set_aside") == 2


@pytest.mark.parametrize("what, policy", [("raises", "hold"), ("sleeps", "hold"), ("operator", "dead-letter")])
def test_what_is_not_to_be_buried_is_held_alone_and_named_until_it_is_mended(
    what, policy, client, consumer, redis_url, database_url
):
    body, sqlstate = HARMS.get(what, OPERATOR)
    make_tables(redis_url, database_url)
    add_trigger(database_url, body)
    batches = [journal.make_batch() for _ in range(10)]
    bad = journal.make_batch("bad")
    entry_id, = journal.append(client, bad)
    journal.append(client, *batches[:5])
    process = consumer(**QUICK, SPILLWAY_SINK_POLICY=policy)
    until(lambda: process.has_logged("batch_held", bad.batch_id, f"cause={sqlstate}"), "the retries to be used up")
    journal.append(client, *batches[5:])
    until(lambda: len(journal.stored(database_url)) == 10, "the neighbours to be stored")
    until(lambda: set_aside(client) == {entry_id}, "it to be set aside again")
    execute(database_url, "DROP TRIGGER harm ON log_events")
    until(lambda: is_drained(client), "it to be stored")
    stored = journal.stored(database_url)
    assert stored.pop(bad.batch_id) == journal.messages(bad, "bad") and len(stored) == 10
    assert letters(client) == [] and process.log.read_text().count("batch_held") == 1


def test_however_much_is_set_aside_it_is_stored_once_that_is_mended(client, consumer, redis_url, database_url):
    make_tables(redis_url, database_url)
    add_trigger(database_url, HARMS["raises"][0])
    bad = [journal.make_batch("bad") for _ in range(100)]
    journal.append(client, *bad)
    consumer(**QUICK, SPILLWAY_SINK_POLICY="hold")
    until(lambda: len(set_aside(client)) >= 99, "them to be set aside")
    execute(database_url, "DROP TRIGGER harm ON log_events")
    until(lambda: is_drained(client), "them to be stored")
    check_stored_once(database_url, bad, "bad")


def test_what_is_in_hand_when_the_stream_is_lost_is_stored_also_where_loads_are_small(
    client, redis_url, database_url
):
    make_tables(redis_url, database_url)
    add_trigger(database_url, HARMS["raises"][0])
    batches = [journal.make_batch("bad") for _ in range(8)]
    journal.append(client, *batches)
    one, stop = journal.make_consumer(redis_url, database_url), threading.Event()
    with pytest.raises(Unavailable):
        one.step()
    execute(database_url, "DROP TRIGGER harm ON log_events")
    client.flushall()
    thread = threading.Thread(target=one.run, args=[stop])
    thread.start()
    try:
        until(lambda: len(journal.stored(database_url)) == 8, "all of it to be stored")
    finally:
        stop.set()
        thread.join()
    check_stored_once(database_url, batches, "bad")


def test_what_is_refused_alone_is_counted_on_by_whoever_takes_over(client, consumer, redis_url, database_url):
    make_tables(redis_url, database_url)
    add_trigger(database_url, HARMS["raises"][0])
    bad = journal.make_batch("bad")
    entry_id, = journal.append(client, bad)
    first = consumer("first", **QUICK)
    until(lambda: set_aside(client) == {entry_id}, "it to be set aside")
    first.terminate()
    assert first.wait(30) == 0
    second = consumer("second", **QUICK)
    until(lambda: is_drained(client), "it to be buried")
    letter, = letters(client)
    assert (letter.death.reason, letter.death.attempts) == (dead_letter.REFUSED, 3)
    assert not second.has_logged("entries_claimed") and not second.has_logged("batch_set_aside")


def test_what_is_refused_for_every_batch_is_the_sink_away_and_no_batch_is_to_blame(
    client, consumer, redis_url, database_url
):
    make_tables(redis_url, database_url)
    execute(database_url, "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
                          " $$ BEGIN RAISE EXCEPTION 'closed'; END $$")
    execute(database_url, "CREATE TRIGGER fail BEFORE INSERT ON log_events FOR EACH ROW EXECUTE FUNCTION fail()")
    batches = [journal.make_batch() for _ in range(7)]
    journal.append(client, *batches)
    consumer(**QUICK)
    until(lambda: is_drained(client), "the retries to be used up")
    found = letters(client)
    assert {letter.death.reason for letter in found} == {dead_letter.SINK} and len(found) == 7
    assert set_aside(client) == set()


def test_a_trigger_that_refuses_our_specimen_does_not_make_one_batch_the_ruin_of_the_others(
    client, consumer, redis_url, database_url
):
    make_tables(redis_url, database_url)
    execute(database_url, "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                          " IF NEW.message NOT LIKE 'event%' THEN RAISE 'unknown'; END IF; RETURN NEW; END $$")
    execute(database_url, "CREATE TRIGGER fail BEFORE INSERT ON log_events FOR EACH ROW EXECUTE FUNCTION fail()")
    batches = [journal.make_batch() for _ in range(20)]
    bad = journal.make_batch("bad")
    journal.append(client, bad, *batches)
    consumer(**QUICK)
    until(lambda: len(journal.stored(database_url)) == 20, "the neighbours to be stored")

    def is_buried():
        batches.append(journal.make_batch())
        journal.append(client, batches[-1])
        return letters(client)

    found = until(is_buried, "it to be buried")
    until(lambda: is_drained(client), "the others to be stored")
    check_stored_once(database_url, batches)
    assert [(letter.batch, letter.death.reason) for letter in found] == [(bad, dead_letter.REFUSED)]


@pytest.mark.parametrize("policy", ["dead-letter", "hold"])
def test_a_load_too_large_for_the_time_limit_is_loaded_in_smaller_parts(
    policy, client, consumer, redis_url, database_url
):
    make_tables(redis_url, database_url)
    execute(database_url, "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
                          " $$ BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END $$")
    execute(database_url, "CREATE TRIGGER slow BEFORE INSERT ON log_events FOR EACH ROW EXECUTE FUNCTION slow()")
    batches = [journal.make_batch() for _ in range(40)]
    journal.append(client, *batches)
    consumer(**QUICK, SPILLWAY_SINK_POLICY=policy)
    until(lambda: is_drained(client), "all to be stored")
    check_stored_once(database_url, batches)
    assert letters(client) == []


def test_what_postgresql_goes_down_with_takes_no_neighbour_along(
    client, redis_url, database_url, postgres_server, monkeypatch
):
    make_tables(redis_url, database_url)
    add_trigger(database_url, HARMS["raises"][0])
    batches, bad = [journal.make_batch() for _ in range(5)], journal.make_batch("bad")
    journal.append(client, bad, *batches)
    consumer = journal.make_consumer(redis_url, database_url, sink_retries=1)
    prove = consumer._loader.prove

    def killed(like):
        postgres_server.kill()
        prove(like)

    monkeypatch.setattr(consumer._loader, "prove", killed)
    for _ in range(12):
        postgres_server.start()
        try:
            consumer.step()
        except Unavailable:
            pass
    postgres_server.start()
    check_stored_once(database_url, batches)
    assert not {letter.batch.batch_id for letter in letters(client)} & {one.batch_id for one in batches}
