"""The filter: which dead letters an operator means, and how that is written, on a command line or in a request."""

import re
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from uuid import UUID

import msgspec

from app import dead_letter, moment
from app.dead_letter import REASONS, DeadLetter

_LETTER_ID = re.compile(r"\d{1,19}-\d{1,19}", re.ASCII)
_DURATION = re.compile(r"(\d{1,9})([smhd])", re.ASCII)
_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which letters are meant: those for which all that is given holds.

    Args:
        reason: One of `dead_letter.REASONS`; None: any.
        service: That of at least one of its events; None: any.
        batch_id: Of its batch, or of a request that it holds; None: any.
        since_ms: Letters made at or after that point of Redis's clock.
        letter_ids: Letters by name; empty: all.
    """

    reason: str | None = None
    service: str | None = None
    batch_id: str | None = None
    since_ms: int = 0
    letter_ids: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it lets every letter pass."""
        return self == Filter()

    @property
    def names_conflicts(self) -> bool:
        """Whether letters of a used idempotency key are meant by name, and not just among others."""
        return self.reason == dead_letter.CONFLICT or bool(self.letter_ids)

    def matches(self, letter: DeadLetter) -> bool:
        """Tells whether the letter is meant."""
        return (
            self.reason in (None, letter.death.reason)
            and dead_letter.place_of(letter.letter_id)[0] >= self.since_ms
            and (not self.letter_ids or letter.letter_id in self.letter_ids)
            and (self.batch_id is None or letter.has_batch(self.batch_id))
            and (self.service is None or letter.has_service(self.service))
        )


def read(
    reason: str | None, service: str | None, batch: str | None, since: str | None, letter_ids: Iterable[str],
    now_ms: Callable[[], int],
) -> Filter:
    """Returns the filter that an operator has written; None and no ids stand for what was not given.

    Args:
        since: RFC 3339, or a duration before now: digits and `s`, `m`, `h` or `d`.
        now_ms: Redis's clock.

    Raises:
        ValueError: One of them is not allowed; the message says which and what is.
    """
    if reason is not None and reason not in REASONS:
        raise ValueError(f"reason {reason[:80]!r} is not one of {', '.join(REASONS)}")
    return Filter(
        reason=reason,
        service=service,
        batch_id=None if batch is None else _batch_id(batch),
        since_ms=0 if since is None else read_since_ms(since, now_ms),
        letter_ids=tuple(dict.fromkeys(map(read_id, letter_ids))),
    )


def read_id(text: str) -> str:
    """Returns the id of a letter as Redis writes it. Raises ValueError where it is none."""
    if not _LETTER_ID.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not the id of a letter, which looks like 1700000000000-0")
    return "{}-{}".format(*dead_letter.place_of(text))


def _batch_id(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError as error:
        raise ValueError(f"batch {text[:80]!r} is not a UUID") from error


def read_since_ms(text: str, now_ms: Callable[[], int]) -> int:
    """Returns the point of time that `since` says, ms since 1970. Raises ValueError where it is none."""
    if duration := _DURATION.fullmatch(text):
        return max(0, now_ms() - int(duration[1]) * _UNITS_MS[duration[2]])
    try:
        if text[4:5] != "-":  # bare digits would be read as an epoch: 90 is more likely a duration
            raise ValueError("neither RFC 3339 (2026-01-31T12:00:00Z) nor a duration (90s, 15m, 2h, 3d)")
        return (datetime.fromisoformat(moment.parse(text)) - moment.EPOCH) // timedelta(milliseconds=1)
    except ValueError as error:
        raise ValueError(f"since {text[:40]!r}: {error}") from error
