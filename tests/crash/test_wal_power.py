"""Power cuts under real writers and a reader, at random moments, before every call, and within a sync.

The disk is an ext4 on a loop device, which `EXT4_IOC_SHUTDOWN` cuts off from it: what was not written is lost, as the
page cache is by a power cut. What a drive loses of its own cache is not tested.
"""

import os
import shutil
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import count
from random import Random
from threading import Event

import pytest

from tests.crash.wal_victim import Follower, Victim, label_of
from tests.journal import until
from tests.machine import SEED, Ext4
from tests.wal_disk import CutFiles, damage, drain, make_memory_dir, writer_at
from wal.errors import WalFailed
from wal.file import Files
from wal.reader import SegmentReader, segments

CUTS = int(os.environ.get("WAL_POWER_CUTS") or 12)
WRITERS = 2
PADDINGS = (0, 200, 3000, 30_000)  # from many groups a segment to a segment a group


@pytest.fixture
def disk():
    """An ext4 of its own."""
    place = make_memory_dir()
    try:
        with Ext4(place) as made:
            yield made
    finally:
        shutil.rmtree(place)


def labels_on(disk):
    """Returns the labels of all records on the disk, which stay, and the number of those that are corrupt."""
    payloads, _, corrupt_count = drain(disk.root, is_released=False)
    return {label_of(payload) for payload in payloads}, corrupt_count


def test_what_is_not_synced_is_lost_by_a_power_cut_and_what_is_synced_is_not(disk):
    (disk.root / "lost").write_bytes(b"lost")
    with (disk.root / "kept").open("wb") as kept:
        kept.write(b"kept")
        kept.flush()
        os.fsync(kept.fileno())
        kept.write(b"lost")
        kept.flush()
        disk.cut()
        with pytest.raises(OSError):
            os.fsync(kept.fileno())
    disk.reboot()
    assert (disk.root / "kept").read_bytes() == b"kept"
    (disk.root / "kept").write_bytes(b"alive")


class Outages:
    """Power cuts of one disk, and what was known before each of them."""

    def __init__(self, disk, chance):
        self.follower = Follower(disk.root)
        self.confirmed, self.ends = set(), Counter()
        self._disk, self._chance, self._tried = disk, chance, set()

    def cut(self, number):
        """Lets writers and a reader loose, cuts the power at a random moment, starts again, and judges."""
        with ExitStack() as ends:
            names = [f"{number}.{index}" for index in range(WRITERS)]
            victims = [
                ends.enter_context(Victim(self._disk.root, name, self._chance.choice(PADDINGS))) for name in names
            ]
            began_at_ns, cut_at_ns = self._cut_under_load(victims)
            is_killed = self._chance.random() < 0.5
            for victim in victims:
                self._end(victim, is_killed)
                self._tried |= victim.tried()
                # Not what was confirmed during the cut: for a sync under way, ext4 may then say 0 although the blocks,
                # allocated and written, no longer get marked as such. Without power nobody would hear it.
                self.confirmed |= victim.confirmed(until_ns=began_at_ns)
                assert not [ack for ack in victim.acks if ack.began_at_ns > cut_at_ns], "confirmed without a disk"
        self.follower.forget()
        self._disk.reboot()
        self._judge()

    def _cut_under_load(self, victims):
        is_over = Event()
        acks, pause_s = self._chance.choice(((0, 0.1), (1, 0.01), (30, 0.01), (300, 0.01)))
        with ThreadPoolExecutor(1) as pool:
            following = pool.submit(self._follow, is_over)
            try:
                until(lambda: following.done() or sum(victim.poll() for victim in victims) >= acks, "the load")
                time.sleep(self._chance.uniform(0, pause_s))
                assert not following.done(), following.exception()
                moments = self._disk.cut()
            finally:
                is_over.set()
            following.result()
        return moments

    def _follow(self, is_over):
        with suppress(WalFailed):
            while not is_over.is_set():
                self.follower.step()

    def _end(self, victim, is_killed):
        if is_killed:
            victim.process.kill()
        status = victim.end()
        raised = status == 1 and "wal.errors.WalFailed" in victim.errors
        # A store to a page that the file system can no longer make writable is a SIGBUS.
        assert raised or status == -signal.SIGBUS or (is_killed and status == -signal.SIGKILL), victim.errors
        self.ends["raised" if raised else signal.Signals(-status).name] += 1

    def _judge(self):
        found, corrupt_count = labels_on(self._disk)
        lost = self.confirmed - self.follower.delivered - found
        assert not lost and corrupt_count == 0
        assert found | self.follower.delivered <= self._tried, "made up"


def test_what_a_writer_confirmed_before_a_power_cut_is_read_after_it_and_nothing_is_confirmed_later(disk):
    print(f"\nWAL_SEED={SEED}")
    outages = Outages(disk, Random(SEED))
    for number in range(CUTS):
        outages.cut(number)
    follower = outages.follower
    until(lambda: (follower.step(), not segments(disk.root / "log"))[1], "the log to be drained")
    print(f"{CUTS} cuts, {len(outages.confirmed)} confirmed, {len(follower.delivered)} delivered, "
          f"{follower.released_count} segments, {follower.torn_count} torn; writers: {dict(outages.ends)}")
    assert outages.confirmed <= follower.delivered and follower.corrupt_count == 0
    writer = writer_at(disk.root, Files())
    writer.write([b"next"])
    writer.close()
    assert list((disk.root / "spares").iterdir()) == []


def test_pages_of_a_group_that_reached_the_disk_in_any_order_harm_nothing_confirmed(disk):
    print(f"\nWAL_SEED={SEED}")
    chance, counts = Random(SEED), Counter()
    for number in range(CUTS):
        fault = f"reorder:{chance.randrange(1, 12)}:{chance.randrange(10**9)}"
        with Victim(disk.root, str(number), chance.choice((1000, 3000, 7000)), fault=fault) as victim:
            victim.end()
        assert "WalFailed" in victim.errors or victim.process.returncode == -signal.SIGBUS, victim.errors
        disk.reboot()
        payloads, torn_count, corrupt_count = drain(disk.root)
        found = {label_of(payload) for payload in payloads}
        assert victim.confirmed() <= found <= victim.tried() and corrupt_count == 0
        counts.update(confirmed=len(victim.confirmed()), torn=torn_count, survivors=len(found - victim.confirmed()))
    print(f"{CUTS} cuts, {dict(counts)}")
    assert CUTS < 12 or (counts["torn"] and counts["survivors"]), "no page was reordered"


def test_whichever_call_of_a_writer_the_power_is_cut_before_what_it_had_confirmed_is_there(disk):
    for number in count(1):
        root = disk.root / str(number)
        root.mkdir()
        Files().sync_directory(disk.root)
        # Each group takes a segment of its own.
        with Victim(root, "cut", 20_000, groups=2, fault=f"cut:{number}") as victim:
            if victim.end() == 0:
                break
        assert "WalFailed" in victim.errors or victim.process.returncode == -signal.SIGBUS, victim.errors
        disk.reboot()
        writer = writer_at(root, Files())
        writer.write([b"next 0 "])
        writer.close()
        assert list((root / "spares").iterdir()) == []
        payloads, _, corrupt_count = drain(root)
        found = {label_of(payload) for payload in payloads} - {b"next 0 "}
        assert victim.confirmed() <= found <= victim.tried() and corrupt_count == 0, number
        shutil.rmtree(root)
    assert number > 20


def release_until(root, number):
    """Releases a damaged segment, the power cut before one of the calls. Returns its path and bytes, and if it is gone.
    """
    writer = writer_at(root, Files())
    writer.write([b"first"])
    writer.write([b"second"])
    writer.close()
    path = segments(root / "log")[0]
    damage(path)
    content = path.read_bytes()
    reader = SegmentReader(path, CutFiles(root, number))
    assert [record.payload for record in reader.read(100)] == [b"second"] and reader.is_drained
    is_released = False
    with suppress(WalFailed):
        reader.release(root / "quarantine")
        is_released = True
    reader.close()
    return path, content, is_released


def test_a_power_cut_in_the_midst_of_a_release_leaves_the_segment_or_its_copy(disk):
    is_released = False
    for number in count(1):
        if is_released:
            break
        path, content, is_released = release_until(disk.root, number)
        disk.reboot()
        places = [place for place in (path, disk.root / "quarantine" / path.name) if place.exists()]
        assert places and all(place.read_bytes() == content for place in places), number
        assert not is_released or path not in places
        shutil.rmtree(disk.root / "quarantine", ignore_errors=True)
        path.unlink(missing_ok=True)
    assert number > 8
