"""An Event as a real client would log it, that can be recognised and checked again as a row.

`trace_id` is the tag of the request that carried it, `attributes.run` the run. `attributes.digest` is the digest of
all else that was sent and of the event's place in the batch, so that PostgreSQL alone can tell, row by row, whether
an event is still itself and in its place: see `ALTERED`, which must mirror `_digest`.
"""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

# concat_ws skips NULL, as `_digest` skips a field that was not sent. extract() is numeric: no microsecond is lost.
ALTERED = """attributes->>'digest' IS DISTINCT FROM left(encode(sha256(convert_to(concat_ws(chr(31),
    batch_index, (extract(epoch FROM ts) * 1000000)::bigint, level, service, host, message, trace_id, span_id,
    (attributes - 'digest')::text), 'UTF8')), 'hex'), 32)"""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LEVELS = ("INFO",) * 12 + ("DEBUG",) * 4 + ("WARN", "warning", "ERROR", "ERROR", "FATAL", "notice")
_SERVICES = ("checkout", "payments", "search", "auth", "mailer", "größen-api", "推荐")
_MESSAGES = (
    "GET /api/v1/orders/8213 HTTP/1.1 200 1534",
    "user signed in from 203.0.113.7 (mfa=totp)",
    "cache miss for key 'cart:7f3a', falling back to database",
    "slow query: SELECT * FROM orders WHERE note LIKE '%\\_%' took 1843 ms",
    "пароль не подошёл: Zoë ☕ 👩‍💻 مرحبا 日本語 \u202ertl\u202c \ufeff",
    "payment declined\tcode=51\tretry=false\\n is not a newline, \\. is no end and \\N no null",
    "Traceback (most recent call last):\n  File \"/srv/app/pay.py\", line 88, in charge\n"
    "    gateway.post(order)\nTimeoutError: [Errno 110] timed out\r\n",
    "\x1b[31mred\x1b[0m \x7f \"quoted\" {\"json\": \"in a message\"} </script>",
)


def make(run: str, tag: str, index: int, chance: Random, now: datetime) -> dict[str, Any]:
    """Returns an event.

    Args:
        run: Names the run, for the verifier to look at its rows only.
        tag: Names the request; 32 hex digits.
        index: The event's place in its batch, from 0.
        chance: Source of variety.
        now: About when it happened; must be aware of its zone.
    """
    attributes = _attributes(run, chance)
    fields = {
        "timestamp": _timestamp(now, chance),
        "level": chance.choice(_LEVELS),
        "service": chance.choice(_SERVICES),
        "host": f"node-{chance.randrange(40):02d}.eu-central" if chance.random() < 0.95 else None,
        "message": f"#{index} {chance.choice(_MESSAGES)}",
        "trace_id": tag,
        "span_id": f"{chance.getrandbits(64):016x}" if chance.random() < 0.5 else None,
        "attributes": attributes,
    }
    event = {field: value for field, value in fields.items() if value is not None}
    attributes["digest"] = _digest(event, index)
    return event


def _timestamp(now: datetime, chance: Random) -> str | int:
    moment = now - timedelta(microseconds=chance.randrange(3_600_000_000))
    if chance.random() < 0.2:
        return (moment - _EPOCH) // timedelta(milliseconds=1)
    return moment.isoformat(timespec=chance.choice(("milliseconds", "microseconds", "seconds")))


def _attributes(run: str, chance: Random) -> dict[str, Any]:
    attributes: dict[str, Any] = {"run": run, "http.status": chance.choice((200, 201, 404, 500))}
    if chance.random() < 0.5:
        attributes["latency_ms"] = chance.randrange(1, 10**6) / 1000
        attributes["user"] = {"id": chance.getrandbits(50), "näme": "Zoë"}
    if chance.random() < 0.2:
        attributes |= {"tags": ["a\tb", "", None, True, {"k\"": "\\"}], "pod uid": None, "amount": -12.50}
    return attributes


def _digest(event: dict[str, Any], index: int) -> str:
    fields = [str(index), str(_micros(event["timestamp"]))]
    texts = ("level", "service", "host", "message", "trace_id", "span_id")
    fields += [event[field] for field in texts if field in event]
    fields.append(json.dumps(_ordered(event["attributes"]), ensure_ascii=False))
    return hashlib.sha256("\x1f".join(fields).encode()).hexdigest()[:32]


def _micros(timestamp: str | int) -> int:
    if isinstance(timestamp, int):
        return timestamp * 1000
    return (datetime.fromisoformat(timestamp) - _EPOCH) // timedelta(microseconds=1)


def _ordered(value: Any) -> Any:
    """Puts keys in jsonb's order, shorter first, which makes `json.dumps` write what `jsonb::text` writes."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
        return {key: _ordered(value[key]) for key in keys}
    return [_ordered(item) for item in value] if isinstance(value, list) else value
