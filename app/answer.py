"""Answer: what the app answers to one request, from WSGI's `start_response` to bytes."""

import functools
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from types import TracebackType
from typing import NamedTuple

from app import problem
from app.errors import Rejected

Headers = list[tuple[str, str]]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType]

LAST_CHUNK = b"0\r\n\r\n"

_BODILESS = ("204", "304")
_HOP_BY_HOP = frozenset((
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailers", "transfer-encoding",
    "upgrade", "server", "date",
))


class Framing(NamedTuple):
    """How an answer goes to a client.

    Args:
        is_current: The client speaks HTTP/1.1.
        keeps_alive: Another request may follow.
        is_head: The client asked for the head alone.
    """

    is_current: bool
    keeps_alive: bool
    is_head: bool = False


class Answer:
    """One answer in the making.

    Attributes:
        status: As given by the app, `"202 Accepted"`; empty until it is.
        headers: As given by the app.
    """

    __slots__ = ("status", "headers", "_written")

    def __init__(self) -> None:
        self.status = ""
        self.headers: Headers = []
        self._written: list[bytes] = []

    def start(self, status: str, headers: Headers, exc_info: ExcInfo | None = None) -> Callable[[bytes], None]:
        """WSGI's `start_response`. Nothing is sent yet, so that a second call may take the first one back."""
        if self.status and exc_info is None:
            raise AssertionError("the app has started its answer twice")
        self.status, self.headers = status, headers
        return self._written.append

    def whole(self, pieces: Sequence[bytes], framing: Framing) -> bytes:
        """Returns the answer with all of its body."""
        content = pieces[0] if len(pieces) == 1 and not self._written else b"".join([*self._written, *pieces])
        if framing.is_head or self.status[:3] in _BODILESS:
            return self.head(framing, None)
        return self.head(framing, len(content)) + content

    def begun(self, framing: Framing) -> tuple[bytes, bool]:
        """Returns the answer's beginning for a body that comes piece by piece, and whether it is chunked."""
        is_chunked = framing.is_current and not self._has("content-length") and self.may_have_body(framing)
        head = self.head(framing, None, "Transfer-Encoding: chunked\r\n" if is_chunked else "")
        return head + b"".join(self._written), is_chunked

    def ends_with_connection(self, framing: Framing) -> bool:
        """Tells whether only the connection's end can tell the client where a body that comes in pieces ends."""
        return not framing.is_current and not self._has("content-length") and self.may_have_body(framing)

    def may_have_body(self, framing: Framing) -> bool:
        """Tells whether anything may follow the head."""
        return not framing.is_head and self.status[:3] not in _BODILESS

    def head(self, framing: Framing, length: int | None, fields: str = "") -> bytes:
        """Returns the status line and the header fields; what is not for the app to say is left out or filled in.

        Raises:
            ValueError: A line of the app's would make two.
            AssertionError: The app has not started its answer.
        """
        if not self.status:
            raise AssertionError("the app has not started its answer")
        lines, has_length = [], False
        for name, value in self.headers:
            lower = name.lower()
            if lower not in _HOP_BY_HOP:
                lines.append(f"{name}: {value}\r\n")
                has_length = has_length or lower == "content-length"
        text = f"HTTP/1.1 {self.status}\r\n{''.join(lines)}"
        if text.count("\n") != len(lines) + 1 or text.count("\r") != len(lines) + 1 or "\0" in text:
            raise ValueError("the app's status or header fields have control characters")
        if length is not None and not has_length:
            fields += f"Content-Length: {length}\r\n"
        if not framing.keeps_alive:
            fields += "Connection: close\r\n"
        elif not framing.is_current:
            fields += "Connection: keep-alive\r\n"
        return f"{text}{_stamp(int(time.time()))}{fields}\r\n".encode("latin-1")

    def _has(self, name: str) -> bool:
        return any(given.lower() == name for given, _ in self.headers)


def refusal(error: Rejected) -> Answer:
    """Returns the answer to what the app never sees, and its body in place."""
    answer = Answer()
    phrase = HTTPStatus(error.status).phrase
    again = [("retry-after", "1")] if error.status == HTTPStatus.SERVICE_UNAVAILABLE else []
    write = answer.start(f"{error.status} {phrase}", [("content-type", problem.MEDIA_TYPE), *again])
    write(problem.document(error.status, error.cause, error.detail))
    return answer


def chunk(piece: bytes) -> bytes:
    """Returns a piece of a body as a chunk."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


@functools.lru_cache(1)
def _stamp(at_s: int) -> str:
    """Returns the lines that all answers of one second have."""
    return f"Server: spillway\r\nDate: {formatdate(at_s, usegmt=True)}\r\n"
