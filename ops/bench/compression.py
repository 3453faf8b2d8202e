"""Compression: what zstd would take of an entry's bytes and of Redis's CPU, and what it costs the others.

Entries are as COPY reads them, uncompressed. The payloads of the very batches are compressed one by one.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import cycle, islice
from typing import Any, NamedTuple

import msgspec
import redis

from app import stream
from app.batch import Batch
from ops.bench import passage
from ops.bench.end_to_end import case
from ops.bench.figure import Figure
from ops.bench.plan import CONNECTIONS, Plan
from ops.bench.rig import Rig

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PART = "compression"
LEVEL = 1
# Size of the batches → how many go through Redis: some tenths of a second of its CPU.
ENTRIES = {1: 10_000, 100: 2_000, 1000: 500}
_KEY = "bench:compression"
_SPEND_S = 0.3
_TIMEOUT_S = 10.0


class Cost(NamedTuple):
    """Of an event: bytes of the payload, and µs of CPU."""

    plain_bytes: float
    packed_bytes: float
    pack_us: float
    unpack_us: float


def measure(rig: Rig, plan: Plan) -> Iterator[Figure]:
    """Measures one round."""
    for size, count in ENTRIES.items():
        facts = passage.run(rig, plan, size).facts
        batches = plan.bodies[size].encoded
        one = cost(batches)
        yield from _of_cpu(size, one, facts)
        plain_us = redis_us(rig.facts.redis_url, batches, count)
        packed_us = redis_us(rig.facts.redis_url, packed(batches), count)
        yield Figure(PART, case(size), "Redis", "us", packed_us, "uncompressed", plain_us)
        yield Figure(PART, case(size), "compress, Redis, decompress", "us", one.pack_us + packed_us + one.unpack_us,
                     "Redis, uncompressed", plain_us)


def _of_cpu(size: int, one: Cost, facts: dict[str, float]) -> Iterator[Figure]:
    """Yields bytes, and CPU beside what was spent on a passage of the same events."""
    own = {"cpu_us compress": one.pack_us, "cpu_us decompress": one.unpack_us}
    yield Figure(PART, case(size), f"zstd level {LEVEL}", "bytes", one.packed_bytes, "uncompressed", one.plain_bytes,
                 facts | own)
    yield Figure(PART, case(size), "compress", "us", one.pack_us, "all that the edge spends", facts["cpu_us ingest"])
    yield Figure(PART, case(size), "decompress", "us", one.unpack_us, "all that the consumers spend",
                 facts["cpu_us consumers"])


def _packer() -> Callable[[bytes], bytes]:
    # One for all, as a program would keep it: to make one takes longer than to compress a single event.
    compressor = zstd.ZstdCompressor(level=LEVEL)
    return lambda payload: compressor.compress(payload, compressor.FLUSH_FRAME)


def packed(batches: Sequence[Batch]) -> list[Batch]:
    """Returns the batches with their payloads compressed, each by itself."""
    pack = _packer()
    return [msgspec.structs.replace(batch, payload=pack(batch.payload)) for batch in batches]


def cost(batches: Sequence[Batch]) -> Cost:
    """Measures the payloads of batches, one by one, on one thread."""
    payloads = [batch.payload for batch in batches]
    small = [batch.payload for batch in packed(batches)]
    event_count = sum(batch.count for batch in batches)
    return Cost(_bytes(payloads) / event_count, _bytes(small) / event_count,
                _spent_us(_packer(), payloads) / event_count, _spent_us(zstd.decompress, small) / event_count)


def _bytes(pieces: Sequence[bytes]) -> int:
    return sum(map(len, pieces))


def _spent_us(work: Callable[[bytes], bytes], pieces: Sequence[bytes]) -> float:
    """Returns the µs of CPU that all of them take once."""
    passes, started_at = 0, time.thread_time()
    while (spent_s := time.thread_time() - started_at) < _SPEND_S:
        for piece in pieces:
            work(piece)
        passes += 1
    return spent_s / passes * 1e6


def redis_us(url: str, batches: Sequence[Batch], count: int) -> float:
    """Returns the µs of Redis's CPU an event to take so many entries, give them to a consumer and release them.

    In a stream of its own, group by group, so that it stays short.

    Args:
        batches: Of one size; taken again where there are not so many.
    """
    group = CONNECTIONS[batches[0].count]
    entries = (stream.fields_of(batch) for batch in islice(cycle(batches), count))
    with closing(redis.Redis(connection_pool=stream.pool(url, _TIMEOUT_S))) as client:
        client.xgroup_create(_KEY, stream.GROUP, "0", mkstream=True)
        try:
            before_s = _redis_cpu_s(client)
            while fields := list(islice(entries, group)):
                _pass(client, fields)
            return (_redis_cpu_s(client) - before_s) / (count * batches[0].count) * 1e6
        finally:
            client.delete(_KEY)


def _pass(client: "redis.Redis", group: Sequence[Sequence[str | bytes | int]]) -> None:
    with client.pipeline() as pipeline:
        for fields in group:
            pipeline.execute_command("XADD", _KEY, "*", *fields)
        pipeline.execute()
    found: Any = client.xreadgroup(stream.GROUP, "bench", {_KEY: ">"}, count=len(group))
    (_, entries), = found
    ids = [entry_id for entry_id, _ in entries]
    with client.pipeline() as pipeline:
        pipeline.xack(_KEY, stream.GROUP, *ids)
        pipeline.xdel(_KEY, *ids)
        pipeline.execute()


def _redis_cpu_s(client: "redis.Redis") -> float:
    found = client.info("cpu")
    return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])
