"""What tests of the edge share: a real gunicorn on a port of its own, and ways to talk to it, well-behaved or not."""

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from ops.program import WORKER_CLASSES
from tests.journal import ROOT, until

CLIENT_TIMEOUT_S = 30


class Answer(NamedTuple):
    """A response; `document` is its JSON, None where it is none."""

    status: int
    headers: http.client.HTTPMessage
    document: Any


class Edge:
    """One gunicorn with one worker, as the service runs it.

    Args:
        redis_url: The buffer.
        directory: Empty; takes the log and the metrics.
        worker_class: As `SPILLWAY_WORKER_CLASS`.
        options: For gunicorn.
        is_tls: Whether the options make it speak TLS.
        app: The application, as gunicorn takes it.
        settings: By their names in the environment.
    """

    _is_tls = False

    def __init__(self, redis_url, directory, worker_class="spillway", options=(), is_tls=False,
                 app="app.edge:get_app()", **settings):
        self.metrics_dir = directory / "metrics"
        self.metrics_dir.mkdir()
        self._log = directory / "log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SPILLWAY_")}
        environ = {
            "REDIS_URL": redis_url, "PROMETHEUS_MULTIPROC_DIR": str(self.metrics_dir),
            "SPILLWAY_DATA_DIR": str(directory), **settings,
        }
        with self._log.open("wb") as log:
            self._master = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "-c", "ops/gunicorn_conf.py", "-w", "1", "-b", "127.0.0.1:0",
                 "-k", WORKER_CLASSES[worker_class], *options, app],
                cwd=ROOT, stdout=log, stderr=log, env={**kept, "PYTHONPATH": str(ROOT), **environ},
            )
        self._is_tls = is_tls
        # The kernel picks the port, and gunicorn says which.
        self.port = int(until(lambda: re.search(r"Listening at: https?://127.0.0.1:(\d+)", self.log), "gunicorn")[1])
        until(lambda: self._master.poll() is not None or self.is_live(), "the worker")
        assert self._master.poll() is None, self.log
        self.pid = min(self.pids())

    def signal(self, number):
        """Signals the master."""
        self._master.send_signal(number)

    def stop(self):
        """Ends gunicorn in order."""
        self._master.terminate()
        self._master.wait(CLIENT_TIMEOUT_S)

    @property
    def log(self):
        """What gunicorn and the worker have logged."""
        return self._log.read_text()

    @contextmanager
    def unharmed(self):
        """Requires that it is the same process afterwards, ready, and without a fault of its own in the log."""
        logged = len(self.log)
        yield
        assert self.request("GET", "/readyz").status == 200
        assert self.worker_pid() == self.pid
        assert not {"request_failed", "commit_failed", "connection_failed"} & set(self.log[logged:].split())

    def worker_pid(self):
        """Returns the pid of the only worker."""
        (pid,) = self.pids()
        return pid

    def pids(self):
        """Returns the pids of the workers."""
        children = Path(f"/proc/{self._master.pid}/task/{self._master.pid}/children").read_text()
        return set(map(int, children.split()))

    def connection_count(self, pid=None):
        """Returns how many clients a worker, or the first one, is connected to."""
        accepted = {
            fields[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if (fields := line.split())
            and fields[1].endswith(f":{self.port:04X}") and fields[3] != "0A"
        }
        held = {os.readlink(link) for link in Path(f"/proc/{pid or self.pid}/fd").iterdir() if link.is_symlink()}
        return len(held & {f"socket:[{inode}]" for inode in accepted})

    def peak_bytes(self):
        """Returns the most memory that the worker has had."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10

    def post(self, body, content_type="application/json", query="", **headers):
        """Posts to `/ingest`; `_` in the names of headers stands for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", f"/ingest{query}", body, {"Content-Type": content_type, **named})

    def request(self, method, path, body=None, headers=None):
        """Sends one request on a connection of its own."""
        with closing(self._client()) as connection:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            content = response.read()
            is_json = "json" in (response.getheader("Content-Type") or "")
            return Answer(response.status, response.headers, json.loads(content) if is_json and content else None)

    def _client(self):
        if not self._is_tls:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=CLIENT_TIMEOUT_S)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=CLIENT_TIMEOUT_S, context=context)

    def connection(self):
        """Returns a socket that is connected."""
        return socket.create_connection(("127.0.0.1", self.port), CLIENT_TIMEOUT_S)

    def raw(self, *pieces, is_half_closed=False):
        """Sends bytes as they are, and returns what comes back until the server closes."""
        with self.connection() as connection:
            with suppress(OSError):  # It may have seen enough, answered and closed before we are through.
                for piece in pieces:
                    connection.sendall(piece)
                if is_half_closed:
                    connection.shutdown(socket.SHUT_WR)
            received = b""
            try:
                while piece := connection.recv(65536):
                    received += piece
            except ConnectionResetError:
                pass  # It closed while bytes of ours were unread; what it said before counts.
            return received

    def metric(self, name, **labels):
        """Returns a metric's value over all its workers; 0 where there is none."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self.metrics_dir))
        return registry.get_sample_value(name, labels) or 0

    def kill_worker(self):
        """Ends the worker with SIGKILL; the master starts another."""
        os.kill(self.worker_pid(), signal.SIGKILL)

    def is_live(self):
        """Tells whether a worker answers."""
        try:
            return self.request("GET", "/livez").status == 200
        except OSError:
            return False
