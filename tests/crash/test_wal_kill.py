"""Writers killed at any moment under a live reader, the order of their system calls, and a disk that is really full."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.journal import ROOT
from tests.wal_disk import drain, writer_at
from wal.errors import WalFull
from wal.file import Files
from wal.reader import SegmentReader, segments

KILLS = 40
WRITERS = 2
DEADLINE_S = 30


def missing(what):
    """Skips, where a person may lack a tool; fails in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is needed")
    pytest.skip(f"{what} is needed")


def start(root, name, padding=200, groups=0, before=()):
    """Starts a writer process."""
    command = [*before, sys.executable, "-m", "tests.crash.wal_victim", root, name, str(padding), str(groups)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


class Follower:
    """One reader of the whole directory, as a replayer follows it."""

    def __init__(self, root):
        self.delivered, self.torn_count, self.corrupt_count, self.released_count = set(), 0, 0, 0
        self._root, self._readers = root, {}

    def step(self):
        """Reads what there is and releases what is drained."""
        for path in segments(self._root / "log"):
            reader = self._readers.get(path) or self._readers.setdefault(path, SegmentReader(path))
            self.delivered |= {record.payload.rstrip(b"x") for record in reader.read(1 << 20)}
            if reader.is_drained:
                self.torn_count += reader.torn_count
                self.corrupt_count += reader.corrupt_count
                self.released_count += 1
                self._readers.pop(path).release(self._root / "quarantine")


def test_killed_at_any_moment_no_confirmed_record_is_lost_and_none_is_made_up(tmp_path):
    follower, confirmed, started_at = Follower(tmp_path), set(), time.monotonic()
    for number in range(KILLS // WRITERS):
        names = [f"{number}.{index}" for index in range(WRITERS)]
        victims = {name: start(tmp_path, name, 200 + 7 * number) for name in names}
        for victim in victims.values():
            assert victim.stdout.readline() == "0\n"
        for _ in range(number % 5 + 1):
            follower.step()
        for name, victim in victims.items():
            victim.kill()
            groups = [0, *map(int, victim.communicate(timeout=DEADLINE_S)[0].split())]
            confirmed |= {f"{name} {group} {index} ".encode() for group in groups for index in range(3)}
    while segments(tmp_path / "log"):
        assert time.monotonic() - started_at < DEADLINE_S
        follower.step()
    print(f"\n{KILLS} kills, {len(confirmed)} confirmed, {len(follower.delivered)} delivered, "
          f"{follower.released_count} segments, {follower.torn_count} torn")
    assert confirmed <= follower.delivered and follower.corrupt_count == 0
    assert all(re.fullmatch(rb"\d+\.\d \d+ [012] ", payload) for payload in follower.delivered)
    writer = writer_at(tmp_path, Files())
    writer.write([b"next"])
    writer.close()
    assert list((tmp_path / "spares").iterdir()) == []


CALL = re.compile(r"\d+ +(\w+)\((.*)\) += (-?\d+)")
PATH = re.compile(r'"([^"]+)"')


def changed(call, arguments, log):
    """Returns the directories of the log that a system call changed."""
    if call == "openat" and "O_CREAT" not in arguments:
        return set()
    return {Path(path).parent for path in PATH.findall(arguments) if log in Path(path).parents}


def test_every_create_rename_and_unlink_is_followed_by_its_directorys_fsync_before_the_next_acknowledgement(tmp_path):
    if not shutil.which("strace"):
        missing("strace")
    trace, root = tmp_path / "trace", tmp_path / "root"
    watched = "trace=openat,rename,renameat,renameat2,unlink,unlinkat,fsync,fdatasync,msync,write,close"
    victim = start(root, "traced", 3000, 60, before=("strace", "-f", "-y", "-s", "300", "-e", watched, "-o", trace))
    out = victim.communicate(timeout=DEADLINE_S)[0]
    assert victim.returncode == 0, out
    unsynced, acknowledged, syncs, published = set(), 0, 0, 0
    for line in trace.read_text().splitlines():
        found = CALL.match(line)
        if not found or found[3].startswith("-"):
            continue
        call, arguments = found[1], found[2]
        assert call != "msync", line
        if call in ("fsync", "fdatasync"):
            syncs += call == "fdatasync" and ".wal" in arguments
            unsynced.discard(Path(arguments[arguments.index("<") + 1:arguments.rindex(">")]))
        elif call == "write" and arguments.startswith("1<"):
            acknowledged += 1
            assert not unsynced, f"acknowledged before {unsynced} was synced: {line}"
            assert syncs == acknowledged, line
        elif call not in ("write", "close"):
            published += call.startswith("rename")
            unsynced |= changed(call, arguments, root)
    assert acknowledged == 60 and published > 5 and not unsynced


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    if os.geteuid() != 0:
        missing("root, to mount a small tmpfs,")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "wal-test", tmp_path], capture_output=True)
    if done.returncode:
        missing(f"a container that may mount ({done.stderr.decode().strip()})")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_on_a_full_disk_the_writer_lives_says_full_and_recovers_when_the_reader_has_released(small_disk):
    writer = writer_at(small_disk, Files(), segment_bytes=128 << 10)
    confirmed = []

    def fill():
        while True:
            record = b"%d " % len(confirmed) + b"x" * 10_000
            writer.write([record])
            confirmed.append(record)

    with pytest.raises(WalFull):
        fill()
    assert len(confirmed) > 60
    with pytest.raises(WalFull):
        writer.write([b"still full"])
    delivered = drain(small_disk)[0]
    assert delivered == confirmed
    writer.write([b"again"])
    writer.close()
    assert drain(small_disk) == ([b"again"], 0, 0)


def test_a_disk_that_another_process_fills_stops_neither_the_current_segment_nor_the_spare(small_disk):
    writer = writer_at(small_disk, Files(), segment_bytes=64 << 10)
    writer.write([b"first"])
    filler = os.open(small_disk / "filler", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError):
        while True:
            os.write(filler, bytes(4096))
    os.close(filler)
    written = 0
    with pytest.raises(WalFull):
        while True:
            writer.write([b"x" * 1000])
            written += 1
    assert written >= 2 * 60  # two segments' worth, every page of them stored to
    assert list((small_disk / "spares").iterdir()) == []
    (small_disk / "filler").unlink()
    writer.write([b"again"])
    writer.close()
    payloads, torn_count, corrupt_count = drain(small_disk)
    assert (len(payloads), torn_count, corrupt_count) == (written + 2, 0, 0)
