"""How fast the log is beside what it cannot be faster than: `python -m wal.bench [directory]` prints a table.

The bare rates are measured in the same run on the same disk: copying and checksumming the same bytes in memory, and
`fdatasync` of a page stored to an allocated file.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from wal.file import Files
from wal.reader import SegmentReader, segments
from wal.writer import Writer

_DURATION_S = 0.5
_SEGMENT_BYTES = 64 << 20
_MAX_BYTES = 1 << 30
_HEAD = f"{'records':>14} {'':8} {'records/s':>11} {'MB/s':>8} {'us/group':>9}   of the bare rate"


class _NoSync(Files):
    def sync(self, fd: int) -> None:
        """Nothing, to measure all the rest."""


def main() -> None:
    """Measures in a directory below the one given, or the current one, and removes it."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as place:
        root = Path(place)
        sync_s = _bare_sync_s(root)
        print(f"bare fdatasync: {1 / sync_s:,.0f}/s\n{_HEAD}")
        for size in (300, 300_000):
            for count in (1, 10, 100):
                _compare(root, [os.urandom(size)] * count, sync_s)


def _compare(root: Path, group: list[bytes], sync_s: float) -> None:
    target = bytearray(sum(map(len, group)))
    copy_s = _seconds_of(lambda: _copy(group, target))
    _print(group, "memory", copy_s, "")
    for label, files, bare_s, name in (
        ("no sync", _NoSync(), copy_s, "copy + CRC"), ("synced", Files(), copy_s + sync_s, "copy + CRC + sync"),
    ):
        spent_s = _append_s(root, group, files)
        _print(group, label, spent_s, f"{bare_s / spent_s:.2f} of {name}")
    _print(group, "read", _read_s(root, group), "")


def _append_s(root: Path, group: list[bytes], files: Files) -> float:
    _empty(root)
    writer = Writer(
        root / "log", root / "spares", segment_bytes=_SEGMENT_BYTES, max_bytes=_MAX_BYTES, min_free_bytes=0, files=files
    )
    writer.write(group)  # what is opened once is not what is measured
    spent_s = _seconds_of(lambda: writer.write(group), _MAX_BYTES // 3 // sum(map(len, group)))
    writer.close()
    return spent_s


def _read_s(root: Path, group: list[bytes]) -> float:
    started_at, records = time.perf_counter(), 0
    for path in segments(root / "log"):
        reader = SegmentReader(path)
        while found := reader.read(1 << 20):
            records += len(found)
        reader.close()
    return (time.perf_counter() - started_at) / records * len(group)


def _empty(root: Path) -> None:
    for path in segments(root / "log"):
        path.unlink()


def _copy(group: list[bytes], target: bytearray) -> None:
    at = 0
    for record in group:
        crc32(record)
        target[at:at + len(record)] = record
        at += len(record)


def _bare_sync_s(root: Path) -> float:
    files = Files()
    fd = files.create(root / "bare")
    files.allocate(fd, _SEGMENT_BYTES)
    mapping = files.map(fd, _SEGMENT_BYTES)
    places = iter(range(0, _SEGMENT_BYTES, 300))

    def store() -> None:
        mapping[next(places)] = 1
        files.sync(fd)

    spent_s = _seconds_of(store, _SEGMENT_BYTES // 300)
    mapping.close()
    files.close(fd)
    return spent_s


def _seconds_of(call: Callable[[], None], max_count: int = sys.maxsize) -> float:
    """Returns what one call takes, over `_DURATION_S` or as many calls."""
    started_at, count, spent_s = time.perf_counter(), 0, 0.0
    while count < max_count and spent_s < _DURATION_S:
        call()
        count += 1
        spent_s = time.perf_counter() - started_at
    return spent_s / count


def _print(group: list[bytes], label: str, spent_s: float, ratio: str) -> None:
    records_rate, byte_rate = len(group) / spent_s, sum(map(len, group)) / spent_s / 1e6
    shape = f"{len(group)} x {len(group[0])} B"
    print(f"{shape:>14} {label:8} {records_rate:11,.0f} {byte_rate:8,.0f} {spent_s * 1e6:9,.1f}   {ratio}")


if __name__ == "__main__":
    main()
