"""The filler of the benchmark: a backlog is as long as it is said to be, of entries like any others."""

from contextlib import closing

import pytest

from app import count, stream
from ops.bench.body import Bodies, events
from ops.bench.filler import Filler
from workers.inbox import Inbox


@pytest.fixture
def batches():
    return list(Bodies(events(100), 1).fresh(3_000))


@pytest.fixture
def filler(redis_url, client, batches):
    with closing(Filler(redis_url, iter(batches))) as one:
        yield one


def waiting(client):
    return client.xlen(stream.STREAM) - client.xpending(stream.STREAM, stream.GROUP)["pending"]


def fill(filler, length):
    while filler.add(length):
        pass


def test_as_many_wait_as_are_to_whatever_consumers_take(filler, client):
    filler.stock(2_000)
    inbox = Inbox(client, "one", 1 << 16)
    for _ in range(3):
        fill(filler, 700)
        assert waiting(client) == 700
        assert inbox.read()
        assert waiting(client) < 700
    fill(filler, 600)
    assert waiting(client) >= 600


def test_an_empty_stock_is_filled_again(filler, client):
    fill(filler, 1_200)
    assert waiting(client) == 1_200


def test_a_stock_is_made_up_to_what_is_wanted(filler, client):
    for _ in range(3):
        filler.stock(1_000)
    assert client.llen(f"{stream.STREAM}:bench") == 1_000 * len(stream.fields_of(Bodies(events(1), 1).encoded[0]))


def test_its_entries_are_batches_and_are_counted(filler, client, batches):
    fill(filler, 1_000)
    inbox = Inbox(client, "one", 64 << 20)
    found = [entry.batch for entry in inbox.read()]
    assert found == batches[1:1_001]
    assert count.read(client.hgetall(count.KEY)) == {
        minute: {count.ADDED: sum(one.received_at.startswith(minute) for one in found)}
        for minute in {count.minute_of(one) for one in found}
    }
