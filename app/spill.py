"""The edge's way into the write-ahead log, for what the stream does not take.

HANDOVER 2: client → WAL (tests/crash/test_ingest.py). Copied into the mapped segment, confirmed by the group's
`fdatasync`, in a thread of its own: the hub never waits for a disk. Where the disk hangs, so does that thread, whatever
is done to it: it is left alone, and what comes meanwhile is refused at once.
"""

import logging
import time
from collections.abc import Callable, Sequence

import gevent
from gevent.event import AsyncResult

from app import log, metric
from app.batch import Batch, to_record
from app.errors import NotDurable
from app.settings import Settings
from wal.errors import WalError, WalFull
from wal.writer import Writer

logger = logging.getLogger(__name__)


class Spill:
    """Owns this process's segment. `append` and `check` are for one greenlet at a time.

    Args:
        writer: Of this process.
        spawn: Has one thread call a function, after what it was given before, and returns the result to come.
        deadline_s: Longest that a call waits for the disk.
    """

    def __init__(self, writer: Writer, spawn: "Callable[..., AsyncResult[WalError | None]]", deadline_s: float) -> None:
        self._writer = writer
        self._spawn = spawn
        self._deadline_s = deadline_s
        self._last: AsyncResult[WalError | None] | None = None
        self._began_at = 0.0
        self._is_overdue = False
        self._is_open = False
        self._poisoned_count = 0

    def append(self, batches: Sequence[Batch]) -> None:
        """Writes the batches under one sync.

        Raises:
            NotDurable: There is no room, the disk failed, or it hangs; none of them may be acknowledged.

        Durability:
            Durable on return; unknown if it raises, and where the disk hangs they may become so later.
        """
        self._check_answers()
        started = time.monotonic()
        self._is_open = True
        try:
            self._call(self._writer.write, [to_record(batch) for batch in batches])  # HANDOVER 2
        finally:
            metric.wal_write_seconds.observe(time.monotonic() - started)

    def check(self) -> None:
        """Asks the disk whether there is room for a batch.

        Raises:
            NotDurable: There is none, the disk failed, or it hangs.
        """
        self._check_answers()
        self._call(self._writer.check)

    def seal(self) -> None:
        """Ends the segment at hand, so that the replayer may release it once it is read; does not wait for that."""
        if self._is_open and not self.busy_s():
            self._check_answers()
            self._start(self._writer.seal)
            self._is_open = False

    def busy_s(self) -> float:
        """Returns for how long the disk has not answered."""
        return 0.0 if self._last is None or self._last.ready() else time.monotonic() - self._began_at

    def _check_answers(self) -> None:
        """Raises NotDurable while what was overdue is not done: nothing more may gather behind it."""
        if not self._is_overdue:
            return
        if busy_s := self.busy_s():
            raise NotDurable("wal_overdue", f"the WAL's disk has not answered for {busy_s:.0f} s; send it again")
        self._is_overdue = False
        logger.warning(log.line("wal_disk_answers"))

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        """Calls a function in the thread, and waits for it until the deadline."""
        try:
            error = self._start(function, *arguments).get(timeout=self._deadline_s)
        except gevent.Timeout as overdue:
            self._is_overdue = True
            why = f"the WAL's disk has not answered within {self._deadline_s:g} s"
            logger.critical(log.line("wal_disk_hangs", why=why))
            raise NotDurable("wal_overdue", f"{why}: it may or may not be stored; send it again") from overdue
        self._note_poisoned()
        if isinstance(error, WalFull):
            raise NotDurable("wal_full", "neither the stream nor the WAL has room; send it again") from error
        if error:
            raise NotDurable("wal_failed", "the stream is away and the WAL's disk fails; send it again") from error

    def _start(self, function: Callable[..., None], *arguments: object) -> "AsyncResult[WalError | None]":
        if not self.busy_s():
            self._began_at = time.monotonic()
        self._last = self._spawn(_caught, function, *arguments)
        return self._last

    def _note_poisoned(self) -> None:
        if count := self._writer.poisoned_count - self._poisoned_count:
            self._poisoned_count += count
            metric.wal_poisoned.inc(count)
            logger.critical(log.line("wal_sync_failed", poisoned_segments=count, why="the disk under the WAL fails"))


def _caught(function: Callable[..., None], *arguments: object) -> WalError | None:
    """Returns the error: raised within the thread, gevent would print each one."""
    try:
        function(*arguments)
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
