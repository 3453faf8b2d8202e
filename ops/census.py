"""The census: reads what the audit compares, from Redis and PostgreSQL, while everything moves.

Nothing is locked. Counts never fall, so that a minute whose counts are the same before and after all the rest was read
has stood still meanwhile, and what was read of it is exact; the others have moved, and are looked at another time.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import psycopg2
import redis
from psycopg2.extensions import cursor as Cursor

from app import count, stream
from app.errors import StreamUnavailable
from ops import snapshot
from ops.balance import Buckets
from ops.errors import NotReady
from ops.invariant import PENDING, State, state

_PAGE_BYTES, _PAGE_ENTRIES = 1 << 20, 500  # some ms, in which Redis serves nobody else
_MINUTE = "%Y-%m-%dT%H:%M"

# Keys: a stream. Arguments: the id to begin at, bytes and entries after which a page ends, the group if its entries are
# to be pending once they were delivered. Returns the id to go on after, or false at the end; events by minute, of
# batches and of lone events, in turn; ids that were delivered and are not pending: nobody will get them again. What is
# no batch counts nothing. Payloads stay where they are.
_PAGE = PENDING + """
local start, budget, most, group = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local delivered = group ~= '' and last_delivered(group) or false
local whole, lone, orphans, bytes, width = {}, {}, {}, 0, 1
local last = false
while bytes < budget and most > 0 do
  local entries = redis.call('XRANGE', KEYS[1], start, '+', 'COUNT', width)
  if #entries == 0 then last = false break end
  local size = 0
  for _, entry in ipairs(entries) do
    last = entry[1]
    local named, fields = {}, entry[2]
    for i = 1, #fields, 2 do
      named[fields[i]] = fields[i + 1]
      size = size + #fields[i + 1]
    end
    local minute = string.match(named.received_at or '', '^(%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d):')
    local events = named.batch_id and named.payload and string.match(named.count or '', '^[1-9]%d*$')
    if minute and events and named.reason ~= 'not_an_entry' then
      local sums = named.event_index and lone or whole
      sums[minute] = (sums[minute] or 0) + events
    end
    if delivered and not is_after(last, delivered) and not owner(group, last) then orphans[#orphans + 1] = last end
  end
  start = '(' .. last
  bytes, most = bytes + size, most - #entries
  width = size < 65536 and math.min(width * 2, 16) or 1
end
local function listed(sums)
  local flat = {}
  for minute, events in pairs(sums) do flat[#flat + 1] = minute; flat[#flat + 1] = events end
  return flat
end
return {last, listed(whole), listed(lone), orphans}
"""

_IS_MADE = "SELECT to_regclass('log_batches') IS NOT NULL AND to_regclass('log_events') IS NOT NULL"
_LEDGER = """
SELECT date_trunc('minute', received_at AT TIME ZONE 'UTC'),
    coalesce(sum(event_count) FILTER (WHERE entry_id IS NOT NULL), 0),
    coalesce(sum(event_count) FILTER (WHERE entry_id IS NULL), 0), sum(cardinality(dead_events))
FROM log_batches WHERE received_at >= %s AND received_at < %s GROUP BY 1
"""
_ROWS = """
SELECT date_trunc('minute', received_at AT TIME ZONE 'UTC'), count(*)
FROM log_events WHERE received_at >= %s AND received_at < %s GROUP BY 1
"""


class Look(NamedTuple):
    """What one census found.

    Args:
        buckets: By minute.
        moved: Minutes that moved meanwhile, and of which nothing can be said.
        stream: How the stream is.
    """

    buckets: Buckets
    moved: set[str]
    stream: State


class Census:
    """Reads both servers.

    Args:
        client: Of Redis.
        database_url: Of PostgreSQL.
        timeout_s: Longest that PostgreSQL may take for one statement.
    """

    def __init__(self, client: redis.Redis, database_url: str, timeout_s: int) -> None:
        self._client = client
        self._database_url = database_url
        self._timeout_s = timeout_s

    def look(self, wanted: Callable[[Mapping[str, Mapping[str, int]]], Collection[str]]) -> Look:
        """Takes one look.

        Args:
            wanted: Says, by all counts, about which minutes PostgreSQL is to be asked.

        Raises:
            NotReady: A server is away.
        """
        try:
            with stream.translated():
                return self._look(wanted)
        except StreamUnavailable as error:
            raise NotReady(f"Redis does not answer, nothing can be said: {error}") from error
        except psycopg2.Error as error:
            text = " ".join(str(error).split())
            raise NotReady(f"PostgreSQL does not answer, nothing can be said: {text}") from error

    def _look(self, wanted: Callable[[Mapping[str, Mapping[str, int]]], Collection[str]]) -> Look:
        before: Any = self._client.hgetall(count.KEY)
        buckets = Buckets(before.get(count.PRUNED.encode(), b"").decode())
        counts = count.read(before)
        for minute, found_counts in counts.items():
            buckets[minute].counts = found_counts
        orphans = self._walk(stream.STREAM, stream.GROUP, buckets, "in_stream")
        self._walk(stream.DEAD_LETTERS, "", buckets, "letters")
        self._ask(sorted(wanted(counts)), buckets)
        found = state(self._client, orphans)
        again: Any = self._client.hgetall(count.KEY)
        after = count.read(again)
        moved = {minute for minute in buckets.keys() | after.keys() if counts.get(minute) != after.get(minute)}
        return Look(buckets, moved, found)

    def _walk(self, key: str, group: str, buckets: Buckets, name: str) -> list[str]:
        """Adds what is in a stream to the buckets; returns the ids of orphans."""
        script = self._client.register_script(_PAGE)
        last, orphans = "-", []
        while last:
            page: Any = script(keys=(key,), args=(last, _PAGE_BYTES, _PAGE_ENTRIES, group))
            for sums, attribute in ((page[1], name), (page[2], f"{name}_lone")):
                for minute, events in zip(sums[::2], sums[1::2]):
                    bucket = buckets[minute.decode()]
                    setattr(bucket, attribute, getattr(bucket, attribute) + events)
            orphans += [entry_id.decode() for entry_id in page[3]]
            last = f"({page[0].decode()}" if page[0] else ""
        return orphans

    def _ask(self, minutes: list[str], buckets: Buckets) -> None:
        with closing(snapshot.connect(self._database_url, "audit")) as connection:
            with snapshot.of(connection, self._timeout_s) as cursor:
                cursor.execute(_IS_MADE)
                [(is_made,)] = cursor.fetchall()
                for start, end in _spans(minutes) if is_made else ():
                    _ask_about(cursor, start, end, buckets)
        for minute in minutes:
            buckets[minute].is_read = True


def _ask_about(cursor: Cursor, start: datetime, end: datetime, buckets: Buckets) -> None:
    cursor.execute(_LEDGER, (start, end))
    for minute, ledger, ledger_old, dead in cursor.fetchall():
        bucket = buckets[f"{minute:{_MINUTE}}"]
        bucket.ledger, bucket.ledger_old, bucket.dead = int(ledger), int(ledger_old), int(dead)
    cursor.execute(_ROWS, (start, end))
    for minute, rows in cursor.fetchall():
        buckets[f"{minute:{_MINUTE}}"].rows = rows


def _spans(minutes: list[str]) -> Iterator[tuple[datetime, datetime]]:
    """Yields runs of minutes that follow each other, as beginning and end."""
    moments = [datetime.strptime(minute, _MINUTE).replace(tzinfo=UTC) for minute in minutes]
    start = end = None
    for moment in moments:
        if moment != end:
            if start and end:
                yield start, end
            start = moment
        end = moment + timedelta(minutes=1)
    if start and end:
        yield start, end


def minutes_since(start: datetime, end: datetime) -> list[str]:
    """Returns the minutes from the one that `start` is in to the one that `end` is in."""
    first = start.astimezone(UTC).replace(second=0, microsecond=0)
    total = int((end - first) // timedelta(minutes=1)) + 1
    return [f"{first + timedelta(minutes=number):{_MINUTE}}" for number in range(total)]
