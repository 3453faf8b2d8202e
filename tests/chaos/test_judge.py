"""`spillway chaos` on a service that is broken on purpose, and on the one that is not: the judge tells them apart."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from ops.chaos.disk import TOOLS
from tests import journal
from tests.machine import needs

# What is broken: the file, a line of it, and what stands after it from then on.
SWALLOWED = ("app/committer.py", "        ticket = Ticket(batch, sent_bytes)\n", '''\
        if batch and __import__("zlib").crc32(batch.payload) % 1000 == 0:
            return STREAM
''')
NO_SYNC = ("wal/file.py", """\
        \"\"\"Makes all stores durable, also those through a mapping; unlike `mmap.flush` without holding the GIL.\"\"\"
""", "        return\n")
NO_LEDGER = ("workers/ledger.py", "    verdict = Verdict([], [], [], [], [])\n", '''\
    return Verdict(list(range(len(batches))), [], [], [], [])
''')


def chaos(directory, *words, root=journal.ROOT):
    """Runs `spillway chaos` from a checkout; returns its exit status and the boxes by experiment and text."""
    done = subprocess.run(
        [sys.executable, "-m", "ops.command", "chaos", *words, "--output", str(directory / "report")],
        cwd=directory, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = json.loads((directory / "report/report.json").read_text())
    assert report["is_ticked"] == (done.returncode == 0)
    assert "<svg" in (directory / "report/report.html").read_text()
    boxes = {one["name"]: {box["text"]: box for box in one["boxes"]} for one in report["experiments"]}
    return boxes, report, done.stdout


def broken_copy(directory, file, line, sabotage):
    """Copies the packages, and breaks one file of the copy."""
    for package in ("app", "workers", "wal", "ops", "loadtest"):
        shutil.copytree(journal.ROOT / package, directory / package)
    text = (directory / file).read_text()
    assert text.count(line) == 1
    (directory / file).write_text(text.replace(line, line + sabotage))
    return directory


@pytest.mark.parametrize("experiment", ["redis-outage", "postgres-outage", "consumer-crash", "latency"])
def test_every_box_of_the_checklist_is_ticked(experiment, tmp_path):
    boxes, _, output = chaos(tmp_path, experiment, "--duration", "10", "--rate", "60")
    assert all(box["is_ticked"] for box in boxes[experiment].values()), output


def test_a_request_in_a_thousand_that_is_acknowledged_and_swallowed_is_found(tmp_path):
    root = broken_copy(tmp_path / "broken", *SWALLOWED)
    _, report, output = chaos(tmp_path, "redis-outage", "--duration", "5", "--rate", "0", root=root)
    faults = report["experiments"][0]["verdict"]["faults"]
    assert faults["missing"]["batches"] > 0 and faults["duplicate"]["batches"] == 0, output
    assert not report["is_ticked"]


def test_a_ledger_that_knows_nothing_is_found(tmp_path):
    root = broken_copy(tmp_path / "broken", *NO_LEDGER)
    _, report, output = chaos(tmp_path, "redis-outage", "--duration", "5", root=root)
    faults = report["experiments"][0]["verdict"]["faults"]
    assert faults["duplicate"]["batches"] > 0 and faults["missing"]["batches"] == 0, output
    assert not report["is_ticked"]


def test_what_is_killed_comes_back_by_itself(tmp_path):
    faults = [word for name in ("consumer-kill", "redis-kill", "worker-kill") for word in ("--fault", name)]
    boxes, _, output = chaos(tmp_path, "nemesis", "--minutes", "0.3", "--rate", "40", *faults)
    assert all(box["is_ticked"] for box in boxes["nemesis"].values()), output


def test_a_disk_that_hangs_keeps_nobody_waiting(tmp_path):
    needs(*TOOLS, "fsfreeze")
    faults = "--fault", "wal-hang", "--fault", "redis-kill"  # the second has segments written, and sealed
    boxes, _, output = chaos(tmp_path, "nemesis", "--minutes", "0.5", "--rate", "40", *faults)
    assert all(box["is_ticked"] for box in boxes["nemesis"].values()), output


def test_a_power_cut_finds_an_acknowledgement_before_the_sync(tmp_path):
    needs(*TOOLS)
    nemesis = "nemesis", "--fault", "power-cut", "--minutes", "0.1", "--duration", "5"
    _, report, output = chaos(tmp_path, *nemesis)
    assert report["is_ticked"], output
    root = broken_copy(tmp_path / "broken", *NO_SYNC)
    _, report, output = chaos(tmp_path, *nemesis, root=root)
    faults = report["experiments"][0]["verdict"]["faults"]
    assert faults["missing"]["batches"] > 0 and faults["duplicate"]["batches"] == 0, output


def test_what_stands_in_redis_when_it_is_emptied_is_missed_and_nothing_else(tmp_path):
    boxes, _, output = chaos(tmp_path, "nemesis", "--fault", "redis-flush", "--minutes", "0.2", "--rate", "200")
    assert all(box["is_ticked"] for box in boxes["nemesis"].values()), output
