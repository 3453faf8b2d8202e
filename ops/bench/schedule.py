"""The open-loop generator: requests are due by a clock, whether or not earlier ones were answered.

Latency counts from when a request was due, so that what waits behind a stalled server counts as slow, as it is for
the clients of a real load; a closed loop would send nothing meanwhile and not see it (coordinated omission).

Source: Gil Tene, "How NOT to Measure Latency"; https://github.com/giltene/wrk2.
"""

import math
import select
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from ops.bench import load
from ops.bench.client import Client
from ops.errors import BenchFailed

_LEAD_S = 0.01
_ANSWER_S = 60.0
_MAX_BURST = 32
# How often it looks. Woken for each request and each answer, it would take half a core from the server that it
# measures; what comes of looking later is within the latencies.
_TICK_S = 0.0003


class Timing(NamedTuple):
    """What the requests took.

    Attributes:
        latencies_s: From due to answered, of each request.
        late_s: From due to sent, of those for which a connection was free when they were due: the generator's own
            slowness, which is within the latencies. The others waited for the server.
        seconds: From the first due to the last answer.
        max_waiting: Most requests that were due and not answered.
    """

    latencies_s: list[float]
    late_s: list[float]
    seconds: float
    max_waiting: int


def run(url: str, requests: Sequence[bytes], rate: float, duration_s: float, connections: int) -> Timing:
    """Sends at a rate for so long; returns once everything is answered.

    Args:
        requests: Whole ones, sent in turn.
        rate: Requests a second, evenly spaced.
        connections: Most requests on their way at the same time; what is due beyond them waits, and that counts.

    Raises:
        BenchFailed: A request was refused, or not answered within a minute.
    """
    with load.opened(url, connections) as (clients, poll), load.steady():
        return _Run(requests, rate, int(rate * duration_s), clients, poll).go()


class _Run:
    def __init__(self, requests: Sequence[bytes], rate: float, count: int, clients: dict[int, Client],
                 poll: select.epoll) -> None:
        self._requests = requests
        self._rate = rate
        self._count = count
        self._clients = clients
        self._poll = poll
        self._free = deque(clients.values())  # in turn, so that none is idle until the server ends it
        self._due_at: dict[int, float] = {}
        self._sent = 0
        self._held_count = 0  # requests before this one were due when no connection was free
        self._timing = Timing([], [], 0.0, 0)

    def go(self) -> Timing:
        """Sends and receives until all is answered."""
        self._started_at = self._answered_at = time.monotonic() + _LEAD_S
        max_waiting = 0
        while len(self._timing.latencies_s) < self._count:
            due_count = min(self._count, 1 + math.floor((time.monotonic() - self._started_at) * self._rate))
            max_waiting = max(max_waiting, due_count - len(self._timing.latencies_s))
            self._send(due_count)
            self._receive()
        return self._timing._replace(seconds=time.monotonic() - self._started_at, max_waiting=max_waiting)

    def _send(self, due_count: int) -> None:
        for _ in range(min(_MAX_BURST, due_count - self._sent)):
            if not self._free:
                self._held_count = due_count
                return
            client = self._free.popleft()
            due_at = self._started_at + self._sent / self._rate
            self._due_at[client.number] = due_at
            load.start(client, self._requests[self._sent % len(self._requests)], self._poll)
            if self._sent >= self._held_count:
                self._timing.late_s.append(time.monotonic() - due_at)
            self._sent += 1

    def _receive(self) -> None:
        time.sleep(_TICK_S)
        now = time.monotonic()
        for client in load.answered(self._clients, self._poll, 0):
            self._answered_at = time.monotonic()
            self._timing.latencies_s.append(self._answered_at - self._due_at.pop(client.number))
            self._free.append(client)
        if self._due_at and now > self._answered_at + _ANSWER_S:
            raise BenchFailed(f"no answer within {_ANSWER_S:.0f} s")
