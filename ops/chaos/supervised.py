"""A stack under supervisor: broken by its processes, servers and files."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.settings import Settings
from ops import family
from ops.chaos.disk import Ext4
from ops.chaos.evidence import LogLine
from ops.chaos.recorder import log_lines
from ops.chaos.target import Places, Target, audited
from ops.errors import ChaosFailed
from ops.proxy import Proxy
from ops.stack import Stack
from ops.supervisor_client import Process

_SERVERS = ("redis", "postgres")


class Supervised(Target):
    """One of those that `spillway up` starts.

    Args:
        stack: It runs.
        settings: Those that it was started with.
        proxies: See `Target`.
        disk: The file system of the WAL, where it has one of its own that may be filled and cut.
    """

    def __init__(
        self, stack: Stack, settings: Settings, proxies: dict[str, Proxy] | None = None, disk: Ext4 | None = None,
    ) -> None:
        facts = stack.facts()
        super().__init__(Places(facts.ingest_url, facts.admin_url, facts.redis_url, facts.database_url))
        self.proxies = proxies or {}
        self.disk = disk
        self._stack = stack
        self._wal = settings.wal_path
        self._consumer_name = settings.consumer_name
        self._log_sizes = {path: path.stat().st_size for path in self._logs()}

    def hosts(self) -> dict[str, str]:
        """See `Target`: one."""
        return {"": self.places.admin_url}

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
        """See `Target`."""
        return [one.name for one in self._stack.processes()
                if one.name.startswith("consumers:") and one.state == "RUNNING"]

    def consumer_of(self, name: str) -> str:
        """See `Target`."""
        return f"{self._consumer_name}-{name.rpartition('-')[2]}"

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
        """See `Target`."""
        self._stack.supervisor.stop(self.process(name).name)
        self.await_state(name, "STOPPED", "EXITED")

    def start(self, name: str) -> None:
        """See `Target`."""
        self.thaw(name)
        if self.process(name).state not in ("RUNNING", "STARTING", "BACKOFF"):
            self._stack.supervisor.start(self.process(name).name)
        self.await_state(name, "RUNNING")

    def await_state(self, name: str, *states: str) -> None:
        """Waits until supervisord says one of these of a process."""
        self.until(lambda: self.process(name).state in states, f"{name} to be {states[0]}")

    def freeze(self, name: str) -> None:
        """See `Target`."""
        send(self.pids(name), signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """See `Target`."""
        send(self.pids(name), signal.SIGCONT)

    def crash(self, name: str) -> None:
        """See `Target`; its children too."""
        pids = self.pids(name)
        send(pids, signal.SIGSTOP)
        # It is told to end first, which it cannot hear: so supervisord means it to be down when it dies.
        self._stack.supervisor.stop(name)
        send(pids, signal.SIGKILL)
        self.await_state(name, "STOPPED", "EXITED")

    def wal_files(self) -> list[str]:
        """See `Target`."""
        return sorted(path.name for path in self._wal.glob("*.wal"))

    def audit(self) -> dict[str, Any]:
        """See `Target`."""
        environ = {**os.environ, "SPILLWAY_DATA_DIR": str(self._stack.state), "SPILLWAY_WAL_DIR": str(self._wal)}
        return audited([sys.executable, "-m", "ops.command"], environ)

    def lines(self) -> list[LogLine]:
        """See `Target`."""
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
