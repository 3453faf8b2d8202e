"""The reader: follows a segment, live or left behind, and releases it. Hand-over 3 begins here.

It sees a writer's stores at once, through the pages that both share. It reads them by `pread`, not through a mapping
of its own: a disk that cannot read, or a file cut short by an intruder, is an error then, and no SIGBUS. It never
writes to a segment, and it removes them: the writer does not.
"""

from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from wal import frame
from wal.errors import WalCorrupt
from wal.file import FILES, Files, failure
from wal.frame import Frame
from wal.segment import identity_of, oldest_at_ns, segments, used_bytes

__all__ = ["Record", "SegmentReader", "oldest_at_ns", "segments", "used_bytes"]

# A multiple of the frames' alignment, so that none's magic lies across two.
_SCAN_BYTES = 1 << 20


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

    Attributes:
        torn_count: Invalid frames that no sync is known to have covered: never acknowledged.
        corrupt_count: Records lost below a later frame's watermark, damaged headers and files cut short: what was
            acknowledged is lost, and a person has to look.
    """

    def __init__(self, path: Path, files: Files = FILES) -> None:
        self.torn_count = 0
        self.corrupt_count = 0
        self._path = path
        self._files = files
        self._offset = frame.HEADER_BYTES
        self._sequence = 0
        # Invalid stretches that no watermark has covered yet: where they begin and how many frames they held.
        self._suspects: list[tuple[int, int]] = []
        self._is_sealed = self._is_drained = False
        self._should_size = 0
        self._fd = -1
        try:
            self._fd = files.open(path)
            self._size = files.size(self._fd)
            self._seed = frame.seed_of(self._identity())
        except OSError as error:
            self.close()
            raise failure(error) from error

    @property
    def is_sealed(self) -> bool:
        """Whether nothing more will come: the writer has sealed it, or ended.

        Raises:
            WalFailed: The system cannot tell now.
        """
        try:
            self._is_sealed = self._is_sealed or not self._files.is_locked(self._fd)
        except OSError as error:
            raise failure(error) from error
        return self._is_sealed

    @property
    def is_drained(self) -> bool:
        """Whether it is sealed and the last `read` came to its end."""
        return self._is_drained

    def read(self, max_bytes: int) -> list[Record]:
        """Returns the next records after the last that it returned: as many as fit, and at least one if there is any.

        None means: none yet, or, if `is_drained`, none any more.

        Raises:
            WalFailed: The disk cannot read it now.
        """
        # Asked before looking: what is invalid in a sealed segment stays so, and a live one's writer may be at it.
        is_sealed = self.is_sealed
        try:
            return self._read(max_bytes, is_sealed)
        except OSError as error:
            raise failure(error) from error

    def release(self, quarantine: Path) -> None:
        """Removes the segment, of which every record has arrived elsewhere; a damaged one is copied first.

        May be called again if it raised.

        Args:
            quarantine: Directory for copies of segments that have lost acknowledged records.

        Durability:
            The removal is durable on return; if it raises, the segment may come back and be read again.

        Raises:
            WalFull: There is no room for the copy.
            WalFailed: The disk failed.
        """
        assert self.is_drained, "only what was read to its end may be removed"
        try:
            if self.corrupt_count:
                self._files.make_directory(quarantine)
                self._files.copy(self._path, quarantine / self._path.name)
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

    def _identity(self) -> bytes:
        try:
            header = frame.decode_header(self._files.read(self._fd, frame.HEADER_BYTES, 0))
        except WalCorrupt:
            self.corrupt_count += 1
            return identity_of(self._path)
        self._should_size = header.size
        return header.identity

    def _read(self, max_bytes: int, is_sealed: bool) -> list[Record]:
        records: list[Record] = []
        size = 0
        while not self._is_drained:
            found = self._valid_at(self._offset) or (self._next_valid() if is_sealed else None)
            if found is None:
                if is_sealed:
                    self.torn_count += self._has_rest()
                    self._end()
                break
            head, payload = found
            size += head.length
            if records and size > max_bytes:
                break
            self._pass(head)
            if head.flags & frame.IS_SEAL:
                self._end()
            else:
                records.append(Record(self._path.name, head.offset, head.sequence, payload))
        return records

    def _valid_at(self, offset: int) -> tuple[Frame, bytes] | None:
        head = frame.decode(self._seed, offset, self._files.read(self._fd, frame.FRAME_BYTES, offset))
        if head is None or head.end > self._size:
            return None
        payload = self._files.read(self._fd, head.length, offset + frame.FRAME_BYTES)
        return (head, payload) if crc32(payload) == head.payload_crc else None

    def _next_valid(self) -> tuple[Frame, bytes] | None:
        """Finds the first valid frame behind an invalid one. Those inside payloads fail for their offset."""
        for start in range(self._offset, self._size, _SCAN_BYTES):
            data = self._files.read(self._fd, _SCAN_BYTES, start)
            at = data.find(frame.FRAME_MAGIC)
            while at >= 0:
                if at % frame.ALIGNMENT == 0 and (found := self._valid_at(start + at)):
                    return found
                at = data.find(frame.FRAME_MAGIC, at + 1)
        return None

    def _pass(self, head: Frame) -> None:
        """Moves behind the frame. Its watermark tells which of the invalid stretches before it were acknowledged."""
        if head.offset != self._offset:
            self._suspects.append((self._offset, max(1, head.sequence - self._sequence - 1)))
        self.corrupt_count += sum(count for start, count in self._suspects if start < head.durable_upto)
        self._suspects = [suspect for suspect in self._suspects if suspect[0] >= head.durable_upto]
        self._offset, self._sequence = head.end, head.sequence

    def _end(self) -> None:
        """Settles what is invalid and covered by no watermark, and what somebody has cut off at the end."""
        self._is_sealed = self._is_drained = True
        self.corrupt_count += self._files.size(self._fd) < self._should_size
        self.torn_count += sum(count for _, count in self._suspects)
        self._suspects = []

    def _has_rest(self) -> bool:
        """Whether there is anything but the zeros of the allocation behind the last valid frame."""
        for start in range(self._offset, self._size, _SCAN_BYTES):
            data = self._files.read(self._fd, _SCAN_BYTES, start)
            if data.count(0) != len(data):
                return True
        return False
