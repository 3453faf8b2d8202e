"""The format: what a segment's header and its frames look like in bytes. FORMAT.md is its description.

Whatever is needed to tell a frame that was written here from a torn, stale or copied one stands in its checksum:
the segment's identity and the frame's offset besides the frame itself. There is no count and no "valid" flag: after
a power cut any page may be new and any other old.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple
from zlib import crc32

from wal.errors import WalCorrupt

VERSION = 1
MAGIC = b"SPILLWAL"
# Found by searching when frames before it are damaged.
FRAME_MAGIC = b"\xf5REC"
IDENTITY_BYTES = 16
HEADER_BYTES = 40
FRAME_BYTES = 32
ALIGNMENT = 8
_MOST_AROUND = FRAME_BYTES + ALIGNMENT - 1
# A bound for what a damaged length can claim, and for what one record may take of the memory of a reader.
MAX_RECORD_BYTES = 256 << 20
IS_SEAL = 1

_HEADER = struct.Struct("<8sI16sQ")
# The offset is not stored: it only goes into the checksum.
_CHECKED = struct.Struct("<QIIIIQ")
_OFFSET_BYTES = 8
_HEAD = struct.Struct("<4sIIIIIQ")
_PADDING = [bytes(count) for count in range(ALIGNMENT)]
# Those of a frame: head, payload and padding.
PIECES = 3


class Header(NamedTuple):
    """A segment's header.

    Attributes:
        identity: 16 random bytes that no other segment has.
        size: The length of the file, all of it allocated.
    """

    identity: bytes
    size: int


class Frame(NamedTuple):
    """The head of a frame, whose own checksum was right; the payload's may not be.

    Attributes:
        offset: Where it begins in the file.
        payload_crc: The checksum that its payload must have.
        length: Of the payload, in bytes.
        sequence: 1 for a segment's first frame, then by one more for each.
        flags: `IS_SEAL` for the last frame of a segment that its writer has ended.
        durable_upto: All before this offset was synced when the frame was written.
    """

    offset: int
    payload_crc: int
    length: int
    sequence: int
    flags: int
    durable_upto: int

    @property
    def end(self) -> int:
        """Where the next frame begins."""
        return self.offset + framed_bytes(self.length)


def aligned(offset: int, step: int) -> int:
    """Returns the next multiple of `step`, a power of two, from `offset` on."""
    return (offset + step - 1) & -step


def framed_bytes(length: int) -> int:
    """Returns what a payload of that length takes of a segment."""
    return (length + _MOST_AROUND) & -ALIGNMENT


def group_bytes(lengths: Iterable[int]) -> int:
    """Returns what payloads of these lengths take."""
    return sum([(length + _MOST_AROUND) & -ALIGNMENT for length in lengths])


def encode_header(header: Header) -> bytes:
    """Returns the segment's first `HEADER_BYTES` bytes."""
    packed = _HEADER.pack(MAGIC, VERSION, header.identity, header.size)
    return packed + crc32(packed).to_bytes(4, "little")


def decode_header(data: bytes) -> Header:
    """Reads a segment's first bytes.

    Raises:
        WalCorrupt: They are not a header of this version.
    """
    if len(data) < HEADER_BYTES or crc32(data[:_HEADER.size]).to_bytes(4, "little") != data[_HEADER.size:HEADER_BYTES]:
        raise WalCorrupt("no header, or a damaged one")
    magic, version, identity, size = _HEADER.unpack_from(data)
    if (magic, version) != (MAGIC, VERSION):
        raise WalCorrupt(f"a segment of version {version}; this program reads {VERSION}")
    return Header(identity, size)


def seed_of(identity: bytes) -> int:
    """Returns what every checksum in the segment begins with."""
    return crc32(identity)


def encode(seed: int, offset: int, payload: bytes, sequence: int, flags: int, durable_upto: int) -> bytes:
    """Returns the head of a frame; the payload follows it in the file and must be stored before it."""
    payload_crc, length = crc32(payload), len(payload)
    checked = _CHECKED.pack(offset, payload_crc, length, sequence, flags, durable_upto)
    return _HEAD.pack(FRAME_MAGIC, crc32(checked, seed), payload_crc, length, sequence, flags, durable_upto)


def padded(payload: bytes) -> list[bytes]:
    """Returns the pieces of a frame that follow its head."""
    return [payload, _PADDING[-len(payload) % ALIGNMENT]]


def encode_all(seed: int, offset: int, payloads: Iterable[bytes], sequence: int, durable_upto: int) -> list[bytes]:
    """Returns frames, each behind the other from `offset` on, in `PIECES`.

    Their heads are those of `encode`, whose call for each would be a tenth of a small group's time.
    """
    pieces: list[bytes] = []
    for payload in payloads:
        crc, length = crc32(payload), len(payload)
        checked = _CHECKED.pack(offset, crc, length, sequence, 0, durable_upto)
        head = _HEAD.pack(FRAME_MAGIC, crc32(checked, seed), crc, length, sequence, 0, durable_upto)
        pieces += head, payload, _PADDING[-length % ALIGNMENT]
        offset += (length + _MOST_AROUND) & -ALIGNMENT
        sequence += 1
    return pieces


def decode(seed: int, offset: int, data: bytes) -> Frame | None:
    """Reads the head of a frame that was written to this segment at this offset; None if it was not."""
    if data[:4] != FRAME_MAGIC or len(data) < FRAME_BYTES:
        return None
    checked = offset.to_bytes(_OFFSET_BYTES, "little") + data[8:FRAME_BYTES]
    if crc32(checked, seed) != int.from_bytes(data[4:8], "little"):
        return None
    return Frame(*_CHECKED.unpack(checked))
