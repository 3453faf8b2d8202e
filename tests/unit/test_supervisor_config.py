"""What supervisord is told: read back with supervisor's own parser, since that is who has to understand it."""

import os
from pathlib import Path

import pytest
from supervisor.options import ServerOptions

from app.errors import SettingError
from app.settings import Settings
from ops import program, supervisor_config

SERVERS = {"redis": ["/opt/100% sure/redis-server", "a b.conf"], "postgres": ["setpriv", "postgres", "-D", "x"]}


def parsed(tmp_path, servers=SERVERS, overrides_of=None, **overrides):
    """Returns supervisor's options after reading the rendered file."""
    config = tmp_path / "supervisord.conf"
    (tmp_path / "log").mkdir(parents=True)
    settings = Settings(data_dir=str(tmp_path), consumer_name="web1", **overrides)
    config.write_text(supervisor_config.render(settings, servers, overrides_of or {}))
    options = ServerOptions()
    options.realize(["-c", str(config)])
    return options


def processes(options):
    """Returns supervisor's process configurations by the name that supervisorctl shows."""
    return {
        config.name if config.name == group.name else f"{group.name}:{config.name}": config
        for group in options.process_group_configs for config in group.process_configs
    }


def test_the_programs_have_the_names_that_operators_are_promised(tmp_path):
    assert set(processes(parsed(tmp_path, consumers=3))) == {
        "redis", "postgres", "admin", "ingest", "replayer", "keeper", "watch", "logs", "consumers:consumer-00",
        "consumers:consumer-01",
        "consumers:consumer-02",
    }


def test_servers_that_are_not_embedded_have_no_program(tmp_path):
    assert set(processes(parsed(tmp_path, {}, consumers=1))) == {
        "admin", "ingest", "replayer", "keeper", "watch", "logs", "consumers:consumer-00",
    }


def test_servers_start_first_and_stop_last(tmp_path):
    found = processes(parsed(tmp_path))
    others = [config for name, config in found.items() if name not in SERVERS]
    assert max(found[name].priority for name in SERVERS) < min(config.priority for config in others)


def test_a_program_is_tried_again_for_ever_and_counts_as_started_after_a_second(tmp_path):
    for config in processes(parsed(tmp_path)).values():
        assert (config.autorestart.__name__, config.startsecs, config.startretries) == (
            "RestartUnconditionally", 1, 1_000_000
        )


def test_a_program_is_given_longer_to_stop_than_its_own_grace_period(tmp_path):
    gunicorn: dict[str, object] = {}
    exec((Path(program.__file__).parent / "gunicorn_conf.py").read_text(), gunicorn)
    found = processes(parsed(tmp_path))
    assert found["ingest"].stopwaitsecs > gunicorn["graceful_timeout"]
    assert all(config.killasgroup for config in found.values())


@pytest.mark.parametrize(("chosen", "name"), [({}, "app.worker.Worker"), ({"worker_class": "gevent"}, "gevent")])
def test_ingest_has_the_worker_class_of_the_settings_and_admin_gunicorns_own(tmp_path, chosen, name):
    found = processes(parsed(tmp_path, **chosen))
    assert f"--worker-class={name} " in found["ingest"].command
    assert "--worker-class=gevent " in found["admin"].command


def test_every_program_writes_to_its_log_itself(tmp_path):
    for config in processes(parsed(tmp_path)).values():
        assert config.command.startswith("/bin/sh -c")
        assert f'>>"{config.stdout_logfile}" 2>&1' in config.command
        assert Path(config.stdout_logfile).parent == tmp_path / "log"


def test_consumers_have_names_that_are_stable_over_restarts(tmp_path):
    found = processes(parsed(tmp_path))
    assert found["consumers:consumer-01"].environment == {"SPILLWAY_CONSUMER_NAME": "web1-01"}


def test_supervisord_is_reached_through_a_private_unix_socket_alone(tmp_path):
    [server] = parsed(tmp_path).server_configs
    assert (server["file"], server["chmod"]) == (str(tmp_path / "supervisor.sock"), 0o700)


@pytest.mark.parametrize("name", ["with space", "ü", "a,b=(c)"])
def test_paths_are_carried_whatever_they_contain(tmp_path, name):
    found = processes(parsed(tmp_path / name))
    assert found["redis"].stdout_logfile == str(tmp_path / name / "log" / "redis.log")
    assert "'/opt/100% sure/redis-server' 'a b.conf'" in found["redis"].command


@pytest.mark.parametrize("path", [f"/var/a{character}b" for character in "\"'`$\\;#%\n"])
def test_a_path_that_the_configuration_cannot_carry_is_refused_by_name(path):
    with pytest.raises(SettingError, match="SPILLWAY_DATA_DIR"):
        supervisor_config.check(Path(path))


def test_a_path_too_long_for_a_socket_is_refused_by_name():
    longest = "/" + "x" * (107 - len("/supervisor.sock") - len(".4194304") - 1)
    supervisor_config.check(Path(longest))
    with pytest.raises(SettingError, match=r"SPILLWAY_DATA_DIR.* 1 shorter"):
        supervisor_config.check(Path(longest + "x"))


def test_supervisord_is_told_that_root_is_meant(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "\nuser=root\n" in supervisor_config.render(Settings(), {}, {})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "user=" not in supervisor_config.render(Settings(), {}, {})


def test_a_consumer_is_given_longer_to_stop_than_a_load_may_take():
    text = supervisor_config.render(Settings(sink_timeout_s=100, claim_idle_s=200), {}, {})
    consumers = text.partition("[program:consumers]")[2].partition("[program:")[0]
    assert "stopwaitsecs=115\n" in consumers


def test_a_program_may_have_another_environment_than_the_others(tmp_path):
    url = "redis://:p%40ss@127.0.0.1:1/0"
    found = processes(parsed(tmp_path, overrides_of={name: {"REDIS_URL": url} for name in ("ingest", "consumers")}))
    assert found["ingest"].environment == {"REDIS_URL": url}
    assert found["consumers:consumer-00"].environment == {
        "REDIS_URL": url, "SPILLWAY_CONSUMER_NAME": "web1-00",
    }
    assert not found["replayer"].environment


def test_the_log_of_supervisord_itself_has_the_same_bound(tmp_path):
    text = supervisor_config.render(Settings(log_max_bytes=4096), {}, {})
    assert "\nlogfile_maxbytes=4096\nlogfile_backups=1\n" in text
    config = parsed(tmp_path, log_max_bytes=4096)
    assert (config.logfile_maxbytes, config.logfile_backups) == (4096, 1)
