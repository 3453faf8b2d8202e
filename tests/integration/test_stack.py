"""The whole stack as an operator meets it: started, looked at, broken and ended with the `spillway` command."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2
import pytest

from ops import family
from tests.conftest import ROOT, pick_port, until
from tests.machine import missing

PROGRAMS = {
    "redis", "postgres", "keeper", "ingest", "replayer", "admin", "watch", "logs", "consumers:consumer-00",
    "consumers:consumer-01",
}


def post(url, message):
    """Posts one event and returns the status."""
    body = json.dumps({"message": message}).encode()
    request = urllib.request.Request(f"{url}/ingest", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.status


def get(url):
    """Returns the body of a page."""
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


def count(database_url, message):
    """Returns how many rows hold the message; 0 while there is no table or no server."""
    try:
        with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM log_events WHERE message = %s", [message])
            return cursor.fetchone()[0]
    except (psycopg2.OperationalError, psycopg2.errors.UndefinedTable):
        return 0


def is_stored(facts, message):
    """Posts an event and waits for its row."""
    assert post(facts["ingest_url"], message) == 202
    return until(lambda: count(facts["database_url"], message) == 1, f"the row of {message!r}")


def everything(running):
    """Returns the pids of all that the stack consists of."""
    return family.supervisords(running.state) | family.children(running.state)


def test_up_stores_an_event_and_down_leaves_nothing_running(stack):
    running = stack()
    facts = running.facts
    assert {process["name"]: process["state"] for process in facts["processes"]} == dict.fromkeys(PROGRAMS, "RUNNING")
    assert is_stored(facts, "the first")
    assert "ingest_" in get(f"{facts['admin_url']}/metrics")
    assert "already up" in running.spillway("up", "--detach").stdout
    table = running.spillway("status").stdout
    assert PROGRAMS <= set(table.split())
    assert facts["redis_url"] not in table and facts["database_url"] not in table
    assert running.spillway("down").stdout == "Spillway is down.\n"
    assert not everything(running)
    assert "Nothing runs" in running.spillway("down").stdout
    assert running.facts == {"is_up": False, "data_dir": str(running.state), "processes": []}
    running.spillway("status", status=3)
    running.spillway("up", "--detach")
    assert count(running.facts["database_url"], "the first") == 1, "the data outlive the processes"


def test_supervisorctl_controls_and_reads_the_same_stack(stack):
    running = stack()
    before = running.pid("consumers:consumer-00")
    assert "consumers:consumer-00: started" in running.supervisorctl("restart", "consumers:*")
    assert before != until(lambda: running.pid("consumers:consumer-00"), "the consumer")
    assert "Booting worker" in running.supervisorctl("tail", "ingest")
    # Though supervisord shows the logs, nobody writes them through a pipe of its.
    for process in running.facts["processes"]:
        targets = {os.readlink(f"/proc/{process['pid']}/fd/{number}") for number in (1, 2)}
        assert targets == {process["log"]}, process["name"]


def test_killed_programs_come_back_and_the_stack_goes_on_storing(stack):
    running = stack()
    for name in sorted(PROGRAMS):
        pid = running.pid(name)
        os.kill(pid, signal.SIGKILL)
        until(lambda: running.pid(name) not in (None, pid), f"{name} to come back")
    until(lambda: not running.spillway("up", "--detach", status=None).returncode, "the stack")
    facts = running.facts
    until(lambda: get(f"{facts['ingest_url']}/livez") is not None, "ingest")
    assert is_stored(facts, "after it all")


def test_what_a_killed_supervisord_leaves_behind_is_found_and_ended(stack):
    running = stack()
    # Works in the cluster's directory, and is none of ours.
    with subprocess.Popen(["sleep", "600"], cwd=running.state / "postgres") as stranger:
        try:
            for command, expected in ((("up", "--detach"), "is up"), (("down",), "is down")):
                [supervisord] = family.supervisords(running.state)
                os.kill(supervisord, signal.SIGKILL)
                until(lambda: not family.supervisords(running.state), "supervisord to end")
                left = family.children(running.state)
                assert "has left processes" in running.spillway("status", status=3).stdout
                assert expected in running.spillway(*command).stdout
                assert not left & everything(running)
            assert not everything(running)
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_a_stopped_supervisord_blocks_neither_its_programs_nor_down(stack):
    running = stack()
    facts = running.facts
    [supervisord] = family.supervisords(running.state)
    os.kill(supervisord, signal.SIGSTOP)
    assert is_stored(facts, "nobody supervises")
    running.spillway("down")
    assert not everything(running)


def test_a_port_in_use_is_named_before_anything_starts(stack):
    with socket.create_server(("127.0.0.1", pick_port())) as taken:
        running = stack(is_started=False, SPILLWAY_POSTGRES_PORT=str(taken.getsockname()[1]))
        assert "SPILLWAY_POSTGRES_PORT" in running.spillway("up", "--detach", status=os.EX_CONFIG).stderr
    assert not everything(running)


def test_the_settings_that_a_stack_was_given_start_it_again_from_anywhere(stack, tmp_path):
    running = stack(SPILLWAY_CONSUMERS="1", SPILLWAY_WORKERS="1", GUNICORN_CMD_ARGS="--log-level 'debug'")
    facts = running.facts
    given = running.spillway("status", "settings").stdout
    assert "REDIS_URL" not in given, "the embedded servers are no settings of the stack"
    running.spillway("down")
    left = running.spillway("status", "settings", status=3)
    assert left.stdout == given and "Nothing runs" in left.stderr
    assert running.spillway("status", "admin_url", status=3).stdout == ""
    kept = {name: value for name, value in running.environ.items() if name in ("PATH", "PYTHONPATH", "HOME")}
    again = f"{given}{sys.executable} -m ops.command up --detach"
    subprocess.run(["sh", "-c", again], env=kept, cwd=tmp_path, check=True, capture_output=True, timeout=180)
    names = ("ingest_url", "redis_url", "database_url", "data_dir", "settings", "embedded")
    assert {name: running.facts[name] for name in names} == {name: facts[name] for name in names}
    assert facts["settings"]["GUNICORN_CMD_ARGS"] == "--log-level 'debug'"
    assert f"settings           {len(given.splitlines())} given at the start" in running.spillway("status").stdout


def test_redis_cli_takes_the_url_of_the_embedded_redis_and_our_own_needs_none(stack):
    running = stack(SPILLWAY_CONSUMERS="1", SPILLWAY_WORKERS="1")
    url = running.spillway("status", "redis_url").stdout.strip()
    assert running.spillway("redis", "PING").stdout == "PONG\n"
    running.spillway("redis", "RPUSH", "list", "a\x1b[2J", "b c")
    assert running.spillway("redis", "LRANGE", "list", "0", "-1").stdout == "a\\x1b[2J\nb c\n"
    assert running.spillway("redis", "GET", "none").stdout == "(nil)\n"
    assert "log-processors" in running.spillway("redis", "XINFO", "GROUPS", "log_events").stdout.split()
    refused = running.spillway("redis", "XLEN", "list", status=1)
    assert "WRONGTYPE" in refused.stderr and not refused.stdout
    program = shutil.which("redis-cli") or missing("redis-cli")
    done = subprocess.run([program, "-u", url, "PING"], capture_output=True, text=True, timeout=30)
    assert done.stdout == "PONG\n", done.stderr
    running.spillway("down")
    assert "nothing runs" in running.spillway("redis", "PING", status=1).stderr


@pytest.mark.parametrize("setting, value", [
    ("SPILLWAY_WORKERS", "none"), ("SPILLWAY_WORKER", "2"), ("SPILLWAY_DATA_DIR", f"/tmp/{'x' * 100}"),
])
def test_a_setting_that_is_not_allowed_is_one_line_and_its_own_status(stack, setting, value):
    refused = stack(is_started=False, **{setting: value}).spillway("up", status=os.EX_CONFIG)
    assert len(refused.stderr.splitlines()) == 1
    assert setting in refused.stderr
    assert not Path(f"/tmp/{'x' * 100}").exists()


def test_data_of_a_postgres_that_is_not_installed_are_left_alone(stack):
    running = stack(is_started=False)
    version = running.state / "postgres" / "PG_VERSION"
    version.parent.mkdir(parents=True)
    version.write_text("9.6\n")
    refused = running.spillway("up", "--detach", status=os.EX_CONFIG)
    assert "no PostgreSQL 9 server" in refused.stderr
    assert [path.name for path in version.parent.iterdir()] == ["PG_VERSION"]


def test_a_program_that_does_not_start_is_named_with_its_log_and_nothing_stays(stack, tmp_path):
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").write_text("")
    (tmp_path / "workers" / "consumer.py").write_text("raise SystemExit('planted')")
    running = stack(is_started=False, PYTHONPATH=f"{tmp_path}:{ROOT}")
    failed = running.spillway("up", "--detach", "--wait", "4", status=1)
    assert "consumers:consumer-0" in failed.stderr and "planted" in failed.stderr
    assert not everything(running)


def test_servers_that_are_not_ours_may_come_later(stack):
    running = stack(
        is_started=False,
        REDIS_URL=f"redis://127.0.0.1:{pick_port()}/0",
        DATABASE_URL=f"postgresql://nobody@127.0.0.1:{pick_port()}/none",
    )
    waiting = running.spillway("up", "--detach", "--wait", "10", status=os.EX_TEMPFAIL)
    assert "PostgreSQL does not answer" in waiting.stderr
    assert "admin is not ready" in waiting.stderr
    states = {process["name"]: process["state"] for process in running.facts["processes"]}
    assert states == dict.fromkeys(PROGRAMS - {"redis", "postgres"}, "RUNNING")


def test_in_the_foreground_it_ends_with_its_terminal_and_takes_all_along(stack):
    running = stack(is_started=False)
    with subprocess.Popen(
        [sys.executable, "-m", "ops.command", "up"], env=running.environ, stdout=subprocess.PIPE, text=True
    ) as foreground:
        assert foreground.stdout.readline() == "Spillway is up.\n"
        assert len(everything(running)) > len(PROGRAMS)
        foreground.send_signal(signal.SIGTERM)
        assert foreground.wait(60) == 0
    assert not everything(running)


def test_rows_keep_coming_where_a_partition_is_due_and_somebody_reads_for_long(stack):
    """As in a checklist of the field: the newest partition is dropped, a transaction stays open, consumers restart."""
    running = stack(SPILLWAY_PARTITION_DAYS="3", SPILLWAY_SINK_RETRIES="0")
    facts = running.facts
    newest = f"log_events_{datetime.now(UTC).date() + timedelta(days=3):%Y%m%d}"
    until(lambda: has_table(facts, newest), "the keeper to have made all of them")
    with closing(psycopg2.connect(facts["database_url"])) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP TABLE {newest}")
        connection.commit()
        cursor.execute("SELECT FROM log_events_default LIMIT 1")
        running.supervisorctl("restart", "keeper", "consumers:*")
        log = Path(facts["data_dir"]) / "log" / "keeper.log"
        until(lambda: "partition_refused" in log.read_text(), "a try that has to wait")
        for number in range(5):
            assert is_stored(facts, f"event {number}")
        assert not has_table(facts, newest)
    until(lambda: has_table(facts, newest), "the partition to be made then")
    with urllib.request.urlopen(f"{facts['admin_url']}/stream", timeout=10) as response:
        assert json.load(response)["dead_letters"]["entries"] == 0
    assert 'ingest_failed_upkeep_total{cause="locked"}' in get(f"{facts['admin_url']}/metrics")


def has_table(facts, name):
    """Tells whether there is such a table."""
    with closing(psycopg2.connect(facts["database_url"])) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [name])
        return cursor.fetchone()[0]


@pytest.fixture
def container(stack, redis_url, database_url, tmp_path):
    """What a container runs, with its log, once its ingest answers; and the facts of where."""
    running = stack(is_started=False, REDIS_URL=redis_url, DATABASE_URL=database_url)
    facts = {"ingest_url": f"http://127.0.0.1:{running.environ['SPILLWAY_PORT']}", "database_url": database_url}
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ops.command", "run", "ingest", "admin", "consumer", "keeper", "watch"],
            env=running.environ, stdout=file, stderr=file,
        )
    try:
        until(lambda: "listening at" in log.read_text().lower() and answers(facts["ingest_url"]), "ingest")
        yield process, facts, log, running.state
    finally:
        process.terminate()
        process.wait(60)


def test_a_container_s_programs_run_without_supervisor(container):
    process, facts, log, state = container
    assert is_stored(facts, "from a container")
    process.terminate()
    assert process.wait(60) == 0, log.read_text()
    words = set(log.read_text().split())
    assert {"consumer_started", "keeper_started", "Booting"} <= words, "they log to where the container shows it"
    assert not list(state.rglob("*.log"))
    assert not answers(facts["ingest_url"])


def test_a_container_ends_with_the_first_of_its_programs_and_says_which(container):
    process, facts, log, _ = container
    started = until(lambda: re.search(r"consumer_started pid=(\d+)", log.read_text()), "the consumer")
    os.kill(int(started[1]), signal.SIGKILL)
    assert process.wait(60) == 128 + signal.SIGKILL
    assert "program_ended program=consumer status=-9" in log.read_text()
    assert not answers(facts["ingest_url"])


def answers(url):
    """Tells whether ingest is ready."""
    try:
        return bool(get(f"{url}/readyz"))
    except OSError:
        return False
