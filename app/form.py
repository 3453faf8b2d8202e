"""The forms that a body may have, each turned into one Batch: JSON, NDJSON, and plain text, one event a line.

The quick way decodes and encodes a whole body at once. Where it balks, for whatever reason, the careful way reads the
same body again, event by event, and either takes it or says what is wrong, where, and what is allowed.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import msgspec

from app import document, event, moment
from app.batch import KEYLESS, Batch
from app.errors import Fault, Rejected
from app.event import Defaults, Event

_T = TypeVar("_T")

_decode_event = msgspec.json.Decoder(Event, float_hook=document.number)
_decode_events = msgspec.json.Decoder(list[Event], float_hook=document.number)
_decode_any = msgspec.json.Decoder(float_hook=lambda text: _raw(text))

# A value of two bytes becomes an object of a hundred: without this bound 64 MiB of `[]` would be gigabytes of lists.
_MAX_VALUES = 1_000_000
_MIN_BYTES_OF_VALUE = 2
_BLANKS = (" ", "\t", "\n", "\r")
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
    form: Form, body: bytes, defaults: Defaults, batch_id: str, now_ns: int, limits: Limits, sha256: str = KEYLESS
) -> Batch:
    """Returns the request as a Batch.

    Args:
        form: One of `FORMS`.
        body: Decompressed.
        defaults: Pairs of field and value for events without that field.
        batch_id: UUID text.
        now_ns: When it was received, ns since 1970.
        sha256: `digest` of body and defaults, where the id is that of an idempotency key.

    Raises:
        Rejected: It can never be taken as it is.
    """
    if not body:
        raise Rejected(422, "empty", "the body is empty; at least one event is needed")
    received_at = moment.from_ns(now_ns)
    prefix = f"{received_at}\t{batch_id}\t"
    count, payload = _encoded(form, body, defaults, prefix, received_at, limits)
    return Batch(batch_id, count, sha256, received_at, payload)


def digest(body: bytes, defaults: Defaults) -> str:
    """Returns by what a request is told from another one under its idempotency key: SHA-256 in hex."""
    found = hashlib.sha256(body)
    for field, value in defaults:
        found.update(f"\0{field}={value}".encode())
    return found.hexdigest()


def _encoded(
    form: Form, body: bytes, defaults: Defaults, prefix: str, received_at: str, limits: Limits
) -> tuple[int, bytes]:
    if form.is_json and len(body) > _MAX_VALUES * _MIN_BYTES_OF_VALUE:
        _check_values(body)
    texts = "".join(str(value) for _, value in defaults).encode() if defaults else b""
    if not event.has_stand_in(body) and not (texts and event.has_stand_in(texts)):
        try:
            events = _counted(form.quick(body, limits), limits.max_events)
            for one in events if defaults else ():
                one.set_defaults(defaults)
            return len(events), event.encode(events, prefix, received_at, limits.max_event_bytes)
        except (msgspec.MsgspecError, event.Suspect, ValueError, RecursionError):
            pass  # The careful way tells what it is, and whether it is wrong at all.
    documents = _counted(form.careful(body, limits), limits.max_events)
    try:
        events = document.read(documents, defaults, limits.max_event_bytes)
    except document.Faulty as error:
        raise Rejected(422, "bad_event", str(error), error.faults) from error
    return len(events), event.encode_carefully(events, prefix, received_at)


def _counted(found: Iterable[_T], max_events: int) -> list[_T]:
    events = found if isinstance(found, list) else list(islice(found, max_events + 1))
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
    return _decode_events.decode(body) if body.lstrip()[:1] == b"[" else [_decode_event.decode(body)]


def _json_careful(body: bytes, _: Limits) -> Iterable[Any]:
    value = _value(body, None)
    return value if isinstance(value, list) else [value]


def _ndjson_quick(body: bytes, _: Limits) -> Iterable[Event]:
    # Line by line: `decode_lines` would also take two events in one line, or one over two, and all before any count.
    return map(_decode_event.decode, BytesIO(body))


def _ndjson_careful(body: bytes, _: Limits) -> Iterator[Any]:
    lines = (line for line in BytesIO(body) if not line.isspace())
    return (_value(line, index) for index, line in enumerate(lines))


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


def _value(text: bytes, index: int | None) -> Any:
    """Decodes one JSON text; index: of the event that it is, None where it is the whole body.

    What the fast decoder refuses, the standard library's may still read: then `document` finds the lone surrogate or
    the endless number, and names the event and the field.
    """
    try:
        return _decode_any.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        refusal = str(error)
    try:
        return json.loads(text.decode(), parse_float=_raw, parse_int=_integer, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = _reason(error, refusal)
        if index is None:
            raise Rejected(422, "not_json", reason) from error
        raise Rejected(422, "not_json", f"event {index}: {reason}", (Fault(index, None, reason),)) from error


def _reason(error: Exception, refusal: str) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, json.JSONDecodeError):
        words, place = _told(error)
        return f"not JSON: {words} at byte {len(error.doc[:place].encode())}"
    return f"nested deeper than {event.MAX_DEPTH}" if isinstance(error, RecursionError) else f"{error}: {refusal}"


def _told(error: json.JSONDecodeError) -> tuple[str, int]:
    """Returns what is wrong and at which character, the same under every Python: where nothing follows a comma, those
    before 3.13 tell the place of the bracket, and that one the comma's."""
    place = error.pos + error.msg.startswith("Illegal trailing comma")
    while error.doc[place:place + 1] in _BLANKS:
        place += 1
    if error.doc[place:place + 1] in ("]", "}") and error.doc[:place].rstrip("".join(_BLANKS)).endswith(","):
        return "a comma with nothing after it", place
    return error.msg, error.pos


def _raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


def _integer(text: str) -> int | msgspec.Raw:
    return int(text) if len(text) < 4300 else _raw(text)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"not JSON: {text} is no JSON number")


_JSON = Form(_json_quick, _json_careful, True)
_NDJSON = Form(_ndjson_quick, _ndjson_careful, True)
FORMS = {
    "application/json": _JSON,
    "application/x-ndjson": _NDJSON,
    "application/ndjson": _NDJSON,
    "application/jsonl": _NDJSON,
    "text/plain": Form(_lines, _lines, False),
}
