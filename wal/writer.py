"""The writer: takes groups of records, returns when they are durable. Hand-over 2 ends here.

It owns the segments that it writes until it seals them, and one spare that is allocated ahead, so that a disk that
others have filled does not stop it at once. It creates and publishes files in the log's directory and never removes
one: that is the reader's.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from wal.errors import RecordTooLarge, WalClosed, WalError, WalFailed, WalFull
from wal.file import FILES, PAGE_BYTES, Files, failure
from wal.frame import MAX_RECORD_BYTES, group_bytes
from wal.segment import DRAFT_SUFFIX, Segment, bytes_for, used_bytes


class Writer:
    """Appends groups of records to the log, from one thread at a time. Opens nothing until the first write.

    Args:
        directory: The log: segments and nothing else. Created if it lacks.
        spares: Another directory on the same file system, for segments before they are taken into use.
        segment_bytes: Length of a segment; a group larger than that gets one of its own length.
        max_bytes: Budget for all segments in `directory`, of all processes. Checked when a segment is taken into use,
            so that writers who do so at the same moment may exceed it by a segment each.
        min_free_bytes: What allocating a segment must leave free on the disk.
        files: The operating system.
        max_record_bytes: Longest record.

    Attributes:
        poisoned_count: Segments given up because they could not be synced.
        synced_count: Groups made durable.
    """

    def __init__(
        self, directory: Path, spares: Path, *, segment_bytes: int, max_bytes: int, min_free_bytes: int,
        files: Files = FILES, max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> None:
        self.poisoned_count = 0
        self.synced_count = 0
        self._directory = directory
        self._spares = spares
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._max_record_bytes = min(max_record_bytes, MAX_RECORD_BYTES)
        self._files = files
        self._segment: Segment | None = None
        self._spare: Segment | None = None
        self._opened_by: int | None = None
        self._is_closed = False

    def write(self, records: Sequence[bytes]) -> None:
        """Appends all records of a group and syncs them together.

        Durability:
            All durable on return. If `WalFull` or `RecordTooLarge` is raised, none was stored; with anything else that
            is unknown, and none may be acknowledged.

        Raises:
            RecordTooLarge: A record is longer than `max_record_bytes`.
            WalFull: The budget or the disk has no room; later it may.
            WalFailed: The disk failed; the next write tries another segment.
            WalClosed: The writer is closed or another process's.
        """
        self._open()
        lengths = [*map(len, records)]
        if (longest := max(lengths, default=0)) > self._max_record_bytes:
            raise RecordTooLarge(longest, self._max_record_bytes)
        if records:
            self._commit(records, group_bytes(lengths))
            self._keep_spare()

    def check(self) -> None:
        """Returns if a small record would find room now, and the disk syncs.

        Raises:
            WalFull: It would not.
            WalFailed: The disk failed.
            WalClosed: The writer is closed or another process's.
        """
        self._open()
        if self._segment and self._segment.room >= PAGE_BYTES:
            return
        try:
            self._spare_for(0).sync()
        except OSError as error:
            self._drop_spare()
            raise failure(error) from error

    def seal(self) -> None:
        """Ends the current segment, so that the reader may release it; the next write takes another.

        Raises:
            WalClosed: The writer is closed or another process's.
        """
        self._check()
        segment, self._segment = self._segment, None
        if segment:
            segment.seal()

    def close(self) -> None:
        """Seals the current segment and removes the spare.

        Raises:
            WalClosed: The writer is closed already or another process's.
        """
        self.seal()
        self._is_closed = True
        spare, self._spare = self._spare, None
        if spare:
            spare.discard()

    def _check(self) -> None:
        # A forked child has the same mapping and offset: it would write over the parent's frames, and unlock them.
        if self._is_closed or self._opened_by not in (None, os.getpid()):
            raise WalClosed("the writer is closed, or was opened by another process")

    def _open(self) -> None:
        self._check()
        if self._opened_by is not None:
            return
        try:
            for directory in (self._directory, self._spares):
                self._files.make_directory(directory)
            for name in self._files.names(self._spares):
                if name.endswith(DRAFT_SUFFIX):
                    self._files.remove_abandoned(self._spares / name)
            self._files.sync_directory(self._spares)
        except OSError as error:
            raise failure(error) from error
        self._opened_by = os.getpid()

    def _commit(self, records: Sequence[bytes], size: int) -> None:
        """Makes the group durable; if a sync fails, once more, from memory, in a segment of new blocks."""
        if self._is_synced(records, size):
            return
        try:
            if self._is_synced(records, size):
                return
        except WalFull as error:
            raise WalFailed(f"a sync failed, and there is no other segment: {error}") from error
        raise WalFailed("two segments could not be synced")

    def _is_synced(self, records: Sequence[bytes], size: int) -> bool:
        segment = self._segment
        if segment is None or segment.room < size:
            segment = self._roll(size)
        try:
            segment.append(records, size)
            segment.sync()
        except OSError:
            self.poisoned_count += 1
            self.seal()
            return False
        except BaseException:
            self.seal()
            raise
        self.synced_count += 1
        return True

    def _roll(self, size: int) -> Segment:
        # Sealed even if there is no other: a full log can only recover by what the reader may release.
        self.seal()
        try:
            segment = self._spare_for(bytes_for(size))
            self._spare = None
            segment.publish(self._directory)
        except OSError as error:
            raise failure(error) from error
        self._segment = segment
        return segment

    def _spare_for(self, size: int) -> Segment:
        """Returns a draft within the budget; it stays the spare."""
        size = max(size, self._segment_bytes)
        if used_bytes(self._directory, self._files) + size > self._max_bytes:
            raise WalFull(f"{size} bytes more would exceed the budget of {self._max_bytes}")
        if self._spare and self._spare.size < size:
            self._drop_spare()
        if not self._spare:
            self._spare = self._draft(size)
        return self._spare

    def _draft(self, size: int) -> Segment:
        free_bytes = self._files.free_bytes(self._spares)
        if free_bytes < size + self._min_free_bytes:
            raise WalFull(f"{free_bytes} bytes are free; {size} are needed and {self._min_free_bytes} must be left")
        return Segment(self._spares, size, self._files)

    def _keep_spare(self) -> None:
        """Has one segment ready ahead; without one the log goes on, and the next write tries again."""
        if not self._spare:
            try:
                self._spare = self._draft(self._segment_bytes)
            except (OSError, WalError):
                pass

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare:
            spare.discard()
