"""When Redis is away, stopped, full or read-only, `/ingest` says 503, confirms nothing, and recovers by itself."""

import gzip
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import redis

from app import stream
from tests import journal
from tests.edge import Edge
from tests.journal import until

MIB = 1 << 20
EVENT = b'{"message":"m"}'


@pytest.fixture(scope="module")
def edge(shared_redis, tmp_path_factory):
    edge = Edge(
        shared_redis.url, tmp_path_factory.mktemp("edge"),
        SPILLWAY_REDIS_DEADLINE_MS="200", SPILLWAY_MAX_BODY_BYTES=str(2 * MIB),
        SPILLWAY_MAX_INFLIGHT_BYTES=str(4 * MIB), SPILLWAY_WAL_MAX_BYTES="1024",  # no WAL: what Redis refuses is seen
    )
    yield edge
    edge.stop()
    assert "Traceback" not in edge.log


@pytest.fixture
def client(redis_server, edge):
    """A client of an empty Redis, which the edge has found again."""
    with closing(redis.Redis.from_url(redis_server.url, protocol=2)) as client:
        until(lambda: edge.request("GET", "/readyz").status == 200, "the edge to find Redis")
        yield client


def assert_unavailable(edge):
    for path, method in (("/ingest", "POST"), ("/readyz", "GET")):
        answer = edge.request(method, path, EVENT)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.document["type"] == "urn:spillway:problem:not_durable_wal_full"
    assert edge.request("GET", "/livez").status == 200
    assert edge.post(b"{").status == 422
    assert edge.worker_pid() == edge.pid


def assert_recovers(edge, client):
    answer = until(lambda: (found := edge.post(EVENT)).status == 202 and found, "a post to be taken again")
    assert journal.in_stream(client)[answer.document["batch_id"]] == b"m"


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_redis_that_is_away_is_told_and_found_again(edge, client, redis_server, end):
    assert_recovers(edge, client)
    getattr(redis_server, end)()
    assert_unavailable(edge)
    redis_server.start()
    assert_recovers(edge, client)


def test_a_redis_that_is_stopped_is_given_up_about_when_the_deadline_says(edge, client, redis_server):
    redis_server.pause()
    begun_at = time.monotonic()
    assert edge.post(EVENT).status == 503
    assert time.monotonic() - begun_at < 5
    assert_unavailable(edge)
    redis_server.resume()
    assert_recovers(edge, client)


def test_after_a_deadline_each_request_gets_its_own_reply(edge, client, redis_server):
    """A reply left in the connection would confirm the next request's batch, whatever became of that one."""
    def post(number):
        return number, edge.post(b'{"message":"%d"}' % number)

    with ThreadPoolExecutor(16) as pool:
        answers = []
        for start in range(0, 300, 100):
            posts = [pool.submit(post, number) for number in range(start, start + 50)]
            redis_server.pause()
            answers += [one.result() for one in posts]
            posts = [pool.submit(post, number) for number in range(start + 50, start + 100)]
            redis_server.resume()
            answers += [one.result() for one in posts]
    assert {answer.status for _, answer in answers} == {202, 503}
    assert_recovers(edge, client)
    stored = journal.in_stream(client)
    for number, answer in answers:
        if answer.status == 202:
            assert stored[answer.document["batch_id"]] == b"%d" % number


def test_batches_that_wait_are_held_at_their_full_size_however_small_they_came(edge, client, redis_server):
    small = gzip.compress(b"a" * (MIB - 100))
    redis_server.pause()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: edge.post(small, "text/plain", Content_Encoding="gzip"), range(20)))
    redis_server.resume()
    assert {answer.status for answer in answers} == {503}
    assert {answer.headers["Retry-After"] for answer in answers} == {"1"}
    causes = {answer.document["type"].rpartition("_")[2] for answer in answers}
    assert causes == {"full", "inflight"}
    assert_recovers(edge, client)


def test_a_full_redis_is_told_and_what_is_stored_stays(edge, client):
    answer = edge.post(EVENT)
    client.config_set("maxmemory", 1)
    assert edge.post(EVENT).status == 503
    assert list(journal.in_stream(client)) == [answer.document["batch_id"]]
    client.config_set("maxmemory", 0)
    assert_recovers(edge, client)


def test_a_read_only_redis_is_told(edge, client, free_port):
    client.execute_command("REPLICAOF", "127.0.0.1", free_port)
    try:
        assert edge.post(EVENT).status == 503
    finally:
        client.execute_command("REPLICAOF", "NO", "ONE")
    assert_recovers(edge, client)


def test_a_stream_of_another_type_is_told(edge, client):
    client.delete(stream.STREAM)
    client.set(stream.STREAM, "x")
    assert edge.post(EVENT).status == 503
    client.delete(stream.STREAM)
    assert_recovers(edge, client)


def test_a_redis_that_lost_everything_is_written_to_again(edge, client):
    client.flushall()
    assert edge.post(EVENT).status == 202
    assert len(journal.in_stream(client)) == 1
