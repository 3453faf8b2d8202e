"""`POST /ingest` over real HTTP: what is taken is in the stream, what is bad is refused and leaves no trace."""

import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from uuid import UUID

import pytest
import redis

from app import stream
from tests import journal
from tests.edge import WORKER_CLASSES, Edge

MIB = 1 << 20
EVENT = b'{"message":"m"}'
JSON, LINES, TEXT = "application/json", "application/x-ndjson", "text/plain"


@pytest.fixture(scope="module", params=WORKER_CLASSES)
def running(request, shared_redis, tmp_path_factory):
    # The largest bodies take their time to a busy disk, and that is not what is tested here.
    edge = Edge(
        shared_redis.url, tmp_path_factory.mktemp("edge"), request.param, SPILLWAY_REDIS_DEADLINE_MS="30000",
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


def entries(client):
    """Returns the batches in the stream by their ids; one id twice is an error."""
    found = [stream.batch_of(fields) for _, fields in client.xrange(stream.STREAM)]
    by_id = {batch.batch_id: batch for batch in found}
    assert len(by_id) == len(found)
    return by_id


def assert_taken(client, answer, count=1):
    """Holds a 202 against the stream, and returns the batch there."""
    assert answer.status == 202, answer.document
    batch_id = answer.document["batch_id"]
    assert answer.document == {"batch_id": batch_id, "accepted": count, "durability": "stream"}
    assert answer.headers["Location"] == f"/batches/{batch_id}"
    assert answer.headers["Content-Type"] == JSON
    found = entries(client)[batch_id]
    assert found.count == count == found.payload.count(b"\n")
    return found


def assert_refused(client, answer, status, cause):
    """Holds a refusal against its form and the stream, and returns the problem."""
    problem = answer.document
    assert (answer.status, problem.get("type")) == (status, f"urn:spillway:problem:{cause}"), problem
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert problem["status"] == status and problem["title"] and problem["detail"]
    assert client.xlen(stream.STREAM) == 0
    return problem


@pytest.mark.parametrize(("body", "content_type", "count"), [
    (EVENT, JSON, 1), (EVENT, "Application/JSON; charset=UTF-8", 1),
    (b"[%s,%s]" % (EVENT, EVENT), JSON, 2), (b"%s\n%s\n" % (EVENT, EVENT), LINES, 2),
    (b"%s\r\n\r\n%s" % (EVENT, EVENT), "application/ndjson", 2),
    (EVENT, "application/jsonl", 1), (b"a\nb\r\n\nc", TEXT, 3), (b"caf\xe9", "text/plain;charset=us-ascii", 1),
])
def test_each_form_is_taken(edge, client, body, content_type, count):
    assert_taken(client, edge.post(body, content_type), count)


def test_json_is_what_a_body_without_content_type_is_taken_for(edge, client):
    assert_taken(client, edge.request("POST", "/ingest", EVENT))


def test_defaults_of_the_query_reach_the_row(edge, client):
    answer = edge.post(b"line", TEXT, "?service=my%20app&host=h%C3%A9&level=17")
    row = assert_taken(client, answer).payload.split(b"\t")
    assert row[4:9] == [b"ERROR", b"17", b"my app", "h\u00e9".encode(), b"line"]


def test_connections_are_kept_and_pipelined_requests_answered_in_order(edge, client):
    request = b"POST /ingest HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n%s"
    keys = [b"key %d" % number for number in range(20)]
    sent = b"".join(request % (len(EVENT), b"Idempotency-Key: %s\r\n" % key, EVENT) for key in keys)
    received = edge.raw(sent, is_half_closed=True)
    answered = [json.loads(part[:part.index(b"}") + 1])["batch_id"] for part in received.split(b"\r\n\r\n")[1:]]
    assert answered == [edge.post(EVENT, Idempotency_Key=key.decode()).document["batch_id"] for key in keys]


BAD_EVENTS = [
    (b"1", None, "an event is a JSON object"), (b"null", None, "an event is a JSON object"),
    (b'"text"', None, "an event is a JSON object"), (b"[]", None, "an event is a JSON object"),
    (b"{}", "message", "required"), (b'{"message":null}', "message", "required"),
    (b'{"message":7}', "message", "not a number"), (b'{"message":"m","service":[]}', "service", "not an array"),
    (b'{"message":"m","attributes":7}', "attributes", "not a number"),
    (b'{"message":"m","level":{}}', "level", "not an object"),
    (b'{"message":"m","level":30}', "level", "0 to 24"), (b'{"message":"m","host":false}', "host", "not true or false"),
    (b'{"message":"m","timestamp":"yesterday"}', "timestamp", "RFC 3339"),
    (b'{"message":"m","timestamp":"infinity"}', "timestamp", "RFC 3339"),
    (b'{"message":"m","timestamp":"2026-01-01T00:00:00"}', "timestamp", "with its offset"),
    (b'{"message":"m","timestamp":"1970-01-01T00:59:59+01:00"}', "timestamp", "1970 to 2199"),
    (b'{"message":"m","timestamp":"2200-01-01T00:00:00Z"}', "timestamp", "1970 to 2199"),
    (b'{"message":"m","timestamp":"2199-12-31T23:59:59-00:01"}', "timestamp", "1970 to 2199"),
    (rb'{"message":"a\u0000b"}', "message", "NUL"), (rb'{"message":"m","a":{"\u0000":1}}', "attributes", "NUL"),
    (rb'{"message":"\ud83d"}', "message", "lone surrogate"),
    (rb'{"message":"m","a":["\ude00"]}', "attributes", "lone surrogate"),
    (b'{"message":"m","a":' + b"[" * 63 + b"]" * 63 + b"}", "attributes", "deeper than 64"),
    (b'{"message":"m","a":1e400}', "attributes", "exponent"),
    (b'{"message":"m","a":1e-99999999999}', "attributes", "exponent"),
    (b'{"message":"m","a":' + b"9" * 200_000 + b"}", "attributes", "over 4300 digits"),
    (b'{"message":"' + b"a" * (MIB + 1) + b'"}', None, "1048577 bytes; an event has at most 1048576"),
]


@pytest.mark.parametrize(("body", "field", "reason"), BAD_EVENTS, ids=lambda value: ascii(value)[:50])
def test_one_bad_event_is_named_and_nothing_of_its_request_stored(edge, client, body, field, reason):
    answer = edge.post(b"[%s,%s,%s]" % (EVENT, body, EVENT))
    fault, = assert_refused(client, answer, 422, "bad_event")["errors"]
    assert (fault["index"], fault["field"]) == (1, field)
    assert reason in fault["reason"]


@pytest.mark.parametrize(("body", "content_type", "status", "cause", "detail"), [
    (b"", JSON, 422, "empty", "at least one"), (b"[]", JSON, 422, "empty", "at least one"),
    (b"\n\r\n", TEXT, 422, "empty", "at least one"), (b"\n", LINES, 422, "empty", "at least one"),
    (b'{"message":"m"', JSON, 422, "not_json", "byte 14"), (b"NaN", JSON, 422, "not_json", "byte 0"),
    (b'{"message":"\xff"}', JSON, 422, "not_json", "byte 12"), (b"[" * MIB, JSON, 422, "not_json", "deeper than 64"),
    (b"\xef\xbb\xbf" + EVENT, JSON, 422, "not_json", "BOM"), (b"hello\n", LINES, 422, "not_json", "event 0"),
    (EVENT + b"\n{", LINES, 422, "not_json", "event 1"), (EVENT + b"\n" + EVENT * 2, LINES, 422, "not_json", "event 1"),
    (EVENT.decode().encode("utf-16"), JSON, 422, "not_json", "byte 0"),
    (b"[%s]" % b",".join([EVENT] * 10_001), JSON, 413, "too_many_events", "10000"),
    (b"\n".join([EVENT] * 10_001), LINES, 413, "too_many_events", "10000"),
    (b"m\n" * 10_001, TEXT, 413, "too_many_events", "10000"),
    (EVENT, "text/html", 415, "media_type", "text/html"), (EVENT, "x" * 3000, 415, "media_type", "xxx"),
    (EVENT, "application/x-www-form-urlencoded", 415, "media_type", JSON),
    (EVENT, "multipart/form-data; boundary=x", 415, "media_type", "multipart"),
    (EVENT, "application/json; charset=latin-1", 415, "media_type", "UTF-8"),
], ids=lambda value: ascii(value)[:30])
def test_a_bad_request_is_refused_as_a_whole(edge, client, body, content_type, status, cause, detail):
    assert detail in assert_refused(client, edge.post(body, content_type), status, cause)["detail"]


@pytest.mark.parametrize("query", ["?foo=1", "?service=a&service=b", "?message=m", "?=", "?SERVICE=s", "?%FF=1"])
def test_a_query_that_would_be_lost_is_refused(edge, client, query):
    assert_refused(client, edge.post(EVENT, query=query), 400, "query")


@pytest.mark.parametrize(("query", "field"), [
    ("?service=%00", "service"), ("?level=25", "level"), ("?host=a%00", "host"),
])
def test_a_bad_default_is_named(edge, client, query, field):
    problem = assert_refused(client, edge.post(EVENT, query=query), 422, "bad_event")
    assert problem["errors"][0]["field"] == field


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "TRACE"])
def test_a_wrong_method_is_refused_with_those_that_are_allowed(edge, client, method):
    answer = edge.request(method, "/ingest", EVENT)
    assert (answer.status, answer.headers["Content-Type"]) == (405, "application/problem+json")
    assert "POST" in answer.headers["Allow"] and "POST" in answer.document["detail"]
    assert client.xlen(stream.STREAM) == 0


def test_a_wrong_path_is_refused(edge):
    answer = edge.request("POST", "/ingest/%FF", EVENT)
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(("body", "content_type", "count"), [
    (b"[%s]" % b",".join([EVENT] * 10_000), JSON, 10_000), (b"m\n" * 10_000, TEXT, 10_000),
    (b"\n".join([EVENT] * 10_000), LINES, 10_000),
    (b'{"message":"' + b"a" * MIB + b'"}', JSON, 1), (b"a" * MIB, TEXT, 1),
    (b'{"message":"m","a":' + b"[" * 62 + b"]" * 62 + b"}", JSON, 1),
    (b'{"message":"m","timestamp":"1970-01-01T00:00:00Z"}', JSON, 1),
    (b'{"message":"m","timestamp":"1969-12-31T23:00:00-01:00"}', JSON, 1),
    (b'{"message":"m","timestamp":"2199-12-31T23:59:59.999999Z"}', JSON, 1),
    (b'{"message":"m","timestamp":"2200-01-01T00:59:59.999999+01:00"}', JSON, 1),
    (b"%s\n" % (b"a" * 1023) * 8192, TEXT, 8192),
], ids=lambda value: ascii(value)[:30])
def test_what_is_just_within_the_limits_is_taken(edge, client, body, content_type, count):
    assert_taken(client, edge.post(body, content_type), count)


def test_a_body_over_its_limit_is_refused_as_sent_and_decompressed(edge, client):
    assert_refused(client, edge.post(b"%s\n" % (b"a" * 1023) * 8192 + b"a", TEXT), 413, "too_large")
    lines = b"%s\n" % (b"a" * 8191) * 8192
    over = gzip.compress(lines + b"a", 1)
    assert_refused(client, edge.post(over, TEXT, Content_Encoding="gzip"), 413, "too_large")
    assert_taken(client, edge.post(gzip.compress(lines, 1), TEXT, Content_Encoding="gzip"), 8192)


@pytest.mark.parametrize("key", ["a", " inner space ", "~!@#", "k" * 255, "\\", '"quoted"'])
def test_one_key_has_one_batch_id(edge, client, key):
    first = assert_taken(client, edge.post(EVENT, Idempotency_Key=key))
    client.flushall()
    again = assert_taken(client, edge.post(EVENT, Idempotency_Key=key))
    assert (again.batch_id, again.sha256) == (first.batch_id, first.sha256)
    client.flushall()
    other = assert_taken(client, edge.post(b'{"message":"n"}', Idempotency_Key=key))
    assert other.batch_id == first.batch_id and other.sha256 != first.sha256


@pytest.mark.parametrize("key", ["", "k" * 256, "\u00e9", "a\tb"])
def test_a_bad_key_is_refused(edge, client, key):
    assert_refused(client, edge.post(EVENT, Idempotency_Key=key.encode("latin-1")), 400, "idempotency_key")


def test_without_a_key_each_batch_has_an_id_of_its_own_in_order_of_time(edge):
    ids = [UUID(edge.post(EVENT).document["batch_id"]) for _ in range(50)]
    assert {(one.version, one.variant) for one in ids} == {(7, "specified in RFC 4122")}
    assert len(set(ids)) == 50
    times = [one.int >> 80 for one in ids]
    assert times == sorted(times)


def test_the_entry_says_when_it_was_received(edge, client):
    found = assert_taken(client, edge.post(EVENT))
    assert abs(datetime.fromisoformat(found.received_at).timestamp() * 1000 - (UUID(found.batch_id).int >> 80)) < 1000


def test_posts_at_the_same_time_are_grouped_and_each_is_in_the_stream_once(edge, client):
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda number: edge.post(b'{"message":"%d"}' % number), range(500)))
    assert {answer.status for answer in answers} == {202}
    expected = {answer.document["batch_id"]: b"%d" % number for number, answer in enumerate(answers)}
    assert journal.in_stream(client) == expected and client.xlen(stream.STREAM) < 500


def test_each_request_is_counted_as_accepted_once(edge):
    edge.post(EVENT)  # after those of other tests
    journal.until(lambda: 0 < edge.metric("ingest_requests_total", status="202")
                  == edge.metric("ingest_accepted_batches_total", durability="stream"), "all to be counted")
