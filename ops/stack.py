"""Everything that runs for one data directory: started together, found again by anyone, ended without remainder.

The directory is the state. What a later command needs to know of the running stack, passwords included, stands in its
`stack.json`, as it was when it was started; nothing is derived a second time from an environment that may differ.
"""

import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from app.settings import Settings
from ops import family, metrics_dir, program, secret, supervisor_config
from ops.errors import StackFailed
from ops.port import Port, check
from ops.postgres_server import PostgresServer
from ops.redis_server import RedisServer
from ops.supervisor_client import ERRORS, Process, SupervisorClient

_STOP_S = 300.0  # more than the sum of all `stopwaitsecs`
_ORPHAN_STOP_S = 25.0  # more than gunicorn's graceful_timeout
_POLL_S = 0.1
_OTHER_SETTINGS = ("DATABASE_URL", "REDIS_URL", "GUNICORN_CMD_ARGS")


class Facts(msgspec.Struct, frozen=True):
    """What the running stack is made of; the URLs and the settings hold passwords.

    Attributes:
        settings: Those that it was given, as in the environment: with them `up` starts the same again.
    """

    ingest_url: str
    admin_url: str
    redis_url: str
    database_url: str
    data_dir: str
    supervisor_config: str
    embedded: list[str]
    settings: dict[str, str] = {}


class Stack:
    """The stack of one data directory.

    Args:
        state: The data directory; it need not exist.

    Raises:
        SettingError: Nothing can run in it.
    """

    def __init__(self, state: Path) -> None:
        self.state = state.resolve()
        supervisor_config.check(self.state)
        self.log = self.state / "log"
        self._config = self.state / "supervisord.conf"
        self._facts = self.state / "stack.json"
        self._client = SupervisorClient(self.state / "supervisor.sock")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps others from starting or ending the same stack at the same time."""
        self.state.mkdir(mode=0o711, parents=True, exist_ok=True)
        with open(self.state / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def is_up(self) -> bool:
        """Whether a supervisord runs, answering or not."""
        return bool(family.supervisords(self.state))

    def orphans(self) -> set[int]:
        """Returns what a supervisord that was killed has left running."""
        return set() if self.is_up() else family.children(self.state)

    def was_up(self) -> bool:
        """Whether it was ever started here."""
        return self._facts.exists()

    def facts(self) -> Facts:
        """Returns what the stack was last started with."""
        return msgspec.json.decode(self._facts.read_bytes(), type=Facts)

    def processes(self) -> list[Process]:
        """Returns the processes.

        Raises:
            StackFailed: supervisord runs and does not answer, or does not run.
        """
        try:
            return self._client.processes()
        except ERRORS as error:
            pids = ", ".join(map(str, family.supervisords(self.state)))
            raise StackFailed(f"supervisord (pid {pids or 'none'}) does not answer: {error}") from error

    @property
    def supervisor(self) -> SupervisorClient:
        """Its supervisord, running or not."""
        return self._client

    def start(
        self, settings: Settings, environ: Mapping[str, str], overrides: Mapping[str, Mapping[str, str]] | None = None,
    ) -> "subprocess.Popen[bytes]":
        """Starts everything that is not running and returns supervisord; nothing need answer yet.

        Args:
            settings: Those of the stack.
            environ: What its programs have in their environment.
            overrides: By program, what it has there instead.

        Raises:
            SettingError: It cannot be started as it is set; nothing was.
        """
        servers = _servers(self.state, settings)
        check(_ports(settings, servers))
        commands = {name: server.prepare() for name, server in servers.items()}
        facts = self._describe(settings, {name: server.url for name, server in servers.items()}, environ)
        secret.write(self._facts, msgspec.json.format(msgspec.json.encode(facts)).decode())
        secret.write(self._config, supervisor_config.render(settings, commands, overrides or {}))
        return self._launch(settings, facts, environ)

    def stop(self) -> bool:
        """Ends everything, in order while supervisord answers, and waits until it has gone.

        Returns:
            Whether there was something to end.
        """
        found = family.supervisords(self.state) | family.children(self.state)
        try:
            self._client.shutdown()
            _wait(self._has_ended, _STOP_S)
        except ERRORS:
            pass
        self._kill(family.supervisords, signal.SIGKILL, _STOP_S)
        self._kill(family.children, signal.SIGTERM, _ORPHAN_STOP_S)
        self._kill(family.children, signal.SIGKILL, _STOP_S)
        for name in ("supervisor.sock", "supervisord.pid"):
            (self.state / name).unlink(missing_ok=True)
        metrics_dir.remove(metrics_dir.path(self.state))
        return bool(found)

    def _has_ended(self) -> bool:
        try:
            # supervisord takes its next step once a second, or when it is asked something: this halves `down`.
            self._client.processes()
        except ERRORS:
            pass
        return not family.supervisords(self.state)

    def _kill(self, find: Callable[[Path], set[int]], number: signal.Signals, deadline_s: float) -> None:
        for pid in find(self.state):
            family.end(pid, self.state, number)
        _wait(lambda: not find(self.state), deadline_s)

    def _describe(self, settings: Settings, embedded: Mapping[str, str], environ: Mapping[str, str]) -> Facts:
        return Facts(
            ingest_url=program.url(settings.bind, settings.port),
            admin_url=program.url(settings.admin_bind, settings.admin_port),
            redis_url=settings.redis_url or embedded["redis"],
            database_url=settings.database_url or embedded["postgres"],
            data_dir=str(self.state),
            supervisor_config=str(self._config),
            embedded=list(embedded),
            settings=_given(settings, environ),
        )

    def _launch(self, settings: Settings, facts: Facts, environ: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        self.log.mkdir(mode=0o700, exist_ok=True)
        metrics = metrics_dir.path(self.state)
        metrics_dir.wipe(metrics)
        urls = {"REDIS_URL": facts.redis_url, "DATABASE_URL": facts.database_url}
        with (self.log / "supervisord.log").open("ab") as log_file:
            return subprocess.Popen(
                family.supervisord_command(sys.executable, self.state),
                env=program.environment(environ, settings, metrics, urls),
                # Python and gunicorn import from where they stand: it must not be a directory with an `app` of its own.
                cwd=self.state,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log_file,
                start_new_session=True,  # a terminal's Ctrl-C is for `spillway up`, which ends it in order
            )


def _servers(state: Path, settings: Settings) -> dict[str, RedisServer | PostgresServer]:
    """Returns the embedded servers that the settings ask for."""
    found: dict[str, RedisServer | PostgresServer] = {}
    if not settings.redis_url:
        found["redis"] = RedisServer(state, settings.redis_port, settings.redis_max_bytes, settings.redis_server)
    if not settings.database_url:
        found["postgres"] = PostgresServer(state, settings.postgres_port, settings.postgres_bin)
    return found


def _given(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    found = {name: value for name, value in sorted(environ.items())
             if value and (name.startswith("SPILLWAY_") or name in _OTHER_SETTINGS)}
    # Whoever reads them may stand elsewhere.
    names = ("SPILLWAY_WAL_DIR", "SPILLWAY_REDIS_SERVER", "SPILLWAY_POSTGRES_BIN")
    paths = {name: str(Path(found[name]).absolute()) for name in names if name in found}
    return {**found, **paths, "SPILLWAY_DATA_DIR": str(settings.state)}


def _ports(settings: Settings, embedded: Mapping[str, object]) -> list[Port]:
    ports = [
        Port("SPILLWAY_PORT", settings.bind, settings.port),
        Port("SPILLWAY_ADMIN_PORT", settings.admin_bind, settings.admin_port),
    ]
    if "redis" in embedded:
        ports.append(Port("SPILLWAY_REDIS_PORT", "127.0.0.1", settings.redis_port))
    if "postgres" in embedded:
        ports.append(Port("SPILLWAY_POSTGRES_PORT", "127.0.0.1", settings.postgres_port))
    return ports


def _wait(is_done: Callable[[], bool], deadline_s: float) -> None:
    deadline = time.monotonic() + deadline_s
    while not is_done() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
