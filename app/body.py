"""Request bodies: read whole and within bounds, and decompressed within bounds, or refused.

Memory for a hostile body stays flat: what is over a limit is never held, only counted.
"""

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from app.errors import Rejected

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_PIECE = 1 << 16
_SLICE = 1 << 18  # of decompressed text
_MAX_MEMBERS = 4096
_MAX_WINDOW_LOG = 23  # 8 MiB, what a decoder has to support (RFC 8878, section 3.1.1.1.2)
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


class _Decompressor(Protocol):
    """What `zlib` and `zstd` have in common: one member or frame of a stream."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def read(stream: BinaryIO, length: int | None, max_bytes: int, hold: Callable[[int], None]) -> bytes:
    """Reads a body as it was sent.

    Args:
        stream: The WSGI input.
        length: Content-Length; None: chunked.
        max_bytes: Most that is taken.
        hold: Told the size of each piece that is kept; what it raises ends the reading.

    Raises:
        Rejected: 413 over the limit, 400 when the client stopped before `length`.
    """
    pieces, size = [], 0
    while length is None or size < length:
        piece = stream.read(_PIECE if length is None else min(_PIECE, length - size))
        if not piece:
            break
        size += len(piece)
        if size <= max_bytes:
            hold(len(piece))
            pieces.append(piece)
        elif length is None or size > 4 * max_bytes:
            break  # Up to there the rest is read and dropped, so that the client gets to read the answer.
        else:
            pieces.clear()
    if size > max_bytes:
        raise Rejected(413, "too_large", f"the body has over {max_bytes} bytes as sent, the most that is allowed")
    if length is not None and size < length:
        raise Rejected(400, "truncated", f"the body ended after {size} of the {length} bytes in Content-Length")
    return b"".join(pieces)


def decompress(body: bytes, encoding: str, max_bytes: int, pause: Callable[[], None] = lambda: None) -> bytes:
    """Returns the body without its Content-Encoding: every member of it, or none.

    Args:
        encoding: The header, lower case; `""` and `"identity"` for none.
        max_bytes: Most that it may decompress to.
        pause: Called between two slices, where it is more than one.

    Raises:
        Rejected: 415 for an encoding that is unknown, 422 for a body that is not in it or is cut short, 413 over
            the limit.
    """
    if encoding in ("", "identity") or not body:
        return body
    make = _DECOMPRESSORS.get(encoding)
    if make is None:
        raise Rejected(415, "encoding", f"Content-Encoding {encoding[:40]!r} is not one of {', '.join(_DECOMPRESSORS)}")
    try:
        return _members(body, make, encoding, max_bytes, pause)
    except (zlib.error, zstd.ZstdError) as error:
        looks = next((f"; it looks like {name}" for magic, name in _MAGIC.items() if body.startswith(magic)), "")
        raise Rejected(422, "encoding", f"the body is not {encoding}: {error}{looks}") from error


def _members(
    body: bytes, make: Callable[[bytes], _Decompressor], encoding: str, max_bytes: int, pause: Callable[[], None]
) -> bytes:
    pieces, size, start = [], 0, 0
    for _ in range(_MAX_MEMBERS):
        member = make(body[start:start + 2])
        while start < len(body) and not member.eof:
            # In pieces: what is left over after a member is a copy, and there may be thousands of members.
            given = body[start:start + _PIECE]
            for piece in _slices(member, given):
                pieces.append(piece)
                size += len(piece)
                if size > max_bytes:
                    raise Rejected(413, "too_large", f"over {max_bytes} bytes when decompressed, the most allowed")
                if size >= _SLICE:
                    pause()
            start += len(given) - len(member.unused_data)
        if not member.eof:
            raise Rejected(422, "truncated", f"the {encoding} stream ends early, after {size} bytes of text")
        if start == len(body):
            return b"".join(pieces)
    raise Rejected(422, "encoding", f"the {encoding} body has over {_MAX_MEMBERS} members")


def _slices(member: _Decompressor, given: bytes) -> Iterator[bytes]:
    """Yields what some bytes of a member decompress to, of which there may be a thousand times as many."""
    piece = member.decompress(given, _SLICE)
    yield piece
    while len(piece) == _SLICE and not member.eof:
        # zlib wants to be given again what it has not come to; zstd keeps that.
        piece = member.decompress(getattr(member, "unconsumed_tail", b""), _SLICE)
        yield piece


def _deflate(start: bytes) -> _Decompressor:
    # RFC 9110 says zlib's format; some clients send bare deflate. The first two bytes of zlib's are divisible by 31.
    is_zlib = len(start) == 2 and start[0] & 15 == 8 and int.from_bytes(start, "big") % 31 == 0
    return zlib.decompressobj(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)


def _zstd(_: bytes) -> _Decompressor:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG})


_DECOMPRESSORS: dict[str, Callable[[bytes], _Decompressor]] = {
    "gzip": lambda _: zlib.decompressobj(zlib.MAX_WBITS | 16),
    "deflate": _deflate,
    "zstd": _zstd,
}
