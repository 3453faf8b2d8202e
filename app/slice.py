"""Slices: what of a large body is decoded or encoded at a time, so that others get their turn in between.

A body within `LARGE_BYTES` is one slice, and pays nothing for any of this.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import msgspec

_T = TypeVar("_T")

Pause = Callable[[], None]

LARGE_BYTES = 1 << 19
_BYTES = 1 << 18
_EVENTS = 8  # of those that are decoded one by one, each of which may be as long as an event may be
_MAX_ENCODED = 1000

# Python's integers take the square of their digits to be read, and again to be written: one of 4,200 digits as long as
# a hundred events. Seen from afar: every run of so many digits has six in a row of those that are looked at.
_LONG_DIGITS, _STRIDE = 384, 64
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_SEEN, _LONG = b"0" * (_LONG_DIGITS // _STRIDE), b"0" * _LONG_DIGITS

_split = msgspec.json.Decoder(list[msgspec.Raw])


def has_long_number(text: bytes) -> bool:
    """Tells whether there are `_LONG_DIGITS` digits in a row, in a number or in a string."""
    if text[::_STRIDE].translate(_DIGITS_TO_ZERO).find(_SEEN) < 0:
        return False
    return text.translate(_DIGITS_TO_ZERO).find(_LONG) >= 0


def elements(body: bytes) -> list[msgspec.Raw]:
    """Returns the elements of a JSON array as they stand there; takes a twentieth of the time to decode them.

    Raises:
        msgspec.MsgspecError: It is none, or malformed. What is within strings, nobody has looked at.
    """
    return _split.decode(body)


def arrays(body: bytes) -> Iterator[bytes]:
    """Yields the elements of a JSON array in arrays of some `_BYTES`, or of one element that is longer."""
    held: list[msgspec.Raw] = []
    size = 0
    for element in elements(body):
        held.append(element)
        size += len(memoryview(element))
        if size >= _BYTES:
            yield b"[%b]" % b",".join(held)
            held, size = [], 0
    if held:
        yield b"[%b]" % b",".join(held)


def taken(found: Iterator[_T], max_count: int, pause: Pause) -> list[_T]:
    """Returns the first `max_count`, some at a time."""
    events: list[_T] = []
    while some := list(islice(found, min(_EVENTS, max_count - len(events)))):
        events += some
        pause()
    return events


def encoded(encode: Callable[[Sequence[_T], int], bytes], events: Sequence[_T], body_bytes: int, pause: Pause) -> bytes:
    """Returns the rows of all events, of some at a time.

    Args:
        encode: Takes events, and the first one's place.
        events: Of the body.
        body_bytes: Its size.
        pause: Called between two slices.
    """
    step = max(1, min(_MAX_ENCODED, len(events) * _BYTES // body_bytes))
    pieces = []
    for start in range(0, len(events), step):
        pieces.append(encode(events[start:start + step], start))
        pause()
    return b"".join(pieces)
