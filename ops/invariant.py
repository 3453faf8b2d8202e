"""What always holds of the stream: every entry that was delivered is pending until it is gone, and what is pending is
there.

Each thing that is found is found within one script, and so is of one moment. XLEN = pending + lag follows, and is not
asked for: Redis before 7 knows neither the lag of a group nor what was ever added or deleted, 7 forgets the lag after a
deletion in the middle, and has a wrong one for good after a restart, as its AOF does not hold what the group has read.
It is worked out from the entries themselves, by `ops/census.py`.

Source: https://github.com/redis/redis/pull/12898 (the restart).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import redis

from app import stream

# Who has an entry; how far the group was delivered; which of two ids is the later one.
PENDING = """
local function owner(group, id)
  local row = redis.call('XPENDING', KEYS[1], group, id, id, 1)[1]
  return row and row[2]
end
local function last_delivered(group)
  if redis.call('EXISTS', KEYS[1]) == 0 then return false end
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local named = {}
    for i = 1, #info, 2 do named[info[i]] = info[i + 1] end
    if named.name == group then return named['last-delivered-id'], named end
  end
  return false
end
local function is_after(id, other)
  local ms, number = string.match(id, '(%d+)-(%d+)')
  local other_ms, other_number = string.match(other, '(%d+)-(%d+)')
  if #ms ~= #other_ms then return #ms > #other_ms end
  if ms ~= other_ms then return ms > other_ms end
  if #number ~= #other_number then return #number > #other_number end
  return number > other_number
end
"""
# Keys: the stream. Arguments: the group. Returns its length; whether the group is there; how many entries are pending;
# the lag, what was ever added, and the last id that was deleted, each false where Redis does not tell; the last id that
# was delivered.
_STATE = PENDING + """
local length, added, deleted = redis.call('XLEN', KEYS[1]), false, false
if length > 0 or redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'entries-added' then added = info[i + 1] end
    if info[i] == 'max-deleted-entry-id' then deleted = info[i + 1] end
  end
end
local delivered, named = last_delivered(ARGV[1])
if not delivered then return {length, 0, 0, false, added, deleted, false} end
return {length, 1, named.pending, named.lag or false, added, deleted, delivered}
"""
# Keys: the stream. Arguments: the group, the id to begin at. Returns the id to go on after, or false, and those of the
# next that are pending and not there.
_GHOSTS = """
local rows, ghosts = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], '+', 100), {}
for _, row in ipairs(rows) do
  if #redis.call('XRANGE', KEYS[1], row[1], row[1]) == 0 then ghosts[#ghosts + 1] = row[1] end
end
return {#rows == 100 and rows[100][1], ghosts}
"""
_SHOWN = 5


class State(NamedTuple):
    """How the stream is.

    Args:
        entries, pending: XLEN, and how many of them are pending.
        lag: Of the group; None where Redis does not know it, or is wrong.
        entries_added: Ever; None where Redis does not know it. What is not there any more was deleted.
        faults: What does not hold, in words; none is as it should be.
    """

    entries: int
    pending: int
    lag: int | None
    entries_added: int | None
    faults: tuple[str, ...]


def state(client: redis.Redis, orphans: Sequence[str]) -> State:
    """Returns how the stream is.

    Args:
        orphans: Entries that were delivered and are not pending.

    Raises:
        redis.RedisError: Redis is away or refuses.
    """
    found: Any = client.eval(_STATE, 1, stream.STREAM, stream.GROUP)
    length, has_group, pending, lag, added, deleted, delivered = found
    faults = []
    if not has_group and length:
        faults.append(f"the stream has {length} entries and no group {stream.GROUP}: nobody can read it")
    if deleted and delivered and _place(deleted) > _place(delivered):
        faults.append(f"an entry up to {deleted.decode()} was deleted before it was delivered")
    ghosts = _ghosts(client) if has_group else []
    if ghosts:
        faults.append(f"{len(ghosts)} entries were deleted while they were pending: {_some(ghosts)}")
    if orphans:
        faults.append(f"{len(orphans)} entries were delivered, are not pending, and nobody will get them again: "
                      f"{_some(orphans)}")
    return State(length, pending, lag if lag == length - pending else None, added, tuple(faults))


def _ghosts(client: redis.Redis) -> list[str]:
    script, last, ghosts = client.register_script(_GHOSTS), "-", []
    while last:
        following, found = script(keys=(stream.STREAM,), args=(stream.GROUP, last))
        ghosts += [entry_id.decode() for entry_id in found]
        last = f"({following.decode()}" if following else ""
    return ghosts


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_SHOWN]) + (", …" if len(ids) > _SHOWN else "")


def _place(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)
