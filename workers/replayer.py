"""The replayer: follows the write-ahead logs of this host's ingest workers, and ships what they hold to the stream.

HANDOVER 3: WAL → stream (tests/crash/test_replay.py). Copied by XADD, confirmed by Redis's reply and the witness, who
says whether that is as durable as the WAL; released by removing a segment once every record in it is confirmed. Killed
in between, it ships the segment again; the ledger removes the copies. `python -m workers.replayer` runs it.
"""

import logging
import os
import random
import signal
import sys
import threading
from pathlib import Path

from app import log
from app.appender import Appender
from app.batch import Batch, is_canary
from app.errors import SettingError, StreamUnavailable
from app.settings import Settings
from wal.errors import WalError
from wal.reader import segments
from wal.turn import Turn
from workers import metric
from workers.trail import PATIENCE_S, Trail
from workers.witness import Witness

logger = logging.getLogger(__name__)

_IDLE_S = 0.1
_LONGEST_DELAY_S = 1.0
_REDIS_TIMEOUT_S = 5.0
_TURN_S = 1.0


class Replayer:
    """Owns the reading side of a WAL directory; one process a directory, whose `Turn` it is.

    Args:
        directory: Of the segments.
        quarantine: Where segments with damaged records go, on the same file system.
        appender: To the stream.
        witness: Of what was appended.
        stream_max_bytes: The stream is not filled beyond nine tenths of this.
        is_wal_first: Write-ahead mode: that something is replayed is nothing to tell, unless Redis was away.
        patience_s: How long what the disk cannot read is tried again before it is given up.
    """

    def __init__(
        self, directory: Path, quarantine: Path, appender: Appender, witness: Witness, stream_max_bytes: int,
        is_wal_first: bool = False, patience_s: float = PATIENCE_S,
    ) -> None:
        self._directory = directory
        self._quarantine = quarantine
        self._appender = appender
        self._witness = witness
        self._stream_max_bytes = stream_max_bytes
        self._is_wal_first = is_wal_first
        self._patience_s = patience_s
        self._trails: dict[Path, Trail] = {}
        self._source: Trail | None = None  # of what is not sent yet
        self._unsent: list[Batch] = []
        self._shipped = 0
        self._away_cause = ""
        self._waits_for = "nothing"
        self._has_told = False
        self._is_unreadable = False

    def step(self) -> int:
        """Ships the next records of the oldest segment that has some, and releases what is done; returns how many.

        Raises:
            StreamUnavailable: Nothing is lost; the records that were not confirmed come first in the next round.
        """
        if not self._unsent:
            self._follow()
            self._release()
            self._read()
        if self._unsent:
            return self._ship()
        self._release()
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
                if not self._is_unreadable:
                    logger.critical(log.line("wal_unreadable", path=self._directory, detail=error))
                self._is_unreadable = True
                stop.wait(_LONGEST_DELAY_S)
            except StreamUnavailable as error:
                metric.failed_replays.inc()
                self._note_away(error)
                stop.wait(min(_LONGEST_DELAY_S, 0.1 * (1 << min(attempt, 4))) * random.uniform(0.5, 1))
                attempt += 1

    def _follow(self) -> None:
        """Takes up new segments, and lets go of those that somebody has taken away."""
        found = segments(self._directory)
        self._is_unreadable = False
        for path in self._trails.keys() - set(found):
            self._trails.pop(path).forget()
        self._trails = {
            path: self._trails.get(path) or Trail(path, self._quarantine, self._patience_s) for path in found
        }

    def _read(self) -> None:
        for trail in self._trails.values():
            if batches := trail.batches():
                self._source, self._unsent = trail, batches
                return

    def _ship(self) -> int:
        assert self._source is not None
        self._appender.probe(self._stream_max_bytes * 9 // 10)
        batches = self._unsent
        if not all(map(is_canary, batches)):
            self._note_started()
        if not self._source.shipment.servers:
            self._witness.begin(self._source.shipment)
        outcomes = self._appender.append(batches)  # HANDOVER 3, copy and confirm
        self._source.shipment.servers.add(self._appender.server)
        refused = [outcome for outcome in outcomes if outcome]
        count = len(batches) - len(refused)
        self._unsent = [batch for batch, outcome in zip(batches, outcomes) if outcome]
        self._shipped += count
        metric.replayed_batches.inc(count)
        metric.replayed_events.inc(sum(batch.count for batch, outcome in zip(batches, outcomes) if not outcome))
        if refused:
            raise refused[0]
        return count

    def _release(self) -> None:
        """Releases the segments that are shipped whole and as safe where they are now as they were."""
        drained = {path: trail for path, trail in self._trails.items() if trail.is_drained}
        waiting = {path: trail for path, trail in drained.items() if trail.shipment.servers}
        confirmed = self._witness.confirmed([one.shipment for one in waiting.values()]) if waiting else []
        for path, trail in drained.items():
            if path not in waiting or trail.shipment in confirmed:
                if trail.release():
                    del self._trails[path]
            elif self._witness.has_lost(trail.shipment):
                logger.warning(log.line("replay_again", segment=path.name, why="redis was started anew"))
                trail.begin_again()
        if waiting:
            self._note_waiting()

    def _note_waiting(self) -> None:
        # Once for each way: in write-ahead mode segments come and go every second.
        if self._witness.waits_for not in ("nothing", self._waits_for):
            logger.warning(log.line("wal_kept", until=self._witness.waits_for, appendfsync=self._witness.fsync))
        self._waits_for = self._witness.waits_for

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
        if self._trails:
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
        settings.wal_path, settings.beside_wal("quarantine"), appender, Witness(settings.redis_url, _REDIS_TIMEOUT_S),
        settings.stream_max_bytes, settings.wal == "always",
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
