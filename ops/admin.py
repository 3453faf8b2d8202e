"""The admin listener of a host: `app.admin`'s, and where supervisor runs the host's processes, what it says of them."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gevent
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app import admin
from app.settings import Settings
from ops.supervisor_client import ERRORS, Process, SupervisorClient

_TIMEOUT_S = 1.0


class ProcessCollector(Collector):
    """Asks supervisord when it is scraped; says nothing where there is none, as in a container.

    Args:
        state: The data directory.
        timeout_s: Longest that a scrape waits for supervisord.
    """

    def __init__(self, state: Path, timeout_s: float = _TIMEOUT_S) -> None:
        self._config = state / "supervisord.conf"
        self._client = SupervisorClient(state / "supervisor.sock", timeout_s)
        self._timeout_s = timeout_s

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yields the gauges; without supervisord only `ingest_supervisor_up` 0."""
        if not self._config.exists():
            return
        processes = self._processes()
        yield GaugeMetricFamily("ingest_supervisor_up", "Whether supervisord answers.", processes is not None)
        if processes is None:
            return
        running = GaugeMetricFamily("ingest_process_running", "Whether supervisord has it running.", labels=["process"])
        uptime = GaugeMetricFamily(
            "ingest_process_uptime_seconds", "For how long it has been running.", labels=["process"]
        )
        for process in processes:
            running.add_metric([process.name], process.state == "RUNNING")
            uptime.add_metric([process.name], process.uptime_s)
        yield running
        yield uptime

    def _processes(self) -> list[Process] | None:
        # The socket's own deadline is for one read: an answer may come in drops.
        with gevent.Timeout(2 * self._timeout_s, False):
            try:
                return self._client.processes()
            except ERRORS:
                pass
        return None


def get_app() -> Any:
    """Returns the application for this process; called by gunicorn after fork and patching."""
    return admin.get_app([ProcessCollector(Settings.from_env(os.environ).state)])
