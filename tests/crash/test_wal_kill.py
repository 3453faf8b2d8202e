"""Writers killed at any moment under a live reader, the order of their system calls, and a disk that is really full."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

import pytest

from tests.crash.wal_victim import Follower, Victim, label_of, labels_of
from tests.journal import ROOT, until
from tests.machine import SEED, calls, strace, tmpfs
from tests.wal_disk import damage, die, drain, writer_at
from wal import frame
from wal.errors import WalFailed, WalFull
from wal.file import Files
from wal.reader import SegmentReader, segments

KILLS = int(os.environ.get("WAL_KILLS") or 40)
WRITERS = 2
PADDINGS = (0, 200, 3000, 30_000)  # from many groups a segment to a segment a group


def kill_some(root, number, chance, follower):
    """Starts writers, kills them at a random moment, and returns what they confirmed and what they tried."""
    with ExitStack() as ends:
        victims = [
            ends.enter_context(Victim(root, f"{number}.{index}", chance.choice(PADDINGS))) for index in range(WRITERS)
        ]
        count, pause_s = chance.choice(((0, 0.1), (1, 0.01), (50, 0.01)))
        until(lambda: (follower.step(), sum(victim.poll() for victim in victims) >= count)[1], "the writers to write")
        time.sleep(chance.uniform(0, pause_s))
        follower.step()
        for victim in victims:
            victim.process.kill()
            assert victim.end() == -signal.SIGKILL, victim.errors
    confirmed, tried = zip(*((victim.confirmed(), victim.tried()) for victim in victims))
    return set().union(*confirmed), set().union(*tried)


def test_killed_at_any_moment_no_confirmed_record_is_lost_and_none_is_made_up(tmp_path):
    print(f"\nWAL_SEED={SEED}")
    follower, chance, confirmed, tried = Follower(tmp_path), Random(SEED), set(), set()
    for number in range(0, KILLS, WRITERS):
        for known, found in zip((confirmed, tried), kill_some(tmp_path, number, chance, follower)):
            known |= found
    until(lambda: (follower.step(), not segments(tmp_path / "log"))[1], "the log to be drained")
    print(f"{KILLS} kills, {len(confirmed)} confirmed, {len(follower.delivered)} delivered, "
          f"{follower.released_count} segments, {follower.torn_count} torn")
    assert confirmed <= follower.delivered <= tried and follower.corrupt_count == 0
    writer = writer_at(tmp_path, Files())
    writer.write([b"next"])
    writer.close()
    assert list((tmp_path / "spares").iterdir()) == []


PATH = re.compile(r'"([^"]+)"')
OPEN = re.compile(r"\d+<([^>]+)>")


def changed(call, arguments, log):
    """Returns the directories of the log that a system call changed."""
    if call == "openat" and "O_CREAT" not in arguments:
        return set()
    return {Path(path).parent for path in PATH.findall(arguments) if log in Path(path).parents}


def test_every_create_rename_and_unlink_is_followed_by_its_directorys_fsync_before_the_next_acknowledgement(tmp_path):
    trace, root = tmp_path / "trace", tmp_path / "root"
    with Victim(root, "traced", 3000, 60, before=strace(trace)) as victim:
        assert victim.end() == 0, victim.errors
    unsynced, acknowledged, syncs, published = set(), 0, 0, 0
    for call, arguments, line in calls(trace):
        assert call != "msync", line
        if call in ("fsync", "fdatasync"):
            syncs += call == "fdatasync" and ".wal" in arguments
            unsynced.discard(Path(OPEN.match(arguments)[1]))
        elif call == "write" and arguments.startswith("1<"):
            acknowledged += 1
            assert not unsynced, f"acknowledged before {unsynced} was synced: {line}"
            assert syncs == acknowledged, line
        elif call != "write":
            published += call.startswith("rename")
            unsynced |= changed(call, arguments, root)
    assert acknowledged == 60 and published > 5 and not unsynced


def changes(trace, root):
    """Yields what was done below the directory, in order, as `<call> <path> …` with paths relative to it."""
    for call, arguments, _ in calls(trace):
        is_sync = call in ("fsync", "fdatasync")
        if is_sync or changed(call, arguments, root):
            paths = (OPEN if is_sync else PATH).findall(arguments)
            yield " ".join([call, *(os.path.relpath(path, root) for path in paths)])


def test_the_reader_syncs_the_removal_of_a_segment_and_the_move_of_a_damaged_one_in_both_places(tmp_path):
    trace, root = tmp_path / "trace", tmp_path / "root"
    for _ in range(2):
        writer = writer_at(root, Files())
        writer.write([b"first"])
        writer.write([b"second"])
        writer.close()
    whole, damaged = (path.name for path in segments(root / "log"))
    damage(root / "log" / damaged)
    program = "import sys, pathlib; from tests.wal_disk import drain; print(drain(pathlib.Path(sys.argv[1])))"
    done = subprocess.run(
        [*strace(trace), sys.executable, "-c", program, root], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "([b'first', b'second', b'second'], 0, 1)\n", done.stderr
    assert list(changes(trace, root)) == [
        f"unlink log/{whole}", "fsync log", "fsync ..", "mkdir quarantine", "fsync .",
        f"rename log/{damaged} quarantine/{damaged}", "fsync quarantine", "fsync log",
    ]


def stop_and_cut(victim, root, size):
    """Stops the writer where its segment has frames behind that size, cuts them off, and lets it go on.

    Returns the moment.
    """
    while True:
        victim.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, victim.process.pid, os.WSTOPPED)
        path = segments(root / "log")[-1]
        reader = SegmentReader(path)
        reaches_behind = any(record.offset > size for record in reader.read(1 << 20)) and not reader.is_sealed
        reader.close()
        if reaches_behind:
            os.truncate(path, size)
        cut_at_ns = time.monotonic_ns()
        victim.process.send_signal(signal.SIGCONT)
        if reaches_behind:
            return cut_at_ns


def begun_after(victim, cut_at_ns):
    """Returns the labels of what the writer began to write after the cut, and confirmed."""
    numbers = [ack.number for ack in victim.acks if ack.began_at_ns > cut_at_ns]
    return {label for number in numbers for label in labels_of("cut", 200, number)}


def test_when_an_intruder_has_cut_a_segment_short_what_its_writer_begins_to_write_later_and_confirms_is_there(tmp_path):
    with Victim(tmp_path, "cut") as victim:
        until(lambda: victim.poll() >= 20, "the writer to write")
        early = [SegmentReader(path) for path in segments(tmp_path / "log")]
        cut_at_ns = stop_and_cut(victim, tmp_path, 4096)
        # Only a store between the writer's look at the length and the cut is its end.
        until(
            lambda: victim.process.poll() or (victim.poll(), len(begun_after(victim, cut_at_ns)) >= 60)[1],
            "the writer to go on",
        )
        victim.process.kill()
        assert victim.end() in (-signal.SIGKILL, -signal.SIGBUS), victim.errors
    for reader in early:
        until(lambda: (reader.read(1 << 20), reader.is_drained)[1], "a reader from before to come to the end")
        reader.close()
    payloads, _, corrupt_count = drain(tmp_path)
    assert corrupt_count >= 1 and len(list((tmp_path / "quarantine").iterdir())) == 1
    assert begun_after(victim, cut_at_ns) <= {label_of(payload) for payload in payloads} <= victim.tried()


def test_a_writer_whose_segment_is_cut_short_under_its_sync_lives_and_stores_that_group_in_another(tmp_path):
    with Victim(tmp_path, "cut", groups=60, fault="intrude:20") as victim:
        assert victim.end() == 0, victim.errors
    payloads, _, corrupt_count = drain(tmp_path)
    assert corrupt_count == 1
    later = {label for number in range(19, 60) for label in labels_of("cut", 200, number)}
    assert len(victim.acks) == 60 and later <= {label_of(payload) for payload in payloads} <= victim.tried()


def cut_behind_the_first(root, writer):
    """Writes two records, and cuts the segment short behind the first. Returns a reader from before."""
    writer.write([b"first"])
    writer.write([b"second"])
    reader = SegmentReader(segments(root / "log")[0])
    first = reader.read(1)[0]
    os.truncate(root / "log" / first.segment, first.offset + frame.framed_bytes(len(first.payload)))
    return reader


@pytest.mark.parametrize("third", [b"third", bytes(100_000)])
def test_what_a_writer_confirms_after_an_intruder_has_cut_its_segment_short_within_a_page_is_there(tmp_path, third):
    writer = writer_at(tmp_path, Files(), segment_bytes=1 << 20, max_bytes=8 << 20)
    cut_behind_the_first(tmp_path, writer).close()
    confirmed = []
    with suppress(WalFailed):
        writer.write([third])
        confirmed.append(third)
    die(writer)
    assert set(confirmed) <= set(drain(tmp_path)[0])


def test_a_reader_counts_a_segment_that_an_intruder_has_cut_short_under_it(tmp_path):
    writer = writer_at(tmp_path, Files())
    reader = cut_behind_the_first(tmp_path, writer)
    die(writer)
    assert reader.read(1) == [] and reader.is_drained
    reader.close()
    assert reader.corrupt_count == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    with tmpfs(tmp_path, "1m") as place:
        yield place


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
