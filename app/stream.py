"""The stream: its keys, the fields of an entry, and how Redis's errors are read. Both sides of it agree on this module.

An entry is a Batch, field by field; values but the payload are text, to be legible in `redis-cli`.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app import moment
from app.batch import Batch, LoneEvent
from app.errors import StreamLost, StreamUnavailable

STREAM = "log_events"
GROUP = "log-processors"
DEAD_LETTERS = "log_events_dlq"
DEAD_EVENTS = "log_events_dlq:events"  # hash: `<batch>/<index>` of each letter of one event -> its id
PROBE = "log_events:probe"  # written to see whether Redis takes writes

# At 0: what was added before the group existed is delivered too. A full Redis refuses to make one, with which it would
# be drained, unless a script has written already: so it begins with an XACK of an id that no entry has. Answers whether
# there was none.
_CREATE_GROUP = """
redis.pcall('XACK', KEYS[1], ARGV[1], '0-1')
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if not made.err then return 1 end
return string.find(made.err, 'BUSYGROUP', 1, true) and 0 or made
"""
CREATE_GROUP = ("EVAL", _CREATE_GROUP, "1", STREAM, GROUP)

_HEAD = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12} [1-9]\d{0,8} [0-9a-f]{64} \d{1,3}", re.ASCII)
_PARTS = re.compile(rb"\d{1,4}(,\d{1,4})*", re.ASCII)
_INDEX = re.compile(rb"\d{1,9}", re.ASCII)

_CODES: dict[type[Exception], str] = {
    redis.exceptions.BusyLoadingError: "LOADING",
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.AuthenticationError: "NOAUTH",
    redis.exceptions.NoPermissionError: "NOPERM",
    redis.exceptions.TimeoutError: "deadline",
}


def pool(url: str, timeout_s: float) -> redis.ConnectionPool:
    """Returns a pool whose connections give up after `timeout_s` of silence and never retry: a second XADD is ours to
    decide, and one that timed out may have been applied.
    """
    return redis.ConnectionPool.from_url(
        url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, socket_keepalive=True, protocol=2,
        retry=Retry(NoBackoff(), 0), health_check_interval=0,
    )


def fields_of(batch: Batch) -> tuple[str | bytes | int, ...]:
    """Returns the entry of a batch: names and values in turn, as XADD takes them, the payload last."""
    fields: tuple[str | bytes | int, ...] = (
        "batch_id", batch.batch_id, "version", batch.version, "count", batch.count, "sha256", batch.sha256,
        "received_at", batch.received_at,
    )
    if isinstance(batch, LoneEvent):
        fields += ("event_index", batch.index)
    elif batch.parts:
        fields += ("parts", ",".join(map(str, batch.parts)))
    return *fields, "payload", batch.payload


def batch_of(fields: Mapping[bytes, bytes]) -> Batch:
    """Returns the batch of an entry.

    Raises:
        KeyError, ValueError: It is not an entry of this service.
    """
    head = b" ".join([fields[b"batch_id"], fields[b"count"], fields[b"sha256"], fields[b"version"]]).decode()
    if not _HEAD.fullmatch(head):
        raise ValueError(f"not the id, count, sha256 and version of a batch: {head[:200]!r}")
    batch_id, count, sha256, version = head.split(" ")
    received_at = moment.parse(fields[b"received_at"].decode())
    index = fields.get(b"event_index")
    if index is None:
        parts = _parts(fields.get(b"parts"), int(count))
        return Batch(batch_id, int(count), sha256, received_at, fields[b"payload"], int(version), parts)
    if count != "1" or not _INDEX.fullmatch(index):
        raise ValueError(f"not the index of one event: {index[:200]!r}")
    return LoneEvent(batch_id, 1, sha256, received_at, fields[b"payload"], int(version), index=int(index))


def _parts(text: bytes | None, count: int) -> tuple[int, ...]:
    if text is None:
        return ()
    parts = tuple(map(int, text.split(b","))) if _PARTS.fullmatch(text) else ()
    if sum(parts) != count:
        raise ValueError(f"not the parts of a batch of {count} events: {text[:200]!r}")
    return parts


FAILURES = (redis.RedisError, OSError)  # what redis-py raises


@contextmanager
def translated() -> Iterator[None]:
    """Turns what redis-py raises into `StreamUnavailable` or `StreamLost`."""
    try:
        yield
    except FAILURES as error:
        raise unavailable(error) from error


def unavailable(error: Exception) -> StreamUnavailable:
    """Returns the error of ours for one of redis-py's."""
    text = str(error)
    if "NOGROUP" in text or text.startswith("UNBLOCKED"):
        return StreamLost("NOGROUP", text)
    code = _CODES.get(type(error)) or text.partition(" ")[0]
    return StreamUnavailable(code if code.isupper() or code == "deadline" else "connect", text)


def ensure_group(client: redis.Redis) -> bool:
    """Creates the consumer group, and the stream with it; returns whether it was not there.

    Raises:
        StreamUnavailable: Redis is away or refuses.
    """
    with translated():
        return bool(client.execute_command(*CREATE_GROUP))
