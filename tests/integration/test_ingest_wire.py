"""What no well-behaved client sends: framing, encodings and sizes that are wrong, late or hostile, on raw sockets."""

import bz2
import gzip
import json
import zlib
from contextlib import ExitStack, closing

import pytest
import redis

from app import stream
from app.body import zstd
from tests.edge import WORKER_CLASSES, Edge

MIB = 1 << 20
EVENT = b'{"message":"m"}'
HEAD = b"POST /ingest HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n"
CLOSE = b"Connection: close\r\n"
SIZED = HEAD + CLOSE + b"Content-Length: %d\r\n\r\n%s"


@pytest.fixture(scope="module", params=WORKER_CLASSES)
def running(request, shared_redis, tmp_path_factory):
    edge = Edge(
        shared_redis.url, tmp_path_factory.mktemp("edge"), request.param,
        SPILLWAY_BODY_TIMEOUT_S="1", SPILLWAY_REDIS_DEADLINE_MS="30000", SPILLWAY_MAX_INFLIGHT_BYTES=str(32 * MIB),
    )
    yield edge
    edge.stop()


@pytest.fixture
def edge(running):
    """An edge that has to be unharmed after the test."""
    with running.unharmed():
        yield running


@pytest.fixture
def client(redis_url):
    with closing(redis.Redis.from_url(redis_url, protocol=2)) as client:
        yield client


def parsed(received):
    """Returns the status and the problem's cause of the only response in what was received."""
    assert received.count(b"HTTP/1.1 ") == 1, received
    head, _, content = received.partition(b"\r\n\r\n")
    is_problem = b"application/problem+json" in head
    return int(head.split()[1]), json.loads(content)["type"].rpartition(":")[2] if is_problem else None


@pytest.mark.parametrize(("sent", "status"), [
    (HEAD + b"Content-Length: 30\r\n\r\n" + EVENT, (400, "truncated")),
    (HEAD + b"Content-Length: 1073741824\r\n\r\n{", (400, "truncated")),
    (HEAD + b"Content-Length: %s\r\n\r\n{" % (b"9" * 18), (400, "truncated")),
    (CHUNKED + b"\r\n", (400, "framing")), (CHUNKED + b"\r\nf\r\n" + EVENT + b"\r\n", (400, "framing")),
    (CHUNKED + b"\r\nff\r\n" + EVENT, (400, "framing")),
    (CHUNKED + b"\r\nf\r\n" + EVENT + b"\r\n0\r\n", (400, "framing")),
    (CHUNKED + b"\r\nzz\r\n" + EVENT, (400, "framing")), (CHUNKED + b"\r\n-f\r\n" + EVENT, (400, "framing")),
    (CHUNKED + b"\r\nf\r\n" + EVENT + b"XX0\r\n\r\n", (400, "framing")),
    (CHUNKED + b"\r\n" + b"0" * 10_000 + b"f\r\n" + EVENT + b"\r\n0\r\n\r\n", (400, "framing")),
    (CHUNKED + b"\r\nzz\r\n" + SIZED % (15, EVENT), (400, "framing")),
    (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\nf\r\n" + EVENT + b"\r\n0\r\n\r\n", (400, "transfer_encoding")),
    (HEAD + b"\r\n", (422, "empty")), (HEAD + b"Content-Length: 0\r\n\r\n", (422, "empty")),
    (CHUNKED + CLOSE + b"\r\n0\r\n\r\n", (422, "empty")),
    (CHUNKED + CLOSE + b"\r\n" + (b"100000\r\n%s\r\n" % bytes(MIB)) * 9 + b"0\r\n\r\n", (413, "too_large")),
    (SIZED % (8 * MIB + 1, bytes(8 * MIB + 1)), (413, "too_large")),
], ids=lambda value: ascii(value)[-60:])
def test_a_body_that_is_cut_short_malformed_or_too_large_is_refused(edge, client, sent, status):
    assert parsed(edge.raw(sent, is_half_closed=True)) == status
    assert client.xlen(stream.STREAM) == 0


@pytest.mark.parametrize("sent", [
    HEAD + b"Content-Length: 30\r\n\r\n" + EVENT, HEAD + b"Content-Length: 1073741824\r\n\r\n{",
    CHUNKED + b"\r\nf\r\n" + EVENT + b"\r\n",
], ids=lambda value: ascii(value)[-60:])
def test_a_body_that_does_not_come_is_given_up(edge, client, sent):
    before = edge.peak_bytes()
    with edge.connection() as connection:
        connection.sendall(sent)
        received = b""
        while not received.endswith(b"}"):
            received += connection.recv(65536)
    assert parsed(received) == (408, "slow_body")
    assert edge.peak_bytes() - before < 16 * MIB
    assert client.xlen(stream.STREAM) == 0


def test_an_unread_body_is_not_taken_for_the_next_request(edge, client):
    inner = SIZED % (15, EVENT)
    outer = b"POST /ingest HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n" + CLOSE + b"Content-Length: %d\r\n\r\n"
    assert parsed(edge.raw(outer % len(inner) + inner)) == (415, "media_type")
    assert client.xlen(stream.STREAM) == 0


def bare_deflate(data):
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


def fast_gzip(data):
    return gzip.compress(data, 1)


COMPRESSORS = {"gzip": gzip.compress, "zlib": zlib.compress, "bare deflate": bare_deflate, "zstd": zstd.compress}
LABELS = {"gzip": "gzip", "zlib": "deflate", "bare deflate": "deflate", "zstd": "zstd"}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_compressed_body_is_taken_with_all_of_its_members(edge, client, name):
    compress = COMPRESSORS[name]
    body = b"".join(compress(b"line %d\n" % number) for number in range(3000))
    answer = edge.post(body, "text/plain", Content_Encoding=LABELS[name].upper())
    assert (answer.status, answer.document["accepted"]) == (202, 3000)


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("spoil", [
    lambda body: body[:-1], lambda body: body[:len(body) // 2], lambda body: body + b"\0", lambda body: body + body[:7],
    lambda body: body[:1], lambda body: b"plain", gzip.compress, lambda body: bz2.compress(EVENT),
], ids=["a byte short", "half", "a byte more", "half a member more", "one byte", "none", "twice", "another"])
def test_a_spoilt_or_wrongly_labelled_body_is_refused(edge, client, name, spoil):
    answer = edge.post(spoil(COMPRESSORS[name](EVENT * 20)), "application/json", Content_Encoding=LABELS[name])
    assert (answer.status, answer.headers["Content-Type"]) == (422, "application/problem+json")
    assert client.xlen(stream.STREAM) == 0


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "compress", "\u00ff", "utf-8"])
def test_an_unknown_encoding_is_refused(edge, client, encoding):
    answer = edge.post(EVENT, Content_Encoding=encoding.encode("latin-1"))
    assert (answer.status, answer.document["type"]) == (415, "urn:spillway:problem:encoding")
    assert client.xlen(stream.STREAM) == 0


@pytest.mark.parametrize(("opening", "unit", "count", "closing_", "content_type", "cause"), [
    (b"", b"\0", 256 * MIB, b"", "application/json", "too_large"),
    (b"", b"a\n", 32 * MIB, b"", "text/plain", "too_many_events"),
    (b"", b"1\n", 32 * MIB, b"", "application/x-ndjson", "too_many_events"),
    (b"[", b"[],", 20 * MIB, b"[]]", "application/json", "too_many_values"),
    (b'{"message":"m","a":[', b"1.5,", 15 * MIB, b"1]}", "application/json", "too_many_values"),
    (b"", b'{"message":""}\n', 4 * MIB, b"", "application/x-ndjson", "too_many_values"),
    (b"", b"\xff" * 6500 + b"\n", 10_000, b"", "text/plain", "too_large"),
], ids=["zeros", "lines", "numbers", "arrays", "floats", "events", "bytes"])
def test_a_small_body_that_grows_large_costs_neither_memory_nor_the_worker(
    edge, client, opening, unit, count, closing_, content_type, cause
):
    for encoding, compress in (("gzip", fast_gzip), ("zstd", zstd.compress)):
        bomb = compress(opening + unit * count + closing_)
        before = edge.peak_bytes()
        answer = edge.post(bomb, content_type, Content_Encoding=encoding)
        assert (answer.status, answer.document["type"]) == (413, f"urn:spillway:problem:{cause}")
        assert edge.peak_bytes() - before < 256 * MIB
    assert client.xlen(stream.STREAM) == 0


def test_connections_that_only_announce_large_bodies_do_not_keep_others_out(edge, client):
    # 100 bodies of 8 MiB are more than this worker may hold; of these it holds a byte each.
    with ExitStack() as open_connections:
        for _ in range(100):
            connection = open_connections.enter_context(edge.connection())
            connection.sendall(HEAD + b"Content-Length: 8388608\r\n\r\n{")
        assert edge.post(EVENT).status == 202


def test_what_a_request_held_is_given_back(edge, client):
    for body in (b"a" * MIB, b"a" * (MIB + 1), b"\0" * MIB):
        statuses = {edge.post(body, "text/plain").status for _ in range(40)}
        assert len(statuses) == 1 and statuses < {202, 422}
        client.flushall()


def test_a_batch_that_there_can_never_be_room_for_is_not_to_be_sent_again(edge, client):
    answer = edge.post(fast_gzip((b"\\" * 10_000 + b"\n") * 2000), "text/plain", Content_Encoding="gzip")
    assert (answer.status, answer.document["type"]) == (413, "urn:spillway:problem:too_large")
    assert client.xlen(stream.STREAM) == 0
