"""Input: a request's body as WSGI's `wsgi.input`, read off the wire while the app asks for it."""

import io
import re
from collections.abc import Iterator

from gunicorn.http.errors import ParseException

from app.wire import Wire

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_MAX_LINE_BYTES = 4096
_MAX_TRAILER_BYTES = 8192

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
# RFC 9112, section 7.1.1; a size of over 15 digits is nobody's.
_VALUE = rb"[ \t]*=[ \t]*(?:" + _TOKEN + rb"|" + _QUOTED + rb")"
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[ \t]*" + _TOKEN + rb"(?:" + _VALUE + rb")?)*\r\n")
_TRAILERS = re.compile(rb"(?:" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n)*")
_FORBIDDEN = re.compile(rb"(?im)^(?:host|content-length|transfer-encoding|trailer|authorization|te):")


class Input(io.RawIOBase):
    """A body that has not come whole.

    Args:
        wire: Where it comes from.
        deadline: When it has to be there, on the monotonic clock.
        expects: The client waits for `100 Continue`.

    Attributes:
        is_done: The body was read to its end: what follows on the wire is the next request.
    """

    def __init__(self, wire: Wire, deadline: float, expects: bool) -> None:
        self.is_done = False
        self._wire = wire
        self._deadline = deadline
        self._expects = expects
        self._ahead = b""

    def read(self, size: int | None = -1) -> bytes:
        """Returns `size` bytes, fewer at the end; negative or None: all.

        Raises:
            ParseException: It is malformed, or ends early where it is chunked.
            TimeoutError: The deadline has passed.
            OSError: The connection is gone.
        """
        wanted = -1 if size is None else size
        pieces, count = [self._ahead], len(self._ahead)
        while wanted < 0 or count < wanted:
            piece = self._next(wanted - count)
            if not piece:
                break
            pieces.append(piece)
            count += len(piece)
        whole = b"".join(pieces)
        if wanted < 0:
            self._ahead = b""
            return whole
        self._ahead = whole[wanted:]
        return whole[:wanted]

    def readline(self, size: int | None = -1) -> bytes:
        """Returns a line, its end included."""
        wanted = -1 if size is None else size
        while b"\n" not in self._ahead and (wanted < 0 or len(self._ahead) < wanted):
            piece = self._next(-1)
            if not piece:
                break
            self._ahead += piece
        end = self._ahead.find(b"\n") + 1 or len(self._ahead)
        return self.read(end if wanted < 0 else min(end, wanted))

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def _next(self, wanted: int) -> bytes:
        """Returns some bytes of the body, at most `wanted` where that is a bound; none at its end."""
        raise NotImplementedError

    def _invite(self) -> None:
        """Tells a client that waits to go on, unless it has not waited."""
        if self._expects and not self._wire.buffer:
            self._wire.send(_CONTINUE)
        self._expects = False

    def _check_deadline(self) -> None:
        if self._wire.is_expired:
            raise TimeoutError("the body took too long")


class Sized(Input):
    """A body of which Content-Length tells the size.

    Args:
        wire: Where it comes from.
        deadline: When it has to be there, on the monotonic clock.
        expects: The client waits for `100 Continue`.
        length: Its size.
    """

    def __init__(self, wire: Wire, deadline: float, expects: bool, length: int) -> None:
        super().__init__(wire, deadline, expects)
        self._left = length

    def _next(self, wanted: int) -> bytes:
        if not self._left:
            return b""
        self._invite()
        piece = self._wire.take(self._deadline, self._left if wanted < 0 else min(wanted, self._left))
        if not piece:
            self._check_deadline()
        self._left -= len(piece)
        self.is_done = not self._left
        return piece


class Chunked(Input):
    """A body in chunks; their extensions and the trailer fields are checked and dropped."""

    _left = 0
    _has_open_chunk = False

    def _next(self, wanted: int) -> bytes:
        while not self.is_done:
            self._invite()
            if piece := self._decoded():
                return piece
            if not self.is_done:
                self._fill()
        return b""

    def _fill(self) -> None:
        piece = self._wire.receive(self._deadline)
        if not piece:
            self._check_deadline()
            raise ParseException("the chunks end early")
        self._wire.buffer += piece

    def _decoded(self) -> bytes:
        """Takes what it can out of the buffer, and returns the data in it."""
        buffer, at, pieces = self._wire.buffer, 0, []
        while at < len(buffer) and not self.is_done:
            if self._left:
                pieces.append(buffer[at:at + self._left])
                at += len(pieces[-1])
                self._left -= len(pieces[-1])
            elif (end := self._line(buffer, at)) > at:
                at = end
            else:
                break
        self._wire.buffer = buffer[at:]
        return b"".join(pieces)

    def _line(self, buffer: bytes, at: int) -> int:
        """Reads what stands between the data of two chunks, or behind the last; returns where that ends, or `at`."""
        start = at
        if self._has_open_chunk:
            if len(buffer) < at + 2:
                return at
            if buffer[at:at + 2] != b"\r\n":
                raise ParseException("a chunk is longer than its size")
            start += 2
        found = _SIZE.match(buffer, start)
        if found is None:
            self._check_line(buffer, start)
            return at
        self._left = int(found[1], 16)
        if self._left:
            self._has_open_chunk = True
            return found.end()
        end = _end_of_trailers(buffer, found.end())
        self.is_done = end > 0
        return end or at

    def _check_line(self, buffer: bytes, start: int) -> None:
        """Refuses a line that can never become a chunk's size."""
        if b"\n" in buffer[start:] or len(buffer) - start > _MAX_LINE_BYTES:
            raise ParseException("a chunk has no size, or a wrong one")


def _end_of_trailers(buffer: bytes, start: int) -> int:
    """Returns where the trailer section ends; 0: not yet."""
    if buffer.startswith(b"\r\n", start):
        return start + 2
    end = buffer.find(b"\r\n\r\n", start) + 2
    if end < 2:
        section = buffer[start:]
        if section.count(b"\n") != section.count(b"\r\n") or len(section) > _MAX_TRAILER_BYTES:
            raise ParseException("the trailer fields are malformed or too large")
        return 0
    section = buffer[start:end]
    if len(section) > _MAX_TRAILER_BYTES or not _TRAILERS.fullmatch(section) or _FORBIDDEN.search(section):
        raise ParseException("the trailer fields are malformed, too large or not allowed there")
    return end + 2
