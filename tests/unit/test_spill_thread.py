"""The edge's way into the WAL, on real files in a real thread: a disk that hangs, or is full, and is well again."""

import threading
from contextlib import contextmanager

import gevent
import pytest
from gevent.threadpool import ThreadPool

from app.batch import Batch, from_record
from app.errors import NotDurable
from app.spill import Spill
from tests.unit.test_committer import until
from tests.wal_disk import drain, writer_at
from wal.file import Files

DEADLINE_S = 1.0


class Disk(Files):
    """Real files whose calls of one name hang as long as a test says, or that have no room."""

    def __init__(self):
        self.hangs_at = ""
        self.begun = 0
        self.free = 1 << 30
        self._goes_on = threading.Event()

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "hangs_at"):
            self.begun += 1
            object.__getattribute__(self, "_goes_on").wait()
        return super().__getattribute__(name)

    def free_bytes(self, directory):
        """What the test says."""
        return self.free

    @contextmanager
    def hanging(self, name):
        """Has a call hang from here to the end."""
        self._goes_on.clear()
        self.hangs_at = name
        try:
            yield
        finally:
            self.hangs_at = ""
            self._goes_on.set()


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def spill(tmp_path, disk):
    return Spill(writer_at(tmp_path, disk, segment_bytes=1 << 16), ThreadPool(1).spawn, DEADLINE_S)


def batch(name):
    return Batch(name, 1, "", "", b"row")


def refused(call, *arguments):
    """Requires that a call is refused, and returns why."""
    with pytest.raises(NotDurable) as found:
        call(*arguments)
    return found.value.cause


@pytest.mark.parametrize("call", ["write", "sync", "size"])
def test_a_disk_that_hangs_costs_one_group_the_deadline_and_the_others_nothing_until_it_is_back(
    call, spill, disk, tmp_path, caplog
):
    spill.append([batch("before")])
    with disk.hanging(call):
        assert refused(spill.append, [batch("in hand")]) == "wal_overdue"
        assert spill.busy_s() >= DEADLINE_S
        for number in range(100):
            with gevent.Timeout(DEADLINE_S):
                assert refused(spill.append, [batch(str(number))]) == refused(spill.check) == "wal_overdue"
        spill.seal()
        assert disk.begun == 1
    until(lambda: not spill.busy_s())
    spill.append([batch("after")])
    spill.seal()
    until(lambda: not spill.busy_s())
    # What was in hand may be stored or not: its client was told neither.
    assert [from_record(record).batch_id for record in drain(tmp_path)[0]] == ["before", "in hand", "after"]
    assert [record.message.split()[0] for record in caplog.records] == ["wal_disk_hangs", "wal_disk_answers"]


def test_a_seal_that_hangs_keeps_nobody_waiting_but_who_needs_the_disk(spill, disk):
    spill.append([batch("a")])
    with disk.hanging("store"):
        with gevent.Timeout(DEADLINE_S):
            spill.seal()
        until(lambda: disk.begun)
        spill.seal()
        assert refused(spill.append, [batch("b")]) == "wal_overdue"
        with gevent.Timeout(DEADLINE_S):
            assert refused(spill.append, [batch("c")]) == "wal_overdue"
    until(lambda: not spill.busy_s())
    spill.append([batch("d")])


def test_whether_there_is_room_is_asked_of_the_disk_and_costs_no_segment(spill, disk, tmp_path):
    spill.check()
    assert list((tmp_path / "log").iterdir()) == []
    spill.append([batch("a")])
    disk.free = 0
    spill.check()  # in the segment at hand
    spill.append([batch("b")])
    spill.seal()
    spill.check()  # in the spare one
    large = Batch("c", 1, "", "", bytes(1 << 17))
    assert refused(spill.append, [large]) == "wal_full"
    assert refused(spill.append, [batch("d")]) == refused(spill.check) == "wal_full"
    disk.free = 1 << 30
    spill.check()
    spill.append([large])
