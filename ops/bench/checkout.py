"""A checkout of Spillway: which code it has, and a stack that runs it beside others', on servers that are given."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from ops import scratch
from ops.errors import BenchFailed
from ops.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
# What it is known by: the command, and both ends of the way that is measured.
_HAS = ("ops/command.py", "app/edge.py", "workers/consumer.py")
_UP_S = 120


class Checkout(NamedTuple):
    """Code, and what runs it.

    Attributes:
        root: Where it lies.
        python: The interpreter of its own environment, or where it has none the one that runs us.
    """

    root: Path
    python: str

    @contextmanager
    def running(self, state: Path, **changes: str) -> Iterator[Stack]:
        """Starts its stack by its own command, and ends it.

        Args:
            state: Its data directory.
            changes: As of `scratch.stack`.

        Raises:
            BenchFailed: It cannot be started; the message has the end of what its command said.
        """
        stack = Stack(state)
        # Imports this code also where another checkout's is installed, and nothing from where we stand.
        environ = {**scratch.environment(state, **changes), "PYTHONPATH": str(self.root)}
        try:
            self._up(environ)
            yield stack
        finally:
            with stack.lock():
                stack.stop()

    def _up(self, environ: dict[str, str]) -> None:
        command = [self.python, "-m", "ops.command", "up", "--detach"]
        try:
            done = subprocess.run(command, env=environ, cwd="/", capture_output=True, text=True, timeout=_UP_S)
        except OSError as error:
            raise BenchFailed(f"{self.python} cannot be run, which {self.root} has as its own: {error}") from error
        if done.returncode:
            raise BenchFailed(f"the stack of {self.root} does not start: {done.stderr.strip()[-1000:]}")


def own() -> Checkout:
    """Returns the one that this module is of."""
    return Checkout(ROOT, sys.executable)


def found(path: Path) -> Checkout:
    """Returns the one that lies there.

    Raises:
        BenchFailed: None does.
    """
    root = path.absolute()
    lacking = [name for name in _HAS if not (root / name).is_file()]
    if lacking:
        raise BenchFailed(f"{path} is not a checkout of Spillway: there is no {lacking[0]} in it")
    python = root / ".venv" / "bin" / "python"
    return Checkout(root, str(python) if python.exists() else sys.executable)


def commit(root: Path) -> str:
    """Returns the commit of a checkout; `+` behind it where files differ from it."""
    if not (root / ".git").exists():
        return f"release {version('spillway')}" if root == ROOT else "unknown"
    git = ["git", "-C", str(root), "-c", f"safe.directory={root}"]
    name, changed = (subprocess.run([*git, *words], capture_output=True, text=True).stdout.strip()
                     for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "-uno")))
    return f"{name or 'unknown'}{'+' if changed else ''}"
