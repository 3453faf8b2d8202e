"""COPY's binary format, made of its text format: only to measure what it would save PostgreSQL.

Source: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format"; the values as each type's `recv`
function in PostgreSQL's `src/backend/utils/adt` reads them.
"""

import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from app.batch import COLUMNS, Batch, events

_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # no flags, no extension
_END = struct.pack(">h", -1)
_NULL = struct.pack(">i", -1)
_COUNT = struct.pack(">h", len(COLUMNS))
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_JSONB_VERSION = b"\1"


def _time(text: str) -> bytes:
    return struct.pack(">q", (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1))


_TYPES: dict[str, Callable[[str], bytes]] = {
    "received_at": _time, "ts": _time, "batch_id": lambda text: UUID(text).bytes,
    "batch_index": lambda text: struct.pack(">i", int(text)), "severity": lambda text: struct.pack(">h", int(text)),
    "attributes": lambda text: _JSONB_VERSION + text.encode(),
}


def encoded(rows: bytes) -> bytes:
    """Returns rows of COPY's text format, of the columns that a batch has, in its binary format."""
    parts = [_HEAD]
    for event in events(Batch("", rows.count(b"\n"), "", "", rows)):
        parts.append(_COUNT)
        for name, text in event.items():
            value = None if text is None else _TYPES.get(name, str.encode)(text)
            parts += [_NULL] if value is None else [struct.pack(">i", len(value)), value]
    return b"".join([*parts, _END])
