"""The embedded Redis, which is a Valkey where no other is chosen: its directory, password, configuration and command.

What an older one has left is taken over once: the file of Redis 6.2, which the newer server moves and rewrites, is
copied before that.
"""

import logging
import os
import shutil
import time
from pathlib import Path

from app import log
from app.errors import SettingError
from ops import binary, redis_files, secret
from ops.binary import RedisProgram
from ops.redis_files import Files

logger = logging.getLogger(__name__)

# Only directives that Redis from 6.2 on and Valkey know.
_CONFIG = """\
bind 127.0.0.1
port {port}
protected-mode yes
requirepass {password}
tcp-keepalive 30
timeout 0
dir "{directory}"
appendonly yes
appendfsync always
no-appendfsync-on-rewrite no
aof-load-truncated yes
save ""
maxmemory {max_bytes}
maxmemory-policy noeviction
# The title would overwrite the command line and environment by which the processes of a stack are recognised.
set-proc-title no
"""


class RedisServer:
    """A Redis that confirms a write once it is fsynced and never evicts.

    Args:
        state: The data directory; the server's files lie in `redis/` below it.
        port: Its port on loopback.
        max_bytes: `maxmemory`; beyond it writes fail and reads go on.
        chosen: `SPILLWAY_REDIS_SERVER`; empty: the best that can read the data.
    """

    def __init__(self, state: Path, port: int, max_bytes: int, chosen: str = "") -> None:
        self.directory = state / "redis"
        self.port = port
        self.max_bytes = max_bytes
        self._chosen = chosen

    @property
    def url(self) -> str:
        """The URL with its password. It names the user, as redis-cli 6.2 takes an empty name for one."""
        return f"redis://default:{secret.password(self.directory / 'password')}@127.0.0.1:{self.port}/0"

    def choice(self) -> tuple[Files | None, RedisProgram]:
        """Returns the data at hand, None where there are none, and the program to serve them.

        Raises:
            SettingError: No program was found that can read them.
        """
        files = redis_files.find(self.directory)
        return files, binary.redis(files, self._chosen)

    def prepare(self) -> list[str]:
        """Writes the configuration and returns the command that serves it in the foreground.

        Durability: what the server will move and rewrite is copied on return.

        Raises:
            SettingError: No program was found that can read the data, or there is no room to copy them.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        files, program = self.choice()
        if files and redis_files.is_taken_over(files, program.version):
            self._keep(files.path, program)
        config = self.directory / "redis.conf"
        secret.write(config, _CONFIG.format(
            port=self.port,
            password=secret.password(self.directory / "password"),
            directory=self.directory,
            max_bytes=self.max_bytes,
        ))
        return [str(program.path), str(config)]

    def _keep(self, path: Path, program: RedisProgram) -> None:
        """Copies a file, unless that was done at an earlier start. A link would be cut with it where its end is torn.
        """
        found = path.stat()
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(found.st_mtime))
        copy = path.with_name(f"{path.name}.before-{program.name.lower()}-{stamp}")
        if copy.exists():
            return
        if (free := shutil.disk_usage(self.directory).free) < 2 * found.st_size:
            raise SettingError(
                f"REDIS_URL is not set, and {path} was written by Redis 6.2: before {program} takes it over, it is "
                f"copied, and rewritten after that, which takes {2 * found.st_size} bytes in {self.directory}, where "
                f"{free} are free. Make room, or start with SPILLWAY_REDIS_SERVER=<a redis-server of 6.2>"
            )
        draft = copy.with_name(f"{copy.name}.draft")
        with path.open("rb") as source, draft.open("wb") as target:
            os.fchmod(target.fileno(), 0o600)
            shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        draft.rename(copy)
        _sync(self.directory)
        logger.warning(log.line("redis_taken_over", by=program, copy=copy, then="remove it once all is well"))


def _sync(directory: Path) -> None:
    number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
