"""Appends batches to the stream: one connection, one pipeline a group, no retries.

A group and its counts are one transaction: Redis has taken all of it, or nothing, where it does not refuse MULTI.

HANDOVER 1: client → stream (tests/crash/test_ingest.py). Copied by XADD, confirmed by Redis's reply.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import redis
from hiredis import pack_command

from app import count, log, size, stream
from app.batch import Batch
from app.errors import StreamUnavailable

logger = logging.getLogger(__name__)

_RUN_ID = re.compile(rb"^run_id:(\w+)", re.MULTILINE)
_MULTI, _EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"
_QUEUED = b"QUEUED"
_COUNT_FROM_BYTES = 256 << 10  # told to Redis with each small group, the size would cost 2 % of it


class Appender:
    """Owns the connection; used by one greenlet or thread at a time.

    Attributes:
        fsync: How durable Redis's reply is: `"always"` (its AOF is synced first), `"everysec"`, `"no"`, `"off"`
            (no AOF), or `"unknown"`.
        server: The run id of the Redis that it is connected to, or was; empty where that is hidden.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        # `make_connection` takes no room in the pool: it is used for reading the URL alone.
        self._connection = stream.pool(url, timeout_s).make_connection()
        self._guard = _Guard(self.close)
        self._is_open = False
        self._uncounted_bytes = 0  # appended, and not in `size.KEY` yet
        self.fsync = "unknown"
        self.server = ""

    def append(self, batches: Sequence[Batch]) -> list[StreamUnavailable | None]:
        """Adds the batches in one round trip, or asks for a sign of life where there are none.

        Returns:
            For each batch None, or why Redis refused it.

        Raises:
            StreamUnavailable: The connection failed, for all of them.

        Durability:
            As `fsync` says on return of None; unknown if it raises, also by an exception from outside, such as a
            deadline's: the connection is closed then, so that no later call reads this one's replies.
        """
        with self._guard:
            self._open()
            return self._sent(batches)

    def open(self) -> None:
        """Connects, unless it is connected: several round trips, each within the timeout.

        Raises:
            StreamUnavailable: It cannot.
        """
        with self._guard:
            self._open()

    def probe(self, max_bytes: int) -> None:
        """Returns if Redis takes writes, and stream and dead letters have at most `max_bytes` there together.

        Takes one round trip where the connection is open.

        Raises:
            StreamUnavailable: It does not, or they have more (`FULL`).
        """
        with self._guard:
            self._open()
            _, found = self._called(("SET", stream.PROBE, "1", "PX", "10000"), size.CALL)
        sizes = size.Sizes(*found)
        if sizes.total > max_bytes:
            raise StreamUnavailable("FULL", f"stream and dead letters have {sizes.total} bytes, over {max_bytes}")

    def close(self) -> None:
        """Closes the connection; the next call opens another."""
        self._is_open = False
        self._connection.disconnect()

    def _open(self) -> None:
        if self._is_open:
            return
        self._connection.connect()
        is_new, = self._called(stream.CREATE_GROUP)
        if is_new:
            logger.warning(log.line("group_created", stream=stream.STREAM, group=stream.GROUP))
        self.fsync = self._read_fsync()
        self.server = self._read_server()
        if self.fsync != "always":
            logger.warning(log.line("redis_durability_weak", appendfsync=self.fsync, wanted="always"))
        self._is_open = True

    def _read_fsync(self) -> str:
        try:
            found, = self._called(("CONFIG", "GET", "append*"))
        except redis.ResponseError:
            return "unknown"  # Managed servers hide CONFIG.
        settings = {name.decode(): value.decode() for name, value in zip(found[::2], found[1::2])}
        return settings.get("appendfsync", "unknown") if settings.get("appendonly") == "yes" else "off"

    def _read_server(self) -> str:
        try:
            info, = self._called(("INFO", "server"))
        except redis.ResponseError:
            return ""
        found = _RUN_ID.search(info)
        return found[1].decode() if found else ""

    def _called(self, *commands: Sequence[str]) -> list[Any]:
        self._connection.send_packed_command(self._connection.pack_commands(commands))
        return [self._connection.read_response() for _ in commands]

    def _sent(self, batches: Sequence[Batch]) -> list[StreamUnavailable | None]:
        if not batches:
            self._called(("PING",))
            return []
        counts = count.totals(batches, count.ADDED)
        parts = [_MULTI, *(_packed("XADD", stream.STREAM, "*", *stream.fields_of(one)) for one in batches)]
        parts += [_packed("HINCRBY", count.KEY, name, events) for name, events in counts.items()]
        if grown := self._uncounted_bytes if self._uncounted_bytes >= _COUNT_FROM_BYTES else 0:
            parts.append(_packed("HINCRBY", size.KEY, size.STREAM, grown))
        # In one piece: of several, redis-py makes a system call each, and Redis a sync for each that it finds alone.
        # HANDOVER 1, copy; killed from here on, the client has no reply and tries again.
        self._connection.send_packed_command([b"".join([*parts, _EXEC])])
        queued = [self._reply() for _ in parts]
        executed = self._reply()  # HANDOVER 1, confirm
        if isinstance(queued[0], StreamUnavailable):
            if _QUEUED in queued:
                raise queued[0]  # Within a transaction that was not ended: what else that one holds, nobody knows.
            executed = queued[1:]
        elif isinstance(executed, StreamUnavailable):
            # Redis refuses the whole, and says only of the command at fault why.
            return [next((one for one in queued if isinstance(one, StreamUnavailable)), executed)] * len(batches)
        self._uncounted_bytes -= grown
        if [one for one in executed if isinstance(one, Exception)]:
            return self._sorted_out(batches, counts, executed)
        self._uncounted_bytes += size.of(batches)
        return [None] * len(batches)

    def _sorted_out(
        self, batches: Sequence[Batch], counts: Mapping[str, int], replies: Sequence[Any]
    ) -> list[StreamUnavailable | None]:
        """Returns what became of each batch; what of them was added is counted, and nothing else, when it returns.

        Args:
            counts: What should have been counted.
            replies: Redis's, or its errors, to each batch and each count. Of a transaction some may have failed; where
                MULTI is refused, by the rights of the user or by a proxy, each was run alone.
        """
        replies = [stream.unavailable(one) if isinstance(one, redis.RedisError) else one for one in replies]
        outcomes = [one if isinstance(one, StreamUnavailable) else None for one in replies[:len(batches)]]
        added = [one for one, outcome in zip(batches, outcomes) if not outcome]
        self._uncounted_bytes += size.of(added)
        missing = count.totals(added, count.ADDED)
        for (name, events), reply in zip(counts.items(), replies[len(batches):]):
            if not isinstance(reply, StreamUnavailable):
                missing[name] = missing.get(name, 0) - events
        self._called(count.correction(missing))
        return outcomes

    def _reply(self) -> Any:
        try:
            return self._connection.read_response()
        except redis.ConnectionError:
            raise  # LOADING is one of these: the whole connection is of no use.
        except redis.ResponseError as error:
            return stream.unavailable(error)


class _Guard:
    """Closes the connection on every failure, and turns what redis-py raises into `StreamUnavailable`. Made once: two
    generators for each group cost a fiftieth of what a worker does under a middling load.
    """

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            return
        self._close()
        if isinstance(error, stream.FAILURES):
            raise stream.unavailable(error) from error


def _packed(*words: str | bytes | int) -> bytes:
    # By hiredis itself, in under half the time that redis-py's way to it takes.
    packed: bytes = pack_command(words)  # type: ignore[arg-type]  # its stub knows one word
    return packed
