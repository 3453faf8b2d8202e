"""What becomes of the entries of a load: what is stored or known is released, what can never be is buried.

The hand-over of single events, 5, is here; that of entries and the release of 4 are the inbox's.
"""

import logging
from collections.abc import Sequence

from app import count, dead_letter, log
from app.batch import LoneEvent
from app.dead_letter import Death
from app.moment import now
from workers import metric
from workers.entry import Entry
from workers.inbox import Inbox
from workers.ledger import DeadEvent
from workers.loader import Outcome
from workers.sieve import Refusal

logger = logging.getLogger(__name__)


class Settlement:
    """As one consumer does it.

    Args:
        inbox: Whose entries they are.
        name: The consumer's, for the dead letters.
    """

    def __init__(self, inbox: Inbox, name: str) -> None:
        self._inbox = inbox
        self._name = name

    def settle(self, entries: Sequence[Entry], outcome: Outcome) -> None:
        """Lets go of what is settled: stored or known is released, the rest buried."""
        for index in outcome.conflicts:
            self.bury(entries[index], dead_letter.CONFLICT, Refusal("", "the key came with another body before"))
        for index in outcome.orphans:
            self.bury(entries[index], dead_letter.BAD_EVENT, Refusal("", "its batch is not stored: replay that first"))
        for index, refusal in outcome.refused.items():
            is_event = isinstance(entries[index].batch, LoneEvent)
            self.bury(entries[index], dead_letter.BAD_EVENT if is_event else dead_letter.BAD_BATCH, refusal)
        done = [(entries[index], count.kind_of_load(entries[index].batch)) for index in outcome.stored + outcome.known]
        done += [(entries[index], count.DUPLICATE) for index in outcome.duplicates]
        if done:
            self._inbox.ack(done)
        _count(entries, outcome)

    def bury(self, entry: Entry, reason: str, refusal: Refusal, attempts: int = 1) -> None:
        """Moves an entry to the dead letters, and says so."""
        self._inbox.bury(entry.entry_id, self.death(reason, refusal, attempts))
        logger.error(log.line("batch_buried", batch=entry.batch.batch_id, reason=reason, sqlstate=refusal.sqlstate))

    def bury_events(self, events: list[DeadEvent]) -> None:
        """Makes dead letters of events, whose batches are stored without them."""
        deaths = [self.death(dead_letter.BAD_EVENT, event.refusal) for event in events]
        self._inbox.bury_events(events, deaths)  # HANDOVER 5, copy: before the others' COMMIT
        logger.error(log.line("events_buried", count=len(events), sqlstate=events[0].refusal.sqlstate))

    def death(self, reason: str, refusal: Refusal, attempts: int = 1, first_failed_at: str = "") -> Death:
        """Returns what is to be known of an end that comes now; `first_failed_at` where its first failure was not."""
        stamp = now()
        return Death(reason, refusal.detail, refusal.sqlstate, attempts, first_failed_at or stamp, stamp, self._name)


def _count(entries: Sequence[Entry], outcome: Outcome) -> None:
    stored = [entries[index].batch for index in outcome.stored]
    metric.load_batches.observe(len(entries))
    metric.loaded_batches.inc(len(stored))
    if stored:
        metric.last_load_at.set_to_current_time()
    metric.loaded_events.inc(sum(batch.count for batch in stored) - outcome.dead_count)
    metric.loaded_bytes.inc(sum(len(batch.payload) for batch in stored))
    metric.duplicate_batches.inc(len(outcome.known) + len(outcome.duplicates))
