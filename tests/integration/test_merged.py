"""Requests that were stored as one batch: each is answered for, looked up, buried and replayed as if it were alone."""

import json
from contextlib import closing

import falcon.testing
import psycopg2
import pytest

from app import dead_letter, stream
from app.letter_filter import Filter
from app.letterbox import Letterbox, Report
from app.monitor import Monitor
from tests import journal
from tests.letter import bury, letters, lone


@pytest.fixture
def monitor(database_url):
    """Returns what the status monitor says of a request: state and counts, or the status that is no 200."""
    app = falcon.App()
    app.add_route("/batches/{batch_id:uuid}", Monitor(database_url))
    caller = falcon.testing.TestClient(app)

    def look(batch_id):
        answer = caller.simulate_get(f"/batches/{batch_id}")
        if answer.status_code != 200:
            return answer.status_code
        assert answer.json["batch_id"] == batch_id
        return answer.json["state"], answer.json["event_count"], answer.json["dead_count"]

    return look


def test_each_request_is_stored_under_its_own_id_and_the_batch_once(client, monitor, redis_url, database_url):
    ids, one = journal.merge("a", "b", "c", count=2)
    journal.append(client, one, one)
    assert [monitor(name) for name in ids] == [404] * 3
    journal.drain(redis_url, database_url)
    journal.append(client, one)
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == {name: [f"{text} 0", f"{text} 1"] for name, text in zip(ids, "abc")}
    assert [monitor(name) for name in ids] == [("stored", 2, 0)] * 3
    assert monitor(ids[-1][:-4] + "0004") == 404
    assert client.xlen(stream.DEAD_LETTERS) == 0


def test_what_comes_out_of_the_stream_is_what_went_in(client):
    _, one = journal.merge("a", "b")
    journal.append(client, one)
    (_, fields), = client.xrange(stream.STREAM)
    assert stream.batch_of(fields) == one and one.parts == (1, 1)


@pytest.mark.parametrize("parts", ["1", "1,1,1", "", "1,", "1,-1,2", "a,b", "2,٠"])
def test_parts_that_do_not_add_up_are_no_batch(client, parts, redis_url, database_url):
    _, one = journal.merge("a", "b")
    fields = dict(zip(stream.fields_of(one)[::2], stream.fields_of(one)[1::2]))
    client.xadd(stream.STREAM, fields | {"parts": parts})
    journal.drain(redis_url, database_url)
    letter, = letters(client)
    assert letter.death.reason == dead_letter.NOT_AN_ENTRY


@pytest.mark.parametrize("bad", [(0,), (0, 3), (0, 1, 2), (0, 1, 2, 3)])
def test_the_events_of_a_request_do_not_suffer_for_those_of_others_however_many_are_bad(
    bad, client, monitor, redis_url, database_url
):
    ids, one = journal.merge(*"abcd", bad=bad)
    journal.append(client, one)
    journal.drain(redis_url, database_url)
    good = {name: [f"{text} 0"] for place, (name, text) in enumerate(zip(ids, "abcd")) if place not in bad}
    assert journal.stored(database_url) == good
    assert [monitor(name) for name in ids] == [("stored", 1, int(place in bad)) for place in range(4)]
    found = letters(client)
    assert [letter.index for letter in found] == list(bad)
    assert {letter.death.reason for letter in found} == {dead_letter.BAD_EVENT}
    for place, name in enumerate(ids):
        meant = [letter.index for letter in found if Filter(batch_id=name).matches(letter)]
        assert meant == [place] * (place in bad)


def test_a_thousand_bad_events_of_as_many_requests_are_told_apart_from_none(client, redis_url, database_url):
    ids, one = journal.merge(*map(str, range(1000)), bad=range(0, 1000, 2))
    journal.append(client, one)
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == {name: [f"{place} 0"] for place, name in enumerate(ids) if place % 2}
    assert client.xlen(stream.DEAD_LETTERS) == 500


def test_a_letter_of_merged_requests_is_found_by_each_of_them_and_replayed_once(
    client, redis_url, database_url
):
    ids, one = journal.merge("a", "b")
    other_ids, other = journal.merge("c", "d")
    bury(client, one)
    bury(client, other)
    letterbox = Letterbox(client)
    for name in ids:
        found = [letter for page in letterbox.pages(Filter(batch_id=name)) for letter in page]
        assert [letter.batch for letter in found] == [one]
    letterbox.replay_matching(Filter(batch_id=ids[1]), Report())
    bury(client, one)
    letterbox.replay_matching(Filter(batch_id=ids[0]), Report())
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == {ids[0]: ["a 0"], ids[1]: ["b 0"]}
    assert [letter.batch for letter in letters(client)] == [other]


def test_a_purge_of_one_request_spares_the_others_unless_the_letter_is_named(client):
    ids, one = journal.merge("a", "b")
    whole = bury(client, one)
    bury(client, lone(one, 0), dead_letter.BAD_EVENT)
    letterbox, report = Letterbox(client), Report()
    letterbox.purge_matching(Filter(batch_id=ids[0]), report)
    assert (report.done.count, report.left.count) == (1, 1)
    assert [letter.letter_id for letter in letters(client)] == [whole]
    letterbox.purge_matching(Filter(batch_id=ids[0], letter_ids=(whole,)), Report())
    assert letters(client) == []
    bury(client, one)
    letterbox.purge_matching(Filter(batch_id=one.batch_id), Report())
    assert letters(client) == []


def test_mended_events_come_back_and_are_stored_once(client, monitor, redis_url, database_url):
    ids, one = journal.merge("a", "b", "c", bad=(1,))
    journal.append(client, one)
    journal.drain(redis_url, database_url)
    letter, = letters(client)
    assert json.loads(json.dumps(letter.document()))["batch_id"] == one.batch_id
    mended = dead_letter.lone_event(letter.batch, letter.index, letter.batch.payload.replace(b"no JSON", b"{}"))
    journal.append(client, mended, mended)
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == {name: [f"{text} 0"] for name, text in zip(ids, "abc")}
    assert [monitor(name) for name in ids] == [("stored", 1, 0)] * 3


def test_a_ledger_of_before_there_were_parts_gets_them(client, redis_url, database_url):
    journal.append(client, journal.make_batch())
    journal.drain(redis_url, database_url)
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("ALTER TABLE log_batches DROP COLUMN part_counts")
    ids, one = journal.merge("a", "b")
    journal.append(client, one)
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url).keys() >= set(ids)
