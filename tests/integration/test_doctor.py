"""The doctor on real servers and real file systems: what is set wrongly is found, and gone when it is mended."""

import argparse
import json
import os
import re
import socket
import subprocess
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
import redis

from app.settings import Settings
from ops import binary, doctor
from ops.checkup import disk_facts, host_facts, release
from tests.conftest import CHOSEN, execute, pick_port, redis_answers
from tests.journal import append, drain, make_batch, stored, until
from tests.machine import tmpfs
from tests.pooler import pooled
from workers.keeper import Keeper
from workers.loader import Loader

WRITABLE = "?options=-c%20default_transaction_read_only%3Doff"


@pytest.fixture
def patient(client, redis_url, database_url, tmp_path):
    """Settings of a deployment in which all is as it should be, and whose tables are made."""
    with closing(Loader(database_url, "test", 30)) as loader:
        loader.prepare()
    return {"redis_url": redis_url, "database_url": database_url, "data_dir": str(tmp_path / "var")}


def examine(capsys, patient, **changes):
    """Returns the exit status and the findings by their names."""
    status = doctor.run(argparse.Namespace(json=True), Settings(**{"partition_days": 1, **patient, **changes}))
    report = json.loads(capsys.readouterr().out)
    return status, {one["check"]: one for one in report["findings"]}


def level(capsys, patient, check, **changes):
    """Returns how one check stands."""
    return examine(capsys, patient, **changes)[1][check]["level"]


@contextmanager
def configured(url, **settings):
    """Changes settings of Redis until the end; `_` in their names stands for `-`."""
    with closing(redis.Redis.from_url(url)) as client, ExitStack() as undo:
        for name, value in ((name.replace("_", "-"), value) for name, value in settings.items()):
            undo.callback(client.config_set, name, client.config_get(name)[name])
            client.config_set(name, value)
        yield client


def test_where_all_is_well_nothing_is_bad_and_no_password_is_shown(capsys, patient):
    status, found = examine(capsys, patient)
    assert status == 0
    assert {one["level"] for one in found.values()} <= {"ok", "warn", "unknown"}
    seen = {name: one["level"] for name, one in found.items() if name.startswith(("redis", "postgres", "clock of"))}
    assert {name for name, how in seen.items() if how != "ok"} <= {
        "redis fork", "redis huge pages", "redis memory", "redis version", "postgres version",  # the machine's
    }
    assert len(seen) > 24
    for as_json in (True, False):
        doctor.run(argparse.Namespace(json=as_json), Settings(**patient))
        text = capsys.readouterr().out
        assert not [url for url in (patient["redis_url"], patient["database_url"]) if urlsplit(url).password in text]


@pytest.mark.parametrize("settings, check, how", [
    ({"appendfsync": "everysec"}, "redis durability", "warn"),
    ({"appendfsync": "no"}, "redis durability", "bad"),
    ({"appendonly": "no"}, "redis durability", "bad"),
    ({"no_appendfsync_on_rewrite": "yes"}, "redis rewrite", "bad"),
    ({"maxmemory_policy": "allkeys-lru"}, "redis eviction", "bad"),
    ({"maxmemory_policy": "volatile-lru"}, "redis eviction", "warn"),
    ({"maxmemory": "0"}, "redis memory", "warn"),
    ({"maxmemory": "1024"}, "redis writes", "warn"),
], ids=str)
def test_a_weak_redis_is_found_and_healed(capsys, patient, settings, check, how):
    with configured(patient["redis_url"], **settings):
        assert level(capsys, patient, check, stream_max_bytes=1 << 20, dead_letters_max_bytes=1 << 20) == how
    assert level(capsys, patient, check, stream_max_bytes=1 << 20, dead_letters_max_bytes=1 << 20) == "ok"


def test_a_node_of_a_cluster_is_found_though_it_takes_the_probe(capsys, patient, tmp_path):
    port = pick_port()
    options = {"port": port, "bind": "127.0.0.1", "dir": tmp_path, "cluster-enabled": "yes",
               "cluster-port": pick_port()}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    url = f"redis://127.0.0.1:{port}/0"
    with subprocess.Popen([binary.redis(None, CHOSEN["SPILLWAY_REDIS_SERVER"]).path, *words],
                          stdout=subprocess.DEVNULL) as server:
        try:
            until(lambda: redis_answers(url), "the node")
            with closing(redis.Redis.from_url(url)) as node:
                node.execute_command("CLUSTER ADDSLOTS", *range(16_384))
                until(lambda: node.execute_command("CLUSTER INFO")["cluster_state"] == "ok", "its slots")
            status, found = examine(capsys, patient, redis_url=url)
        finally:
            server.terminate()
    assert found["redis writes"]["level"] == "ok"
    assert (status, found["redis cluster"]["level"]) == (78, "bad")
    assert "cluster-enabled no" in found["redis cluster"]["remedy"]


def test_an_old_volume_with_data_is_named_and_an_empty_one_is_not(capsys, patient, tmp_path, monkeypatch):
    monkeypatch.setattr(release, "OLD_VOLUME", tmp_path / "before")
    assert "redis old volume" not in examine(capsys, patient)[1]
    parts = tmp_path / "before/appendonlydir"
    parts.mkdir(parents=True)
    assert level(capsys, patient, "redis old volume") == "ok"
    (parts / "appendonly.aof.1.base.rdb").write_bytes(b"REDIS0012" + bytes(200))
    assert level(capsys, patient, "redis old volume") == "warn", "also where its manifest is lost"
    (parts / "appendonly.aof.manifest").write_text("file appendonly.aof.1.base.rdb seq 1 type b\n")
    found = examine(capsys, patient)[1]["redis old volume"]
    assert found["level"] == "warn" and "written by Redis 7.4 or later" in found["seen"]


def test_a_replica_and_a_lost_group_are_found(capsys, patient):
    with closing(redis.Redis.from_url(patient["redis_url"])) as client:
        client.replicaof("127.0.0.1", pick_port())
        try:
            status, found = examine(capsys, patient)
        finally:
            client.replicaof("NO", "ONE")
        assert (status, found["redis role"]["level"], found["redis writes"]["level"]) == (78, "bad", "bad")
        client.xgroup_destroy("log_events", "log-processors")
    assert level(capsys, patient, "redis group") == "warn"


def test_a_redis_that_hides_its_configuration_is_unknown_and_the_rights_that_the_doctor_advises_are_enough(
    capsys, patient
):
    with closing(redis.Redis.from_url(patient["redis_url"])) as client:
        host = urlsplit(patient["redis_url"]).netloc.rpartition("@")[2]
        try:
            client.execute_command(*"ACL SETUSER managed on >word ~* +@all -config".split())
            status, found = examine(capsys, patient, redis_url=f"redis://managed:word@{host}/0")
            assert status == 0
            assert (found["redis durability"]["level"], found["redis rewrite"]["level"]) == ("unknown", "unknown")
            assert found["redis eviction"]["level"] == "ok", "INFO tells that"

            client.execute_command(*"ACL SETUSER poor on >word ~* +@all -@write".split())
            status, found = examine(capsys, patient, redis_url=f"redis://poor:word@{host}/0")
            assert (status, found["redis writes"]["level"]) == (78, "bad")
            rights = found["redis writes"]["remedy"].partition("<user> ")[2].split()
            client.execute_command("ACL", "SETUSER", "modest", "on", ">word", *rights)
            url = f"redis://modest:word@{host}/0"
            status, found = examine(capsys, patient, redis_url=url)
            assert status == 0 and found["redis durability"]["level"] == "ok"
            with closing(redis.Redis.from_url(url)) as modest:
                one = make_batch()
                append(modest, one)
                drain(url, patient["database_url"])
            assert one.batch_id in stored(patient["database_url"])
        finally:
            client.execute_command("ACL", "DELUSER", "managed", "poor", "modest")


def test_a_day_to_come_whose_rows_lie_outside_its_partition_is_found_and_healed(capsys, patient):
    day = datetime.now(UTC).date() + timedelta(days=2)
    execute(patient["database_url"], f"INSERT INTO log_events SELECT '{day} 12:00Z', now(), gen_random_uuid(),"
                                     " 0, '', 0, '', '', '', '', '', '{}'")
    with closing(Keeper(patient["database_url"], 2)) as keeper:
        keeper.step()
        status, found = examine(capsys, patient, partition_days=2)
        assert status == 0 and found["postgres partitions"]["level"] == "warn"
        assert f"rows of {day} lie in log_events_default" in found["postgres partitions"]["seen"]
        execute(patient["database_url"], "TRUNCATE log_events_default")
        keeper.step()
    assert level(capsys, patient, "postgres partitions", partition_days=2) == "ok"


@pytest.mark.parametrize("statement, check, how, heal", [
    ("ALTER ROLE spillway IN DATABASE {0} SET synchronous_commit = off", "postgres durability", "bad",
     "ALTER ROLE spillway IN DATABASE {0} RESET synchronous_commit"),
    ("ALTER DATABASE {0} SET default_transaction_read_only = on", "postgres writes", "bad",
     "ALTER DATABASE {0} RESET default_transaction_read_only"),
    ("REVOKE INSERT ON log_events FROM spillway", "postgres privileges", "bad",
     "GRANT INSERT ON log_events TO spillway"),
    ("REVOKE UPDATE ON log_batches FROM spillway", "postgres privileges", "bad",
     "GRANT UPDATE ON log_batches TO spillway"),
    ("ALTER TABLE log_events RENAME COLUMN host TO machine", "postgres schema", "bad",
     "ALTER TABLE log_events RENAME COLUMN machine TO host"),
    ("ALTER TABLE log_batches DROP CONSTRAINT log_batches_pkey", "postgres schema", "bad",
     "ALTER TABLE log_batches ADD PRIMARY KEY (batch_id)"),
    ("ALTER TABLE log_events ADD COLUMN tenant text NOT NULL", "postgres schema", "bad",
     "ALTER TABLE log_events ALTER COLUMN tenant SET DEFAULT ''"),
    ("ALTER TABLE log_events DETACH PARTITION log_events_{1}", "postgres partitions", "warn",
     "ALTER TABLE log_events ATTACH PARTITION log_events_{1} FOR VALUES FROM ('{2} 00:00Z') TO ('{3} 00:00Z')"),
    ("INSERT INTO log_events SELECT '1980-01-01', now(), gen_random_uuid(), 0, '', 0, '', '', '', '', '', '{{}}' "
     "FROM generate_series(1, 10001)", "postgres default rows", "warn", "TRUNCATE log_events_default"),
    ("REVOKE SELECT ON log_events_default FROM spillway", "postgres default rows", "unknown",
     "GRANT SELECT ON log_events_default TO spillway"),
], ids=lambda value: value if value.startswith("postgres") else "")
def test_a_postgres_that_loses_or_refuses_is_found_and_healed(capsys, patient, statement, check, how, heal):
    url = patient["database_url"]
    day = datetime.now(UTC).date() + timedelta(days=1)
    names = (url.rpartition("/")[2], f"{day:%Y%m%d}", day, day + timedelta(days=1))
    execute(url, statement.format(*names))
    status, found = examine(capsys, patient)
    execute(url + WRITABLE, heal.format(*names))
    assert found[check]["level"] == how
    assert status == (78 if how == "bad" else 0)
    assert level(capsys, patient, check) == "ok"


def test_options_of_ones_own_take_the_guards_of_a_load_away(capsys, patient):
    url = f"{patient['database_url']}?options=-c%20statement_timeout%3D1s"
    assert level(capsys, patient, "postgres timeouts", database_url=url) == "warn"
    execute(patient["database_url"], "ALTER ROLE spillway SET statement_timeout = '1s'")
    try:
        assert level(capsys, patient, "postgres timeouts") == "ok", "the loader's own win"
    finally:
        execute(patient["database_url"], "ALTER ROLE spillway RESET statement_timeout")


def test_a_server_that_is_away_is_no_fault_of_the_configuration_and_a_wrong_password_is(capsys, patient):
    nobody = pick_port()
    status, found = examine(capsys, patient, redis_url=f"redis://:lost@127.0.0.1:{nobody}/0")
    assert (status, found["redis"]["level"]) == (75, "unknown")
    status, found = examine(capsys, patient, database_url=f"postgresql://u:lost@127.0.0.1:{nobody}/x")
    assert (status, found["postgres"]["level"]) == (75, "unknown")
    for name, word in (("redis_url", "redis"), ("database_url", "postgres")):
        url = patient[name].replace(urlsplit(patient[name]).password, "wrong-word")
        status, found = examine(capsys, patient, **{name: url})
        assert (status, found[word]["level"]) == (78, "bad")
        assert "wrong-word" not in json.dumps(found)
    status, found = examine(capsys, patient, database_url="postgresql://u:half@way@127.0.0.1/x")
    assert "half" not in json.dumps(found) and "way@" not in json.dumps(found)
    status, found = examine(capsys, patient, database_url="postgresql://u:p%ZZword@127.0.0.1/x")
    assert (status, found["postgres"]["level"]) == (78, "bad")
    assert "ZZword" not in json.dumps(found)


def test_a_paused_server_does_not_keep_the_doctor(capsys, patient, redis_server, postgres_server):
    for server, name in ((redis_server, "redis"), (postgres_server, "postgres")):
        server.pause()
        try:
            status, found = examine(capsys, patient)
        finally:
            server.resume()
        assert (status, found[name]["level"], found[name]["is_away"]) == (75, "unknown", True)


def test_a_wal_in_memory_is_bad_and_a_small_one_too(capsys, patient, tmp_path):
    place = tmp_path / "memory"
    place.mkdir(mode=0o700)
    with tmpfs(place, "8m"):
        place.chmod(0o700)
        status, found = examine(capsys, patient, wal_dir=str(place), data_dir=str(place / "var"))
        assert (status, found["wal disk"]["level"], found["wal room"]["level"]) == (78, "bad", "bad")
        assert found["data disk"]["level"] == "warn"
        assert disk_facts.observe(place, 0).kind == "tmpfs"
    assert level(capsys, patient, "wal disk", wal_dir=str(place)) == "ok"


def test_what_others_may_write_or_read_is_found(capsys, patient, tmp_path):
    wal, state = tmp_path / "wal", tmp_path / "var"
    for place in (wal, state):
        place.mkdir(mode=0o700)
    secret = state / "stack.json"
    secret.write_text("{}")
    for path, mode, check, how in (
        (wal, 0o777, "wal permissions", "bad"), (wal, 0o755, "wal permissions", "warn"),
        (state, 0o711, "data permissions", "ok"), (secret, 0o640, "secrets", "bad"), (secret, 0o600, "secrets", "ok"),
    ):
        path.chmod(mode)
        assert level(capsys, patient, check, wal_dir=str(wal)) == how, (path, oct(mode))


def test_listeners_are_seen_with_their_addresses():
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
        assert host_facts.listeners(port) == ["127.0.0.1"]
        with socket.create_server(("127.0.0.2", port)):
            assert host_facts.listeners(port) == ["127.0.0.1", "127.0.0.2"]
    assert host_facts.listeners(port) == []


def test_the_machine_is_seen_as_the_kernel_shows_it():
    facts = host_facts.observe(os.getpid())
    assert facts.file_limit >= 256
    assert facts.memory_bytes > 1 << 28
    assert facts.overcommit in (0, 1, 2) and facts.somaxconn > 0
    assert facts.is_clock_synced in (True, False, None)


def test_a_running_stack_is_healthy_and_is_judged_by_the_settings_that_it_was_started_with(stack):
    running = stack(SPILLWAY_STREAM_MAX_BYTES=str(320 << 20), SPILLWAY_CONSUMERS="1", SPILLWAY_WORKERS="1")
    running.environ["SPILLWAY_STREAM_MAX_BYTES"] = str(8 << 30)
    done = running.spillway("doctor")
    assert "runs in" in done.stdout and " bad" not in done.stdout
    assert "are 576 MiB" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 110
    for url in (running.facts["redis_url"], running.facts["database_url"]):
        assert urlsplit(url).password not in done.stdout + done.stderr
    (running.state / "stack.json").chmod(0o644)
    assert "chmod go= stack.json" in running.spillway("doctor", status=78).stdout
    (running.state / "stack.json").chmod(0o600)
    running.supervisorctl("stop", "redis")
    assert "does not answer" in running.spillway("doctor", status=75).stdout
    running.spillway("down")
    assert "Nothing runs in" in running.spillway("doctor").stdout


def test_a_pooler_by_transaction_does_no_harm_and_what_it_refuses_is_said(capsys, patient, short_dir):
    directory = short_dir / "pooler"
    directory.mkdir()
    with pooled(directory, patient["database_url"]) as url:
        status, found = examine(capsys, patient, database_url=url)
        assert status == 0
        assert found["postgres pooler"]["seen"].startswith("a pooler by transaction")
        assert found["postgres timeouts"]["level"] == "ok"
        status, found = examine(capsys, patient, database_url=f"{url}?options=-c%20geqo%3Doff")
        assert (status, found["postgres"]["level"]) == (78, "bad")
        assert "ignore_startup_parameters" in found["postgres"]["remedy"]
    with pooled(directory, patient["database_url"], "stats_users = spillway") as url:
        found = examine(capsys, patient, database_url=url)[1]["postgres pooler"]
        assert re.match(r"pgbouncer 1\.\d+\.\d+ by transaction", found["seen"])
