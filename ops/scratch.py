"""A whole stack of its own in a scratch directory, with embedded servers on free ports: for measuring and for breaking.
"""

import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from app.settings import Settings
from ops import readiness
from ops.postgres_server import PostgresServer
from ops.redis_server import RedisServer
from ops.stack import Stack

_PORTS = ("SPILLWAY_PORT", "SPILLWAY_ADMIN_PORT", "SPILLWAY_REDIS_PORT", "SPILLWAY_POSTGRES_PORT")
_START_S = 60.0

# Program → what its environment has instead of the stack's.
Overrides = Mapping[str, Mapping[str, str]]


@contextmanager
def directory(purpose: str) -> Iterator[Path]:
    """Yields a new directory that PostgreSQL's account may enter; it is removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix=f"spillway-{purpose}-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def environment(state: Path, **changes: str) -> dict[str, str]:
    """Returns the environment of a stack on free ports.

    Args:
        state: Its data directory.
        changes: Settings by their names in the environment; others are those of ours, but for servers and ports, and
            the canary, which is off.
    """
    kept = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "REDIS_URL", *_PORTS)}
    ports = zip(_PORTS, map(str, free_ports(len(_PORTS))))
    own = {"SPILLWAY_DATA_DIR": str(state), "SPILLWAY_WAL_DIR": "", "SPILLWAY_CANARY": "off"}
    return {**kept, **dict(ports), **own, **changes}


@contextmanager
def stack(state: Path, override: Callable[[str, str], Overrides] | None = None, **changes: str) -> Iterator[Stack]:
    """Yields a running stack, and ends it.

    Args:
        state: Its data directory.
        override: Given the URLs of Redis and of PostgreSQL, returns what programs have in their environment instead.
        changes: As of `environment`.

    Raises:
        SettingError, StackFailed: It cannot be started.
    """
    environ = environment(state, **changes)
    settings = Settings.from_env(environ)
    one = Stack(settings.state)
    supervisord = None
    try:
        with one.lock():
            supervisord = one.start(settings, environ, override(*_urls(one.state, settings)) if override else {})
        readiness.wait(one, supervisord, _START_S)
        yield one
    finally:
        with one.lock():
            one.stop()  # also what was interrupted in the midst of its start
        if supervisord:
            supervisord.wait()


def _urls(state: Path, settings: Settings) -> tuple[str, str]:
    redis = RedisServer(state, settings.redis_port, settings.redis_max_bytes)
    redis.directory.mkdir(mode=0o700)
    return redis.url, PostgresServer(state, settings.postgres_port).url


def free_ports(count: int) -> list[int]:
    """Returns free ports below the range that the kernel hands out to clients."""
    free: list[int] = []
    while len(free) < count:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as listener:
            if port not in free and listener.connect_ex(("127.0.0.1", port)):
                free.append(port)
    return free
