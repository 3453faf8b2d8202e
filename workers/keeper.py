"""The keeper: makes the partitions of the days to come, so that no load has to. `python -m workers.keeper` runs one.

`step` does one round; `run` repeats it. That a step cannot be done is said and counted, and tried again: until then the
rows of that day go to `log_events_default`. Any number of keepers may run; who finds another at work leaves it to it.
"""

import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta

import psycopg2
from psycopg2.extensions import connection as Connection

from app import log
from app.errors import SettingError
from app.settings import Settings
from workers import loader, metric, partition
from workers.blame import translated
from workers.partition import WHY, Result
from workers.schema import partition_of
from workers.transaction import holders
from workers.watchdog import Watchdog

logger = logging.getLogger(__name__)

_EVERY_S = 60.0
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 5.0
_POLL_S, _STOP_S = 1.0, 2.0
_TIMEOUT_S = 2000  # above all that a step may take, that of reading through a large table
_LOCKED = "log_events_default"  # what is mostly waited for
_WAITING = {Result.LOCKED, Result.SLOW, Result.BUSY}


class Keeper:
    """Owns a connection, which it opens when it is needed and drops after every error.

    Args:
        url: libpq URL.
        days_ahead: Partitions made ahead, beside those of yesterday and today.
        every_s: From one round to the next, unless there is something to wait for.
    """

    def __init__(self, url: str, days_ahead: int, every_s: float = _EVERY_S) -> None:
        self._parameters = loader.parameters(url, "keeper")
        self._days_ahead = days_ahead
        self._every_s = every_s
        self._watchdog = Watchdog(_TIMEOUT_S)
        self._connection: Connection | None = None
        self._said: dict[date, Result] = {}
        self._away_cause = ""

    def step(self) -> Mapping[date, Result]:
        """Makes what is missing, today's first, up to a lock that is not to be had; returns what became of each day.

        Raises:
            psycopg2.Error: PostgreSQL is away, or something is not as it should be.
        """
        connection = self._open()
        with self._watchdog.guard(connection):
            today = datetime.now(UTC).date()
            days = [today + timedelta(days=offset) for offset in (*range(self._days_ahead + 1), -1)]
            found = partition.made(connection)
            if not found:
                return {today: Result.BUSY}  # the tables are the consumers' to make
            results: dict[date, Result] = {}
            for day in days:
                if partition_of(day) not in found and Result.LOCKED not in results.values():
                    results[day] = partition.make(connection, day)
            found |= {partition_of(day) for day, result in results.items() if result is Result.MADE}
            results |= partition.drop_guards(connection, {day for day in days if partition_of(day) not in found})
            self._tell(connection, results)
            metric.partitions_until.set(_until(today, found))
        return results

    def run(self, stop: threading.Event) -> None:
        """Repeats `step` until `stop` is set. Waits, and does not return, because PostgreSQL is away or a lock held."""
        attempt = 0
        while not stop.is_set():
            try:
                is_waiting = bool(_WAITING & set(self.step().values()))
                self._note_away(None)
            except psycopg2.Error as error:
                is_waiting = True
                self.close()
                self._note_away(error)
            attempt = attempt + 1 if is_waiting else 0
            delay_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * (1 << min(attempt, 10))) if is_waiting else self._every_s
            stop.wait(delay_s * random.uniform(0.5, 1))

    def close(self) -> None:
        """Drops the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = psycopg2.connect(**self._parameters)
        return self._connection

    def _tell(self, connection: Connection, results: Mapping[date, Result]) -> None:
        """Counts what could not be done, and says what was not so the last time."""
        for day, result in results.items():
            before = self._said.pop(day, None)
            if result is Result.MADE:
                logger.info(log.line("partition_made", day=day))
            elif result is not Result.BUSY:
                metric.failed_upkeep.labels(result.value).inc()
                if result is not before:
                    held_by = {"held_by": holders(connection, _LOCKED)} if result is Result.LOCKED else {}
                    logger.warning(log.line("partition_refused", day=day, why=WHY[result], **held_by))
                self._said[day] = result
        metric.refused_partitions.set(sum(result is Result.ROWS for result in self._said.values()))

    def _note_away(self, error: psycopg2.Error | None) -> None:
        found = translated(error) if error else None
        cause = type(found).__name__ + getattr(found, "cause", "") if found else ""
        if found:
            metric.failed_upkeep.labels("server").inc()
        if found and cause != self._away_cause:
            logger.warning(log.line("keeper_waiting", detail=found))
        if not found and self._away_cause:
            logger.warning(log.line("keeper_resumed"))
        self._away_cause = cause


def _until(today: date, found: set[str]) -> float:
    """Returns up to when every day from today (UTC) on has a partition, in Unix seconds."""
    day = today
    while partition_of(day) in found:
        day += timedelta(days=1)
    return datetime.combine(day, time(), UTC).timestamp()


def main() -> int:
    """Runs the keeper until SIGTERM or SIGINT."""
    try:
        settings = Settings.from_env(os.environ)
        if settings.database_url is None:
            raise SettingError("DATABASE_URL has to be set; `spillway up` sets it")
    except SettingError as error:
        print(f"keeper: {error}", file=sys.stderr)
        return os.EX_CONFIG
    log.setup("keeper", settings.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    logger.info(log.line("keeper_started", pid=os.getpid(), days_ahead=settings.partition_days))
    # libpq lets no signal through, and a statement may take half an hour: the server finishes that without us.
    keeper = Keeper(settings.database_url, settings.partition_days)
    thread = threading.Thread(target=keeper.run, args=[stop], daemon=True)
    thread.start()
    while thread.is_alive() and not stop.wait(_POLL_S):
        pass
    if not stop.is_set():
        return os.EX_SOFTWARE
    thread.join(_STOP_S)
    logger.info(log.line("keeper_stopped"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
