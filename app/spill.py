"""The edge's way into the write-ahead log, for what the stream does not take.

HANDOVER 2: client → WAL (tests/crash/test_ingest.py). Copied into the mapped segment, confirmed by the group's
`fdatasync`, in a thread of its own: the hub never waits for a disk.
"""

import logging
import time
from collections.abc import Callable, Sequence

from app import log, metric
from app.batch import Batch, to_record
from app.errors import NotDurable
from app.settings import Settings
from wal.errors import WalError, WalFull
from wal.writer import Writer

logger = logging.getLogger(__name__)

Apply = Callable[[Callable[..., WalError | None], tuple[object, ...]], WalError | None]


class Spill:
    """Owns this process's segment. Used by one greenlet at a time.

    Args:
        writer: Of this process.
        apply: Runs a function in a thread and returns what it returns, without blocking others.
    """

    def __init__(self, writer: Writer, apply: Apply) -> None:
        self._writer = writer
        self._apply = apply
        self._is_open = False
        self._poisoned_count = 0

    def append(self, batches: Sequence[Batch]) -> None:
        """Writes the batches under one sync.

        Raises:
            NotDurable: There is no room, or the disk failed; none of them may be acknowledged.

        Durability:
            Durable on return.
        """
        started = time.monotonic()
        self._is_open = True
        error = self._apply(_caught, (self._writer.write, [to_record(batch) for batch in batches]))  # HANDOVER 2
        metric.wal_write_seconds.observe(time.monotonic() - started)
        self._note_poisoned()
        if isinstance(error, WalFull):
            raise NotDurable("wal_full", "neither the stream nor the WAL has room; send it again") from error
        if error:
            raise NotDurable("wal_failed", "the stream is away and the WAL's disk fails; send it again") from error

    def seal(self) -> None:
        """Ends the segment at hand, so that the replayer may release it once it is read."""
        if self._is_open:
            self._apply(self._writer.seal, ())
            self._is_open = False

    def _note_poisoned(self) -> None:
        if count := self._writer.poisoned_count - self._poisoned_count:
            self._poisoned_count += count
            metric.wal_poisoned.inc(count)
            logger.critical(log.line("wal_sync_failed", poisoned_segments=count, why="the disk under the WAL fails"))


def _caught(write: Callable[[list[bytes]], None], records: list[bytes]) -> WalError | None:
    """Returns the error: raised within the thread, gevent would print each one."""
    try:
        write(records)
    except WalError as error:
        return error
    return None


def make_writer(settings: Settings) -> Writer:
    """Returns this process's writer; makes the directories, and opens nothing else."""
    directory = settings.wal_path
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    spares = settings.beside_wal("spare")
    spares.mkdir(mode=0o700, exist_ok=True)
    return Writer(
        directory, spares, segment_bytes=settings.wal_segment_bytes, max_bytes=settings.wal_max_bytes,
        min_free_bytes=settings.wal_min_free_bytes,
    )
