"""The auditor: looks as often as it takes to tell a gap from what is on its way, and says what does not balance.

A gap counts when its minute has stood still while it was read, and when the next look finds the same one. The minute
that is being filled, or drained, says nothing yet; it will.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import redis

from app import count, log, stream
from ops.balance import Buckets, Gap, gaps
from ops.census import Census, Look, minutes_since
from ops.invariant import State

logger = logging.getLogger(__name__)

_LOOKS = 5
_PAUSE_S = 0.5
_CLOSED_AFTER = timedelta(minutes=2)  # then clocks that differ a little add nothing to a minute either
_REMEMBERED = timedelta(days=1)

# Keys: the hash. Arguments: the minute before which counts are taken away, then fields and values in turn. A field that
# has another value by now is of a minute that is moving: nothing is done.
_PRUNE = f"""
for i = 2, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) ~= ARGV[i + 1] then return 0 end
end
for i = 2, #ARGV, 2 do redis.call('HDEL', KEYS[1], ARGV[i]) end
local pruned = redis.call('HGET', KEYS[1], '{count.PRUNED}')
if not pruned or pruned < ARGV[1] then redis.call('HSET', KEYS[1], '{count.PRUNED}', ARGV[1]) end
return 1
"""

Counts = Mapping[str, Mapping[str, int]]


class Finding(NamedTuple):
    """A gap, and the minute that it is in."""

    minute: str
    gap: Gap


class Report(NamedTuple):
    """What an audit has found.

    Args:
        findings: What does not balance.
        moving: Minutes that never stood still, and are not judged.
        buckets: All minutes, as the last look found them.
        stream: How the stream is.
    """

    findings: list[Finding]
    moving: set[str]
    buckets: Buckets
    stream: State

    @property
    def is_balanced(self) -> bool:
        """Whether everything holds."""
        return not self.findings and not self.stream.faults

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing moves or waits in the stream, so that everything was judged."""
        return not self.moving and not self.stream.entries

    @property
    def gap_events(self) -> int:
        """All that is missing, and all that is too much."""
        return sum(abs(finding.gap.events) for finding in self.findings)


class Auditor:
    """Audits one service.

    Args:
        census: What looks.
        pause: Waits so many seconds between two looks.
    """

    def __init__(self, census: Census, pause: Callable[[float], object] = time.sleep) -> None:
        self._census = census
        self._pause = pause
        self._done: dict[str, Mapping[str, int]] | None = None
        self._open: set[str] = set()

    def audit(self, since: datetime) -> Report:
        """Audits all minutes since then, in PostgreSQL too, and older ones as far as Redis has counts of them.

        Raises:
            NotReady: A server is away.
        """
        return self._repeated(lambda _: minutes_since(since, datetime.now(UTC)))

    def audit_news(self, since: datetime) -> Report:
        """Audits what it has not found balanced before, with the same counts; `since` is where it begins to.

        So PostgreSQL counts the rows of each minute a few times, and not for ever. What does not balance is audited
        again until it does, for a day.

        Raises:
            NotReady: A server is away.
        """
        def wanted(counts: Counts) -> Collection[str]:
            first, *_ = window = minutes_since(since, datetime.now(UTC))
            if self._done is None:
                self._done = {minute: found for minute, found in counts.items() if minute < first}
            done = self._done
            self._done = done = {minute: found for minute, found in done.items() if minute in counts or minute >= first}
            return {minute for minute in {*counts, *window, *self._open} if done.get(minute) != counts.get(minute, {})}

        report = self._repeated(wanted)
        self._note_done(report)
        return report

    def _repeated(self, wanted: Callable[[Counts], Collection[str]]) -> Report:
        before: set[Finding] | None = None
        for number in range(_LOOKS):
            if number:
                self._pause(_PAUSE_S)
            look = self._census.look(wanted)
            found = set(_findings(look))
            if not found or found == before:
                break
            before = found if before is None or number < _LOOKS - 1 else found & before
        else:
            found = before or set()
        return Report(sorted(found), look.moved, look.buckets, look.stream)

    def _note_done(self, report: Report) -> None:
        assert self._done is not None
        now = datetime.now(UTC)
        closed, = minutes_since(now - _CLOSED_AFTER, now - _CLOSED_AFTER)
        oldest, = minutes_since(now - _REMEMBERED, now - _REMEMBERED)
        self._open = {finding.minute for finding in report.findings if finding.minute >= oldest}
        open_minutes = report.moving | {finding.minute for finding in report.findings}
        self._done |= {
            minute: bucket.counts for minute, bucket in report.buckets.items()
            if bucket.is_read and minute < closed and minute not in open_minutes and not bucket.in_stream
        }


def _findings(look: Look) -> Iterator[Finding]:
    for minute, bucket in look.buckets.items():
        if minute not in look.moved:
            yield from (Finding(minute, gap) for gap in gaps(bucket))


def prune(client: redis.Redis, report: Report, before: datetime) -> int:
    """Takes away the counts of minutes before `before` of which nothing is on its way or in the dead letters.

    What never balanced is said once more, and forgotten with the rest: it must not be kept, or told, for ever.

    Returns:
        How many minutes.

    Raises:
        StreamUnavailable: Redis is away or refuses.
    """
    limit, = minutes_since(before, before)
    old = {minute: bucket for minute, bucket in report.buckets.items()
           if minute < limit and minute not in report.moving and bucket.counts and bucket.is_empty}
    for finding in report.findings:
        if finding.minute in old:
            logger.critical(log.line("audit_gap_pruned", minute=finding.minute, check=finding.gap.check,
                                     events=finding.gap.events, detail=finding.gap.text))
    pruned = 0
    for minute, bucket in old.items():
        fields = [part for kind, events in bucket.counts.items() for part in (f"{minute}:{kind}", str(events))]
        with stream.translated():
            pruned += int(client.eval(_PRUNE, 1, count.KEY, limit, *fields))
    return pruned
