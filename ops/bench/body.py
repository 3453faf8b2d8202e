"""The events that are posted: the same ones in batches of any size, as request bodies and as batches."""

import json
import random
import time
from collections.abc import Iterator, Sequence
from itertools import cycle

import msgspec

from app import batch, form
from app.batch import Batch

_LEVELS = ("DEBUG", "INFO", "INFO", "INFO", "WARN", "ERROR")
_PATHS = ("/api/cart", "/api/items", "/login", "/health")
_SERVICES = ("checkout", "search", "identity")
_MAX_EVENT_BYTES = 1 << 20


def events(count: int, seed: int = 1) -> list[bytes]:
    """Returns JSON objects of some 290 bytes, the same from the same seed but for their time, which is now."""
    chance = random.Random(seed)
    second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    return [json.dumps({
        "timestamp": f"{second}.{index % 1_000_000:06}Z",
        "level": chance.choice(_LEVELS),
        "service": chance.choice(_SERVICES),
        "host": f"web-{chance.randrange(8)}",
        "message": f"{chance.choice(_PATHS)} took {chance.randrange(900)} ms for user {chance.randrange(10**6)}",
        "trace_id": f"{chance.getrandbits(128):032x}",
        "attributes": {"status": chance.choice((200, 200, 404)), "bytes": chance.randrange(10**5), "cached": False},
    }).encode() for index in range(count)]


class Bodies:
    """Events cut into requests of one size.

    Args:
        pool: The events; those beyond the last full request are left out.
        size: Events in a request; a single event is sent as an object, not as an array.
    """

    def __init__(self, pool: Sequence[bytes], size: int) -> None:
        self.size = size
        parts = [pool[start:start + size] for start in range(0, len(pool) - size + 1, size)]
        self.bodies = [part[0] if size == 1 else b"[" + b",".join(part) + b"]" for part in parts]
        self._encoded: list[Batch] = []

    @property
    def encoded(self) -> list[Batch]:
        """The requests as the edge encodes them, one batch each."""
        if not self._encoded:
            limits = form.Limits(self.size, _MAX_EVENT_BYTES)
            self._encoded = [
                form.to_batch(form.FORMS["application/json"], body, [], batch.new_id(), time.time_ns(), limits)
                for body in self.bodies
            ]
        return self._encoded

    def fresh(self, count: int) -> Iterator[Batch]:
        """Yields so many batches, each under an id that no other has, as if each were another request."""
        for _, one in zip(range(count), cycle(self.encoded)):
            name = batch.new_id()
            payload = one.payload.replace(one.batch_id.encode(), name.encode())
            yield msgspec.structs.replace(one, batch_id=name, payload=payload)

    def transactions(self, event_count: int, max_bytes: int) -> Iterator[bytes]:
        """Yields the COPY text of so many events, in transactions of the bytes that a consumer loads at once."""
        parts: list[bytes] = []
        for _, one in zip(range(-(-event_count // self.size)), cycle(self.encoded)):
            parts.append(one.payload)
            if len(one.payload) * len(parts) >= max_bytes:
                yield b"".join(parts)
                parts = []
        if parts:
            yield b"".join(parts)
