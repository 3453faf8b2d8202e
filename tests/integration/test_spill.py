"""The WAL between the edge and the replayer, on real servers: Redis away, slow or full, nothing acknowledged lost."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import redis

from app import stream
from tests import journal
from tests.edge import Edge
from tests.journal import until
from tests.machine import injected
from ops.proxy import proxied

MIB = 1 << 20


class Host:
    """One ingest process and one replayer on one WAL directory."""

    def __init__(self, redis_url, directory, **settings):
        self.wal = directory / "wal"
        self._settings = {"SPILLWAY_WAL_DIR": str(self.wal), "SPILLWAY_WAL_MIN_FREE_BYTES": "1024", **settings}
        self.redis_url, self._directory = redis_url, directory
        (directory / "edge").mkdir()
        self.edge = Edge(redis_url, directory / "edge", **self._settings)
        self.replayer = None
        self.start_replayer()

    def start_replayer(self):
        self.replayer = journal.start(
            "-m", "workers.replayer", log=self._directory / "replayer.log", REDIS_URL=self.redis_url, **self._settings,
        )

    @property
    def log(self):
        return (self._directory / "replayer.log").read_text()

    def files(self):
        return sorted(path.name for path in self.wal.iterdir()) if self.wal.is_dir() else []

    def post(self, number):
        return self.edge.post(f"event {number}".encode(), "text/plain", Idempotency_Key=f"key {number}")

    def stop(self):
        self.edge.stop()
        self.replayer.terminate()
        self.replayer.wait(30)


@pytest.fixture
def host(redis_url, tmp_path):
    hosts = []

    def start(url=redis_url, **settings):
        hosts.append(Host(url, tmp_path, **settings))
        return hosts[-1]

    yield start
    for one in hosts:
        one.stop()


def check_all_stored(redis_url, database_url, batch_ids):
    journal.drain(redis_url, database_url)
    found = journal.stored(database_url)
    assert sorted(found) == sorted(batch_ids)
    assert all(len(messages) == 1 for messages in found.values())


def in_stream(redis_url, batch_ids):
    with closing(redis.Redis.from_url(redis_url)) as client:
        found = {fields[b"batch_id"].decode() for _, fields in client.xrange(stream.STREAM)}
    return found >= set(batch_ids)


@pytest.mark.parametrize("fault", ["stop", "kill", "pause"])
def test_an_outage_of_redis_is_bridged_by_the_wal(fault, host, redis_server, redis_url, database_url):
    running = host()
    answers = [running.post(number) for number in range(5)]
    assert [answer.document["durability"] for answer in answers] == ["stream"] * 5
    getattr(redis_server, fault)()
    during = [running.post(number) for number in range(5, 40)]
    assert [(answer.status, answer.document["durability"]) for answer in during] == [(202, "wal")] * 35
    assert running.files() and "redis_unavailable" in running.edge.log
    redis_server.start()
    until(lambda: running.files() == [], "the WAL to be drained and its directory empty")
    ids = [answer.document["batch_id"] for answer in answers + during]
    assert in_stream(redis_url, ids)
    until(lambda: "redis_available" in running.edge.log, "ingest to say so")
    until(lambda: "replay_complete" in running.log, "the replayer to say so")
    assert "replay_started" in running.log
    until(lambda: running.post(40).document["durability"] == "stream", "the stream to be used again")
    ids.append(running.post(40).document["batch_id"])
    check_all_stored(redis_url, database_url, ids)


def test_replies_later_than_the_deadline_cost_one_group_the_deadline_and_then_go_to_the_wal(
    host, redis_url, database_url
):
    with proxied(redis_url) as proxy:
        running = host(proxy.url)
        ids = [running.post(0).document["batch_id"]]
        proxy.delay_s = 0.4
        answers = [running.post(number) for number in range(1, 30)]
        assert [(answer.status, answer.document["durability"]) for answer in answers] == [(202, "wal")] * 29
        assert running.edge.log.count("redis_unavailable") == 1
        proxy.delay_s = 0.0
        until(lambda: running.files() == [], "the WAL to be drained")
        until(lambda: running.post(30).document["durability"] == "stream", "the stream to be used again")
        ids += [answer.document["batch_id"] for answer in answers] + [running.post(30).document["batch_id"]]
        check_all_stored(redis_url, database_url, ids)


def test_after_an_outage_a_redis_that_is_far_away_is_used_again_if_it_answers_within_the_deadline(host, redis_url):
    with proxied(redis_url) as proxy:
        running = host(proxy.url)
        proxy.delay_s = 0.4
        until(lambda: running.post(0).document["durability"] == "wal", "the WAL to be used")
        proxy.delay_s = 0.15  # opening a connection takes several times that
        until(lambda: running.post(0).document["durability"] == "stream", "the stream to be used again")
        assert {running.post(number).document["durability"] for number in range(10)} == {"stream"}


def test_a_reply_that_is_cut_off_after_the_batch_got_through_leaves_two_copies_and_one_row(
    host, redis_url, database_url
):
    with proxied(redis_url) as proxy:
        running = host(proxy.url)
        ids = [running.post(0).document["batch_id"]]
        for number in range(1, 6):
            until(lambda: running.post(0).document["durability"] == "stream", "the stream to be used")
            proxy.cut_after = b"XADD"
            answer = running.post(number)
            proxy.cut_after = None
            assert (answer.status, answer.document["durability"]) == (202, "wal")
            ids.append(answer.document["batch_id"])
        assert proxy.cut_count >= 5
        until(lambda: running.files() == [], "the WAL to be drained")
        with closing(redis.Redis.from_url(redis_url)) as client:
            copies = [fields[b"batch_id"].decode() for _, fields in client.xrange(stream.STREAM)]
        assert all(copies.count(batch_id) >= 2 for batch_id in ids[1:])
        check_all_stored(redis_url, database_url, ids)


def test_while_a_sync_takes_its_time_other_requests_are_answered_and_what_waits_becomes_one_group(
    host, redis_server, redis_url, database_url
):
    running = host()
    redis_server.stop()
    ids = [running.post(0).document["batch_id"]]
    with injected(running.edge.worker_pid(), "fdatasync:delay_enter=3s:when=1"):
        groups = running.edge.metric("ingest_wal_write_seconds_count")
        with ThreadPoolExecutor(20) as pool:
            posts = [pool.submit(running.post, number) for number in range(1, 21)]
            waits_s = []
            while not all(post.done() for post in posts):
                asked_at = time.monotonic()
                assert running.edge.is_live()
                waits_s.append(time.monotonic() - asked_at)
        answers = [post.result() for post in posts]
    print(f"longest wait of {len(waits_s)} requests beside the sync: {max(waits_s) * 1e3:.0f} ms")
    assert len(waits_s) > 100 and {answer.status for answer in answers} == {202}
    # What came while the first was being synced waited for it, and then for each other's sync only.
    assert running.edge.metric("ingest_wal_write_seconds_count") - groups <= 5
    ids += [answer.document["batch_id"] for answer in answers]
    redis_server.start()
    until(lambda: running.files() == [], "the WAL to be drained")
    check_all_stored(redis_url, database_url, ids)


def test_a_sync_that_fails_is_counted_and_costs_no_batch(host, redis_server, redis_url, database_url):
    running = host()
    redis_server.stop()
    ids = [running.post(0).document["batch_id"]]
    with injected(running.edge.worker_pid(), "fdatasync:error=EIO:when=1"):
        ids.append(running.post(1).document["batch_id"])
    assert running.edge.metric("ingest_wal_poisoned_segments_total") == 1
    assert "wal_sync_failed" in running.edge.log
    redis_server.start()
    until(lambda: running.files() == [], "the WAL to be drained")
    check_all_stored(redis_url, database_url, ids)


def test_what_a_killed_worker_has_left_is_replayed(host, redis_server, redis_url, database_url):
    running = host()
    redis_server.stop()
    ids = []
    for number in range(10):
        ids.append(running.post(number).document["batch_id"])
    running.edge.kill_worker()
    ids.append(until(lambda: running.edge.is_live() and running.post(10), "a new worker").document["batch_id"])
    running.replayer.kill()
    running.replayer.wait(30)
    running.start_replayer()
    redis_server.start()
    until(lambda: running.files() == [], "the WAL to be drained")
    check_all_stored(redis_url, database_url, ids)


def test_of_two_replayers_on_one_wal_one_ships_and_the_other_takes_over_when_it_is_gone(
    host, redis_server, redis_url, database_url
):
    running = host()
    until(lambda: "replayer_started" in running.log, "the first replayer")
    first = running.replayer
    running.start_replayer()
    until(lambda: "replayer_standing_by" in running.log, "the second replayer to leave it to the first")
    ids = []
    for replayer in (first, running.replayer):
        redis_server.stop()
        ids += [running.post(number).document["batch_id"] for number in range(len(ids), len(ids) + 20)]
        redis_server.start()
        until(lambda: running.files() == [], "the WAL to be drained")
        assert redis.Redis.from_url(redis_url).xlen(stream.STREAM) == len(ids)  # each once
        if replayer is first:
            first.kill()
            first.wait(30)
    check_all_stored(redis_url, database_url, ids)


@pytest.mark.parametrize("fault", ["maxmemory", "bound"])
def test_a_full_redis_sends_batches_to_the_wal_and_takes_them_when_there_is_room(
    fault, host, redis_server, redis_url, database_url
):
    running = host(**({"SPILLWAY_STREAM_MAX_BYTES": str(MIB)} if fault == "bound" else {}))
    client = redis.Redis.from_url(redis_url)
    if fault == "maxmemory":
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 4 * MIB)
    line = b"x" * 100_000
    answers = []
    ends_at = time.monotonic() + journal.DEADLINE_S
    while time.monotonic() < ends_at and [answer.document["durability"] for answer in answers].count("wal") < 5:
        answers.append(running.edge.post(line, "text/plain"))
        assert answers[-1].status == 202
    ids = {answer.document["batch_id"] for answer in answers}
    journal.drain(redis_url, database_url)
    client.config_set("maxmemory", 256 * MIB)
    until(lambda: running.files() == [], "the WAL to be drained")
    journal.drain(redis_url, database_url)
    assert set(journal.stored(database_url)) == ids


def test_a_full_wal_is_told_with_503_and_takes_batches_again_when_it_is_drained(
    host, redis_server, redis_url, database_url
):
    running = host(SPILLWAY_WAL_MAX_BYTES=str(4 * MIB), SPILLWAY_WAL_SEGMENT_BYTES=str(MIB))
    redis_server.stop()
    answers = [running.edge.post(b"x" * 100_000, "text/plain") for _ in range(60)]
    accepted = [answer.document["batch_id"] for answer in answers if answer.status == 202]
    refused = [answer for answer in answers if answer.status != 202]
    assert len(accepted) >= 20 and refused
    assert {(answer.status, answer.headers["Retry-After"]) for answer in refused} == {(503, "1")}
    pid = running.edge.worker_pid()
    redis_server.start()
    until(lambda: running.files() == [], "the WAL to be drained")
    last = until(lambda: (answer := running.edge.post(b"last", "text/plain")).status == 202 and answer, "202 again")
    assert running.edge.worker_pid() == pid
    until(lambda: running.files() == [], "the WAL to be drained again")
    check_all_stored(redis_url, database_url, [*accepted, last.document["batch_id"]])


def test_write_ahead_mode_acknowledges_from_the_wal_and_ships_behind_it(
    host, redis_server, redis_url, database_url
):
    running = host(SPILLWAY_WAL="always")
    answers = [running.post(number) for number in range(20)]
    assert {answer.document["durability"] for answer in answers} == {"wal"}
    until(lambda: running.files() == [], "the WAL to be drained")
    assert "replay_" not in running.log.replace("replayer_started", "")
    redis_server.stop()
    answers += [running.post(number) for number in range(20, 30)]
    redis_server.start()
    until(lambda: "replay_complete" in running.log, "the replayer to say so after an outage")
    assert "replay_waiting" in running.log and "replay_started" in running.log
    check_all_stored(redis_url, database_url, [answer.document["batch_id"] for answer in answers])


def test_a_damaged_segment_is_quarantined_and_keeps_nothing_behind_it_waiting(
    host, redis_server, redis_url, database_url
):
    running = host()
    running.replayer.kill()  # or it has read the records before they are damaged
    running.replayer.wait(30)
    redis_server.stop()
    ids = [running.post(number).document["batch_id"] for number in range(5)]
    running.edge.kill_worker()
    until(running.edge.is_live, "a new worker")
    segment = running.wal / running.files()[0]
    with segment.open("r+b") as file:
        data = file.read(1 << 16)
        file.seek(data.index(b"event 1"))
        file.write(b"EVENT")
    (running.wal / "00000000000000000000-0000000000000000.wal").write_bytes(b"no segment")
    (running.wal / "00000000000000000001-a-directory.wal").mkdir()
    ids.append(running.post(5).document["batch_id"])
    redis_server.start()
    running.start_replayer()
    until(lambda: running.files() == ["00000000000000000001-a-directory.wal"], "all but the unreadable to be replayed")
    until(lambda: "wal_corrupt" in running.log, "the replayer to say so")
    assert running.log.count("wal_unreadable") == 1
    quarantine = {path.name for path in running.wal.with_name("wal.quarantine").iterdir()}
    assert quarantine == {segment.name, "00000000000000000000-0000000000000000.wal"}
    check_all_stored(redis_url, database_url, [ids[0], *ids[2:]])
