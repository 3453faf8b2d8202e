"""The counts that the audit adds up: events by the way they went into the stream and out of it, and by minute.

They stand in a Redis hash, `<minute>:<kind>` -> events, and are changed by nothing but the transaction or the script
that moves what they count: no crash leaves the one without the other. The minute is that of the batch's `received_at`,
in UTC, wherever and however late a copy of it turns up.

    added = loaded + returned + duplicate + buried + what is in the stream
    buried + buried_lone = replayed + purged + purged_lone + what is in the dead letters
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from app import stream
from app.batch import Batch, LoneEvent

KEY = "log_events:audit"
PRUNED = "pruned"  # field: the minute before which counts were taken away

ADDED = "added"  # entries, each copy of a batch
LOADED = "loaded"  # released: the entry by which its batch is stored
RETURNED = "returned"  # released: a lone event, which its batch has again
DUPLICATE = "duplicate"  # released: one more copy of what is stored, or has its letter
BURIED = "buried"  # moved to the dead letters
BURIED_LONE = "buried_lone"  # letters of single events, whose batch is loaded without them
REPLAYED = "replayed"  # letters moved to the stream
PURGED = "purged"  # letters of batches that were deleted
PURGED_LONE = "purged_lone"  # letters of single events that were deleted
KINDS = (ADDED, LOADED, RETURNED, DUPLICATE, BURIED, BURIED_LONE, REPLAYED, PURGED, PURGED_LONE)

# Comes after what it counts, which may not be undone or stopped by it: Redis lets a script that has written go on even
# when it is full, and a hash that somebody has made something else of shows in the audit.
LUA = f"""
local function count(minute, kind, events)
  redis.pcall('HINCRBY', '{KEY}', minute .. ':' .. kind, events)
end
"""

# Keys: the hash, the stream. Arguments: the group, fields and events in turn. After an XACK of an id that no entry has,
# as a full Redis refuses it else; of another type the hash stays as it is, and shows in the audit.
_CORRECT = """
redis.pcall('XACK', KEYS[2], ARGV[1], '0-1')
for i = 2, #ARGV, 2 do redis.pcall('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
"""

_FIELD = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d):([a-z_]+)", re.ASCII)


def minute_of(batch: Batch) -> str:
    """Returns the bucket that a batch is counted in, `2026-01-31T12:00`."""
    return batch.received_at[:16]


def kind_of_load(batch: Batch) -> str:
    """Returns the kind that a stored batch or event is released as."""
    return RETURNED if isinstance(batch, LoneEvent) else LOADED


def totals(batches: Iterable[Batch], kind: str) -> dict[str, int]:
    """Returns events by field of the hash."""
    found: dict[str, int] = {}
    for one in batches:
        name = f"{one.received_at[:16]}:{kind}"
        found[name] = found.get(name, 0) + one.count
    return found


def correction(events: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the command that adds events by field, also on a Redis that is full."""
    words = (str(word) for pair in events.items() for word in pair)
    return "EVAL", _CORRECT, "2", KEY, stream.STREAM, stream.GROUP, *words


def packed(done: Sequence[tuple[Batch | None, str]]) -> bytes:
    """Returns batches and kinds for a script, as MessagePack: fields; for each the place of its field there, from 1;
    for each its events. What is no batch counts nothing, and has the place 0.
    """
    places: dict[str, int] = {}
    which = [
        places.setdefault(f"{one.received_at[:16]}:{kind}", len(places) + 1) if one else 0 for one, kind in done
    ]
    return msgspec.msgpack.encode((list(places), which, [one.count if one else 0 for one, _ in done]))


def read(fields: "dict[bytes, bytes]") -> dict[str, dict[str, int]]:
    """Returns the hash as events by minute and kind; fields that are none of ours are left out."""
    found: dict[str, dict[str, int]] = {}
    for name, value in fields.items():
        match = _FIELD.fullmatch(name.decode(errors="replace"))
        if match and match[2] in KINDS and value.lstrip(b"-").isdigit():
            found.setdefault(match[1], {})[match[2]] = int(value)
    return found
