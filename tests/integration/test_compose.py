"""docker-compose.yml as Compose itself understands it; no engine is needed."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
import yaml

from app.settings import Settings
from ops import gunicorn_conf, program
from ops.checkup import release
from tests.machine import missing

ROOT = Path(__file__).resolve().parents[2]
OURS = ("ingestor", "consumer")
SERVERS = ("redis", "postgres")
# What is the same in every container, or belongs to `spillway up` alone.
FIXED = {
    "REDIS_URL", "DATABASE_URL", "SPILLWAY_OPEN_BIND", "SPILLWAY_BIND", "SPILLWAY_PORT", "SPILLWAY_ADMIN_BIND",
    "SPILLWAY_ADMIN_PORT", "SPILLWAY_DATA_DIR", "SPILLWAY_WAL_DIR", "SPILLWAY_CONSUMERS", "SPILLWAY_CONSUMER_NAME",
    "SPILLWAY_REDIS_PORT", "SPILLWAY_POSTGRES_PORT", "SPILLWAY_REDIS_MAX_BYTES", "SPILLWAY_LOG_MAX_BYTES",
    "SPILLWAY_CANARY_TOKEN", "SPILLWAY_REDIS_SERVER", "SPILLWAY_POSTGRES_BIN",
}
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def compose():
    """Returns the command of Compose, the standalone one or the engine's plugin, or None."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    plugin = ["docker", "compose"]
    if shutil.which("docker") and subprocess.run([*plugin, "version"], capture_output=True).returncode == 0:
        return plugin
    return None


def config(*arguments, **environ):
    """Returns the file after Compose has checked and merged it."""
    if (command := compose()) is None:
        missing("docker-compose, or Docker's plugin compose,")
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("SPILLWAY_", "POSTGRES_", "REDIS_", "COMPOSE_", "CONTAINER_"))}
    run = subprocess.run([*command, *arguments, "config"], cwd=ROOT, env={**kept, **environ},
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return yaml.safe_load(run.stdout)


@pytest.fixture(scope="module")
def services():
    """The services that run without a profile; only one of the two versions of Compose leaves out the others."""
    return {name: service for name, service in config()["services"].items() if "profiles" not in service}


@pytest.fixture(scope="module")
def everything():
    """The services with those of the profile."""
    found = config("--profile", "monitoring", "--profile", "before")["services"]
    assert {"prometheus", "grafana", "redis-before"} <= set(found)
    return found


def option(command, name):
    """Returns the word after one option of a command line."""
    words = list(map(str, command))
    return words[words.index(name) + 1]


def in_bytes(text):
    """Returns a size as either version of Compose writes it."""
    number, unit = re.fullmatch(r"(\d+)([kmg]?)", str(text)).groups()
    return int(number) * UNITS[unit]


def in_seconds(text):
    """Returns a duration as either version of Compose writes it."""
    return sum(int(number) * {"s": 1, "m": 60, "h": 3600}[unit] for number, unit in re.findall(r"(\d+)([smh])", text))


def volumes(service):
    """Returns what is mounted: source, target, whether it is read-only."""
    for volume in service.get("volumes", []):
        if isinstance(volume, str):
            source, target, *mode = volume.split(":")
            yield source, target, mode == ["ro"]
        else:
            yield volume["source"], volume["target"], volume.get("read_only", False)


def test_the_services_are_the_pipeline(services):
    assert set(services) >= {*SERVERS, *OURS}


def test_redis_confirms_only_what_is_on_disk_and_never_evicts(services):
    command = services["redis"]["command"]
    assert (option(command, "--appendonly"), option(command, "--appendfsync")) == ("yes", "always")
    assert option(command, "--maxmemory-policy") == "noeviction"
    assert 0 < 2 * int(option(command, "--maxmemory")) < in_bytes(services["redis"]["mem_limit"])


def test_the_buffer_is_valkey_on_a_volume_of_its_own_which_no_redis_has_written(services):
    assert services["redis"]["image"].startswith("valkey/valkey:9.")
    assert services["redis"]["command"][0] == "valkey-server" and services["redis"]["user"] == "valkey"
    assert "valkey-cli ping" in services["redis"]["healthcheck"]["test"][1]
    assert [(source, target) for source, target, _ in volumes(services["redis"])] == [("valkey", "/data")]


def test_the_volume_of_the_redis_before_is_shown_to_the_doctor_and_can_be_drained(everything):
    assert list(volumes(everything["consumer"])) == [("redis", str(release.OLD_VOLUME), True)]
    before = everything["redis-before"]
    assert before["profiles"] == ["before"] and before["image"].startswith("redis:7.4")
    assert list(volumes(before)) == [("redis", "/data", False)]
    for name in ("--appendonly", "--appendfsync", "--requirepass"):
        assert option(before["command"], name) == option(everything["redis"]["command"], name)


def test_postgres_confirms_only_what_is_on_disk(services):
    for word in services["postgres"]["command"]:
        assert not re.search("fsync|synchronous_commit|full_page_writes", word)  # their defaults are the safe ones


@pytest.mark.parametrize("name, target", [
    ("redis", "/data"), ("postgres", "/var/lib/postgresql/data"), ("ingestor", "/var/lib/spillway"),
])
def test_what_is_acknowledged_lies_in_a_named_volume(name, target):
    file = config()
    [(source, found, is_read_only)] = volumes(file["services"][name])
    assert source in file["volumes"]
    assert (found, is_read_only) == (target, False)
    assert f"SPILLWAY_DATA_DIR={target}\n" in (ROOT / "ops/Dockerfile").read_text() or name in SERVERS


def test_consumers_can_be_scaled_and_each_has_a_name_of_its_own(services):
    assert not {"container_name", "hostname", "ports"} & set(services["consumer"])
    assert "SPILLWAY_CONSUMER_NAME" not in services["consumer"]["environment"]


def test_ingestors_can_be_scaled_where_there_is_a_port_for_each():
    ports = config(SPILLWAY_PORT="8080-8081", SPILLWAY_ADMIN_PORT="8090-8091")["services"]["ingestor"]["ports"]
    assert {str(port["published"]) if isinstance(port, dict) else port.split(":")[1] for port in ports} == {
        "8080-8081", "8090-8091",
    }


def test_ours_are_one_image_and_run_programs_that_exist(services):
    assert len({services[name]["image"] for name in OURS}) == 1
    for name in OURS:
        assert set(services[name]["command"]) <= set(program.NAMES)
        assert "admin" in services[name]["command"]
    assert {"ingest", "replayer"} <= set(services["ingestor"]["command"])
    assert {"consumer", "keeper"} <= set(services["consumer"]["command"])


def test_ours_start_with_settings_that_are_allowed(services):
    for name in OURS:
        given = {key: str(value) for key, value in services[name]["environment"].items() if value is not None}
        settings = Settings.from_env(given)
        assert settings.redis_url and settings.database_url


def test_every_setting_that_containers_can_have_is_taken_from_the_environment():
    names = {name for field in msgspec.structs.fields(Settings)
             for name in (field.name.upper() if field.name.endswith("_url") else f"SPILLWAY_{field.name.upper()}",)}
    assert names > FIXED
    found = config(**{name: "7" for name in names - FIXED})["services"]
    for name in OURS:
        assert {key for key, value in found[name]["environment"].items() if value == "7"} == names - FIXED


def test_what_the_file_reads_of_the_environment_is_documented_with_its_default():
    read = re.findall(r"\$\{(\w+):-([^}]*)\}", (ROOT / "docker-compose.yml").read_text())
    rows = [re.findall(r"`(\w+)`", row) for row in (ROOT / "ops/REFERENCE.md").read_text().splitlines()
            if row.startswith("| `")]
    assert read
    for name, default in read:
        assert any(name in row and default in row for row in rows), name


def test_what_is_published_is_published_on_loopback_alone_and_servers_are_not(everything):
    assert not any("ports" in everything[name] for name in SERVERS)
    for service in everything.values():
        for port in service.get("ports", []):
            assert (port["host_ip"] if isinstance(port, dict) else port.rsplit(":", 2)[0]) == "127.0.0.1"


def test_every_service_is_watched_restarted_and_given_time_to_end(everything):
    for service in everything.values():
        assert service["healthcheck"]["test"]
        assert service["restart"] == "unless-stopped"
        assert in_seconds(service["stop_grace_period"]) >= 30


def test_ours_end_within_the_time_that_they_are_given(services):
    settings = Settings.from_env({})
    assert in_seconds(services["ingestor"]["stop_grace_period"]) > gunicorn_conf.graceful_timeout + 15
    assert in_seconds(services["consumer"]["stop_grace_period"]) > settings.sink_timeout_s + 15


def test_every_service_is_without_privileges_and_writes_where_it_says(everything):
    for name, service in everything.items():
        assert service["user"] and service["user"].split(":")[0] not in ("root", "0"), name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"] and "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged") and "network_mode" not in service, name
        assert all("size=" in mount for mount in service["tmpfs"]), name


def test_every_service_is_bounded(everything):
    for name, service in everything.items():
        assert in_bytes(service["mem_limit"]) > 0, name
        assert float(service["cpus"]) > 0 and service["pids_limit"] > 0, name
        assert service["ulimits"]["nofile"]["hard"] >= 10_032, name  # Redis's default of 10,000 clients
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name


def test_a_worker_may_hold_what_it_is_allowed_to(services):
    settings = Settings.from_env({})
    held_bytes = settings.workers * (settings.max_inflight_bytes + settings.max_decoded_bytes)
    assert 2 * held_bytes < in_bytes(services["ingestor"]["mem_limit"])


def test_health_is_asked_of_what_the_service_is_for(services):
    for name, port in (("ingestor", Settings().port), ("consumer", Settings().admin_port)):
        kind, *command = services[name]["healthcheck"]["test"]
        assert kind == "CMD" and f'"127.0.0.1", {port}' in command[-1] and "/readyz" in command[-1]
        compile(command[-1], "the health check", "exec")


def test_consumers_wait_for_servers_that_answer_and_the_edge_for_nobody(services):
    conditions = {name: {server: need["condition"] for server, need in services[name]["depends_on"].items()}
                  for name in OURS}
    assert conditions["consumer"] == {"redis": "service_healthy", "postgres": "service_healthy"}
    assert conditions["ingestor"] == {"redis": "service_started", "postgres": "service_started"}


def test_servers_are_pinned_and_monitoring_is_asked_for(services, everything):
    for name in set(everything) - set(services):
        assert everything[name]["profiles"] in (["monitoring"], ["before"]), name
    for name in set(everything) - set(OURS):
        assert re.fullmatch(r"[a-z/]+:v?\d+(\.\d+)+(-\w+)?|postgres:\d+-\w+", everything[name]["image"])


def test_monitoring_reads_what_the_checkout_has_and_keeps_its_data(everything):
    found = {(name, target): (source, is_read_only)
             for name in ("prometheus", "grafana") for source, target, is_read_only in volumes(everything[name])}
    for key, path in {
        ("prometheus", "/etc/prometheus"): "ops/prometheus",
        ("grafana", "/etc/grafana/provisioning"): "ops/grafana/provisioning",
        ("grafana", "/var/lib/grafana/dashboards"): "ops/grafana/dashboards",
    }.items():
        source, is_read_only = found.pop(key)
        assert (ROOT / source).resolve() == ROOT / path and is_read_only
    assert found == {("prometheus", "/prometheus"): ("prometheus", False),
                     ("grafana", "/var/lib/grafana"): ("grafana", False)}


def test_the_image_holds_every_package_and_runs_unprivileged():
    text = (ROOT / "ops/Dockerfile").read_text()
    copied = {line.split()[1] for line in text.splitlines() if line.startswith("COPY") and "--from" not in line}
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"} <= copied
    [user] = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert user == "10001:10001" and user.split(":")[0] in text.split("useradd")[1]


def test_the_image_fetches_what_it_depends_on_before_code_is_copied():
    text = (ROOT / "ops/Dockerfile").read_text()
    assert text.index("requirements.txt") < text.index("COPY app")
    assert "--no-deps ." in text and "pip check" in text


def test_the_image_is_built_from_what_the_dockerfile_copies_and_no_more():
    text = (ROOT / "ops/Dockerfile").read_text()
    copied = {word for line in text.splitlines() if line.startswith("COPY") and "--from" not in line
              for word in line.split()[1:-1]}
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(allowed) == sorted(copied)
