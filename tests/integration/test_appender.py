"""What the appender says of a batch is so: added or not, and counted or not, whatever part of its transaction fails."""

import pytest

from app import count, stream
from app.appender import Appender
from app.errors import StreamUnavailable
from tests import journal, versions


@pytest.fixture(scope="module", params=versions.VERSIONS)
def url(request):
    with versions.running(request.param) as url:
        yield url


@pytest.fixture
def client(url):
    with versions.emptied(url) as client:
        yield client


@pytest.fixture
def appender_without(client, url):
    """A factory of appenders whose user may not give certain commands."""
    made = []

    def make(*commands):
        client.acl_setuser("edge", enabled=True, nopass=True, reset=True, keys=["*"],
                           commands=["+@all", *(f"-{one}" for one in commands)])
        made.append(Appender(url.replace("//", "//edge:any@"), 10))
        return made[-1]

    yield make
    for one in made:
        one.close()
    client.acl_deluser("edge")


def added_events(client):
    """What the audit is told."""
    return sum(kinds.get(count.ADDED, 0) for kinds in count.read(client.hgetall(count.KEY)).values())


def check_truth(client, batches, outcomes):
    """What is said to be added is there, and nothing else, and that is counted."""
    there = [stream.batch_of(fields) for _, fields in client.xrange(stream.STREAM)]
    assert [one.batch_id for one in there] == [
        one.batch_id for one, outcome in zip(batches, outcomes, strict=True) if outcome is None
    ]
    assert added_events(client) == sum(one.count for one in there)


def test_where_multi_is_refused_what_was_added_all_the_same_is_said_to_be(client, appender_without):
    batches = [journal.make_batch() for _ in range(3)]
    appender = appender_without("multi")
    outcomes = appender.append(batches)
    assert outcomes == [None] * 3
    check_truth(client, batches, outcomes)
    again = [journal.make_batch()]
    check_truth(client, batches + again, outcomes + appender.append(again))


def test_where_multi_is_refused_and_redis_gets_full_meanwhile_each_batch_has_its_own_answer(client, appender_without):
    appender = appender_without("multi")
    appender.open()
    batches = [journal.make_batch("x" * 1000, count=200) for _ in range(30)]
    client.config_set("maxmemory", client.info("memory")["used_memory"] + (3 << 20))
    outcomes = appender.append(batches)
    refusals = [one for one in outcomes if one]
    assert 0 < len(refusals) < 30 and {one.cause for one in refusals} == {"OOM"}
    check_truth(client, batches, outcomes)


@pytest.mark.parametrize("command", ["xadd", "exec"])
def test_where_another_command_is_refused_nothing_is_added_or_counted(client, appender_without, command):
    appender = appender_without(command)
    batches = [journal.make_batch() for _ in range(2)]
    outcomes = appender.append(batches)
    assert all(outcomes)
    check_truth(client, batches, outcomes)
    client.acl_setuser("edge", commands=["+@all"])
    outcomes += appender.append(batches)
    assert outcomes[2:] == [None] * 2
    check_truth(client, batches * 2, outcomes)


@pytest.mark.parametrize("commands", [("multi", "xadd"), ("multi", "xadd", "exec")])
def test_where_multi_is_refused_and_xadd_too_nothing_is_counted(client, appender_without, commands):
    batches = [journal.make_batch() for _ in range(2)]
    outcomes = appender_without(*commands).append(batches)
    assert all(outcomes)
    check_truth(client, batches, outcomes)


def test_where_counts_cannot_be_kept_what_is_added_is_acknowledged(client, appender_without):
    client.set(count.KEY, "of another type")
    batches = [journal.make_batch()]
    for appender in (appender_without(), appender_without("multi")):
        assert appender.append(batches) == [None]
    assert client.xlen(stream.STREAM) == 2


def test_within_a_transaction_that_was_not_ended_nothing_is_known(client, appender_without):
    """As by a proxy that answers MULTI, and not EXEC: what is queued is not taken for what is added."""
    appender = appender_without()
    appender.open()
    appender._connection.send_command("MULTI")
    appender._connection.read_response()
    with pytest.raises(StreamUnavailable):
        appender.append([journal.make_batch()])
    batches = [journal.make_batch()]
    assert appender.append(batches) == [None]
    assert batches[0].batch_id in journal.in_stream(client)
