"""A full Redis refuses what adds to its memory, each version something else: what takes away from it goes on."""

import itertools

import pytest
import redis

from app import count, dead_letter, stream
from app.appender import Appender
from app.dead_letter import Death
from app.letterbox import Letterbox
from tests import journal, versions
from tests.letter import letters
from workers.inbox import MAX_ENTRIES, Inbox
from workers.takeover import take_over

DEATH = Death(dead_letter.SINK, "detail", "", 1, "", "", "consumer-00")


@pytest.fixture(scope="module", params=versions.VERSIONS)
def url(request):
    with versions.running(request.param) as url:
        yield url


@pytest.fixture
def client(url):
    with versions.emptied(url) as client:
        yield client


def make_inbox(client, name="consumer-00"):
    """Returns an inbox that looks for what others have left at every read."""
    ticks = itertools.count(0, 10)
    return Inbox(client, name, 1 << 20, claim_idle_s=0.001, monotonic=lambda: next(ticks))


def wait_idle(client):
    """Returns once every consumer that is known has been idle for some ms."""
    journal.until(lambda: all(one["idle"] >= 5 for one in client.xinfo_consumers(stream.STREAM, stream.GROUP)),
                  "the others to be idle")


def read_all(inbox):
    """Reads until there is nothing more, and returns the entries' ids."""
    found = []
    while part := inbox.read():
        found += [entry.entry_id for entry in part]
        inbox.ack([(entry, count.LOADED) for entry in part])
    return found


@pytest.mark.parametrize("left", [0, 10])
def test_a_full_redis_is_drained_by_who_comes_after_consumers_that_are_gone(client, left):
    """Whether or not they had entries: 6.2 refuses to remove a name, unless the script has written before."""
    ids = journal.append(client, *(journal.make_batch() for _ in range(40)))
    client.xgroup_createconsumer(stream.STREAM, stream.GROUP, "gone")
    if left:
        client.xreadgroup(stream.GROUP, "gone", {stream.STREAM: ">"}, count=left)
    wait_idle(client)
    client.script_flush()  # as after a restart: what is loaded anew, it takes
    versions.fill(client)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        client.set("x", "y")
    heir = make_inbox(client)
    assert sorted(read_all(heir)) == sorted(ids)
    assert (client.xlen(stream.STREAM), client.xpending(stream.STREAM, stream.GROUP)["pending"]) == (0, 0)
    journal.until(lambda: heir.read() == [] and
                  [one["name"] for one in client.xinfo_consumers(stream.STREAM, stream.GROUP)] == [b"consumer-00"],
                  "the names of those that are gone to be removed")


def test_where_a_name_may_not_be_removed_reading_goes_on(client, url):
    """Rights to remove one may be withheld; it is no more than tidiness."""
    client.acl_setuser("reader", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-xgroup"])
    ids = journal.append(client, journal.make_batch())
    client.xgroup_createconsumer(stream.STREAM, stream.GROUP, "gone")
    wait_idle(client)
    with redis.Redis.from_url(url.replace("//", "//reader:any@")) as reader:
        inbox = make_inbox(reader)
        assert read_all(inbox) == ids
        assert inbox.read() == [] == inbox.read()


def test_a_full_redis_that_has_lost_its_group_gets_another_and_is_drained(client):
    ids = journal.append(client, *(journal.make_batch() for _ in range(5)))
    client.xgroup_destroy(stream.STREAM, stream.GROUP)
    versions.fill(client)
    assert stream.ensure_group(client)
    assert not stream.ensure_group(client)
    assert read_all(make_inbox(client)) == ids


def test_an_edge_connects_to_a_full_redis_and_is_told_that_it_is_full(client, url):
    versions.fill(client)
    appender = Appender(url, 5)
    appender.open()
    refusal, = appender.append([journal.make_batch()])
    assert refusal.cause == "OOM"
    client.config_set("maxmemory", 0)
    assert appender.append([journal.make_batch()]) == [None]
    appender.close()


def test_a_full_redis_lets_entries_be_kept_and_buried_and_letters_be_purged_and_replayed(client):
    first, second = journal.append(client, journal.make_batch(), journal.make_batch())
    inbox = Inbox(client, "consumer-00", 1 << 20)
    held = inbox.read()
    versions.fill(client)
    assert [entry.entry_id for entry in inbox.keep(held)] == [first, second]
    inbox.bury(first, DEATH)
    inbox.bury(second, DEATH)
    assert (client.xlen(stream.STREAM), client.xlen(stream.DEAD_LETTERS)) == (0, 2)
    box = Letterbox(client)
    purged, replayed = letters(client)
    assert [box.purge([purged]), box.replay([replayed])] == [[purged], [replayed]]
    assert (client.xlen(stream.STREAM), client.xlen(stream.DEAD_LETTERS)) == (1, 0)


def test_entries_that_a_consumer_left_are_all_taken_over_at_once_with_the_deliveries_that_they_had(client):
    """One that has much of its own, idle too, before theirs, does not look at that alone."""
    batches = [journal.make_batch(count=1) for _ in range(100)]
    for _ in range(50):
        journal.append(client, *batches)
    client.xreadgroup(stream.GROUP, "heir", {stream.STREAM: ">"}, count=1000)
    client.xreadgroup(stream.GROUP, "gone", {stream.STREAM: ">"}, count=4000)
    marked = [row["message_id"] for row in client.xpending_range(stream.STREAM, stream.GROUP, "-", "+", 5, "gone")]
    client.xclaim(stream.STREAM, stream.GROUP, "gone", 0, marked, retrycount=2, justid=True)
    wait_idle(client)
    client.config_resetstat()
    take_over(make_inbox(client, "heir")._run, 1, MAX_ENTRIES, 500)
    calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert calls > 8, "one call takes no more than 500: Redis serves nobody else meanwhile"
    rows = client.xpending_range(stream.STREAM, stream.GROUP, "-", "+", 6000)
    assert {row["consumer"] for row in rows} == {b"heir"} and len(rows) == 5000
    assert {row["message_id"] for row in rows if row["times_delivered"] == 2} == set(marked)
    assert {row["times_delivered"] for row in rows} == {1, 2}


def test_a_takeover_ends_where_a_consumer_has_enough(client):
    """What is left is for the others, and for the next time."""
    for _ in range(45):
        journal.append(client, *[journal.make_batch(count=1)] * 100)
    client.xreadgroup(stream.GROUP, "gone", {stream.STREAM: ">"})
    wait_idle(client)
    for left in (500, 0):
        take_over(make_inbox(client)._run, 1, MAX_ENTRIES, 500)
        assert len(client.xpending_range(stream.STREAM, stream.GROUP, "-", "+", 6000, "gone")) == left
