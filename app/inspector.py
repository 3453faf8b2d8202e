"""What lies in Redis and in the WAL now, as JSON: `GET /pending`, `/stream` and `/wal` of the admin listener."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import falcon
import msgspec
import redis
from falcon import Request, Response

from app import dead_letter, size, stream
from app.errors import Rejected, StreamUnavailable
from wal.errors import WalError
from wal.file import FILES
from wal.reader import oldest_at_ns, segments
from wal.segment import DRAFT_SUFFIX

_MAX_ENTRIES = 1000

# Each in one script, so that its numbers are of one moment.
# Keys: the stream. Arguments: the group, the most entries.
_PENDING = """
local groups = redis.call('EXISTS', KEYS[1]) == 1 and redis.call('XINFO', 'GROUPS', KEYS[1]) or {}
for _, group in ipairs(groups) do
  if group[2] == ARGV[1] then
    local entries = ARGV[2] ~= '0' and redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[2]) or {}
    return {redis.call('XPENDING', KEYS[1], ARGV[1]), redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1]), entries}
  end
end
return false
"""
# XINFO STREAM brings two whole entries along, which may have MBs each: what leaves the script is the first one's id.
# Keys: the stream, the dead letters, the hash of their sizes. Arguments: the group.
_STATE = size.LUA + """
local entries, last, first, pending = redis.call('XLEN', KEYS[1]), '', '', 0
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
    if info[i] == 'first-entry' and info[i + 1] then first = info[i + 1][1] end
  end
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    if group[2] == ARGV[1] then pending = redis.call('XPENDING', KEYS[1], ARGV[1])[1] end
  end
end
local stream_bytes, letters_bytes = sizes(KEYS[1], KEYS[2], KEYS[3], ARGV[1])
local now, letter = redis.call('TIME'), redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
return {
  entries, stream_bytes, pending, last, first, now[1] * 1000 + math.floor(now[2] / 1000), redis.call('XLEN', KEYS[2]),
  letters_bytes, letter and letter[1] or '',
}
"""


class State(NamedTuple):
    """The stream and the dead letters at one moment; ages by Redis's clock, None where there is nothing."""

    entries: int
    size_bytes: int | None
    pending: int
    last_id: str | None
    oldest_age_s: float | None
    letters: int
    letters_bytes: int | None
    oldest_letter_age_s: float | None


def read_state(client: redis.Redis) -> State:
    """Asks Redis.

    Raises:
        StreamUnavailable: It is away.
    """
    with stream.translated():
        found: Any = client.eval(_STATE, len(size.KEYS), *size.KEYS, stream.GROUP)
    entries, size_bytes, pending, last, first, now_ms, letters, letters_bytes, letter = found
    return State(
        entries, size_bytes, pending, _text(last), _age_s(first, now_ms), letters, letters_bytes,
        _age_s(letter, now_ms),
    )


def _age_s(entry_id: bytes, now_ms: int) -> float | None:
    return max(0.0, (now_ms - dead_letter.place_of(entry_id.decode())[0]) / 1000) if entry_id else None


@contextmanager
def answering() -> Iterator[None]:
    """Makes a Redis that is away a 503 that asks to try again."""
    try:
        with stream.translated():
            yield
    except StreamUnavailable as error:
        raise falcon.HTTPServiceUnavailable(description=str(error), retry_after=1) from error


def read_query(req: Request, *allowed: str) -> Mapping[str, str]:
    """Returns the query's parameters.

    Raises:
        Rejected: 400 for one that is not allowed, or stands twice.
    """
    query: dict[str, str] = {}
    for name, value in req.params.items():
        if name not in allowed:
            known = f"not one of {', '.join(allowed)}" if allowed else "not known here"
            raise Rejected(400, "query", f"query parameter {name[:40]!r} is {known}")
        if not isinstance(value, str):
            raise Rejected(400, "query", f"query parameter {name!r} is given {len(value)} times; once is allowed")
        query[name] = value
    return query


def read_limit(query: Mapping[str, str], least: int, default: int) -> int:
    """Returns the parameter `limit`.

    Raises:
        Rejected: 400 where it is no such number.
    """
    text = query.get("limit", str(default))
    if text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) <= _MAX_ENTRIES:
        return int(text)
    raise Rejected(400, "query", f"limit {text[:40]!r} is not a whole number from {least} to {_MAX_ENTRIES}")


class Pending:
    """`GET /pending`: what consumers have been given and have not released, as XPENDING and XINFO CONSUMERS say."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def on_get(self, req: Request, resp: Response) -> None:
        """Answers 200; with `limit` there are entries too, the oldest first."""
        limit = read_limit(read_query(req, "limit"), 0, 0)
        with answering():
            found: Any = self._client.eval(_PENDING, 1, stream.STREAM, stream.GROUP, limit)
        # Before the first batch there is no group, and nothing is pending.
        (count, first, last, _), consumers, entries = found or ((0, None, None, None), (), ())
        resp.data = msgspec.json.encode({
            "count": count, "first_id": _text(first), "last_id": _text(last),
            "consumers": [_consumer(dict(zip(info[::2], info[1::2]))) for info in consumers],
            "entries": [
                {"id": _text(entry_id), "consumer": _text(name), "idle_ms": idle_ms, "deliveries": deliveries}
                for entry_id, name, idle_ms, deliveries in entries
            ],
        })


class Stream:
    """`GET /stream`: how much is in the stream and in the dead letters, and how old it is."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def on_get(self, req: Request, resp: Response) -> None:
        """Answers 200."""
        read_query(req)
        with answering():
            state = read_state(self._client)
        resp.data = msgspec.json.encode({
            "entries": state.entries, "bytes": state.size_bytes, "pending": state.pending,
            "lag": state.entries - state.pending, "last_generated_id": state.last_id,
            "oldest_age_s": state.oldest_age_s,
            "dead_letters": {"entries": state.letters, "bytes": state.letters_bytes},
        })


class Wal:
    """`GET /wal`: the segments of this host's write-ahead log that are not released, and the drafts kept ready.

    Args:
        directory: Of the segments.
        spares: Of the drafts.
    """

    def __init__(self, directory: Path, spares: Path) -> None:
        self._directory = directory
        self._spares = spares

    def on_get(self, req: Request, resp: Response) -> None:
        """Answers 200, or 503 where the disk fails."""
        read_query(req)
        try:
            found = [self._segment(path) for path in segments(self._directory)]
            spares = [name for name in FILES.names(self._spares) if name.endswith(DRAFT_SUFFIX)]
        except (WalError, OSError) as error:
            raise falcon.HTTPServiceUnavailable(description=f"no look at the WAL: {error}", retry_after=1) from error
        resp.data = msgspec.json.encode({
            "active": bool(found), "bytes": sum(one["bytes"] for one in found),
            "oldest_age_s": found[0]["age_s"] if found else None, "segments": found, "spare_segments": len(spares),
        })

    def _segment(self, path: Path) -> dict[str, Any]:
        age_s = max(0.0, time.time() - oldest_at_ns(path) / 1e9)
        return {"name": path.name, "bytes": FILES.allocated_bytes(path), "age_s": round(age_s, 3)}


def _consumer(info: Mapping[bytes, Any]) -> dict[str, Any]:
    return {"name": _text(info[b"name"]), "pending": info[b"pending"], "idle_ms": info[b"idle"]}


def _text(value: bytes | None) -> str | None:
    return value.decode(errors="replace") if value else None
