"""A segment: one file of the log, from its draft to its seal, as its writer holds it; and what its name says.

A draft lies in a directory of its own and gets its name in the log's when it is taken into use. Its lock is held from
its creation on: a reader that gets the lock knows that the writer has ended, however it did.
"""

import errno
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from wal import frame
from wal.file import FILES, MAX_PIECES, PAGE_BYTES, Files, failure
from wal.frame import FRAME_BYTES, aligned

SUFFIX = ".wal"
DRAFT_SUFFIX = ".draft"
_SEAL_BYTES = frame.framed_bytes(0)
# The first sync of a block also writes that it is in use. Groups smaller than this find so much ahead of them there and
# written, as zeros, by the sync of one of them.
_SMALL_BYTES = 64 << 10
_AHEAD_BYTES = 512 << 10
_WINDOW_BYTES = 1 << 20  # about what one call writes of a larger one
_NAME = re.compile(r"([0-9]{20})-([0-9a-f]{32})\.wal")


def segments(directory: Path, files: Files = FILES) -> list[Path]:
    """Returns the segments of the log, oldest first.

    Raises:
        WalFailed: The directory cannot be read.
    """
    try:
        return [directory / name for name in files.names(directory) if name.endswith(SUFFIX)]
    except OSError as error:
        raise failure(error) from error


def used_bytes(directory: Path, files: Files = FILES) -> int:
    """Returns what all segments of the log, of all processes, take of the disk.

    Raises:
        WalFailed: The directory cannot be read.
    """
    try:
        return sum(files.allocated_bytes(path) for path in segments(directory, files))
    except OSError as error:
        raise failure(error) from error


def oldest_at_ns(path: Path, files: Files = FILES) -> int:
    """Returns when the segment was taken into use, in wall time: none of its records is older.

    Raises:
        WalFailed: The name does not tell, and the file cannot be asked.
    """
    try:
        name = _NAME.fullmatch(path.name)
        return int(name[1]) if name else files.modified_at_ns(path)
    except OSError as error:
        raise failure(error) from error


def identity_of(path: Path) -> bytes:
    """Returns the identity that the name gives, for a segment whose header is damaged; empty if it gives none."""
    name = _NAME.fullmatch(path.name)
    return bytes.fromhex(name[2]) if name else b""


def bytes_for(records_bytes: int) -> int:
    """Returns the length of a segment that holds frames of so many bytes."""
    return frame.HEADER_BYTES + records_bytes + _SEAL_BYTES


class Segment:
    """A segment in the hands of its writer. The constructor makes a draft of it.

    Args:
        spares: The directory for drafts, on the log's file system.
        size: Bytes to allocate, all that the segment will ever take.
        files: The operating system.

    Raises:
        OSError: There is no such segment; nothing of it is left.

    Attributes:
        path: Where it lies.
        size: Its length in bytes.
    """

    def __init__(self, spares: Path, size: int, files: Files) -> None:
        identity = files.random_bytes(frame.IDENTITY_BYTES)
        self.path = spares / (identity.hex() + DRAFT_SUFFIX)
        self.size = size
        self._files = files
        self._identity = identity
        self._seed = frame.seed_of(identity)
        self._end = self._durable_upto = frame.HEADER_BYTES
        self._ahead_upto = 0
        self._sequence = 1
        self._fd = files.create(self.path)
        try:
            files.allocate(self._fd, size)
            self._mapping = files.map(self._fd, size)
            files.store(self._mapping, frame.encode_header(frame.Header(identity, size)), 0)
            # Header and length are durable before the segment has a name in the log: if they are ever wrong there,
            # something was lost.
            files.sync(self._fd)
            files.sync_directory(spares)
        except BaseException:
            self.discard()
            raise

    @property
    def room(self) -> int:
        """Bytes left for frames."""
        return self.size - self._end - _SEAL_BYTES

    def publish(self, directory: Path) -> None:
        """Gives the draft its name in the log.

        Durability:
            The name is durable on return. If it raises, the segment is of no more use.

        Raises:
            OSError: It is not published, or that is not durable.
        """
        spares, target = self.path.parent, directory / f"{self._files.now_ns():020}-{self._identity.hex()}{SUFFIX}"
        try:
            self._files.rename(self.path, target)
        except BaseException:
            self.discard()
            raise
        self.path = target
        try:
            self._files.sync_directory(directory)
            self._files.sync_directory(spares)
        except BaseException:
            self.seal()
            raise

    def append(self, records: Sequence[bytes], size: int) -> None:
        """Stores the records, at least one; there must be room for them.

        Args:
            records: The payloads.
            size: Bytes of their frames.

        Durability:
            None until `sync`. If it raises, the reader has seen nothing of the group, and the seal takes its place.

        Raises:
            OSError: The disk failed.
        """
        if size < _SMALL_BYTES:
            self._write_ahead(size)
            self._write_small(records, size)
        else:
            self._write_large(records, size)
        self._end, self._sequence = self._end + size, self._sequence + len(records)

    def sync(self) -> None:
        """Makes all that was appended durable.

        Durability:
            Durable on return; unknown if it raises, and never to be found out: seal the segment then. The kernel
            forgets the error and what it could not write, so that another sync would succeed without them.

        Raises:
            OSError: The disk failed, or somebody has cut the file short.
        """
        self._files.sync(self._fd)
        # Stores behind the end, in the last page, raise nothing and reach no disk; what is written there makes the file
        # longer, but never as long as it was.
        if self._files.size(self._fd) != self.size:
            raise OSError(errno.EIO, f"{self.path} is no longer {self.size} bytes long: somebody has cut it short")
        self._durable_upto = self._end

    def seal(self) -> None:
        """Ends the segment, so that the reader may release it.

        Durability:
            Adds nothing: the last frame only says how far the last sync went.
        """
        with suppress(OSError):
            if self._files.size(self._fd) == self.size:  # a store behind the end of the file would be a SIGBUS
                self._store_head(b"", frame.IS_SEAL)
        self._close()

    def discard(self) -> None:
        """Removes the draft. What cannot be removed now loses its lock, and the next writer to open removes it."""
        with suppress(OSError):
            self._files.unlink(self.path)
            self._files.sync_directory(self.path.parent)
        self._close()

    def _write_ahead(self, size: int) -> None:
        """Sees to it that the blocks of a small group are there and marked as in use."""
        start, end = self._end, self._end + size
        if end > self._ahead_upto:
            behind, self._ahead_upto = self._ahead_upto, min(aligned(end, PAGE_BYTES) + _AHEAD_BYTES, self.size)
            # A sync writes a page as a whole: larger ones would be quicker, and more than such a group needs.
            step = max(PAGE_BYTES, 1 << size.bit_length() - 2)
            self._files.fill(self._fd, max(behind, aligned(start, PAGE_BYTES)), self._ahead_upto, step)

    def _write_small(self, records: Sequence[bytes], size: int) -> None:
        """Writes a group in one piece. A reader that comes meanwhile finds frames whose checksums are not right yet."""
        frames = frame.encode_all(self._seed, self._end, records, self._sequence, self._durable_upto)
        self._check(self._files.write(self._fd, [b"".join(frames)], self._end) == size)

    def _write_large(self, records: Sequence[bytes], size: int) -> None:
        """Writes a group, window by window: that brings its pages, for each of which a store would take a fault.

        The first head shows it to the reader, and so it comes last, as a store.
        """
        count = max(1, min(_WINDOW_BYTES * len(records) // size, MAX_PIECES // frame.PIECES))
        upto = self._end + FRAME_BYTES
        begun_upto = aligned(upto, PAGE_BYTES)
        pieces = frame.padded(records[0])
        offset = self._end + frame.framed_bytes(len(records[0]))
        for index in range(0, len(records), count):
            first = max(index, 1)
            pieces += frame.encode_all(
                self._seed, offset, records[first:index + count], self._sequence + first, self._durable_upto
            )
            upto = offset = upto + self._files.write(self._fd, pieces, upto)
            pieces = []
            # All but the first head's page: the disk is at it while the rest, and the first record, is checksummed.
            if (complete_upto := upto & -PAGE_BYTES) > begun_upto:
                self._files.begin_sync(self._fd, begun_upto, complete_upto)
                begun_upto = complete_upto
        self._check(upto == self._end + size)
        self._store_head(records[0], 0)

    def _check(self, is_whole: bool) -> None:
        if not is_whole:
            raise OSError(errno.ENOSPC, f"{self.path} took a part of what was written")

    def _store_head(self, payload: bytes, flags: int) -> None:
        head = frame.encode(self._seed, self._end, payload, self._sequence, flags, self._durable_upto)
        self._files.store(self._mapping, head, self._end)

    def _close(self) -> None:
        if mapping := getattr(self, "_mapping", None):
            mapping.close()
        # All that was ever acknowledged is synced: closing cannot lose it, whatever it says.
        for end in (self._files.unlock, self._files.close):
            with suppress(OSError):
                end(self._fd)
