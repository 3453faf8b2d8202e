"""Parcel: what goes to a store as one batch, and the requests that wait for it. Small requests share one.

A lone event costs Redis, a consumer and the ledger nearly as much as a thousand that come as one batch: so small
requests that wait at the same time are merged. Their rows keep the ids that their requests are answered with.
"""

from collections.abc import Sequence

from app import metric
from app.batch import Batch, Series, is_canary, merged
from app.errors import NotDurable
from app.ticket import Ticket, wake

STREAM, WAL = "stream", "wal"
_ACCEPTED = {one: (metric.accepted_batches.labels(one), metric.accepted_events.labels(one)) for one in (STREAM, WAL)}

_MAX_EVENTS = 1000  # Each of them may be bad alone, and then costs the consumer a few tries: that has to end.
_MAX_BYTES = 1 << 18


class Parcel:
    """Starts empty.

    Args:
        series: Where the ids come from of requests that share it; None: it is for one alone.

    Attributes:
        tickets: Of the requests, in order; one whose batch is None goes alone.
        size: Bytes of payload.
    """

    __slots__ = ("tickets", "size", "_batch", "_count", "_minute", "_series")

    def __init__(self, series: Series | None) -> None:
        self.tickets: list[Ticket] = []
        self.size = 0
        self._batch: Batch | None = None
        self._count = 0
        self._minute = ""
        self._series = series

    def takes(self, batch: Batch) -> bool:
        """Tells whether the batch may be added: under the id that its series gave last, and small enough.

        Of a body that was read in slices later ids may be in already, and `parts` are in the order of the ids. The
        audit adds up by minutes, of which a parcel is in one; and it tells our own events from others'.
        """
        return (
            self._series is not None and self._series.gave_last(batch.batch_id)
            and (not self.tickets or self._count + batch.count <= _MAX_EVENTS
                 and self.size + len(batch.payload) <= _MAX_BYTES and batch.received_at[:16] == self._minute)
            and not is_canary(batch)
        )

    def add(self, ticket: Ticket) -> bool:
        """Adds a request; returns whether more can be added."""
        if batch := ticket.batch:
            self._count += batch.count
            self.size += len(batch.payload)
            self._minute = self._minute or batch.received_at[:16]
        self.tickets.append(ticket)
        return self._count < _MAX_EVENTS and self.size < _MAX_BYTES

    @property
    def batch(self) -> Batch | None:
        """What is to be stored, the same each time: ask once all are in."""
        if self._batch is None and self.tickets[0].batch:
            self._batch = merged([ticket.batch for ticket in self.tickets if ticket.batch])
        return self._batch


class Queue:
    """Parcels that wait, oldest first. The one that small requests share is open until it is full or taken."""

    def __init__(self) -> None:
        self._parcels: list[Parcel] = []
        self._series = Series()
        self._open = Parcel(self._series)

    def __len__(self) -> int:
        return len(self._parcels)

    def next_id(self) -> str:
        """Returns an id for a batch without a key: put before the next one is asked for, it may be merged."""
        if not self._open.tickets or self._series.count == Series.MAX:
            self._series = Series()  # A new one: its ids are to say when they were made.
            self._open = Parcel(self._series)
        return self._series.next_id()

    def put(self, ticket: Ticket) -> None:
        """Adds a request, to the open parcel if it may be there."""
        is_shared = ticket.batch is not None and self._open.takes(ticket.batch)
        parcel = self._open if is_shared else Parcel(None)
        if not parcel.tickets:
            self._parcels.append(parcel)
        if not parcel.add(ticket) and is_shared:
            self._open = Parcel(None)

    def add(self, parcels: Sequence[Parcel]) -> None:
        """Adds what was taken elsewhere."""
        self._parcels += parcels

    def take(self, max_bytes: int) -> list[Parcel]:
        """Takes parcels, oldest first, up to so many bytes, and at least one."""
        if not self._parcels:
            return []
        size, count = 0, 0
        for parcel in self._parcels:
            size += parcel.size
            if count and size > max_bytes:
                break
            count += 1
        taken, self._parcels = self._parcels[:count], self._parcels[count:]
        if self._open in taken:
            self._open = Parcel(None)
        return taken


def batches_of(group: Sequence[Parcel]) -> list[Batch]:
    """Returns what of a group is to be stored."""
    return [parcel.batch for parcel in group if parcel.batch]


def confirm(group: Sequence[Parcel], durability: str) -> None:
    """Answers the requests of a group with what made it durable, and counts them."""
    tickets = [ticket for parcel in group for ticket in parcel.tickets]
    for ticket in tickets:
        ticket.settle(durability)
    wake(tickets)
    if batches := batches_of(group):
        accepted_batches, accepted_events = _ACCEPTED[durability]
        metric.tally.add(accepted_batches, sum([1 for ticket in tickets if ticket.batch]))
        metric.tally.add(accepted_events, sum([batch.count for batch in batches]))
        metric.tally.add(metric.body_bytes, sum([ticket.sent_bytes for ticket in tickets]))


def fail(group: Sequence[Parcel], error: NotDurable) -> None:
    """Answers those requests of a group that are not answered yet with the error."""
    left = [ticket for parcel in group for ticket in parcel.tickets if not ticket.is_done]
    for ticket in left:
        ticket.settle("", error)
    wake(left)
