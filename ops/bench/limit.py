"""The limits: what this machine does without us of what our figures are held against."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor

from app.batch import Batch
from ops import listener, scratch
from ops.bench.body import Bodies
from ops.bench.figure import quantile
from ops.errors import BenchFailed
from workers import schema

_COPY_BUFFER_BYTES = 1 << 18
_FILE_BYTES = 16 << 20
_BLOCK_BYTES = 4096
_SYNC_S = 0.5
_COPY_S = 0.3
_START_S = 30.0


@contextmanager
def bare_tables(url: str) -> Iterator[Connection]:
    """Connects to tables like those that are loaded, in a schema of their own."""
    connection = psycopg2.connect(url, options="-c search_path=bare")
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute("CREATE SCHEMA IF NOT EXISTS bare")
        connection.autocommit = False
        schema.ensure(connection)
        connection.autocommit = True
        yield connection
    finally:
        connection.close()


def copy_rate(connection: Connection, bodies: Bodies, event_count: int, max_bytes: int) -> float:
    """Returns the events/s at which COPY and COMMIT take so many rows, on one connection, into an empty table.

    Args:
        connection: To `bare_tables`.
        bodies: What the rows are of.
        event_count: How many.
        max_bytes: Of one transaction.
    """
    transactions = list(bodies.transactions(event_count, max_bytes))
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE log_events")
        spent_s = copy_s(cursor, transactions, schema.COPY)
        cursor.execute("TRUNCATE log_events")
    return event_count / spent_s


def copy_s(cursor: Cursor, transactions: Sequence[bytes], statement: str) -> float:
    """Returns the seconds that COPY and COMMIT of each of the transactions take, one after another."""
    started_at = time.monotonic()
    for rows in transactions:
        cursor.copy_expert(statement, io.BytesIO(rows), _COPY_BUFFER_BYTES)
    return time.monotonic() - started_at


@contextmanager
def empty_server() -> Iterator[str]:
    """Runs one worker of stock gunicorn gevent that does nothing but answer; yields its URL."""
    port, = scratch.free_ports(1)
    command = [sys.executable, "-m", "gunicorn", f"--bind=127.0.0.1:{port}", "--workers=1",
               "--worker-class=gevent", "--keep-alive=60", "--log-level=error", "--no-control-socket",
               "ops.empty:app"]
    # Imports this checkout also where it is not installed, and nothing from where we stand.
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(command, cwd="/", env={**os.environ, "PYTHONPATH": root})
    try:
        url = f"http://127.0.0.1:{port}/"
        _await_answer(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def _await_answer(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            listener.ask(url, "/", _START_S)
            return
        except OSError:
            time.sleep(0.05)
    raise BenchFailed("stock gunicorn did not start, which our rate of requests is held against")


class Sync(NamedTuple):
    """How fast a disk confirms: calls a second, and quantiles of one."""

    rate: float
    p50_s: float
    p99_s: float


def sync(directory: Path) -> Sync:
    """Measures writing a block to an allocated file and `fdatasync`, again and again, by one thread."""
    path = directory / "sync"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    taken_s: list[float] = []
    try:
        os.posix_fallocate(fd, 0, _FILE_BYTES)
        os.fsync(fd)
        block, started_at = os.urandom(_BLOCK_BYTES), time.perf_counter()
        while time.perf_counter() - started_at < _SYNC_S:
            before = time.perf_counter()
            os.pwrite(fd, block, len(taken_s) * _BLOCK_BYTES % _FILE_BYTES)
            os.fdatasync(fd)
            taken_s.append(time.perf_counter() - before)
        rate = len(taken_s) / (time.perf_counter() - started_at)
    finally:
        os.close(fd)
        path.unlink()
    taken_s.sort()
    return Sync(rate, quantile(taken_s, 0.5), quantile(taken_s, 0.99))


def memory_rate(batches: Sequence[Batch]) -> float:
    """Returns the events/s at which their payloads are copied in memory, by one thread."""
    target = bytearray(max(len(batch.payload) for batch in batches))
    event_count, started_at = 0, time.perf_counter()
    while time.perf_counter() - started_at < _COPY_S:
        for batch in batches:
            target[:len(batch.payload)] = batch.payload
            event_count += batch.count
    return event_count / (time.perf_counter() - started_at)
