"""The conservation equation of one minute: what was counted against what is there. Pure: it reads nothing.

    stream   added = loaded + returned + duplicate + buried + in the stream
    ledger   loaded <= ledger <= loaded + in the stream + buried
    rows     ledger = rows + dead events
    letters  buried + buried_lone = replayed + purged + purged_lone + in the dead letters
    dead     dead events <= lone letters + lone events in the stream + purged_lone

The ledger may be ahead of `loaded` by what is stored and not released yet, and by what was buried although its COMMIT,
whose reply was lost, had happened. It is never behind.
"""

from typing import NamedTuple

import msgspec

from app import count


class Bucket(msgspec.Struct):
    """One minute of `received_at`, in events.

    Args:
        counts: By kind, as in the hash.
        in_stream, in_stream_lone: Whole batches and lone events that are there now.
        letters, letters_lone: The same of the dead letters.
        ledger: Of batches that the ledger says an entry of the stream has stored.
        ledger_old: Of batches that it has from a version that did not note by which entry.
        rows, dead: In `log_events`, and refused according to the ledger.
        is_read: Whether PostgreSQL was asked about this minute; where not, its numbers are 0.
        is_whole: Whether its counts are all there; of minutes before the last pruning those that came later are alone.
    """

    counts: dict[str, int] = msgspec.field(default_factory=dict)
    in_stream: int = 0
    in_stream_lone: int = 0
    letters: int = 0
    letters_lone: int = 0
    ledger: int = 0
    ledger_old: int = 0
    rows: int = 0
    dead: int = 0
    is_read: bool = False
    is_whole: bool = True

    def of(self, *kinds: str) -> int:
        """Returns the sum of counts."""
        return sum(self.counts.get(kind, 0) for kind in kinds)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it is on its way any more, or waits for an operator."""
        return not (self.in_stream or self.in_stream_lone or self.letters or self.letters_lone)


class Buckets(dict[str, Bucket]):
    """Buckets by minute; one that is not there is made when it is asked for.

    Args:
        pruned: The minute before which counts were taken away; empty: none.
    """

    def __init__(self, pruned: str) -> None:
        super().__init__()
        self.pruned = pruned

    def __missing__(self, minute: str) -> Bucket:
        bucket = self[minute] = Bucket(is_whole=minute >= self.pruned)
        return bucket


class Gap(NamedTuple):
    """An equation that does not hold.

    Args:
        check: Which one.
        events: How many are missing; below 0: how many are too many.
        text: The equation with its numbers, and what it means, for a person.
    """

    check: str
    events: int
    text: str


def gaps(bucket: Bucket) -> list[Gap]:
    """Returns the equations that do not hold. The bucket must have stood still while it was read."""
    found = [_stream(bucket), _letters(bucket)]
    if bucket.is_read:
        found.append(_rows(bucket))
        if bucket.is_whole:
            found += [_ledger(bucket), _dead(bucket)]
    return [gap for gap in found if gap and gap.events]


def _stream(bucket: Bucket) -> Gap:
    added, here = bucket.of(count.ADDED), bucket.in_stream + bucket.in_stream_lone
    kinds = (count.LOADED, count.RETURNED, count.DUPLICATE, count.BURIED)
    missing = added - bucket.of(*kinds) - here
    sums = " + ".join(f"{kind} {bucket.of(kind)}" for kind in kinds)
    why = ("entries have left the stream uncounted: deleted or trimmed by hand, or lost by Redis" if missing > 0 else
           "entries were written into the stream past the service, or Redis has lost counts")
    return Gap("stream", missing, f"added {added}, and {sums} + in the stream {here}: {why}")


def _ledger(bucket: Bucket) -> Gap:
    loaded, slack = bucket.of(count.LOADED), bucket.in_stream + bucket.of(count.BURIED)
    if bucket.ledger < loaded:
        return Gap("ledger", loaded - bucket.ledger, f"released as loaded {loaded}, and in the ledger {bucket.ledger}: "
                   "log_batches has lost rows, or PostgreSQL commits that it had confirmed")
    excess = max(0, bucket.ledger - loaded - slack)
    return Gap("ledger", -excess, f"in the ledger {bucket.ledger}, and loaded {loaded} + in the stream "
               f"{bucket.in_stream} + buried {bucket.of(count.BURIED)}: Redis has lost counts, and with them perhaps "
               "entries that nothing else knows of (FLUSHALL, a failover, a restore)")


def _rows(bucket: Bucket) -> Gap:
    entered = bucket.ledger + bucket.ledger_old
    missing = entered - bucket.rows - bucket.dead
    why = "log_events has lost rows" if missing > 0 else "rows are there twice, or the ledger has lost batches"
    return Gap("rows", missing, f"in the ledger {entered}, and rows {bucket.rows} + dead {bucket.dead}: {why}")


def _letters(bucket: Bucket) -> Gap:
    made, here = bucket.of(count.BURIED, count.BURIED_LONE), bucket.letters + bucket.letters_lone
    kinds = (count.REPLAYED, count.PURGED, count.PURGED_LONE)
    missing = made - bucket.of(*kinds) - here
    sums = " + ".join(f"{kind} {bucket.of(kind)}" for kind in kinds)
    why = ("letters were deleted by hand, or lost by Redis" if missing > 0 else
           "letters were written past the service, or Redis has lost counts")
    return Gap("letters", missing, f"buried {made}, and {sums} + in the dead letters {here}: {why}")


def _dead(bucket: Bucket) -> Gap:
    kept = bucket.letters_lone + bucket.in_stream_lone + bucket.of(count.PURGED_LONE)
    missing = max(0, bucket.dead - kept)
    return Gap("dead", missing, f"dead according to the ledger {bucket.dead}, and letters {bucket.letters_lone} + in "
               f"the stream {bucket.in_stream_lone} + purged {bucket.of(count.PURGED_LONE)}: events that PostgreSQL "
               "refused are nowhere")
