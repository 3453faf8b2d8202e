"""The consumer: reads the inbox, loads, and only then lets go. `python -m workers.consumer` runs one.

`step` does one round; `run` repeats it, and is the one place that waits and tries again. What could not be loaded stays
in hand, and more is read beside it, up to the bytes of a load. What fails for what may be some of its rows is tried in
smaller parts; what fails alone while PostgreSQL takes others is set aside, and tried alone now and then.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

import redis

from app import dead_letter, log, stream
from app.batch import FORMAT
from app.errors import SettingError, StreamLost, StreamUnavailable
from app.settings import Settings
from workers import metric
from workers.entry import FORMAT_PREFIX, Entry
from workers.errors import Poison, Unavailable
from workers.inbox import MAX_ENTRIES, Inbox
from workers.load_size import LoadSize
from workers.loader import Loader, Outcome
from workers.outage import Outage, Policy
from workers.probation import Probation
from workers.settlement import Settlement
from workers.sieve import Refusal

logger = logging.getLogger(__name__)

_LONGEST_DELAY_S = 5.0
_REDIS_TIMEOUT_S = 5.0  # above the second that a read may block
# A load costs the servers about the same whether it has one event or a hundred: after a small one more may gather.
_SMALL_LOAD_BYTES = 1 << 20
_LINGER_S = 0.05


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
        self._settlement = Settlement(inbox, name)
        self._size = LoadSize(MAX_ENTRIES)
        self._probation = Probation(inbox, loader, outage, self._settlement, self._size)
        self._held: list[Entry] = []
        self._is_adrift = False  # what is in hand is in no stream, or nobody's there
        self._load_count = 0
        self._doubted: dict[bytes, int] = {}  # what failed alone, after so many loads
        self._strange_formats: set[int] = set()
        self._loaded_bytes = 0

    def step(self) -> int:
        """Does one round and returns how many entries it was rid of; after at most a second of waiting, 0.

        Raises:
            Unavailable, StreamUnavailable: A server is away. Nothing is lost; the entries are pending, and in hand.
        """
        self._gather()
        count = len(self._held)
        try:
            self._work()
        except Unavailable as error:
            if not self._held or not self._outage.has_exhausted(error, self._inbox.dead_letter_bytes):
                raise
            return self._give_up(error)
        self._outage.end()
        return count - len(self._held)

    def run(self, stop: threading.Event) -> None:
        """Repeats `step` until `stop` is set. Waits, and never returns, because a server is away.

        A small load is followed by no other within 50 ms, so that events gather and the next one is larger.
        """
        while not stop.is_set():
            ends_at = time.monotonic() + _LINGER_S
            try:
                if self.step() and self._loaded_bytes < _SMALL_LOAD_BYTES and not self._held:
                    stop.wait(ends_at - time.monotonic())
            except StreamLost:
                self._restore()
            except (Unavailable, StreamUnavailable) as error:
                stop.wait(self._outage.delay(error))

    def _gather(self) -> None:
        """Fills the hand: with what is in it from a failed round and still its own, and with more."""
        if self._held and not self._is_adrift:
            try:
                self._held = self._inbox.keep(self._held)
                self._held += self._known(self._inbox.read_more(self._held))
            except StreamLost:
                return  # What is in hand may be all that is left of the stream: it is loaded first.
        if not self._held:
            self._held, self._is_adrift = self._known(self._inbox.read()), False

    def _known(self, entries: list[Entry]) -> list[Entry]:
        """Returns the entries of our format; the others are left to consumers that know theirs."""
        strangers = [entry for entry in entries if entry.batch.version != FORMAT]
        for entry in strangers:
            version = entry.batch.version
            self._inbox.set_aside(entry, f"{FORMAT_PREFIX}{version}", 0)
            if version not in self._strange_formats:
                self._strange_formats.add(version)
                logger.error(log.line("strange_format", format=version, known=FORMAT, entry=entry.entry_id.decode(),
                                      until="a consumer that knows it takes what is of it"))
        return [entry for entry in entries if entry.batch.version == FORMAT] if strangers else entries

    def _work(self) -> None:
        self._loaded_bytes = 0
        if not self._held:
            self._loader.prepare()
        elif self._held[0].is_suspect:
            entry = self._held[0]
            self._held = [] if entry.refusals else [entry]  # Whatever comes of it, that one is not kept in hand.
            self._probation.try_alone(entry, self._take)
            self._held = []
        else:
            is_doubted = self._held[0].entry_id in self._doubted
            self._load(self._held[:1 if is_doubted else self._size.limit])

    def _load(self, part: list[Entry]) -> None:
        """Loads a part of the hand, as large as it may be."""
        try:
            self._take(part)
        except Unavailable as error:
            if not error.is_doubtful:
                raise
            return self._doubt(part, error)
        self._loaded_bytes = sum(len(entry.batch.payload) for entry in part)
        self._size.note_loaded(len(part), self._loaded_bytes)
        self._held = self._held[len(part):]
        self._load_count += 1
        if self._doubted:
            self._doubted = {entry.entry_id: self._doubted[entry.entry_id] for entry in self._held
                             if entry.entry_id in self._doubted}
            self._held.sort(key=lambda entry: entry.entry_id not in self._doubted)  # They are tried again, alone.

    def _doubt(self, part: list[Entry], error: Unavailable) -> None:
        """Has less tried next time; what fails alone is put where it holds nobody, if PostgreSQL takes others."""
        self._size.note_failed(len(part))
        entry = part[0]
        if len(part) > 1:
            raise error
        has_others = self._load_count > self._doubted.get(entry.entry_id, self._load_count)
        # Another one is tried next, also where PostgreSQL went down with this one: if that is taken, and this one fails
        # again, this one is to blame.
        self._doubted[entry.entry_id] = self._load_count
        self._held = [*self._held[1:], entry]
        if has_others or self._probation.is_to_blame(entry, error):
            del self._doubted[entry.entry_id], self._held[-1]
            return self._probation.refuse(entry, error)
        raise error.settled() from error

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
        self._settlement.settle(entries, outcome)

    def _loaded(self, entries: Sequence[Entry]) -> Outcome:
        batches, entry_ids = [entry.batch for entry in entries], [entry.entry_id.decode() for entry in entries]
        try:
            return self._loader.load(batches, entry_ids, self._settlement.bury_events)
        except Poison:
            return self._loader.load(batches, entry_ids, self._settlement.bury_events, is_strict=True)

    def _give_up(self, error: Unavailable) -> int:
        """Moves what is in hand to the dead letters: the stream must not grow for as long as the sink is away."""
        death = self._settlement.death(dead_letter.SINK, Refusal(error.cause, error.detail), self._outage.failures,
                                       self._outage.since)
        for entry in self._held:
            self._inbox.bury(entry.entry_id, death)
        count, self._held, self._doubted = len(self._held), [], {}
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
        self._is_adrift = True


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
