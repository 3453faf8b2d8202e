"""The reader on a disk that cannot read: once, or a page for good. Nothing that was confirmed is passed over."""

from contextlib import suppress

import pytest

from tests.machine import tmpfs
from tests.wal_disk import FailingFiles, UnreadableFiles, damage, writer_at
from wal.errors import WalFailed
from wal.file import PAGE_BYTES, Files
from wal.reader import SegmentReader, segments

GROUPS = [[b"%d %d " % (number, index) + b"x" * 700 * (number % 3) for index in range(3)] for number in range(12)]
CONFIRMED = [record for group in GROUPS for record in group]


def written(root, groups=GROUPS, is_sealed=True):
    """Writes groups to one segment. Returns its path and its writer."""
    writer = writer_at(root, Files(), segment_bytes=32 * PAGE_BYTES)
    for group in groups:
        writer.write(group)
    if is_sealed:
        writer.close()
    path, = segments(root / "log")
    return path, writer


def opened(path, files):
    """Returns a reader, however often that fails."""
    while True:
        try:
            return SegmentReader(path, files)
        except WalFailed:
            pass


def read_on(reader, delivered=None, is_retry=True):
    """Returns what one reader delivers until it has nothing left; `delivered` keeps it should it fail."""
    delivered = [] if delivered is None else delivered
    while records := reader.read(1000, is_retry):
        delivered += [record.payload for record in records]
    return delivered


def read_in_spite(reader, failures):
    """Returns what one reader delivers, called again after each of so many failures."""
    delivered = []
    while True:
        try:
            records = reader.read(1000)
        except WalFailed:
            failures -= 1
            assert failures >= 0, "more failures than there were"
            continue
        if not records:
            return delivered
        delivered += [record.payload for record in records]


@pytest.mark.parametrize("damage", [None, 5 * PAGE_BYTES])
@pytest.mark.parametrize("width", [1, 2])
def test_whichever_call_of_a_reader_fails_it_delivers_every_confirmed_record_and_counts_none_as_lost(
    tmp_path, width, damage
):
    path, _ = written(tmp_path)
    if damage:
        with path.open("r+b", buffering=0) as segment:
            segment.seek(damage)
            segment.write(b"?" * 8)
    whole = SegmentReader(path)
    expected, counts = read_on(whole), (whole.torn_count, whole.corrupt_count)
    whole.close()
    assert damage or (expected, counts) == (CONFIRMED, (0, 0))
    first = 1
    while True:
        files = FailingFiles(range(first, first + width))
        reader = opened(path, files)
        delivered = read_in_spite(reader, width)
        assert sorted(delivered) == sorted(expected) and reader.is_drained, first
        assert (reader.torn_count, reader.corrupt_count) == counts, first
        reader.close()
        if len(files.calls) < first:
            break
        first += 1
    assert first > 40


@pytest.mark.parametrize("is_sealed", [True, False])
def test_whichever_page_cannot_be_read_the_records_in_the_others_come_at_once_and_its_own_once_it_can(
    tmp_path, is_sealed
):
    path, writer = written(tmp_path, is_sealed=is_sealed)
    pages = range(path.stat().st_size // PAGE_BYTES)
    reader = SegmentReader(path)
    places = {record.payload: range(record.offset, record.offset + len(record.payload) + 32)
              for record in reader.read(1 << 20)}
    reader.close()
    assert [*places] == CONFIRMED
    for page in pages:
        files = UnreadableFiles({page})
        reader, delivered = SegmentReader(path, files), []
        lost = [one for one, place in places.items()
                if place[0] // PAGE_BYTES <= page <= place[-1] // PAGE_BYTES]
        is_told = False
        try:
            read_on(reader, delivered)
        except WalFailed:
            is_told = True
        else:
            read_on(reader, delivered)
        # In a live segment those behind it come from the next group on: what is before that is finished.
        hidden = lost if is_sealed else [one for group in GROUPS if {*group} & {*lost} for one in group]
        assert {*CONFIRMED} - {*hidden} <= {*delivered} <= {*CONFIRMED} - {*lost}, page
        assert is_told == bool(lost) and not (lost and reader.is_drained), page
        assert reader.corrupt_count == reader.torn_count == 0, page
        files.pages.clear()
        read_on(reader, delivered)
        assert sorted(delivered) == sorted(CONFIRMED), page
        assert (reader.is_drained, reader.corrupt_count, reader.torn_count) == (is_sealed, 0, 0), page
        reader.close()
    writer.close() if not is_sealed else None


def test_a_segment_that_is_given_up_counts_what_could_not_be_read_and_is_moved_to_the_quarantine_whole(tmp_path):
    path, _ = written(tmp_path)
    content = path.read_bytes()
    reader, delivered = SegmentReader(path, UnreadableFiles({0, 4})), []
    with pytest.raises(WalFailed):
        read_on(reader, delivered)
    assert read_on(reader, delivered, is_retry=False) == delivered and not reader.is_drained
    with pytest.raises(AssertionError):
        reader.release(tmp_path / "quarantine")
    reader.give_up()
    assert (reader.is_drained, reader.torn_count) == (True, 0)
    assert reader.corrupt_count == 1 + len({*CONFIRMED} - {*delivered})  # the header is one
    assert read_on(reader) == []
    reader.release(tmp_path / "quarantine")
    assert segments(tmp_path / "log") == []
    assert (tmp_path / "quarantine" / path.name).read_bytes() == content


def test_a_segment_whose_header_was_read_late_and_is_not_its_names_is_kept_in_the_quarantine(tmp_path):
    path, _ = written(tmp_path)
    path = path.rename(path.with_name(path.name[:-36] + "0" * 32 + ".wal"))
    files = UnreadableFiles({0})
    reader = SegmentReader(path, files)
    with pytest.raises(WalFailed):
        reader.read(1000)
    files.pages.clear()
    assert (reader.read(1000), reader.is_drained) == ([], True)
    assert reader.corrupt_count >= 1


def test_a_damaged_segment_on_a_full_disk_goes_to_the_quarantine_without_a_copy_and_may_be_released_twice(tmp_path):
    with tmpfs(tmp_path, "1m"):
        path, _ = written(tmp_path)
        damage(path)
        reader = SegmentReader(path)
        read_on(reader)
        assert (reader.is_drained, reader.corrupt_count) == (True, 1)
        (tmp_path / "quarantine").mkdir()
        with (tmp_path / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        reader.release(tmp_path / "quarantine")
        reader.release(tmp_path / "quarantine")
        assert [one.name for one in (tmp_path / "quarantine").iterdir()] == [path.name] and not path.exists()
