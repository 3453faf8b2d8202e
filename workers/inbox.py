"""A consumer's side of the stream: reads entries by bytes, keeps them, releases them, buries what can never be loaded.

The entries that this consumer was given before come first: after a start, when Redis was away, and every few seconds,
since the network may deliver a read after its sender has given it up: then entries are pending here that nobody has
seen. With the same rhythm it takes over what consumers that are gone have left behind.

HANDOVER 5: stream → dead letters (tests/crash/test_load.py), by one script.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import redis

from app import count, dead_letter, log, size, stream
from app.dead_letter import Death
from app.moment import now
from workers import metric, script
from workers.entry import ALONE, REFUSED, SUSPECT_AT, Entry
from workers.ledger import DeadEvent
from workers.takeover import note_lost, take_over

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_NEW = ">"
_BLOCK_MS = 1000
_LOOK_BACK_EVERY_S = 2.0
_KEYS = (stream.STREAM, stream.DEAD_LETTERS, stream.DEAD_EVENTS, size.KEY)

MAX_ENTRIES = 4000  # of a load: more take longer for each, and more memory of both sides
# Of a call: one takes up to 16 us of Redis, which answers nobody meanwhile.
_AT_A_TIME = 500


class Inbox:
    """Owns what is pending under one consumer name.

    Args:
        client: Its socket timeout is above one second, the time that a read may block.
        consumer: Stable over restarts, used by one process at a time.
        max_bytes: Bytes after which a read takes no further entry.
        claim_idle_s: For how long a consumer may leave an entry alone before others take it.
        monotonic: The clock, in seconds.
    """

    def __init__(
        self, client: redis.Redis, consumer: str, max_bytes: int, claim_idle_s: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._consumer = consumer
        self._max_bytes = max_bytes
        self._claim_idle_ms = int(claim_idle_s * 1000)
        self._scripts = {text: client.register_script(text) for text in (
            script.READ, script.RELEASE, script.KEEP, script.SET_ASIDE, script.BURY, script.BURY_EVENT,
            script.TAKE_OVER,
        )}
        self._monotonic = monotonic
        self.rewind()

    def rewind(self) -> None:
        """Makes the next read begin with the entries that were read and not released."""
        self._start = "0"
        self._look_back_at = self._monotonic() + _LOOK_BACK_EVERY_S

    def read(self) -> list[Entry]:
        """Returns the next entries, after at most a second none.

        Raises:
            StreamUnavailable: Redis is away or refuses.
            StreamLost: The group is gone.
        """
        try:
            found = self._old()
            if not found and self._monotonic() >= self._look_back_at:
                take_over(self._run, self._claim_idle_ms, MAX_ENTRIES, _AT_A_TIME)
                self.rewind()
                found = self._old()
            return self._entries(found or self._found(_NEW, self._max_bytes, MAX_ENTRIES) or self._waited())
        except BaseException:
            self.rewind()  # It may have been delivered all the same.
            raise

    def _old(self) -> "list[tuple[bytes, list[bytes] | None, int]]":
        """Returns the next of the entries that were read and not released, until there are none."""
        found = [] if self._start == _NEW else self._found(self._start, self._max_bytes, MAX_ENTRIES)
        self._start = found[-1][0].decode() if found else _NEW
        return found

    def read_more(self, held: Sequence[Entry]) -> list[Entry]:
        """Returns new entries that fit beside those that are held, without waiting for any.

        Raises:
            StreamUnavailable, StreamLost: As for `read`.
        """
        held_bytes = sum(len(entry.batch.payload) for entry in held)
        return self._entries(self._found(_NEW, self._max_bytes - held_bytes, MAX_ENTRIES - len(held)))

    def keep(self, entries: Sequence[Entry]) -> list[Entry]:
        """Tells that this consumer is alive, and that it was not these entries; returns those that are still its own.

        Raises:
            StreamUnavailable: Redis is away or refuses.
            StreamLost: The group is gone.
        """
        kept = {entry_id for part in _parts(entries)
                for entry_id in self._run(script.KEEP, 1, *(entry.entry_id for entry in part))}
        return [entry._replace(deliveries=1) for entry in entries if entry.entry_id in kept]

    def note_alone(self, entry: Entry) -> None:
        """Notes that the consumer, should it end without a word now, did so while it loaded this entry alone.

        Raises:
            StreamUnavailable, StreamLost: As for `keep`.
        """
        self._run(script.KEEP, entry.refusals * REFUSED + (entry.deaths_alone + 1) * ALONE, entry.entry_id)

    def set_aside(self, entry: Entry, name: str, delay_s: float, refusals: int = 0) -> None:
        """Gives an entry away to a name from which it may be taken over after the delay, at most the idle time.

        Raises:
            StreamUnavailable, StreamLost: As for `keep`.
        """
        idle_ms = max(0, self._claim_idle_ms - int(delay_s * 1000))
        self._run(script.SET_ASIDE, name, idle_ms, refusals * REFUSED or 1, entry.entry_id)

    def look_back_in(self, delay_s: float, is_rid: bool) -> None:
        """Looks back, for what else is set aside, after that, but no sooner than usual if it `is_rid` of nothing."""
        look_back_at = self._monotonic() + delay_s
        self._look_back_at = look_back_at if is_rid else max(self._look_back_at, look_back_at)

    def ack(self, done: Sequence[tuple[Entry, str]]) -> None:
        """Releases entries that are still its own: acknowledged, deleted and counted, each with its part or not at all.

        Args:
            done: Entries, each with the kind that it is counted as (`app/count.py`).

        Raises:
            StreamUnavailable: Unknown of which it happened; the ledger makes another load harmless.
        """
        for part in _parts(sorted(done, key=lambda pair: _place(pair[0].entry_id))):
            counts = count.packed([(entry.batch, kind) for entry, kind in part])
            size_bytes = size.of([entry.batch for entry, _ in part])
            self._run(script.RELEASE, counts, size_bytes, *(entry.entry_id for entry, _ in part))  # HANDOVER 4, release

    def bury(self, entry_id: bytes, death: Death) -> None:
        """Moves an entry that is still its own to the dead letters.

        Raises:
            StreamUnavailable: Unknown whether it happened.

        Durability:
            As durable on return as the stream; never in both, never in neither.
        """
        if self._run(script.BURY, entry_id, *death.fields()):  # HANDOVER 5, copy and release
            metric.buried_batches.labels(death.reason).inc()

    def dead_letter_bytes(self) -> int:
        """Returns what the dead letters take of Redis's memory.

        Raises:
            StreamUnavailable: Redis is away or refuses.
        """
        return size.read(self._client).letters or 0

    def bury_events(self, events: Sequence[DeadEvent], deaths: Sequence[Death]) -> None:
        """Makes dead letters of events; an event that has one gets no other.

        Raises:
            StreamUnavailable: Some may have theirs.

        Durability:
            As durable on return as the stream.
        """
        for event, death in zip(events, deaths, strict=True):
            one = dead_letter.lone_event(event.batch, event.index, event.line)
            self._run(script.BURY_EVENT, *stream.fields_of(one), *death.fields())
            metric.buried_events.inc()

    def _run(self, text: str, *arguments: Any) -> Any:
        with stream.translated():
            return self._scripts[text](keys=_KEYS, args=[stream.GROUP, self._consumer, *arguments])

    def _found(self, start: str | bytes, budget: int, most: int) -> "list[tuple[bytes, list[bytes] | None, int]]":
        found: list[tuple[bytes, list[bytes] | None, int]] = []
        while budget > 0 and len(found) < most:
            count = min(_AT_A_TIME, most - len(found))
            taken_bytes, part = self._run(script.READ, start, budget, SUSPECT_AT, count, len(found))
            found += part
            if len(part) < count:
                break
            budget -= taken_bytes
            start = start if start == _NEW else part[-1][0]
        return found

    def _waited(self) -> "list[tuple[bytes, list[bytes] | None, int]]":
        """Blocks for one entry; more that came meanwhile are left to the next read."""
        block_ms = max(1, min(_BLOCK_MS, int((self._look_back_at - self._monotonic()) * 1000)))
        with stream.translated():
            reply: Any = self._client.execute_command(
                "XREADGROUP", "GROUP", stream.GROUP, self._consumer, "COUNT", 1, "BLOCK", block_ms,
                "STREAMS", stream.STREAM, _NEW,
            )
        return [(entry_id, [part for pair in fields.items() for part in pair], 1)
                for _, entries in reply or () for entry_id, fields in entries]

    def _entries(self, found: "Sequence[tuple[bytes, list[bytes] | None, int]]") -> list[Entry]:
        return [entry for one in found if (entry := self._entry(*one))]

    def _entry(self, entry_id: bytes, fields: list[bytes] | None, deliveries: int) -> Entry | None:
        if fields is None:
            note_lost(1)
            self._run(script.RELEASE, count.packed([(None, "")]), 0, entry_id)
            return None
        try:
            return Entry(entry_id, stream.batch_of(dict(zip(fields[::2], fields[1::2]))), deliveries)
        except (KeyError, ValueError) as error:
            stamp = now()
            self.bury(entry_id, Death(dead_letter.NOT_AN_ENTRY, repr(error), "", 0, stamp, stamp, self._consumer))
            logger.error(log.line("entry_buried", entry=entry_id.decode(), reason=dead_letter.NOT_AN_ENTRY))
            return None


def _parts(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (items[start:start + _AT_A_TIME] for start in range(0, len(items), _AT_A_TIME))


def _place(entry_id: bytes) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)
