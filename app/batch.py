"""The Batch: one accepted request, or small ones that waited together, encoded once into the bytes that COPY reads.

The payload of format 1 is COPY's text format with the columns `COLUMNS`, one line an event, each ended by LF. The
same bytes are the stream entry, the WAL record and the dead letter; nothing after the edge parses an event again.

Source: https://www.postgresql.org/docs/current/sql-copy.html, "Text Format".
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from uuid import UUID, uuid5

import msgspec

FORMAT = 1

COLUMNS = (
    "received_at", "batch_id", "batch_index", "ts", "level", "severity", "service", "host", "message", "trace_id",
    "span_id", "attributes",
)

CANARY = "spillway-canary"  # the service of the events that we send ourselves
CANARY_HEADER = "Spillway-Canary"  # with the token, it has a request acknowledged from the WAL

KEYLESS = "0" * 64  # in place of a digest: no other request can come under that id

_CANARY_CELL = f"\t{CANARY}\t".encode()
_KEY_NAMESPACE = UUID("5b1c2f7e-0d53-4d9c-9a58-0c3f9e1d7a42")


class Batch(msgspec.Struct, frozen=True):
    """What is stored as one: a request's events, or those of several requests (`merged`).

    Args:
        batch_id: Lower-case UUID text; names the batch everywhere, and is what the ledger removes duplicates by.
        count: Events, which is lines of the payload, at least 1.
        sha256: Hex digest of the decompressed body and the request's defaults: two requests under one
            idempotency key are the same request if and only if it is equal. `KEYLESS` without a key.
        received_at: RFC 3339 in UTC with microseconds.
        payload: COPY text in the format that `version` names.
        parts: How many of the events each request brought, in order; empty for a single request. The rows keep the
            ids that the requests were answered with, of which `whole_id` is the batch's.
    """

    batch_id: str
    count: int
    sha256: str
    received_at: str
    payload: bytes
    version: int = FORMAT
    parts: tuple[int, ...] = ()


class LoneEvent(Batch, frozen=True, kw_only=True):
    """One event of a batch that is stored without it: the database refused it, and it comes back from the dead letters.

    The ledger knows the batch, and which of its events it lacks; the payload is the event's line alone.

    Args:
        index: The event's place in the batch, from 0.
    """

    index: int


def is_canary(batch: Batch) -> bool:
    """Tells whether it says that it is one of our own; anybody may say so."""
    return batch.count == 1 and _CANARY_CELL in batch.payload


_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r"}


def events(batch: Batch) -> Iterator[dict[str, str | None]]:
    """Yields the events as a person looks at them: text by column, None for NULL. Loading never needs this.

    Raises:
        ValueError: The payload is not of the format that this code knows.
    """
    if batch.version != FORMAT:
        raise ValueError(f"format {batch.version}; {FORMAT} is known")
    for row in batch.payload.decode().split("\n")[:-1]:
        yield dict(zip(COLUMNS, map(_text, row.split("\t")), strict=True))


def _text(cell: str) -> str | None:
    return None if cell == r"\N" else _ESCAPED.sub(lambda found: _ESCAPES.get(found[1], found[1]), cell)


_to_record = msgspec.msgpack.Encoder()
_from_record = msgspec.msgpack.Decoder(Batch)


def to_record(batch: Batch) -> bytes:
    """Returns the batch as the WAL keeps it: MessagePack, a map by field."""
    return _to_record.encode(batch)


def from_record(record: bytes) -> Batch:
    """Returns the batch of a record. Raises ValueError where it is none."""
    return _from_record.decode(record)


def merged(batches: Sequence[Batch]) -> Batch:
    """Returns as one the batches of requests whose ids one `Series` gave out, none of them with a key."""
    first = batches[0]
    if len(batches) == 1:
        return first
    parts = [one.count for one in batches]
    if int(batches[-1].batch_id[-_DIGITS:], 16) != len(batches):  # Numbers, which ascend, were given in vain.
        counts = {int(one.batch_id[-_DIGITS:], 16): one.count for one in batches}
        parts = [counts.get(number, 0) for number in range(1, max(counts) + 1)]
    payload = b"".join([one.payload for one in batches])
    return Batch(whole_id(first.batch_id), sum(parts), KEYLESS, first.received_at, payload, parts=tuple(parts))


_DIGITS = 4


def whole_id(part_id: str) -> str:
    """Returns the id of the merged batch that holds a request's events, if they were merged."""
    return part_id[:-_DIGITS] + "0" * _DIGITS


def places_of_part(part_id: str, parts: Sequence[int]) -> range:
    """Returns which events of a merged batch are a request's; none where it is not in there."""
    number = int(part_id[-_DIGITS:], 16)
    end = sum(parts[:number])
    return range(end - sum(parts[number - 1:number]) if number else 0, end)


class Series:
    """Ids for requests that may be merged: UUIDv7 (RFC 9562, section 5.7) of 48 bits of milliseconds and 58 of chance,
    alike but for the last 16 bits, which number them from 1. The merged batch has the number 0.

    Attributes:
        count: Ids given out, `MAX` at most.
    """

    MAX = 0xFFFF

    def __init__(self) -> None:
        chance = int.from_bytes(os.urandom(8), "big")
        number = (time.time_ns() // 1_000_000 & 0xFFFF_FFFF_FFFF) << 80 | 7 << 76 | (chance >> 52) << 64
        digits = f"{number | 0b10 << 62 | (chance & (1 << 46) - 1) << 16:032x}"
        self._stem = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:-_DIGITS]}"
        self.count = 0
        self._last = ""

    def next_id(self) -> str:
        """Returns the next id."""
        self.count += 1
        self._last = f"{self._stem}{self.count:04x}"
        return self._last

    def gave_last(self, batch_id: str) -> bool:
        """Tells whether an id is its own, and the last that it gave."""
        return batch_id == self._last


def new_id() -> str:
    """Returns an id of no series with others."""
    return Series().next_id()


def id_of_key(key: str) -> str:
    """Returns the batch id that an idempotency key stands for (a UUIDv5)."""
    return str(uuid5(_KEY_NAMESPACE, key))
