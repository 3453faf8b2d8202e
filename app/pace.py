"""Pace: how a request with a large body lets the others of its worker have their turn, and the heartbeat its own.

A second thread would not help: whoever decodes holds the interpreter's lock. So the work goes on in slices.
"""

import time

import gevent
from gevent.lock import BoundedSemaphore

from app.errors import NotDurable

_SLICE_S = 0.01
# Not 0: up to fifty such sleepers, or one of them fifty times, go on before gevent looks at sockets and timers again.
_NAP_S = 1e-9


class Pace:
    """Of one request.

    Args:
        turn: Of all large bodies of a worker. One at a time is looked at, as if there were no slices: what each of
            many has taken apart, and not yet put together, would be more than the memory has room for.
        patience_s: Longest that it waits for its turn: meanwhile it holds a connection, of which a worker has few.
    """

    def __init__(self, turn: BoundedSemaphore, patience_s: float) -> None:
        self._turn = turn
        self._patience_s = patience_s
        self._has_turn = False
        self._until = 0.0

    def pause(self) -> None:
        """Lets the others go on, where it is time; called between two slices, once the body is known to be large.

        Raises:
            NotDurable: It has not had its turn in time.
        """
        if not self._has_turn:
            if not self._turn.acquire(timeout=self._patience_s):
                raise NotDurable("inflight", f"{self._patience_s} s of large bodies are in flight; send it again")
            self._has_turn = True
        elif time.monotonic() < self._until:
            return
        else:
            gevent.sleep(_NAP_S)
        self._until = time.monotonic() + _SLICE_S

    def close(self) -> None:
        """Lets the next large body come."""
        if self._has_turn:
            self._turn.release()
            self._has_turn = False
