"""Tally: what requests and groups count, added up in memory and handed to prometheus_client ten times a second.

Each addition to its shared file takes a lock, a system call and two packed numbers: one by one they would cost more
than to read the request. A SIGKILL loses a tenth of a second of it; what was stored is counted by the stores.
"""

import atexit
import logging
from bisect import bisect_left
from collections import Counter as Counts
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import gevent
from prometheus_client import Counter, Histogram

from app import log

logger = logging.getLogger(__name__)

_EVERY_S = 0.1


class BulkHistogram(Histogram):
    """A histogram that takes many observations at once."""

    def observe_all(self, amounts: Sequence[float]) -> None:
        """Does what `observe` does, for each."""
        indexes = Counts(bisect_left(self._upper_bounds, amount) for amount in amounts)
        for index, count in indexes.items():
            self._buckets[index].inc(count)
        self._sum.inc(sum(amounts))


class Tally:
    """Additions to counters, and observations, that are not handed over yet."""

    def __init__(self) -> None:
        self._added: defaultdict[Counter, float] = defaultdict(float)
        self._observed: defaultdict[BulkHistogram, list[float]] = defaultdict(list)
        self._is_failing = False

    def start(self) -> None:
        """Hands over from now on, and for the last time when the process ends in order."""
        gevent.spawn(self._run)
        atexit.register(self.flush)

    def add(self, counter: Counter, amount: float = 1) -> None:
        """Does what `inc` of the counter does: of one without labels, or with all of them given."""
        self._added[counter] += amount

    def observe(self, histogram: BulkHistogram, amount: float) -> None:
        """Does what `observe` of the histogram does."""
        self._observed[histogram].append(amount)

    def flush(self) -> None:
        """Hands over what was added up. What cannot be, say for a full disk, is given up: to keep it would take
        memory without end, and to stop here would let all metrics stand still.
        """
        added, self._added = self._added, defaultdict(float)
        observed, self._observed = self._observed, defaultdict(list)
        gifts = [partial(counter.inc, amount) for counter, amount in added.items()]
        gifts += [partial(histogram.observe_all, amounts) for histogram, amounts in observed.items()]
        if not gifts:
            return
        errors = [error for give in gifts if (error := _failure(give))]
        if errors and not self._is_failing:
            logger.error(log.line("metrics_not_written", metrics=len(errors), error=repr(errors[0])))
        elif self._is_failing and not errors:
            logger.warning(log.line("metrics_written_again"))
        self._is_failing = bool(errors)

    def _run(self) -> None:
        while True:
            gevent.sleep(_EVERY_S)
            self.flush()


def _failure(give: Callable[[], None]) -> Exception | None:
    try:
        give()
    except Exception as error:
        return error
    return None
