"""The status monitor that a 202 names, on real servers."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import psycopg2
import pytest

from tests import journal
from tests.edge import Edge
from tests.pooler import pooled


@contextmanager
def edge(port, directory, **environ):
    """Runs ingest with one worker."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-k", "gevent", "-b", f"127.0.0.1:{port}", "--no-control-socket",
         "app.edge:get_app()"], cwd=journal.ROOT, stderr=subprocess.DEVNULL,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory), "SPILLWAY_DATA_DIR": str(directory), **environ},
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def get(url, data=None):
    """Returns status, headers and document; status 0 while nobody listens."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "text/plain"})) as response:
            return response.status, response.headers, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.loads(error.read())
    except urllib.error.URLError:
        return 0, {}, {}


def test_location_says_404_until_the_batch_is_stored_and_then_what_is_stored(
    redis_url, database_url, postgres_server, free_port, tmp_path
):
    with edge(free_port, tmp_path, REDIS_URL=redis_url, DATABASE_URL=database_url) as url:
        journal.until(lambda: get(f"{url}/readyz")[0] == 200, "ingest to be ready")
        status, headers, accepted = get(f"{url}/ingest", b"one\ntwo")
        assert (status, headers["Location"]) == (202, f"/batches/{accepted['batch_id']}")
        monitor = url + headers["Location"]
        status, headers, problem = get(monitor)
        assert (status, headers["Retry-After"]) == (404, "1") and "not stored" in problem["detail"]
        journal.drain(redis_url, database_url)
        status, _, document = get(monitor)
        assert status == 200
        assert {name: document[name] for name in ("batch_id", "state", "event_count", "dead_count")} == {
            "batch_id": accepted["batch_id"], "state": "stored", "event_count": 2, "dead_count": 0}
        assert get(f"{url}/batches/no-uuid")[0] == 404
        postgres_server.stop()
        status, headers, _ = get(monitor)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert get(f"{url}/ingest", b"three")[0] == 202


@pytest.fixture
def monitored(redis_url, database_url, tmp_path):
    """A factory: an edge with room for 100 clients before a database, and the location of a batch that is stored."""
    edges = []

    def start(url):
        edges.append(Edge(redis_url, tmp_path, options=("--worker-connections", "100"), DATABASE_URL=url))
        accepted = edges[0].post(b"one", "text/plain").document
        journal.drain(redis_url, database_url)
        return edges[0], f"/batches/{accepted['batch_id']}"
    yield start
    for edge in edges:
        edge.stop()


def test_a_database_that_hangs_lets_few_wait_and_ingest_goes_on(monitored, database_url, postgres_server):
    edge, location = monitored(database_url)
    assert edge.request("GET", location).status == 200
    postgres_server.pause()
    try:
        with ThreadPoolExecutor(200) as threads:
            asked = [threads.submit(edge.request, "GET", location) for _ in range(200)]
            journal.until(lambda: sum(one.done() for one in asked) > 150, "most of them to be answered")
            assert edge.post(b"two", "text/plain").status == 202
            assert not all(one.done() for one in asked), "ingest has answered while some wait for the database"
        answers = [one.result() for one in asked]
        assert {(answer.status, answer.headers["Retry-After"]) for answer in answers} == {(503, "1")}
        assert edge.request("GET", location).status == 503, "one that comes after them is told so, too"
    finally:
        postgres_server.resume()
    for _ in range(5):
        journal.until(lambda: edge.request("GET", location).status == 200, "it to answer again")


def test_many_that_ask_a_sound_database_are_answered(monitored, database_url):
    edge, location = monitored(database_url)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: edge.request("GET", location), range(100)))
    assert [answer.status for answer in answers] == [200] * 100


def test_a_database_that_hangs_in_the_middle_of_a_session_is_given_up(monitored, database_url, postgres_server):
    edge, location = monitored(database_url)
    with closing(psycopg2.connect(database_url)) as other, other.cursor() as cursor:
        cursor.execute("LOCK TABLE log_batches")  # Until then each of them is connected and asks.
        with ThreadPoolExecutor(4) as threads:
            asked = [threads.submit(edge.request, "GET", location) for _ in range(4)]
            journal.until(lambda: waiting(cursor) == 2, "both queries to wait")
            postgres_server.pause()
            try:
                assert [one.result().status for one in asked] == [503] * 4
            finally:
                postgres_server.resume()
    journal.until(lambda: edge.request("GET", location).status == 200, "it to answer again")


def waiting(cursor):
    """Returns how many backends wait for a lock."""
    cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
    return cursor.fetchone()[0]


def test_a_pooler_by_transaction_gives_the_next_client_a_session_without_anything_of_ours(
    monitored, database_url, short_dir
):
    directory = short_dir / "monitored"
    directory.mkdir()
    with pooled(directory, database_url, "default_pool_size = 1") as url:
        edge, location = monitored(url)
        assert edge.request("GET", location).status == 200
        with closing(psycopg2.connect(url)) as other, other.cursor() as cursor:
            cursor.execute("SELECT current_setting('statement_timeout'), current_setting('transaction_read_only')")
            assert cursor.fetchone() == ("0", "off")
