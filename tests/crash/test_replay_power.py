"""Hand-over 3 on a Redis that confirms before it has synced, when its disk loses what was not: the WAL holds on to it.
"""

from contextlib import contextmanager

import pytest

from app import stream
from app.batch import to_record
from tests import journal
from tests.machine import Ext4, injected
from tests.weak_redis import weak_redis
from wal.writer import Writer
from workers.witness import Shipment, Witness

COUNT = 20
WEAK = [("redis 7.0", "everysec"), ("redis 7.0", "no"), ("valkey 9.1", "everysec"), ("redis 8.2", "everysec"),
        ("redis 8.2", "no")]


class Host:
    """A WAL with batches in it, and the replayer that ships them."""

    def __init__(self, place, url):
        self.directory = place / "wal"
        self.directory.mkdir()
        self.batches = [journal.make_batch(f"batch {number}") for number in range(COUNT)]
        writer = Writer(self.directory, place / "spare", segment_bytes=1 << 16, max_bytes=1 << 30, min_free_bytes=0)
        for one in self.batches:
            writer.write([to_record(one)])
        writer.close()
        self._log = place / "log"
        self._replayer = journal.start("-m", "workers.replayer", log=self._log, REDIS_URL=url,
                                       SPILLWAY_WAL_DIR=str(self.directory))

    @property
    def log(self):
        return self._log.read_text()

    @property
    def is_drained(self):
        return not [*self.directory.iterdir()]

    def stop(self):
        self._replayer.terminate()
        self._replayer.wait(journal.DEADLINE_S)


@contextmanager
def host(place, url):
    running = Host(place, url)
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize("name, fsync", WEAK)
def test_what_redis_has_taken_and_not_synced_stays_in_the_wal_and_is_shipped_again_after_a_power_cut(
    name, fsync, tmp_path, database_url
):
    with Ext4(tmp_path) as disk, weak_redis(name, disk.root, appendonly="yes", appendfsync=fsync) as (server, client):
        client.set("before", 1)
        with host(tmp_path, server.url) as running:
            with injected(server.pid, "fdatasync:delay_enter=20s"):  # nothing of what follows is synced
                journal.until(lambda: running.is_drained or "wal_kept" in running.log, "the batches to be shipped")
                assert client.xlen(stream.STREAM) == COUNT
                assert not running.is_drained, "released, and on no disk"
                disk.cut()
            server.kill()
            disk.reboot()
            server.start()
            journal.until(lambda: client.xlen(stream.STREAM) == COUNT, "the batches to be shipped again")
            assert "replay_again" in running.log
            journal.drain(server.url, database_url)
            journal.until(lambda: running.is_drained, "the WAL to be drained")
            assert journal.stored(database_url) == {
                one.batch_id: journal.messages(one, f"batch {number}") for number, one in enumerate(running.batches)
            }


@pytest.mark.parametrize("name, fsync, is_told", [("redis 8.2", "everysec", True), ("redis 7.0", "always", False)])
def test_what_redis_says_that_it_has_synced_leaves_the_wal_without_a_consumer_and_survives_a_power_cut(
    name, fsync, is_told, tmp_path
):
    with Ext4(tmp_path) as disk, weak_redis(name, disk.root, appendonly="yes", appendfsync=fsync) as (server, client):
        with host(tmp_path, server.url) as running:
            journal.until(lambda: running.is_drained, "the WAL to be drained")
            disk.cut()
            server.kill()
            assert ("until=sync" in running.log) == is_told and "until=load" not in running.log
        disk.reboot()
        server.start()
        assert client.xlen(stream.STREAM) == COUNT


@pytest.mark.parametrize("options, level", [
    ({"appendonly": "no"}, "off"),
    ({"appendonly": "yes", "appendfsync": "everysec"}, "everysec"),
    ({"appendonly": "yes", "appendfsync": "always", "no_appendfsync_on_rewrite": "yes"}, "no"),
    ({"appendonly": "yes", "appendfsync": "always", "user": "default on nopass ~* +@all -config"}, "unknown"),
])
def test_where_nothing_else_can_confirm_the_wal_stays_until_the_stream_has_let_go(
    options, level, tmp_path, database_url
):
    with weak_redis("redis 7.0", tmp_path, **options) as (server, client), host(tmp_path, server.url) as running:
        journal.until(lambda: "wal_kept" in running.log, "the replayer to say so")
        assert f"appendfsync={level}" in running.log and "until=load" in running.log
        assert not running.is_drained and client.xlen(stream.STREAM) == COUNT
        first, = client.xrange(stream.STREAM, count=1)
        client.xdel(stream.STREAM, *(entry for entry, _ in client.xrange(stream.STREAM)[1:]))
        sent = client.execute_command("XADD", stream.STREAM, "*", *stream.fields_of(journal.make_batch("later")))
        assert not running.is_drained  # one is left; what came later does not matter
        client.xdel(stream.STREAM, first[0])
        journal.until(lambda: running.is_drained, "the WAL to be drained")
        assert [entry for entry, _ in client.xrange(stream.STREAM)] == [sent]


def test_what_lay_in_the_stream_before_and_stays_there_keeps_no_segment(tmp_path):
    with weak_redis("redis 7.0", tmp_path, appendonly="no") as (server, client):
        held, = journal.append(client, journal.make_batch("set aside, and held"))
        with host(tmp_path, server.url) as running:
            journal.until(lambda: "wal_kept" in running.log, "the batches to be shipped")
            assert not running.is_drained
            client.xdel(stream.STREAM, *(entry for entry, _ in client.xrange(stream.STREAM, min=b"(" + held)))
            journal.until(lambda: running.is_drained, "the WAL to be drained")
        assert [entry for entry, _ in client.xrange(stream.STREAM)] == [held]


def test_a_segment_that_is_confirmed_and_cannot_be_released_keeps_no_other(tmp_path):
    with weak_redis("redis 8.2", tmp_path, appendonly="yes", appendfsync="everysec") as (server, client):
        journal.append(client, journal.make_batch())
        witness = Witness(server.url, 5, poll_s=0)
        first, second = (Shipment({client.info("server")["run_id"]}) for _ in range(2))
        journal.until(lambda: first in witness.confirmed([first]), "the first to be synced")
        journal.until(lambda: second in witness.confirmed([first, second]), "the second to be synced")


def test_a_level_that_changes_while_the_replayer_is_connected_is_seen_before_the_release(tmp_path):
    with weak_redis("redis 7.0", tmp_path, appendonly="yes", appendfsync="always") as (server, client):
        with host(tmp_path, server.url) as running:
            journal.until(lambda: running.is_drained, "the WAL to be drained")
            client.config_set("appendfsync", "everysec")
            writer = Writer(running.directory, tmp_path / "spare", segment_bytes=1 << 16, max_bytes=1 << 30,
                            min_free_bytes=0)
            writer.write([to_record(journal.make_batch("later"))])
            writer.close()
            journal.until(lambda: running.is_drained or "wal_kept" in running.log, "it to be shipped")
            assert not running.is_drained
            client.config_set("appendfsync", "always")
            journal.until(lambda: running.is_drained, "the WAL to be drained")
