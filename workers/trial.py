"""The trial of a load: within its transaction, takes what PostgreSQL takes, and names what it does not.

A load is copied in parts of bounded bytes, each under a savepoint, as a row that is refused undoes all of its COPY.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, islice

import msgspec
import psycopg2
from psycopg2.extensions import cursor as Cursor

from app.batch import Batch, LoneEvent
from workers.blame import Blame, blame
from workers.ledger import DeadEvent
from workers.sieve import Refusal, line_at_fault, refused

# Of which one bad row undoes all, or one entry, where that is larger. A COPY of so much takes over a hundred times as
# long as its savepoint, and a load of the usual size has fewer of them than the 64 that PostgreSQL has in memory.
_PART_BYTES = 1 << 20
_MAX_DEAD = 1000  # of one batch: with more, the batch as a whole is to blame

Copy = Callable[[Cursor, Sequence[Batch], str], None]


class Trial:
    """One load. Its batches are in the ledger already.

    Args:
        cursor: Within the transaction.
        batches: What is to be stored.
        copy: Copies batches' rows, once it has run the statements that it is given.

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

    def run(self) -> None:
        """Stores what can be, and fills `refused` and `dead`.

        Raises:
            psycopg2.Error: Something else than the data is to blame.
        """
        attempt = _Attempt(self._cursor, self._copy, "part")

        def attempt_batches(start: int, end: int) -> Refusal | None:
            batches = self._batches[start:end]
            refusal = attempt(batches)
            return refusal and (_located(refusal, batches) if len(batches) > 1 else refusal)

        for number, refusal in refused(_parts(self._batches), attempt_batches):
            if not self._has_stored_some(self._batches[number], refusal):
                self.refused[number] = refusal

    def _has_stored_some(self, batch: Batch, refusal: Refusal) -> bool:
        """Takes the batch without the events at fault, or, if those are too many, nothing of it."""
        lines = [line + b"\n" for line in batch.payload.split(b"\n")]
        if isinstance(batch, LoneEvent) or lines.pop() != b"\n" or len(lines) != batch.count:
            return False
        self._cursor.execute("SAVEPOINT whole")
        attempt = _Attempt(self._cursor, self._copy, "line")

        def attempt_lines(start: int, end: int) -> Refusal | None:
            return attempt([msgspec.structs.replace(batch, count=end - start, payload=b"".join(lines[start:end]))])

        most = _most_dead(batch)
        found = list(islice(refused([(0, len(lines))], attempt_lines, refusal), most + 1))
        self._cursor.execute("ROLLBACK TO whole" if len(found) > most else "RELEASE whole")
        self.dead += [DeadEvent(batch, index, lines[index], why) for index, why in found if len(found) <= most]
        return len(found) <= most


class _Attempt:
    """Copies batches all or none, under a savepoint that stands until the next: COMMIT need not be told to drop it."""

    def __init__(self, cursor: Cursor, copy: Copy, savepoint: str) -> None:
        self._cursor = cursor
        self._copy = copy
        self._savepoint = savepoint
        self._mark = f"SAVEPOINT {savepoint}"

    def __call__(self, batches: Sequence[Batch]) -> Refusal | None:
        mark, self._mark = self._mark, f"RELEASE {self._savepoint}; SAVEPOINT {self._savepoint}"
        try:
            self._copy(self._cursor, batches, mark)
        except psycopg2.Error as error:
            if blame(error) is not Blame.DATA:
                raise
            self._cursor.execute(f"ROLLBACK TO {self._savepoint}")
            at = line_at_fault(getattr(error.diag, "context", None))
            return Refusal(error.pgcode or type(error).__name__, str(error).strip(), at)
        return None


def _most_dead(batch: Batch) -> int:
    """Returns how many of its events a batch may be stored without: a quarter, but that of merged requests none is to
    suffer for the events of another."""
    return min(batch.count if batch.parts else batch.count // 4, _MAX_DEAD)


def _parts(batches: Sequence[Batch]) -> Iterator[tuple[int, int]]:
    """Yields from which batch up to which a part is: as many as `_PART_BYTES` hold, and at least one."""
    ends = list(accumulate(len(one.payload) for one in batches))
    start = 0
    while start < len(batches):
        end = max(start + 1, bisect_right(ends, (ends[start - 1] if start else 0) + _PART_BYTES))
        yield start, end
        start = end


def _located(refusal: Refusal, batches: Sequence[Batch]) -> Refusal:
    """Turns the line at fault into the batch."""
    if refusal.at is None:
        return refusal
    ends = list(accumulate(one.count for one in batches))
    return refusal._replace(at=min(bisect_right(ends, refusal.at), len(batches) - 1))
