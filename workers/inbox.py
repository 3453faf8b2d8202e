"""A consumer's side of the stream: reads entries by bytes, acknowledges them, buries what can never be loaded.

The entries that this consumer was given before come first: after a start, after every failed round, and every few
seconds, since the network may deliver a read after its sender has given it up: then entries are pending here that
nobody has seen.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import redis

from app import log, stream
from app.batch import Batch
from workers import metric

logger = logging.getLogger(__name__)

_NEW = ">"
_BLOCK_MS = 1000
_LOOK_BACK_EVERY_S = 2.0

# Keys: the stream. Arguments: group, consumer, the id after which to read, the byte budget.
# Redis reads by count alone and entries are of any size, so this takes one after the other until the budget is spent.
_READ = """
local start, budget, entries, bytes = ARGV[3], tonumber(ARGV[4]), {}, 0
while bytes < budget do
  local reply = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', 1, 'STREAMS', KEYS[1], start)
  local entry = reply and reply[1][2][1]
  if not entry then break end
  entries[#entries + 1] = entry
  if start ~= '>' then start = entry[1] end
  for i = 2, #(entry[2] or {}), 2 do bytes = bytes + #entry[2][i] end
end
return entries
"""

# Scripts, not MULTI: a full Redis refuses to queue any command, while a script may begin with XACK, and may then write.
# Keys: the stream. Arguments: group, ids. In parts, as a call takes only so many arguments.
_RELEASE = """
for first = 2, #ARGV, 1000 do
  local last = math.min(first + 999, #ARGV)
  redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, first, last))
  redis.call('XDEL', KEYS[1], unpack(ARGV, first, last))
end
"""
# Keys: the stream, the dead letters. Arguments: group, id, the letter's names and values in turn.
_BURY = """
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XADD', KEYS[2], '*', unpack(ARGV, 3))
redis.call('XDEL', KEYS[1], ARGV[2])
"""


class Entry(NamedTuple):
    """A batch in the stream; `raw` holds its fields as they are there."""

    entry_id: bytes
    batch: Batch
    raw: dict[bytes, bytes]


class Inbox:
    """Owns what is pending under one consumer name.

    Args:
        client: Its socket timeout is above one second, the time that a read may block.
        consumer: Stable over restarts, used by one process at a time.
        max_bytes: Bytes after which a read takes no further entry.
        monotonic: The clock, in seconds.
    """

    def __init__(
        self, client: redis.Redis, consumer: str, max_bytes: int, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._consumer = consumer
        self._max_bytes = max_bytes
        self._read = client.register_script(_READ)
        self._release = client.register_script(_RELEASE)
        self._bury = client.register_script(_BURY)
        self._monotonic = monotonic
        self.rewind()

    def rewind(self) -> None:
        """Makes the next read begin with the entries that were read and not acknowledged."""
        self._start = "0"
        self._look_back_at = self._monotonic() + _LOOK_BACK_EVERY_S

    def read(self) -> list[Entry]:
        """Returns the next entries, after at most a second none.

        Raises:
            StreamUnavailable: Redis is away or refuses.
            StreamLost: The group is gone.
        """
        if self._start == _NEW and self._monotonic() >= self._look_back_at:
            self.rewind()
        with stream.translated():
            found = self._found()
        if self._start != _NEW and not found:
            self._start = _NEW
        elif self._start != _NEW:
            self._start = found[-1][0].decode()
        return [entry for entry_id, fields in found if (entry := self._entry(entry_id, fields))]

    def _found(self) -> list[tuple[bytes, list[bytes] | None]]:
        arguments = (stream.GROUP, self._consumer, self._start, self._max_bytes)
        found: list[tuple[bytes, list[bytes] | None]] = self._read(keys=[stream.STREAM], args=arguments)
        return found or self._waited()

    def _waited(self) -> list[tuple[bytes, list[bytes] | None]]:
        """Blocks for one entry; more that came meanwhile are left to the next read."""
        if self._start != _NEW:
            return []
        reply: Any = self._client.execute_command(
            "XREADGROUP", "GROUP", stream.GROUP, self._consumer, "COUNT", 1, "BLOCK", _BLOCK_MS,
            "STREAMS", stream.STREAM, _NEW,
        )
        return [(entry_id, [part for pair in fields.items() for part in pair])
                for _, entries in reply or () for entry_id, fields in entries]

    def _entry(self, entry_id: bytes, fields: list[bytes] | None) -> Entry | None:
        if fields is None:
            metric.lost_entries.inc()
            logger.critical(log.line("entry_lost", entry=entry_id.decode(), why="deleted while it was pending"))
            self.ack([entry_id])
            return None
        raw = dict(zip(fields[::2], fields[1::2]))
        try:
            return Entry(entry_id, stream.batch_of(raw), raw)
        except (KeyError, ValueError) as error:
            self.bury(entry_id, raw, "not_an_entry", repr(error))
            return None

    def ack(self, entry_ids: Sequence[bytes]) -> None:
        """Releases entries: acknowledged and deleted, both or neither.

        Raises:
            StreamUnavailable: Unknown whether it happened; the ledger makes another load harmless.
        """
        with stream.translated():
            self._release(keys=[stream.STREAM], args=[stream.GROUP, *entry_ids])  # HANDOVER 4, release

    def bury(self, entry_id: bytes, raw: dict[bytes, bytes], reason: str, detail: str) -> None:
        """Moves an entry to the dead letters with the reason, in one script.

        Raises:
            StreamUnavailable: Unknown whether it happened.
        """
        fields: dict[bytes, Any] = {**raw, b"reason": reason, b"detail": detail[:1000]}
        letter = [part for pair in fields.items() for part in pair]
        with stream.translated():
            # HANDOVER 5, copy and release
            self._bury(keys=[stream.STREAM, stream.DEAD_LETTERS], args=[stream.GROUP, entry_id, *letter])
        metric.buried_batches.labels(reason).inc()
        logger.error(log.line("batch_buried", entry=entry_id.decode(), reason=reason, detail=detail))
