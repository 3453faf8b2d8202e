"""Entries on probation: what fails alone, while PostgreSQL takes others, is tried alone now and then, and holds nobody.

An entry is on it once it is under the name `SET_ASIDE` in the group; how often it was refused stands in its deliveries
(`workers/entry.py`), for whoever takes it over. So is what consumers seem to die of, in its own count.
"""

import time
from collections.abc import Callable, Sequence

from app import dead_letter
from workers.entry import SET_ASIDE, Entry
from workers.errors import Locked, Misconfigured, Poison, Unavailable
from workers.inbox import Inbox
from workers.load_size import LoadSize
from workers.loader import Loader
from workers.outage import Outage
from workers.settlement import Settlement
from workers.sieve import Refusal

_MAX_DEATHS_ALONE = 2  # after two in company
_REST = 2  # times as long as a try took, others are loaded before the next one


class Probation:
    """As one consumer sees to it; its arguments are the consumer's."""

    def __init__(
        self, inbox: Inbox, loader: Loader, outage: Outage, settlement: Settlement, size: LoadSize
    ) -> None:
        self._inbox = inbox
        self._loader = loader
        self._outage = outage
        self._settlement = settlement
        self._size = size

    def is_taking(self, like: Entry) -> bool:
        """Tells whether PostgreSQL takes a batch of the size of this one.

        Raises:
            Unavailable: It is away, or waits for somebody.
        """
        try:
            self._loader.prove(like.batch)
        except Poison:
            pass  # It is there, and it decides about rows.
        except Unavailable as error:
            if not error.is_doubtful:
                raise
            return False
        return True

    def is_to_blame(self, entry: Entry, error: Unavailable) -> bool:
        """Tells whether it is for this entry, alone in its load, that the load failed.

        Raises:
            Unavailable: It is for the server, which is away, or for somebody else's lock.
        """
        try:
            return self.is_taking(entry)
        except Unavailable as found:
            if type(found) is not Unavailable:
                raise
            raise error.settled() from found

    def refuse(self, entry: Entry, error: Unavailable) -> None:
        """Counts that PostgreSQL refused the entry alone while it took others: sets it aside, or buries it once that
        was too often. What an operator has to mend, or what will be let go, is never buried.

        Raises:
            StreamUnavailable: Redis is away; the entry is pending as before.
        """
        if isinstance(error, Locked):  # That says nothing about the entry, and soon may be over.
            if not entry.refusals:
                self._outage.note_refused(entry.batch.batch_id, error, 1)
            return self._inbox.set_aside(entry, SET_ASIDE, self._outage.refused_delay(0), entry.refusals or 1)
        refusals = entry.refusals + 1
        is_mendable = isinstance(error, Misconfigured)
        if not is_mendable and self._outage.may_bury(refusals, self._inbox.dead_letter_bytes):
            self._settlement.bury(entry, dead_letter.REFUSED, Refusal(error.cause, error.detail), refusals)
        else:
            self._outage.note_refused(entry.batch.batch_id, error, refusals)
            self._set_aside(entry, refusals)

    def try_alone(self, entry: Entry, take: Callable[[Sequence[Entry]], None]) -> None:
        """Tries what its consumers seem to die of, or what was refused before.

        Args:
            take: Loads and releases entries.

        Raises:
            Unavailable, StreamUnavailable: A server is away; what was refused before is set aside as it was.
        """
        began_at = time.monotonic()
        try:
            is_rid = self._judge(entry, take)
        except Unavailable:
            if entry.refusals:
                self._set_aside(entry, entry.refusals)
            raise
        self._inbox.look_back_in(_REST * (time.monotonic() - began_at), is_rid)

    def _judge(self, entry: Entry, take: Callable[[Sequence[Entry]], None]) -> bool:
        """Tells whether it is stored, and others may be that were refused for the same."""
        is_taking = self.is_taking(entry)
        is_taking = self._size.has_taken(len(entry.batch.payload)) or is_taking
        if is_taking and entry.deaths_alone >= _MAX_DEATHS_ALONE:
            detail = f"{entry.deaths_alone} consumers ended without a word while they loaded it alone"
            self._settlement.bury(entry, dead_letter.KILLS, Refusal("", detail))
            return False
        self._inbox.note_alone(entry)
        try:
            take([entry])
            return True
        except Unavailable as error:
            if not error.is_doubtful or not (is_taking or entry.refusals):
                raise
            if is_taking:
                self.refuse(entry, error)
            else:
                self._set_aside(entry, entry.refusals)
            return False

    def _set_aside(self, entry: Entry, refusals: int) -> None:
        self._inbox.set_aside(entry, SET_ASIDE, self._outage.refused_delay(refusals), refusals)
