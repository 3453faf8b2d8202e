"""What is read when it is scraped, from real servers: the gauges of the alerts, and that no scrape waits for long."""

import socket
import time
from contextlib import closing

import pytest
import redis

from app import stream
from app.admin import BoundCollector, StreamCollector, WalCollector
from app.settings import Settings
from ops.admin import ProcessCollector
from tests import journal
from tests.letter import bury


def read(collector):
    """Returns the values by metric, and by label where there is one."""
    return {
        (sample.name, *sample.labels.values()) if sample.labels else sample.name: sample.value
        for family in collector.collect() for sample in family.samples
    }


@pytest.fixture
def silent_socket(tmp_path):
    """A path where somebody listens and never says a word."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "supervisor.sock"))
        listener.listen()
        yield tmp_path


def test_an_empty_redis_has_no_age(redis_url):
    with closing(redis.Redis.from_url(redis_url)) as client:
        found = read(StreamCollector(client))
    assert found.pop("ingest_redis_up") == 1
    assert len(found) == 7 and not any(found.values())


def test_the_stream_and_the_dead_letters_have_size_and_age(client):
    now_ms = int(time.time() * 1000)
    for age_s in (600, 30):
        client.xadd(stream.STREAM, {"payload": "x" * 100_000}, id=f"{now_ms - age_s * 1000}-0")
    client.xreadgroup(stream.GROUP, "consumer-00", {stream.STREAM: ">"}, count=1)
    bury(client, journal.make_batch(), letter_id=f"{now_ms - 7_200_000}-0")
    found = read(StreamCollector(client))
    assert (found["ingest_stream_entries"], found["ingest_stream_pending_entries"]) == (2, 1)
    assert found["ingest_stream_bytes"] > 200_000 and found["ingest_dead_letter_bytes"] > 100
    assert 600 <= found["ingest_stream_oldest_entry_age_seconds"] < 660
    assert 7200 <= found["ingest_dead_letter_oldest_age_seconds"] < 7260


def test_a_redis_that_is_stopped_leaves_a_scrape_that_ends(redis_server):
    with closing(redis.Redis(connection_pool=stream.pool(redis_server.url, 1))) as client:
        redis_server.pause()
        assert read(StreamCollector(client)) == {"ingest_redis_up": 0}


def test_the_wal_tells_its_disk_and_its_quarantine(tmp_path):
    log, quarantine = tmp_path / "wal", tmp_path / "wal.quarantine"
    collector = WalCollector(log, quarantine)
    assert read(collector)["wal_active"] == 0 and "ingest_wal_disk_bytes" not in read(collector)
    log.mkdir()
    quarantine.mkdir()
    (quarantine / "1.wal").touch()
    found = read(collector)
    assert found["ingest_wal_quarantined_segments"] == 1
    assert 0 <= found["ingest_wal_disk_free_bytes"] <= found["ingest_wal_disk_bytes"]


def test_bounds_are_those_of_the_settings():
    found = read(BoundCollector(Settings(wal="always", wal_max_bytes=4096)))
    assert (found["ingest_wal_always"], found["ingest_wal_max_bytes"]) == (1, 4096)
    assert found["ingest_stream_max_bytes"] == Settings().stream_max_bytes


def test_where_no_supervisor_is_none_is_missed(tmp_path):
    assert not read(ProcessCollector(tmp_path))


def test_a_supervisord_that_is_silent_or_gone_leaves_a_scrape_that_ends(silent_socket):
    (silent_socket / "supervisord.conf").touch()
    assert read(ProcessCollector(silent_socket, 0.2)) == {"ingest_supervisor_up": 0}
    (silent_socket / "supervisor.sock").unlink()
    assert read(ProcessCollector(silent_socket, 0.2)) == {"ingest_supervisor_up": 0}


def test_a_stack_tells_of_each_process_and_of_one_that_is_stopped(stack):
    running = stack(SPILLWAY_CONSUMERS="1")
    found = read(ProcessCollector(running.state))
    names = {"redis", "postgres", "keeper", "ingest", "admin", "replayer", "consumers"}
    assert {name[1] for name in found if name[0] == "ingest_process_running"} >= names - {"consumers"}
    assert found["ingest_supervisor_up"] == found["ingest_process_running", "consumers:consumer-00"] == 1
    running.supervisorctl("stop", "replayer")
    found = read(ProcessCollector(running.state))
    assert found["ingest_process_running", "replayer"] == found["ingest_process_uptime_seconds", "replayer"] == 0
