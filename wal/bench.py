"""How fast the log is beside what it cannot be faster than: `python -m wal.bench [directory]` prints a table.

Each way of the log is measured in turn with its bare counterpart, group by group, on the same disk: without sync beside
copying and checksumming the same bytes in memory, and with it beside the disk's own limit, which is to write the same
bytes by one `pwrite` to a file allocated in the same way, and `fdatasync`. Allocating the bare file is not counted, the
log's segments are. Rates and ratios are medians over rounds, because machines are noisy: the ratio is what to quote.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Protocol
from zlib import crc32

from wal.file import Files
from wal.frame import group_bytes
from wal.reader import SegmentReader, segments
from wal.writer import Writer

_ROUNDS = 9
_ROUND_S = 0.2
_SEGMENT_BYTES = 64 << 20
_MAX_SEGMENTS = 8
_SIZES, _COUNTS = (300, 300_000), (1, 10, 100)


class _Way(Protocol):
    """A way to put a group somewhere."""

    def prepare(self) -> None:
        """What the next `put` needs and is not measured."""

    def put(self) -> None:
        """Puts the group."""

    def close(self) -> None:
        """Lets go of what it holds."""


class _Memory:
    def __init__(self, group: Sequence[bytes]) -> None:
        self._group = group
        self._target = bytearray(sum(map(len, group)))

    def prepare(self) -> None:
        """Nothing."""

    def put(self) -> None:
        """Copies and checksums."""
        at = 0
        for record in self._group:
            crc32(record)
            self._target[at:at + len(record)] = record
            at += len(record)

    def close(self) -> None:
        """Nothing."""


class _Disk:
    def __init__(self, root: Path, size: int) -> None:
        self._path = root / "bare"
        self._bytes = os.urandom(size)
        self._fd, self._offset = -1, _SEGMENT_BYTES

    def prepare(self) -> None:
        """Allocates another file once this one is full."""
        if self._offset + len(self._bytes) <= _SEGMENT_BYTES:
            return
        self.close()
        self._fd, self._offset = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), 0
        os.posix_fallocate(self._fd, 0, _SEGMENT_BYTES)
        os.fsync(self._fd)

    def put(self) -> None:
        """Writes and syncs."""
        os.pwrite(self._fd, self._bytes, self._offset)
        os.fdatasync(self._fd)
        self._offset += len(self._bytes)

    def close(self) -> None:
        """Removes the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._path.unlink()
        self._fd = -1


class _NoSync(Files):
    def begin_sync(self, fd: int, start: int, stop: int) -> None:
        """Nothing, to measure all the rest."""

    def sync(self, fd: int) -> None:
        """Nothing, to measure all the rest."""


class _Log:
    def __init__(self, root: Path, group: Sequence[bytes], files: Files) -> None:
        self._directory = root / "log"
        self._group = group
        self._writer = Writer(self._directory, root / "spares", segment_bytes=_SEGMENT_BYTES, max_bytes=1 << 40,
                              min_free_bytes=0, files=files)
        self._writer.write(group)  # what is opened once is not what is measured

    def prepare(self) -> None:
        """Removes the oldest segments, as a reader would."""
        for path in segments(self._directory)[:-_MAX_SEGMENTS]:
            path.unlink()

    def put(self) -> None:
        """Appends and syncs, and begins another segment where that is due."""
        self._writer.write(self._group)

    def close(self) -> None:
        """Ends the segment; those that are left stay."""
        self._writer.close()


class _Measured(NamedTuple):
    """Seconds that a group took, one way, by round."""

    rounds_s: list[float]

    @property
    def median_s(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.rounds_s)

    def of(self, bare: "_Measured") -> str:
        """Returns the part of the bare rate that was reached: the median and the range of the rounds."""
        ratios = [one / own for own, one in zip(self.rounds_s, bare.rounds_s)]
        return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    """Measures in a directory below the one given, or the current one, and removes it."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as place:
        root = Path(place)
        sync_s = statistics.median(_in_turn(_Disk(root, 1))[0].rounds_s)
        print(f"bare fdatasync of a byte: {1 / sync_s:,.0f}/s; medians of {_ROUNDS} rounds")
        print(f"{'group':>14} {'':19} {'records/s':>11} {'MB/s':>7} {'us/group':>9}   of the line before (range)")
        for size in _SIZES:
            for count in _COUNTS:
                for line in _lines(root, [os.urandom(size)] * count):
                    print(line, flush=True)


def _lines(root: Path, group: Sequence[bytes]) -> Iterator[str]:
    shape = f"{len(group)} x {len(group[0])} B"
    memory, unsynced = _in_turn(_Memory(group), _Log(root, group, _NoSync()))
    _empty(root)
    disk, synced = _in_turn(_Disk(root, group_bytes(map(len, group))), _Log(root, group, Files()))
    yield _line(shape, "copy + CRC", group, memory)
    yield _line("", "log without sync", group, unsynced, unsynced.of(memory))
    yield _line("", "pwrite + fdatasync", group, disk)
    yield _line("", "log", group, synced, synced.of(disk))
    yield _line("", "log, read again", group, _read(root, len(group)))
    _empty(root)


def _line(shape: str, label: str, group: Sequence[bytes], found: _Measured, ratio: str = "") -> str:
    records_rate, byte_rate = len(group) / found.median_s, sum(map(len, group)) / found.median_s / 1e6
    return (f"{shape:>14} {label:19} {records_rate:11,.0f} {byte_rate:7,.0f} {found.median_s * 1e6:9,.1f}   "
            f"{ratio}").rstrip()


def _in_turn(*ways: _Way) -> list[_Measured]:
    """Returns what a group took each way; every other group goes the other way."""
    found = [_Measured([]) for _ in ways]
    try:
        for _ in range(_ROUNDS):
            for measured, mean_s in zip(found, _round(ways)):
                measured.rounds_s.append(mean_s)
    finally:
        for way in ways:
            way.close()
    return found


def _round(ways: Sequence[_Way]) -> list[float]:
    spent_s, count = [0.0] * len(ways), 0
    while max(spent_s) < _ROUND_S:
        for index, way in enumerate(ways):
            way.prepare()
            started_at = time.perf_counter()
            way.put()
            spent_s[index] += time.perf_counter() - started_at
        count += 1
    return [each_s / count for each_s in spent_s]


def _read(root: Path, group_records: int) -> _Measured:
    return _Measured([_read_s(root) * group_records for _ in range(3)])


def _read_s(root: Path) -> float:
    """Returns seconds a record."""
    started_at, records = time.perf_counter(), 0
    for path in segments(root / "log"):
        with closing(SegmentReader(path)) as reader:
            while found := reader.read(1 << 20):
                records += len(found)
    return (time.perf_counter() - started_at) / records


def _empty(root: Path) -> None:
    for path in segments(root / "log"):
        path.unlink()


if __name__ == "__main__":
    main()
