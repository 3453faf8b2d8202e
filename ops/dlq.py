"""`spillway dlq`: the dead letters on a command line. What they hold was sent by strangers: a terminal sees no control
character of it.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TextIO

import msgspec
import redis

from app import dead_letter, letter_filter, stream
from app.dead_letter import REASONS, DeadLetter
from app.errors import SettingError
from app.letter_filter import Filter
from app.letterbox import Letterbox, Report, Tally
from app.settings import Settings
from ops.stack import Stack

_TIMEOUT_S = 10.0  # some MiB are sent and synced at a time
_USAGE = 2  # as argparse's
_SHOWN_LETTERS = 100

_ACTIONS = {
    "list": "what there is, the oldest first",
    "show": "one letter, with its events, as JSON",
    "replay": "put letters back into the stream; all but those of a used idempotency key, unless they are named",
    "purge": "delete letters for good",
    "export": "whole letters with their events, as JSON lines",
}
_COLUMNS = (
    ("letter", 17), ("made at", 20), ("reason", 20), ("sqlstate", 8), ("batch", 36), ("index", 5), ("events", 6),
    ("attempts", 8), ("detail", 60),
)
_NUMBERS = ("index", "events", "attempts")
_NOT_PLAIN = re.compile(r"[^\x20-\x7e]")
_WHY_LEFT = {
    dead_letter.CONFLICT: "whether another body is to be stored under a used key is for you to decide: replay them "
                          f"by id, or with --reason {dead_letter.CONFLICT}",
}
_NO_BATCH = "they hold no batch and cannot be replayed; `spillway dlq show` tells what they are"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `dlq`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    for name, text in _ACTIONS.items():
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == "show":
            action.add_argument("letter", nargs=1, help="its id")
            action.set_defaults(reason=None, service=None, batch=None, since=None)
            continue
        action.add_argument("letter", nargs="*", help="ids of letters; none: all that the options say")
        action.add_argument("--reason", choices=REASONS, help=", ".join(REASONS), metavar="REASON")
        action.add_argument("--service", help="letters with an event of this service")
        action.add_argument("--batch", metavar="UUID", help="letters of this batch, or that hold this request")
        action.add_argument("--since", metavar="TIME", help="letters made since: RFC 3339, or 90s, 15m, 2h, 3d ago")
        action.add_argument("--limit", type=_limit, metavar="N", help="at most so many letters")
        if name == "list":
            action.add_argument("--json", action="store_true", help="as JSON lines")
        if name in ("replay", "purge"):
            action.add_argument("--dry-run", action="store_true", help="only say what would be done")
        if name == "purge":
            action.add_argument("--all", action="store_true", help="every letter that there is")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Runs one action; returns 0 also where no letter matches, 1 where `show` finds none, 2 for a wrong argument.

    Raises:
        SettingError: Nothing runs here, and REDIS_URL is not set.
        StreamUnavailable: Redis is away or refuses.
    """
    letterbox = Letterbox(redis.Redis(connection_pool=stream.pool(_url(settings), _TIMEOUT_S)))
    actions: dict[str, Callable[[argparse.Namespace, Letterbox, Filter], int]] = {
        "list": _list, "show": _show, "replay": _replay, "purge": _purge, "export": _export,
    }
    try:
        wanted = letter_filter.read(
            args.reason, args.service, args.batch, args.since, args.letter, letterbox.now_ms
        )
    except ValueError as error:
        return _refuse(str(error))
    try:
        status = actions[args.action](args, letterbox, wanted)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever reads has seen enough. Python would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _limit(text: str) -> int:
    if not text.isdecimal() or not int(text[:9]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _url(settings: Settings) -> str:
    stack = Stack(settings.state)
    if stack.is_up():
        return stack.facts().redis_url
    if settings.redis_url:
        return settings.redis_url
    raise SettingError(f"nothing runs in {stack.state}, and REDIS_URL is not set: it says where the dead letters are")


def _refuse(text: str) -> int:
    print(f"spillway dlq: {_safe(text)}", file=sys.stderr)
    return _USAGE


def _list(args: argparse.Namespace, letterbox: Letterbox, wanted: Filter) -> int:
    tally, limit = Tally(), args.limit or _SHOWN_LETTERS
    found = _letters(letterbox, wanted)
    for letter in _counted_in(tally, islice(found, limit)):
        if args.json:
            print(_json(letter.summary()))
            continue
        if tally.count == 1:
            print(_row(name for name, _ in _COLUMNS))
        print(_row(_cells(letter)))
    file = sys.stderr if args.json else sys.stdout
    if next(found, None) is None:
        _sum_up("Found", tally, file)
    else:
        _sum_up("Shown are the first", tally, file)
        print("There are more: --limit N shows so many.", file=file)
    return 0


def _export(args: argparse.Namespace, letterbox: Letterbox, wanted: Filter) -> int:
    tally = Tally()
    for letter in _counted_in(tally, islice(_letters(letterbox, wanted), args.limit)):
        print(_json(letter.document()))
    _sum_up("Exported", tally, sys.stderr)
    return 0


def _show(args: argparse.Namespace, letterbox: Letterbox, wanted: Filter) -> int:
    letter_id, = wanted.letter_ids
    letter = letterbox.get(letter_id)
    if letter is None:
        print(f"spillway dlq: there is no letter {letter_id}: replayed, purged, or never made", file=sys.stderr)
        return 1
    text = msgspec.json.format(msgspec.json.encode(letter.document())).decode()
    print("\n".join(map(_safe, text.split("\n"))))
    return 0


def _replay(args: argparse.Namespace, letterbox: Letterbox, wanted: Filter) -> int:
    report = Report()
    try:
        letterbox.replay_matching(wanted, report, args.dry_run, args.limit)
    finally:  # What was done before Redis went away is done.
        for reason, count in report.left.letters.items():
            why = _WHY_LEFT.get(reason, _NO_BATCH)
            print(f"Left {_counted(count, 'letter')} of {reason}: {why}.")
        _sum_up("Would replay" if args.dry_run else "Replayed", report.done, sys.stdout, report.left.count)
    return 0


def _purge(args: argparse.Namespace, letterbox: Letterbox, wanted: Filter) -> int:
    if wanted.is_empty and not args.all:
        return _refuse("purge deletes for good: say which letters, by id or option, or --all for every one")
    report = Report()
    try:
        letterbox.purge_matching(wanted, report, args.dry_run, args.limit)
    finally:
        if count := report.left.count:
            print(f"Left {_counted(count, 'letter')}: other requests are in there too; name it to purge them all.")
        _sum_up("Would purge" if args.dry_run else "Purged", report.done, sys.stdout, report.left.count)
    return 0


def _letters(letterbox: Letterbox, wanted: Filter) -> Iterator[DeadLetter]:
    return (letter for letters in letterbox.pages(wanted) for letter in letters)


def _counted_in(tally: Tally, letters: Iterable[DeadLetter]) -> Iterator[DeadLetter]:
    """Yields the letters, each counted."""
    for letter in letters:
        tally.add([letter])
        yield letter


def _sum_up(verb: str, tally: Tally, file: TextIO, left_count: int = 0) -> None:
    if not tally.count:
        print(f"{verb} no letter{'' if left_count else ': none matches'}.", file=file)
        return
    parts = (f"{count} {reason} ({_counted(tally.events[reason], 'event')})"
             for reason, count in tally.letters.items())
    print(f"{verb} {_counted(tally.count, 'letter')} with {_counted(tally.events.total(), 'event')}: "
          f"{', '.join(parts)}.", file=file)


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _row(cells: Iterable[str]) -> str:
    return "  ".join(
        cell.rjust(width) if name in _NUMBERS else cell.ljust(width) for cell, (name, width) in zip(cells, _COLUMNS)
    ).rstrip()


def _cells(letter: DeadLetter) -> Iterator[str]:
    known = letter.summary()
    index = known.get("event_index")
    made_at = f"{letter.made_at[:19]}Z" if letter.made_at else "-"
    texts = (
        letter.letter_id, made_at, letter.death.reason, letter.death.sqlstate, known.get("batch_id", "-"),
        "-" if index is None else str(index), str(letter.count), str(letter.death.attempts),
        " ".join(letter.death.detail.split()),
    )
    for text, (_, width) in zip(texts, _COLUMNS):
        room = max(width, 20)
        yield _safe(text if len(text) <= room else text[:room - 1] + "…")


def _json(document: dict[str, Any]) -> str:
    return _safe(msgspec.json.encode(document).decode())


def _safe(text: str) -> str:
    """Returns the text with what does not print as a character of its own in JSON's escapes."""
    return _NOT_PLAIN.sub(_escaped, text)


def _escaped(char: re.Match[str]) -> str:
    is_shown = char[0].isprintable() and sys.stdout.encoding.lower() in ("utf-8", "utf8")
    return char[0] if is_shown else json.dumps(char[0])[1:-1]
