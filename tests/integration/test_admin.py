"""The admin listener by a real gunicorn on a real Redis: what lies where, and the dead letters."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import closing
from urllib.parse import quote

import pytest
import redis

from app import dead_letter, stream
from app.batch import to_record
from tests import journal
from tests.edge import Edge
from tests.letter import bury, letters, lone, make_service_batch
from wal.writer import Writer

JSON = {"Content-Type": "application/json"}
REFERENCE = (journal.ROOT / "ops/REFERENCE.md").read_text()


class Admin(Edge):
    """The admin process as the service runs it."""

    def __init__(self, redis_url, directory):
        self.metrics_dir = directory / "metrics"
        self.metrics_dir.mkdir()
        self._log = directory / "log"
        environ = {"REDIS_URL": redis_url, "PROMETHEUS_MULTIPROC_DIR": str(self.metrics_dir),
                   "SPILLWAY_DATA_DIR": str(directory), "PYTHONPATH": str(journal.ROOT), "PATH": os.environ["PATH"]}
        with self._log.open("wb") as log:
            self._master = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "ops/gunicorn_conf.py", "-w", "1", "-b", "127.0.0.1:0",
                 "app.admin:get_app()"], cwd=journal.ROOT, stdout=log, stderr=log, env=environ,
            )
        listening = r"Listening at: http://127.0.0.1:(\d+)"
        self.port = int(journal.until(lambda: re.search(listening, self.log), "gunicorn")[1])
        journal.until(self.is_live, "the worker")
        self.pid = self.worker_pid()
        self.directory = directory

    def get(self, path):
        """Returns the document; requires that there is one."""
        answer = self.request("GET", path)
        assert answer.status == 200 and answer.headers["Content-Type"].startswith("application/json"), answer
        return answer.document

    def post(self, path, order, status=200):
        """Sends an order and returns the answer's document; requires its status."""
        answer = self.request("POST", path, json.dumps(order), JSON)
        assert answer.status == status, answer
        return answer.document


@pytest.fixture(scope="module")
def admin(shared_redis, tmp_path_factory):
    admin = Admin(shared_redis.url, tmp_path_factory.mktemp("admin"))
    yield admin
    admin.stop()
    assert "Traceback" not in admin.log


@pytest.fixture
def client(redis_server, admin):
    """A client of an empty Redis, which the admin process has found again."""
    with closing(redis.Redis.from_url(redis_server.url)) as client:
        journal.until(lambda: admin.request("GET", "/readyz").status == 200, "the admin process to find Redis")
        yield client


@pytest.mark.parametrize("host, status", [
    ("localhost", 200), ("localhost:8081", 200), ("127.0.0.1:1", 200), ("[::1]:8081", 200), ("127.1.2.3", 200),
    ("evil.example", 403), ("evil.example:8081", 403), ("10.0.0.1", 403), ("localhost.evil.example", 403),
])
def test_a_name_that_was_made_to_point_to_this_machine_is_not_let_in(host, status, admin):
    answer = admin.request("GET", "/stream", headers={"Host": host})
    assert answer.status == status, answer


# What lies where


def test_before_the_first_batch_everything_is_there_and_empty(admin, client):
    assert admin.get("/pending") == {"count": 0, "first_id": None, "last_id": None, "consumers": [], "entries": []}
    assert admin.get("/stream") == {
        "entries": 0, "bytes": None, "pending": 0, "lag": 0, "last_generated_id": None, "oldest_age_s": None,
        "dead_letters": {"entries": 0, "bytes": None},
    }
    assert admin.get("/dead-letters") == {"letters": [], "next": None}
    stream.ensure_group(client)
    assert admin.get("/pending")["count"] == 0 and admin.get("/stream")["last_generated_id"] == "0-0"


def test_pending_tells_what_each_consumer_has_been_given(admin, client):
    stream.ensure_group(client)
    ids = [entry_id.decode() for entry_id in journal.append(client, *(journal.make_batch() for _ in range(4)))]
    client.xreadgroup(stream.GROUP, "consumer-00", {stream.STREAM: ">"}, count=3)
    client.xgroup_createconsumer(stream.STREAM, stream.GROUP, "consumer-01")
    found = admin.get("/pending?limit=2")
    assert (found["count"], found["first_id"], found["last_id"]) == (3, ids[0], ids[2])
    assert [(one["name"], one["pending"], one["idle_ms"] >= 0) for one in found["consumers"]] == [
        ("consumer-00", 3, True), ("consumer-01", 0, True),
    ]
    assert [(one["id"], one["consumer"], one["deliveries"]) for one in found["entries"]] == [
        (ids[0], "consumer-00", 1), (ids[1], "consumer-00", 1),
    ]
    assert all(one["idle_ms"] >= 0 for one in found["entries"])
    assert admin.get("/pending")["entries"] == []


def test_stream_tells_how_much_there_is_how_old_and_how_much_nobody_has_been_given(admin, client):
    stream.ensure_group(client)
    now_ms = int(time.time() * 1000)
    client.xadd(stream.STREAM, {"payload": "x" * 3_000_000}, id=f"{now_ms - 60_000}-0")
    last, = journal.append(client, journal.make_batch())
    client.xreadgroup(stream.GROUP, "consumer-00", {stream.STREAM: ">"}, count=1)
    bury(client, journal.make_batch())
    found = admin.get("/stream")
    assert (found["entries"], found["pending"], found["lag"]) == (2, 1, 1)
    assert found["bytes"] > 3_000_000 and found["last_generated_id"] == last.decode()
    assert 59 < found["oldest_age_s"] < 120
    assert found["dead_letters"]["entries"] == 1 and found["dead_letters"]["bytes"] > 100


def test_wal_tells_its_segments(admin):
    assert admin.get("/wal") == {"active": False, "bytes": 0, "oldest_age_s": None, "segments": [], "spare_segments": 0}
    log, spares = admin.directory / "wal", admin.directory / "wal.spare"
    log.mkdir()
    spares.mkdir()
    writer = Writer(log, spares, segment_bytes=1 << 20, max_bytes=1 << 30, min_free_bytes=0)
    try:
        writer.write([to_record(journal.make_batch())])
        found = admin.get("/wal")
        segment, = found["segments"]
        path, = log.iterdir()
        assert (segment["name"], segment["bytes"] >= 1 << 20, found["active"]) == (path.name, True, True)
        assert found["bytes"] == segment["bytes"] and 0 <= found["oldest_age_s"] == segment["age_s"] < 60
        assert found["spare_segments"] == sum(1 for _ in spares.iterdir())
    finally:
        writer.close()
        for path in log.iterdir():
            path.unlink()
    spares.rename(admin.directory / "aside")
    spares.touch()
    answer = admin.request("GET", "/wal")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1") and "WAL" in answer.document["detail"]
    spares.unlink()


def test_metrics_and_health_are_where_they_were(admin, client):
    for path in ("/livez", "/readyz", "/metrics"):
        assert admin.request("GET", path).status == 200
    assert admin.request("GET", "/metrics").headers["Content-Type"].startswith("text/plain")


# Looking at dead letters


def test_letters_are_listed_page_by_page_without_their_events(admin, client):
    ids = [bury(client, journal.make_batch("x" * 1000, count=1000)) for _ in range(5)]
    seen, after = [], ""
    while after is not None:
        page = admin.get(f"/dead-letters?limit=2&after={after}")
        seen += [letter["letter_id"] for letter in page["letters"]]
        after = page["next"]
        assert (after is None) == (len(seen) == 5)
    assert seen == ids
    assert page["letters"][0] == letters(client)[-1].summary()
    assert admin.get(f"/dead-letters?after={ids[-1]}") == {"letters": [], "next": None}


def test_the_query_chooses_letters(admin, client):
    web = make_service_batch("web & shop")
    first = bury(client, web, letter_id="1000-0")
    second = bury(client, lone(web, 0), dead_letter.BAD_EVENT)
    third = bury(client, journal.make_batch(), dead_letter.KILLS)

    def chosen(query):
        return [letter["letter_id"] for letter in admin.get(f"/dead-letters?{query}")["letters"]]

    assert chosen("reason=&service=&since=&batch=&after=&limit=") == [first, second, third]
    assert chosen(f"service={quote('web & shop')}") == chosen(f"batch={web.batch_id}") == [first, second]
    assert chosen("reason=bad_event") == chosen(f"batch={web.batch_id}&since=1h") == [second]
    assert chosen("since=1h&limit=1") == [second] and chosen(f"since=1h&after={first}") == [second, third]
    assert chosen("since=2199-01-01T00:00:00Z") == []


@pytest.mark.parametrize("query, what", [
    ("reason=nonsense", "sink_unavailable"), ("since=90", "90s"), ("batch=1", "UUID"), ("limit=0", "from 1 to 1000"),
    ("limit=1001", "1000"), ("limit=-1", "1000"), ("after=1", "id of a letter"), ("reasons=x", "reason"),
    ("limit=1&limit=2", "once"), ("limit=%D9%A3", "whole number"),
])
def test_a_wrong_query_is_refused_with_what_is_right(query, what, admin, client):
    answer = admin.request("GET", f"/dead-letters?{query}")
    assert (answer.status, answer.headers["Content-Type"]) == (400, "application/problem+json")
    assert what in answer.document["detail"]


def test_one_letter_is_shown_whole(admin, client):
    letter_id = bury(client, journal.make_batch(count=2))
    assert admin.get(f"/dead-letters/{letter_id}") == letters(client)[0].document()
    for path in ("/dead-letters/1-1", "/dead-letters/nonsense", "/dead-letters/*", "/dead-letters/%0a"):
        answer = admin.request("GET", path)
        assert (answer.status, answer.headers["Content-Type"]) == (404, "application/problem+json")


def test_a_hostile_letter_is_shown_as_json_that_no_browser_takes_for_a_page(admin, client):
    client.xadd(stream.DEAD_LETTERS, {
        "reason": "<script>\x1b[31m", "detail": b"\xff\x00", "attempts": "9" * 5000, b"\xfe": b"\xfe",
    })
    letter_id = letters(client)[0].letter_id
    assert admin.get(f"/dead-letters/{letter_id}")["fields"]["\\xfe"] == "\\xfe"
    for path in ("/dead-letters", f"/dead-letters/{letter_id}", "/dead-letters/1-1", "/stream", "/wal", "/nowhere"):
        assert admin.request("GET", path).headers["X-Content-Type-Options"] == "nosniff"
    assert admin.post("/dead-letters/replay", {})["left"] == {"unknown": 1}


# Replaying and purging


def test_a_replay_is_done_logged_and_becomes_rows(admin, client, redis_url, database_url):
    web, other = make_service_batch("web"), journal.make_batch()
    bury(client, web)
    bury(client, other)
    bury(client, other, dead_letter.CONFLICT)
    order = {"service": "web", "dry_run": True}
    answer = {"letters": 1, "events": 1, "by_reason": {"sink_unavailable": {"letters": 1, "events": 1}}, "left": {}}
    assert admin.post("/dead-letters/replay", order) == {**answer, "dry_run": True}
    assert client.xlen(stream.STREAM) == 0 and len(letters(client)) == 3
    assert admin.post("/dead-letters/replay", {"service": "web"}) == {**answer, "dry_run": False}
    line = admin.log.splitlines()[-1]
    assert re.search(r'dead_letters_replayed by=127\.0\.0\.1 letters=1 events=1 left=0 order=.*service.*web', line)
    assert admin.post("/dead-letters/replay", {})["left"] == {"idempotency_conflict": 1}
    assert admin.post("/dead-letters/replay", {"reason": "idempotency_conflict", "since": "1h"})["events"] == 3
    assert admin.post("/dead-letters/replay", {})["letters"] == 0
    journal.drain(redis_url, database_url)
    assert len(journal.stored(database_url)) == 3


def test_many_letters_are_replayed_in_one_request_in_bounded_memory(admin, client):
    for _ in range(60):
        bury(client, journal.make_batch("x" * 1000, count=1000))
    before = admin.peak_bytes()
    assert admin.post("/dead-letters/replay", {})["letters"] == 60
    assert admin.peak_bytes() - before < 45 << 20  # all of them are 60 MB, and as much again to be sent
    assert client.xlen(stream.STREAM) == 60


def test_a_purge_wants_to_be_told_which(admin, client):
    ids = [bury(client, journal.make_batch()) for _ in range(4)]
    problem = admin.post("/dead-letters/purge", {}, status=422)
    assert '"all": true' in problem["detail"] and len(letters(client)) == 4
    assert admin.post("/dead-letters/purge", {"all": True, "dry_run": True})["letters"] == 4
    assert admin.post("/dead-letters/purge", {"ids": [ids[1], "1-1", ids[1]]})["letters"] == 1
    assert admin.post("/dead-letters/purge", {"batch": letters(client)[0].batch.batch_id})["letters"] == 1
    assert [letter.letter_id for letter in letters(client)] == ids[2:]
    assert admin.post("/dead-letters/purge", {"all": True})["events"] == 6
    assert "dead_letters_purged by=127.0.0.1 letters=2" in admin.log.splitlines()[-1]
    assert not letters(client) and client.xlen(stream.STREAM) == 0


@pytest.mark.parametrize("order", [
    "", "[]", "null", "{", '{"reasons": "x"}', '{"reason": 1}', '{"reason": "nonsense"}', '{"ids": "1-1"}',
    '{"ids": []}', '{"ids": [1]}', '{"ids": ["1"]}', '{"since": "90"}', '{"batch": "x"}', '{"dry_run": "yes"}',
    '{"all": 1}',
    '{"service": "\\ud800"}', b'{"service": "\xff"}', "[" * 10_000,
])
def test_a_wrong_order_is_refused_with_what_is_right_and_nothing_is_done(order, admin, client):
    bury(client, journal.make_batch())
    for path in ("/dead-letters/replay", "/dead-letters/purge"):
        answer = admin.request("POST", path, order, JSON)
        assert (answer.status, answer.headers["Content-Type"]) == (422, "application/problem+json")
        assert "sink_unavailable" in answer.document["detail"] and "dry_run" in answer.document["detail"]
    assert len(letters(client)) == 1 and client.xlen(stream.STREAM) == 0


@pytest.mark.parametrize("content_type", [
    None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data",
])
def test_what_a_page_of_another_origin_could_send_is_refused(content_type, admin, client):
    bury(client, journal.make_batch())
    for path in ("/dead-letters/replay", "/dead-letters/purge"):
        headers = {"Content-Type": content_type} if content_type else {}
        answer = admin.request("POST", path, '{"all": true}', headers)
        assert (answer.status, answer.document["status"]) == (415, 415)
        assert admin.request("GET", path).status == 405
        preflight = admin.request("OPTIONS", path, headers={"Origin": "http://example.com"})
        assert not [name for name in preflight.headers if name.lower().startswith("access-control")]
    assert len(letters(client)) == 1


def test_an_order_may_come_in_chunks_and_not_be_too_large(admin, client):
    answer = admin.request("POST", "/dead-letters/replay", iter([b'{"all"', b": true}"]), JSON)
    assert answer.status == 200
    assert admin.request("POST", "/dead-letters/replay", b" " * (2 << 20), JSON).status == 413


def test_a_redis_that_is_away_is_a_503_and_comes_back(admin, client, redis_server):
    redis_server.stop()
    for path in ("/pending", "/stream", "/dead-letters", "/dead-letters/1-1", "/dead-letters?since=1h"):
        answer = admin.request("GET", path)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1"), path
        assert answer.headers["Content-Type"] == "application/problem+json"
    for order in ({}, {"since": "1h"}, {"ids": ["1-1"]}):
        answer = admin.request("POST", "/dead-letters/replay", json.dumps(order), JSON)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert admin.request("GET", "/wal").status == 200 and admin.request("GET", "/livez").status == 200
    redis_server.start()
    journal.until(lambda: admin.request("GET", "/stream").status == 200, "the admin process to find Redis")
    assert admin.worker_pid() == admin.pid


# The reference


def test_the_reference_has_curl_lines_that_work_as_they_are_written(admin, client):
    letter_id = bury(client, journal.make_batch())
    section = REFERENCE[REFERENCE.index("## Admin listener"):]
    lines = re.findall(r"^curl .*$", section[:section.index("\n## ")], re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        here = line.replace("localhost:8081", f"127.0.0.1:{admin.port}").replace("1769860800000-0", letter_id)
        words = shlex.split(here)
        done = subprocess.run([*words, "--silent", "--show-error", "--fail-with-body"], capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        if "metrics" not in line:
            json.loads(done.stdout)
    assert not letters(client)
