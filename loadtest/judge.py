"""The judge: holds what clients were promised against what is stored. Pure: no clock, no file, no database."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain, groupby

from loadtest.receipt import Promise

MAX_NAMED_FAULTS = 20
OUTCOMES = ("accepted", "unknown", "rejected")


class Kind(StrEnum):
    """What is broken."""

    MISSING = "missing"
    PARTIAL = "partial"
    DUPLICATE = "duplicate"
    PHANTOM = "phantom"
    ALTERED = "altered"
    MISSTATED = "misstated"


MEANINGS = {
    Kind.MISSING: "accepted, and not stored",
    Kind.PARTIAL: "outcome unknown, and stored in part: all or nothing is promised",
    Kind.DUPLICATE: "stored more than once",
    Kind.PHANTOM: "stored, although rejected or never sent",
    Kind.ALTERED: "stored with other content, or in another place of the batch, than was sent",
    Kind.MISSTATED: "the answer's batch_id or count does not hold",
}

# Loading goes on, so that these may pass; the others stay.
_PASSING = {Kind.MISSING, Kind.PARTIAL}


@dataclass(frozen=True, slots=True)
class Stored:
    """The rows of one tag under one batch id.

    Args:
        tag: None where the rows have lost it.
        rows: How many there are.
        indexes: How many different `batch_index` they have.
        first, last: The smallest and the largest `batch_index`.
        altered: Rows whose content or place is not what was sent.
    """

    tag: str | None
    batch_id: str
    rows: int
    indexes: int
    first: int
    last: int
    altered: int


@dataclass(frozen=True, slots=True)
class Fault:
    """One broken promise; `batch_id` is empty where there is none to name."""

    kind: Kind
    tag: str | None
    batch_id: str
    events: int
    detail: str


@dataclass(slots=True)
class Tally:
    """A number of batches (or faults) and of their events."""

    batches: int = 0
    events: int = 0

    def add(self, events: int) -> None:
        """Counts one more batch."""
        self.batches += 1
        self.events += events


@dataclass(slots=True)
class Verdict:
    """What the judge found.

    Args:
        outcomes: Requests by their strongest outcome: accepted, unknown, rejected.
        recovered: Requests of unknown outcome that are stored.
        faults: Broken promises by kind; the events are those at fault.
        named: The first faults.
    """

    outcomes: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in OUTCOMES})
    recovered: Tally = field(default_factory=Tally)
    faults: dict[Kind, Tally] = field(default_factory=lambda: {kind: Tally() for kind in Kind})
    named: list[Fault] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Every promise was kept."""
        return not any(tally.batches for tally in self.faults.values())

    @property
    def is_final(self) -> bool:
        """Waiting makes it no better."""
        return self.is_clean or any(tally.batches for kind, tally in self.faults.items() if kind not in _PASSING)

    def _add(self, fault: Fault) -> None:
        self.faults[fault.kind].add(fault.events)
        if len(self.named) < MAX_NAMED_FAULTS:
            self.named.append(fault)


def judge(promises: Mapping[str, Promise], stored: Iterable[Stored]) -> Verdict:
    """Holds promises, by tag, against what is stored; `stored` must bring the sets of one tag one after the other."""
    verdict, seen = Verdict(), set()
    for promise in promises.values():
        verdict.outcomes[promise.outcome].add(promise.count)
    for tag, group in groupby(stored, key=lambda one: one.tag):
        known = promises.get(tag or "")
        if known is None:
            faults: Iterable[Fault] = (_fault(Kind.PHANTOM, one, one.rows, "its tag was never sent") for one in group)
        else:
            seen.add(tag)
            faults = _judge_promise(tag or "", known, list(group))
            if known.outcome == "unknown":
                verdict.recovered.add(known.count)
        for fault in faults:
            verdict._add(fault)
    unseen = ((tag, promise) for tag, promise in promises.items() if tag not in seen)
    for fault in chain.from_iterable(_judge_promise(tag, promise, []) for tag, promise in unseen):
        verdict._add(fault)
    return verdict


def _judge_promise(tag: str, promise: Promise, stored: Sequence[Stored]) -> Iterator[Fault]:
    yield from _judge_answers(tag, promise)
    ids = {one.batch_id for one in stored}
    lost = [batch_id for batch_id in dict.fromkeys(promise.batch_ids) if batch_id not in ids]
    unpromised = [one for one in stored if one.batch_id not in promise.batch_ids]
    surplus = unpromised[_allowed(promise):]
    for one in stored:
        if one not in surplus:
            yield from _judge_set(promise, one)
    for batch_id, one in zip(lost, surplus):
        yield _fault(Kind.MISSTATED, one, promise.count, f"promised as batch {batch_id}")
    for batch_id in lost[len(surplus):]:
        yield Fault(Kind.MISSING, tag, batch_id, promise.count, f"all of {promise.count} events")
    for one in surplus[len(lost):]:
        rejected = promise.outcome == "rejected"
        yield _fault(Kind.PHANTOM if rejected else Kind.DUPLICATE, one, one.rows,
                     "it was rejected" if rejected else "one set more than was sent")


def _allowed(promise: Promise) -> int:
    """Returns how many sets may stand under ids that no answer has named."""
    if promise.is_keyed:
        return int(promise.unknown_count > 0 and not promise.batch_ids)
    return promise.unknown_count


def _judge_answers(tag: str, promise: Promise) -> Iterator[Fault]:
    ids = set(promise.batch_ids)
    details = []
    if promise.is_keyed and len(ids) > 1:
        details.append(f"one key, {len(ids)} batch ids: {sorted(ids)}")
    if not promise.is_keyed and len(ids) < len(promise.batch_ids):
        details.append("one batch id for several requests without a key")
    if promise.miscounted is not None:
        details.append(f"{promise.count} events were sent, {promise.miscounted} accepted")
    for detail in details:
        yield Fault(Kind.MISSTATED, tag, promise.batch_ids[0], promise.count, detail)


def _judge_set(promise: Promise, one: Stored) -> Iterator[Fault]:
    absent = promise.count - one.indexes
    if absent > 0:
        kind = Kind.MISSING if one.batch_id in promise.batch_ids else Kind.PARTIAL
        yield _fault(kind, one, absent, f"{absent} of {promise.count} events are absent")
    if one.rows > one.indexes:
        yield _fault(Kind.DUPLICATE, one, one.rows - one.indexes, f"{one.rows} rows for {one.indexes} events")
    if one.first < 0 or one.last >= promise.count:
        yield _fault(Kind.PHANTOM, one, max(1, -absent),
                     f"indexes {one.first} to {one.last}, sent were 0 to {promise.count - 1}")
    if one.altered:
        yield _fault(Kind.ALTERED, one, one.altered, f"{one.altered} of {one.rows} rows are not what was sent")


def _fault(kind: Kind, one: Stored, events: int, detail: str) -> Fault:
    return Fault(kind, one.tag, one.batch_id, events, detail)
