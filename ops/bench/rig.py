"""The stack that is measured, and what a measurement has to know and do of it."""

import io
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import psycopg2
import redis
from prometheus_client.mmap_dict import MmapedDict

from app import stream
from app.appender import Appender
from app.batch import Batch
from ops import listener, metrics_dir
from ops.bench import cpu
from ops.errors import BenchFailed
from ops.stack import Stack
from ops.supervisor_client import Process
from workers import schema

_WAIT_S = 300.0
_STATE_S = 60.0
_POLL_S = 0.005
_STATE_POLL_S = 0.1
_TIMEOUT_S = 10.0
_FILL_BATCHES, _FILL_BYTES = 2_000, 4 << 20
_SUPERUSER = "postgres"  # `ops.postgres_server` gives it the password of ours
_LOADED = "ingest_loaded_events_total"
_AT_WORK = """
SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
AND state = 'active' AND wait_event IS DISTINCT FROM 'ClientRead' AND wait_event IS DISTINCT FROM 'ClientWrite'
"""


class Rig:
    """One running stack.

    Args:
        stack: It has as many consumers as are ever wanted; how many run, `scale` says.
        servers: Whose Redis and PostgreSQL it uses, where they are not its own. Its code may be another checkout's
            then, which makes its tables itself.
    """

    def __init__(self, stack: Stack, servers: Stack | None = None) -> None:
        self.stack = stack
        self._servers = servers
        self.facts = stack.facts()
        self.ingest = f"{self.facts.ingest_url}/ingest"
        self._redis = redis.Redis(connection_pool=stream.pool(self.facts.redis_url, _TIMEOUT_S))
        self._database = psycopg2.connect(self.facts.database_url)
        if servers is None:
            schema.ensure(self._database)  # the consumers may not have come to it yet
        self._database.autocommit = True
        if servers:
            self._have_tables_made()

    def close(self) -> None:
        """Lets go of the servers."""
        self._redis.close()
        self._database.close()

    def clear(self) -> None:
        """Waits until nothing is on its way, and empties the tables."""
        self._until(lambda: not self.entries() and not self._has_wal(), "the stream and the WAL to be empty")
        self.execute("TRUNCATE log_events, log_batches")

    def execute(self, statement: str) -> None:
        """Runs a statement in the database."""
        with self._database.cursor() as cursor:
            cursor.execute(statement)

    def copy(self, rows: bytes) -> None:
        """Adds rows to the table, without a batch."""
        with self._database.cursor() as cursor:
            cursor.copy_expert(schema.COPY, io.BytesIO(rows), 1 << 18)

    def stored(self) -> int:
        """Returns the events that are committed, by the ledger."""
        return self._number("SELECT coalesce(sum(event_count), 0) FROM log_batches")

    def refused(self) -> int:
        """Returns the events that batches are committed without, by the ledger."""
        return self._number("SELECT coalesce(sum(cardinality(dead_events)), 0) FROM log_batches")

    def loaded(self, pid: int) -> int:
        """Returns the events that a consumer has committed and released since it began, by its own metric."""
        path = metrics_dir.path(self.stack.state) / f"counter_{pid}.db"
        values = MmapedDict.read_all_values_from_file(str(path))
        return int(sum(value for key, value, _, _ in values if f'"{_LOADED}"' in key))

    def entries(self) -> int:
        """Returns the batches in the stream, given to a consumer or not."""
        return int(self._redis.xlen(stream.STREAM))

    def waiting(self) -> int:
        """Returns the batches in the stream that were not given to a consumer yet."""
        with self._redis.pipeline() as both:  # a transaction
            both.xlen(stream.STREAM)
            both.xpending(stream.STREAM, stream.GROUP)
            length, pending = both.execute()
        return int(length) - int(pending["pending"])

    def await_empty(self) -> None:
        """Waits until nothing is left in the stream: all of it is committed, or buried."""
        self._until(lambda: not self.entries(), "the stream to be empty")

    def await_stored(self, event_count: int) -> int:
        """Waits until so many events are committed and nothing is left in the stream; returns how many are.

        More than were acknowledged may be: a generator that ends does not wait for its last answers.
        """
        found = 0

        def is_stored() -> bool:
            nonlocal found
            if self.entries():
                return False
            found = self.stored()
            return found >= event_count

        self._until(is_stored, f"{event_count} events to be committed", _POLL_S)
        return found

    def fill(self, batches: Iterator[Batch]) -> None:
        """Adds batches to the stream, as the edge does."""
        appender = Appender(self.facts.redis_url, _TIMEOUT_S)
        # A sync for every 16 kB that Redis reads would take most of a long fill, which is not what is measured.
        self._redis.config_set("appendfsync", "everysec")
        try:
            for first in batches:
                count = min(_FILL_BATCHES, _FILL_BYTES // len(first.payload))
                group = [first, *islice(batches, count)]
                refusals = [refusal for refusal in appender.append(group) if refusal]
                if refusals:
                    raise BenchFailed(f"the stream does not take the backlog: {refusals[0]}")
        finally:
            appender.close()
            self._redis.config_set("appendfsync", "always")

    def settle(self) -> float:
        """Has Redis rewrite its file and PostgreSQL write down all that is dirty, before a turn and not within it.

        Returns:
            Seconds that the rewriting took. From the first call on Redis does it no more of itself.
        """
        self._redis.config_set("auto-aof-rewrite-percentage", 0)
        self._until(lambda: not self._is_rewriting(), "Redis to have rewritten its file")
        started_at = time.monotonic()
        self._redis.bgrewriteaof()
        self._until(lambda: not self._is_rewriting(), "Redis to have rewritten its file")
        spent_s = time.monotonic() - started_at
        with closing(psycopg2.connect(self.facts.database_url, user=_SUPERUSER)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("CHECKPOINT")
        return spent_s

    def consumers(self) -> list[Process]:
        """Returns the consumers that run."""
        return [one for one in self._pool() if one.state == "RUNNING"]

    def scale(self, count: int) -> None:
        """Lets so many consumers run, and waits until each of them asks for entries."""
        pool = self._pool()
        for process in pool[count:]:
            if process.state != "STOPPED":
                self.stack.supervisor.stop(process.name)
        for process in pool[:count]:
            if process.state == "STOPPED":
                self.stack.supervisor.start(process.name)
        self._until(lambda: len(self.consumers()) == count and not any(one.pid for one in self._pool()[count:])
                    and self._reading() >= count, f"{count} consumers to be ready", _STATE_POLL_S)

    def pause(self, is_paused: bool, program: str = "consumers") -> None:
        """Stops a program's processes where they are, or lets them go on, all at once.

        Returns once PostgreSQL has done what they had asked of it.
        """
        for process in self.stack.processes():
            if process.state == "RUNNING" and process.name.partition(":")[0] == program:
                os.kill(process.pid, signal.SIGSTOP if is_paused else signal.SIGCONT)
        if is_paused:
            self._until(lambda: not self._number(_AT_WORK), "PostgreSQL to be at rest")

    def stop(self, name: str) -> None:
        """Stops a program and waits until it has ended."""
        self.stack.supervisor.stop(name)
        self._until(lambda: self._state(name) == "STOPPED", f"{name} to stop", _STATE_POLL_S)

    def start(self, name: str) -> None:
        """Starts a program and waits until it runs, and Redis also until it has read its data."""
        self.stack.supervisor.start(name)
        self._until(lambda: self._state(name) == "RUNNING", f"{name} to run", _STATE_POLL_S)
        self._until(self._has_redis, "Redis to answer")

    def usage(self) -> dict[str, float]:
        """Returns seconds of CPU so far, by program, servers that are not its own included."""
        return cpu.usage(self.stack) | (cpu.usage(self._servers) if self._servers else {})

    def _have_tables_made(self) -> None:
        answer = listener.ask(self.facts.ingest_url, "/ingest", _TIMEOUT_S, b'{"message": "first"}')
        if answer.status != 202:
            raise BenchFailed(f"the first event was answered with {answer.status}: {answer.text}")
        self._until(lambda: bool(self._number("SELECT count(to_regclass('log_batches'))")), "tables to be made")

    def _number(self, query: str) -> int:
        with self._database.cursor() as cursor:
            cursor.execute(query)
            return int(cursor.fetchone()[0])  # type: ignore[index]

    def _is_rewriting(self) -> bool:
        found: Any = self._redis.info("persistence")
        return bool(found["aof_rewrite_in_progress"] or found["aof_rewrite_scheduled"])

    def _state(self, name: str) -> str:
        return next(one.state for one in self.stack.processes() if one.name == name)

    def _pool(self) -> list[Process]:
        return [one for one in self.stack.processes() if one.name.startswith("consumers:")]

    def _reading(self) -> int:
        # Not by XINFO CONSUMERS: before Redis 7.2 one that has never been given anything is not there.
        own = str(self._redis.connection_pool.connection_kwargs["db"])
        return sum(client["cmd"] == "xreadgroup" and client["db"] == own for client in self._redis.client_list())

    def _has_redis(self) -> bool:
        try:
            return bool(self._redis.ping())
        except redis.ConnectionError:  # LOADING is one of these
            return False

    def _has_wal(self) -> bool:
        return any((self.stack.state / "wal").glob("*.wal"))

    def _until(self, is_so: Callable[[], bool], what: str, poll_s: float = _POLL_S) -> None:
        wait_s = _WAIT_S if poll_s == _POLL_S else _STATE_S
        deadline = time.monotonic() + wait_s
        while not is_so():
            if time.monotonic() > deadline:
                raise BenchFailed(f"waited {wait_s:.0f} s for {what}")
            time.sleep(poll_s)
