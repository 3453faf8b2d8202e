"""What ended processes have counted is kept in few files, and no scrape sees it twice, or not at all."""

import os
import subprocess
import sys
from contextlib import contextmanager
from shutil import rmtree

import pytest
from prometheus_client import CollectorRegistry

from app import fold, metric_file
from app.fold import ProcessMetrics
from tests.journal import ROOT
from tests.machine import tmpfs

PROCESS = """
import os
from app import metric_file
metric_file.prepare(os.environ)
from prometheus_client import Counter, Gauge, Histogram
Counter("events", "", ["kind"]).labels("a").inc({count})
seconds = Histogram("seconds", "", buckets=(1, 10))
seconds.observe(0.5), seconds.observe(5)
Gauge("last", "", multiprocess_mode="max").set({count})
Gauge("latest", "", multiprocess_mode="mostrecent").set({count})
Gauge("living", "", multiprocess_mode="livemax").set(1)
print(os.environ.get("PROMETHEUS_MULTIPROC_DIR"), flush=True)
input()
"""


@contextmanager
def process(directory, count=1):
    """A process that counts, and lives until the end."""
    with subprocess.Popen([sys.executable, "-c", PROCESS.format(count=count)], stdin=subprocess.PIPE, text=True,
                          stdout=subprocess.PIPE, cwd=ROOT,
                          env={**os.environ, metric_file.VARIABLE: str(directory)}) as running:
        running.place = running.stdout.readline().strip()
        try:
            yield running
        finally:
            running.kill()


def ended(directory, *counts):
    for count in counts:
        with process(directory, count):
            pass


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "metrics"


def scrape(directory):
    registry = CollectorRegistry()
    registry.register(ProcessMetrics(directory))
    return {(sample.name, *sample.labels.values()): sample.value
            for family in registry.collect() for sample in family.samples}


def expected(*counts, living=0):
    return {("events_total", "a"): sum(counts), ("seconds_bucket", "1.0"): len(counts),
            ("seconds_bucket", "10.0"): 2 * len(counts), ("seconds_bucket", "+Inf"): 2 * len(counts),
            ("seconds_count",): 2 * len(counts), ("seconds_sum",): 5.5 * len(counts), ("last",): max(counts),
            ("latest",): counts[-1], **({("living",): living} if living else {})}


def test_files_do_not_grow_in_number_with_processes_that_end_and_nothing_is_forgotten(directory):
    for _ in range(3):
        ended(directory, 1, 5, 3)
        scrape(directory)
    with process(directory, 2):
        counts = (1, 5, 3) * 3 + (2,)
        assert scrape(directory) == scrape(directory) == expected(*counts, living=1)
        assert len(list(directory.glob("*.db"))) == 9  # four of the ended ones', five of the living one's
    assert scrape(directory) == expected(*counts)
    assert len(list(directory.glob("*.db"))) == 4


@pytest.mark.parametrize("step", ["publish", "unlink", "second publish"])
@pytest.mark.parametrize("is_first", [True, False])
def test_whoever_is_killed_while_it_folds_has_neither_doubled_nor_lost_anything(directory, monkeypatch, step, is_first):
    counts = (4, 7) if is_first else (4, 7, 2)
    if not is_first:
        ended(directory, 4)
        scrape(directory)
    ended(directory, *counts[-2:])
    calls = []

    def killed(*args):
        calls.append(args)
        if step != "second publish" or len(calls) == 2:
            raise KeyboardInterrupt
        return publish(*args)

    publish = metric_file.publish
    with monkeypatch.context() as patch:
        patch.setattr(metric_file, *(("settle", settled(metric_file.settle)) if step == "unlink" else
                                     ("publish", killed)))
        with pytest.raises(KeyboardInterrupt):
            scrape(directory)
    with monkeypatch.context() as patch:
        patch.setattr(fold, "_fold", lambda directory: None)
        found = scrape(directory)
        found.pop(("living",), None)  # which gunicorn removes for its workers
        assert found == expected(*counts)
    assert scrape(directory) == expected(*counts)
    assert len(list(directory.glob("*.db"))) == 4


def settled(settle):
    """Returns it so that its second call is never made."""
    calls = []

    def once(directory):
        calls.append(directory)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return settle(directory)
    return once


def test_who_has_the_number_of_one_that_is_folded_and_not_yet_removed_begins_anew(directory, monkeypatch):
    ended(directory, 4)
    [path] = directory.glob("counter_*.db")
    monkeypatch.setattr(os, "getpid", lambda: int(path.stem.rpartition("_")[2]))
    metric_file.publish(directory, metric_file.Manifest(1, (path.name,)))
    metric_file.prepare({metric_file.VARIABLE: str(directory)})
    assert fold._values(path) == {} and metric_file.manifest(directory) == metric_file.Manifest(1)


def test_a_living_process_of_another_container_is_not_taken_for_one_that_has_ended(directory, monkeypatch):
    with process(directory, 3) as one:
        monkeypatch.setattr(os.path, "exists", lambda path: False)  # as its number is another one there
        assert metric_file.is_alive(directory, one.pid)
        assert scrape(directory) == expected(3, living=1)
    assert not metric_file.is_alive(directory, one.pid)


def test_files_that_are_cut_short_or_foreign_do_not_hide_the_others(directory):
    with process(directory, 3):
        (directory / "counter_1.db").touch()
        (directory / "counter_2.db").write_bytes(b"\xff\xff\xff\x7f" * 3)
        (directory / "note.db").write_bytes(b"")
        assert scrape(directory) == expected(3, living=1)


def test_a_directory_that_is_gone_ends_neither_a_scrape_nor_who_counts_nor_who_starts(directory):
    with process(directory, 1) as before:
        rmtree(directory)
        assert scrape(directory) == {}
        assert before.poll() is None
        with process(directory, 2):
            assert scrape(directory) == expected(2, living=1)


def test_every_kind_of_file_that_our_metrics_write_to_has_its_room_before(tmp_path):
    environ = {**os.environ, metric_file.VARIABLE: str(tmp_path)}
    subprocess.run([sys.executable, "-c", "from app import metric; from ops import metric; from workers import metric"],
                   cwd=ROOT, env=environ, check=True)
    assert {path.stem.rpartition("_")[0] for path in tmp_path.glob("*.db")} == set(metric_file.KINDS)


@pytest.mark.parametrize("files", [2, len(metric_file.KINDS) - 1])
def test_where_there_is_no_room_a_process_runs_and_keeps_its_metrics_to_itself(tmp_path, files):
    with tmpfs(tmp_path, f"{files * 64}k"), process(tmp_path) as one:
        assert one.place == "None" and one.poll() is None
