"""`POST /ingest`: one request, one Batch, one answer. Nothing is acknowledged before it is durable."""

import re
import time
from collections.abc import Callable
from functools import lru_cache
from hmac import compare_digest

import falcon
import gevent
import msgspec
from falcon import Request, Response
from gevent.lock import BoundedSemaphore
from gunicorn.http.errors import ParseException

from app import batch, body, form, metric
from app.appender import Appender
from app.committer import Committer
from app.errors import NotDurable, Rejected
from app.event import Defaults
from app.form import FORMS, Form, Limits
from app.pace import Pace
from app.parcel import STREAM
from app.settings import Settings
from app.slice import LARGE_BYTES, Pause

_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_CANARY_KEY = f"HTTP_{batch.CANARY_HEADER.upper().replace('-', '_')}"
_DEFAULTS = ("service", "host", "level")


class Ingest:
    """The resource. Holds no more than `max_inflight_bytes` of bodies and batches at a time.

    Args:
        committer: Confirms batches.
        appender: Says how durable the stream is.
        settings: Limits.
    """

    def __init__(self, committer: Committer, appender: Appender, settings: Settings) -> None:
        self._committer = committer
        self._appender = appender
        self._settings = settings
        self._limits = Limits(settings.max_events, settings.max_event_bytes, settings.max_decoded_bytes)
        self._room = _Room(settings.max_inflight_bytes)
        self._large_turn = BoundedSemaphore()

    def on_post(self, req: Request, resp: Response) -> None:
        """Takes a request; see `ops/REFERENCE.md` for forms, limits and status codes."""
        now_ns, started = time.time_ns(), time.monotonic()
        hold = _Hold(self._room)
        try:
            sent = self._read(req, hold)
            accepted = self._paced_batch(req, sent, now_ns)
            hold(len(accepted.payload))
            is_for_wal = _CANARY_KEY in req.env and self._is_for_wal(req)
            durability = self._committer.commit(accepted, is_for_wal, len(sent))  # HANDOVER 1 or 2
            self._acknowledge(resp, accepted, durability)
        except Rejected as error:
            metric.rejected.labels(error.cause).inc()
            raise
        finally:
            hold.release()
            metric.tally.observe(metric.request_seconds, time.monotonic() - started)

    def _read(self, req: Request, hold: Callable[[int], None]) -> bytes:
        coding = req.env.get("HTTP_TRANSFER_ENCODING")
        if coding is not None and coding.strip().lower() != "chunked":
            raise Rejected(400, "transfer_encoding", "Transfer-Encoding is allowed to be chunked, and nothing else")
        whole: bytes | None = req.env.get("spillway.body")  # the request loop's, where there was nothing to wait for
        if whole is not None and len(whole) <= self._settings.max_body_bytes:
            hold(len(whole))
            return whole
        length = None if coding else req.content_length or 0
        try:
            with gevent.Timeout(self._settings.body_timeout_s):
                return body.read(req.env["wsgi.input"], length, self._settings.max_body_bytes, hold)
        except (gevent.Timeout, TimeoutError) as error:  # Either may come first; the second is the request loop's.
            raise Rejected(408, "slow_body", f"the body took over {self._settings.body_timeout_s} s") from error
        except (ParseException, OSError) as error:
            # gunicorn closes the connection then: where a next request would start is unknown.
            raise Rejected(400, "framing", f"the body ends early or its chunks are malformed: {error}") from error

    def _paced_batch(self, req: Request, sent: bytes, now_ns: int) -> batch.Batch:
        if len(sent) <= LARGE_BYTES and "HTTP_CONTENT_ENCODING" not in req.env:
            return self._batch(req, sent, now_ns)
        pace = Pace(self._large_turn, self._settings.body_timeout_s)
        try:
            return self._batch(req, sent, now_ns, pace.pause)
        finally:
            pace.close()

    def _batch(self, req: Request, sent: bytes, now_ns: int, pause: Pause = lambda: None) -> batch.Batch:
        form_of_body = _form(req.content_type)
        key = req.env.get("HTTP_IDEMPOTENCY_KEY")
        if key is not None and not _KEY.fullmatch(key):
            raise Rejected(400, "idempotency_key", "Idempotency-Key is 1 to 255 printable ASCII characters")
        encoding = req.env.get("HTTP_CONTENT_ENCODING")
        text = sent
        if encoding:
            text = body.decompress(sent, encoding.strip().lower(), self._settings.max_decoded_bytes, pause)
        defaults = _defaults(req) if req.query_string else []
        if key is None:
            name = self._committer.next_id(), batch.KEYLESS
        else:
            name = batch.id_of_key(key), form.digest(text, defaults, pause)
        made = form.to_batch(form_of_body, text, defaults, name[0], now_ns, self._limits, name[1], pause)
        # Escaped, it may be five times as long; what there can never be room for must not be sent again and again.
        if len(made.payload) + len(sent) > self._settings.max_inflight_bytes:
            raise Rejected(413, "too_large", f"{len(made.payload)} bytes when encoded; send fewer events at a time")
        return made

    def _is_for_wal(self, req: Request) -> bool:
        """Tells whether it is our canary that asks for the WAL; to anybody else the header means nothing."""
        token = self._settings.canary_token
        return bool(token) and compare_digest(req.env[_CANARY_KEY].encode(), token.encode())

    def _acknowledge(self, resp: Response, accepted: batch.Batch, durability: str) -> None:
        answer = {"batch_id": accepted.batch_id, "accepted": accepted.count, "durability": durability}
        if durability == STREAM and self._appender.fsync != "always":
            answer["redis_fsync"] = self._appender.fsync
        resp.status = falcon.HTTP_202
        resp.set_header("Location", f"/batches/{accepted.batch_id}")
        resp.data = msgspec.json.encode(answer)


class _Room:
    """Bytes that requests hold at the same time."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0


class _Hold:
    """Counts what one request holds as it comes, not as it is announced: announcing costs a client nothing."""

    __slots__ = ("_room", "_bytes")

    def __init__(self, room: _Room) -> None:
        self._room = room
        self._bytes = 0

    def __call__(self, size: int) -> None:
        """Takes room for more; raises NotDurable where there is none."""
        room = self._room
        if room.held_bytes + size > room.max_bytes:
            raise NotDurable("inflight", f"{room.held_bytes} bytes of requests are in flight; send it again")
        self._bytes += size
        room.held_bytes += size

    def release(self) -> None:
        """Gives it all back."""
        self._room.held_bytes -= self._bytes


@lru_cache(256)
def _form(content_type: str | None) -> Form:
    media_type, _, parameters = (content_type or "application/json").lower().partition(";")
    found = FORMS.get(media_type.strip())
    if found is None:
        raise Rejected(415, "media_type", f"Content-Type {media_type[:80]!r} is not one of {', '.join(FORMS)}")
    charset = re.search(r"charset=\"?([^\";\s]+)", parameters)
    if charset and charset[1] not in ("utf-8", "utf8", "us-ascii", "ascii"):
        raise Rejected(415, "media_type", f"charset {charset[1][:40]!r}: UTF-8 is allowed, and nothing else")
    return found


def _defaults(req: Request) -> Defaults:
    defaults: list[tuple[str, str | int]] = []
    for name, value in req.params.items():
        if name not in _DEFAULTS:
            raise Rejected(400, "query", f"query parameter {name[:40]!r} is not one of {', '.join(_DEFAULTS)}")
        if not isinstance(value, str):
            raise Rejected(400, "query", f"query parameter {name!r} is given {len(value)} times; once is allowed")
        defaults.append((name, int(value) if name == "level" and value.isdecimal() and value.isascii() else value))
    return sorted(defaults, key=lambda pair: pair[0])
