"""The forms that a body may have, each turned into one Batch: JSON, NDJSON, and plain text, one event a line.

The quick way decodes and encodes a whole body at once. Where it balks, for whatever reason, the careful way reads the
same body again, event by event, and either takes it or says what is wrong, where, and what is allowed.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from app import document, event, moment
from app.batch import Batch
from app.errors import Fault, Rejected
from app.event import Defaults, Event

_decode_event = msgspec.json.Decoder(Event, float_hook=document.number)
_decode_events = msgspec.json.Decoder(list[Event], float_hook=document.number)
_decode_any = msgspec.json.Decoder(float_hook=lambda text: _raw(text))


class Form(NamedTuple):
    """How one media type is read: `quick` may raise anything that `msgspec` does, `careful` only `Rejected`."""

    quick: Callable[[bytes], Sequence[Event]]
    careful: Callable[[bytes], Iterable[Any]]


class Limits(NamedTuple):
    """What one request may hold: events, and bytes of one event."""

    max_events: int
    max_event_bytes: int


def to_batch(
    form: Form, body: bytes, defaults: Defaults, batch_id: str, now_ns: int, limits: Limits
) -> Batch:
    """Returns the request as a Batch.

    Args:
        form: One of `FORMS`.
        body: Decompressed.
        defaults: Pairs of field and value for events without that field.
        batch_id: UUID text.
        now_ns: When it was received, ns since 1970.

    Raises:
        Rejected: It can never be taken as it is.
    """
    if not body:
        raise Rejected(422, "empty", "the body is empty; at least one event is needed")
    received_at = moment.from_ns(now_ns)
    prefix = f"{received_at}\t{batch_id}\t"
    count, payload = _encoded(form, body, defaults, prefix, received_at, limits)
    digest = hashlib.sha256(body)
    for field, value in defaults:
        digest.update(f"\0{field}={value}".encode())
    return Batch(batch_id, count, digest.hexdigest(), received_at, payload)


def _encoded(
    form: Form, body: bytes, defaults: Defaults, prefix: str, received_at: str, limits: Limits
) -> tuple[int, bytes]:
    texts = "".join(str(value) for _, value in defaults).encode()
    if not event.has_stand_in(body) and not event.has_stand_in(texts):
        try:
            events = form.quick(body)
            _check_count(len(events), limits.max_events)
            for one in events if defaults else ():
                one.set_defaults(defaults)
            return len(events), event.encode(events, prefix, received_at, limits.max_event_bytes)
        except (msgspec.MsgspecError, event.Suspect, ValueError, RecursionError):
            pass  # The careful way tells what it is, and whether it is wrong at all.
    documents = list(form.careful(body))
    _check_count(len(documents), limits.max_events)
    try:
        events = document.read(documents, defaults, limits.max_event_bytes)
    except document.Faulty as error:
        raise Rejected(422, "bad_event", str(error), error.faults) from error
    return len(events), event.encode_carefully(events, prefix, received_at)


def _check_count(count: int, max_events: int) -> None:
    if not count:
        raise Rejected(422, "empty", "the body holds no event; at least one is needed")
    if count > max_events:
        raise Rejected(413, "too_many_events", f"{count} events; a request has at most {max_events}")


def _json_quick(body: bytes) -> Sequence[Event]:
    return _decode_events.decode(body) if body.lstrip()[:1] == b"[" else [_decode_event.decode(body)]


def _json_careful(body: bytes) -> Iterable[Any]:
    value = _value(body, None)
    return value if isinstance(value, list) else [value]


def _ndjson_careful(body: bytes) -> Iterable[Any]:
    lines = (line for line in body.split(b"\n") if line.strip())
    return [_value(line, index) for index, line in enumerate(lines)]


def _lines(body: bytes) -> Sequence[Event]:
    lines = (line.removesuffix(b"\r") for line in body.split(b"\n"))
    return [Event(line.decode(errors="backslashreplace")) for line in lines if line]


def _value(text: bytes, index: int | None) -> Any:
    """Decodes one JSON text; index: of the event that it is, None where it is the whole body.

    What the fast decoder refuses, the standard library's may still read: then `document` finds the lone surrogate or
    the endless number, and names the event and the field.
    """
    try:
        return _decode_any.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    try:
        return json.loads(text.decode(), parse_float=_raw, parse_int=_integer, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = _reason(error)
        if index is None:
            raise Rejected(422, "not_json", reason) from error
        raise Rejected(422, "not_json", f"event {index}: {reason}", (Fault(index, None, reason),)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at byte {len(error.doc[:error.pos].encode())}"
    return f"nested deeper than {event.MAX_DEPTH}" if isinstance(error, RecursionError) else str(error)


def _raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


def _integer(text: str) -> int | msgspec.Raw:
    return int(text) if len(text) < 1000 else _raw(text)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"not JSON: {text} is no JSON number")


_JSON = Form(_json_quick, _json_careful)
_NDJSON = Form(_decode_event.decode_lines, _ndjson_careful)
FORMS = {
    "application/json": _JSON,
    "application/x-ndjson": _NDJSON,
    "application/ndjson": _NDJSON,
    "application/jsonl": _NDJSON,
    "text/plain": Form(_lines, _lines),
}
