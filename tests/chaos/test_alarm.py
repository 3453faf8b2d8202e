"""A real Prometheus watches a real stack and a container beside it, through an outage of Redis."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

from tests import journal
from tests.conftest import pick_port
from tests.prometheus import Prometheus, queries

CALM = {"SpillwayWatchdog"}
CALM_ROUNDS = 10


def post(url, body, kind="text/plain"):
    """Posts to /ingest, and returns the status and the durability."""
    request = urllib.request.Request(f"{url}/ingest", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)["durability"]
    except urllib.error.HTTPError as error:
        return error.code, None


@contextmanager
def container(running, directory):
    """A consumer with its admin listener, as they run in a container, on the servers of a stack."""
    facts, port = running.facts, pick_port()
    environ = {
        **running.environ, "REDIS_URL": facts["redis_url"], "DATABASE_URL": facts["database_url"],
        "SPILLWAY_DATA_DIR": str(directory), "SPILLWAY_ADMIN_PORT": str(port), "SPILLWAY_CONSUMER_NAME": "container",
    }
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "ops.command", "run", "consumer", "admin"],
                                   env=environ, cwd=directory, stdout=log, stderr=log)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def is_watched(running):
    """Tells whether there has been an audit, and a canary has become a row."""
    with urllib.request.urlopen(f"{running.facts['admin_url']}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return all(float(values.get(f"ingest_{what}_timestamp_seconds", 0)) for what in ("audit", "canary"))


@pytest.fixture
def watched(stack, tmp_path):
    """A stack, and the Prometheus that watches it and a container beside it."""
    running = stack(SPILLWAY_CONSUMERS="1", SPILLWAY_CANARY="on")
    journal.until(lambda: is_watched(running), "the first audit, and the first canary to be a row")
    for name in ("container", "prometheus"):
        (tmp_path / name).mkdir()
    own = running.facts["admin_url"].removeprefix("http://")
    with container(running, tmp_path / "container") as other:
        prometheus = Prometheus(tmp_path / "prometheus", pick_port(), [own, other])
        try:
            yield running, prometheus
        finally:
            prometheus.stop()


def rows(running):
    """Returns the messages of this test that are stored, sorted."""
    stored = journal.stored(running.facts["database_url"]).values()
    return sorted(message for batch in stored for message in batch if message.startswith(("before", "during")))


def is_calm(prometheus):
    """Tells whether nothing is wrong: every target up, nothing but what always fires."""
    targets = [one["health"] for one in prometheus.ask("targets")["activeTargets"]]
    return targets == ["up", "up"] and prometheus.firing() == CALM


def rounds_since(prometheus, moment):
    """Returns how often every target was looked at since a moment."""
    found = prometheus.ask("query", query="min(count_over_time(up[1h]))")["result"]
    before = prometheus.ask("query", query="min(count_over_time(up[1h]))", time=moment)["result"]
    return int(found[0]["value"][1]) - int(before[0]["value"][1])


def shown(prometheus, expr):
    """Returns whether a query shows something; requires that it is answered."""
    return bool(prometheus.ask("query", query=expr)["result"])


def test_an_outage_of_redis_is_told_and_is_over_when_it_is_over(watched):
    running, prometheus = watched
    url = running.facts["ingest_url"]
    assert post(url, b"before") == (202, "stream") and post(url, b"{", "application/json") == (422, None)
    journal.until(lambda: is_calm(prometheus), "both targets and calm")
    calm_at = time.time()
    journal.until(lambda: rounds_since(prometheus, calm_at) > CALM_ROUNDS, "some rounds more")
    history = prometheus.ask("query_range", query='ALERTS{alertstate="firing"}', start=calm_at, end=time.time(), step=1)
    assert {one["metric"]["alertname"] for one in history["result"]} == CALM
    seen = {expr for expr in queries() if shown(prometheus, expr)}

    assert "stopped" in running.supervisorctl("stop", "redis")
    for number in range(10):
        assert post(url, f"during {number}".encode()) == (202, "wal")
    journal.until(lambda: prometheus.states().get("SpillwayWalActive") == "pending", "the alert to be pending")
    journal.until(lambda: "SpillwayWalActive" in prometheus.firing(), "the alert to fire")
    journal.until(lambda: "SpillwayRedisDown" in prometheus.firing(), "the cause to be told")
    assert prometheus.firing() <= CALM | {"SpillwayWalActive", "SpillwayRedisDown", "SpillwayProcessDown"}
    seen |= {expr for expr in queries() if shown(prometheus, expr)}

    assert "started" in running.supervisorctl("start", "redis")
    journal.until(lambda: "SpillwayWalActive" not in prometheus.states(), "the alert to be over")
    journal.until(lambda: is_calm(prometheus), "calm")
    expected = ["before", *(f"during {number}" for number in range(10))]
    journal.until(lambda: rows(running) == expected, "every event to be a row")
    assert [expr for expr in queries() if expr not in seen] == []
