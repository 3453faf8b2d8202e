"""docker-compose.yml as Compose itself understands it; no engine is needed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from app.settings import Settings
from ops import program

ROOT = Path(__file__).resolve().parents[2]
OURS = ("ingestor", "consumer")


def compose():
    """Returns the command of Compose, the standalone one or the engine's plugin, or None."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    plugin = ["docker", "compose"]
    if shutil.which("docker") and subprocess.run([*plugin, "version"], capture_output=True).returncode == 0:
        return plugin
    return None


@pytest.fixture(scope="module")
def services():
    """The services after Compose has checked and merged the file."""
    command = compose()
    if command is None:
        assert os.environ.get("CI") != "true", "docker-compose is missing; .ci/run installs it"
        pytest.skip("neither docker-compose nor docker compose is installed")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SPILLWAY_", "POSTGRES_"))}
    run = subprocess.run([*command, "config"], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return yaml.safe_load(run.stdout)["services"]


def option(command, name):
    """Returns the word after one option of a command line."""
    words = list(map(str, command))
    return words[words.index(name) + 1]


def test_the_services_are_the_pipeline(services):
    assert {"redis", "postgres", *OURS} <= set(services)


def test_redis_confirms_only_what_is_on_disk_and_never_evicts(services):
    command = services["redis"]["command"]
    assert (option(command, "--appendonly"), option(command, "--appendfsync")) == ("yes", "always")
    assert option(command, "--maxmemory-policy") == "noeviction"
    assert int(option(command, "--maxmemory")) > 0


@pytest.mark.parametrize("name", ["redis", "postgres"])
def test_servers_keep_their_data_in_volumes_and_are_not_published(services, name):
    [volume] = services[name]["volumes"]
    assert "ports" not in services[name]
    assert (volume["type"] if isinstance(volume, dict) else volume.split(":")[0]) in ("volume", name)


def test_consumers_can_be_scaled(services):
    assert "container_name" not in services["consumer"]
    assert "ports" not in services["consumer"]


def test_ours_are_one_image_and_run_programs_that_exist(services):
    assert len({services[name]["image"] for name in OURS}) == 1
    for name in OURS:
        assert set(services[name]["command"]) <= set(program.NAMES)
    assert "ingest" in services["ingestor"]["command"]
    assert "consumer" in services["consumer"]["command"]


def test_ours_start_with_settings_that_are_allowed(services):
    for name in OURS:
        settings = Settings.from_env({key: str(value) for key, value in services[name]["environment"].items()})
        assert settings.redis_url and settings.database_url


def test_what_is_published_is_published_on_loopback_alone(services):
    for service in services.values():
        for port in service.get("ports", []):
            assert (port["host_ip"] if isinstance(port, dict) else port.rsplit(":", 2)[0]) == "127.0.0.1"


def test_every_service_is_watched_restarted_and_given_time_to_end(services):
    for service in services.values():
        assert service["healthcheck"]["test"]
        assert service["restart"] == "unless-stopped"
        assert service["stop_grace_period"]


def test_ours_wait_for_servers_that_answer(services):
    for name in OURS:
        conditions = {server: need["condition"] for server, need in services[name]["depends_on"].items()}
        assert conditions == {"redis": "service_healthy", "postgres": "service_healthy"}


def test_the_image_holds_every_package_and_runs_unprivileged():
    text = (ROOT / "ops/Dockerfile").read_text()
    copied = {line.split()[1] for line in text.splitlines() if line.startswith("COPY") and "--from" not in line}
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"} <= copied
    assert "\nUSER spillway\n" in text
