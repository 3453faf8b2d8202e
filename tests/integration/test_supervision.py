"""What supervisor keeps up when servers, programs or itself are away, and what `spillway status` says meanwhile."""

import json
import os
import re
import signal
from contextlib import closing
from urllib.parse import urlsplit

import pytest
import redis

from ops import family
from tests.conftest import ROOT
from tests.integration.test_stack import count, is_stored, post
from tests.journal import until

# With supervisor's own three retries, a program that ends at once would be FATAL after these seconds.
LONGER_THAN_RETRIES_S = 12


def states(running):
    """Returns the states by the programs' names."""
    return {one["name"]: one["state"] for one in running.facts["processes"]}


def pids(running):
    """Returns the pids by the programs' names."""
    return {one["name"]: one["pid"] for one in running.facts["processes"]}


def screen(running, status=0):
    """Returns the lines of `spillway status` by their first words, and checks that they fit on a screen."""
    lines = running.spillway("status", status=status).stdout.splitlines()
    assert len(lines) <= 30 and max(map(len, lines)) <= 100
    return {name.strip(): text for name, text in ((line[:18], line[18:].strip()) for line in lines)}


def test_servers_that_are_away_from_the_start_end_no_program_and_all_recovers_by_itself(
    stack, redis_server, database_url, postgres_server
):
    redis_server.stop()
    postgres_server.stop()
    running = stack(is_started=False, REDIS_URL=redis_server.url, DATABASE_URL=database_url, SPILLWAY_WORKERS="1")
    running.spillway("up", "--detach", "--wait", "5", status=os.EX_TEMPFAIL)
    before = pids(running)
    assert post(running.facts["ingest_url"], "nobody was there") == 202
    until(lambda: all(one["uptime_s"] > LONGER_THAN_RETRIES_S for one in running.facts["processes"]), "time to pass")
    assert set(states(running).values()) == {"RUNNING"} and pids(running) == before
    shown = screen(running)
    assert shown["wal"].startswith("active: 1 segment")
    assert shown["redis"].startswith("unknown (admin: connect") and shown["stream"] == "unknown, as above"
    assert shown["postgres"].startswith("unknown (")
    redis_server.start()
    postgres_server.start()
    until(lambda: count(database_url, "nobody was there") == 1, "the row")
    assert pids(running) == before
    until(lambda: screen(running)["wal"] == "idle", "the WAL to be drained")
    assert screen(running)["last load"].endswith(" ago")


def test_a_broken_program_is_shown_and_tried_again_and_the_others_go_on(stack, tmp_path):
    running = stack(PYTHONPATH=f"{tmp_path}:{ROOT}", SPILLWAY_CONSUMERS="1", SPILLWAY_WORKERS="1")
    facts = running.facts
    consumer = tmp_path / "workers" / "consumer.py"
    consumer.parent.mkdir()
    (tmp_path / "workers" / "__init__.py").write_text("")
    consumer.write_text("raise SystemExit('planted')")
    os.kill(running.pid("consumers:consumer-00"), signal.SIGKILL)
    name = "consumers:consumer-00"
    log = running.state / "log" / "consumer-00.log"
    until(lambda: log.read_text().count("planted") > 4, "more than supervisor's own retries")
    seen = until(lambda: states(running) if states(running)[name] == "BACKOFF" else None, "the state")
    assert {seen[one] for one in seen if one != name} == {"RUNNING"}
    until(lambda: "times in 10 min" in running.spillway("status").stdout, "the screen to say so")
    assert post(facts["ingest_url"], "while it was broken") == 202
    for path in sorted(consumer.parent.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    consumer.parent.rmdir()
    until(lambda: count(facts["database_url"], "while it was broken") == 1, "the row")
    until(lambda: states(running)[name] == "RUNNING", "the consumer to have run for its first second")


def test_a_stopped_supervisord_blocks_nobody_is_said_and_goes_on(stack):
    running = stack(SPILLWAY_LOG_LEVEL="DEBUG", SPILLWAY_CONSUMERS="1", SPILLWAY_WORKERS="1")
    facts, before = running.facts, pids(running)
    [supervisord] = family.supervisords(running.state)
    os.kill(supervisord, signal.SIGSTOP)
    try:
        for number in range(3):
            os.kill(before["ingest"], signal.SIGHUP)
            assert is_stored(facts, f"nobody supervises {number}")
        refused = running.spillway("status", status=1)
        assert "does not answer" in refused.stderr and "takes batches" in refused.stdout
        assert "last load" in refused.stdout
    finally:
        os.kill(supervisord, signal.SIGCONT)
    until(lambda: running.spillway("status", status=None).returncode == 0, "supervisord")
    assert pids(running) == before
    assert is_stored(facts, "supervised again")


@pytest.fixture
def waiting(stack):
    """A stack without consumers, in which a batch and a dead letter wait."""
    running = stack(SPILLWAY_CONSUMERS="1", SPILLWAY_WORKERS="1")
    facts = running.facts
    assert is_stored(facts, "one")
    running.supervisorctl("stop", "consumers:*")
    with closing(redis.Redis.from_url(facts["redis_url"])) as client:
        client.xadd("log_events_dlq", {"reason": "not_an_entry"})
    assert post(facts["ingest_url"], "two") == 202
    return running


def test_the_screen_shows_what_waits_where_and_what_does_not_answer(waiting):
    shown = screen(waiting)
    assert shown["stream"].startswith("1 batch, ") and shown["stream"].endswith("0 pending, 1 waiting")
    assert shown["dead letters"].startswith("1 letter, ")
    assert (shown["ingest"], shown["redis"], shown["wal"]) == ("takes batches", "answers", "idle")
    assert shown["consumers"].startswith("1 in the group, last active")
    with closing(redis.Redis.from_url(waiting.facts["redis_url"])) as client:
        client.xgroup_destroy("log_events", "log-processors")
        client.xgroup_create("log_events", "log-processors", "0")
    assert screen(waiting)["consumers"] == "none at present (idle ones are removed)"
    waiting.supervisorctl("stop", "admin")
    shown = screen(waiting)
    assert shown["redis"] == "unknown (admin does not answer: [Errno 111] Connection refused)"
    assert shown["wal"] == shown["stream"] == "unknown, as above"
    assert shown["ingest"] == "takes batches" and shown["postgres"].startswith("answers; partitions until")
    assert re.search(r"^admin +STOPPED +- +-  since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$",
                     waiting.spillway("status").stdout, re.MULTILINE)
    waiting.supervisorctl("stop", "ingest")
    assert screen(waiting)["ingest"].startswith("unknown (ingest does not answer")


def test_the_screen_says_when_the_last_audit_was_and_what_it_found(waiting):
    until(lambda: "ago" in screen(waiting)["audit"], "the first audit")
    assert screen(waiting)["audit"].startswith("balanced, ")


def test_the_json_says_the_same(waiting):
    facts = waiting.facts
    state = facts["state"]
    assert (state["stream"]["entries"], state["stream"]["dead_letters"]["entries"]) == (1, 1)
    assert state["metrics"]["last_load_at"] > 1.7e9 and state["wal"]["active"] is False
    assert state["postgres"]["partitions_until"] and state["ingest"] == {"status": "ready"}
    waiting.supervisorctl("stop", "admin", "postgres")
    state = waiting.facts["state"]
    assert "admin does not answer" in state["wal"]["unknown"] and "unknown" in state["postgres"]
    assert urlsplit(facts["database_url"]).password not in json.dumps(state)


def test_many_consumers_share_a_line(stack):
    running = stack(SPILLWAY_CONSUMERS="9", SPILLWAY_WORKERS="1")
    assert "consumers:* (9)" in running.spillway("status").stdout
    running.supervisorctl("stop", "consumers:consumer-03")
    text = running.spillway("status").stdout
    assert "consumers:* (8)" in text and "consumers:consumer-03" in text and len(text.splitlines()) <= 30
