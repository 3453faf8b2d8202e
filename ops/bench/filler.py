"""The filler: adds what consumers take again, so that as many batches wait as before, and takes little for it.

The edge's way of adding takes Redis longer, and comes after what consumers have asked meanwhile: at a thousand batches,
which both take at once, every third load found one or none. Here the batches lie ready in Redis, and one script looks
how many wait and adds what lacks: the same entries.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import redis

from app import count, stream
from app.batch import Batch

_STOCK = f"{stream.STREAM}:bench"  # list: the entries' names and values in turn
_GROUP = 500
_TIMEOUT_S = 60.0
# Keys: the stream, the stock. Arguments: the group; how many are to wait; the most to add; the words of an entry, and
# which of them is `received_at`; all of them are of one event. Returns how many it has added; -1: some lack, and the
# stock is empty.
_ADD = count.LUA + """
local lacking = ARGV[2] - redis.call('XLEN', KEYS[1]) + redis.call('XPENDING', KEYS[1], ARGV[1])[1]
if lacking <= 0 then return 0 end
local width, place, sums = tonumber(ARGV[4]), tonumber(ARGV[5]), {}
local words = redis.call('LPOP', KEYS[2], math.min(lacking, ARGV[3]) * width)
if not words then return -1 end
for i = 1, #words, width do
  redis.call('XADD', KEYS[1], '*', unpack(words, i, i + width - 1))
  local minute = string.sub(words[i + place], 1, 16)
  sums[minute] = (sums[minute] or 0) + 1
end
for minute, events in pairs(sums) do count(minute, 'added', events) end
return #words / width
"""


class Filler:
    """Fills one stream from a stock beside it.

    Args:
        redis_url: Where the stream is.
        batches: As many as are ever wanted, of one event each.
    """

    def __init__(self, redis_url: str, batches: Iterator[Batch]) -> None:
        self._redis = redis.Redis(connection_pool=stream.pool(redis_url, _TIMEOUT_S))
        self._batches = batches
        words = stream.fields_of(next(batches))
        self._shape = len(words), words.index("received_at") + 1

    def close(self) -> None:
        """Lets go of Redis."""
        self._redis.close()

    def stock(self, batch_count: int) -> None:
        """Has so many batches lie ready, or up to a group more."""
        words: Any = self._redis.llen(_STOCK)
        lacking = batch_count - words // self._shape[0]
        while lacking > 0:
            entries = [stream.fields_of(one) for one in islice(self._batches, _GROUP)]
            self._redis.rpush(_STOCK, *(word for entry in entries for word in entry))
            lacking -= _GROUP

    def add(self, length: int) -> bool:
        """Adds what lacks of that many that wait, or as much as does not keep Redis long; tells whether some lacked."""
        # Not by its hash, as all other scripts are called: so Redis keeps the time of this one apart.
        added: Any = self._redis.eval(_ADD, 2, stream.STREAM, _STOCK, stream.GROUP, str(length), str(_GROUP),
                                      *map(str, self._shape))
        if added < 0:
            self.stock(1)
        return bool(added)

    def redis_s(self) -> float:
        """Returns the seconds that adding has taken of Redis so far."""
        found: Any = self._redis.info("commandstats")
        return float(found.get("cmdstat_eval", {}).get("usec", 0)) / 1e6
