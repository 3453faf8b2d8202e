"""How fast the log is beside what it cannot be faster than: `python -m wal.bench [directory]` prints a table.

The disk's own limit is `pwrite` of as many bytes as the group's frames, in one piece and to a file allocated in the
same way, and `fdatasync`: what is left of a log without framing, checksums and segments. `fdatasync` after one byte
stands beside it, the limit for groups of no size. A log must checksum as well, and so its part of both, copy + CRC and
then the disk, is shown too. Either can exceed 1: of a large group one is done during the other, and of small ones a
single sync in many marks blocks as in use, where the bare file's do each time.

Ways that are compared are measured in turn, group by group. Allocating the bare file is not counted, the log's segments
are. Rates and ratios are medians over rounds, because machines are noisy: the ratio is what to quote.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
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
        self._path = root / f"bare-{size}"
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

    def parts_of(self, bare: "_Measured", more_s: float = 0) -> list[float]:
        """Returns the part of the bare rate that was reached, by round, if a bare group took so much longer."""
        return [(one + more_s) / own for own, one in zip(self.rounds_s, bare.rounds_s)]


def main() -> None:
    """Measures in a directory below the one given, or the current one, and removes it."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as place:
        print(f"medians of {_ROUNDS} rounds; of the disk, and of both, the log's part with the range of rounds")
        print(f"{'group':>14} {'':19} {'records/s':>11} {'MB/s':>7} {'us/group':>9}   {'of the disk':23} of both")
        reached = {
            f"{count} x {size} B": _measure(Path(place), [os.urandom(size)] * count)
            for size in _SIZES for count in _COUNTS
        }
        shape = min(reached, key=reached.__getitem__)
        print(f"group commit reaches {reached[shape]:.2f} of the disk's own limit or more; least with {shape}")


def _measure(root: Path, group: Sequence[bytes]) -> float:
    """Prints what was found for a group. Returns the log's part of the disk's limit."""
    memory, unsynced = _in_turn(_Memory(group), _Log(root, group, _NoSync()))
    _empty(root)
    byte, disk, log = _in_turn(
        _Disk(root, 1), _Disk(root, group_bytes(map(len, group))), _Log(root, group, Files())
    )
    of_disk = log.parts_of(disk)
    _print(f"{len(group)} x {len(group[0])} B", "copy + CRC", group, memory)
    _print("", "log without sync", group, unsynced)
    _print("", "fdatasync of a byte", [b"1"], byte)
    _print("", "pwrite + fdatasync", group, disk)
    _print("", "log", group, log, _ranges(of_disk, log.parts_of(disk, memory.median_s)))
    _print("", "log, read again", group, _read(root, len(group)))
    _empty(root)
    return statistics.median(of_disk)


def _ranges(*parts: Sequence[float]) -> str:
    return "".join(f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})    " for each in parts)


def _print(shape: str, label: str, group: Sequence[bytes], found: _Measured, ratio: str = "") -> None:
    records_rate, byte_rate = len(group) / found.median_s, sum(map(len, group)) / found.median_s / 1e6
    line = f"{shape:>14} {label:19} {records_rate:11,.0f} {byte_rate:7,.0f} {found.median_s * 1e6:9,.1f}   {ratio}"
    print(line.rstrip(), flush=True)


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
