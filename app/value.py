"""JSON values as a client sent them: what no typed decoder takes, and what the quick one takes too long for."""

import json
from typing import Any

import msgspec

from app import event, slice
from app.errors import Fault, Rejected

_BLANKS = (" ", "\t", "\n", "\r")
_MAX_INTEGER_DIGITS = 300  # A longer one is kept digit by digit, as numbers that are no integers are.

_decode = msgspec.json.Decoder(float_hook=lambda text: _raw(text))


def read(text: bytes, index: int | None) -> Any:
    """Decodes one JSON text; index: of the event that it is, None where it is the whole body.

    What the fast decoder refuses, the standard library's may still read: then `document` finds the lone surrogate or
    the endless number, and names the event and the field.
    """
    refusal = "a long number"
    if not slice.has_long_number(text):
        try:
            return _decode.decode(text)
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
    return int(text) if len(text) <= _MAX_INTEGER_DIGITS else _raw(text)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"not JSON: {text} is no JSON number")
