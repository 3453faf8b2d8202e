"""Connection: one client's requests in turn, from bytes to the app and back: parsed, served, answered in one send.

A request that came ahead waits in the wire's buffer, and nothing more is received until it is its turn: what a client
sends ahead is bounded by one receive, and answers are in order.
"""

import io
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import chain
from types import SimpleNamespace
from typing import Any

import gevent

from app import log, metric
from app.answer import LAST_CHUNK, Answer, Framing, chunk, refusal
from app.errors import Rejected
from app.head import END, Environ, Limits, check_unfinished
from app.input import Chunked, Input, Sized
from app.memo import Memo
from app.wire import Wire

logger = logging.getLogger(__name__)

WHOLE = "spillway.body"  # in the environ: the body as one bytes object, where all of it came with the head

_framing = cache(Framing)  # of the eight there are: to make one takes a hundredth of a request

Note = Callable[[SimpleNamespace, SimpleNamespace, Environ, timedelta], None]
App = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


@dataclass(frozen=True)
class Terms:
    """What all connections of a worker have in common.

    Args:
        app: The WSGI application.
        limits: Of a head.
        head_timeout_s: Longest that a head may take, from its first byte.
        idle_timeout_s: Longest that a connection may wait for its next request; 0: it gets none.
        body_timeout_s: Longest that a body may take, from the end of its head.
        count: Counts a request; tells whether others may follow it.
        note: Writes a line of the access log; None: there is none.
    """

    app: App
    limits: Limits
    head_timeout_s: float
    idle_timeout_s: float
    body_timeout_s: float
    count: Callable[[], bool]
    note: Note | None


class Connection:
    """One client.

    Args:
        wire: To it.
        environ: What is the same in every environ of it.
        scheme_fields: Fields that say whether a proxy was reached by https, and the values that do.
        terms: Of the worker.

    Attributes:
        is_idle: It waits for a request of which nothing has come.
    """

    def __init__(self, wire: Wire, environ: Environ, scheme_fields: dict[str, str], terms: Terms) -> None:
        self.wire = wire
        self.is_idle = False
        self._memo = Memo(environ, scheme_fields, terms.limits)
        self._terms = terms
        self._keeps_alive = True
        self._is_lingering = False
        self._has_begun = False
        self._has_served = False

    def serve(self) -> None:
        """Serves requests until either side ends."""
        try:
            while self._keeps_alive and (text := self._receive_head()) is not None:
                self._serve_one(text)
        except Rejected as error:
            metric.malformed.labels(error.cause).inc()
            self._refuse(error)
        except OSError:
            self._is_lingering = False  # The client is gone.
        except Exception:
            # The last resort of one connection: nothing was acknowledged by what is sent here.
            logger.exception(log.line("connection_failed"))
            if not self._has_begun:
                self._refuse(Rejected(503, "internal", "a fault of this service; send it again"))
        finally:
            self.wire.close(self._is_lingering)

    def _receive_head(self) -> bytes | None:
        """Returns the next head; None when the client has ended or stays idle."""
        wire = self.wire
        if wire.buffer.startswith(b"\r\n"):
            wire.buffer = wire.buffer[2:]  # RFC 9112, section 2.2: one empty line may stand before a request.
        if wire.buffer and (end := wire.buffer.find(END)) >= 0:
            gevent.sleep(0)  # Who sends ahead must not keep others waiting.
        elif (end := self._await_head()) < 0:
            return None
        text, wire.buffer = wire.buffer[:end + 4], wire.buffer[end + 4:]
        return text

    def _await_head(self) -> int:
        wire, terms = self.wire, self._terms
        self.is_idle = not wire.buffer
        is_waiting_again = self.is_idle and self._has_served
        deadline = time.monotonic() + (terms.idle_timeout_s if is_waiting_again else terms.head_timeout_s)
        while piece := wire.receive(deadline):
            if self.is_idle:
                self.is_idle, deadline = False, time.monotonic() + terms.head_timeout_s
                piece = piece.removeprefix(b"\r\n")
            searched = max(0, len(wire.buffer) - 3)
            wire.buffer += piece
            if (end := wire.buffer.find(END, searched)) >= 0:
                return end
            check_unfinished(wire.buffer, terms.limits)
        self.is_idle = False
        if wire.is_expired and wire.buffer:
            raise Rejected(408, "slow_head", f"the head took over {terms.head_timeout_s} s")
        if wire.buffer:
            raise Rejected(400, "malformed", "the head ends early")
        return -1

    def _serve_one(self, text: bytes) -> None:
        terms, started = self._terms, time.monotonic()
        head, environ, length = self._memo.read(text)
        body = self._body(environ, length, head.expects, started + terms.body_timeout_s)
        answer = Answer()
        result = terms.app(environ, answer.start)
        try:
            # Asked now: the worker may have been told to stop meanwhile.
            may_follow = terms.count() and head.keeps_alive and terms.idle_timeout_s > 0
            # Where the next request begins is known only behind the end of this one.
            self._keeps_alive = may_follow and (body is None or body.is_done) and not self.wire.is_expired
            self._is_lingering = head.keeps_alive or body is not None and not body.is_done
            framing = _framing(environ["SERVER_PROTOCOL"] == "HTTP/1.1", self._keeps_alive,
                               environ["REQUEST_METHOD"] == "HEAD")
            sent_bytes = self._send(answer, result, framing)
        finally:
            if hasattr(result, "close"):
                result.close()
        self._has_served = True
        if terms.note:
            _note(terms.note, answer, environ, sent_bytes, time.monotonic() - started)

    def _send(self, answer: Answer, result: Iterable[bytes], framing: Framing) -> int:
        """Sends an answer, in one call where its body is there; returns the bytes of the body."""
        if isinstance(result, (list, tuple)):
            self.wire.send(answer.whole(result, framing))
            return sum(map(len, result))
        pieces = iter(result)
        first = next(pieces, b"")  # An app may not start its answer before it is asked for the body.
        if answer.ends_with_connection(framing):
            self._keeps_alive, framing = False, framing._replace(keeps_alive=False)
        begin, is_chunked = answer.begun(framing)
        self._has_begun = True
        self.wire.send(begin)
        sent_bytes = 0
        for piece in chain((first,), pieces) if answer.may_have_body(framing) else ():
            if piece:
                self.wire.send(chunk(piece) if is_chunked else piece)
                sent_bytes += len(piece)
        if is_chunked:
            self.wire.send(LAST_CHUNK)
        self._has_begun = False
        return sent_bytes

    def _refuse(self, error: Rejected) -> None:
        self._is_lingering = True
        with suppress(OSError):
            self.wire.send(refusal(error).whole([], Framing(is_current=True, keeps_alive=False)))

    def _body(self, environ: Environ, length: int | None, expects: bool, deadline: float) -> Input | None:
        """Gives the app its body; returns None where all of it is there."""
        wire = self.wire
        if length is None:
            environ["wsgi.input"] = chunked = Chunked(wire, deadline, expects)
            return chunked
        if length > len(wire.buffer):
            environ["wsgi.input"] = sized = Sized(wire, deadline, expects, length)
            return sized
        environ[WHOLE], wire.buffer = wire.buffer[:length], wire.buffer[length:]
        environ["wsgi.input"] = io.BytesIO(environ[WHOLE])
        return None


def _note(note: Note, answer: Answer, environ: Environ, sent_bytes: int, seconds: float) -> None:
    """Writes a line of the access log, by gunicorn's own formatter."""
    headers = [(key[5:].replace("_", "-"), value) for key, value in environ.items() if key.startswith("HTTP_")]
    response = SimpleNamespace(status=answer.status, headers=answer.headers, sent=sent_bytes)
    note(response, SimpleNamespace(headers=headers), environ, timedelta(seconds=seconds))
