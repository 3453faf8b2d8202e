"""Documents: JSON objects as clients send them, brought into the form of an Event, or refused with every fault named.

The careful way for what the typed decoder does not take: other spellings, unknown fields, nulls, and events at fault.
Nothing that a client sent is dropped: what has no field of its own becomes an attribute.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from app import moment, severity
from app.errors import Fault
from app.event import MAX_DEPTH, NULL, Defaults, Event

MAX_FAULTS = 20
_MAX_EXPONENT = 324  # The smallest double is 5e-324.
_MAX_DIGITS = 4300  # What Python's own reader of integers takes, msgspec's and later readers' of the row too.
_MAX_UNDERSCORES = 16

_SPELLINGS = {
    "message": ("message", "msg", "log", "body"),
    "timestamp": ("timestamp", "ts", "time", "@timestamp"),
    "level": ("level", "severity", "lvl"),
    "service": ("service", "app", "service.name"),
    "host": ("host", "hostname"),
    "trace_id": ("trace_id",),
    "span_id": ("span_id",),
}
_TEXTS = ("message", "service", "host", "trace_id", "span_id")
_JSON = msgspec.json.Encoder()


class Faulty(Exception):
    """Events that cannot be stored; `faults` holds the first `MAX_FAULTS`."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("events at fault: nothing of the request was stored")
        self.faults = tuple(faults)


class _Wrong(Exception):
    """One event at fault: the field (None: the event) and the reason."""

    def __init__(self, field: str | None, reason: str) -> None:
        super().__init__(reason)
        self.field = field


def number(text: str) -> msgspec.Raw:
    """Keeps a JSON number that is not an integer digit by digit; a hook for decoders.

    Raises:
        ValueError: More than jsonb, or what later reads it, can take.
    """
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > _MAX_DIGITS or len(exponent) > 20 or abs(int(exponent or 0)) > _MAX_EXPONENT:
        raise ValueError(f"number {text[:20]} has over {_MAX_DIGITS} digits or an exponent beyond {_MAX_EXPONENT}")
    return msgspec.Raw(text.encode())


def read(
    documents: Iterable[Any], defaults: Defaults, max_event_bytes: int, pause: Callable[[], None] | None = None
) -> list[Event]:
    """Returns the documents as events that `event.encode_carefully` takes.

    Args:
        documents: Decoded JSON values (with `number` as the hook), or Events from another form.
        defaults: Pairs of field and value for events without that field.
        max_event_bytes: Longest event, the UTF-8 of its fields.
        pause: Called between two events.

    Raises:
        Faulty: At least one cannot be stored.
    """
    events, faults = [], []
    for index, document in enumerate(documents):
        if pause:
            pause()
        try:
            event = document if isinstance(document, Event) else _event_of(document)
            event.set_defaults(defaults)
            _check(event, max_event_bytes)
            events.append(event)
        except _Wrong as wrong:
            faults.append(Fault(index, wrong.field, str(wrong)))
            if len(faults) == MAX_FAULTS:
                break
    if faults:
        raise Faulty(faults)
    return events


def _event_of(document: Any) -> Event:
    if not isinstance(document, dict):
        raise _Wrong(None, f"an event is a JSON object, not {_kind(document)}")
    rest = dict(document)
    found = {field: _taken(rest, spellings) for field, spellings in _SPELLINGS.items()}
    message = found.pop("message")
    if message is None:
        raise _Wrong("message", f"required: text under one of {', '.join(_SPELLINGS['message'])}")
    attributes = rest.pop("attributes", None)
    if not isinstance(attributes, dict | None):
        raise _Wrong("attributes", f"an object is allowed, not {_kind(attributes)}")
    event = Event(message, **{field: value for field, value in found.items() if value is not None})
    event.attributes = _merged(attributes or {}, rest)
    _check_kinds(event)
    return event


def _taken(rest: dict[str, Any], spellings: Sequence[str]) -> Any:
    """Takes the first spelling that has a value out of `rest`; the others stay and become attributes."""
    for spelling in spellings:
        if rest.get(spelling) is not None:
            return rest.pop(spelling)
    rest.pop(spellings[0], None)
    return None


def _merged(attributes: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """Adds the unknown fields to the attributes; one whose name is taken gets `_` before it until it is free.

    Not for ever: of 3,000 such names in each of the two, this would be nine million tries.
    """
    for name, value in rest.items():
        free = (alias for count in range(_MAX_UNDERSCORES + 1) if (alias := "_" * count + name) not in attributes)
        unused = next(free, None)
        if unused is None:
            raise _Wrong("attributes", f"a field's name is taken there, with 1 to {_MAX_UNDERSCORES} `_` before it too")
        attributes[unused] = value
    return attributes


def _check_kinds(event: Event) -> None:
    for field in _TEXTS:
        if not isinstance(getattr(event, field), str):
            raise _Wrong(field, f"text is allowed, not {_kind(getattr(event, field))}")
    if isinstance(event.timestamp, msgspec.Raw):
        event.timestamp = bytes(event.timestamp).decode()
    for field in ("timestamp", "level"):
        value = getattr(event, field)
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise _Wrong(field, f"text or an integer is allowed, not {_kind(value)}")


def _check(event: Event, max_event_bytes: int) -> None:
    _check_time(event)
    try:
        if event.level is not NULL:
            severity.read(event.level)
    except ValueError as error:
        raise _Wrong("level", str(error)) from error
    size = sum(_checked_bytes(field, str(getattr(event, field))) for field in (*_TEXTS, "level"))
    _check_value(event.attributes, 2)
    size += len(_JSON.encode(event.attributes)) if event.attributes else 0
    if size > max_event_bytes:
        raise _Wrong(None, f"{size} bytes; an event has at most {max_event_bytes}")


def _checked_bytes(field: str, text: str) -> int:
    """Returns a text's length in UTF-8, 0 for one that was not sent."""
    if "\0" in text:
        raise _Wrong(field, "NUL (U+0000) cannot be stored")
    try:
        return 0 if text is NULL else len(text.encode())
    except UnicodeEncodeError as error:
        raise _Wrong(field, "a lone surrogate (\\ud800 to \\udfff without its other half) is no character") from error


def _check_time(event: Event) -> None:
    if event.timestamp is NULL:
        return
    try:
        moment.parse(event.timestamp)
    except moment.TooFine as error:
        event.attributes = _merged(event.attributes, {"timestamp": event.timestamp})
        event.timestamp = error.cut
    except ValueError as error:
        raise _Wrong("timestamp", str(error)) from error


def _check_value(value: Any, depth: int) -> None:
    if isinstance(value, str):
        _checked_bytes("attributes", value)
    elif isinstance(value, msgspec.Raw):
        _check_number(value)
    elif isinstance(value, dict | list):
        if depth > MAX_DEPTH:
            raise _Wrong("attributes", f"nested deeper than {MAX_DEPTH}, the event itself counted")
        for name in value if isinstance(value, dict) else ():
            _checked_bytes("attributes", name)
        for item in value.values() if isinstance(value, dict) else value:
            _check_value(item, depth + 1)


def _check_number(value: msgspec.Raw) -> None:
    try:
        number(bytes(value).decode())
    except ValueError as error:
        raise _Wrong("attributes", str(error)) from error


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "a number", msgspec.Raw: "a number", list: "an array",
             dict: "an object", type(None): "null"}
    return names[type(value)]
