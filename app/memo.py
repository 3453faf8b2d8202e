"""Memo: heads that were read before. A client that keeps its connection sends the same one again and again, but for the
length of the body, and to look it up takes a tenth of the time of reading it.

Kept is what was taken, never a refusal, under every byte of the head but for the digits of that length, of which only
the number counts: no head is taken that `Head` would refuse, and none is read in another way. What is kept is the same
for all, and never changed.
"""

import re
from functools import lru_cache

from app.head import Environ, Head, Limits

_MAX_HEADS = 256
_MAX_HEAD_BYTES = 1024  # With its limits, what is kept is a few MiB at most, whatever clients send.

# Not zero, nor with zeros before it: all heads with a body behind them are the same to the parser. As many digits are
# put in their place as there were, so that the head keeps its size.
_LENGTH = re.compile(rb"\r\nContent-Length: ([1-9][0-9]{0,17})\r\n", re.IGNORECASE)


def read_head(text: bytes, environ: Environ, limits: Limits) -> tuple[Head, int | None]:
    """Reads a head into a connection's environ, for one request.

    Args:
        text: All of it, from the request line to the empty line.
        environ: Takes the head's part; holds what is the same for all requests of the connection.
        limits: Bounds.

    Returns:
        The head, whose own `environ` and `length` may be those of another request, and the length of the body; None:
        it is chunked.

    Raises:
        Rejected: As `Head`.
    """
    if len(text) > _MAX_HEAD_BYTES:
        head = Head(text, limits)
        environ.update(head.environ)
        return head, head.length
    found = _LENGTH.search(text)
    if found is None:
        head = _head(text, limits)
        environ.update(head.environ)
        return head, head.length
    start, end = found.span(1)
    head = _head(text[:start] + b"1" * (end - start) + text[end:], limits)
    environ.update(head.environ)
    digits = environ["CONTENT_LENGTH"] = found[1].decode()
    return head, int(digits)


_head = lru_cache(_MAX_HEADS)(Head)
