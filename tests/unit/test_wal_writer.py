"""The writer and the reader on real files and on failing ones: groups, limits, ownership, and every failing call."""

import errno
import os
import shutil
from random import Random

import pytest

from tests.wal_disk import FailingFiles, die, drain, make_memory_dir, writer_at
from wal.errors import RecordTooLarge, WalClosed, WalError, WalFailed, WalFull
from wal.file import PAGE_BYTES, Files
from wal.reader import SegmentReader, segments, used_bytes

LARGE = bytes(3000)  # two do not fit into a segment


class FullFiles(Files):
    """A disk of which a test says what is left."""

    free = 1 << 30

    def free_bytes(self, directory):
        """What the test says."""
        return self.free

    def allocate(self, fd, size):
        """Half grown, as ext4 leaves it."""
        if size > self.free:
            os.posix_fallocate(fd, 0, size // 2)
            raise OSError(errno.ENOSPC, "full")
        super().allocate(fd, size)


@pytest.fixture
def memory_dir():
    """A directory in memory, where there is such a place: a thousand real syncs would take their time."""
    path = make_memory_dir()
    yield path
    shutil.rmtree(path)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_group_is_one_sync_and_is_read_in_order_by_a_reader_that_follows(tmp_path):
    files = FailingFiles()
    writer = writer_at(tmp_path, files)
    writer.write([b"a"])
    reader = SegmentReader(segments(tmp_path / "log")[0])
    assert [(record.sequence, record.payload) for record in reader.read(1)] == [(1, b"a")]
    files.calls.clear()
    writer.write([b"b", b"", b"c" * 100])
    assert [call for call in files.calls if call != "size"] == ["write", "sync"]
    assert [record.payload for record in reader.read(1)] == [b"b", b""]
    assert [record.payload for record in reader.read(1)] == [b"c" * 100]
    assert reader.read(1) == [] and not reader.is_sealed and not reader.is_drained
    writer.seal()
    assert reader.read(1) == [] and reader.is_sealed and reader.is_drained
    reader.release(tmp_path / "quarantine")
    assert segments(tmp_path / "log") == [] and not (tmp_path / "quarantine").exists()
    assert (writer.synced_count, writer.poisoned_count) == (2, 0)
    writer.close()


def test_nothing_is_opened_before_the_first_write_and_nothing_is_left_after_the_last_release(tmp_path):
    writer = writer_at(tmp_path, Files())
    writer.seal()
    writer.write([])
    writer.write([b"one"])
    writer.close()
    assert drain(tmp_path) == ([b"one"], 0, 0)
    assert names(tmp_path / "log") == names(tmp_path / "spares") == []


def test_a_group_larger_than_a_segment_gets_one_of_its_own_and_a_record_over_the_limit_is_refused(tmp_path):
    writer = writer_at(tmp_path, Files(), max_record_bytes=20_000)
    writer.write([b"small"])
    writer.write([b"x" * 20_000, b"y" * 9_000])
    with pytest.raises(RecordTooLarge) as caught:
        writer.write([b"not this", b"x" * 20_001])
    assert (caught.value.size_bytes, caught.value.max_bytes) == (20_001, 20_000)
    writer.close()
    assert drain(tmp_path) == ([b"small", b"x" * 20_000, b"y" * 9_000], 0, 0)


def test_over_its_budget_the_log_is_full_and_keeps_nothing_until_the_reader_releases(tmp_path):
    writer = writer_at(tmp_path, Files(), max_bytes=8192)
    writer.write([LARGE])
    writer.write([LARGE])
    with pytest.raises(WalFull):
        writer.write([LARGE])
    assert used_bytes(tmp_path / "log") == 8192
    assert drain(tmp_path) == ([LARGE, LARGE], 0, 0)
    writer.write([b"again"])
    writer.close()
    assert drain(tmp_path) == ([b"again"], 0, 0)


def test_a_full_disk_does_not_stop_the_current_segment_nor_the_spare_and_leaves_no_half_grown_file(tmp_path):
    files = FullFiles()
    writer = writer_at(tmp_path, files)
    writer.write([LARGE])
    files.free = 0
    writer.write([b"into the same segment"])
    writer.write([LARGE])  # into the spare
    with pytest.raises(WalFull):
        writer.write([LARGE])
    files.free_bytes = lambda directory: 1 << 30  # others took it between the question and the allocation
    with pytest.raises(WalFull):
        writer.write([LARGE])
    assert names(tmp_path / "spares") == []
    files.free = 1 << 30
    writer.write([b"again"])
    writer.close()
    assert drain(tmp_path) == ([LARGE, b"into the same segment", LARGE, b"again"], 0, 0)


def test_what_must_stay_free_on_the_disk_stays_free(tmp_path):
    files = FullFiles()
    files.free = 10_000
    with pytest.raises(WalFull):
        writer_at(tmp_path, files, min_free_bytes=6_000).write([b"a"])
    writer_at(tmp_path, files, min_free_bytes=5_900).write([b"a"])


class SyncFails(Files):
    """Fails the syncs of published segments with the given numbers, and remembers what it was asked."""

    def __init__(self, fails, number):
        self.synced, self._fails, self._number, self._count = [], fails, number, 0

    def sync(self, fd):
        """Fails as asked."""
        if ".draft" in os.readlink(f"/proc/self/fd/{fd}"):
            return super().sync(fd)
        self._count += 1
        self.synced.append(os.fstat(fd).st_ino)
        if self._count in self._fails:
            raise OSError(self._number, "the test's")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_failed_sync_poisons_its_segment_and_the_group_is_written_again_to_another(tmp_path, number):
    files = SyncFails({2}, number)
    writer = writer_at(tmp_path, files)
    writer.write([b"before"])
    writer.write([b"twice", b"both"])
    writer.write([b"after"])
    poisoned, *others = files.synced[1:]
    assert poisoned not in others and len(set(others)) == 1
    assert (writer.poisoned_count, writer.synced_count) == (1, 3)
    writer.close()
    assert drain(tmp_path) == ([b"before", b"twice", b"both", b"twice", b"both", b"after"], 0, 0)


def test_a_second_failed_sync_fails_the_group_and_the_next_group_has_a_segment_of_its_own(tmp_path):
    files = SyncFails({2, 3}, errno.EIO)
    writer = writer_at(tmp_path, files)
    writer.write([b"before"])
    with pytest.raises(WalFailed):
        writer.write([b"lost"])
    writer.write([b"after"])
    assert len(set(files.synced)) == 3 and writer.poisoned_count == 2
    writer.close()
    assert drain(tmp_path)[0] == [b"before", b"lost", b"lost", b"after"]


def test_a_failed_sync_on_a_full_disk_is_a_failure_and_not_full_because_some_of_it_was_kept(tmp_path):
    writer = writer_at(tmp_path, SyncFails({2}, errno.ENOSPC), max_bytes=4096)
    writer.write([b"before"])
    with pytest.raises(WalFailed):
        writer.write([b"after"])


@pytest.mark.parametrize("before", [b"small", bytes(1 << 20)])
def test_something_that_is_no_bytes_seals_the_segment_and_nothing_of_its_group_is_ever_seen(tmp_path, before):
    writer = writer_at(tmp_path, Files(), segment_bytes=4 << 20, max_bytes=1 << 30)
    with pytest.raises(TypeError):
        writer.write([before, before, "text"])
    writer.write([b"after"])
    writer.close()
    assert drain(tmp_path) == ([b"after"], 0, 0)


def attempt(root, files):
    """Writes, reads and releases, going on after each of the library's errors. Returns confirmed and delivered."""
    confirmed, delivered = [], []
    writer = writer_at(root, files, max_bytes=6 * 4096)
    for group in ([b"a"], [b"b", LARGE], [b"c" + LARGE], [b"d" * 9000], [b"e"]):
        try:
            writer.write(group)
            confirmed += group
        except WalError:
            pass
        try:
            drain(root, files, payloads=delivered)
        except WalError:
            pass
    writer.close()
    return confirmed, delivered


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_whichever_calls_fail_only_the_librarys_errors_come_out_and_what_was_confirmed_is_there(
    memory_dir, number, width
):
    first = 1
    while True:
        root = memory_dir / str(first)
        root.mkdir()
        files = FailingFiles(range(first, first + width), number)
        confirmed, delivered = attempt(root, files)
        after = writer_at(root, Files())
        after.write([b"after"])
        after.close()
        payloads, _, corrupt_count = drain(root)
        assert set(confirmed) | {b"after"} <= {*delivered, *payloads} and corrupt_count == 0, first
        assert names(root / "log") == names(root / "spares") == [], first
        if len(files.calls) < first:
            break
        first += 1
    assert first > 40


def test_a_closed_writer_refuses_and_a_forked_child_neither_writes_nor_takes_the_lock_away(tmp_path):
    writer = writer_at(tmp_path, Files())
    writer.write([b"parent"])
    child = os.fork()
    if child == 0:
        refused = 0
        for call in (lambda: writer.write([b"child"]), writer.seal, writer.close):
            try:
                call()
            except WalClosed:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    reader = SegmentReader(segments(tmp_path / "log")[0])
    assert not reader.is_sealed
    writer.write([b"parent still"])
    writer.close()
    assert [record.payload for record in reader.read(100)] == [b"parent", b"parent still"] and reader.is_drained
    reader.close()
    with pytest.raises(WalClosed):
        writer.write([b"late"])


def test_a_child_that_outlives_its_parents_seal_does_not_hold_the_segment(tmp_path):
    writer = writer_at(tmp_path, Files())
    writer.write([b"parent"])
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    try:
        writer.seal()
        assert drain(tmp_path) == ([b"parent"], 0, 0)
    finally:
        os.close(theirs)
        os.waitpid(child, 0)
        os.close(ours)
        writer.close()


def test_two_writers_and_one_reader_share_a_directory_and_the_budget(tmp_path):
    writers = [writer_at(tmp_path, Files(), max_bytes=3 * 4096) for _ in range(2)]
    for number in range(20):
        writers[number % 2].write([b"%d" % number])
    assert len(segments(tmp_path / "log")) == 2
    writers[0].write([LARGE, b"x" * 900])
    with pytest.raises(WalFull):
        writers[1].write([LARGE, b"x" * 900])
    for writer in writers:
        writer.close()
    payloads, torn_count, corrupt_count = drain(tmp_path)
    assert {*payloads} == {b"%d" % number for number in range(20)} | {LARGE, b"x" * 900}
    assert (torn_count, corrupt_count) == (0, 0)


def test_drafts_of_dead_writers_are_removed_and_those_of_live_ones_stay(tmp_path):
    dead, live = writer_at(tmp_path, Files()), writer_at(tmp_path, Files())
    dead.write([b"dead"])
    live.write([b"live"])
    die(dead)
    assert len(names(tmp_path / "spares")) == 2
    writer_at(tmp_path, Files()).write([b"new"])
    assert live._spare.path.name in names(tmp_path / "spares") and len(names(tmp_path / "spares")) == 2
    live.close()


def test_only_what_was_read_to_its_end_is_released(tmp_path):
    writer = writer_at(tmp_path, Files())
    writer.write([b"a"])
    writer.close()
    reader = SegmentReader(segments(tmp_path / "log")[0])
    with pytest.raises(AssertionError):
        reader.release(tmp_path / "quarantine")
    reader.close()
    reader.close()


SIZES = (1, 300, 5_000, 40_000, 70_000, 300_000, 700_000, 1_500_000)


class WatchedFiles(Files):
    """Fails where a page would be filled over something, and keeps what the disk was given before the sync."""

    def __init__(self):
        self.begun = []

    def fill(self, fd, start, stop, step):
        """Looks, then fills."""
        assert start % PAGE_BYTES == 0 and stop <= os.fstat(fd).st_size
        assert not os.pread(fd, stop - start, start).strip(b"\0"), "filled over a record"
        super().fill(fd, start, stop, step)

    def begin_sync(self, fd, start, stop):
        """Remembers what was there."""
        self.begun.append((os.fstat(fd).st_ino, start, os.pread(fd, stop - start, start)))
        super().begin_sync(fd, start, stop)


def test_groups_of_all_sizes_in_any_order_are_stored_whole_and_what_the_disk_has_begun_to_write_stays_so(tmp_path):
    files, chance, written = WatchedFiles(), Random(1), []
    writer = writer_at(tmp_path, files, segment_bytes=4 << 20, max_bytes=1 << 30)
    for _ in range(120):
        group = [chance.randbytes(chance.choice(SIZES)) for _ in range(chance.choice((1, 1, 2, 9)))]
        writer.write(group)
        written += group
    writer.close()
    content = {path.stat().st_ino: path.read_bytes() for path in segments(tmp_path / "log")}
    assert len(content) > 5 and len(files.begun) > 50
    assert all(content[inode].startswith(data, start) for inode, start, data in files.begun)
    assert drain(tmp_path) == (written, 0, 0)


def fail_once(files, call, result=None):
    """Has the next call of that name fail; or, with a result, return that."""
    def fail(*arguments):
        delattr(files, call)
        if result is None:
            raise OSError(errno.EIO, "the test's")
        return result

    setattr(files, call, fail)


@pytest.mark.parametrize("call, size", [("fill", 300), ("write", 300_000), ("begin_sync", 300_000)])
def test_a_disk_that_fails_while_a_group_is_stored_poisons_the_segment_and_the_group_goes_to_another(
    tmp_path, call, size
):
    files = Files()
    writer = writer_at(tmp_path, files, segment_bytes=4 << 20, max_bytes=1 << 30)
    writer.write([b"before" * 20_000])
    group = [bytes([number]) * size for number in range(5)]
    fail_once(files, call)
    writer.write(group)
    assert (writer.poisoned_count, writer.synced_count) == (1, 2)
    writer.close()
    assert drain(tmp_path) == ([b"before" * 20_000, *group], 0, 0)


@pytest.mark.parametrize("size", [70_000, 3_000_000])
def test_a_disk_that_takes_less_than_it_was_given_poisons_the_segment_and_the_group_goes_to_another(tmp_path, size):
    files = Files()
    writer = writer_at(tmp_path, files, segment_bytes=16 << 20, max_bytes=1 << 30)
    writer.write([b"before"])
    fail_once(files, "write", 100)
    writer.write([bytes(size)] * 2)
    assert (writer.poisoned_count, writer.synced_count) == (1, 2)
    writer.close()
    assert drain(tmp_path) == ([b"before", bytes(size), bytes(size)], 0, 0)


def test_a_reader_sees_nothing_of_a_large_group_until_all_of_it_is_there(tmp_path):
    files, seen = Files(), []
    writer = writer_at(tmp_path, files, segment_bytes=8 << 20, max_bytes=1 << 30)
    writer.write([b"before"])
    reader = SegmentReader(segments(tmp_path / "log")[0])
    assert len(reader.read(1)) == 1

    def write(*arguments):
        seen.append(reader.read(1))
        count = Files.write(files, *arguments)
        seen.append(reader.read(1))
        return count

    files.write = write
    writer.write([bytes([number]) * 700_000 for number in range(5)])
    assert len(seen) > 4 and not any(seen)
    assert len(reader.read(1 << 30)) == 5
    reader.close()
    writer.close()
