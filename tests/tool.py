"""What a test needs of the machine: skipped where a person lacks it, with the reason, and failed in CI."""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest


def missing(what):
    """Skips the test, or fails it in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is needed")
    pytest.skip(f"{what} is needed")


def need(program):
    """Requires a program on PATH."""
    if not shutil.which(program):
        missing(program)


@contextmanager
def injected(pid, fault):
    """Injects a fault into a process's system calls, as strace's `-e inject=` takes it, from here to the end."""
    need("strace")
    call = fault.partition(":")[0]
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(pid), "-e", f"trace={call}", "-e", f"inject={fault}"],
        stderr=subprocess.PIPE, text=True,
    )
    try:
        line = tracer.stderr.readline()
        if "attached" not in line:
            missing(f"a container in which strace may attach ({line.strip()})")
        yield
    finally:
        tracer.terminate()
        tracer.communicate(timeout=30)
