"""Disks for the tests of the log: some that lose what was not synced, and one that fails at a chosen call."""

import ctypes
import errno
import os
import tempfile
from pathlib import Path
from random import Random

from ops.chaos.disk import cut_power
from wal import frame
from wal.file import PAGE_BYTES as REAL_PAGE_BYTES, Files
from wal.reader import SegmentReader, segments
from wal.writer import Writer

PAGE_BYTES = 512  # smaller than real ones, so that small segments have many
# What may fail on a real disk; the rest only looks at memory, or its failure has no meaning (closing, unlocking).
FALLIBLE = (
    "make_directory", "names", "allocated_bytes", "free_bytes", "create", "remove_abandoned", "allocate", "map", "fill",
    "write", "begin_sync", "sync", "sync_directory", "rename", "unlink", "open", "size", "read", "separate",
    "is_locked", "move",
)
# What changes the disk: between two of these, one moment of a power cut is like another.
CHANGING = ("make_directory", "create", "allocate", "map", "sync", "sync_directory", "rename", "unlink", "move")
WAIT_BEFORE_WRITE_AND_AFTER = 7  # flags of sync_file_range(2)


def make_memory_dir():
    """Returns a new directory, in memory where there is such a place: the disk is simulated."""
    return Path(tempfile.mkdtemp(prefix="wal", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def writer_at(root, files, **changes):
    """Returns a writer of small segments under `root`."""
    limits = {"segment_bytes": 4096, "max_bytes": 1 << 20, "min_free_bytes": 0, **changes}
    return Writer(root / "log", root / "spares", files=files, **limits)


def drain(root, files=Files(), is_released=True, payloads=None):
    """Reads and releases every sealed segment. Returns the payloads, torn_count and corrupt_count.

    `payloads` keeps what was read should anything raise.
    """
    payloads = [] if payloads is None else payloads
    torn_count, corrupt_count = 0, 0
    for path in segments(root / "log", files):
        reader = SegmentReader(path, files)
        while records := reader.read(10_000):
            payloads += [record.payload for record in records]
        torn_count += reader.torn_count
        corrupt_count += reader.corrupt_count
        if reader.is_drained and is_released:
            reader.release(root / "quarantine")
        reader.close()
    return payloads, torn_count, corrupt_count


def die(writer):
    """Ends the writer as SIGKILL would: its locks go and nothing is sealed or removed."""
    for segment in (writer._segment, writer._spare):
        if segment:
            segment._close()
    writer._segment = writer._spare = None
    writer._is_closed = True


def damage(path):
    """Changes the first byte of a segment's first record, durably."""
    with path.open("r+b", buffering=0) as segment:
        segment.seek(frame.HEADER_BYTES + frame.FRAME_BYTES)
        segment.write(b"?")
        os.fsync(segment.fileno())


class SameFiles(Files):
    """Real files with known names, so that their bytes can be compared."""

    def now_ns(self):
        """The moment of the worked example."""
        return 1_700_000_000_000_000_000

    def random_bytes(self, count):
        """Counts from 0."""
        return bytes(range(count))


class FailingFiles(Files):
    """Fails the calls whose numbers (from 1) are given.

    Attributes:
        calls: The names of all calls so far.
    """

    def __init__(self, fails=(), number=errno.EIO):
        self.calls = []
        self._fails, self._number = set(fails), number

    def __getattribute__(self, name):
        if name in FALLIBLE:
            self.calls.append(name)
            if len(self.calls) in self._fails:
                raise OSError(self._number, os.strerror(self._number))
        return super().__getattribute__(name)


class UnreadableFiles(Files):
    """Cannot read some pages of a segment, by their numbers, as long as they are in `pages`."""

    def __init__(self, pages):
        self.pages = set(pages)

    def read(self, fd, count, offset):
        """Fails where it meets one of them."""
        if self.pages & {*range(offset // REAL_PAGE_BYTES, (offset + count - 1) // REAL_PAGE_BYTES + 1)}:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(fd, count, offset)


class CutFiles(Files):
    """Cuts the power of a real ext4 before the call with the given number (from 1) that would change it."""

    def __init__(self, disk, number):
        self._disk, self._count = disk, number

    def __getattribute__(self, name):
        if name in CHANGING:
            self._count -= 1
            if self._count == 0:
                cut_power(self._disk)
        return super().__getattribute__(name)


class ReorderingFiles(Files):
    """Cuts the power of a real ext4 in the midst of the sync with the given number (from 1) of a segment in use.

    A random half of the pages has reached the disk by then, first or last, and somebody else's sync has committed the
    journal, without which no block of an allocated file counts as written.
    """

    def __init__(self, disk, number, seed):
        self._disk, self._count, self._random = disk, number, Random(seed)

    def sync(self, fd):
        """Syncs some pages, and none any more."""
        if ".draft" not in os.readlink(f"/proc/self/fd/{fd}"):
            self._count -= 1
            if self._count == 0:
                self._sync_some(fd)
                cut_power(self._disk)
        super().sync(fd)

    def _sync_some(self, fd):
        size = os.fstat(fd).st_size
        for start in self._random.sample(range(0, size, 4096), size // 4096 // 2):
            done = ctypes.CDLL(None).sync_file_range(
                fd, ctypes.c_int64(start), ctypes.c_int64(4096), WAIT_BEFORE_WRITE_AND_AFTER
            )
            assert done == 0
        with (self._disk / "other").open("wb") as other:
            os.fsync(other.fileno())


class IntrudedFiles(Files):
    """Has an intruder cut a segment in use short, to its first page, in the midst of the sync with the given number."""

    def __init__(self, number):
        self._count = number

    def sync(self, fd):
        """Syncs what is left."""
        if ".draft" not in os.readlink(f"/proc/self/fd/{fd}"):
            self._count -= 1
            if self._count == 0:
                os.truncate(fd, 4096)
        super().sync(fd)


class LossyFiles(Files):
    """Real files that remember what was synced, and lose the rest on `power_loss`.

    Bytes that did not change since the last sync stay, even in a page that is garbled: what disks promise of a
    sector that is written again.
    """

    def __init__(self, root):
        self.sync_failures = 0
        self.failing_read = 0
        self.unlinked = []
        self._kept = root / "inodes"
        self._kept.mkdir(exist_ok=True)
        self._synced, self._entries, self._poisoned = {}, {}, set()

    def create(self, path):
        """Keeps a link, so that what is unlinked without a sync can come back."""
        fd = super().create(path)
        os.link(path, self._kept / str(os.fstat(fd).st_ino))
        return fd

    def sync(self, fd):
        """Fails as often as the test wants; a second call for a file that failed is what the log must never do."""
        inode = os.fstat(fd).st_ino
        assert inode not in self._poisoned, "a poisoned segment was synced again"
        if self.sync_failures:
            self.sync_failures -= 1
            self._poisoned.add(inode)
            raise OSError(errno.EIO, "the test's")
        self._synced[inode] = os.pread(fd, os.fstat(fd).st_size, 0)

    def read(self, fd, count, offset):
        """Fails once: the n-th call from when the test has set that."""
        self.failing_read -= 1
        if self.failing_read == 0:
            raise OSError(errno.EIO, "the test's")
        return super().read(fd, count, offset)

    def sync_directory(self, path):
        """Remembers the entries."""
        self._entries[path] = self._current(path)

    def power_loss(self, random):
        """Replaces all files by what a disk may hold after a power cut."""
        found = {path: self._entries_after(path, random) for path in self._entries if path.name in ("log", "spares")}
        contents = {inode: self._content_after(inode, random) for names in found.values() for inode in names.values()}
        self._synced, self._entries, self._poisoned = {}, {}, set()
        for path in self._kept.iterdir():
            path.unlink()
        for directory, names in found.items():
            for path in directory.iterdir():
                path.unlink()
            for name, inode in names.items():
                self._put(directory / name, contents[inode])
            self.sync_directory(directory)

    def _put(self, path, content):
        fd = self.create(path)
        os.write(fd, content)
        self.sync(fd)
        os.close(fd)

    def _current(self, directory):
        return {path.name: path.stat().st_ino for path in directory.iterdir() if path.is_file()}

    def _entries_after(self, directory, random):
        before, now = self._entries[directory], self._current(directory)
        chosen = {name: random.choice((before, now)).get(name) for name in {**before, **now}}
        return {name: inode for name, inode in chosen.items() if inode is not None}

    def _content_after(self, inode, random):
        now = (self._kept / str(inode)).read_bytes()
        before = self._synced.get(inode, b"").ljust(len(now), b"\0")
        pages = range(0, len(now), PAGE_BYTES)
        return b"".join(
            _page_after(before[start:start + PAGE_BYTES], now[start:start + PAGE_BYTES], random) for start in pages
        )


def _page_after(before, now, random):
    if before == now:
        return now
    fate = random.choice(("kept", "dropped", "garbled"))
    if fate == "garbled":
        return bytes(old if old == new else random.randrange(256) for old, new in zip(before, now, strict=True))
    return now if fate == "kept" else before
