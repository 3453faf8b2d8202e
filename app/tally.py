"""Tally: what every request counts, added up in memory and handed to prometheus_client ten times a second.

Each addition to its shared file takes a lock, a system call and two packed numbers: one by one they would cost more
than to read the request. A SIGKILL loses a tenth of a second of it; what was stored is counted by the stores.
"""

import atexit
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Sequence

import gevent
from prometheus_client import Counter, Histogram

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
    """Requests by status, and how long they took.

    Args:
        requests: By label `status`.
        seconds: Of each request.
    """

    def __init__(self, requests: Counter, seconds: BulkHistogram) -> None:
        self._requests = requests
        self._seconds = seconds
        self._statuses: Counts[int | str] = Counts()
        self._durations: list[float] = []

    def start(self) -> None:
        """Hands over from now on, and for the last time when the process ends in order."""
        gevent.spawn(self._run)
        atexit.register(self.flush)

    def count(self, status: int | str) -> None:
        """Counts an answer by its status: the code, or a status line."""
        self._statuses[status] += 1

    def observe(self, seconds: float) -> None:
        """Notes how long a request took."""
        self._durations.append(seconds)

    def flush(self) -> None:
        """Hands over what was added up."""
        statuses, self._statuses = self._statuses, Counts()
        durations, self._durations = self._durations, []
        for status, count in statuses.items():
            self._requests.labels(str(status)[:3]).inc(count)
        if durations:
            self._seconds.observe_all(durations)

    def _run(self) -> None:
        while True:
            gevent.sleep(_EVERY_S)
            self.flush()
