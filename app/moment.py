"""Points in time as the sink takes them. Client text never reaches `timestamptz` unless it was read here first."""

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from functools import lru_cache

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
END = datetime(2200, 1, 1, tzinfo=UTC)

_SECOND = re.compile(r"(?:19[7-9]|2[01]\d)\d-\d\d-\d\dT\d\d:\d\d:\d\d", re.ASCII)
_REST_OF_SECOND = re.compile(r"(?:\.\d{1,6})?Z", re.ASCII)
_RFC_3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,30}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_NUMBER = re.compile(r"\d{1,20}(?:\.\d{1,30})?(?:[eE]\+?\d\d?)?", re.ASCII)
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
# More than the patterns above let through: the usual 28 would round digits away, and a time up to the next second.
_DIGITS = 200
# An epoch's unit is told by its size: each bound is the year 5138 in the smaller unit and 1973 in the larger.
_UNITS = ((10**11, 10**6), (10**14, 10**3), (10**17, 1))


def from_ns(ns: int) -> str:
    """Returns nanoseconds since 1970 as RFC 3339 text in UTC, cut to microseconds."""
    seconds, rest = divmod(ns // 1000, 1_000_000)
    return f"{_second(seconds)}.{rest:06d}Z"


def now() -> str:
    """Returns the wall time in the form of `from_ns`."""
    return from_ns(time.time_ns())


class TooFine(ValueError):
    """A time with digits below the microsecond, which PostgreSQL cannot hold; `cut` is the text without them."""

    def __init__(self, cut: str) -> None:
        super().__init__("finer than a microsecond")
        self.cut = cut


def parse(value: str | int) -> str:
    """Returns a time as RFC 3339 text that PostgreSQL reads without loss.

    Args:
        value: RFC 3339 with an offset, or seconds, milliseconds, microseconds or nanoseconds since 1970; digits may
            come as text.

    Raises:
        TooFine: It would lose digits.
        ValueError: Not such a time, or not within 1970 to 2199; the message says what is allowed.
    """
    if type(value) is str and _is_second(value[:19]) and _REST_OF_SECOND.fullmatch(value, 19):
        return value  # The form that nearly every client sends; a batch's events share their seconds.
    exact = _micros(str(value))
    cell = from_ns(int(exact) * 1000)
    if exact != int(exact):
        raise TooFine(cell)
    return cell


def are_plain(values: Sequence[str | int]) -> bool:
    """Tells of the times of a batch, at least one, that `parse` would return each as it is, in a fraction of the time.

    May say no also where it would: they are looked at as one text, in which all have to have the form of the first.
    """
    first = values[0]
    if type(first) is not str or not _REST_OF_SECOND.fullmatch(first, 19):
        return False
    try:
        joined = "\n".join(values).encode()  # type: ignore[arg-type]
    except (TypeError, UnicodeEncodeError):
        return False
    form = first.encode().translate(_DIGITS_TO_ZERO)
    if joined.translate(_DIGITS_TO_ZERO) != b"\n".join([form] * len(values)):
        return False
    return all(map(_is_second, {value[:19] for value in values}))  # type: ignore[index]


def _micros(text: str) -> Decimal:
    with localcontext(prec=_DIGITS):
        exact = _epoch_micros(Decimal(text)) if _NUMBER.fullmatch(text) else _calendar_micros(text)
    if not 0 <= exact < (END - EPOCH) // timedelta(microseconds=1):
        raise ValueError(f"{text[:40]} is not a time from 1970 to 2199")
    return exact


def _epoch_micros(number: Decimal) -> Decimal:
    for bound, factor in _UNITS:
        if number < bound:
            return number * factor
    return number / 1000


def _calendar_micros(text: str) -> Decimal:
    match = _RFC_3339.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is neither RFC 3339 with its offset (2026-01-31T12:00:00.5Z) nor epoch digits")
    day, second, fraction, offset = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{second}{offset.upper()}")
    except ValueError as error:
        raise ValueError(f"{text[:40]!r} is not a time: {error}") from error
    return Decimal((moment - EPOCH) // timedelta(microseconds=1)) + Decimal(f"0.{fraction or 0}") * 1_000_000


@lru_cache(4096)
def _second(seconds: int) -> str:
    return (EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(4096)
def _is_second(text: str) -> bool:
    try:
        return _SECOND.fullmatch(text) is not None and datetime.fromisoformat(text) is not None
    except ValueError:
        return False
