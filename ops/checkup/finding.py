"""What one check has found: how it stands, what was seen, why that matters, and what to do about it."""

from typing import Literal

import msgspec

Level = Literal["ok", "warn", "bad", "unknown"]


class Finding(msgspec.Struct, frozen=True):
    """One line of the doctor's report.

    Attributes:
        check: What was looked at, e.g. `redis eviction`.
        level: `bad` where a promise is broken or nothing works, `warn` where it may come to that, `unknown` where
            nothing could be seen.
        seen: What was seen, with its values; never a password.
        why: What it leads to.
        remedy: The command or setting that mends it.
        is_away: Nothing could be seen because a server does not answer.
    """

    check: str
    level: Level
    seen: str
    why: str = ""
    remedy: str = ""
    is_away: bool = False


def ok(check: str, seen: str) -> Finding:
    """Returns that all is well."""
    return Finding(check, "ok", seen)


def warn(check: str, seen: str, why: str, remedy: str) -> Finding:
    """Returns what may go wrong."""
    return Finding(check, "warn", seen, why, remedy)


def bad(check: str, seen: str, why: str, remedy: str) -> Finding:
    """Returns what is wrong."""
    return Finding(check, "bad", seen, why, remedy)


def unknown(check: str, seen: str, why: str = "", remedy: str = "") -> Finding:
    """Returns what could not be seen."""
    return Finding(check, "unknown", seen, why, remedy)


def away(check: str, seen: str, remedy: str) -> Finding:
    """Returns that a server does not answer."""
    return Finding(check, "unknown", seen, remedy=remedy, is_away=True)


def size(count: float) -> str:
    """Returns a number of bytes as a person reads it."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            break
        count /= 1024
    else:
        unit = "TiB"
    return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.3g} {unit}"
