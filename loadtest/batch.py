"""The Batch, as a client sees it: the body and headers of one request, the same bytes at each attempt."""

import gzip
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from loadtest import event


@dataclass(frozen=True, slots=True)
class Batch:
    """What is posted.

    Args:
        tag: Names the request; every event of it carries it. It is the Idempotency-Key as well, where there is one.
        count: Events in the body.
        is_keyed: A retry is safe.
        is_bad: The body must be refused whole.
        headers, body: What goes out.
    """

    tag: str
    count: int
    is_keyed: bool
    is_bad: bool
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of requests, each 0 to 1: with an Idempotency-Key, compressed, and bad on purpose."""

    keyed: float = 0.5
    gzip: float = 0.3
    bad: float = 0.01


def make(run: str, count: int, mix: Mix, chance: Random) -> Batch:
    """Returns a batch of `count` events under a new tag."""
    # Not from chance alone: to a service that has seen the same seed before, its keys would come with other bodies.
    tag = uuid5(NAMESPACE_OID, f"{run} {chance.getrandbits(128)}").hex
    is_keyed, is_bad = chance.random() < mix.keyed, chance.random() < mix.bad
    now = datetime.now(UTC)
    events = [event.make(run, tag, index, chance, now) for index in range(count)]
    if is_bad:
        _spoil(chance.choice(events), chance)
    content_type, body = _encoded(events, chance)
    headers = {"Content-Type": content_type} | ({"Idempotency-Key": tag} if is_keyed else {})
    if chance.random() < mix.gzip:
        headers["Content-Encoding"], body = "gzip", gzip.compress(body, 1)
    return Batch(tag, count, is_keyed, is_bad, headers, body)


def _spoil(bad: dict[str, Any], chance: Random) -> None:
    spoiled: dict[str, Any] = chance.choice((
        {"message": None}, {"message": "NUL \0 within"}, {"timestamp": "yesterday"}, {"attributes": ["no object"]},
    ))
    bad.update(spoiled)


def _encoded(events: list[dict[str, Any]], chance: Random) -> tuple[str, bytes]:
    has_escapes = chance.random() < 0.5  # \u escapes and raw UTF-8 must come to the same
    if chance.random() < 0.5:
        lines = (json.dumps(line, ensure_ascii=has_escapes) for line in events)
        return "application/x-ndjson", "\n".join(lines).encode() + b"\n"
    form = events[0] if len(events) == 1 and chance.random() < 0.5 else events
    return "application/json", json.dumps(form, ensure_ascii=has_escapes, separators=(",", ":")).encode()
