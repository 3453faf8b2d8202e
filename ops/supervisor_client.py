"""Speaks to supervisord over its socket, and never longer than it takes to see that it does not answer."""

import http.client
import socket
import xmlrpc.client
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from supervisor.xmlrpc import SupervisorTransport

_TIMEOUT_S = 5.0

# What speaking to a socket that is stale, silent or about to close can raise.
ERRORS = (OSError, http.client.HTTPException, xmlrpc.client.Error)


class Process(msgspec.Struct, frozen=True):
    """One process of the stack, as supervisord sees it; `pid` and `uptime_s` are 0 when it does not run."""

    name: str
    state: str
    pid: int
    uptime_s: int
    log: str
    detail: str

    @property
    def is_failing(self) -> bool:
        """Whether it ended by itself and is waiting to be tried again, or given up."""
        return self.state in ("BACKOFF", "EXITED", "FATAL", "UNKNOWN")


class _Connection(http.client.HTTPConnection):
    """supervisor's own has no deadline, and a stopped supervisord still takes connections."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Opens the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class SupervisorClient:
    """The supervisord behind one socket.

    Every call raises one of `ERRORS` when it does not answer.

    Args:
        path: The socket.
        timeout_s: For how long it may be silent.
    """

    def __init__(self, path: Path, timeout_s: float = _TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s

    @property
    def _rpc(self) -> Any:
        # Anew for every call: a connection on which an answer is overdue cannot be used again.
        transport = SupervisorTransport(serverurl=f"unix://{self._path}")
        transport._get_connection = lambda: _Connection(self._path, self._timeout_s)
        return xmlrpc.client.ServerProxy("http://localhost", transport).supervisor

    def processes(self) -> list[Process]:
        """Returns every process, by name."""
        return [_process(info) for info in self._rpc.getAllProcessInfo()]

    def start(self, name: str) -> None:
        """Begins to start a process that does not run."""
        self._rpc.startProcess(name, False)

    def stop(self, name: str) -> None:
        """Begins to stop a process that runs, so that it stays down."""
        self._rpc.stopProcess(name, False)

    def shutdown(self) -> None:
        """Begins to stop everything, servers last; supervisord ends when all have."""
        self._rpc.shutdown()


def _process(info: dict[str, Any]) -> Process:
    is_running = info["statename"] == "RUNNING"
    return Process(
        name=info["name"] if info["name"] == info["group"] else f"{info['group']}:{info['name']}",
        state=info["statename"],
        pid=info["pid"],
        uptime_s=info["now"] - info["start"] if is_running else 0,
        log=info["stdout_logfile"],
        detail="" if is_running else _detail(info),
    )


def _detail(info: dict[str, Any]) -> str:
    if info["statename"] not in ("STOPPED", "EXITED") or not info["stop"]:
        return str(info["description"])
    # supervisor's own has no zone, and no year.
    since = datetime.fromtimestamp(info["stop"], UTC)
    return f"since {since:%Y-%m-%dT%H:%M:%SZ}"
