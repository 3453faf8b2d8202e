"""The format, byte by byte: the worked example, the golden file, every cut, every flip, and frames from elsewhere."""

import re
import struct
from zlib import crc32

import pytest

from tests.journal import ROOT
from tests.wal_disk import SameFiles, die, drain, writer_at
from wal import frame
from wal.file import Files
from wal.reader import SegmentReader, oldest_at_ns, segments

RECORDS = [b"first record", b"second", b"third and last"]
GOLDEN = ROOT / "tests/golden/01700000000000000000-000102030405060708090a0b0c0d0e0f.wal"


def sealed(root, records=RECORDS, files=SameFiles()):
    """Writes a segment that just holds the records, each a group of its own. Returns its path."""
    size = frame.HEADER_BYTES + sum(frame.framed_bytes(len(record)) for record in [*records, b""])
    writer = writer_at(root, files, segment_bytes=size)
    for record in records:
        writer.write([record])
    writer.close()
    return segments(root / "log")[-1]


def place(root, content, name="01700000000000000000-000102030405060708090a0b0c0d0e0f.wal"):
    """Puts a file into the log."""
    (root / "log").mkdir(exist_ok=True)
    path = root / "log" / name
    path.write_bytes(content)
    return path


def read(root, content):
    """Returns the payloads, torn_count and corrupt_count of a segment with that content."""
    place(root, content)
    return drain(root, is_released=False)


def framed(payload, offset, identity=bytes(range(16)), sequence=1, durable_upto=40):
    """Returns a frame as the writer makes it."""
    head = frame.encode(frame.seed_of(identity), offset, payload, sequence, 0, durable_upto)
    return (head + payload).ljust(frame.framed_bytes(len(payload)), b"\0")


def test_the_worked_example_is_what_the_writer_writes_and_the_reader_reads(tmp_path):
    lines = re.findall(r"^ *(\d+)  ((?:[0-9a-f]{2} ){7}[0-9a-f]{2})", (ROOT / "wal/FORMAT.md").read_text(), re.M)
    assert [int(offset) for offset, _ in lines] == list(range(0, 160, 8))
    path = sealed(tmp_path, [b"hello", b"write-ahead"])
    assert path.read_bytes() == b"".join(bytes.fromhex(data) for _, data in lines)
    assert drain(tmp_path) == ([b"hello", b"write-ahead"], 0, 0)


def test_a_segment_of_version_1_that_was_kept_is_read_by_every_later_version(tmp_path):
    assert read(tmp_path, GOLDEN.read_bytes()) == (RECORDS, 0, 0)
    assert oldest_at_ns(GOLDEN) == 1_700_000_000_000_000_000


def test_cut_at_every_byte_the_records_before_the_cut_are_recovered_and_the_damage_is_counted(tmp_path):
    whole = sealed(tmp_path).read_bytes()
    ends, at = [], frame.HEADER_BYTES
    for record in RECORDS:
        ends.append(at + frame.framed_bytes(len(record)))
        at = ends[-1]
    for cut in range(len(whole)):
        kept = [record for record, end in zip(RECORDS, ends, strict=True) if end <= cut]
        payloads, torn_count, corrupt_count = read(tmp_path, whole[:cut])
        assert (payloads, corrupt_count) == (kept, 1), cut
        assert torn_count == (cut > frame.HEADER_BYTES and cut not in ends), cut


def test_zeroed_from_every_byte_on_the_records_before_are_recovered_and_a_frame_begun_is_torn(tmp_path):
    whole = sealed(tmp_path).read_bytes()
    for cut in range(frame.HEADER_BYTES, len(whole)):
        content = whole[:cut].ljust(len(whole), b"\0")
        payloads, torn_count, corrupt_count = read(tmp_path, content)
        assert payloads == RECORDS[:len(payloads)] and corrupt_count == 0, cut
        assert torn_count <= 1, cut
        assert len(payloads) >= sum(end <= cut for end in (88, 128, 176)), cut


def test_every_flipped_bit_is_detected_and_costs_its_own_record_alone(tmp_path):
    whole = sealed(tmp_path).read_bytes()
    spans, at = [], frame.HEADER_BYTES
    for record in RECORDS:
        spans.append(range(at, at + frame.FRAME_BYTES + len(record)))
        at += frame.framed_bytes(len(record))
    for position in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            lost = [record for record, span in zip(RECORDS, spans, strict=True) if position in span]
            payloads, torn_count, corrupt_count = read(tmp_path, bytes(flipped))
            assert payloads == [record for record in RECORDS if record not in lost], (position, bit)
            assert corrupt_count == (position < frame.HEADER_BYTES or bool(lost)), (position, bit)
            assert torn_count == (position >= at), (position, bit)


def test_records_lost_together_are_counted_each(tmp_path):
    whole = bytearray(sealed(tmp_path).read_bytes())
    whole[40:150] = bytes(110)
    assert read(tmp_path, bytes(whole)) == ([], 0, 3)


def test_damage_above_every_watermark_is_torn_and_not_corrupt(tmp_path):
    path = sealed(tmp_path)
    content = bytearray(path.read_bytes())
    last = path.stat().st_size - frame.FRAME_BYTES
    content[last:] = bytes(frame.FRAME_BYTES)  # no seal: the third record's sync is in no frame
    content[last - 8] ^= 1
    assert read(tmp_path, bytes(content)) == (RECORDS[:2], 1, 0)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, frame.MAX_RECORD_BYTES, 4096])
def test_a_length_beyond_the_file_is_refused_before_anything_is_read(tmp_path, length):
    checked = struct.pack("<QIIIIQ", 40, 0, length, 1, 0, 40)
    head = b"\xf5REC" + crc32(checked, crc32(bytes(range(16)))).to_bytes(4, "little") + checked[8:]
    header = frame.encode_header(frame.Header(bytes(range(16)), 4096))
    behind = framed(b"behind", 72, sequence=2)
    assert read(tmp_path, (header + head + behind).ljust(4096, b"\0")) == ([b"behind"], 1, 0)


def test_frames_of_another_segment_of_another_offset_and_inside_a_payload_are_no_records(tmp_path):
    header = frame.encode_header(frame.Header(bytes(range(16)), 4096))
    stale = framed(b"stale", 40, identity=bytes(16))
    moved = framed(b"moved", 40)
    carrier = framed(framed(b"inner", 40), 120)
    broken = bytearray(framed(framed(b"inner", 40), 192))
    broken[4] ^= 1
    content = header + stale + moved + carrier + broken
    payloads, torn_count, corrupt_count = read(tmp_path, content.ljust(4096, b"\0"))
    assert (payloads, torn_count, corrupt_count) == ([framed(b"inner", 40)], 2, 0)


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(4096), b"SPILLWAL" + bytes(100), bytes(range(256)) * 16])
def test_a_file_that_is_no_segment_is_counted_corrupt_and_quarantined_and_blocks_nothing(tmp_path, content):
    place(tmp_path, content, "foreign.wal")
    payloads, _, corrupt_count = drain(tmp_path)
    assert (payloads, corrupt_count) == ([], 1)
    assert segments(tmp_path / "log") == []
    assert (tmp_path / "quarantine/foreign.wal").read_bytes() == content


def test_a_later_version_is_quarantined_and_not_read(tmp_path):
    packed = struct.pack("<8sI16sQ", b"SPILLWAL", 2, bytes(16), 44)
    place(tmp_path, packed + crc32(packed).to_bytes(4, "little") + b"news", "foreign.wal")
    assert drain(tmp_path)[::2] == ([], 1)
    assert len(list((tmp_path / "quarantine").iterdir())) == 1


def test_an_unfinished_frame_of_a_live_writer_is_not_yet_there_and_torn_once_the_writer_is_dead(tmp_path):
    writer = writer_at(tmp_path, Files())
    writer.write([b"whole"])
    segment = writer._segment
    at = segment._end + frame.FRAME_BYTES
    segment._mapping[at:at + 4] = b"half"
    reader = SegmentReader(segment.path)
    assert [record.payload for record in reader.read(100)] == [b"whole"]
    assert (reader.read(100), reader.is_sealed, reader.is_drained, reader.torn_count) == ([], False, False, 0)
    writer.write([b"half and more"])
    assert [record.payload for record in reader.read(100)] == [b"half and more"]
    at = segment._end + frame.FRAME_BYTES
    segment._mapping[at:at + 4] = b"half"
    die(writer)
    assert (reader.read(100), reader.is_sealed, reader.is_drained) == ([], True, True)
    assert (reader.torn_count, reader.corrupt_count) == (1, 0)
    reader.close()
