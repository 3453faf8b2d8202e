"""A device that fails and heals, and what a device is given to write.

The failing device is a loop on a file with holes, in a file system in memory that has no room to fill them: a real
error of the block layer below a live ext4.
"""

import fcntl
import os
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.machine import Ext4, tmpfs
from tests.wal_disk import drain, writer_at
from wal import frame
from wal.errors import WalError
from wal.file import PAGE_BYTES, Files
from wal.reader import SegmentReader, segments

FIBMAP = 1  # which block of the device a block of a file lies in


@pytest.fixture
def failing_disk(tmp_path):
    """An ext4 whose blocks in use are there, and the others only as long as a file system in memory has room."""
    with tmpfs(tmp_path, "20m"), Ext4(tmp_path) as made:
        made.punch_free_blocks()
        yield made


def fill(path):
    """Takes all that is left of a file system."""
    with path.open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(bytes(4096))


class Syncs(Files):
    """Real files that remember, for each segment by its identity, how its syncs went."""

    def __init__(self):
        self.outcomes = {}

    def sync(self, fd):
        """Remembers."""
        name = Path(os.readlink(f"/proc/self/fd/{fd}")).stem[-32:]
        outcomes = self.outcomes.setdefault(name, [])
        outcomes.append("failed")
        super().sync(fd)
        outcomes[-1] = "ok"


def write_some(writer, numbers):
    """Writes groups, and returns the records of those that were confirmed and of those that failed."""
    confirmed, failed = [], []
    for number in numbers:
        group = [b"%d %d " % (number, index) + b"x" * 8000 for index in range(3)]
        try:
            writer.write(group)
            confirmed += group
        except WalError:
            failed += group
    return confirmed, failed


def test_a_segment_that_a_failing_device_did_not_write_is_not_synced_again_and_nothing_confirmed_is_lost(
    failing_disk, tmp_path
):
    files = Syncs()
    writer = writer_at(failing_disk.root, files, segment_bytes=1 << 20, max_bytes=16 << 20)
    before, none = write_some(writer, range(10))
    fill(tmp_path / "filler")
    during, failed = write_some(writer, range(10, 40))
    (tmp_path / "filler").unlink()
    after, still_failed = write_some(writer, range(40, 60))
    writer.close()
    assert before and during and failed and after and not none and not still_failed
    assert writer.poisoned_count >= 2
    assert all("failed" not in outcomes[:-1] for outcomes in files.outcomes.values()), "synced again"
    failing_disk.reboot()
    payloads, torn_count, corrupt_count = drain(failing_disk.root)
    print(f"\n{len(before + during + after)} confirmed, {len(payloads)} delivered, {torn_count} torn; "
          f"{writer.poisoned_count} poisoned")
    assert {*before, *during, *after} <= {*payloads} <= {*before, *during, *after, *failed} and corrupt_count == 0
    assert torn_count, "the device lost nothing"


@pytest.fixture
def disk(tmp_path):
    """An ext4 of its own."""
    with Ext4(tmp_path) as made:
        yield made


@contextmanager
def unreadable_from(image, path, page):
    """Has the device fail to read all from one page of a file on, while the context is; nothing of it is cached."""
    with path.open("rb") as segment:
        block = int.from_bytes(fcntl.ioctl(segment, FIBMAP, page.to_bytes(4, "little")), "little")
        os.posix_fadvise(segment.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with image.open("r+b", buffering=0) as device:
        device.seek(block * PAGE_BYTES)
        kept = device.read(image.stat().st_size)
        device.truncate(block * PAGE_BYTES)
        yield
        device.seek(block * PAGE_BYTES)
        device.write(kept)


def test_what_a_device_cannot_read_is_neither_taken_for_the_end_of_the_log_nor_for_damage_and_comes_once_it_can(
    disk, tmp_path
):
    writer = writer_at(disk.root, Files(), segment_bytes=1 << 20)
    confirmed, _ = write_some(writer, range(20))
    writer.close()
    path, = segments(disk.root / "log")
    reader = SegmentReader(path)
    ends = [record.offset + frame.framed_bytes(len(record.payload)) for record in reader.read(1 << 20)]
    reader.close()
    assert len(ends) == len(confirmed)
    for page in range(0, ends[-1] // PAGE_BYTES, 7):
        delivered = []
        with unreadable_from(tmp_path / "image", path, page), suppress(WalError):
            reader = SegmentReader(path)
            while records := reader.read(100_000):
                delivered += [record.payload for record in records]
        assert len(delivered) == sum(end <= page * PAGE_BYTES for end in ends), page
        reader = reader if page else SegmentReader(path)
        assert (reader.is_drained, reader.torn_count, reader.corrupt_count) == (False, 0, 0), page
        while records := reader.read(100_000):
            delivered += [record.payload for record in records]
        assert (delivered, reader.is_drained, reader.corrupt_count) == (confirmed, True, 0), page
        reader.close()


@pytest.mark.parametrize("first", [6, 100_000, 300_000])
def test_a_commit_of_700_bytes_is_less_than_three_pages_to_the_device_also_behind_a_large_one(disk, first):
    writer = writer_at(disk.root, Files(), segment_bytes=1 << 20)
    writer.write([bytes(first)])
    writer.write([b"has all that is ahead written"])
    written_bytes = [disk.written_bytes]
    for _ in range(200):
        writer.write([b"x" * 200] * 3)
        written_bytes.append(disk.written_bytes)
    writer.close()
    each = sorted(after - before for before, after in zip(written_bytes, written_bytes[1:]))
    mean = sum(each) / len(each)
    print(f"\na commit to the device: mean {mean:,.0f} bytes, median {each[len(each) // 2]:,}, most {each[-1]:,}")
    assert mean < 3 * 4096
