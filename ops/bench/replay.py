"""How fast the replayer ships a WAL to Redis, alone: a Redis and a log of its own in a scratch directory.

Beside it, how fast the same bytes are copied in memory.
"""

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import redis

from app.appender import Appender
from app.batch import Batch, to_record
from ops.bench import limit
from ops.bench.figure import Figure
from ops.errors import BenchFailed
from ops.redis_server import RedisServer
from wal.writer import Writer
from workers.replayer import Replayer
from workers.witness import Witness

PART = "replay"
_REDIS_BYTES = 2 << 30
_START_S = 30
_TIMEOUT_S = 5.0
_GROUP = 8
_SEGMENT_BYTES = 16 << 20


class ReplayBench:
    """Ships the same batches again and again.

    Args:
        batches: What is in the log.
        port: A free one, for Redis.
    """

    def __init__(self, batches: Sequence[Batch], port: int) -> None:
        self._batches = batches
        self._records = [to_record(batch) for batch in batches]
        self._event_count = sum(batch.count for batch in batches)
        self._port = port
        self._root = Path()
        self._url = ""

    @contextmanager
    def started(self) -> Iterator["ReplayBench"]:
        """Runs Redis as a stack does, its AOF synced before each reply."""
        with tempfile.TemporaryDirectory(prefix="spillway-bench-") as place:
            self._root = Path(place)
            server = RedisServer(self._root, self._port, _REDIS_BYTES)
            with (self._root / "log").open("wb") as log:
                process = subprocess.Popen(server.prepare(), stdout=log, stderr=log, cwd="/")
            self._url = server.url
            try:
                self._await_answer()
                yield self
            finally:
                process.terminate()
                process.wait()

    def measure(self) -> Iterator[Figure]:
        """Measures one round."""
        yield Figure(PART, "WAL to stream", "replayed", "events/s", self._rate(), "memory copy of the same batches",
                     limit.memory_rate(self._batches))

    def _rate(self) -> float:
        directory, spares = self._root / "wal", self._root / "spare"
        writer = Writer(directory, spares, segment_bytes=_SEGMENT_BYTES, max_bytes=1 << 40, min_free_bytes=0)
        for start in range(0, len(self._records), _GROUP):
            writer.write(self._records[start:start + _GROUP])
        writer.close()
        appender, witness = Appender(self._url, _TIMEOUT_S), Witness(self._url, _TIMEOUT_S)
        replayer = Replayer(directory, self._root / "quarantine", appender, witness, 1 << 40)
        started_at = time.monotonic()
        while replayer.step():
            pass
        spent_s = time.monotonic() - started_at
        if list(directory.iterdir()):
            raise BenchFailed("the replayer left a part of the log")
        with redis.Redis.from_url(self._url) as client:
            client.flushall()
        return self._event_count / spent_s

    def _await_answer(self) -> None:
        deadline = time.monotonic() + _START_S
        with redis.Redis.from_url(self._url, socket_timeout=1) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
