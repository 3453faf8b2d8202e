"""The size of the stream and of the dead letters in Redis's memory, at a cost that does not grow with them.

`MEMORY USAGE` is right where it looks at every node (`SAMPLES 0`), at 0.1 to 0.3 us each; else it takes the oldest ones
for the rest, and has said 0.15 to 40 times the truth where entries differ in size. So who adds, releases or moves
entries counts their bytes in a hash, and who reads them there replaces what is counted by what is measured, as often as
may be at a thousandth of Redis's time. What is counted is an estimate: an entry that goes keeps its memory while one
beside it in its node lives, and not all that goes is counted: an operator may trim the stream, or delete it. What was
never counted, as before the first reader of this version, is measured at once.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import redis

from app import stream
from app.batch import Batch

KEY = "log_events:size"  # hash: `<field>`, the bytes, and `<field>_at`, when they were measured, ms of Redis's clock
STREAM, LETTERS = "stream", "letters"  # fields
KEYS = (stream.STREAM, stream.DEAD_LETTERS, KEY)

_ENTRY_BYTES = 60  # of an entry beside its values: lengths, its share of a node
_HEAD_BYTES = 190  # the same, and the values beside the payload
_ROUNDING = 20  # one byte in so many is what the allocator gives more than was asked for

# A script's: `KEYS` of the stream, the dead letters and the hash, and the group.
# A node has an entry or more, and 2 KiB or more: it is as much as that or the next entry that ends it.
# What is stored comes after an XACK of an id that no entry has, as a full Redis refuses it else. A replica refuses it
# always, and what somebody has made something else of is not read: then each reader measures.
LUA = """
local function sizes(stream, letters, hash, group)
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  local function size(key, field)
    local length, known = redis.call('XLEN', key), redis.pcall('HMGET', hash, field, field .. '_at')
    local bytes, at = tonumber(known[1] or nil), tonumber(known[2] or nil)
    if length > 0 and bytes and at and at <= now_ms then
      bytes = math.max(bytes, 0)
      if now_ms - at < math.max(100, math.min(length, bytes / 2048) / 5) then return bytes end
    end
    bytes = redis.call('MEMORY', 'USAGE', key, 'SAMPLES', 0)
    if length > 0 then
      redis.pcall('XACK', stream, group, '0-1')
      redis.pcall('HSET', hash, field, bytes, field .. '_at', now_ms)
    end
    return bytes
  end
  return size(stream, 'stream'), size(letters, 'letters')
end
"""
_READ = LUA + "return {sizes(KEYS[1], KEYS[2], KEYS[3], ARGV[1])}"
CALL = ("EVAL", _READ, str(len(KEYS)), *KEYS, stream.GROUP)  # answers the fields of `Sizes`

# Counts in what is a script's to add, and, below nothing, to take away. Comes after it, and never stops it.
COUNT = f"""
local function bytes_of(fields)
  local bytes = {_ENTRY_BYTES}
  for i = 2, #fields, 2 do bytes = bytes + #fields[i] end
  return math.floor(bytes + bytes / {_ROUNDING})
end
local function grow(hash, field, bytes)
  redis.pcall('HINCRBY', hash, field, bytes)
end
"""


class Sizes(NamedTuple):
    """Bytes of Redis's memory; None of what is not there."""

    stream: int | None
    letters: int | None

    @property
    def total(self) -> int:
        """Both, as they share what there is."""
        return (self.stream or 0) + (self.letters or 0)


def read(client: redis.Redis) -> Sizes:
    """Asks Redis.

    Raises:
        StreamUnavailable: It is away or refuses.
    """
    with stream.translated():
        found: Any = client.execute_command(*CALL)
    return Sizes(*found)


def of(batches: Sequence[Batch]) -> int:
    """Returns about what the batches take as entries."""
    return _rounded(_HEAD_BYTES * len(batches) + sum([len(one.payload) for one in batches]))


def of_fields(values: Iterable[bytes]) -> int:
    """Returns about what an entry of these values takes."""
    return _rounded(_ENTRY_BYTES + sum(map(len, values)))


def _rounded(size_bytes: int) -> int:
    return size_bytes + size_bytes // _ROUNDING
