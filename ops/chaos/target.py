"""The stack that is broken: one under supervisor, by its processes, servers and files."""

import http.client
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ops import family
from ops.chaos.disk import Ext4
from ops.chaos.evidence import LogLine
from ops.chaos.recorder import log_lines
from ops.errors import ChaosFailed
from ops.proxy import Proxy
from ops.stack import Stack
from ops.supervisor_client import ERRORS, Process

_DEADLINE_S = 180.0
_POLL_S = 0.05
_SERVERS = ("redis", "postgres")


class Target:
    """A running stack.

    Args:
        stack: It runs.
        wal: The directory of the WAL's segments.
        proxies: By name, what stands between its parts, where its network may be slowed.
        disk: The file system of the WAL, where it has one of its own that may be filled and cut.

    Attributes:
        facts: Where its listeners and servers are.
    """

    def __init__(
        self, stack: Stack, wal: Path, proxies: dict[str, Proxy] | None = None, disk: Ext4 | None = None,
    ) -> None:
        self._stack = stack
        self._wal = wal
        self.facts = stack.facts()
        self.proxies = proxies or {}
        self.disk = disk
        self._log_sizes = {path: path.stat().st_size for path in self._logs()}

    @property
    def admin_urls(self) -> list[str]:
        """The admin listener of each host."""
        return [self.facts.admin_url]

    def process(self, name: str) -> Process:
        """Returns a process by its name, or the first of those whose names begin so.

        Raises:
            ChaosFailed: There is none.
        """
        for process in self._stack.processes():
            if process.name == name or process.name.startswith(f"{name}:"):
                return process
        raise ChaosFailed(f"there is no {name} here that could be broken: it is somebody else's")

    def all_processes(self) -> list[Process]:
        """Returns every process of the stack."""
        return self._stack.processes()

    def consumers(self) -> list[str]:
        """Returns the names of the processes that consume and run."""
        return [one.name for one in self._stack.processes()
                if one.name.startswith("consumers:") and one.state == "RUNNING"]

    def supervisord(self) -> int:
        """Returns its pid."""
        return next(iter(family.supervisords(self._stack.state)))

    def pids(self, name: str) -> list[int]:
        """Returns the pid of a process and of its children, the children last."""
        pid = self.process(name).pid
        if not pid:
            return []
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def stop(self, name: str) -> None:
        """Stops a process in order, so that it stays down, and waits until it is."""
        self._stack.supervisor.stop(self.process(name).name)
        self.await_state(name, "STOPPED", "EXITED")

    def start(self, name: str) -> None:
        """Starts a process that does not run, and waits until it does."""
        if self.process(name).state not in ("RUNNING", "STARTING", "BACKOFF"):
            self._stack.supervisor.start(self.process(name).name)
        self.await_state(name, "RUNNING")

    def await_state(self, name: str, *states: str) -> None:
        """Waits until supervisord says one of these of a process."""
        self.until(lambda: self.process(name).state in states, f"{name} to be {states[0]}")

    def crash(self, name: str) -> None:
        """Kills a process and its children with SIGKILL, and keeps supervisord from starting it again."""
        pids = self.pids(name)
        send(pids, signal.SIGSTOP)
        # It is told to end first, which it cannot hear: so supervisord means it to be down when it dies.
        self._stack.supervisor.stop(name)
        send(pids, signal.SIGKILL)
        self.await_state(name, "STOPPED", "EXITED")

    def until(self, condition: Callable[[], bool], what: str, deadline_s: float = _DEADLINE_S) -> None:
        """Waits for a condition.

        Raises:
            ChaosFailed: It took too long.
        """
        deadline = time.monotonic() + deadline_s
        while time.monotonic() < deadline:
            with suppress(*ERRORS):
                if condition():
                    return
            time.sleep(_POLL_S)
        raise ChaosFailed(f"waited {deadline_s:.0f} s for {what}")

    def wal_files(self) -> list[str]:
        """Returns the names of the WAL's segments on disk."""
        return sorted(path.name for path in self._wal.glob("*.wal"))

    def replay_letters(self) -> dict[str, Any]:
        """Replays the dead letters through the admin listener, and returns its answer.

        Raises:
            ChaosFailed: It refused.
        """
        connection = http.client.HTTPConnection(urlsplit(self.facts.admin_url).netloc, timeout=_DEADLINE_S)
        connection.request("POST", "/dead-letters/replay", b"{}", {"Content-Type": "application/json"})
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        if response.status != 200:
            raise ChaosFailed(f"the replay was answered {response.status}: {body}")
        answer: dict[str, Any] = json.loads(body)
        return answer

    def lines(self) -> list[LogLine]:
        """Returns what our programs have logged since this object was made, by time."""
        found: list[LogLine] = []
        for path in self._logs():
            with path.open(errors="replace") as log:
                log.seek(self._log_sizes.get(path, 0))
                found += log_lines(path.stem, log)
        return sorted(found, key=lambda line: line.at)

    def _logs(self) -> list[Path]:
        return [path for path in self._stack.log.glob("*.log") if path.stem not in (*_SERVERS, "supervisord")]


def send(pids: list[int], number: signal.Signals) -> None:
    """Signals processes; one that has ended meanwhile does not mind."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
