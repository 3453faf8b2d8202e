"""The ledger: which batches are stored, and which of their events are not. The one place that removes duplicates.

All of it happens within the transaction of a load; statements are `schema`'s.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple

import msgspec
from psycopg2.extensions import cursor as Cursor

from app import batch
from app.batch import COLUMNS, Batch, LoneEvent
from workers import schema
from workers.sieve import Refusal


class Verdict(NamedTuple):
    """What the ledger says of the batches of a load, by their positions in it; `loader.Outcome` says what each is."""

    fresh: list[int]
    known: list[int]
    duplicates: list[int]
    conflicts: list[int]
    orphans: list[int]


class DeadEvent(msgspec.Struct, frozen=True):
    """An event that PostgreSQL refuses: its batch, its place in it, its line of the payload, and why."""

    batch: Batch
    index: int
    line: bytes
    refusal: Refusal


def enter(cursor: Cursor, batches: Sequence[Batch], entry_ids: Sequence[str]) -> Verdict:
    """Enters the batches that are new, and says which those are. Raises psycopg2.Error."""
    verdict = Verdict([], [], [], [], [])
    whole = [index for index, one in enumerate(batches) if not isinstance(one, LoneEvent)]
    if whole:
        _enter_batches(cursor, batches, entry_ids, whole, verdict)
    if len(whole) < len(batches):
        _enter_events(cursor, batches, verdict)
    return verdict


def settle(cursor: Cursor, refused: Sequence[Batch], dead: Sequence[DeadEvent]) -> None:
    """Takes back what was refused, and notes which events the others lack. Raises psycopg2.Error."""
    forgotten = [one.batch_id for one in refused if not isinstance(one, LoneEvent)]
    if forgotten:
        cursor.execute(schema.FORGET, [_array(forgotten)])
    lacking: dict[str, list[int]] = {}
    for event in dead:
        lacking.setdefault(event.batch.batch_id, []).append(event.index)
    for one in refused:
        if isinstance(one, LoneEvent):
            lacking.setdefault(one.batch_id, []).append(one.index)
    for batch_id, indexes in lacking.items():
        cursor.execute(schema.ADD_LACKING, [indexes, batch_id])


def specimen(count: int, size_bytes: int) -> Batch:
    """Returns a batch of about that size that no client has sent."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    values = {"received_at": now, "ts": now, "batch_id": batch.new_id(), "message": "specimen", "attributes": "{}"}
    rows = []
    for index in range(count):
        values["batch_index"] = str(index)
        rows.append("\t".join(values.get(name, r"\N") for name in COLUMNS).encode())
    filler = b" " * max(0, size_bytes // count - len(rows[-1]) - 1)
    payload = b"".join(row.replace(b"specimen", b"specimen" + filler, 1) + b"\n" for row in rows)
    return Batch(values["batch_id"], count, sha256(payload).hexdigest(), now, payload)


def _enter_batches(
    cursor: Cursor, batches: Sequence[Batch], entry_ids: Sequence[str], whole: Sequence[int], verdict: Verdict
) -> None:
    first = {batches[index].batch_id: index for index in reversed(whole)}
    entered = _entered(cursor, [(batches[index], entry_ids[index]) for index in first.values()])
    known = _known(cursor, first.keys() - entered)
    for index in whole:
        one = batches[index]
        sha256, entry_id = known.get(one.batch_id) or (batches[first[one.batch_id]].sha256, None)
        if one.batch_id in entered and first[one.batch_id] == index:
            verdict.fresh.append(index)
        elif one.sha256 != sha256:
            verdict.conflicts.append(index)
        else:
            (verdict.known if entry_id == entry_ids[index] else verdict.duplicates).append(index)


def _entered(cursor: Cursor, batches: Sequence[tuple[Batch, str]]) -> set[str]:
    """Enters batches, each once, and returns the ids that were new."""
    columns = zip(*(
        (one.batch_id, one.sha256, str(one.count), one.received_at, entry_id, " ".join(map(str, one.parts)) or "NULL")
        for one, entry_id in batches
    ))
    cursor.execute(schema.ENTER, [_array(column) for column in columns])
    return {batch_id for batch_id, in cursor.fetchall()}


def _known(cursor: Cursor, batch_ids: set[str]) -> dict[str, tuple[str, str | None]]:
    if not batch_ids:
        return {}
    cursor.execute(schema.KNOWN, [_array(batch_ids)])
    return {batch_id: (sha256, entry_id) for batch_id, sha256, entry_id in cursor.fetchall()}


def _enter_events(cursor: Cursor, batches: Sequence[Batch], verdict: Verdict) -> None:
    """Of a batch that lacks it an event is fresh, and lacking no more; of one that has it, a duplicate."""
    events = [(index, one) for index, one in enumerate(batches) if isinstance(one, LoneEvent)]
    cursor.execute(schema.LACKING, [_array({one.batch_id for _, one in events})])
    lacking = {batch_id: set(indexes) for batch_id, indexes in cursor.fetchall()}
    taken: dict[str, list[int]] = {}
    for index, one in events:
        if one.batch_id not in lacking:
            verdict.orphans.append(index)
        elif one.index in lacking[one.batch_id]:
            lacking[one.batch_id].remove(one.index)
            taken.setdefault(one.batch_id, []).append(one.index)
            verdict.fresh.append(index)
        else:
            verdict.duplicates.append(index)
    for batch_id, indexes in taken.items():
        cursor.execute(schema.TAKE_LACKING, [indexes, batch_id])


def _array(values: "Sequence[str] | set[str]") -> str:
    # Ids, digests, numbers and times need no quotes within an array's text.
    return f"{{{','.join(values)}}}"
