"""The reader: follows a segment, live or left behind, and releases it. Hand-over 3 begins here.

It sees a writer's stores at once, through the pages that both share. What the disk cannot read is left behind as a gap,
so that all the rest goes on, and tried again: an error may pass. It never writes to a segment, and it removes them: the
writer does not.
"""

from pathlib import Path
from typing import NamedTuple

from wal import frame
from wal.errors import WalCorrupt
from wal.file import FILES, Files, failure
from wal.segment import identity_of, oldest_at_ns, segments, used_bytes
from wal.stretch import Damage, Stretch
from wal.view import View

__all__ = ["Record", "SegmentReader", "oldest_at_ns", "segments", "used_bytes"]


class Record(NamedTuple):
    """A record and where it lies: the segment's name, the offset in it, and its place among the segment's frames."""

    segment: str
    offset: int
    sequence: int
    payload: bytes


class SegmentReader:
    """Reads one segment from its beginning, from one thread at a time.

    Args:
        path: A published segment.
        files: The operating system.

    Raises:
        WalFailed: It cannot be opened or read. A damaged segment raises nothing: it is counted.
    """

    def __init__(self, path: Path, files: Files = FILES) -> None:
        self._path = path
        self._files = files
        self._damage = Damage()
        self._is_sealed = self._is_drained = self._has_header = False
        self._should_size = 0
        self._fd = -1
        try:
            self._fd = files.open(path)
            size = files.size(self._fd)
            self._identity = self._known_identity()
        except OSError as error:
            self.close()
            raise failure(error) from error
        view = View(files, self._fd, size, self._identity)
        self._gaps: list[Stretch] = []
        self._tail = Stretch(view, self._damage, self._gaps, frame.HEADER_BYTES, size)

    @property
    def torn_count(self) -> int:
        """Invalid frames that no sync is known to have covered: never acknowledged."""
        return self._damage.torn_count

    @property
    def corrupt_count(self) -> int:
        """Records lost below a later frame's watermark, damaged headers, files cut short, and what was given up: what
        was acknowledged is lost, and a person has to look.
        """
        return self._damage.corrupt_count

    @property
    def is_sealed(self) -> bool:
        """Whether nothing more will come: the writer has sealed it, or ended.

        Raises:
            WalFailed: The system cannot tell now.
        """
        try:
            self._is_sealed = self._is_sealed or self._tail.is_done or not self._files.is_locked(self._fd)
        except OSError as error:
            raise failure(error) from error
        return self._is_sealed

    @property
    def is_drained(self) -> bool:
        """Whether it is sealed and the last `read` came to its end, without a gap."""
        return self._is_drained

    def read(self, max_bytes: int, is_retry: bool = True) -> list[Record]:
        """Returns the next records after the last that it returned: as many as fit, and at least one if there is any.

        What the disk cannot read comes last, and as a failure. Nothing of it is passed over: the next call tries again.
        None means: none yet, or, if `is_drained`, none any more.

        Args:
            max_bytes: Of the records together.
            is_retry: Whether to try again what could not be read; a disk may take seconds to fail.

        Raises:
            WalFailed: All that is left cannot be read now.
        """
        # Asked before looking: what is invalid in a sealed segment stays so, and a live one's writer may be at it.
        is_sealed = self.is_sealed
        try:
            found = self._read(max_bytes, is_retry, is_sealed)
        except OSError as error:
            raise failure(error) from error
        return [Record(self._path.name, head.offset, head.sequence, payload) for head, payload in found]

    def condemn(self) -> None:
        """Counts a record that it returned as damaged: nobody can use it."""
        self._damage.corrupt_count += 1

    def give_up(self) -> None:
        """Counts what cannot be read in a sealed segment as lost, so that it may be released: to the quarantine.

        Raises:
            WalFailed: The system cannot tell the segment's length; call it again.
        """
        assert self.is_sealed, "a writer may still be at it"
        for stretch in (self._tail, *self._gaps):
            stretch.give_up()
        self._damage.corrupt_count += not self._has_header
        self._has_header = True
        try:
            self._end()
        except OSError as error:
            raise failure(error) from error

    def release(self, quarantine: Path) -> None:
        """Removes the segment, of which every record has arrived elsewhere; a damaged one is moved, whole.

        May be called again if it raised.

        Args:
            quarantine: Directory on the log's file system for segments that have lost acknowledged records.

        Durability:
            The removal is durable on return; if it raises, the segment may come back and be read again.

        Raises:
            WalFull: There is no room for the quarantine.
            WalFailed: The disk failed.
        """
        assert self._is_drained, "only what was read to its end may be removed"
        try:
            if self.corrupt_count:
                # Moved, not copied: that takes no room on a full disk, and reads nothing from a bad one.
                self._files.make_directory(quarantine)
                self._files.move(self._path, quarantine / self._path.name)
                self._files.sync_directory(quarantine)
            else:
                self._files.unlink(self._path)
            self._files.sync_directory(self._path.parent)
        except OSError as error:
            raise failure(error) from error
        self.close()

    def close(self) -> None:
        """Lets go of the file; the segment stays unless it was released."""
        if self._fd >= 0:
            self._files.close(self._fd)
        self._fd = -1

    def _known_identity(self) -> bytes:
        """Returns the header's identity, or the name's where the header is damaged or cannot be read now."""
        named = identity_of(self._path)
        try:
            return self._read_header() or named
        except OSError:
            if not named:
                raise
            return named

    def _read_header(self) -> bytes:
        """Returns its identity; empty where it is damaged, which is counted."""
        header = frame.Header(b"", 0)
        try:
            header = frame.decode_header(self._files.read(self._fd, frame.HEADER_BYTES, 0))
        except WalCorrupt:
            self._damage.corrupt_count += 1
        self._has_header = True
        self._should_size = header.size
        return header.identity

    def _read(self, max_bytes: int, is_retry: bool, is_sealed: bool) -> list[tuple[frame.Frame, bytes]]:
        found: list[tuple[frame.Frame, bytes]] = []
        failed: OSError | None = None
        for stretch in (self._tail, *self._gaps):
            if found or stretch.is_unreadable and not is_retry:
                continue
            try:
                found = stretch.read(max_bytes, is_sealed or stretch is not self._tail)
            except OSError as error:
                failed = error
        if failed and not found:
            raise failed
        try:
            self._end(is_retry)
        except OSError:
            if not found:  # else they would be lost with the error, which the next call meets again
                raise
        return found

    def _end(self, is_retry: bool = True) -> None:
        """Where nothing is left to be read, settles what no watermark covers, and what somebody has cut off."""
        self._gaps[:] = [gap for gap in self._gaps if not gap.is_done]
        if self._is_drained or self._gaps or not self._tail.is_done or not (self._has_header or is_retry):
            return
        if not self._has_header and self._read_header() not in (self._identity, b""):
            self._damage.corrupt_count += 1  # what was read with the name's identity is not this segment's
        self._damage.corrupt_count += self._files.size(self._fd) < self._should_size
        self._damage.end()
        self._is_drained = True
