"""The replayer: follows the write-ahead logs of this host's ingest workers, and ships what they hold to the stream.

HANDOVER 3: WAL → stream (tests/crash/test_replay.py). Copied by XADD, confirmed by Redis's reply, released by removing
a segment once every record in it is confirmed. Killed in between, it ships the segment again; the ledger removes the
copies. `python -m workers.replayer` runs it.
"""

import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from app import log
from app.appender import Appender
from app.batch import Batch, from_record, is_canary
from app.errors import SettingError, StreamUnavailable
from app.settings import Settings
from wal.errors import WalError
from wal.reader import Record, SegmentReader, segments
from wal.turn import Turn
from workers import metric

logger = logging.getLogger(__name__)

_READ_BYTES = 4 << 20
_IDLE_S = 0.1
_LONGEST_DELAY_S = 1.0
_REDIS_TIMEOUT_S = 5.0
_TURN_S = 1.0


class Replayer:
    """Owns the reading side of a WAL directory; one process a directory, whose `Turn` it is.

    Args:
        directory: Of the segments.
        quarantine: Where segments with damaged records are copied before they are released.
        appender: To the stream.
        stream_max_bytes: The stream is not filled beyond nine tenths of this.
        is_wal_first: Write-ahead mode: that something is replayed is nothing to tell, unless Redis was away.
    """

    def __init__(
        self, directory: Path, quarantine: Path, appender: Appender, stream_max_bytes: int, is_wal_first: bool = False
    ) -> None:
        self._directory = directory
        self._quarantine = quarantine
        self._appender = appender
        self._stream_max_bytes = stream_max_bytes
        self._is_wal_first = is_wal_first
        self._readers: dict[Path, SegmentReader] = {}
        self._unsent: list[Batch] = []
        self._unreadable: set[Path] = set()
        self._shipped = 0
        self._away_cause = ""
        self._has_told = False

    def step(self) -> int:
        """Ships the next records of the oldest segment that has some, and releases what is done; returns how many.

        Raises:
            StreamUnavailable: Nothing is lost; the records that were not confirmed come first in the next round.
        """
        if self._unsent:
            return self._ship()
        for path in segments(self._directory):
            try:
                reader = self._readers.get(path) or self._opened(path)
                self._unsent = self._decoded(reader, reader.read(_READ_BYTES))
                if reader.is_drained and not self._unsent:
                    self._release(path, reader)
            except WalError as error:
                # It stays, and is looked at again; those behind it need not wait for the disk or a person.
                self._note_unreadable(path, error)
            if self._unsent:
                return self._ship()
        self._note_complete()
        return 0

    def run(self, stop: threading.Event) -> None:
        """Repeats `step` until `stop` is set; waits while Redis is away or full."""
        attempt = 0
        while not stop.is_set():
            try:
                if not self.step():
                    stop.wait(_IDLE_S)
                attempt = 0
            except WalError as error:
                self._note_unreadable(self._directory, error)
                stop.wait(_LONGEST_DELAY_S)
            except StreamUnavailable as error:
                metric.failed_replays.inc()
                self._note_away(error)
                stop.wait(min(_LONGEST_DELAY_S, 0.1 * (1 << min(attempt, 4))) * random.uniform(0.5, 1))
                attempt += 1

    def _opened(self, path: Path) -> SegmentReader:
        self._readers[path] = SegmentReader(path)
        return self._readers[path]

    def _ship(self) -> int:
        self._appender.probe(self._stream_max_bytes * 9 // 10)
        batches = self._unsent
        if not all(map(is_canary, batches)):
            self._note_started()
        outcomes = self._appender.append(batches)  # HANDOVER 3, copy and confirm
        refused = [outcome for outcome in outcomes if outcome]
        count = len(batches) - len(refused)
        self._unsent = [batch for batch, outcome in zip(batches, outcomes) if outcome]
        self._shipped += count
        metric.replayed_batches.inc(count)
        metric.replayed_events.inc(sum(batch.count for batch, outcome in zip(batches, outcomes) if not outcome))
        if refused:
            raise refused[0]
        return count

    def _release(self, path: Path, reader: SegmentReader) -> None:
        reader.release(self._quarantine)  # HANDOVER 3, release
        del self._readers[path]
        # Counted once it is gone: a release that fails, for want of room for the copy, is tried again and again.
        metric.wal_torn.inc(reader.torn_count)
        metric.wal_corrupt.inc(reader.corrupt_count)
        if reader.corrupt_count:
            logger.critical(log.line("wal_corrupt", segment=path.name, records=reader.corrupt_count,
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

    def _note_unreadable(self, path: Path, error: WalError) -> None:
        if path not in self._unreadable:
            logger.critical(log.line("wal_unreadable", path=path, detail=error))
        self._unreadable.add(path)

    def _note_away(self, error: StreamUnavailable) -> None:
        # Once for each cause until the WAL is drained: a full Redis takes a little, and refuses, again and again.
        if error.cause != self._away_cause:
            logger.warning(log.line("replay_waiting", cause=error.cause, detail=error))
        self._away_cause = error.cause

    def _note_started(self) -> None:
        if not self._has_told and (self._away_cause or not self._is_wal_first):
            logger.warning(log.line("replay_started", redis="available", segments=len(segments(self._directory))))
            self._has_told = True

    def _note_complete(self) -> None:
        if self._readers:
            return
        if self._has_told:
            logger.warning(log.line("replay_complete", batches=self._shipped))
        self._has_told = False
        self._shipped = 0
        self._away_cause = ""


def await_turn(turn: Turn, stop: threading.Event) -> None:
    """Returns when no other replayer is at work on the directory, or when `stop` is set."""
    try:
        if turn.take():
            return
        logger.info(log.line("replayer_standing_by", why="another replayer is at work on this WAL"))
        while not stop.wait(_TURN_S) and not turn.take():
            pass
    except WalError as error:
        # The ledger removes what two replayers ship; that none does would be worse.
        logger.warning(log.line("replayer_may_not_be_alone", detail=error))


def main() -> int:
    """Runs the replayer until SIGTERM or SIGINT."""
    try:
        settings = Settings.from_env(os.environ)
        if settings.redis_url is None:
            raise SettingError("REDIS_URL has to be set; `spillway up` sets it")
    except SettingError as error:
        print(f"replayer: {error}", file=sys.stderr)
        return os.EX_CONFIG
    log.setup("replayer", settings.log_level)
    settings.wal_path.mkdir(mode=0o700, parents=True, exist_ok=True)
    appender = Appender(settings.redis_url, _REDIS_TIMEOUT_S)
    replayer = Replayer(
        settings.wal_path, settings.beside_wal("quarantine"), appender, settings.stream_max_bytes,
        settings.wal == "always",
    )
    turn, stop = Turn(settings.wal_path), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    logger.info(log.line("replayer_started", pid=os.getpid(), directory=settings.wal_path))
    await_turn(turn, stop)
    replayer.run(stop)
    logger.info(log.line("replayer_stopped"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
