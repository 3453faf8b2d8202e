"""Log files that are cut while programs append to them: real writers, real file systems."""

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ops.rotation import Rotation
from tests.journal import until
from tests.machine import missing, tmpfs

MAX_BYTES = 1 << 16
LINES = 40_000
# As every program under supervisor: it appends, and knows nothing of what becomes of its file.
WRITER = 'import os,sys\nfor n in range(int(sys.argv[2])): os.write(1, f"{sys.argv[1]} {n:08d}\\n".encode())'


@contextmanager
def writers(path, names):
    """Runs a program for each name, which writes numbered lines to the log, and waits for their ends."""
    with path.open("ab") as file, ExitStack() as running:
        yield [running.enter_context(subprocess.Popen([sys.executable, "-c", WRITER, name, str(LINES)], stdout=file))
               for name in names]


def collect(rotation, path, processes):
    """Rotates until the writers have ended; returns all that was in the log, in its order, and how often it was cut."""
    text, cut_count = b"", 0
    older = path.with_name(f"{path.name}.1")
    while any(process.poll() is None for process in processes) or rotation.step():
        if rotation.step() or older.exists():
            text += older.read_bytes()
            older.unlink()
            cut_count += 1
    if older.exists():
        text += older.read_bytes()
    return text + path.read_bytes(), cut_count


def test_no_line_is_lost_or_doubled_while_a_log_is_cut_under_its_writers(tmp_path):
    path = tmp_path / "busy.log"
    with writers(path, "ab") as processes:
        text, cut_count = collect(Rotation(tmp_path, MAX_BYTES), path, processes)
    if b"log_cut" in text:
        missing(f"a file system under {tmp_path} that takes parts out of files")
    assert cut_count > 5
    for name in "ab":
        numbers = [int(line.split()[1]) for line in text.decode().splitlines() if line.startswith(name)]
        assert numbers == list(range(LINES))
    assert path.stat().st_size <= MAX_BYTES


def test_where_nothing_can_be_taken_out_of_a_file_it_is_cut_and_says_so(tmp_path):
    with tmpfs(tmp_path, "8m"):
        path = tmp_path / "busy.log"
        path.write_bytes(b"old\n" * MAX_BYTES)
        with path.open("ab", buffering=0) as writer:
            assert Rotation(tmp_path, MAX_BYTES).step() == 1
            writer.write(b"new\n")
        assert (tmp_path / "busy.log.1").read_bytes() == b"old\n" * MAX_BYTES
        note, line = path.read_text().splitlines()
        assert note.startswith("log_cut ") and line == "new"


def test_a_full_disk_costs_the_older_part_and_not_the_data_and_says_so(tmp_path, caplog):
    with tmpfs(tmp_path, "1m"):
        path = tmp_path / "busy.log"
        path.write_bytes(b"x" * (700 << 10))
        assert Rotation(tmp_path, MAX_BYTES).step() == 1
        assert path.stat().st_size < MAX_BYTES
        assert not (tmp_path / "busy.log.part").exists()
    assert f"log_part_dropped file=busy.log bytes={(700 << 10) - 4096}" in caplog.text


def test_a_log_within_bounds_and_what_supervisord_rotates_itself_are_left_alone(tmp_path):
    (tmp_path / "small.log").write_bytes(b"x" * MAX_BYTES)
    (tmp_path / "supervisord.log").write_bytes(b"x" * (2 * MAX_BYTES))
    assert Rotation(tmp_path, MAX_BYTES).step() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.log", "supervisord.log"]


def test_only_one_older_part_is_kept(tmp_path):
    path, rotation = tmp_path / "busy.log", Rotation(tmp_path, MAX_BYTES)
    for letter in (b"a", b"b", b"c"):
        with path.open("ab") as file:
            file.write(letter * 2 * MAX_BYTES)
        assert rotation.step() == 1
    assert sorted(one.name for one in tmp_path.iterdir()) == ["busy.log", "busy.log.1"]
    assert sum(one.stat().st_size for one in tmp_path.iterdir()) <= 3 * MAX_BYTES


def test_a_log_that_cannot_be_cut_is_named_once_and_the_others_are_cut(tmp_path, caplog):
    (tmp_path / "a.log").mkdir()
    (tmp_path / "b.log").write_bytes(b"x" * (2 * MAX_BYTES))
    rotation = Rotation(tmp_path, -1)
    assert (rotation.step(), rotation.step()) == (1, 1)
    assert caplog.text.count("log_not_rotated file=a.log") == 1


def test_a_running_stack_keeps_its_logs_within_bounds(stack):
    running = stack(SPILLWAY_LOG_MAX_BYTES=str(MAX_BYTES), SPILLWAY_CONSUMERS="1", SPILLWAY_WORKERS="1")
    logs = running.state / "log"
    for name in ("redis", "ingest"):
        with (logs / f"{name}.log").open("ab") as file:
            file.write(b"planted\n" * MAX_BYTES)
    until(lambda: all((logs / f"{name}.log").stat().st_size < MAX_BYTES for name in ("redis", "ingest")), "the cut")
    both = (logs / "ingest.log.1").read_bytes() + (logs / "ingest.log").read_bytes()
    assert both.count(b"planted\n") == MAX_BYTES and both.startswith(b"[")
    os.kill(running.pid("ingest"), 1)  # HUP: gunicorn says so in its log, behind the cut
    until(lambda: "Handling signal: hup" in (logs / "ingest.log").read_text(), "a line after the cut")
    assert Path(f"/proc/{running.pid('ingest')}/fd/2").readlink() == logs / "ingest.log"
