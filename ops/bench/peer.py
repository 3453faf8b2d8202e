"""A peer on the same machine: Fluent Bit, HTTP in and PostgreSQL out, posted the same events, its rows counted.

It acknowledges what is in its memory, and writes each event as one `jsonb`; we acknowledge what is on disk, and write
columns. Source: https://docs.fluentbit.io/manual/pipeline/outputs/postgresql
"""

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
from psycopg2.extensions import connection as Connection

from ops import scratch, secret
from ops.bench import cpu, passage
from ops.bench.end_to_end import case
from ops.bench.figure import Figure
from ops.bench.plan import CONNECTIONS, Plan
from ops.bench.rig import Rig
from ops.errors import BenchFailed

PART = "peer"
SIZES = (1, 1000)
_TABLE = "fluent_bit"
_START_S = 30.0
_LOAD_S = 120.0
_POLL_S = 0.1

# Flushed more often than its default of a second, so that the last rows need not wait for that.
_CONFIG = """\
[SERVICE]
    flush        0.1
    log_level    error

[INPUT]
    name         http
    listen       127.0.0.1
    port         {port}
    buffer_max_size 16M

[OUTPUT]
    name         pgsql
    match        *
    host         {host}
    port         {database_port}
    user         {user}
    password     {password}
    database     {database}
    table        {table}
    timestamp_key ts
"""


class FluentBit:
    """One running Fluent Bit, which writes to a table of its own in our PostgreSQL.

    Args:
        url: Where it takes events.
        pid: Of its process.
        connection: To the database, committing each statement.
    """

    def __init__(self, url: str, pid: int, connection: Connection) -> None:
        self.url = url
        self.pid = pid
        self._connection = connection

    def clear(self) -> None:
        """Empties its table."""
        with self._connection.cursor() as cursor:
            cursor.execute(f"TRUNCATE {_TABLE}")

    def rows(self) -> int:
        """Returns the rows of its table."""
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM {_TABLE}")
            return int(cursor.fetchone()[0])  # type: ignore[index]


def config(port: int, database_url: str) -> str:
    """Returns what it is told, in its classic format."""
    parts = urlsplit(database_url)
    return _CONFIG.format(port=port, host=parts.hostname, database_port=parts.port or 5432, user=parts.username,
                          password=parts.password, database=parts.path.lstrip("/"), table=_TABLE)


def found(name: Path) -> Path:
    """Returns the program of that path, or of that name on PATH.

    Raises:
        BenchFailed: There is none.
    """
    program = shutil.which(name)
    if not program:
        raise BenchFailed(f"{name} is not a program")
    return Path(program).absolute()


def version(program: Path) -> str:
    """Returns its name and version.

    Raises:
        BenchFailed: It cannot be run, or is something else.
    """
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_START_S).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchFailed(f"{program} cannot be run: {error}") from error
    found = re.search(r"Fluent Bit v(\d[\w.]*)", said)
    if not found:
        raise BenchFailed(f"{program} does not say that it is Fluent Bit: {said.strip()[:200]!r}")
    return f"Fluent Bit {found[1]}"


@contextmanager
def running(program: Path, rig: Rig, place: Path) -> Iterator[FluentBit]:
    """Runs one; its configuration and its log lie in `place`."""
    port, = scratch.free_ports(1)
    path, log = place / "fluent-bit.conf", place / "fluent-bit.log"
    secret.write(path, config(port, rig.facts.database_url))
    connection = psycopg2.connect(rig.facts.database_url)
    connection.autocommit = True
    with log.open("wb") as file:
        process = subprocess.Popen([program, "-c", path], stdout=file, stderr=file, cwd="/")
    try:
        _await_listener(port, process, log)
        yield FluentBit(f"http://127.0.0.1:{port}/", process.pid, connection)
    finally:
        process.terminate()
        try:
            process.wait(_START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with connection.cursor() as cursor:
            cursor.execute(f"DROP TABLE IF EXISTS {_TABLE}")
        connection.close()


def _await_listener(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as one:
            if not one.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(_POLL_S)
    raise BenchFailed(f"the peer did not start: {log.read_text(errors='replace').strip()[-500:]}")


def measure(rig: Rig, peer: FluentBit, name: str, plan: Plan) -> Iterator[Figure]:
    """Measures one round: ours, then the peer's."""
    for size in SIZES:
        ours = passage.run(rig, plan, size)
        accepted, loaded, facts = _passed(peer, plan, size)
        yield Figure(PART, case(size), "HTTP to rows", "events/s", ours.stored, name, loaded, facts)
        yield Figure(PART, case(size), "acknowledged", "events/s", ours.acknowledged, f"{name}, in memory", accepted)


def _passed(peer: FluentBit, plan: Plan, size: int) -> tuple[float, float, dict[str, float]]:
    """Returns events/s accepted, and until the last was a row, and CPU an event."""
    peer.clear()
    before_s = cpu.seconds(peer.pid)
    tally = plan.generator.run(peer.url, plan.bodies[size].bodies, CONNECTIONS[size], plan.load_s)
    ended_at = time.monotonic()
    accepted = tally.answers * size
    while (rows := peer.rows()) < accepted:
        if time.monotonic() - ended_at > _LOAD_S:
            raise BenchFailed(f"the peer accepted {accepted} events and has written {rows} after {_LOAD_S:.0f} s")
        time.sleep(_POLL_S)
    seconds = tally.seconds + time.monotonic() - ended_at
    return accepted / tally.seconds, rows / seconds, {"cpu_us peer": (cpu.seconds(peer.pid) - before_s) / rows * 1e6}
