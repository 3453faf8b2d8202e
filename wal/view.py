"""What an open segment's bytes show: the frames that count, wherever they stand. It keeps no place and removes nothing.

It reads by `pread`, not through a mapping of its own: a disk that cannot read, or a file cut short by an intruder, is
an error then, and no SIGBUS. Errors come out as OSError; a `lenient` search goes on behind the pages that raise them.
"""

from collections.abc import Iterator
from zlib import crc32

from wal import frame
from wal.file import PAGE_BYTES, Files
from wal.frame import Frame

# A multiple of the frames' alignment, so that none's magic lies across two.
_SCAN_BYTES = 1 << 20


class View:
    """The frames of one segment.

    Args:
        files: The operating system.
        fd: The segment, open for reading.
        size: Its length when it was opened.
        identity: What every checksum in it begins with.
    """

    def __init__(self, files: Files, fd: int, size: int, identity: bytes) -> None:
        self._files = files
        self._fd = fd
        self._size = size
        self._seed = frame.seed_of(identity)

    def frame_at(self, offset: int) -> tuple[Frame, bytes] | None:
        """Returns the frame that counts at this offset, with its payload."""
        head = frame.decode(self._seed, offset, self._files.read(self._fd, frame.FRAME_BYTES, offset))
        if head is None or head.end > self._size:
            return None
        payload = self._files.read(self._fd, head.length, offset + frame.FRAME_BYTES)
        return (head, payload) if crc32(payload) == head.payload_crc else None

    def frames(self, start: int, stop: int, is_lenient: bool = False) -> Iterator[tuple[Frame, bytes]]:
        """Searches a part of the file for the frames that count. Those inside payloads fail for their offset."""
        for at, data in self._pieces(start, stop, is_lenient):
            found = data.find(frame.FRAME_MAGIC)
            while found >= 0:
                if (at + found) % frame.ALIGNMENT == 0 and (one := self._frame_at(at + found, is_lenient)):
                    yield one
                found = data.find(frame.FRAME_MAGIC, found + 1)

    def has_bytes(self, start: int, stop: int) -> bool:
        """Tells whether there is anything but the zeros of the allocation in a part of the file."""
        return any(data.count(0) != len(data) for _, data in self._pieces(start, stop, is_lenient=False))

    def _frame_at(self, offset: int, is_lenient: bool) -> tuple[Frame, bytes] | None:
        try:
            return self.frame_at(offset)
        except OSError:
            if is_lenient:
                return None
            raise

    def _pieces(self, start: int, stop: int, is_lenient: bool) -> Iterator[tuple[int, bytes]]:
        for at, end in _cuts(start, stop, _SCAN_BYTES):
            try:
                yield at, self._files.read(self._fd, end - at, at)
            except OSError:
                if not is_lenient:
                    raise
                yield from self._readable_pages(at, end)

    def _readable_pages(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        self._files.separate(self._fd, start & -_SCAN_BYTES, stop)
        for at, end in _cuts(start, stop, PAGE_BYTES):
            try:
                data = self._files.read(self._fd, end - at, at)
            except OSError:
                continue
            yield at, data


def _cuts(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Yields the parts between multiples of `step`."""
    while start < stop:
        end = min(frame.aligned(start + 1, step), stop)
        yield start, end
        start = end
