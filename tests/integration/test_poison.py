"""Rows that PostgreSQL refuses, on a real one: the others of their batch and of their load are stored, and they are not
lost either."""

from contextlib import closing

import msgspec
import psycopg2
import pytest
import redis

from app import batch, dead_letter, stream
from app.batch import COLUMNS
from tests import journal
from tests.conftest import execute
from workers import loader, trial

COUNT = 10_000


def cell(name, value):
    """Returns what puts a value, as COPY text, in a column of a row."""
    place = COLUMNS.index(name)

    def put(row):
        cells = row.split(b"\t")
        cells[place] = value
        return b"\t".join(cells)

    return put


# What the edge lets through to nobody; here it is written to the stream as a faulty edge would, or another writer.
ROWS = {
    "a raw NUL": (cell("message", b"\0"), "22021"),
    "a NUL in JSON": (cell("attributes", rb'{"a": "\\u0000"}'), "22P05"),
    "a lone surrogate in JSON": (cell("attributes", rb'{"a": "\\ud800"}'), "22P02"),
    "invalid UTF-8": (cell("message", b"\xff"), "22021"),
    "overlong UTF-8": (cell("message", b"\xc0\xaf"), "22021"),
    "the year 300000": (cell("ts", b"300000-01-01T00:00:00Z"), "22008"),
    "a garbled time": (cell("ts", b"garbage"), "22007"),
    "a required value that lacks": (cell("message", rb"\N"), "23502"),
    "a number that overflows": (cell("severity", b"99999"), "22003"),
    "NaN in JSON": (cell("attributes", b'{"a": NaN}'), "22P02"),
    "a JSON number beyond all bounds": (cell("attributes", b'{"a": 1e400000}'), "22003"),
    "JSON nested too deep": (cell("attributes", b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"), "54001"),
    "a column that lacks": (lambda row: row.rpartition(b"\t")[0], "22P04"),
    "a column too many": (lambda row: row + b"\tmore", "22P04"),
    "the end of the data": (lambda row: rb"\.", "DataError"),
}


def poisoned(one, spoil, *places):
    rows = one.payload.split(b"\n")
    for place in places:
        rows[place] = spoil(rows[place])
    return msgspec.structs.replace(one, payload=b"\n".join(rows))


def letters(client):
    return [dead_letter.letter_of(*found) for found in client.xrange(stream.DEAD_LETTERS)]


def lacking(database_url, one):
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT event_count, dead_events FROM log_batches WHERE batch_id = %s", (one.batch_id,))
        return cursor.fetchone()


@pytest.mark.parametrize("place", [0, COUNT // 2, COUNT - 1], ids=["first", "middle", "last"])
@pytest.mark.parametrize("what", ROWS)
def test_one_bad_event_of_ten_thousand_is_buried_with_its_sqlstate_and_the_others_are_stored(
    what, place, client, redis_url, database_url
):
    spoil, sqlstate = ROWS[what]
    good = journal.make_batch("event", COUNT)
    one = poisoned(good, spoil, place)
    journal.append(client, one)
    journal.drain(redis_url, database_url)
    stored = journal.stored(database_url)[one.batch_id]
    assert stored == [message for index, message in enumerate(journal.messages(good)) if index != place]
    assert lacking(database_url, one) == (COUNT, [place])
    letter, = letters(client)
    assert (letter.death.reason, letter.death.sqlstate, letter.index) == (dead_letter.BAD_EVENT, sqlstate, place)
    assert letter.batch.payload == one.payload.split(b"\n")[place] + b"\n"
    assert letter.death.detail and letter.death.consumer == "consumer-00"


@pytest.mark.parametrize("part_bytes", [1, 20_000, 1 << 20], ids=["each alone", "some", "all"])
def test_bad_events_of_several_batches_cost_no_other_batch_anything(
    part_bytes, client, redis_url, database_url, monkeypatch
):
    monkeypatch.setattr(trial, "_PART_BYTES", part_bytes)  # of what is copied at once
    spoil = ROWS["a garbled time"][0]
    batches = [journal.make_batch(f"batch {number}", 40) for number in range(20)]
    spoiled = {3: (0,), 4: (39,), 11: (5, 6, 7, 8, 9, 10, 11, 12, 13, 14)}
    journal.append(client, *(poisoned(one, spoil, *spoiled.get(number, ())) for number, one in enumerate(batches)))
    journal.drain(redis_url, database_url)
    stored = journal.stored(database_url)
    for number, one in enumerate(batches):
        expected = [message for index, message in enumerate(journal.messages(one, f"batch {number}"))
                    if index not in spoiled.get(number, ())]
        assert stored[one.batch_id] == expected
    assert len(letters(client)) == 12


@pytest.mark.parametrize("hint", [None, 0, 57, 10**9])
def test_a_hint_that_lies_buries_no_good_event_and_stores_none_twice(
    hint, client, redis_url, database_url, monkeypatch
):
    monkeypatch.setattr(trial, "line_at_fault", lambda context: hint)
    batches = [journal.make_batch("event", 40) for _ in range(4)]
    places = [(), (20,), (), (0, 39)]
    journal.append(client, *(poisoned(one, ROWS["a garbled time"][0], *at) for one, at in zip(batches, places)))
    journal.drain(redis_url, database_url)
    found = [(letter.batch.batch_id, letter.index) for letter in letters(client)]
    assert found == [(batches[1].batch_id, 20), (batches[3].batch_id, 0), (batches[3].batch_id, 39)]
    for one in batches:
        assert journal.stored(database_url)[one.batch_id] == [
            message for index, message in enumerate(journal.messages(one)) if (one.batch_id, index) not in found
        ]


def test_one_bad_event_has_its_part_of_the_load_copied_again_and_no_more(
    client, redis_url, database_url, monkeypatch
):
    copied = []
    copy = loader.copy

    def copy_and_note(cursor, batches, before):
        copied.extend(batches)
        copy(cursor, batches, before)

    monkeypatch.setattr(loader, "copy", copy_and_note)
    batches = [journal.make_batch("event", 1000) for _ in range(40)]
    batches[33] = poisoned(batches[33], ROWS["a garbled time"][0], 500)
    journal.append(client, *batches)
    journal.drain(redis_url, database_url)
    assert len(letters(client)) == 1
    assert {name: len(found) for name, found in journal.stored(database_url).items()} == {
        one.batch_id: 999 if one is batches[33] else 1000 for one in batches
    }
    again = sum(len(one.payload) for one in copied) - sum(len(one.payload) for one in batches)
    # Its part; and the batch twice more, for the event and for the others.
    assert 0 < again <= (1 << 20) + 2 * len(batches[33].payload)
    assert sum(len(one.payload) for one in batches) > 4 << 20


@pytest.mark.parametrize("bad_count", [1, 3, 11, 40])
def test_with_over_a_quarter_bad_the_whole_batch_is_buried_and_nothing_of_it_stored(
    bad_count, client, redis_url, database_url
):
    count = {1: 3, 3: 11, 11: 40, 40: 40}[bad_count]
    one = poisoned(journal.make_batch("event", count), ROWS["a garbled time"][0], *range(bad_count))
    other = journal.make_batch("other")
    journal.append(client, one, other)
    journal.drain(redis_url, database_url)
    assert list(journal.stored(database_url)) == [other.batch_id]
    assert lacking(database_url, one) is None
    letter, = letters(client)
    assert (letter.death.reason, letter.death.sqlstate, letter.batch) == (dead_letter.BAD_BATCH, "22007", one)


def test_a_batch_that_does_not_hold_its_count_is_buried_whole(client, redis_url, database_url):
    one = msgspec.structs.replace(journal.make_batch("event", 10), count=11)
    journal.append(client, one, other := journal.make_batch("other"))
    journal.drain(redis_url, database_url)
    assert list(journal.stored(database_url)) == [other.batch_id]
    assert [(letter.death.reason, letter.batch) for letter in letters(client)] == [(dead_letter.BAD_BATCH, one)]


def test_a_rule_of_the_operators_own_buries_what_breaks_it_also_if_only_commit_finds_out(
    client, redis_url, database_url
):
    journal.make_consumer(redis_url, database_url)._loader.prepare()
    execute(database_url, "CREATE TABLE known (name text PRIMARY KEY)")
    execute(database_url, "INSERT INTO known VALUES ('event 0'), ('event 1'), ('event 2'), ('event 4')")
    execute(database_url, "ALTER TABLE log_events ADD FOREIGN KEY (message) REFERENCES known"
                          " DEFERRABLE INITIALLY DEFERRED")
    one = journal.make_batch("event", 5)
    journal.append(client, one)
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == {one.batch_id: ["event 0", "event 1", "event 2", "event 4"]}
    letter, = letters(client)
    assert (letter.index, letter.death.sqlstate) == (3, "23503")


def test_an_event_comes_back_from_the_dead_letters_once_its_rule_is_gone_and_only_once(
    client, redis_url, database_url
):
    journal.make_consumer(redis_url, database_url)._loader.prepare()
    execute(database_url, "ALTER TABLE log_events ADD CONSTRAINT no_three CHECK (message <> 'event 3')")
    one = journal.make_batch("event", 5)
    journal.append(client, one)
    journal.drain(redis_url, database_url)
    letter, = letters(client)
    assert (letter.index, letter.death.sqlstate, lacking(database_url, one)) == (3, "23514", (5, [3]))
    journal.append(client, dead_letter.to_replay(letter))
    journal.drain(redis_url, database_url)  # the rule still stands: it goes back to its one letter
    assert [found.index for found in letters(client)] == [3] and lacking(database_url, one) == (5, [3])
    execute(database_url, "ALTER TABLE log_events DROP CONSTRAINT no_three")
    journal.append(client, *[dead_letter.to_replay(letter)] * 3)
    journal.drain(redis_url, database_url)
    journal.append(client, dead_letter.to_replay(letter), one)
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == {one.batch_id: journal.messages(one)}
    assert lacking(database_url, one) == (5, [])


def test_an_event_whose_batch_is_not_stored_goes_back_to_the_dead_letters_and_not_into_the_table(
    client, redis_url, database_url
):
    one = journal.make_batch("event", 5)
    event = dead_letter.lone_event(one, 3, one.payload.split(b"\n")[3] + b"\n")
    journal.append(client, event)
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == {}
    assert [found.index for found in letters(client)] == [3]
    journal.append(client, one)
    journal.drain(redis_url, database_url)
    journal.append(client, event)  # the batch has it: a copy that there must not be
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == {one.batch_id: journal.messages(one)}


def test_dead_letters_of_events_are_written_also_when_redis_is_full(client, redis_url, database_url):
    one = poisoned(journal.make_batch("event", 8), ROWS["a garbled time"][0], 2)
    whole = poisoned(journal.make_batch("event", 8), ROWS["a garbled time"][0], 1, 2, 3, 4)
    journal.append(client, one, whole)
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    with pytest.raises(redis.ResponseError, match="maxmemory"):
        client.set("more", "x" * 1000)
    journal.drain(redis_url, database_url)
    assert [found.death.reason for found in letters(client)] == [dead_letter.BAD_EVENT, dead_letter.BAD_BATCH]


def test_what_looks_like_poison_and_is_none_is_stored_as_it_is(client, redis_url, database_url):
    rows = [rb"\\.", rb"\\N", b"infinity", b"now", b'{"a": 1e131071}']
    one = journal.make_batch("event", len(rows))
    lines = [cell("message", text)(line) for text, line in zip(rows, one.payload.split(b"\n"))]
    one = batch.Batch(one.batch_id, len(rows), one.sha256, one.received_at, b"\n".join([*lines, b""]))
    journal.append(client, one)
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url)[one.batch_id] == [r"\.", r"\N", "infinity", "now", '{"a": 1e131071}']
