"""The trial of a poisoned load: within its transaction, takes what PostgreSQL takes, and names what it does not."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, islice

import msgspec
import psycopg2
from psycopg2.extensions import cursor as Cursor

from app.batch import Batch, LoneEvent
from workers.blame import Blame, blame
from workers.ledger import DeadEvent
from workers.sieve import Refusal, line_at_fault, refused

# Of one batch; and a quarter of its events: with more, the batch as a whole is to blame. Of a merged one, the events of
# a request are not to suffer for another's.
_MAX_DEAD = 1000

Copy = Callable[[Cursor, Sequence[Batch]], None]


class Trial:
    """One load. Its batches are in the ledger already.

    Args:
        cursor: Within the transaction.
        batches: What is to be stored.
        copy: Copies batches' rows.

    Attributes:
        refused: Of which batches, by their positions, nothing is stored, and why.
        dead: Events that are refused, of batches that are stored without them.
    """

    def __init__(self, cursor: Cursor, batches: Sequence[Batch], copy: Copy) -> None:
        self.refused: dict[int, Refusal] = {}
        self.dead: list[DeadEvent] = []
        self._cursor = cursor
        self._batches = batches
        self._copy = copy

    def run(self, error: psycopg2.Error) -> None:
        """Fills `refused` and `dead`; `error` is why the whole was refused.

        Raises:
            psycopg2.Error: Something else than the data is to blame.
        """
        first = self._located(_refusal(error), self._batches) if self._batches else None
        for number, refusal in refused(len(self._batches), self._try_batches, first):
            if not self._has_stored_some(self._batches[number]):
                self.refused[number] = refusal

    def _try_batches(self, start: int, end: int) -> Refusal | None:
        batches = self._batches[start:end]
        refusal = self._tried(batches)
        return refusal and self._located(refusal, batches)

    def _located(self, refusal: Refusal, batches: Sequence[Batch]) -> Refusal:
        """Turns the line at fault into the batch."""
        if refusal.at is None:
            return refusal
        ends = list(accumulate(one.count for one in batches))
        return refusal._replace(at=min(bisect_right(ends, refusal.at), len(batches) - 1))

    def _has_stored_some(self, batch: Batch) -> bool:
        """Takes the batch without the events at fault, or, if those are too many, nothing of it."""
        lines = [line + b"\n" for line in batch.payload.split(b"\n")]
        if isinstance(batch, LoneEvent) or lines.pop() != b"\n" or len(lines) != batch.count:
            return False

        def attempt(start: int, end: int) -> Refusal | None:
            return self._tried([msgspec.structs.replace(batch, count=end - start, payload=b"".join(lines[start:end]))])

        most = min(batch.count if batch.parts else batch.count // 4, _MAX_DEAD)
        self._cursor.execute("SAVEPOINT whole")
        found = list(islice(refused(len(lines), attempt), most + 1))
        self._cursor.execute("ROLLBACK TO whole" if len(found) > most else "RELEASE whole")
        self.dead += [DeadEvent(batch, index, lines[index], why) for index, why in found if len(found) <= most]
        return len(found) <= most

    def _tried(self, batches: Sequence[Batch]) -> Refusal | None:
        self._cursor.execute("SAVEPOINT part")
        try:
            self._copy(self._cursor, batches)
        except psycopg2.Error as error:
            if blame(error) is not Blame.DATA:
                raise
            self._cursor.execute("ROLLBACK TO part")
            return _refusal(error)
        self._cursor.execute("RELEASE part")
        return None


def _refusal(error: psycopg2.Error) -> Refusal:
    at = line_at_fault(getattr(error.diag, "context", None))
    return Refusal(error.pgcode or type(error).__name__, str(error).strip(), at)
