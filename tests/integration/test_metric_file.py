"""The metrics' directory on a whole stack, as a logout or a person may remove it."""

import os
import re
import shutil
import signal
from pathlib import Path

from ops import listener, metrics_dir
from tests.journal import until


def test_metrics_that_somebody_removes_stop_nobody_and_come_back(stack):
    running = stack(SPILLWAY_WORKERS="2")
    metrics = metrics_dir.path(running.state)
    assert f"shared in {metrics}" in " ".join(running.spillway("doctor", status=None).stdout.split())
    shutil.rmtree(metrics)
    assert "no longer in" in " ".join(running.spillway("doctor", status=78).stdout.split())
    master = running.pid("ingest")
    before = children(master)
    os.kill(min(before), signal.SIGKILL)
    until(lambda: len(children(master)) == 2 and min(before) not in children(master), "another worker")
    for name in ("consumers:consumer-00", "replayer", "watch", "admin"):
        running.supervisorctl("restart", name)
    ingest, admin = running.facts["ingest_url"], running.facts["admin_url"]
    body = b'{"message": "m"}'
    until(lambda: (listener.ask(ingest, "/ingest", 30, body).status == 202, accepted(admin))[1], "its metrics")
    assert running.pid("ingest") == master
    assert {"admin", "replayer", "watch", "consumers:consumer-00"} <= {
        one["name"] for one in running.facts["processes"] if one["state"] == "RUNNING"}


def children(pid):
    """Returns the pids of a process's children."""
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def accepted(admin_url):
    """Returns how many events the metrics say were accepted; None where they say nothing."""
    try:
        reply = listener.ask(admin_url, "/metrics", 30)
    except listener.ERRORS:
        return None
    found = re.search(r'^ingest_accepted_events_total{durability="\w+"} ([1-9]\S*)$', reply.body.decode(), re.M)
    return found and float(found[1])


def test_status_shows_a_process_that_ends_again_and_again(stack):
    running = stack()
    for _ in range(3):
        pid = running.pid("replayer")
        assert "times in 10 min" not in running.spillway("status").stdout
        os.kill(pid, signal.SIGKILL)
        until(lambda: running.pid("replayer") not in (None, pid), "another one")
    assert "ended 3 times in 10 min" in running.spillway("status").stdout
    [found] = [one for one in running.facts["processes"] if one["name"] == "replayer"]
    assert found["state"] == "RUNNING" and found["detail"].startswith("ended 3 times")
