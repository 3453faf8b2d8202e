"""Memo: the last head of a connection. A client mostly sends the same one again, but for the length of the body, and to
compare it takes a tenth of the time of reading it.

Only a head that was taken is remembered, and only one with the same bytes, but for the digits of that length, is read
as it was: no head is taken that `Head` would refuse, and none is read in another way.
"""

import re

from app.head import Environ, Head, Limits, read_scheme

_MAX_BYTES = 2048  # of a head that is remembered, so that idle connections hold little

# Not zero, nor with zeros before it: all heads with a body behind them are the same to the parser.
_LENGTH = re.compile(rb"\r\nContent-Length: ([1-9][0-9]{0,17})\r\n", re.IGNORECASE)


class Memo:
    """Reads the heads of one connection.

    Args:
        environ: What is the same in every environ of it.
        scheme_fields: Fields that say whether a proxy was reached by https, and the values that do.
        limits: Of a head.
    """

    def __init__(self, environ: Environ, scheme_fields: dict[str, str], limits: Limits) -> None:
        self._common = environ
        self._scheme_fields = scheme_fields
        self._limits = limits
        self._head: Head
        self._environ: Environ
        self._size = 0
        self._begin = b""  # all before the digits of the length, or all of a head without any
        self._rest = b""

    def read(self, text: bytes) -> tuple[Head, Environ, int | None]:
        """Reads a head.

        Args:
            text: All of it, from the request line to the empty line.

        Returns:
            The head, whose own `environ` and `length` may be those of another request; the environ, but for
            `wsgi.input`, which is the caller's; and the length of the body, None where it is chunked.

        Raises:
            Rejected: As `Head`.
        """
        if len(text) == self._size and text.startswith(self._begin) and text.endswith(self._rest):
            digits = text[len(self._begin):self._size - len(self._rest)]
            if not digits:
                return self._head, self._environ.copy(), self._head.length
            if digits.isdigit() and not digits.startswith(b"0"):
                environ = self._environ.copy()
                environ["CONTENT_LENGTH"] = digits.decode()
                return self._head, environ, int(digits)
        return self._read_anew(text)

    def _read_anew(self, text: bytes) -> tuple[Head, Environ, int | None]:
        head = Head(text, self._limits)
        environ = {**self._common, **head.environ}
        read_scheme(environ, self._scheme_fields)
        if len(text) <= _MAX_BYTES:
            found = _LENGTH.search(text)
            start, end = found.span(1) if found else (len(text), len(text))
            self._size, self._begin, self._rest = len(text), text[:start], text[end:]
            self._head, self._environ = head, environ.copy()
        return head, environ, head.length
