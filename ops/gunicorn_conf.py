"""Gunicorn's settings for ingest and admin; address, workers, their class for ingest and app stand on the command line
(`ops/program.py`).

Imports the standard library, and what does with that alone: gevent patches after the fork, and what is imported here
would stay unpatched.
"""

import os
from pathlib import Path
from types import SimpleNamespace

from app import census, metric_file

worker_class = "gevent"
worker_connections = 500
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None  # its heartbeat must not wait for a disk
preload_app = False
max_requests = 0

timeout = 30
graceful_timeout = 20
keepalive = 5

limit_request_line = 2048
limit_request_fields = 40
limit_request_field_size = 4096

control_socket_disable = True
accesslog = None
errorlog = "-"
loglevel = (os.environ.get("SPILLWAY_LOG_LEVEL") or "INFO").lower()


def post_fork(server: object, worker: object) -> None:
    """Makes what a worker needs to share its metrics, before it imports anything that counts."""
    metric_file.prepare(os.environ)


def child_exit(server: object, worker: SimpleNamespace) -> None:
    """Forgets a worker that has ended: its connections, and its live gauges, as `prometheus_client.multiprocess`'s
    `mark_process_dead` does.

    Not by calling it: the arbiter would import the library unpatched, and every later worker inherit it.
    """
    census.forget(worker.age)
    for path in Path(os.environ[metric_file.VARIABLE]).glob(f"gauge_live*_{worker.pid}.db"):
        path.unlink(missing_ok=True)
