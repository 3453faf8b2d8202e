"""`make` runs with the Python that it is told to, or says that it cannot."""

import shutil
import subprocess
import sys

import pytest

from tests.journal import ROOT
from tests.machine import missing


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose virtual environment is of an older Python."""
    if not shutil.which("make"):
        missing("make")
    shutil.copy(ROOT / "Makefile", tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho Python 3.10.1\n")
    python.chmod(0o700)
    here = subprocess.run("pwd | cksum | cut -d' ' -f1", shell=True, cwd=tmp_path, capture_output=True, text=True)
    (tmp_path / f".venv/installed-{here.stdout.strip()}").touch()
    return tmp_path


def planned(checkout, *words):
    return subprocess.run(["make", "--dry-run", "down", *words], cwd=checkout, capture_output=True, text=True)


def test_another_python_than_that_of_the_environment_is_refused_and_not_passed_over(checkout):
    assert planned(checkout).returncode == 0
    refused = planned(checkout, f"PYTHON={sys.executable}")
    assert refused.returncode and "Python 3.10.1" in refused.stderr and "rm -r .venv" in refused.stderr


def test_the_python_of_the_environment_may_be_named_again(checkout):
    same = planned(checkout, f"PYTHON={checkout / '.venv/bin/python'}")
    assert (same.returncode, same.stderr) == (0, "")


def test_a_python_is_taken_where_there_is_no_environment(checkout):
    shutil.rmtree(checkout / ".venv")
    assert planned(checkout, f"PYTHON={sys.executable}").returncode == 0
