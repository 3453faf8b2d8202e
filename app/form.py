"""The forms that a body may have, each turned into one Batch: JSON, NDJSON, and plain text, one event a line.

The quick way decodes and encodes a whole body at once, or, of a large one, a slice. Where it balks, for whatever
reason, the careful way reads the same body again, event by event, and either takes it or says what is wrong, where, and
what is allowed.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

import msgspec

from app import document, event, moment, slice, value
from app.batch import KEYLESS, Batch
from app.errors import Rejected
from app.event import Defaults, Event

_T = TypeVar("_T")

_decode_event = msgspec.json.Decoder(Event, float_hook=document.number)
_decode_events = msgspec.json.Decoder(list[Event], float_hook=document.number)

# A value of two bytes becomes an object of a hundred: without this bound 64 MiB of `[]` would be gigabytes of lists.
_MAX_VALUES = 1_000_000
_MIN_BYTES_OF_VALUE = 2
_DIGEST_BYTES = 1 << 20
# From here on it is worth a look whether there are long numbers.
_MIN_LOOKED_AT = 1 << 14
# Up to the next separator that is not within a string. Matches wherever it starts, so that its time is linear: a string
# without its end reaches to the body's.
_TO_SEPARATOR = re.compile(rb'(?:[^"\[{,]++|"(?:[^"\\]++|\\.)*+"?)*+(?:[\[{,]|\Z)', re.DOTALL)


class Form(NamedTuple):
    """How one media type is read: `quick` may raise anything that `msgspec` does, `careful` only `Rejected`.

    Both may be lazy, so that of a body with millions of events no more are made than are looked at.
    """

    quick: Callable[[bytes, "Limits"], Iterable[Event]]
    careful: Callable[[bytes, "Limits"], Iterable[Any]]
    is_json: bool


class Limits(NamedTuple):
    """What one request may hold: events, bytes of one event, and characters of all lines of text once escaped."""

    max_events: int
    max_event_bytes: int
    max_text_chars: int = 64 << 20


def to_batch(
    form: Form, body: bytes, defaults: Defaults, batch_id: str, now_ns: int, limits: Limits, sha256: str = KEYLESS,
    pause: slice.Pause = lambda: None,
) -> Batch:
    """Returns the request as a Batch.

    Args:
        form: One of `FORMS`.
        body: Decompressed.
        defaults: Pairs of field and value for events without that field.
        batch_id: UUID text.
        now_ns: When it was received, ns since 1970.
        sha256: `digest` of body and defaults, where the id is that of an idempotency key.
        pause: Called between two slices of a large body.

    Raises:
        Rejected: It can never be taken as it is.
    """
    if not body:
        raise Rejected(422, "empty", "the body is empty; at least one event is needed")
    received_at = moment.from_ns(now_ns)
    prefix = f"{received_at}\t{batch_id}\t"
    if len(body) > slice.LARGE_BYTES:
        pause()
        count, payload = _encoded(form, body, defaults, prefix, received_at, limits, pause)
    else:
        count, payload = _encoded(form, body, defaults, prefix, received_at, limits, None)
    return Batch(batch_id, count, sha256, received_at, payload)


def digest(body: bytes, defaults: Defaults, pause: slice.Pause = lambda: None) -> str:
    """Returns by what a request is told from another one under its idempotency key: SHA-256 in hex."""
    found = hashlib.sha256(body[:_DIGEST_BYTES])
    for start in range(_DIGEST_BYTES, len(body), _DIGEST_BYTES):
        pause()
        found.update(body[start:start + _DIGEST_BYTES])
    for field, default in defaults:
        found.update(f"\0{field}={default}".encode())
    return found.hexdigest()


def _encoded(
    form: Form, body: bytes, defaults: Defaults, prefix: str, received_at: str, limits: Limits,
    pause: slice.Pause | None,
) -> tuple[int, bytes]:
    if form.is_json and len(body) > _MAX_VALUES * _MIN_BYTES_OF_VALUE:
        _check_values(body)
    if not _is_odd(form, body, defaults):
        try:
            events = _counted(form.quick(body, limits), limits.max_events, pause)
            for one in events if defaults else ():
                one.set_defaults(defaults)
            if pause is None:
                return len(events), event.encode(events, prefix, received_at, limits.max_event_bytes)
            return len(events), slice.encoded(
                lambda some, start: event.encode(some, prefix, received_at, limits.max_event_bytes, start),
                events, len(body), pause,
            )
        except (msgspec.MsgspecError, event.Suspect, ValueError, RecursionError):
            pass  # The careful way tells what it is, and whether it is wrong at all.
    documents = _counted(form.careful(body, limits), limits.max_events, pause)
    try:
        events = document.read(documents, defaults, limits.max_event_bytes, pause)
    except document.Faulty as error:
        raise Rejected(422, "bad_event", str(error), error.faults) from error
    if pause is None:
        return len(events), event.encode_carefully(events, prefix, received_at)
    return len(events), slice.encoded(
        lambda some, start: event.encode_carefully(some, prefix, received_at, start), events, len(body), pause)


def _is_odd(form: Form, body: bytes, defaults: Defaults) -> bool:
    """Tells whether there may be something in a body that the quick way does not see, or that takes it too long."""
    texts = "".join(str(default) for _, default in defaults).encode() if defaults else b""
    if event.has_stand_in(body) or texts and event.has_stand_in(texts):
        return True
    return form.is_json and len(body) >= _MIN_LOOKED_AT and slice.has_long_number(body)


def _counted(found: Iterable[_T], max_events: int, pause: slice.Pause | None) -> list[_T]:
    if isinstance(found, list):
        events = found
    elif pause is None:
        events = list(islice(found, max_events + 1))
    else:
        events = slice.taken(iter(found), max_events + 1, pause)
    if not events:
        raise Rejected(422, "empty", "the body holds no event; at least one is needed")
    if len(events) > max_events:
        raise Rejected(413, "too_many_events", f"over {max_events} events, the most that a request has")
    return events


def _check_values(body: bytes) -> None:
    """Refuses JSON of too many values before any is made; each but the first follows one of `[{,`."""
    if sum(map(body.count, (b",", b"[", b"{"))) < _MAX_VALUES:
        return
    if next(islice(_TO_SEPARATOR.finditer(body), _MAX_VALUES, None), None):
        raise Rejected(413, "too_many_values", f"over {_MAX_VALUES} JSON values, the most that a request has")


def _json_quick(body: bytes, _: Limits) -> Iterable[Event]:
    if body.lstrip()[:1] != b"[":
        return [_decode_event.decode(body)]
    if len(body) <= slice.LARGE_BYTES:
        return _decode_events.decode(body)
    return chain.from_iterable(map(_decode_events.decode, slice.arrays(body)))


def _json_careful(body: bytes, _: Limits) -> Iterable[Any]:
    if len(body) > slice.LARGE_BYTES and body.lstrip()[:1] == b"[":
        return _elements(body)
    found = value.read(body, None)
    return found if isinstance(found, list) else [found]


def _elements(body: bytes) -> Iterator[Any]:
    """Decodes the elements of a large array one by one; what cannot be, as a part of the whole, of which it is told."""
    index = 0
    with suppress(msgspec.MsgspecError, RecursionError, Rejected):
        for index, element in enumerate(slice.elements(body)):
            yield value.read(bytes(element), None)
        return
    yield from islice(value.read(body, None), index, None)


def _ndjson_quick(body: bytes, _: Limits) -> Iterable[Event]:
    # Line by line: `decode_lines` would also take two events in one line, or one over two, and all before any count.
    return map(_decode_event.decode, BytesIO(body))


def _ndjson_careful(body: bytes, _: Limits) -> Iterator[Any]:
    lines = (line for line in BytesIO(body) if not line.isspace())
    return (value.read(line, index) for index, line in enumerate(lines))


def _lines(body: bytes, limits: Limits) -> Iterator[Event]:
    room = limits.max_text_chars
    for line in filter(None, (line.removesuffix(b"\n").removesuffix(b"\r") for line in BytesIO(body))):
        # One that is longer is refused as an event, and need not be whole for that.
        text = _text(line[:limits.max_event_bytes + 1])
        room -= len(text)
        if room < 0:
            raise Rejected(413, "too_large", f"over {limits.max_text_chars} characters, what is not UTF-8 as \\xNN")
        yield Event(text)


def _text(line: bytes) -> str:
    """Does what `line.decode(errors="backslashreplace")` does, which calls back for each such byte and takes longer."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        if b"\0" in line:
            return line.decode(errors="replace")  # It is refused for the NUL.
    # Bytes that are no text become \udcNN first, and what was sent as that meanwhile stands aside as NUL.
    escaped = line.replace(rb"\udc", b"\0").decode(errors="surrogateescape").encode(errors="backslashreplace")
    return escaped.replace(rb"\udc", rb"\x").replace(b"\0", rb"\udc").decode()


_JSON = Form(_json_quick, _json_careful, True)
_NDJSON = Form(_ndjson_quick, _ndjson_careful, True)
FORMS = {
    "application/json": _JSON,
    "application/x-ndjson": _NDJSON,
    "application/ndjson": _NDJSON,
    "application/jsonl": _NDJSON,
    "text/plain": Form(_lines, _lines, False),
}
