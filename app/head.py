"""Head: what a request says before its body, from bytes to a WSGI environ, or refused.

llhttp reads it, and what llhttp is lenient about is checked here: a request that two readers could cut differently is
the way to smuggle a second one past whoever stands in front. Each head gets a parser of its own, so that nothing of
one request can be left over in the next.
"""

import functools
import re
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from app.errors import Rejected

Environ = dict[str, Any]

END = b"\r\n\r\n"
MAX_BYTES = 1 << 15  # of the whole head, whatever its single limits would add up to

_TEXT = bytes([9, *range(32, 127), *range(128, 256)])
_METHOD = re.compile(rb"[A-Z-]{3,20}")
_TARGET = re.compile(rb"/[!-\"$-~]*")  # printable ASCII but for `#`
_ABSOLUTE = re.compile(rb"(?i:https?)://[!-\"$-~]+")
_LENGTH = re.compile(r"[0-9]{1,18}")
_VERSIONS = {b"HTTP/1.1": "HTTP/1.1", b"HTTP/1.0": "HTTP/1.0"}
_SINGLE = ("HTTP_HOST", "HTTP_TRANSFER_ENCODING", "CONTENT_LENGTH", "CONTENT_TYPE")
_CODINGS = {"chunked", "identity", "compress", "deflate", "gzip"}
_CLOSE, _KEEP = "close", "keep-alive"


class Limits(NamedTuple):
    """Bounds of a head; as gunicorn's settings of the same names."""

    request_line: int
    request_fields: int
    request_field_size: int


class Head:
    """One request's head.

    Args:
        text: All of it, from the request line to the empty line.
        limits: Bounds.

    Raises:
        Rejected: It is malformed, ambiguous or too large; the connection is of no more use.

    Attributes:
        environ: Its part of the environ.
        length: Bytes of the body; None: it is chunked.
        keeps_alive: Whether the client allows another request.
        expects: Whether the client waits for `100 Continue` before it sends the body.
    """

    def __init__(self, text: bytes, limits: Limits) -> None:
        self.environ = environ = Environ()
        self._repeated: list[str] = []
        line_bytes = text.find(b"\r\n")
        _check_size(text, line_bytes, limits)
        _check_text(text)
        self._read_line(text[:line_bytes])
        try:
            HttpRequestParser(self).feed_data(text)
        except HttpParserUpgrade:
            pass  # No other protocol is spoken here: it is served as if it had not asked.
        except HttpParserError as error:
            if coding := environ.get("HTTP_TRANSFER_ENCODING"):
                _check_coding(coding, True, None)  # to be told apart by its status
            raise malformed(str(error)) from error
        if self._repeated:
            raise malformed(f"{self._repeated[0]} is given more than once")
        is_current = environ["SERVER_PROTOCOL"] == "HTTP/1.1"
        if is_current and "HTTP_HOST" not in environ:
            raise malformed("Host is missing")
        self.length = self._read_length(is_current)
        self.keeps_alive = _keeps_alive(environ.get("HTTP_CONNECTION"), is_current)
        self.expects = "HTTP_EXPECT" in environ and _expects(environ["HTTP_EXPECT"], is_current)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a field; called by the parser."""
        key = _key(name)
        if key in self.environ:
            if key in _SINGLE:
                self._repeated.append(name.decode("latin-1"))
            self.environ[key] += f",{value.rstrip().decode('latin-1')}"
        elif key:
            self.environ[key] = value.rstrip().decode("latin-1")

    def _read_line(self, line: bytes) -> None:
        try:
            method, target, version = line.split(b" ")
        except ValueError as error:
            raise malformed("the request line is not a method, a target and a version") from error
        protocol = _VERSIONS.get(version)
        if protocol is None:
            _refuse_version(version)
        if not _METHOD.fullmatch(method):
            raise malformed("the method is not upper-case letters")
        if not _TARGET.fullmatch(target):
            path, query = _unusual_target(method, target)
        else:
            path, _, query = target.partition(b"?")
        environ = self.environ
        environ["REQUEST_METHOD"] = method.decode()
        environ["RAW_URI"] = target.decode()
        environ["QUERY_STRING"] = query.decode()
        environ["PATH_INFO"] = (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1")
        environ["SERVER_PROTOCOL"] = protocol

    def _read_length(self, is_current: bool) -> int | None:
        coding, length = self.environ.get("HTTP_TRANSFER_ENCODING"), self.environ.get("CONTENT_LENGTH")
        if coding is not None:
            _check_coding(coding, is_current, length)
            return None
        if length is None:
            return 0
        if not _LENGTH.fullmatch(length):
            raise malformed("Content-Length is not a number of bytes")
        return int(length)


def malformed(detail: str) -> Rejected:
    """Returns the error for what is no HTTP."""
    return Rejected(400, "malformed", detail)


def read_scheme(environ: Environ, fields: dict[str, str]) -> None:
    """Takes a trusted proxy's word for the scheme; refuses two that differ."""
    if environ.keys().isdisjoint(fields):
        return
    found = {"https" if environ[key] == value else "http" for key, value in fields.items() if key in environ}
    if len(found) > 1:
        raise malformed("the fields that tell the scheme contradict each other")
    environ["wsgi.url_scheme"] = found.pop()


def check_unfinished(text: bytes, limits: Limits) -> None:
    """Refuses the beginning of a head that can never become one, however it goes on."""
    if text.count(b"\n") != text.count(b"\r\n"):
        raise malformed("a line ends in LF alone")
    if b"\r\n" not in text[:limits.request_line + 2] and len(text) > limits.request_line + 1:
        raise _too_long(limits)
    if len(text) >= MAX_BYTES:
        raise Rejected(431, "large_head", f"the head has over {MAX_BYTES} bytes")


def _too_long(limits: Limits) -> Rejected:
    return Rejected(414, "long_line", f"the request line has over {limits.request_line} bytes")


def _check_size(text: bytes, line_bytes: int, limits: Limits) -> None:
    if line_bytes > limits.request_line:
        raise _too_long(limits)
    if len(text) > MAX_BYTES:
        raise Rejected(431, "large_head", f"the head has over {MAX_BYTES} bytes")
    if text.count(b"\r\n") - 2 > limits.request_fields:
        raise Rejected(431, "large_head", f"there are over {limits.request_fields} header fields")
    size = limits.request_field_size
    if len(text) - line_bytes > size and max(map(len, text.split(b"\r\n")[1:])) + 2 > size:
        raise Rejected(431, "large_head", f"a header field has over {size} bytes")


def _check_text(text: bytes) -> None:
    # What is left without text are the ends of lines: CR and LF in pairs, or it is not HTTP.
    if text.translate(None, _TEXT) != b"\r\n" * text.count(b"\r\n"):
        raise malformed("there are control characters, or a line ends in CR or LF alone")
    if b"\n " in text or b"\n\t" in text:
        raise malformed("a header field is folded")


def _refuse_version(version: bytes) -> None:
    if re.fullmatch(rb"HTTP/\d\.\d", version):
        raise Rejected(505, "version", "HTTP/1.1 and HTTP/1.0 are spoken here")
    raise malformed("the request line does not end in a version of HTTP")


def _unusual_target(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    if target == b"*" and method == b"OPTIONS":
        return target, b""
    if method != b"CONNECT" and _ABSOLUTE.fullmatch(target):
        try:
            parts = urlsplit(target)
        except ValueError as error:
            raise malformed("the target is not a URI") from error
        return parts.path or b"/", parts.query
    raise malformed("the target is not a path")


def _check_coding(coding: str, is_current: bool, length: str | None) -> None:
    if length is not None or not is_current:
        raise malformed("Transfer-Encoding stands beside Content-Length, or in HTTP/1.0")
    if coding.lower() == "chunked":
        return
    names = [name.strip(" \t").lower() for name in coding.split(",")]
    if set(names) - _CODINGS:
        raise Rejected(501, "transfer_encoding", "Transfer-Encoding is allowed to be chunked, and nothing else")
    raise Rejected(400, "transfer_encoding", "Transfer-Encoding is allowed to be chunked, and nothing else")


def _keeps_alive(connection: str | None, is_current: bool) -> bool:
    if connection is None:
        return is_current
    options = {option.strip(" \t").lower() for option in connection.split(",")}
    return _CLOSE not in options and (is_current or _KEEP in options)


def _expects(expectation: str, is_current: bool) -> bool:
    if expectation.lower() != "100-continue":
        raise Rejected(417, "expectation", "Expect is allowed to be 100-continue, and nothing else")
    return is_current


@functools.lru_cache(1024)
def _key(name: bytes) -> str:
    """Returns a field's key in the environ; empty: it is dropped.

    With `_` in it, it would be taken for another one's, by us or by whoever stands behind us.
    """
    if b"_" in name:
        return ""
    key = name.decode("latin-1").upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
