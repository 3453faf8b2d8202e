"""The takeover: a consumer makes its own what others, which have gone or let go, have left pending in the group."""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from app import log
from app.batch import FORMAT
from workers import metric, script
from workers.entry import FORMAT_PREFIX, SET_ASIDE

logger = logging.getLogger(__name__)

_ASIDE = SET_ASIDE.encode()


def take_over(run: Callable[..., Any], idle_ms: int, most: int, at_a_time: int) -> None:
    """Takes over, in parts, until there are as many entries as are loaded at once, and counts and says so.

    Args:
        run: Runs a script of `workers.script` with its arguments.
        idle_ms: For how long an entry has to have been left alone.
        most: Entries to take, give or take a part.
        at_a_time: Entries that a call looks at: Redis answers nobody meanwhile.

    Raises:
        StreamUnavailable, StreamLost: What was taken over is pending here, and read next.
    """
    start, room, victims = "-", most, Counter[bytes]()
    while start and room > 0:
        count = min(at_a_time, room)
        taken, lost, removed, last, aside_count, strange_count = run(
            script.TAKE_OVER, idle_ms, start, count, SET_ASIDE, FORMAT_PREFIX, f"{FORMAT_PREFIX}{FORMAT}",
            victims[_ASIDE],
        )
        start, room = f"({last.decode()}" if last else "", room - len(taken)
        victims.update(victim for _, victim in taken)
        if lost:
            note_lost(lost)
        for name in removed:
            logger.info(log.line("consumer_removed", name=name.decode(), why="idle and without entries"))
        if not last:
            metric.set_aside_entries.set(aside_count + victims[_ASIDE])
            metric.strange_entries.set(strange_count)
    del victims[_ASIDE]
    for victim, claimed in victims.items():
        metric.claimed_entries.inc(claimed)
        logger.warning(log.line("entries_claimed", count=claimed, from_consumer=victim.decode(), idle_s=idle_ms / 1000))


def note_lost(count: int) -> None:
    """Counts and says that entries were deleted before they were loaded."""
    metric.lost_entries.inc(count)
    logger.critical(log.line("entries_lost", count=count, why="deleted while they were pending"))
