"""The consumer: reads the inbox, loads, and only then lets go. `python -m workers.consumer` runs one.

`step` does one round; `run` repeats it, and is the one place that waits and tries again.
"""

import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Sequence

import redis

from app import log, stream
from app.errors import SettingError, StreamLost, StreamUnavailable
from app.settings import Settings
from workers import metric
from workers.errors import Unavailable
from workers.inbox import Entry, Inbox
from workers.loader import Loader, Outcome

logger = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 5.0
_REDIS_TIMEOUT_S = 5.0  # above the second that a read may block


class Consumer:
    """One consumer of the group.

    Args:
        inbox: Where entries come from.
        loader: Where they go.
        recreate: Creates the group when it is gone.
    """

    def __init__(self, inbox: Inbox, loader: Loader, recreate: Callable[[], object]) -> None:
        self._inbox = inbox
        self._loader = loader
        self._recreate = recreate
        self._attempt = 0

    def step(self) -> int:
        """Does one round and returns how many entries it released; after at most a second of waiting, 0.

        Raises:
            Unavailable, StreamUnavailable: A server is away. Nothing is lost; the entries are pending.
        """
        entries = self._inbox.read()
        if not entries:
            return 0
        outcome = self._loader.load([entry.batch for entry in entries])
        for index in outcome.conflicts:
            entry = entries[index]
            self._inbox.bury(entry.entry_id, entry.raw, "idempotency_conflict", "the key came with another body before")
        done = outcome.stored + outcome.duplicates
        if done:
            self._inbox.ack([entries[index].entry_id for index in done])
        _count(entries, outcome)
        return len(entries)

    def run(self, stop: threading.Event) -> None:
        """Repeats `step` until `stop` is set. Waits, and never returns, because a server is away."""
        while not stop.is_set():
            try:
                self._loader.prepare()
                self.step()
                self._note_success()
            except StreamLost:
                self._restore()
            except (Unavailable, StreamUnavailable) as error:
                self._inbox.rewind()
                stop.wait(self._delay(error))

    def _restore(self) -> None:
        try:
            if self._recreate():
                metric.groups_created.inc()
                logger.error(log.line("group_created", why="it was missing: the stream is new, or was lost"))
        except StreamUnavailable:
            pass  # The next round meets it again, and waits.
        self._inbox.rewind()

    def _delay(self, error: Unavailable | StreamUnavailable) -> float:
        server = "postgres" if isinstance(error, Unavailable) else "redis"
        metric.failed_steps.labels(server).inc()
        delay_s = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * (1 << min(self._attempt, 10))) * random.uniform(0.5, 1)
        self._attempt += 1
        logger.warning(log.line(
            "load_failed" if server == "postgres" else "redis_unavailable",
            attempt=self._attempt, cause=error.cause, next_try_s=f"{delay_s:.2f}", detail=error,
        ))
        return delay_s

    def _note_success(self) -> None:
        if self._attempt:
            logger.warning(log.line("servers_available", failed_attempts=self._attempt))
        self._attempt = 0


def _count(entries: Sequence[Entry], outcome: Outcome) -> None:
    stored = [entries[index].batch for index in outcome.stored]
    metric.load_batches.observe(len(entries))
    metric.loaded_batches.inc(len(stored))
    metric.loaded_events.inc(sum(batch.count for batch in stored))
    metric.loaded_bytes.inc(sum(len(batch.payload) for batch in stored))
    metric.duplicate_batches.inc(len(outcome.duplicates))


def main() -> int:
    """Runs one consumer until SIGTERM or SIGINT, which let the load at hand finish."""
    try:
        settings = Settings.from_env(os.environ)
        if settings.redis_url is None or settings.database_url is None:
            raise SettingError("REDIS_URL and DATABASE_URL have to be set; `spillway up` sets them")
    except SettingError as error:
        print(f"consumer: {error}", file=sys.stderr)
        return os.EX_CONFIG
    log.setup(settings.consumer_name, settings.log_level)
    client = redis.Redis(connection_pool=stream.pool(settings.redis_url, _REDIS_TIMEOUT_S))
    consumer = Consumer(
        Inbox(client, settings.consumer_name, settings.load_max_bytes),
        Loader(settings.database_url, settings.consumer_name, settings.partition_days),
        lambda: stream.ensure_group(client),
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    logger.info(log.line("consumer_started", pid=os.getpid()))
    consumer.run(stop)
    logger.info(log.line("consumer_stopped"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
