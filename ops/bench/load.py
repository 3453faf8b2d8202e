"""The load: closed-loop, where each connection sends its next request once it has its answer, to find the top rate.

By `wrk` where the machine has it, or by our own generator, in this process. Both send precomputed bytes, one request at
a time a connection. Large requests are always our own's: it waits for the last answers, which wrk cuts off, and of
which there are few. What is refused ends the measurement: a rate with errors in it is none.
"""

import gc
import resource
import select
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import NamedTuple

from ops.bench import wrk
from ops.bench.client import Client, get, posts
from ops.errors import BenchFailed

_ANSWER_S = 60.0
_ACCEPTED = (200, 201, 202)
_LARGE_BYTES = 100_000


class Tally(NamedTuple):
    """What a load came to.

    Attributes:
        answers: Requests answered with a 2xx.
        seconds: From the first request to the last answer.
        cpu_s: Of the generator.
    """

    answers: int
    seconds: float
    cpu_s: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds


class Generator(NamedTuple):
    """Which generator makes closed-loop load."""

    name: str
    wrk: str | None = None

    def run(self, url: str, bodies: Sequence[bytes], connections: int, duration_s: int) -> Tally:
        """Posts bodies in turn, or where there are none gets `url`, for so long.

        Raises:
            BenchFailed: A request was refused or not answered.
        """
        if self.wrk and len(next(iter(bodies), b"")) < _LARGE_BYTES:
            before_s = _cpu_s(resource.RUSAGE_CHILDREN)
            found = wrk.run(self.wrk, url, bodies, connections, duration_s)
            return Tally(found.answers, found.seconds, _cpu_s(resource.RUSAGE_CHILDREN) - before_s)
        requests = posts(url, bodies) if bodies else [get(url)]
        before_s = _cpu_s(resource.RUSAGE_SELF)
        answers, seconds = closed(url, requests, connections, duration_s)
        return Tally(answers, seconds, _cpu_s(resource.RUSAGE_SELF) - before_s)


def generator(wanted: str) -> Generator:
    """Returns the generator of that name; for `auto`, wrk where there is one.

    Raises:
        BenchFailed: wrk is wanted and not there.
    """
    program = None if wanted == "own" else wrk.program()
    if wanted == "wrk" and not program:
        raise BenchFailed("there is no wrk on PATH; on Debian: apt-get install wrk")
    return Generator(f"{wrk.version(program)}, own from 100 kB a request on", program) if program else Generator("own")


def closed(url: str, requests: Sequence[bytes], connections: int, duration_s: float) -> tuple[int, float]:
    """Sends by our own generator; returns how many were answered, and in how many seconds."""
    with opened(url, connections) as (clients, poll), steady():
        stream = cycle(requests)
        started_at = time.monotonic()
        for client in clients.values():
            start(client, next(stream), poll)
        answers, waiting = 0, len(clients)
        while waiting:
            is_over = time.monotonic() - started_at >= duration_s
            for client in answered(clients, poll, _ANSWER_S):
                answers += 1
                if is_over:
                    waiting -= 1
                else:
                    start(client, next(stream), poll)
        return answers, time.monotonic() - started_at


@contextmanager
def opened(url: str, connections: int) -> Iterator[tuple[dict[int, Client], select.epoll]]:
    """Opens the connections, and what tells which of them have something to say."""
    clients: dict[int, Client] = {}
    with select.epoll() as poll:
        try:
            for _ in range(connections):
                client = Client(url)
                clients[client.number] = client
                poll.register(client.number, select.EPOLLIN)
            yield clients, poll
        finally:
            for client in clients.values():
                client.close()


def start(client: Client, request: bytes, poll: select.epoll) -> None:
    """Sends a request; what the socket does not take at once follows from `answered`."""
    if not client.send(request):
        poll.modify(client.number, select.EPOLLIN | select.EPOLLOUT)


def answered(clients: dict[int, Client], poll: select.epoll, timeout_s: float) -> Iterator[Client]:
    """Waits until something comes, and yields the connections whose request was taken with a 2xx.

    Raises:
        BenchFailed: One was refused, or nothing came for `_ANSWER_S`.
    """
    found = poll.poll(timeout_s)
    if not found and timeout_s >= _ANSWER_S:
        raise BenchFailed(f"no answer within {_ANSWER_S:.0f} s")
    for number, events in found:
        client = clients[number]
        if events & select.EPOLLOUT and client.resume():
            poll.modify(number, select.EPOLLIN)
        if events & ~select.EPOLLOUT and (status := client.status()):
            if status not in _ACCEPTED:
                raise BenchFailed(f"a request was answered with {status} while it was measured")
            yield client


@contextmanager
def steady() -> Iterator[None]:
    """Keeps the garbage collector from stopping the generator."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _cpu_s(whose: int) -> float:
    usage = resource.getrusage(whose)
    return usage.ru_utime + usage.ru_stime
