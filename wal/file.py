"""The one place that touches the operating system: files, directories, locks, the clock and random numbers.

Methods raise OSError as it comes; writer and reader turn it into the library's errors with `failure`. Tests replace
the whole by a double that forgets what was not synced, or fails the N-th call.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from wal.errors import WalError, WalFailed, WalFull

PAGE_BYTES = mmap.PAGESIZE

# IOV_MAX: what one call can write.
MAX_PIECES = 1024

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def failure(error: OSError) -> WalError:
    """Returns what the error means to the caller."""
    return (WalFull if error.errno in _NO_ROOM else WalFailed)(str(error))


class Files:
    """Files as the log needs them; without state."""

    def make_directory(self, path: Path) -> None:
        """Creates the directory and what lacks above it.

        Durability:
            Durable on return, whoever created it: another process may not have synced it yet.
        """
        if not path.is_dir():
            self.make_directory(path.parent)
            path.mkdir(mode=0o700, exist_ok=True)
        self.sync_directory(path.parent)

    def names(self, directory: Path) -> list[str]:
        """Returns what is in the directory, sorted; nothing if there is none."""
        try:
            return sorted(os.listdir(directory))
        except FileNotFoundError:
            return []

    def allocated_bytes(self, path: Path) -> int:
        """Returns what the file takes of the disk; nothing if it has gone."""
        try:
            return path.stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def free_bytes(self, directory: Path) -> int:
        """Returns what is left of the disk to a user without privileges."""
        state = os.statvfs(directory)
        return state.f_bavail * state.f_frsize

    def create(self, path: Path) -> int:
        """Creates a file locked by its descriptor, which a forked child shares and a started program does not."""
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            # `remove_abandoned` of another process may have come between the two calls.
            if os.fstat(fd).st_nlink:
                return fd
            os.close(fd)

    def remove_abandoned(self, path: Path) -> None:
        """Removes the file unless somebody holds its lock."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.unlink(path)
        except BlockingIOError:
            pass  # in use
        finally:
            os.close(fd)

    def allocate(self, fd: int, size: int) -> None:
        """Gives the file blocks of its own, so that no store through a mapping can meet a full disk (SIGBUS)."""
        os.posix_fallocate(fd, 0, size)

    def map(self, fd: int, size: int) -> mmap.mmap:
        """Maps the file, shared and writable.

        A store brings the page that it needs and no others: read ahead, those would come in large ones (see `fill`).
        """
        mapping = mmap.mmap(fd, size)
        mapping.madvise(mmap.MADV_RANDOM)
        return mapping

    def store(self, mapping: mmap.mmap, content: bytes, offset: int) -> None:
        """Stores to the mapping. Not by a slice, which holds the GIL: on a disk that hangs so does the store to a page
        that was synced, and with the GIL every thread of the process.
        """
        place = (ctypes.c_char * len(content)).from_buffer(mapping, offset)
        ctypes.memmove(place, content, len(content))  # without the GIL, as every foreign function

    def fill(self, fd: int, start: int, stop: int, step: int) -> None:
        """Writes zeros, where nothing may be yet.

        The kernel keeps what one call writes in pages as large as it can ("folios"), and writes one as a whole if a
        store to a mapping has changed a byte of it.

        Source:
            Linux 6.16, "ext4: enable large folio for regular file".

        Args:
            fd: A file with blocks of its own.
            start: First byte, at the beginning of a page.
            stop: Behind the last byte.
            step: What one call writes: no page becomes larger.
        """
        if stop > os.fstat(fd).st_size:
            return  # Cut short by an intruder: made longer again, it would have blocks of its own no more.
        zeros = memoryview(bytes(step))
        for offset in range(start, stop, step):
            os.pwrite(fd, zeros[:stop - offset], offset)

    def write(self, fd: int, pieces: Sequence[bytes], offset: int) -> int:
        """Writes up to `MAX_PIECES`, one behind the other. Returns how many bytes; fewer if there is no room."""
        return os.pwritev(fd, pieces, offset)

    def begin_sync(self, fd: int, start: int, stop: int) -> None:
        """Has the disk begin to write what will not change any more, and returns at once.

        Durability:
            None: the next `sync` waits for it, and raises what went wrong.
        """
        os.posix_fadvise(fd, start, stop - start, os.POSIX_FADV_DONTNEED)

    def sync(self, fd: int) -> None:
        """Makes all stores durable, also those through a mapping; unlike `mmap.flush` without holding the GIL."""
        os.fdatasync(fd)

    def sync_directory(self, path: Path) -> None:
        """Makes the directory's entries durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Renames the file; durable once both directories are synced."""
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        """Removes the file, if it is there; durable once its directory is synced."""
        path.unlink(missing_ok=True)

    def unlock(self, fd: int) -> None:
        """Releases the lock, also where a forked child still has the descriptor."""
        fcntl.flock(fd, fcntl.LOCK_UN)

    def close(self, fd: int) -> None:
        """Closes the descriptor."""
        os.close(fd)

    def open(self, path: Path) -> int:
        """Opens the file for reading."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def size(self, fd: int) -> int:
        """Returns the file's length."""
        return os.fstat(fd).st_size

    def read(self, fd: int, count: int, offset: int) -> bytes:
        """Reads from the pages that a mapping of the same file stores to; fewer bytes than `count` at the end."""
        data = os.pread(fd, count, offset)
        # A page that cannot be read ends a read before it without an error: what is missing says which it is.
        while len(data) < count and (more := os.pread(fd, count - len(data), offset + len(data))):
            data += more
        return data

    def separate(self, fd: int, start: int, stop: int) -> None:
        """Has each page of the file read by itself from now on.

        Those that are read ahead come together in a large one ("folio"), of which one bad block makes all unreadable.
        """
        os.posix_fadvise(fd, start, stop - start, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    def is_locked(self, fd: int) -> bool:
        """Tells whether somebody holds the file's lock; `fd` must come from an `open` of one's own."""
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(fd, fcntl.LOCK_UN)
        return False

    def hold(self, directory: Path) -> int | None:
        """Locks the directory while the descriptor that it returns is open; None: somebody else has it locked."""
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno == errno.EWOULDBLOCK:
                return None
            raise
        return fd

    def move(self, source: Path, target: Path) -> None:
        """Renames the file, if it is there; durable once both directories are synced."""
        with suppress(FileNotFoundError):
            os.rename(source, target)

    def modified_at_ns(self, path: Path) -> int:
        """Returns when the file was last written, in wall time."""
        return path.stat().st_mtime_ns

    def now_ns(self) -> int:
        """Returns the wall time."""
        return time.time_ns()

    def random_bytes(self, count: int) -> bytes:
        """Returns bytes that no other segment has."""
        return os.urandom(count)


FILES = Files()
