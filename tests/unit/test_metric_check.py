"""Whose metrics may vanish, and whose have."""

import mmap
import os
from pathlib import Path

from ops.checkup import metric_check


def test_a_file_that_is_mapped_and_gone_is_found(tmp_path):
    path = tmp_path / "counter_1.db"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        assert metric_check.shared(tmp_path, [os.getpid(), 2**22 + 1], 0).level == "ok"
        path.unlink()
        assert metric_check.shared(tmp_path, [os.getpid()], 0).level == "bad"
        assert metric_check.shared(tmp_path / "other", [os.getpid()], 0).level == "ok"


def test_shared_memory_of_a_person_may_vanish_where_systemd_runs_the_machine(tmp_path):
    place = Path("/dev/shm/spillway-0")
    assert metric_check.shared(place, [], 1000, tmp_path).level == "warn"
    assert metric_check.shared(place, [], 999, tmp_path).level == "ok"
    assert metric_check.shared(place, [], 1000, tmp_path / "none").level == "ok"
    assert metric_check.shared(tmp_path, [], 1000, tmp_path).level == "ok"
