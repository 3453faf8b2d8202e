"""A trail: one segment of the WAL on its way to the stream, from its first record to its release.

It bears what its disk does: a segment that fails waits, longer each time, and the others need not. What cannot be read
for long is given up: the segment goes to the quarantine whole, where it can be read again once the disk can.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from app import log
from app.batch import Batch, from_record
from wal.errors import WalError
from wal.reader import Record, SegmentReader
from workers import metric
from workers.witness import Shipment

logger = logging.getLogger(__name__)

PATIENCE_S = 300.0
_READ_BYTES = 4 << 20
_SHORTEST_DELAY_S, _LONGEST_DELAY_S = 1.0, 60.0
# Of the time of a disk that takes seconds to fail, the others have nine tenths.
_REST = 9


class Trail:
    """Follows one segment.

    Args:
        path: Of the segment.
        quarantine: Where it goes if it has lost acknowledged records.
        patience_s: How long what cannot be read is tried again before it is given up.
        clock: Monotonic, in seconds.

    Attributes:
        shipment: What its records became so far.
    """

    def __init__(
        self, path: Path, quarantine: Path, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.shipment = Shipment()
        self._path = path
        self._quarantine = quarantine
        self._patience_s = patience_s
        self._clock = clock
        self._reader: SegmentReader | None = None
        self._is_leaving = False
        self._failed_at: float | None = None
        self._again_at = 0.0
        self._delay_s = _SHORTEST_DELAY_S

    @property
    def is_drained(self) -> bool:
        """Whether all of it was read."""
        return self._reader is not None and self._reader.is_drained

    def batches(self) -> list[Batch]:
        """Returns the next batches; none where there are none now, or the disk fails, which is said once."""
        began_at = self._clock()
        is_retry = began_at >= self._again_at
        if self.is_drained or self._reader is None and not is_retry:
            return []
        try:
            self._reader = self._reader or SegmentReader(self._path)
            records = self._reader.read(_READ_BYTES, is_retry)
        except WalError as error:
            self._fail(error, began_at)
            return []
        if is_retry and not records:
            self._failed_at, self._delay_s = None, _SHORTEST_DELAY_S
        if self._reader.is_drained:
            self._reader.close()
        return self._decoded(self._reader, records)

    def release(self) -> bool:
        """Removes the segment; returns whether it is gone. It must be drained, and safe elsewhere."""
        assert self._reader is not None
        began_at = self._clock()
        if began_at < self._again_at and self._failed_at is not None:
            return False
        self._is_leaving = True
        try:
            self._reader.release(self._quarantine)  # HANDOVER 3, release
        except WalError as error:
            self._fail(error, began_at, "wal_not_released")
            return False
        self._count(self._reader)
        return True

    def forget(self) -> None:
        """Lets go of a segment that is there no more."""
        self.close()
        if self._is_leaving and self._reader is not None:
            self._count(self._reader)  # removed, although the disk failed to confirm it
        else:
            logger.critical(log.line("wal_segment_gone", path=self._path, why="it was not released"))

    def begin_again(self) -> None:
        """Has it read from its beginning: what it was shipped to may have lost it."""
        self.close()
        self._reader, self.shipment = None, Shipment()

    def close(self) -> None:
        """Lets go of the file."""
        if self._reader is not None:
            self._reader.close()

    def _count(self, reader: SegmentReader) -> None:
        metric.wal_torn.inc(reader.torn_count)
        metric.wal_corrupt.inc(reader.corrupt_count)
        if reader.corrupt_count:
            logger.critical(log.line("wal_corrupt", segment=self._path.name, records=reader.corrupt_count,
                                     quarantine=self._quarantine))

    def _decoded(self, reader: SegmentReader, records: Sequence[Record]) -> list[Batch]:
        batches = []
        for record in records:
            try:
                batches.append(from_record(record.payload))
            except ValueError as error:
                reader.condemn()  # The segment is kept in the quarantine, for a person to look at.
                logger.critical(log.line("record_is_no_batch", segment=record.segment, offset=record.offset, why=error))
        return batches

    def _fail(self, error: WalError, began_at: float, what: str = "wal_unreadable") -> None:
        if self._failed_at is None:
            logger.critical(log.line(what, path=self._path, detail=error))
            self._failed_at = began_at
        now = self._clock()
        self._again_at = now + max(self._delay_s, _REST * (now - began_at))
        self._delay_s = min(2 * self._delay_s, _LONGEST_DELAY_S)
        if now - self._failed_at >= self._patience_s:
            self._give_up(error)

    def _give_up(self, error: WalError) -> None:
        reader = self._reader
        try:
            if reader is None or reader.is_drained or not reader.is_sealed:
                return  # not to be read at all, read already, or perhaps still written to
            reader.give_up()
        except WalError:
            return  # tried again with the next read
        logger.critical(log.line("wal_given_up", path=self._path, detail=error))
        self._again_at, self._delay_s = 0.0, _SHORTEST_DELAY_S
