"""The dead letter: a batch, or one event of it, taken out of the stream, with what is known of its end.

An entry of the stream `log_events_dlq` has the fields of the batch's own entry, so that it can be put back, and those
of `Death` beside them. A letter of one event holds that event's line alone as its payload, and its place in the batch.
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID, uuid5

import msgspec

from app import moment, stream
from app.batch import Batch, LoneEvent, events, whole_id

BAD_BATCH, BAD_EVENT, CONFLICT = "bad_batch", "bad_event", "idempotency_conflict"
KILLS, NOT_AN_ENTRY = "kills_consumer", "not_an_entry"
SINK, REFUSED = "sink_unavailable", "sink_refuses"

REASONS = {
    SINK: "PostgreSQL did not confirm the batch within SPILLWAY_SINK_RETRIES",
    REFUSED: "PostgreSQL failed on the batch alone over SPILLWAY_SINK_RETRIES times, and took others meanwhile",
    BAD_EVENT: "PostgreSQL refuses this event; the rest of its batch is stored",
    BAD_BATCH: "PostgreSQL refuses over a quarter of the batch's events, or it is not what its head says",
    CONFLICT: "the idempotency key came with another body before, which is stored",
    KILLS: "its consumer died of it again and again, while PostgreSQL takes others",
    NOT_AN_ENTRY: "somebody else wrote it into the stream",
}

_MAX_DETAIL = 1000
_END_MS = (moment.END - moment.EPOCH) // timedelta(milliseconds=1)
_ATTEMPTS = re.compile(r"\d{1,9}", re.ASCII)
_ESCAPED = re.compile(rb"[\\\t\n\r]")


class Death(NamedTuple):
    """What is known of the end of a batch or event.

    Args:
        reason: One of `REASONS`.
        detail: What was said, for a person.
        sqlstate: PostgreSQL's code; empty where it sent none.
        attempts: Loads that failed.
        first_failed_at, last_failed_at: RFC 3339 in UTC.
        consumer: Who gave it up.
    """

    reason: str
    detail: str
    sqlstate: str
    attempts: int
    first_failed_at: str
    last_failed_at: str
    consumer: str

    def fields(self) -> tuple[str | int, ...]:
        """Returns names and values in turn, as XADD takes them."""
        return tuple(part for pair in self._replace(detail=self.detail[:_MAX_DETAIL])._asdict().items()
                     for part in pair)


class DeadLetter(msgspec.Struct, frozen=True):
    """One letter.

    Args:
        letter_id: Of the entry in `log_events_dlq`.
        death: What is known of its end.
        batch: None where there is none to be made of its fields.
        fields: The letter as it stands in Redis.
    """

    letter_id: str
    death: Death
    batch: Batch | None
    fields: Mapping[bytes, bytes]

    @property
    def index(self) -> int | None:
        """The place in the batch of the one event that it holds; None: it holds the whole batch."""
        return self.batch.index if isinstance(self.batch, LoneEvent) else None

    @property
    def count(self) -> int:
        """The events in it, as its head says."""
        return self.batch.count if self.batch else 0

    @property
    def event_name(self) -> bytes:
        """Its event's field in the hash `log_events_dlq:events`; empty where it is no letter of one event."""
        names = [self.fields[name] for name in (b"batch_id", b"event_index") if name in self.fields]
        return b"/".join(names) if len(names) == 2 else b""

    @property
    def made_at(self) -> str:
        """When it was made, RFC 3339; empty where its id was made up."""
        made_at_ms = place_of(self.letter_id)[0]
        return moment.from_ns(made_at_ms * 1_000_000) if made_at_ms < _END_MS else ""

    @property
    def is_replayable(self) -> bool:
        """Whether there is a batch to put into the stream."""
        return self.batch is not None and self.death.reason != NOT_AN_ENTRY

    def has_service(self, service: str) -> bool:
        """Tells whether one of its events is of that service."""
        try:
            sought = service.encode()
            # Escaped it may look otherwise; as it is, it is found or missed without looking at each event.
            if self.batch is None or not _ESCAPED.search(sought) and sought not in self.batch.payload:
                return False
            return any(event["service"] == service for event in events(self.batch))
        except ValueError:
            return False

    def has_batch(self, batch_id: str) -> bool:
        """Tells whether it is of that batch, or of the request that was answered with that id."""
        if self.batch is None:
            return False
        # Of a merged batch, the rows of a request have the request's id.
        return self.batch.batch_id == batch_id or (
            self.batch.batch_id == whole_id(batch_id) and f"\t{batch_id}\t".encode() in self.batch.payload
        )

    def summary(self) -> dict[str, Any]:
        """Returns what is known of it, without its events."""
        found: dict[str, Any] = {"letter_id": self.letter_id, "made_at": self.made_at, **self.death._asdict()}
        if self.batch:
            found |= {"batch_id": self.batch.batch_id, "event_index": self.index, "count": self.batch.count,
                      "received_at": self.batch.received_at}
        return found

    def document(self) -> dict[str, Any]:
        """Returns it as a person looks at it, with its events decoded, or with its fields where they cannot be."""
        if found := self.events():
            return self.summary() | {"events": found}
        fields = {_text(name): _text(value) for name, value in self.fields.items()}
        return self.summary() | {"fields": fields}

    def events(self) -> list[dict[str, str | None]]:
        """Returns its events as text by column; none where its payload is not of the format that this code knows."""
        try:
            return list(events(self.batch)) if self.batch else []
        except ValueError:
            return []


def lone_event(batch: Batch, index: int, line: bytes) -> LoneEvent:
    """Returns one event of a batch.

    Args:
        index: Its place in the batch.
        line: Its line of the batch's payload, LF included.
    """
    return LoneEvent(batch.batch_id, 1, sha256(line).hexdigest(), batch.received_at, line, batch.version, index=index)


def event_name(batch_id: str, index: int) -> str:
    """Returns the event's field in the hash `log_events_dlq:events`, which tells the letter that it has."""
    return f"{batch_id}/{index}"


def place_of(letter_id: str) -> tuple[int, int]:
    """Returns a letter's place among the others: its milliseconds and its number within them."""
    milliseconds, _, number = letter_id.partition("-")
    return int(milliseconds), int(number)


def letter_of(letter_id: bytes, fields: Mapping[bytes, bytes]) -> DeadLetter:
    """Returns the letter; what lacks or is nonsense shows as such, as a person is to look at it."""
    texts = {name: _text(fields.get(name.encode(), b"")[:4 * _MAX_DETAIL])[:_MAX_DETAIL] for name in Death._fields}
    attempts = int(texts["attempts"]) if _ATTEMPTS.fullmatch(texts["attempts"]) else 0
    try:
        batch = stream.batch_of(fields)
    except (KeyError, ValueError):
        batch = None
    death = Death(**{**texts, "attempts": attempts})  # type: ignore[arg-type]
    return DeadLetter(letter_id.decode(), death, batch, fields)


def to_replay(letter: DeadLetter) -> Batch | None:
    """Returns the batch to put into the stream; None where there is none.

    The ledger knows the id of a conflict already, with another body. It goes under an id that follows from what it is,
    so that replaying it twice adds nothing.
    """
    if letter.batch is None or not letter.is_replayable:
        return None
    if letter.death.reason == CONFLICT:
        return _renamed(letter.batch, str(uuid5(UUID(letter.batch.batch_id), letter.batch.sha256)))
    return letter.batch


def _renamed(batch: Batch, batch_id: str) -> Batch:
    """Returns the batch under another id, its rows too: those of the batch that is stored have the same places."""
    old, new = batch.batch_id.encode(), batch_id.encode()
    rows = [row.replace(b"\t" + old + b"\t", b"\t" + new + b"\t", 1) for row in batch.payload.split(b"\n")]
    return msgspec.structs.replace(batch, batch_id=batch_id, payload=b"\n".join(rows))


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")
