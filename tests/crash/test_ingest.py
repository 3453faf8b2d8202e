"""Hand-overs 1 and 2, client → stream or WAL: a gunicorn worker is killed at each step; the client tries again."""

import http.client
import json
from contextlib import contextmanager

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


@contextmanager
def edge(point, port, tmp_path, redis_url):
    """Runs ingest with a crash point, and checks at its end that it was reached."""
    master = journal.start(
        "-m", "gunicorn", "-k", "gevent", "-w", "1", "-b", f"127.0.0.1:{port}", "--no-control-socket",
        "tests.crash.edge_victim:get_app()", log=tmp_path / "log", REDIS_URL=redis_url, CRASH_POINT=point,
        CRASH_MARK=str(tmp_path / "mark"), PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
        SPILLWAY_WAL_DIR=str(tmp_path / "wal"), SPILLWAY_WAL_MIN_FREE_BYTES="1024",
    )
    try:
        yield
        assert (tmp_path / "mark").exists(), "the worker was not killed"
    finally:
        master.terminate()
        master.wait(timeout=journal.DEADLINE_S)


def post_until_answered(port):
    answers = []
    return journal.until(lambda: answers.append(post(port, "key")) or answers[-1], "an answer")


@pytest.mark.parametrize("point", POINTS)
def test_a_request_repeated_after_its_worker_was_killed_is_stored_once(
    point, tmp_path, redis_url, database_url, free_port
):
    with edge(point, free_port, tmp_path, redis_url):
        status, answer = post_until_answered(free_port)
        assert (status, answer["batch_id"], answer["accepted"]) == (202, batch.id_of_key("key"), 3)
    copies = redis.Redis.from_url(redis_url).xlen(stream.STREAM)
    assert copies == (1 if point in ("before:append", "before:send") else 2)
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == {batch.id_of_key("key"): ["event 0", "event 1", "event 2"]}


@pytest.mark.parametrize("point", ["before:spill", "before:write", "after:write", "after:spill"])
def test_a_request_repeated_after_its_worker_was_killed_at_the_wal_is_stored_once(
    point, tmp_path, redis_server, redis_url, database_url, free_port
):
    redis_server.stop()
    with edge(point, free_port, tmp_path, redis_url):
        status, answer = post_until_answered(free_port)
        assert (status, answer["batch_id"], answer["durability"]) == (202, batch.id_of_key("key"), "wal")
    redis_server.start()
    replayer = journal.start("-m", "workers.replayer", REDIS_URL=redis_url, SPILLWAY_WAL_DIR=str(tmp_path / "wal"))
    try:
        journal.until(lambda: not list((tmp_path / "wal").iterdir()), "the WAL to be drained")
    finally:
        replayer.terminate()
        replayer.wait(timeout=journal.DEADLINE_S)
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == {batch.id_of_key("key"): ["event 0", "event 1", "event 2"]}
