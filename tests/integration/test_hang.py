"""A WAL whose disk hangs under a real worker: Redis goes on taking batches, and nobody waits without end."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import journal
from tests.edge import Edge
from tests.journal import until
from tests.machine import Ext4, frozen, injected, tmpfs

TOKEN = "token-of-the-canaries"
DEADLINE_S = 1
SETTINGS = {
    "SPILLWAY_WAL_MIN_FREE_BYTES": "1024", "SPILLWAY_WAL_SEGMENT_BYTES": str(1 << 20),
    "SPILLWAY_CANARY_TOKEN": TOKEN, "SPILLWAY_WAL_DEADLINE_MS": str(1000 * DEADLINE_S),
}


@pytest.fixture
def start(redis_url, tmp_path):
    """Starts the edge, its WAL in `tmp_path / "wal"` or where the test says; it is ended here."""
    edges = []

    def started(**settings):
        (tmp_path / "edge").mkdir()
        environ = {**SETTINGS, "SPILLWAY_WAL_DIR": str(tmp_path / "wal"), **settings}
        edges.append(Edge(redis_url, tmp_path / "edge", **environ))
        return edges[-1]

    yield started
    for edge in edges:
        edge.stop()


@contextmanager
def hung(edge):
    """Has every sync of the WAL hang from here to the end."""
    with injected(edge.worker_pid(), "fdatasync:delay_enter=600s"):
        yield


def post(edge, number, **headers):
    return edge.post(f"event {number}".encode(), "text/plain", Idempotency_Key=f"key {number}", **headers)


def post_to_wal(edge, number):
    return post(edge, number, Spillway_Canary=TOKEN)


def problem(answer):
    return answer.status, answer.document["type"].rpartition(":")[2], answer.headers["Retry-After"]


OVERDUE = (503, "not_durable_wal_overdue", "1")


def test_a_disk_that_hangs_keeps_no_request_of_the_stream_waiting_and_is_named(start):
    edge = start(options=("--timeout", "4"), SPILLWAY_WAL_DEADLINE_MS="60000")
    assert post_to_wal(edge, 0).document["durability"] == "wal"
    with ThreadPoolExecutor(1) as pool:
        with hung(edge):
            one = pool.submit(post_to_wal, edge, 1)
            until(lambda: stalled_s(edge) > 0, "the disk to hang")
            answers = [post(edge, number) for number in range(2, 7)]
            assert [(answer.status, answer.document["durability"]) for answer in answers] == [(202, "stream")] * 5
            named = until(lambda: (found := edge.request("GET", "/readyz")).status == 503 and found, "it to be named")
            assert problem(named) == (503, "not_durable_stalled", "1")
            assert named.document["detail"] == "lane wal: has not come round for 10 s"
            assert edge.is_live() and post(edge, 7).status == 202 and stalled_s(edge) > 9 and not one.done()
        assert one.result().document["durability"] == "wal"
    until(lambda: edge.request("GET", "/readyz").status == 200 and stalled_s(edge) == 0, "the lane to come round")
    assert edge.worker_pid() == edge.pid  # its heart beat all the time


def stalled_s(edge):
    return edge.metric("ingest_lane_stalled_seconds", lane="wal")


@pytest.mark.parametrize("mode", ["fallback", "always"])
def test_what_the_stream_does_not_take_is_refused_while_the_disk_hangs_and_nothing_acknowledged_is_lost(
    mode, start, tmp_path, redis_server, redis_url, database_url
):
    edge = start(SPILLWAY_WAL=mode)
    redis_server.stop()
    accepted = [post(edge, number) for number in range(5)]
    with hung(edge):
        assert problem(post(edge, 5)) == OVERDUE
        logged = edge.log.count("wal_disk_hangs")
        with ThreadPoolExecutor(8) as pool:
            refused = [*pool.map(lambda number: post(edge, number), range(6, 106))]
        assert {problem(answer) for answer in refused} == {OVERDUE}
        assert edge.log.count("wal_disk_hangs") == logged == 1  # the others did not wait for the deadline
        assert problem(edge.request("GET", "/readyz")) == OVERDUE and edge.is_live()
        assert thread_count(edge) < 10
    again = until(lambda: (answer := post(edge, 5)).status == 202 and answer, "the WAL to take batches again")
    assert edge.request("GET", "/readyz").status == 200 and edge.log.count("wal_disk_answers") == 1
    redis_server.start()
    deliver(tmp_path / "wal", redis_url, database_url)
    ids = sorted(answer.document["batch_id"] for answer in [*accepted, again])
    assert sorted(journal.stored(database_url)) == ids


def thread_count(edge):
    return len(list(Path(f"/proc/{edge.worker_pid()}/task").iterdir()))


def deliver(wal, redis_url, database_url):
    """Has a replayer ship all of the WAL, and a consumer load it."""
    replayer = journal.start("-m", "workers.replayer", REDIS_URL=redis_url, SPILLWAY_WAL_DIR=str(wal))
    try:
        until(lambda: not list(wal.iterdir()), "the WAL to be drained")
    finally:
        replayer.terminate()
        replayer.wait(journal.DEADLINE_S)
    journal.drain(redis_url, database_url)


def test_a_worker_that_is_told_to_stop_while_its_disk_hangs_answers_and_ends(start, redis_server, tmp_path):
    edge = start(app="tests.stuck:get_app()", STUCK=str(tmp_path / "fifo"))
    redis_server.stop()
    assert post(edge, 0).status == 202
    os.mkfifo(tmp_path / "fifo")
    with ThreadPoolExecutor(1) as pool:
        one = pool.submit(post, edge, 1)
        until(lambda: stalled_s(edge) > 0, "the disk to hang")
        edge.stop()
        assert problem(one.result()) == OVERDUE
    assert not {"timeout", "SIGKILL", "SIGABRT"} & set(edge.log.split()), edge.log


def test_a_file_system_that_is_frozen_keeps_no_worker_from_its_requests_not_even_by_a_seal(start, tmp_path):
    with Ext4(tmp_path) as disk:
        edge = start(SPILLWAY_WAL_DIR=str(disk.root / "wal"))
        assert post_to_wal(edge, 0).document["durability"] == "wal"
        with frozen(disk.root):
            until(lambda: stalled_s(edge) > 0, "the seal to hang")
            for number in range(1, 6):
                assert post(edge, number).document["durability"] == "stream"
            assert problem(post_to_wal(edge, 6)) == problem(post_to_wal(edge, 7)) == OVERDUE
            assert edge.is_live()
        assert until(lambda: (answer := post_to_wal(edge, 8)).status == 202 and answer, "the WAL").document
        edge.stop()


def test_a_write_ahead_log_that_was_full_is_ready_once_it_is_drained_although_nobody_posts(start, tmp_path, redis_url):
    edge = start(SPILLWAY_WAL="always", SPILLWAY_WAL_MAX_BYTES=str(2 << 20))
    full = until(lambda: (found := edge.post(b"x" * 200_000, "text/plain")).status == 503 and found, "the WAL to fill")
    assert problem(full) == problem(edge.request("GET", "/readyz")) == (503, "not_durable_wal_full", "1")
    replayer = journal.start("-m", "workers.replayer", REDIS_URL=redis_url, SPILLWAY_WAL_DIR=str(tmp_path / "wal"))
    try:
        until(lambda: edge.request("GET", "/readyz").status == 200, "it to be ready")
    finally:
        replayer.terminate()
        replayer.wait(journal.DEADLINE_S)


def test_nobody_need_post_for_a_full_disk_to_be_told_and_for_its_end(start, tmp_path, redis_server):
    redis_server.stop()
    (tmp_path / "disk").mkdir()
    with tmpfs(tmp_path / "disk", "4m") as disk:
        filler = disk / "filler"
        filler.write_bytes(bytes(7 << 19))
        edge = start(SPILLWAY_WAL_DIR=str(disk / "wal"))
        until(lambda: problem(edge.request("GET", "/readyz")) == (503, "not_durable_wal_full", "1"), "it to be told")
        filler.unlink()
        until(lambda: edge.request("GET", "/readyz").status == 200, "it to be ready")
        edge.stop()
