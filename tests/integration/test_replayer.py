"""The replayer on a WAL whose disk or directory fails it, and a real Redis: what can be shipped is, and all said once.
"""

import errno
import logging
import os
from contextlib import suppress

import pytest
import redis

from app import stream
from app.appender import Appender
from app.batch import to_record
from tests import journal
from tests.wal_disk import damage, writer_at
from wal.file import PAGE_BYTES, Files
from wal.reader import segments
from workers.replayer import Replayer
from workers.witness import Witness

COUNT = 12


@pytest.fixture
def replay(tmp_path, redis_url):
    """A factory of replayers on the log in `tmp_path`."""
    def make(**settings):
        return Replayer(tmp_path / "log", tmp_path / "quarantine", Appender(redis_url, 5), Witness(redis_url, 5),
                        1 << 30, **settings)
    return make


@pytest.fixture
def said(caplog):
    """How often an event was logged."""
    caplog.set_level(logging.INFO)
    return lambda event: sum(event in record.getMessage() for record in caplog.records)


def write(root, count=COUNT):
    """Returns the ids of the batches of a new segment."""
    batches = [journal.make_batch(f"batch {number}", count=20) for number in range(count)]
    writer = writer_at(root, Files(), segment_bytes=1 << 16)
    for one in batches:
        writer.write([to_record(one)])
    writer.close()
    return [one.batch_id for one in batches]


def shipped(client):
    """Returns the ids of the batches in the stream."""
    return [fields[b"batch_id"].decode() for _, fields in client.xrange(stream.STREAM)]


def turn(replayer, count=20):
    """Has it do so many rounds."""
    for _ in range(count):
        replayer.step()


class BadPage:
    """Has the disk fail to read a page of one file, as the kernel does: what is before it comes short."""

    def __init__(self, monkeypatch, path, page, times=1 << 30):
        self.times = times
        self._file, self._start, self._pread = path.stat().st_ino, page * PAGE_BYTES, os.pread
        monkeypatch.setattr(os, "pread", self.pread)

    def pread(self, fd, count, offset):
        """Reads."""
        is_met = offset < self._start + PAGE_BYTES and offset + count > self._start
        if not is_met or not self.times or os.fstat(fd).st_ino != self._file:
            return self._pread(fd, count, offset)
        if offset < self._start:
            return self._pread(fd, self._start - offset, offset)
        self.times -= 1
        raise OSError(errno.EIO, "the test's")


def test_an_error_that_passes_loses_nothing(tmp_path, replay, client, monkeypatch, said):
    ids = write(tmp_path)
    path, = segments(tmp_path / "log")
    BadPage(monkeypatch, path, 1, times=3)
    replayer = replay()
    journal.until(lambda: (replayer.step(), not path.exists())[1], "the segment to be released")
    assert sorted(shipped(client)) == sorted(ids) and not (tmp_path / "quarantine").exists()
    assert said("wal_unreadable") <= 1 and not said("wal_corrupt")


def test_an_error_that_stays_keeps_nothing_else_and_the_segment_until_it_is_given_up_whole(
    tmp_path, replay, client, monkeypatch, said
):
    ids = write(tmp_path) + write(tmp_path)
    path, other = segments(tmp_path / "log")
    content = path.read_bytes()
    bad = BadPage(monkeypatch, path, 2)
    replayer = replay()
    turn(replayer)
    lost = {*ids} - {*shipped(client)}
    assert 1 <= len(lost) <= 4 and lost < {*ids[1:COUNT - 1]}
    assert path.exists() and not other.exists() and said("wal_unreadable") == 1
    tries = bad.times
    turn(replayer)
    assert bad.times == tries, "tried again at once"
    impatient = replay(patience_s=0.0)
    turn(impatient)
    assert not path.exists() and (said("wal_given_up"), said("wal_corrupt")) == (1, 1)
    bad.times = 0
    assert (tmp_path / "quarantine" / path.name).read_bytes() == content
    (tmp_path / "quarantine" / path.name).rename(path)  # once the disk can read it, it is replayed as any other
    turn(replay())
    assert {*shipped(client)} == {*ids} and not path.exists()


def test_a_segment_that_somebody_takes_away_is_closed_and_said_once_and_the_rest_is_complete(
    tmp_path, replay, client, monkeypatch, said
):
    write(tmp_path)
    path, = segments(tmp_path / "log")
    BadPage(monkeypatch, path, 2)
    replayer = replay()
    turn(replayer)
    assert str(path) in open_files() and not said("replay_complete")
    path.rename(tmp_path / "moved")
    turn(replayer)
    assert not {str(path), str(tmp_path / "moved")} & open_files()
    assert (said("wal_segment_gone"), said("replay_complete")) == (1, 1)


def open_files():
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return found


def test_a_release_that_fails_is_said_once_is_not_tried_at_every_turn_and_keeps_nothing_behind_it(
    tmp_path, replay, client, monkeypatch, said
):
    ids = write(tmp_path) + write(tmp_path)
    path, other = segments(tmp_path / "log")
    damage(path)
    (tmp_path / "quarantine").write_text("no directory")
    tries, move = [], Files.move
    monkeypatch.setattr(Files, "move", lambda files, *paths: (tries.append(paths), move(files, *paths)))
    replayer = replay()
    turn(replayer)
    assert path.exists() and not other.exists() and sorted(shipped(client)) == sorted(ids[1:])
    assert len(tries) <= 1 and said("wal_not_released") == 1
    (tmp_path / "quarantine").unlink()
    journal.until(lambda: (replayer.step(), not path.exists())[1], "it to be tried again")
    assert (tmp_path / "quarantine" / path.name).exists() and said("wal_corrupt") == 1


def test_a_redis_that_was_started_anew_is_shipped_again_what_it_may_have_lost(
    tmp_path, replay, redis_server, client, monkeypatch, said
):
    ids = write(tmp_path)
    path, = segments(tmp_path / "log")
    bad = BadPage(monkeypatch, path, 2)
    replayer = replay()
    turn(replayer)
    assert path.exists()
    redis_server.kill()
    redis_server.start()
    bad.times = 0

    def is_released():
        with suppress(stream.StreamUnavailable):
            replayer.step()
        return not path.exists()

    journal.until(is_released, "the segment to be released")
    found = shipped(redis.Redis.from_url(redis_server.url))
    assert {*found} == {*ids} and len(found) > len(ids) and said("replay_again") == 1
