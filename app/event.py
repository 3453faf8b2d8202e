"""The Event: one log line, after OpenTelemetry's log data model, and its encoding as a row of COPY text.

Canonical events are decoded by msgspec straight into `Event`; any other object is brought into the same form by
`document.read`. Both are encoded to the same bytes: `encode` joins and escapes a whole batch at once, and where a
body holds a byte that this needs for itself, `encode_carefully` goes field by field.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from app import moment, severity

MAX_DEPTH = 64

# Stand-ins within a joined batch; a body that may hold one of them goes the careful way.
# A string object of its own, so that `is` tells it from one that a client sent; its \x02 becomes a backslash at last.
NULL = "\x02N"
_MAX_CHAR_BYTES = 4  # of UTF-8

Defaults = Sequence[tuple[str, str | int]]


class Event(msgspec.Struct, forbid_unknown_fields=True):
    """One log line; a field that was not sent holds the stand-in for NULL."""

    message: str
    timestamp: str | int = NULL
    # Levels are cached while they are encoded; a longer one goes the careful way, and is not.
    level: Annotated[str, Meta(max_length=32)] | int = NULL
    service: str = NULL
    host: str = NULL
    trace_id: str = NULL
    span_id: str = NULL
    attributes: dict[str, Any] = {}

    def set_defaults(self, defaults: Defaults) -> None:
        """Fills fields that were not sent, from pairs of field and value."""
        for field, value in defaults:
            if getattr(self, field) is NULL:
                setattr(self, field, value)


class Suspect(Exception):
    """The batch needs the careful way. Not an error: the same events may be fine, or be told apart there."""


def has_stand_in(body: bytes) -> bool:
    """Tells whether a body, JSON or text, may hold a character that `encode` uses as a stand-in."""
    # By number: `in` with bytes raises and drops an exception within CPython first, which takes ten times as long.
    return 0 in body or 1 in body or 2 in body or 0x5C in body and body.find(rb"\u000") >= 0


_JSON = msgspec.json.Encoder()


def encode(events: Sequence[Event], prefix: str, received_at: str, max_event_bytes: int, start: int = 0) -> bytes:
    """Returns a batch's payload, or a part of it, quickly.

    Args:
        events: At least one; their body has no stand-in.
        prefix: The cells before `batch_index`, the same in every row, each followed by a tab.
        received_at: The time of events that bring none.
        max_event_bytes: Longest event, the UTF-8 of its fields.
        start: The first one's place in the batch.

    Raises:
        Suspect, ValueError: Encode carefully instead.
    """
    if len(events) == 1 and not start and (row := _row(events[0], received_at, max_event_bytes)):
        return b"%b%b\n" % (prefix.encode(), row)
    attributes, times = _attribute_cells(events), _time_cells(events, received_at)
    joined = "\x01".join([
        f"{index}\x00{time}\x00{_level_cells(event.level)}\x00{event.service}\x00{event.host}\x00"
        f"{event.message}\x00{event.trace_id}\x00{event.span_id}\x00{cell}"
        for index, event, time, cell in zip(count(start), events, times, attributes)
    ]).encode()
    if len(joined) > max_event_bytes and max(map(len, joined.split(b"\x01"))) > max_event_bytes:
        raise Suspect
    rows = _escaped(joined).replace(b"\x00", b"\t").replace(b"\x02", b"\\")
    return prefix.encode() + rows.replace(b"\x01", f"\n{prefix}".encode()) + b"\n"


def _row(event: Event, received_at: str, max_event_bytes: int) -> bytes:
    """Returns what `encode` makes of a single event, which most requests of clients without an agent hold, but for the
    prefix; empty where the event takes a closer look.
    """
    attributes = _JSON.encode(event.attributes).decode()
    # Each level has an opener and an end.
    if len(attributes) >= 2 * MAX_DEPTH and attributes.count("{") + attributes.count("[") >= MAX_DEPTH:
        return b""
    row = (
        f"0\x00{received_at if event.timestamp is NULL else moment.parse(event.timestamp)}\x00"
        f"{_level_cells(event.level)}\x00{event.service}\x00{event.host}\x00{event.message}\x00{event.trace_id}\x00"
        f"{event.span_id}\x00{attributes}"
    )
    if len(row) * _MAX_CHAR_BYTES > max_event_bytes:
        return b""
    cells = row.encode()
    if "\\" in row or "\t" in row or "\n" in row or "\r" in row:
        cells = _escaped(cells)
    return cells.replace(b"\x00", b"\t").replace(b"\x02", b"\\")


def encode_carefully(events: Sequence[Event], prefix: str, received_at: str, start: int = 0) -> bytes:
    """Returns what `encode` returns, whatever characters the events hold. They have been through `check`."""
    return b"".join(
        b"\t".join([prefix.encode() + str(index).encode(), *_cells(event, received_at)]) + b"\n"
        for index, event in enumerate(events, start)
    )


def _cells(event: Event, received_at: str) -> Iterator[bytes]:
    yield (received_at if event.timestamp is NULL else moment.parse(event.timestamp)).encode()
    level, number = (NULL, None) if event.level is NULL else severity.read(event.level)
    texts = (level, NULL if number is None else str(number), event.service, event.host, event.message,
             event.trace_id, event.span_id)
    for text in texts:
        yield rb"\N" if text is NULL else _escaped(text.encode())
    yield _escaped(_JSON.encode(event.attributes))


def _time_cells(events: Sequence[Event], received_at: str) -> Sequence[str | int]:
    times = [event.timestamp for event in events]
    if moment.are_plain(times):
        return times
    return [received_at if time is NULL else moment.parse(time) for time in times]


def _attribute_cells(events: Sequence[Event]) -> list[str]:
    lines = _JSON.encode_lines([event.attributes for event in events])
    cells = lines.decode().split("\n")
    # Openers bound the depth from above; only a batch with nested attributes is looked at event by event.
    if lines.count(b"{") + lines.count(b"[") > len(events) + 8:
        if any(cell.count("{") + cell.count("[") >= MAX_DEPTH for cell in cells):
            raise Suspect
    return cells


@lru_cache(1024)
def _level_cells(level: str | int) -> str:
    if level is NULL:
        return f"{NULL}\x00{NULL}"
    text, number = severity.read(level)
    return f"{text}\x00{NULL if number is None else number}"


def _escaped(text: bytes) -> bytes:
    return text.replace(b"\\", b"\\\\").replace(b"\t", b"\\t").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
