"""Hand-over 1, client → stream: a gunicorn worker is killed at each step; the client has no answer and tries again."""

import http.client
import json

import pytest
import redis

from app import batch, stream
from tests import journal

POINTS = ["before:append", "before:send", "after:send", "before:reply", "after:reply", "after:append"]


def post(port, key):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        headers = {"Content-Type": "text/plain", "Idempotency-Key": key}
        connection.request("POST", "/ingest", b"event 0\nevent 1\nevent 2", headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


@pytest.mark.parametrize("point", POINTS)
def test_a_request_repeated_after_its_worker_was_killed_is_stored_once(
    point, tmp_path, redis_url, database_url, free_port
):
    master = journal.start(
        "-m", "gunicorn", "-k", "gevent", "-w", "1", "-b", f"127.0.0.1:{free_port}", "--no-control-socket",
        "tests.crash.edge_victim:get_app()", log=tmp_path / "log", REDIS_URL=redis_url, CRASH_POINT=point,
        CRASH_MARK=str(tmp_path / "mark"), PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
    )
    try:
        answers = []
        status, answer = journal.until(lambda: answers.append(post(free_port, "key")) or answers[-1], "an answer")
        assert (tmp_path / "mark").exists(), "the worker was not killed"
        assert (status, answer["batch_id"], answer["accepted"]) == (202, batch.id_of_key("key"), 3)
    finally:
        master.terminate()
        master.wait(timeout=journal.DEADLINE_S)
    copies = redis.Redis.from_url(redis_url).xlen(stream.STREAM)
    assert copies == (1 if point in ("before:append", "before:send") else 2)
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == {batch.id_of_key("key"): ["event 0", "event 1", "event 2"]}
