"""The Receipt: what a client was told. One file of JSON lines, appended to by any number of processes and runs.

Each attempt leaves two lines: `sent` before it goes out, then its outcome, `accepted`, `rejected` or `unknown`. `sent`
without an outcome is unknown, so that a load test killed at any moment leaves no lie. A line torn by such a kill ends
its run; nothing is lost by leaving it out, since the request had not gone out or its outcome is unknown.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class BadReceipts(Exception):
    """The file cannot be judged by; the message says which line and why."""


@dataclass(slots=True)
class Promise:
    """What all attempts of one request were promised.

    Args:
        count: Events in the request.
        is_keyed: All attempts are the same batch to the service.
        batch_ids: The id that each accepted attempt was given.
        unknown_count: Attempts that may or may not be stored.
        miscounted: What an answer gave as the number of events, where that is not `count`.
    """

    count: int
    is_keyed: bool
    batch_ids: tuple[str, ...] = ()
    unknown_count: int = 0
    miscounted: int | None = None

    @property
    def outcome(self) -> str:
        """The strongest: accepted, else unknown, else rejected."""
        return "accepted" if self.batch_ids else "unknown" if self.unknown_count else "rejected"


@dataclass(slots=True)
class History:
    """A receipts file: the runs in it, and the promises by tag."""

    runs: list[str] = field(default_factory=list)
    promises: dict[str, Promise] = field(default_factory=dict)


class Writer:
    """Appends the receipts of one run.

    Durability: outlives this process on return (one unbuffered write a line), not a power cut of its machine.
    """

    def __init__(self, path: Path, run: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(self._file, b"\n")  # ends what a killed run may have torn
        self._append("run", run=run)

    def sent(self, tag: str, count: int, is_keyed: bool) -> None:
        """Notes an attempt; call before anything of it can reach the service."""
        self._append("sent", tag=tag, count=count, keyed=is_keyed)

    def accepted(self, tag: str, status: int, batch_id: str, count: int, durability: str) -> None:
        """Notes a promise."""
        self._append("accepted", tag=tag, status=status, batch_id=batch_id, count=count, durability=durability)

    def rejected(self, tag: str, status: int, reason: str) -> None:
        """Notes that nothing may be stored."""
        self._append("rejected", tag=tag, status=status, reason=reason)

    def unknown(self, tag: str, status: int, reason: str) -> None:
        """Notes that the attempt may or may not be stored; status 0: there was no answer."""
        self._append("unknown", tag=tag, status=status, reason=reason)

    def _append(self, kind: str, **fields: Any) -> None:
        line = json.dumps({"receipt": kind, "at": datetime.now(UTC).isoformat(), **fields}).encode() + b"\n"
        if os.write(self._file, line) != len(line):
            raise OSError("the receipts file took a part of a line: is the disk full?")


def read(path: Path) -> History:
    """Reads a receipts file.

    Raises:
        BadReceipts: A line is not a receipt and not the torn end of a run, or contradicts the ones before.
        OSError: The file cannot be read.
    """
    with path.open("rb") as lines:
        return parse(lines)


def parse(lines: Iterable[bytes]) -> History:
    """Reads receipts; see `read`."""
    history, torn = History(), 0
    for number, line in enumerate(lines, 1):
        if line == b"\n":
            continue
        record = _record(line)
        if torn and (record is None or record["receipt"] != "run"):
            raise BadReceipts(f"line {torn} is not a receipt")
        torn = 0 if record else number
        try:
            _note(history, record or {})
        except (KeyError, TypeError, ValueError) as error:
            raise BadReceipts(f"line {number} does not fit the ones before it: {error!r}") from error
    if not history.promises:
        raise BadReceipts("it holds no request: there is nothing to judge")
    return history


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "receipt" in record and line.endswith(b"\n") else None


def _note(history: History, record: dict[str, Any]) -> None:
    kind = record.get("receipt")
    if kind == "run":
        history.runs.append(record["run"])
    elif kind == "sent":
        promise = history.promises.setdefault(record["tag"], Promise(int(record["count"]), bool(record["keyed"])))
        if promise.count != record["count"] or promise.is_keyed != record["keyed"]:
            raise ValueError("another request has this tag")
        promise.unknown_count += 1
    elif kind:
        _note_outcome(history.promises[record["tag"]], kind, record)


def _note_outcome(promise: Promise, kind: str, record: dict[str, Any]) -> None:
    if kind not in ("accepted", "rejected", "unknown"):
        raise ValueError(f"{kind!r} is no outcome")
    if not promise.unknown_count:
        raise ValueError("an outcome of what was not sent")
    if kind != "unknown":
        promise.unknown_count -= 1
    if kind == "accepted":
        promise.batch_ids += (str(record["batch_id"]),)
        if record["count"] != promise.count:
            promise.miscounted = int(record["count"])
