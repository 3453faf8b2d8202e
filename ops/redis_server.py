"""The embedded Redis: its directory, password, configuration and command."""

from pathlib import Path

from ops import binary, secret

# Only directives that 6.2 and 7 both know.
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
    """

    def __init__(self, state: Path, port: int, max_bytes: int) -> None:
        self.directory = state / "redis"
        self.port = port
        self.max_bytes = max_bytes

    @property
    def url(self) -> str:
        """The URL with its password. It names the user, as redis-cli 6.2 takes an empty name for one."""
        return f"redis://default:{secret.password(self.directory / 'password')}@127.0.0.1:{self.port}/0"

    def prepare(self) -> list[str]:
        """Writes the configuration and returns the command that serves it in the foreground.

        Raises:
            SettingError: No program was found that can read the data.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = self.directory / "redis.conf"
        secret.write(config, _CONFIG.format(
            port=self.port,
            password=secret.password(self.directory / "password"),
            directory=self.directory,
            max_bytes=self.max_bytes,
        ))
        return [str(binary.redis(self._least_major())), str(config)]

    def _least_major(self) -> int | None:
        # Redis 7 keeps its AOF in a directory; 6.2 would not see it there and start empty.
        return 7 if (self.directory / "appendonlydir").exists() else None
