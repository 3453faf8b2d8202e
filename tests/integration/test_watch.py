"""The watch: what stands as metrics and what does not, canaries on every way, and what becomes of late ones."""

import threading
import time
from contextlib import closing

import psycopg2
import pytest
from prometheus_client import REGISTRY

from app import batch, count, stream
from app.appender import Appender
from ops import patrol
from ops.auditor import Auditor
from ops.canary import STREAM, WAL, Canary
from ops.census import Census
from ops.errors import NotReady
from ops.patrol import Patrol
from tests import journal
from tests.chaos.test_kill import metric
from tests.conftest import pick_port
from tests.edge import Edge
from tests.journal import until

TOKEN = "a-token-for-the-test"


def value(name, **labels):
    return REGISTRY.get_sample_value(f"ingest_{name}", labels) or 0


class Change:
    """How much metrics have changed since."""

    def __init__(self):
        self._before = {}

    def __call__(self, name, **labels):
        key = (name, *labels.items())
        return value(name, **labels) - self._before.setdefault(key, 0)

    def note(self, *names):
        for name in names:
            for labels in ({"path": STREAM}, {"path": WAL}, {}):
                self._before[(name, *labels.items())] = value(name, **labels)


@pytest.fixture
def changed():
    change = Change()
    change.note("canary_sent_total", "canary_lost_total", "canary_refused_total", "canary_latency_seconds_count")
    return change


def send(redis_url, *batches):
    with closing(Appender(redis_url, 10)) as appender:
        assert appender.append(batches) == [None] * len(batches)


# The patrol


def test_a_gap_is_shown_once_it_stands_and_until_it_is_mended(client, redis_url, database_url, caplog):
    one = journal.make_batch()
    send(redis_url, one)
    journal.drain(redis_url, database_url)
    watch = Patrol(Auditor(Census(client, database_url, 60), lambda _: None), client)
    watch.step()
    assert value("audit_gap_events") == 0 == value("stream_invariant_broken")
    assert time.time() - value("audit_timestamp_seconds") < 60
    client.hincrby(count.KEY, f"{count.minute_of(one)}:added", 2)
    watch.step()
    assert value("audit_gap_events") == 0, "the next audit has to find it, too"
    for _ in range(2):
        watch.step()
        assert (value("audit_gap_events"), value("audit_unbalanced_buckets")) == (2, 1)
    assert caplog.text.count("audit_unbalanced") == 1
    client.hincrby(count.KEY, f"{count.minute_of(one)}:added", -2)
    watch.step()
    assert (value("audit_gap_events"), value("audit_unbalanced_buckets")) == (0, 0)
    assert caplog.text.count("audit_balanced") == 1


def test_a_stream_that_is_not_as_it_has_to_be_is_shown(client, redis_url, database_url, caplog):
    watch = Patrol(Auditor(Census(client, database_url, 60), lambda _: None), client)
    send(redis_url, journal.make_batch())
    client.xgroup_destroy(stream.STREAM, stream.GROUP)
    for _ in range(2):
        watch.step()
        assert value("stream_invariant_broken") == 1
    stream.ensure_group(client)
    watch.step()
    assert value("stream_invariant_broken") == 0
    assert [record.message.split()[0] for record in caplog.records] == [
        "stream_invariant_broken", "stream_invariant_holds"
    ]


def test_it_waits_for_servers_and_what_it_shows_grows_old(client, database_url, postgres_server, caplog):
    watch = Patrol(Auditor(Census(client, database_url, 60), lambda _: None), client)
    watch.step()
    shown_at = value("audit_timestamp_seconds")
    postgres_server.stop()
    with pytest.raises(NotReady):
        watch.step()
    stop = threading.Event()
    thread = threading.Thread(target=watch.run, args=(stop, 0.1))
    thread.start()
    until(lambda: "audit_waiting" in caplog.text, "it to say so")
    assert value("audit_timestamp_seconds") == shown_at
    postgres_server.start()
    until(lambda: "audit_resumed" in caplog.text, "it to go on")
    stop.set()
    thread.join()
    assert value("audit_timestamp_seconds") > shown_at and caplog.text.count("audit_waiting") == 1


def test_an_audit_takes_a_twentieth_of_the_time_at_most():
    class Slow(Patrol):
        def step(self):
            time.sleep(0.05)

    class Stop(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            self.set()

    waits = []
    Slow(None, None).run(Stop(), 0.1)
    assert waits[0] >= 19 * 0.05
    assert patrol._EVERY_S == 60


# The canary


@pytest.fixture
def house(redis_url, database_url, tmp_path):
    """Ingest, replayer and consumer, as under supervisor."""
    settings = {"SPILLWAY_WAL_DIR": str(tmp_path / "wal"), "SPILLWAY_CANARY_TOKEN": TOKEN}
    (tmp_path / "edge").mkdir()
    edge = Edge(redis_url, tmp_path / "edge", **settings)
    processes = {
        "replayer": journal.start("-m", "workers.replayer", log=tmp_path / "log", REDIS_URL=redis_url, **settings),
        "consumer": journal.start("-m", "workers.consumer", log=tmp_path / "log", REDIS_URL=redis_url,
                                  DATABASE_URL=database_url, SPILLWAY_CONSUMER_NAME="consumer-00"),
    }
    edge.url, edge.processes, edge.wal = f"http://127.0.0.1:{edge.port}", processes, tmp_path / "wal"
    edge.log_of_others = tmp_path / "log"
    yield edge
    edge.stop()
    for process in processes.values():
        process.kill()
        process.wait(30)


def make_canary(url, database_url, **changes):
    """Returns a canary that sends only what it is told to."""
    canary = Canary(url, database_url, TOKEN, **changes)
    canary._due_at = float("inf")
    return canary


def land(canary):
    until(lambda: (canary.step(), not canary.flights)[1], "the canary to be a row")


def rows(database_url, path):
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        try:
            cursor.execute("SELECT count(*) FROM log_events WHERE service = %s AND message = %s",
                           (batch.CANARY, f"canary by the {path}"))
        except psycopg2.errors.UndefinedTable:
            return 0
        return cursor.fetchone()[0]


@pytest.mark.parametrize("path", [STREAM, WAL])
def test_a_canary_becomes_a_row_by_the_way_that_it_is_sent(path, house, changed, client, database_url):
    canary = make_canary(house.url, database_url)
    canary.send(path)
    until(lambda: house.metric("ingest_accepted_batches_total", durability=path) == 1, "it to be counted")
    land(canary)
    assert rows(database_url, path) == 1
    assert changed("canary_sent_total", path=path) == 1 == changed("canary_latency_seconds_count", path=path)
    assert time.time() - value("canary_timestamp_seconds") < 60
    assert changed("canary_refused_total") == 0 == changed("canary_lost_total", path=path)
    # It is no outage: nothing is said, others go on to the stream, and the WAL is empty again.
    assert house.post(b"x", "text/plain").document["durability"] == "stream"
    until(lambda: not list(house.wal.glob("*.wal")), "the segment to be released")
    assert "redis_unavailable" not in house.log and "replay_" not in house.log_of_others.read_text()
    counted = count.read(client.hgetall(count.KEY))
    assert sum(kinds["added"] for kinds in counted.values()) == 2


@pytest.mark.parametrize("given", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", "\u00e9"])
def test_nobody_without_the_token_chooses_the_log(given, house):
    headers = {} if given is None else {batch.CANARY_HEADER.replace("-", "_"): given}
    assert house.post(b"x", "text/plain", **headers).document["durability"] == "stream"


def test_without_a_token_of_its_own_ingest_lets_nobody_choose(redis_url, tmp_path):
    edge = Edge(redis_url, tmp_path)
    try:
        for given in ("", "x"):
            assert edge.post(b"x", "text/plain", Spillway_Canary=given).document["durability"] == "stream"
    finally:
        edge.stop()


def test_a_canary_is_sent_when_it_is_due_and_one_of_ten_by_the_wal(house, changed, database_url):
    now = [1000.0]
    canary = Canary(house.url, database_url, TOKEN, deadline_s=1e6, every_s=30, monotonic=lambda: now[0])
    canary.step()
    assert changed("canary_sent_total", path=STREAM) == 0
    for _ in range(20):
        now[0] += 30
        canary.step()
    assert changed("canary_sent_total", path=STREAM) == 18 and changed("canary_sent_total", path=WAL) == 2
    until(lambda: (rows(database_url, STREAM), rows(database_url, WAL)) == (18, 2), "them to be rows")


def test_a_canary_that_is_late_is_not_lost_until_the_database_has_answered_for_the_deadline(
    house, changed, redis_url, database_url, postgres_server, caplog
):
    now = [1000.0]
    canary = make_canary(house.url, database_url, deadline_s=600, monotonic=lambda: now[0])
    canary.send(STREAM)
    until(lambda: rows(database_url, STREAM), "the consumer to be at work")
    canary.flights.clear()
    house.processes["consumer"].kill()
    house.processes["consumer"].wait(30)
    canary.send(STREAM)

    def pass_by(seconds):
        for _ in range(seconds // 10):
            now[0] += 10
            canary.step()

    pass_by(500)
    assert len(canary.flights) == 1 and changed("canary_lost_total", path=STREAM) == 0, "it is late"
    postgres_server.stop()
    pass_by(5000)
    assert changed("canary_lost_total", path=STREAM) == 0, "an outage loses nothing"
    postgres_server.start()
    pass_by(50)
    assert changed("canary_lost_total", path=STREAM) == 0 and "canary_lost" not in caplog.text
    pass_by(100)
    assert changed("canary_lost_total", path=STREAM) == 1
    pass_by(600)
    assert changed("canary_lost_total", path=STREAM) == 1 and caplog.text.count("canary_lost") == 1
    journal.drain(redis_url, database_url)
    pass_by(10)
    assert not canary.flights and "canary_came_late" in caplog.text
    assert caplog.text.count("canary_waiting") == 1 == caplog.text.count("canary_resumed")


def test_a_canary_that_is_refused_is_counted_and_said_once(changed, database_url, caplog):
    canary = make_canary(f"http://127.0.0.1:{pick_port()}", database_url)
    for _ in range(3):
        canary.send(STREAM)
    assert changed("canary_refused_total") == 3 and not canary.flights
    assert caplog.text.count("canary_refused") == 1


def test_a_canary_whose_row_is_deleted_with_the_ledger_s_row_left_is_not_one_that_became_a_row(
    house, changed, database_url, redis_url
):
    now = [1000.0]
    canary = make_canary(house.url, database_url, deadline_s=60, monotonic=lambda: now[0])
    canary.send(STREAM)
    batch_id = canary.flights[0].batch_id
    until(lambda: batch_id in journal.stored(database_url), "the row")
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM log_events")
    for _ in range(20):
        now[0] += 10
        canary.step()
    assert changed("canary_lost_total", path=STREAM) == 1


# All of it


def test_a_whole_stack_watches_itself(stack):
    running = stack(SPILLWAY_CANARY="on")
    until(lambda: metric(running, "ingest_canary_latency_seconds_count") >= 1, "a canary")
    until(lambda: metric(running, "ingest_canary_latency_seconds_count") >= 2, "the one by the WAL")
    until(lambda: metric(running, "ingest_accepted_batches_total") >= 2, "both to be counted")
    until(lambda: metric(running, "wal_active") == 0, "the WAL to be drained")
    assert time.time() - metric(running, "ingest_canary_timestamp_seconds") < 60
    assert time.time() - metric(running, "ingest_audit_timestamp_seconds") < 120
    for name in ("audit_gap_events", "audit_unbalanced_buckets", "stream_invariant_broken", "canary_lost_total",
                 "canary_refused_total"):
        assert metric(running, f"ingest_{name}") == 0, name
    assert "BALANCED" in running.spillway("audit", "--wait", "30").stdout
    log = (running.state / "log" / "ingest.log").read_text() + (running.state / "log" / "replayer.log").read_text()
    assert "redis_unavailable" not in log and "replay_started" not in log
