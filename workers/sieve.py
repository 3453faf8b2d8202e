"""Finds what is at fault among many, by trying: large parts, and where one fails ever smaller parts of it."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

_LINE = re.compile(r"COPY \w+, line (\d+)")


class Refusal(NamedTuple):
    """Why a part was refused.

    Args:
        sqlstate: PostgreSQL's code, or the class of the driver's error where it sent none.
        detail: What it said.
        at: Which of the part it says is at fault, from 0; None where it does not say. A wrong one costs time alone.
    """

    sqlstate: str
    detail: str
    at: int | None = None


Attempt = Callable[[int, int], Refusal | None]


def refused(
    parts: Iterable[tuple[int, int]], attempt: Attempt, first: Refusal | None = None
) -> Iterator[tuple[int, Refusal]]:
    """Yields those that are refused on their own; all others have been taken, each once.

    With k at fault it takes about 3 k attempts where refusals say which, and 3 k log2(size of a part) where they do
    not, and one for each part.

    Args:
        parts: Ranges to begin with, one after the other: each from its first number up to its second.
        attempt: Takes such a range, all or none.
        first: Why the first part was refused, if that has been tried.
    """
    ranges = [*parts][::-1]
    while ranges:
        start, end = ranges.pop()
        refusal = first or (attempt(start, end) if start < end else None)
        first = None
        if refusal is None:
            continue
        if end - start == 1:
            yield start, refusal
            continue
        hint = refusal.at
        at = start + hint if hint is not None and hint < end - start else (start + end) // 2
        ranges += [(at + 1, end), (at, at + 1), (start, at)]


def line_at_fault(context: str | None) -> int | None:
    """Returns which line of a COPY its error is about, from 0, if its context says so; that is a hint, no contract."""
    found = _LINE.search(context or "")
    return int(found[1]) - 1 if found else None
