"""The consumer: reads the inbox, loads, and only then lets go. `python -m workers.consumer` runs one.

`step` does one round; `run` repeats it, and is the one place that waits and tries again. What could not be loaded stays
in hand, and more is read beside it, up to the bytes of a load.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

import redis

from app import count, dead_letter, log, stream
from app.batch import LoneEvent
from app.dead_letter import Death
from app.errors import SettingError, StreamLost, StreamUnavailable
from app.moment import now
from app.settings import Settings
from workers import metric
from workers.entry import Entry
from workers.errors import Poison, Unavailable
from workers.inbox import Inbox
from workers.ledger import DeadEvent
from workers.loader import Loader, Outcome
from workers.outage import Outage, Policy
from workers.sieve import Refusal

logger = logging.getLogger(__name__)

_LONGEST_DELAY_S = 5.0
_REDIS_TIMEOUT_S = 5.0  # above the second that a read may block
# A load costs the servers about the same whether it has one event or a hundred: after a small one more may gather.
_SMALL_LOAD_BYTES = 1 << 20
_LINGER_S = 0.05
_MAX_DEATHS_ALONE = 2  # after two in company


class Consumer:
    """One consumer of the group.

    Args:
        inbox: Where entries come from.
        loader: Where they go.
        recreate: Creates the group when it is gone.
        outage: How its failures are counted.
        name: Its name, for the dead letters.
    """

    def __init__(
        self, inbox: Inbox, loader: Loader, recreate: Callable[[], object], outage: Outage, name: str
    ) -> None:
        self._inbox = inbox
        self._loader = loader
        self._recreate = recreate
        self._outage = outage
        self._name = name
        self._held: list[Entry] = []
        self._loaded_bytes = 0

    def step(self) -> int:
        """Does one round and returns how many entries it was rid of; after at most a second of waiting, 0.

        Raises:
            Unavailable, StreamUnavailable: A server is away. Nothing is lost; the entries are pending, and in hand.
        """
        self._gather()
        count = len(self._held)
        self._loaded_bytes = sum(len(entry.batch.payload) for entry in self._held)
        try:
            self._work()
        except Unavailable as error:
            if not count or not self._outage.has_exhausted(error, self._inbox.dead_letter_bytes):
                raise
            return self._give_up(error)
        self._held = []
        self._outage.end()
        return count

    def run(self, stop: threading.Event) -> None:
        """Repeats `step` until `stop` is set. Waits, and never returns, because a server is away.

        A small load is followed by no other within 50 ms, so that events gather and the next one is larger.
        """
        while not stop.is_set():
            ends_at = time.monotonic() + _LINGER_S
            try:
                if self.step() and self._loaded_bytes < _SMALL_LOAD_BYTES:
                    stop.wait(ends_at - time.monotonic())
            except StreamLost:
                self._restore()
            except (Unavailable, StreamUnavailable) as error:
                stop.wait(self._outage.delay(error))

    def _gather(self) -> None:
        """Fills the hand: with what is in it from a failed round and still its own, and with more."""
        if self._held:
            try:
                self._held = self._inbox.keep(self._held)
                self._held += self._inbox.read_more(self._held)
            except StreamLost:
                return  # What is in hand may be all that is left of the stream: it is loaded first.
        if not self._held:
            self._held = self._inbox.read()

    def _work(self) -> None:
        if not self._held:
            self._loader.prepare()
        elif self._held[0].is_suspect:
            self._try_alone(self._held[0])
        else:
            self._take(self._held)

    def _try_alone(self, entry: Entry) -> None:
        """Loads what its consumers seem to die of, or, if they do so again and PostgreSQL takes others, buries it."""
        try:
            self._loader.prove()
        except Poison:
            pass  # It is there, and it decides about rows.
        if entry.deaths_alone < _MAX_DEATHS_ALONE:
            self._inbox.note_alone(entry)
            self._take([entry])
        else:
            detail = f"{entry.deaths_alone} consumers ended without a word while they loaded it alone"
            self._bury(entry, dead_letter.KILLS, Refusal("", detail))

    def _take(self, entries: Sequence[Entry]) -> None:
        """Loads the entries and releases them; a part that can be taken neither whole nor by events, in halves."""
        try:
            outcome = self._loaded(entries)
        except Poison as error:
            if len(entries) > 1:
                middle = len(entries) // 2
                self._take(entries[:middle])
                return self._take(entries[middle:])
            outcome = Outcome([], [], [], [], [], {0: Refusal(error.sqlstate, error.detail)})
        self._settle(entries, outcome)

    def _loaded(self, entries: Sequence[Entry]) -> Outcome:
        batches, entry_ids = [entry.batch for entry in entries], [entry.entry_id.decode() for entry in entries]
        try:
            return self._loader.load(batches, entry_ids, self._bury_events)
        except Poison:
            return self._loader.load(batches, entry_ids, self._bury_events, is_strict=True)

    def _settle(self, entries: Sequence[Entry], outcome: Outcome) -> None:
        """Lets go of what is settled: stored or known is released, the rest buried."""
        for index in outcome.conflicts:
            self._bury(entries[index], dead_letter.CONFLICT, Refusal("", "the key came with another body before"))
        for index in outcome.orphans:
            self._bury(entries[index], dead_letter.BAD_EVENT, Refusal("", "its batch is not stored: replay that first"))
        for index, refusal in outcome.refused.items():
            is_event = isinstance(entries[index].batch, LoneEvent)
            self._bury(entries[index], dead_letter.BAD_EVENT if is_event else dead_letter.BAD_BATCH, refusal)
        done = [(entries[index], count.kind_of_load(entries[index].batch)) for index in outcome.stored + outcome.known]
        done += [(entries[index], count.DUPLICATE) for index in outcome.duplicates]
        if done:
            self._inbox.ack(done)
        _count(entries, outcome)

    def _bury(self, entry: Entry, reason: str, refusal: Refusal) -> None:
        self._inbox.bury(entry.entry_id, self._death(reason, refusal))
        logger.error(log.line("batch_buried", batch=entry.batch.batch_id, reason=reason, sqlstate=refusal.sqlstate))

    def _bury_events(self, events: list[DeadEvent]) -> None:
        deaths = [self._death(dead_letter.BAD_EVENT, event.refusal) for event in events]
        self._inbox.bury_events(events, deaths)  # HANDOVER 5, copy: before the others' COMMIT
        logger.error(log.line("events_buried", count=len(events), sqlstate=events[0].refusal.sqlstate))

    def _death(self, reason: str, refusal: Refusal, attempts: int = 1, first_failed_at: str = "") -> Death:
        stamp = now()
        return Death(reason, refusal.detail, refusal.sqlstate, attempts, first_failed_at or stamp, stamp, self._name)

    def _give_up(self, error: Unavailable) -> int:
        """Moves what is in hand to the dead letters: the stream must not grow for as long as the sink is away."""
        death = self._death(dead_letter.SINK, Refusal(error.cause, error.detail), self._outage.failures,
                            self._outage.since)
        for entry in self._held:
            self._inbox.bury(entry.entry_id, death)
        count, self._held = len(self._held), []
        self._outage.note_buried(count)
        return count

    def _restore(self) -> None:
        try:
            if self._recreate():
                metric.groups_created.inc()
                logger.error(log.line("group_created", why="it was missing: the stream is new, or was lost"))
        except StreamUnavailable:
            pass  # The next round meets it again, and waits.
        self._inbox.rewind()


def _count(entries: Sequence[Entry], outcome: Outcome) -> None:
    stored = [entries[index].batch for index in outcome.stored]
    metric.load_batches.observe(len(entries))
    metric.loaded_batches.inc(len(stored))
    if stored:
        metric.last_load_at.set_to_current_time()
    metric.loaded_events.inc(sum(batch.count for batch in stored) - outcome.dead_count)
    metric.loaded_bytes.inc(sum(len(batch.payload) for batch in stored))
    metric.duplicate_batches.inc(len(outcome.known) + len(outcome.duplicates))


def make(settings: Settings, redis_url: str, database_url: str) -> Consumer:
    """Returns the consumer that the settings describe; opens nothing."""
    name = settings.consumer_name
    client = redis.Redis(connection_pool=stream.pool(redis_url, _REDIS_TIMEOUT_S))
    # While it waits, what it holds must not become so idle that others take it.
    longest_delay_s = min(_LONGEST_DELAY_S, settings.claim_idle_s / 4)
    return Consumer(
        Inbox(client, name, settings.load_max_bytes, settings.claim_idle_s),
        Loader(database_url, name, settings.sink_timeout_s),
        lambda: stream.ensure_group(client),
        Outage(
            Policy(settings.sink_retries, settings.sink_policy == "hold", settings.dead_letters_max_bytes),
            longest_delay_s,
        ),
        name,
    )


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
    consumer = make(settings, settings.redis_url, settings.database_url)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    logger.info(log.line("consumer_started", pid=os.getpid()))
    consumer.run(stop)
    logger.info(log.line("consumer_stopped"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
