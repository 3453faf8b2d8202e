"""Ticket: one request's wait for the group that its batch goes with. A whole group is woken in one go of the hub."""

from collections.abc import Sequence

from gevent import get_hub, getcurrent

from app.batch import Batch


class Ticket:
    """What `gevent.event.AsyncResult` does, for one waiter, and for a fraction of its time.

    Args:
        batch: What waits; None: the question where a batch would go.
        sent_bytes: The body that it was made of, as sent.

    Attributes:
        is_done: There is an outcome.
    """

    __slots__ = ("batch", "sent_bytes", "is_done", "_outcome", "_error", "_waiter")

    def __init__(self, batch: Batch | None, sent_bytes: int) -> None:
        self.batch = batch
        self.sent_bytes = sent_bytes
        self.is_done = False
        self._outcome = ""
        self._error: Exception | None = None
        self._waiter: getcurrent | None = None

    def wait(self) -> str:
        """Returns the outcome once there is one; raises the error that it failed with."""
        self._waiter = getcurrent()
        try:
            while not self.is_done:
                get_hub().switch()
        finally:
            self._waiter = None  # Whoever leaves early, by an exception from outside, must not be woken elsewhere.
        if self._error:
            raise self._error
        return self._outcome

    def settle(self, outcome: str, error: Exception | None = None) -> None:
        """Sets the outcome, or the error; wakes nobody."""
        self.is_done, self._outcome, self._error = True, outcome, error

    def wake(self) -> None:
        """Goes on with the waiter; called by the hub."""
        if self._waiter:
            self._waiter.switch()


def wake(tickets: Sequence[Ticket]) -> None:
    """Lets the hub go on with all waiters, in order, when it comes by."""
    get_hub().loop.run_callback(_wake_each, tickets)


def _wake_each(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket.wake()
