"""Dead letters on real servers: looked through within bounds, replayed so that their rows are there once, purged."""

import threading
import tracemalloc
from contextlib import closing

import psycopg2
import pytest
import redis

from app import dead_letter, stream
from app.errors import StreamUnavailable
from app.letter_filter import Filter
from app.letterbox import Letterbox, Report
from tests import journal
from tests.letter import bury, letters, lone, make_service_batch

REASONS = (dead_letter.SINK, dead_letter.BAD_BATCH, dead_letter.KILLS)


@pytest.fixture
def letterbox(client):
    return Letterbox(client)


def found(letterbox, **wanted):
    return [letter.letter_id for letters in letterbox.pages(Filter(**wanted)) for letter in letters]


def replay(letterbox, limit=None, is_dry=False, **wanted):
    report = Report()
    letterbox.replay_matching(Filter(**wanted), report, is_dry, limit)
    return report


def query(database_url, statement, *arguments):
    connection = psycopg2.connect(database_url)
    with closing(connection), connection, connection.cursor() as cursor:
        cursor.execute(statement, arguments)
        return cursor.fetchall() if cursor.description else None


def everything(client):
    return {key: client.dump(key) for key in (stream.STREAM, stream.DEAD_LETTERS, stream.DEAD_EVENTS)}


# Looking through


def test_pages_bring_every_letter_once_in_order_and_end_with_the_letter_that_fills_them(client, letterbox):
    ids = [bury(client, journal.make_batch("x" * 100, count=10)) for _ in range(25)]
    seen, sizes = [""], []
    while letters_ := letterbox.page(seen[-1], 4, 1 << 20):
        seen += [letter.letter_id for letter in letters_]
        sizes.append(len(letters_))
    assert seen[1:] == ids and sizes == [4] * 6 + [1]
    size = len(letterbox.get(ids[0]).fields[b"payload"])
    assert len(letterbox.page("", 100, 3 * size)) == 3
    assert len(letterbox.page("", 100, 1)) == 1
    assert [letter.letter_id for letter in letterbox.page(ids[2], 100, 1 << 20, ids[5])] == ids[3:6]


def test_without_letters_there_is_nothing_to_see(letterbox):
    assert letterbox.page("", 10, 10) == [] and found(letterbox) == [] and letterbox.get("1-1") is None
    assert replay(letterbox).done.count == 0


def test_each_filter_finds_its_letters(client, letterbox):
    web, shop = make_service_batch("other", "web"), make_service_batch("other", "shop")
    first = bury(client, web, letter_id="1000-0")
    second = bury(client, shop, dead_letter.BAD_BATCH, letter_id="2000-0")
    third = bury(client, lone(web, 1), dead_letter.BAD_EVENT, letter_id="2000-1")
    fourth = client.xadd(stream.DEAD_LETTERS, {"reason": dead_letter.NOT_AN_ENTRY}).decode()
    assert found(letterbox) == [first, second, third, fourth]
    assert found(letterbox, reason=dead_letter.BAD_EVENT) == [third]
    assert found(letterbox, reason=dead_letter.NOT_AN_ENTRY) == [fourth]
    assert found(letterbox, service="web") == [first, third]
    assert found(letterbox, service="other") == [first, second]
    assert found(letterbox, batch_id=web.batch_id) == [first, third]
    assert found(letterbox, since_ms=2000) == [second, third, fourth]
    assert found(letterbox, since_ms=2001) == [fourth]
    assert found(letterbox, letter_ids=(third, "3000-0", first)) == [third, first]
    assert found(letterbox, letter_ids=(third, first), reason=dead_letter.SINK) == [first]


def test_letters_that_come_meanwhile_are_not_followed_for_ever(client):
    letterbox = Letterbox(client, page_bytes=1)
    ids = [bury(client, journal.make_batch(count=1)) for _ in range(5)]
    for letters_ in letterbox.pages(Filter()):
        bury(client, journal.make_batch(count=1))
        assert letters_[0].letter_id == ids.pop(0)
    assert ids == []


def test_a_replay_holds_some_letters_at_a_time_however_many_there_are(client):
    body = "x" * 1000
    for number in range(40):
        reason = dead_letter.CONFLICT if number % 2 else dead_letter.SINK
        bury(client, journal.make_batch(body, count=1000), reason)
    letterbox = Letterbox(client, page_bytes=1 << 20)
    letterbox.get("1-1")
    tracemalloc.start()
    try:
        assert sum(1 for _ in letterbox.pages(Filter(service="web"))) == 40
        report = replay(letterbox)
        assert (report.done.count, report.left.count) == (20, 20)
        assert replay(letterbox, reason=dead_letter.CONFLICT).done.events.total() == 20_000
        assert tracemalloc.get_traced_memory()[1] < 16 << 20  # all of them are 40 MB
    finally:
        tracemalloc.stop()
    assert client.xlen(stream.STREAM) == 40 and not client.xlen(stream.DEAD_LETTERS)


# Replaying


@pytest.mark.parametrize("reason", REASONS)
def test_replayed_batches_become_rows_and_their_letters_go(reason, client, letterbox, redis_url, database_url):
    batches = [journal.make_batch(f"batch {number}") for number in range(3)]
    for one in batches:
        bury(client, one, reason)
    report = replay(letterbox)
    assert (report.done.letters, report.done.events) == ({reason: 3}, {reason: 9})
    assert not client.exists(stream.DEAD_LETTERS) or not client.xlen(stream.DEAD_LETTERS)
    journal.drain(redis_url, database_url)
    expected = {one.batch_id: journal.messages(one, f"batch {number}") for number, one in enumerate(batches)}
    assert journal.stored(database_url) == expected


def test_a_replayed_event_becomes_the_row_that_its_batch_lacked(client, letterbox, redis_url, database_url):
    one = journal.make_batch()
    journal.append(client, one)
    journal.drain(redis_url, database_url)
    query(database_url, "DELETE FROM log_events WHERE batch_index = 1")
    query(database_url, "UPDATE log_batches SET dead_events = '{1}'")
    bury(client, lone(one, 1), dead_letter.BAD_EVENT)
    letter, = letters(client)
    assert replay(letterbox).done.letters == {dead_letter.BAD_EVENT: 1}
    assert not client.exists(stream.DEAD_EVENTS) and letterbox.replay([letter]) == []
    journal.append(client, dead_letter.to_replay(letter))  # a copy more adds nothing
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == {one.batch_id: journal.messages(one)}
    assert not letters(client)


def test_an_event_that_is_refused_again_comes_back_as_one_letter(client, letterbox, redis_url, database_url):
    one = journal.make_batch()
    journal.append(client, one)
    journal.drain(redis_url, database_url)
    query(database_url, "DELETE FROM log_events WHERE batch_index = 1")
    query(database_url, "UPDATE log_batches SET dead_events = '{1}'")
    query(database_url, "ALTER TABLE log_events ADD CONSTRAINT no CHECK (message <> 'event 1')")
    bury(client, lone(one, 1), dead_letter.BAD_EVENT)
    for _ in range(2):
        before, = letters(client)
        replay(letterbox)
        journal.drain(redis_url, database_url)
        after, = letters(client)
        assert (after.death.reason, after.death.sqlstate, after.batch) == ("bad_event", "23514", before.batch)
        assert after.letter_id != before.letter_id
        name = dead_letter.event_name(one.batch_id, 1)
        assert client.hgetall(stream.DEAD_EVENTS) == {name.encode(): after.letter_id.encode()}


def test_what_is_replayed_twice_is_stored_once(client, letterbox, redis_url, database_url):
    one = journal.make_batch()
    for _ in range(2):
        bury(client, one)
        assert replay(letterbox).done.count == 1
        journal.drain(redis_url, database_url)
    bury(client, one)
    bury(client, one)
    assert replay(letterbox).done.count == 2
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == {one.batch_id: journal.messages(one)}
    assert not letters(client)


def test_conflicts_and_what_is_no_batch_are_left_unless_they_are_named(client, letterbox, redis_url, database_url):
    first, second = journal.make_batch("first", key="k"), journal.make_batch("second", key="k")
    journal.append(client, first, second)
    journal.drain(redis_url, database_url)
    conflict, = letters(client)
    junk = client.xadd(stream.DEAD_LETTERS, {"reason": dead_letter.NOT_AN_ENTRY, "hello": "world"}).decode()
    report = replay(letterbox)
    assert (report.done.count, report.left.letters) == (0, {dead_letter.CONFLICT: 1, dead_letter.NOT_AN_ENTRY: 1})
    assert [letter.letter_id for letter in letters(client)] == [conflict.letter_id, junk]
    report = replay(letterbox, letter_ids=(conflict.letter_id, junk))
    assert (report.done.letters, report.left.letters) == ({dead_letter.CONFLICT: 1}, {dead_letter.NOT_AN_ENTRY: 1})
    bury(client, second, dead_letter.CONFLICT)
    assert replay(letterbox, reason=dead_letter.CONFLICT).done.count == 1
    journal.drain(redis_url, database_url)
    again = dead_letter.to_replay(conflict)
    assert journal.stored(database_url) == {
        first.batch_id: journal.messages(first, "first"), again.batch_id: journal.messages(second, "second"),
    }
    assert [letter.letter_id for letter in letters(client)] == [junk]


def test_a_dry_run_counts_and_changes_nothing(client, letterbox):
    one = journal.make_batch()
    bury(client, one)
    bury(client, lone(one, 0), dead_letter.BAD_EVENT)
    bury(client, one, dead_letter.CONFLICT)
    before = everything(client)
    report = replay(letterbox, is_dry=True)
    assert (report.done.letters, report.done.events) == ({"sink_unavailable": 1, "bad_event": 1},
                                                         {"sink_unavailable": 3, "bad_event": 1})
    assert report.left.letters == {dead_letter.CONFLICT: 1}
    letterbox.purge_matching(Filter(), purge := Report(), is_dry=True)
    assert purge.done.count == 3 and everything(client) == before


def test_a_limit_counts_what_is_replayed_and_not_what_is_left(client, letterbox):
    for reason in (dead_letter.CONFLICT, dead_letter.SINK, dead_letter.CONFLICT, dead_letter.SINK, dead_letter.SINK):
        bury(client, journal.make_batch(count=1), reason)
    assert replay(letterbox, limit=2).done.count == 2
    assert [letter.death.reason for letter in letters(client)] == [dead_letter.CONFLICT] * 2 + [dead_letter.SINK]


def test_operators_at_once_replay_each_letter_once(client, redis_url, database_url):
    batches = [journal.make_batch(f"batch {number}") for number in range(200)]
    for one in batches:
        bury(client, one)
    reports, barrier = [], threading.Barrier(4)

    def operate():
        with closing(redis.Redis.from_url(redis_url)) as own:
            barrier.wait()
            reports.append(replay(Letterbox(own, page_bytes=2000)))

    threads = [threading.Thread(target=operate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(report.done.count for report in reports) == 200 == client.xlen(stream.STREAM)
    journal.drain(redis_url, database_url)
    assert sorted(journal.stored(database_url)) == sorted(one.batch_id for one in batches)
    assert query(database_url, "SELECT count(*) FROM log_events") == [(600,)]


def test_a_full_redis_lets_letters_be_replayed_and_purged(client, letterbox, redis_url, database_url):
    batches = [journal.make_batch(f"batch {number}") for number in range(20)]
    for one in batches:
        bury(client, one)
    client.script_flush()
    client.config_set("maxmemory", client.info("memory")["used_memory"] - (64 << 10))
    with pytest.raises(redis.OutOfMemoryError):
        bury(client, batches[0])
    assert replay(letterbox, limit=19).done.count == 19
    letterbox.purge_matching(Filter(), report := Report())
    assert report.done.count == 1 and not letters(client)
    journal.drain(redis_url, database_url)
    assert len(journal.stored(database_url)) == 19


def test_a_stream_that_takes_nothing_keeps_the_letters_and_the_error_tells_nothing_of_them(client, letterbox):
    bury(client, journal.make_batch("secret"))
    highest = (1 << 64) - 1
    client.xadd(stream.STREAM, {"no": "id comes after this"}, id=f"{highest}-{highest}")
    with pytest.raises(StreamUnavailable, match="XADD|last possible ID") as raised:
        replay(letterbox)
    assert "secret" not in str(raised.value) and "EVAL" not in str(raised.value)
    assert len(letters(client)) == 1


def test_a_redis_that_is_away_is_said_to_be_so(letterbox, redis_server):
    redis_server.stop()
    with pytest.raises(StreamUnavailable):
        replay(letterbox)
    with pytest.raises(StreamUnavailable):
        letterbox.now_ms()


# Purging


def test_a_purge_takes_what_it_is_told_and_the_names_of_events_with_it(client, letterbox):
    one, other = journal.make_batch(), journal.make_batch()
    kept = bury(client, other)
    first, second = (bury(client, lone(one, index), dead_letter.BAD_EVENT) for index in (0, 1))
    letterbox.purge_matching(Filter(batch_id=one.batch_id, letter_ids=(first, kept)), report := Report())
    assert report.done.letters == {dead_letter.BAD_EVENT: 1}
    assert [letter.letter_id for letter in letters(client)] == [kept, second]
    assert list(client.hvals(stream.DEAD_EVENTS)) == [second.encode()]
    assert client.xlen(stream.STREAM) == 0


def test_an_event_keeps_its_name_when_another_letter_of_it_goes(client, letterbox):
    event = lone(journal.make_batch(), 0)
    bury(client, event, dead_letter.BAD_EVENT)
    newer = bury(client, event, dead_letter.BAD_EVENT)
    letterbox.purge([letters(client)[0]])
    assert client.hvals(stream.DEAD_EVENTS) == [newer.encode()]


def test_a_letter_that_has_gone_is_neither_replayed_nor_purged(client, letterbox):
    bury(client, journal.make_batch())
    found_ = letters(client)
    assert letterbox.purge(found_) == found_
    assert letterbox.purge(found_) == [] == letterbox.replay(found_)
    assert client.xlen(stream.STREAM) == 0
