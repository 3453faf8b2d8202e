"""A setting is taken, or refused at start with its name, its value and what is allowed."""

import socket
import subprocess
import sys

import pytest

from app.errors import SettingError
from app.settings import Settings, table
from tests.journal import ROOT


@pytest.mark.parametrize(("environ", "field", "value"), [
    ({}, "port", 8080), ({"SPILLWAY_PORT": "1"}, "port", 1), ({"SPILLWAY_PORT": "65535"}, "port", 65535),
    ({"SPILLWAY_PORT": ""}, "port", 8080), ({"REDIS_URL": "redis://h/0"}, "redis_url", "redis://h/0"),
    ({}, "redis_url", None), ({"REDIS_URL": ""}, "redis_url", None), ({"DATABASE_URL": "postgresql://"}, "database_url",
                                                                      "postgresql://"),
    ({"SPILLWAY_BIND": "::1"}, "bind", "::1"), ({"SPILLWAY_BIND": "127.9.9.9"}, "bind", "127.9.9.9"),
    ({"SPILLWAY_BIND": "0.0.0.0", "SPILLWAY_OPEN_BIND": "allow"}, "bind", "0.0.0.0"),
    ({"SPILLWAY_CONSUMER_NAME": "a.b_c:d-1"}, "consumer_name", "a.b_c:d-1"),
    ({}, "consumer_name", socket.gethostname()), ({"SPILLWAY_LOG_LEVEL": "DEBUG"}, "log_level", "DEBUG"),
    ({"SPILLWAY_MAX_EVENT_BYTES": "1024"}, "max_event_bytes", 1024), ({"OTHER": "x", "PATH": "/"}, "workers", 2),
])
def test_a_setting_is_read_from_the_environment(environ, field, value):
    assert getattr(Settings.from_env(environ), field) == value


@pytest.mark.parametrize(("name", "value", "allowed"), [
    ("SPILLWAY_PORT", "0", "1 to 65535"), ("SPILLWAY_PORT", "65536", "1 to 65535"),
    ("SPILLWAY_PORT", "http", "1 to 65535"),
    ("SPILLWAY_PORT", "80.5", "1 to 65535"), ("SPILLWAY_PORT", " ", "1 to 65535"),
    ("SPILLWAY_WORKERS", "0", "1 to 256"), ("SPILLWAY_CONSUMERS", "-1", "1 to 256"),
    ("SPILLWAY_REDIS_DEADLINE_MS", "9", "10 to 60000"), ("SPILLWAY_BODY_TIMEOUT_S", "601", "1 to 600"),
    ("SPILLWAY_MAX_BODY_BYTES", "8MiB", "1024 to"), ("SPILLWAY_MAX_EVENTS", "1e9", "1 to 1000000"),
    ("SPILLWAY_CONSUMER_NAME", "two words", "text matching"), ("SPILLWAY_LOG_LEVEL", "debug", "DEBUG"),
    ("SPILLWAY_OPEN_BIND", "yes", "refuse, allow|allow, refuse"), ("SPILLWAY_BIND", "localhost", "an IP address"),
    ("SPILLWAY_BIND", "0.0.0.0", "loopback"), ("SPILLWAY_ADMIN_BIND", "::", "loopback"),
    ("SPILLWAY_ADMIN_BIND", "192.0.2.1", "SPILLWAY_OPEN_BIND=allow"), ("SPILLWAY_PROT", "8080", "SPILLWAY_PORT"),
    ("SPILLWAY_", "1", "is not a setting"), ("SPILLWAY_SINK_POLICY", "drop", "dead-letter, hold|hold, dead-letter"),
    ("SPILLWAY_SINK_RETRIES", "-1", "0 to 1000000"), ("SPILLWAY_CLAIM_IDLE_S", "59", "twice SPILLWAY_SINK_TIMEOUT_S"),
    ("SPILLWAY_MAX_INFLIGHT_BYTES", "1024", "twice SPILLWAY_MAX_BODY_BYTES"),
])
def test_a_bad_value_is_refused_with_its_name_and_what_is_allowed(name, value, allowed):
    with pytest.raises(SettingError, match=allowed) as caught:
        Settings.from_env({name: value})
    assert name in str(caught.value)


def test_settings_do_not_change():
    with pytest.raises(AttributeError):
        Settings.from_env({}).port = 1


def test_the_table_has_a_row_for_each_setting():
    rows = table().splitlines()[2:]
    assert len(rows) == len(Settings.__struct_fields__)
    assert all(row.count(" | ") == 2 for row in rows)


def test_a_process_with_a_bad_setting_says_so_and_does_not_start():
    run = subprocess.run(
        [sys.executable, "-m", "app.settings"], cwd=ROOT, env={"SPILLWAY_PORT": "http"}, capture_output=True, text=True,
    )
    assert run.returncode != 0
    assert "SPILLWAY_PORT='http' is not allowed" in run.stderr


def test_a_url_that_is_refused_is_shown_without_its_password():
    with pytest.raises(SettingError) as refused:
        Settings.from_env({"DATABASE_URL": "mysql://user:half@way@host/db"})
    assert "mysql://user:***@host/db" in str(refused.value)
