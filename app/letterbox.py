"""The letterbox: the dead-letter stream as an operator sees it, to look through, to replay and to purge.

HANDOVER 6: dead letters → stream (tests/crash/test_dlq.py). Copied by XADD, released by XDEL, in one script a letter,
whose reply confirms both. Killed between two of them it is done again: letters that have gone are passed by. Should a
copy come twice all the same, as after a failover that has lost the XDEL, the ledger removes it.

Letters may have MBs each, and there may be any number: they are read and sent by bytes, some MiB at a time.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import redis

from app import count, dead_letter, size, stream
from app.dead_letter import REASONS, DeadLetter
from app.letter_filter import Filter

_PAGE_BYTES = 4 << 20
_PAGE_LETTERS = 500

# Keys: the letters. Arguments: from and to which id, the most letters, the bytes after which no further one is read.
_PAGE = """
local start, most, budget = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local letters, bytes = {}, 0
while #letters < most and bytes < budget do
  local letter = redis.call('XRANGE', KEYS[1], start, ARGV[2], 'COUNT', 1)[1]
  if not letter then break end
  letters[#letters + 1] = letter
  start = '(' .. letter[1]
  for i = 1, #letter[2] do bytes = bytes + #letter[2][i] end
end
return letters
"""
# Keys: the letters. Returns the id of the last one, without its body.
_LAST = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
return last and last[1]
"""
# Keys: the letters, the index of dead events, the stream, the hash of their sizes. Arguments: the letter's id, its
# event's name, its bytes, and its minute, the kind that it is counted as and its events, none of which where it holds
# no batch.
_REMOVE = count.LUA + size.COUNT + """
local function remove(id, name)
  local removed = redis.call('XDEL', KEYS[1], id)
  if redis.call('HGET', KEYS[2], name) == id then redis.call('HDEL', KEYS[2], name) end
  if removed == 1 then grow(KEYS[4], 'letters', -ARGV[3]) end
  if removed == 1 and ARGV[4] ~= '' then count(ARGV[4], ARGV[5], ARGV[6]) end
  return removed
end
"""
_PURGE = _REMOVE + "return remove(ARGV[1], ARGV[2])"
# The group beside them, and the entry's names and values. A full Redis refuses a script that begins with
# an XADD, and lets one go on that has written already: so it begins with an XACK of an id that no entry has.
_REPLAY = _REMOVE + """
if #redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1]) == 0 then return 0 end
redis.call('XACK', KEYS[3], ARGV[7], '0-1')
redis.call('XADD', KEYS[3], '*', unpack(ARGV, 8))
grow(KEYS[4], 'stream', bytes_of({unpack(ARGV, 8)}))
count(ARGV[4], 'added', ARGV[6])
return remove(ARGV[1], ARGV[2])
"""
_KEYS = (stream.DEAD_LETTERS, stream.DEAD_EVENTS, stream.STREAM, size.KEY)


class Tally:
    """Letters and their events, counted by reason; what is not one of `dead_letter.REASONS` counts as `unknown`."""

    def __init__(self) -> None:
        self.letters: Counter[str] = Counter()
        self.events: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """All letters."""
        return self.letters.total()

    def add(self, letters: Sequence[DeadLetter]) -> None:
        """Counts the letters."""
        for letter in letters:
            reason = letter.death.reason if letter.death.reason in REASONS else "unknown"
            self.letters[reason] += 1
            self.events[reason] += letter.count


class Report:
    """What a replay or a purge has done so far, and which letters it has met and left."""

    def __init__(self) -> None:
        self.done = Tally()
        self.left = Tally()


class Letterbox:
    """The letters. Any number of operators may be at them at once: each letter is replayed or purged by one of them.

    Args:
        client: With a socket timeout that some MiB can be sent and synced in.
        page_bytes: Bytes after which a page takes no further letter.
    """

    def __init__(self, client: redis.Redis, page_bytes: int = _PAGE_BYTES) -> None:
        self._client = client
        self._page_bytes = page_bytes

    def now_ms(self) -> int:
        """Returns Redis's clock, which the letters' ids are of.

        Raises:
            StreamUnavailable: Redis is away or refuses; so do all methods.
        """
        with stream.translated():
            seconds, micros = self._client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def page(self, after: str, max_count: int, max_bytes: int, upto: str = "+") -> list[DeadLetter]:
        """Returns letters in the order of their ids: those that fit, and at least one if there is any.

        Args:
            after: The id after which they begin; empty: at the first.
            max_bytes: It ends with the letter that reaches them.
            upto: The id of the last that may be among them.
        """
        return self._page(f"({after}" if after else "-", upto, max_count, max_bytes)

    def get(self, letter_id: str) -> DeadLetter | None:
        """Returns one letter; None if there is none of that id."""
        found = self._page(letter_id, letter_id, 1, 1)
        return found[0] if found else None

    def pages(self, wanted: Filter, after: str = "") -> Iterator[list[DeadLetter]]:
        """Yields the letters that the filter matches and that are there now, in parts of about `page_bytes`.

        Not those that are made meanwhile: what is replayed may come back as a letter, again and again.
        """
        if wanted.letter_ids:
            found = (self.get(letter_id) for letter_id in wanted.letter_ids)
            yield from ([letter] for letter in found if letter and wanted.matches(letter))
            return
        upto = self._evaluated(_LAST)
        is_after = after and dead_letter.place_of(after)[0] >= wanted.since_ms
        start = f"({after}" if is_after else f"{wanted.since_ms}"
        while upto and (letters := self._page(start, upto.decode(), _PAGE_LETTERS, self._page_bytes)):
            start = f"({letters[-1].letter_id}"
            yield [letter for letter in letters if wanted.matches(letter)]

    def replay(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]:
        """Moves letters into the stream, as `dead_letter.to_replay` says, in one pipeline.

        Args:
            letters: Some MiB of them.

        Returns:
            Those that it has moved: not those that have gone already, nor those that cannot be replayed.

        Durability:
            As durable on return as the stream. If it raises, each letter is in the one or the other: try again.
        """
        calls = []
        for letter in letters:
            if batch := dead_letter.to_replay(letter):
                # HANDOVER 6: copy, and then release
                counted = (count.minute_of(batch), count.REPLAYED, batch.count)
                calls.append((letter, (_REPLAY, *counted, stream.GROUP, *stream.fields_of(batch))))
        return self._each(calls)

    def purge(self, letters: Sequence[DeadLetter]) -> list[DeadLetter]:
        """Deletes letters, in one pipeline, and returns those that were still there.

        Durability:
            What was in them is gone on return; unknown for each if it raises.
        """
        return self._each([(letter, (_PURGE, *_counted(letter))) for letter in letters])

    def replay_matching(self, wanted: Filter, report: Report, is_dry: bool = False, limit: int | None = None) -> None:
        """Replays the letters that the filter matches, in parts; those that cannot be replayed are left.

        So are letters of a used idempotency key, unless the filter names them: whether another body is to be stored
        under it is for a person to decide.

        Args:
            report: Kept up to date, also if this raises.
            is_dry: Only count.
            limit: Most letters; None: all.

        Durability:
            As for `replay`.
        """
        def is_chosen(letter: DeadLetter) -> bool:
            return letter.is_replayable and (wanted.names_conflicts or letter.death.reason != dead_letter.CONFLICT)

        self._clear(wanted, report, is_chosen, list if is_dry else self.replay, limit)

    def purge_matching(self, wanted: Filter, report: Report, is_dry: bool = False, limit: int | None = None) -> None:
        """Deletes the letters that the filter matches, in parts. Arguments and durability as above.

        A letter of merged requests that is found by one of them is left, unless it is named: it holds the others' too.
        """
        def is_chosen(letter: DeadLetter) -> bool:
            is_whole = wanted.batch_id is None or letter.batch is None or letter.batch.batch_id == wanted.batch_id
            return is_whole or letter.index is not None or bool(wanted.letter_ids)

        self._clear(wanted, report, is_chosen, list if is_dry else self.purge, limit)

    def _clear(
        self, wanted: Filter, report: Report, is_chosen: Callable[[DeadLetter], bool],
        act: Callable[[Sequence[DeadLetter]], list[DeadLetter]], limit: int | None,
    ) -> None:
        room = limit
        for letters in self.pages(wanted):
            chosen = [letter for letter in letters if is_chosen(letter)][:room]
            report.left.add([letter for letter in letters if not is_chosen(letter)])
            done = act(chosen)
            report.done.add(done)
            if room is not None and not (room := room - len(done)):
                return

    def _page(self, start: str, upto: str, max_count: int, max_bytes: int) -> list[DeadLetter]:
        return [
            dead_letter.letter_of(letter_id, dict(zip(fields[::2], fields[1::2])))
            for letter_id, fields in self._evaluated(_PAGE, start, upto, max_count, max_bytes)
        ]

    def _evaluated(self, script: str, *arguments: str | int) -> Any:
        with stream.translated():
            return self._client.eval(script, 1, stream.DEAD_LETTERS, *arguments)

    def _each(self, calls: Sequence[tuple[DeadLetter, tuple[Any, ...]]]) -> list[DeadLetter]:
        """Runs a script for each letter, and returns those for which it found it."""
        with stream.translated():
            pipeline = self._client.pipeline(transaction=False)
            for letter, (script, *arguments) in calls:
                size_bytes = size.of_fields(letter.fields.values())
                pipeline.eval(script, len(_KEYS), *_KEYS, letter.letter_id, letter.event_name, size_bytes, *arguments)
            # Raised by redis-py, an error would have the command in its text.
            found = pipeline.execute(raise_on_error=False)
            for error in found:
                if isinstance(error, redis.RedisError):
                    raise error
        return [letter for (letter, _), count in zip(calls, found, strict=True) if count]


def _counted(letter: DeadLetter) -> tuple[str, str, int]:
    """Returns its minute, kind and events as it is purged; what was never counted in is not counted out."""
    if letter.batch is None or not letter.is_replayable:
        return "", "", 0
    kind = count.PURGED if letter.index is None else count.PURGED_LONE
    return count.minute_of(letter.batch), kind, letter.batch.count
