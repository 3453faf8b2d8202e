"""An outage as one consumer sees it: how often it has tried, how long it waits, and when its patience ends.

Lines are logged for every attempt at first, and then about once a minute.
"""

import logging
import random
from collections.abc import Callable
from typing import NamedTuple

from app import log, stream
from app.errors import StreamUnavailable
from app.moment import now
from workers import metric
from workers.errors import Locked, Misconfigured, Unavailable

logger = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.1
_HELD_DELAY_S = 60.0
_FIRST_LINES = 20
_LINE_EVERY = 12


class Policy(NamedTuple):
    """What is done about loads that PostgreSQL does not confirm.

    Args:
        retries: How often one is tried again.
        is_holding: Then it is tried for ever, and not buried.
        max_bytes: From so much in the dead letters on it is held all the same: they stay until somebody replays them,
            and their memory would be lacking for what is to be loaded.
    """

    retries: int
    is_holding: bool
    max_bytes: int


class Outage:
    """None, until an attempt fails.

    Args:
        policy: When patience ends.
        longest_delay_s: Longest wait between two attempts.

    Attributes:
        failures: Loads that PostgreSQL did not confirm, without one that it did.
        since: When the first of them failed, RFC 3339.
    """

    def __init__(self, policy: Policy, longest_delay_s: float) -> None:
        self._policy = policy
        self._longest_delay_s = longest_delay_s
        self._attempt = 0
        self._buried = 0
        self._is_full = False
        self.failures = 0
        self.since = ""

    def has_exhausted(self, error: Unavailable, dead_letter_bytes: Callable[[], int]) -> bool:
        """Counts a failed load, and tells whether it is to be buried: once one is, all that follow are.

        A wait for a lock does not count, nor what an operator has to mend or what is to be tried in smaller parts.

        Args:
            error: Why it failed.
            dead_letter_bytes: Asks for the memory of the dead letters; what it raises goes through.
        """
        self.since = self.since or now()
        if isinstance(error, Locked | Misconfigured) or error.is_doubtful:
            return False
        self.failures += 1
        return self.may_bury(self.failures, dead_letter_bytes)

    def may_bury(self, failures: int, dead_letter_bytes: Callable[[], int]) -> bool:
        """Tells whether what has failed so often is to be buried. The arguments are those of `has_exhausted`."""
        if self._policy.is_holding or failures <= self._policy.retries:
            return False
        is_full = (size := dead_letter_bytes()) >= self._policy.max_bytes
        if is_full and not self._is_full:
            logger.error(log.line("dead_letters_full", bytes=size, max_bytes=self._policy.max_bytes,
                                  until="PostgreSQL is back, or letters are purged; loads are held"))
        self._is_full = is_full
        return not is_full

    def note_refused(self, batch_id: str, error: Unavailable, refusals: int) -> None:
        """Says of a batch that PostgreSQL refuses alone while it takes others, at first and when its retries end."""
        if refusals in (1, self._policy.retries + 1):
            event = "batch_held" if refusals > self._policy.retries else "batch_set_aside"
            logger.error(log.line(event, batch=batch_id, refusals=refusals, cause=error.cause, detail=error.detail))

    def refused_delay(self, refusals: int) -> float:
        """Returns how long such a batch is left alone before it is tried again, in seconds."""
        return self._longest_delay_s if refusals <= self._policy.retries else _HELD_DELAY_S

    def note_buried(self, count: int) -> None:
        """Says once that loads go to the dead letters."""
        if not self._buried:
            logger.error(log.line("moving_to_dead_letters", stream=stream.DEAD_LETTERS, failed_attempts=self.failures,
                                  batches=count, until="PostgreSQL is back; each further load is tried once"))
        self._buried += count

    def delay(self, error: Unavailable | StreamUnavailable) -> float:
        """Counts a failed round, and returns how long to wait before the next, in seconds."""
        server = "postgres" if isinstance(error, Unavailable) else "redis"
        metric.failed_steps.labels(server).inc()
        is_smaller_next = isinstance(error, Unavailable) and error.is_doubtful
        exponent = 0 if is_smaller_next else min(self._attempt, 10)
        delay_s = min(self._longest_delay_s, _FIRST_DELAY_S * (1 << exponent)) * random.uniform(0.5, 1)
        self._attempt += 1
        if self._attempt <= _FIRST_LINES or self._attempt % _LINE_EVERY == 0:
            self._say(server, error, delay_s)
        return delay_s

    def _say(self, server: str, error: Unavailable | StreamUnavailable, delay_s: float) -> None:
        facts = {"attempt": self._attempt, "cause": error.cause, "next_try_s": f"{delay_s:.2f}", "detail": error}
        if isinstance(error, Misconfigured):
            logger.error(log.line("load_held", **facts, until="an operator mends it"))
        elif isinstance(error, Locked):
            logger.warning(log.line("load_failed", **facts, until="the lock is free"))
        elif server == "redis":
            logger.warning(log.line("redis_unavailable", **facts))
        else:
            policy = "hold" if self._policy.is_holding else "dead-letter"
            logger.warning(log.line("load_failed", **facts, retries=self._policy.retries, policy=policy))

    def end(self) -> None:
        """Says so, if there was one."""
        if self._attempt or self._buried:
            logger.warning(log.line("servers_available", failed_attempts=self._attempt, buried_batches=self._buried))
        self._attempt = self._buried = self.failures = 0
        self._is_full = False
        self.since = ""
