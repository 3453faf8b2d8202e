"""`spillway wal`: what it shows, verifies and exports, and that `repair` only plans until it is told to do it."""

import errno
import json
import os
from contextlib import contextmanager

import pytest

from app.batch import to_record
from ops import command
from tests import journal
from tests.wal_disk import die, writer_at
from wal.file import PAGE_BYTES, Files
from wal.reader import segments


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data directory whose log lies in `log`, as `writer_at` makes it."""
    monkeypatch.setenv("SPILLWAY_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SPILLWAY_WAL_DIR", str(tmp_path / "log"))
    return tmp_path


@pytest.fixture
def spillway(capsys):
    """Runs the command: returns its exit status, what it printed, and what it complained of."""
    def run(*words):
        status = command.main(["wal", *map(str, words)])
        return status, *capsys.readouterr()
    return run


@contextmanager
def held(directory):
    """Holds the replayer's turn on the log."""
    fd = Files().hold(directory)
    try:
        yield
    finally:
        os.close(fd)


def write(root, *batches, is_sealed=True):
    writer = writer_at(root, Files(), segment_bytes=1 << 16)
    for one in batches:
        writer.write([to_record(one)])
    if is_sealed:
        writer.close()
    return writer


def damage(path, what):
    data = path.read_bytes()
    path.write_bytes(data.replace(what, what.swapcase()))


def test_an_empty_log_is_said_to_be_empty(root, spillway):
    (root / "log").mkdir()
    with held(root / "log"):
        for action in ("status", "verify"):
            assert spillway(action) == (0, f"The WAL in {root / 'log'} is empty.\n", "")
        assert spillway("export") == (0, "", "")


def test_that_nobody_works_on_the_log_is_said_as_it_may_be_another_one_that_is_meant(root, spillway):
    nobody = f"No replayer is at work on {root / 'log'}: "
    status, out, complaint = spillway("status")
    assert (status, complaint) == (0, "") and out.startswith(f"The WAL in {root / 'log'} is empty.\n{nobody}")
    write(root, journal.make_batch())
    assert spillway("verify")[1].splitlines()[-1].startswith(nobody)
    status, out, complaint = spillway("status", "--json")
    assert json.loads(out)["records"] == 1 and complaint.startswith(nobody)
    assert nobody not in spillway("verify", *segments(root / "log"))[1]
    with held(root / "log"):
        assert nobody not in spillway("status")[1]


@pytest.mark.parametrize("action", ["verify", "export"])
def test_a_pattern_that_matches_nothing_is_a_wrong_argument(root, spillway, action):
    status, out, complaint = spillway(action, root / "log.quarantine" / "*.wal")
    assert (status, out) == (2, "")
    assert complaint == f"spillway wal: there is no file {root / 'log.quarantine' / '*.wal'}\n"


def test_a_log_that_cannot_be_read_is_one_line(root, spillway):
    (root / "log").write_text("no directory")
    for action in ("status", "verify", "export", "repair"):
        status, out, complaint = spillway(action)
        assert (status, out, len(complaint.splitlines())) == (1, "", 1)


def test_status_counts_records_and_tells_the_live_segment_from_the_sealed(root, spillway):
    write(root, journal.make_batch(), journal.make_batch())
    writer = write(root, journal.make_batch(), is_sealed=False)
    status, out, _ = spillway("status", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [(one["records"], one["is_sealed"], one["corrupt"]) for one in found] == [(2, True, 0), (1, False, 0)]
    assert [line.split()[3] for line in spillway("status")[1].splitlines()[1:3]] == ["sealed", "live"]
    die(writer)


def test_verify_fails_when_an_acknowledged_record_is_damaged(root, spillway):
    write(root, journal.make_batch("first"), journal.make_batch("second"))
    assert spillway("verify")[0] == 0
    path, = segments(root / "log")
    damage(path, b"first 1")
    status, out, _ = spillway("verify", "--json")
    assert status == 1 and json.loads(out)["corrupt"] == 1
    assert spillway("verify", path)[0] == 1


def test_export_shows_every_readable_batch_with_its_events_and_says_what_it_left_out(root, spillway):
    one = journal.make_batch("text", count=2)
    write(root, one)
    writer = writer_at(root, Files())
    writer.write([b"no batch"])
    writer.close()
    (root / "log" / "00000000000000000001-a-directory.wal").mkdir()
    status, out, complaint = spillway("export")
    document = json.loads(out)
    assert (status, document["batch_id"], document["count"]) == (1, one.batch_id, 2)
    assert [event["message"] for event in document["events"]] == ["text 0", "text 1"]
    assert "is no batch" in complaint and "a-directory" in complaint
    assert spillway("export", segments(root / "log")[1])[0] == 0


def test_repair_moves_what_cannot_be_read_only_when_told_to_and_leaves_the_rest(root, spillway):
    write(root, journal.make_batch())
    idle = spillway("repair")[1]
    assert f"Nothing to repair in {root / 'log'}, which has 1 segment." in idle and "No replayer is at work" in idle
    (root / "log" / "00000000000000000001-a-directory.wal").mkdir()
    status, out, _ = spillway("repair")
    assert status == 0 and "would be moved" in out and len(segments(root / "log")) == 2
    status, out, _ = spillway("repair", "--apply")
    assert status == 0 and "; moved" in out and len(segments(root / "log")) == 1
    assert [path.name for path in (root / "log.quarantine").iterdir()] == ["00000000000000000001-a-directory.wal"]


def test_export_shows_what_lies_before_and_behind_a_page_that_the_disk_cannot_read(root, spillway, monkeypatch):
    batches = [journal.make_batch(f"batch {number}", count=20) for number in range(9)]
    write(root, *batches)
    pread, bad = os.pread, range(2 * PAGE_BYTES, 3 * PAGE_BYTES)

    def fail(fd, count, offset):
        if offset in bad:
            raise OSError(errno.EIO, "the test's")
        return pread(fd, min(count, bad[0] - offset) if offset < bad[0] else count, offset)

    monkeypatch.setattr(os, "pread", fail)
    status, out, complaint = spillway("export")
    found = [json.loads(line)["batch_id"] for line in out.splitlines()]
    assert status == 1 and "the test's" in complaint
    assert 5 <= len(found) < 9 and {found[0], found[-1]} == {batches[0].batch_id, batches[-1].batch_id}
    status, out, _ = spillway("verify", "--json")
    assert (status, json.loads(out)["records"], "the test's" in json.loads(out)["error"]) == (1, len(found), True)
