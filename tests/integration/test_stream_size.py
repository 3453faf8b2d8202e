"""What is told of the memory of the stream and of the dead letters is within a fifth of the truth, and costs little."""

import itertools
import time

import pytest
import redis

from app import count, dead_letter, size, stream
from app.appender import Appender
from app.dead_letter import Death
from app.errors import StreamUnavailable
from app.inspector import read_state
from app.letterbox import Letterbox
from tests import journal, versions
from tests.conftest import pick_port
from tests.letter import letters
from workers.inbox import Inbox
from workers.ledger import DeadEvent
from workers.sieve import Refusal

DEATH = Death(dead_letter.SINK, "detail", "", 1, "", "", "consumer-00")
SMALL = [journal.make_batch(count=1)] * 100
LARGE = [journal.make_batch(count=10_000)] * 20
MIDDLING = [journal.make_batch(count=20)] * 2000


@pytest.fixture(scope="module", params=versions.VERSIONS)
def url(request):
    with versions.running(request.param) as url:
        yield url


@pytest.fixture
def client(url):
    with versions.emptied(url) as client:
        yield client


@pytest.fixture
def appender(url, client):
    appender = Appender(url, 10)
    yield appender
    appender.close()


def append(appender, batches):
    """Appends in groups, as an edge does."""
    for start in range(0, len(batches), 20):
        assert appender.append(batches[start:start + 20]) == [None] * len(batches[start:start + 20])


def truth(client, key=stream.STREAM):
    return client.memory_usage(key, samples=0) or 0


def is_near(found, true):
    return 0.8 * true <= found <= 1.2 * true


def is_right(client):
    """Tells whether each reader is told what is so, of both."""
    state, true, true_letters = read_state(client), truth(client), truth(client, stream.DEAD_LETTERS)
    return (is_near(state.size_bytes or 0, true) and is_near(state.letters_bytes or 0, true_letters)
            and is_near(Inbox(client, "reader", 1).dead_letter_bytes(), true_letters))


def counted(client, field):
    """What is counted, and is not yet measured again."""
    return int(client.hget(size.KEY, field) or 0)


def release(client, places):
    """Releases entries of the stream, by their places in it."""
    inbox = Inbox(client, "consumer-00", 1 << 30)
    held = []
    while part := inbox.read():
        held += part
    inbox.ack([(held[place], count.LOADED) for place in places])


@pytest.mark.parametrize("batches", [SMALL + LARGE, LARGE + SMALL], ids=["small first", "large first"])
def test_of_entries_of_any_size_in_any_order_it_is_right(client, appender, batches):
    append(appender, batches)
    true = truth(client)
    assert is_right(client) and true > 20 << 20
    appender.probe(int(true * 1.25))
    with pytest.raises(StreamUnavailable) as caught:
        appender.probe(int(true * 0.8))
    assert caught.value.cause == "FULL"
    release(client, range(0, len(batches), 2))
    journal.until(lambda: is_right(client), "it to be right after every other one was released")
    release(client, range(len(batches) // 2))
    journal.until(lambda: is_right(client), "it to be right of an empty stream")


def test_an_entry_that_goes_keeps_its_memory_while_one_beside_it_lives(client, appender):
    append(appender, SMALL * 100)
    assert is_right(client)
    release(client, [place for place in range(4000) if place % 12])
    assert truth(client) > 3 * sum(len(fields[b"payload"]) for _, fields in client.xrange(stream.STREAM, count=400))
    journal.until(lambda: is_right(client), "it to be right")


@pytest.mark.parametrize("batches", [SMALL * 20, MIDDLING, LARGE], ids=["small", "middling", "large"])
def test_it_is_what_the_server_uses_more(client, appender, batches):
    appender.open()
    before = client.info("memory")["used_memory"]
    append(appender, batches)
    used = client.info("memory")["used_memory"] - before
    assert is_near(read_state(client).size_bytes, used)


def test_what_comes_and_goes_is_counted(client, appender):
    """Without any measurement: nobody reads meanwhile."""
    append(appender, MIDDLING * 4)
    assert is_near(counted(client, size.STREAM), truth(client))
    inbox = Inbox(client, "consumer-00", 1 << 30)
    held = inbox.read()
    inbox.ack([(entry, count.LOADED) for entry in held[:3000]])
    for entry in held[3000:4000]:
        inbox.bury(entry.entry_id, DEATH)
    assert client.xlen(stream.STREAM) == 4000 and client.xlen(stream.DEAD_LETTERS) == 1000
    assert is_near(counted(client, size.STREAM), truth(client))
    assert is_near(counted(client, size.LETTERS), truth(client, stream.DEAD_LETTERS))
    box, found = Letterbox(client), letters(client)
    assert len(box.replay(found[:300])) == 300 and len(box.purge(found[300:600])) == 300
    assert is_near(counted(client, size.STREAM), truth(client))
    assert is_near(counted(client, size.LETTERS), truth(client, stream.DEAD_LETTERS))


def test_letters_of_single_events_are_counted(client):
    inbox = Inbox(client, "consumer-00", 1 << 30)
    one = journal.make_batch("x" * 5000, count=300)
    lines = one.payload.splitlines(keepends=True)
    events = [DeadEvent(one, index, line, Refusal("22P02", "")) for index, line in enumerate(lines)]
    inbox.bury_events(events, [DEATH] * len(events))
    assert is_near(counted(client, size.LETTERS), truth(client, stream.DEAD_LETTERS))
    assert inbox.dead_letter_bytes() == truth(client, stream.DEAD_LETTERS)


def test_a_large_stream_is_measured_now_and_then_and_read_at_once(client, appender):
    append(appender, MIDDLING * 5)
    assert is_right(client)
    begun_at, measured = time.monotonic(), set()
    for _ in range(100):
        assert is_near(size.read(client).stream, truth(client))
        measured.add(client.hget(size.KEY, "stream_at"))
    assert len(measured) <= 2 + (time.monotonic() - begun_at) / 2, "10,000 nodes are looked at every 2 s"


def upgrade(client):
    client.delete(size.KEY)


def add_by_hand(client):
    for one in MIDDLING:
        client.execute_command("XADD", stream.STREAM, "*", *stream.fields_of(one))


HARM = {
    "a version that did not count": upgrade, "FLUSHALL": lambda client: client.flushall(),
    "DEL": lambda client: client.delete(stream.STREAM), "XTRIM": lambda client: client.xtrim(stream.STREAM, 10, False),
    "XDEL": lambda client: client.xdel(stream.STREAM, *[one for one, _ in client.xrange(stream.STREAM, count=1500)]),
    "XADD": add_by_hand, "a count that is none": lambda client: client.hset(size.KEY, size.STREAM, "none"),
    "another type": lambda client: (client.delete(size.KEY), client.set(size.KEY, "x")),
    "a clock that was ahead": lambda client: client.hset(size.KEY, mapping={"stream": 7, "stream_at": 1 << 45}),
}


@pytest.mark.parametrize("harm", HARM)
def test_whatever_somebody_does_it_is_right_again(client, appender, harm):
    append(appender, MIDDLING)
    assert is_right(client)
    HARM[harm](client)
    journal.until(lambda: is_right(client), "it to be right again")
    append(appender, SMALL)
    journal.until(lambda: is_right(client), "it to be right again")


@pytest.mark.parametrize("harm", ["a version that did not count", "FLUSHALL", "DEL"])
def test_what_was_never_counted_is_right_at_the_first_look(client, appender, harm):
    append(appender, MIDDLING)
    HARM[harm](client)
    assert is_right(client)


def test_of_a_full_redis_it_is_right_and_kept(client, appender):
    append(appender, MIDDLING)
    versions.fill(client)
    assert is_right(client)
    assert counted(client, size.STREAM) == truth(client)


def test_of_a_replica_it_is_right(client, appender):
    append(appender, MIDDLING)
    client.execute_command("REPLICAOF", "127.0.0.1", pick_port())
    try:
        assert is_right(client)
        with pytest.raises(redis.exceptions.ReadOnlyError):
            client.set("x", "y")
    finally:
        client.execute_command("REPLICAOF", "NO", "ONE")


def test_stream_and_dead_letters_count_together(client, appender):
    """Both are Redis's memory: where the letters take it, the stream may not."""
    append(appender, MIDDLING)
    true = truth(client)
    inbox = Inbox(client, "consumer-00", 1 << 30)
    for entry in itertools.islice(inbox.read(), 1500):
        inbox.bury(entry.entry_id, DEATH)
    assert truth(client) < true / 2
    appender.probe(int(true * 1.5))
    with pytest.raises(StreamUnavailable):
        appender.probe(int(true * 0.75))
