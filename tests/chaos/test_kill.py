"""The whole stack under supervisor and load: processes are killed, and the receipts are held against the rows."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest

from tests import journal

LOAD_S = 8


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_a_consumer(stack, number):
    if pid := stack.pid(f"consumers:consumer-{number % 2:02d}"):
        os.kill(pid, signal.SIGKILL)
        return True


def kill_a_worker(stack, number):
    master = stack.pid("ingest")
    if master and (workers := children(master)):
        os.kill(workers[number % len(workers)], signal.SIGKILL)
        return True


def restart_the_consumers(stack, number):
    return "started" in stack.supervisorctl("restart", "consumers:*")


FAULTS = {"consumer": kill_a_consumer, "worker": kill_a_worker, "restart": restart_the_consumers}


@contextmanager
def load(stack, receipts):
    """Runs locust on the stack for LOAD_S, and ends it whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--only-summary", "-u", "10",
         "-r", "10", "-t", f"{LOAD_S}s", "-H", stack.facts["ingest_url"], "--receipts", str(receipts)],
        cwd=journal.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def verify(stack, receipts):
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.verify", str(receipts), "--wait", "60", "--json",
         "--database-url", stack.facts["database_url"]],
        cwd=journal.ROOT, capture_output=True, text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("fault", FAULTS)
def test_under_load_nothing_acknowledged_is_lost_and_nothing_is_stored_twice(fault, stack, tmp_path):
    running = stack()
    receipts = tmp_path / "receipts.jsonl"
    injected = 0
    pause = threading.Event()
    with load(running, receipts) as locust:
        journal.until(lambda: receipts.exists() and b'"accepted"' in receipts.read_bytes(), "the load to begin")
        while locust.poll() is None:
            injected += bool(FAULTS[fault](running, injected))
            pause.wait(1.0)  # the rhythm of the faults, not a wait for anything
        assert locust.returncode == 0
    verdict = verify(running, receipts)
    assert verdict["clean"], verdict
    assert injected >= 2 and verdict["outcomes"]["accepted"]["batches"] > 100
    running.spillway("audit", "--wait", "60")


def test_one_key_posted_100_times_from_8_threads_is_one_batch(stack):
    running = stack()
    body = json.dumps([{"message": f"event {index}"} for index in range(10)]).encode()
    url = f"{running.facts['ingest_url']}/ingest"

    def post(_):
        headers = {"Content-Type": "application/json", "Idempotency-Key": "the same"}
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as response:
            return json.loads(response.read())["batch_id"]

    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(post, range(100)))
    assert len(ids) == 1
    database_url = running.facts["database_url"]
    journal.until(lambda: journal.stored(database_url), "the batch to be stored")
    # A second batch that comes through the same consumers is stored after all copies of the first were looked at.
    with closing(psycopg2.connect(running.facts["database_url"])) as connection, connection.cursor() as cursor:
        journal.until(lambda: metric(running, "ingest_duplicate_batches_total") == 99, "99 copies to be recognised")
        cursor.execute("SELECT count(*), count(DISTINCT batch_index) FROM log_events")
        assert cursor.fetchone() == (10, 10)


def metric(stack, name):
    """Returns the sum over a metric's series, as the admin listener shows it for all processes."""
    with urllib.request.urlopen(f"{stack.facts['admin_url']}/metrics") as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def test_metrics_cover_every_process_of_the_host(stack):
    running = stack(SPILLWAY_WORKERS="2")
    workers = children(running.pid("ingest"))
    assert len(workers) == 2
    for number in range(20):
        request = urllib.request.Request(f"{running.facts['ingest_url']}/ingest", b"one line",
                                         {"Content-Type": "text/plain"})
        urllib.request.urlopen(request).close()
    journal.until(lambda: metric(running, "ingest_accepted_events_total") == 20, "the workers' count")
    journal.until(lambda: metric(running, "ingest_loaded_events_total") == 20, "the consumers' count")
    assert metric(running, "ingest_redis_up") == 1
