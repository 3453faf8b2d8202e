"""`spillway bench`, as a smoke test: every part measures something, and what it says follows from what it measured."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from ops.bench import against, load, plan
from ops.bench.command import BY_NAME, PARTS
from ops.bench.compression import ENTRIES
from ops.bench.latency import QUANTILES, SHARES
from ops.bench.plan import SIZES
from ops.bench.variant import VARIANTS
from tests import journal

# Encoding takes a millisecond more, and 60 ms for a batch of a thousand.
SLOWER = """

_at_once = to_batch


def to_batch(*args, **named):
    ends_at = time.perf_counter() + 0.001 + 2e-7 * len(args[1])
    while time.perf_counter() < ends_at:
        pass
    return _at_once(*args, **named)
"""


def bench(*words, root=journal.ROOT, **environ):
    return subprocess.run([sys.executable, "-m", "ops.command", "bench", "--quick", *words], cwd=root,
                          env={**os.environ, "PYTHONPATH": str(root), **environ}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def document(output):
    done = bench("all", "--json", "--output", str(output))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def of(document, part):
    return [line for line in document["lines"] if line["part"] == part]


def test_every_part_is_measured_and_each_ratio_is_of_its_round(document, output):
    assert json.loads((output / "bench.json").read_text()) == document
    assert {line["part"] for line in document["lines"]} == {*PARTS, *BY_NAME, "curves"}
    for line in document["lines"]:
        assert line["value"] > 0 and len(line["rounds"]) == document["rounds"] == 1
        once, = line["rounds"]
        if line["limit_name"]:
            assert line["ratio"] == pytest.approx(once["value"] / once["limit"], rel=1e-9)
        else:
            assert line["ratio"] is None


def test_end_to_end_is_held_against_a_bare_copy_in_every_size(document):
    stored = [line for line in of(document, "end-to-end") if line["what"] == "HTTP to COMMIT"]
    assert [line["case"] for line in stored] == [f"batches of {size:,}" for size in SIZES]
    for line in stored:
        assert line["limit_name"] == "bare COPY" and line["facts"]["cpu_us load generator"] > 0
    assert all(line["facts"]["cpu_us ingest"] > 0 for line in stored)
    posts, = (line for line in of(document, "end-to-end") if "gunicorn" in line["limit_name"])
    single = next(line for line in of(document, "end-to-end") if line["what"] == "acknowledged")
    assert posts["value"] == single["value"]


def test_latency_is_told_at_each_share_of_the_top_rate_with_its_generators_lateness(document):
    top, *shares = of(document, "latency")
    for line, share in zip(shares, SHARES, strict=True):
        assert line["facts"]["asked requests/s"] == pytest.approx(share * top["value"])
        values = [line["facts"][f"{name} ms"] for name in QUANTILES]
        assert values == sorted(values) and line["value"] == line["facts"]["p99 ms"]
        assert "generator late p99 ms" in line["facts"]


def test_every_variant_of_the_table_is_held_against_the_table_as_it_is_made(document):
    as_made, _, *others = of(document, "table")
    assert [line["what"] for line in others] == [
        f"{variant.name}{what}" for variant in VARIANTS for what in ("", ", CPU")]
    assert all(line["limit_name"] == as_made["case"] for line in others)
    found = {line["what"]: line["facts"] for line in others}
    assert found["no BRIN"]["bytes indexes"] == 0 < as_made["facts"]["bytes indexes"]
    assert found["and btree on trace_id"]["bytes indexes"] > 32 + as_made["facts"]["bytes indexes"]
    assert found["UNLOGGED, emptied by a crash"]["bytes WAL"] < 0.1 * as_made["facts"]["bytes WAL"]


def test_compression_is_held_against_what_each_program_spends(document):
    for size in ENTRIES:
        lines = {line["what"]: line for line in of(document, "compression") if line["case"] == f"batches of {size:,}"}
        assert lines["zstd level 1"]["value"] < lines["zstd level 1"]["limit"]
        assert lines["compress"]["limit"] == lines["zstd level 1"]["facts"]["cpu_us ingest"]
        parts = sum(lines[name]["value"] for name in ("compress", "Redis", "decompress"))
        assert lines["compress, Redis, decompress"]["value"] == pytest.approx(parts)
        assert lines["compress, Redis, decompress"]["limit"] == lines["Redis"]["limit"]


def test_the_curves_hold_each_point_against_the_first_right_beside_it_and_show_memory(document):
    one = plan.make(load.generator("own"), is_quick=True)
    lines = of(document, "curves")
    backlogs = [line for line in lines if line["limit_name"] == "1,000 batches"]
    assert [line["case"] for line in backlogs] == [f"backlog of {length:,} batches" for length in one.backlogs]
    tables = [line for line in lines if line["limit_name"] == "empty table"]
    assert [line["case"] for line in tables] == [f"table of {rows:,} rows" for rows in one.table_rows]
    # Measured anew beside each point, the first one's included: no two are the same figure.
    assert len({line[name] for line in backlogs + tables for name in ("value", "limit")}) == 2 * len(backlogs + tables)
    for line in backlogs + tables:
        assert all(line["facts"][f"memory MiB {name}"] > 0 for name in ("ingest", "redis", "postgres", "watch"))
        assert line["facts"]["cpu_us consumers"] > 0 and line["facts"]["rewrite s"] > 0
    redis = [line["facts"]["memory MiB redis"] for line in backlogs]
    assert redis == sorted(redis)
    workers = [line for line in lines if line["limit_name"] == "1 worker"]
    assert [line["case"].split(",")[0] for line in workers] == ["1 worker", "2 workers"] * 2
    assert {line["case"] for line in lines} == {line["case"] for line in backlogs + tables + workers}


def test_results_say_where_they_were_made_and_plots_follow_the_page(document, output):
    text = (output / "RESULTS.md").read_text()
    assert document["commit"] in text and document["machine"]["cpu"] in text
    assert document["machine"]["fdatasync_p50_us"] > 0 and document["settings"]["workers"] >= 1
    for name in ("end-to-end", "latency", "drain", "curves"):
        drawn = (output / f"{name}.svg").read_text()
        assert "prefers-color-scheme: dark" in drawn and drawn.count("<path") > 10


def test_what_has_become_slower_than_another_checkout_is_not_held(tmp_path):
    slow, output = tmp_path / "slow", tmp_path / "output"
    for name in ("app", "workers", "wal", "ops"):
        shutil.copytree(journal.ROOT / name, slow / name)
    form = slow / "app" / "form.py"
    form.write_text(form.read_text() + "\n\nimport time" + SLOWER)
    done = bench("end-to-end", "--against", str(journal.ROOT), "--output", str(output), root=slow)
    assert done.returncode == 1 and done.stdout.count("NOT HELD: batches of") == len(against.SIZES), done.stderr
    document = json.loads((output / "bench.json").read_text())
    for one, line in zip(document["verdicts"], rates(document, against.NEW), strict=True):
        assert not one["is_held"] and one["new_over_old"] == line["ratio"] and one["new_cpu"] > 2
    for one, line in zip(document["verdicts"], rates(document, against.AGAIN), strict=True):
        assert one["old_over_old"] == line["ratio"] and one["old_cpu"] < 2
        assert line["facts"]["cpu_us postgres"] > 0 and line["facts"]["cpu_us ingest"] > 0
    assert "NOT HELD" in (output / "RESULTS.md").read_text()
    # And the other way round, what has become faster is held.
    done = bench("--against", str(slow), "--output", str(output))
    assert done.returncode == 0 and done.stdout.count("held: batches of") == len(against.SIZES), done.stderr


def rates(document, name):
    return [line for line in document["lines"] if line["what"] == f"HTTP to COMMIT, {name}"]


@pytest.mark.parametrize("words, says", [
    (["--against", "{empty}"], "is not a checkout of Spillway: there is no ops/command.py in it"),
    (["latency", "--against", "{root}"], "--against measures end-to-end alone"),
])
def test_what_cannot_be_compared_is_refused_before_anything_is_started(tmp_path, words, says):
    places = {"empty": tmp_path, "root": journal.ROOT}
    done = bench(*(word.format(**places) for word in words), "--output", str(tmp_path / "none"))
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_refused_request_ends_it_without_figures(tmp_path):
    done = bench("end-to-end", "--generator", "own", "--output", str(tmp_path / "none"), SPILLWAY_MAX_BODY_BYTES="1024")
    assert done.returncode == 1 and not done.stdout
    assert "answered with 413" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "none").exists()
