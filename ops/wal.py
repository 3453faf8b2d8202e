"""`spillway wal`: looks into the write-ahead log of this host. Reading only, but for `repair --apply`."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from app.batch import events, from_record
from app.settings import Settings
from wal.errors import WalError
from wal.file import FILES
from wal.reader import Record, SegmentReader, oldest_at_ns, segments

_READ_BYTES = 4 << 20
_USAGE = 2  # as argparse's


class Finding(NamedTuple):
    """What is in a segment: `corrupt` records were acknowledged and are damaged, `torn` ones never were."""

    segment: str
    size_bytes: int
    age_s: int
    is_sealed: bool
    records: int
    torn: int
    corrupt: int
    error: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `wal`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    for name, text in (
        ("status", "the segments and what is in them"),
        ("verify", "the same, and exit status 1 if an acknowledged record is damaged"),
        ("export", "every batch that can be read, as JSON lines with its events"),
        ("repair", "what would be done about damaged segments that nobody writes to"),
    ):
        action = actions.add_parser(name, help=text, description=text.capitalize() + ".")
        if name in ("verify", "export"):
            action.add_argument("segment", nargs="*", type=Path, help="files to read instead, of the quarantine say")
        if name in ("status", "verify"):
            action.add_argument("--json", action="store_true", help="as JSON lines, one a segment")
        if name == "repair":
            action.add_argument("--apply", action="store_true", help="do it: move them to the quarantine, whole")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Runs one action; returns 1 where `verify` found damage, `export` left something out or the log cannot be read, 2
    for a file that is not there, else 0.
    """
    for path in getattr(args, "segment", ()):
        if not path.exists():
            print(f"spillway wal: there is no file {path}", file=sys.stderr)
            return _USAGE
    actions: dict[str, Callable[[argparse.Namespace, Settings], int]] = {
        "status": _status, "verify": _verify, "export": _export, "repair": _repair,
    }
    try:
        return actions[args.action](args, settings)
    except WalError as error:
        print(f"spillway wal: {error}", file=sys.stderr)
        return 1


def _status(args: argparse.Namespace, settings: Settings) -> int:
    _show(list(map(_finding, segments(settings.wal_path))), args.json, settings.wal_path)
    _warn(settings, args.json)
    return 0


def _verify(args: argparse.Namespace, settings: Settings) -> int:
    found = list(map(_finding, args.segment or segments(settings.wal_path)))
    _show(found, args.json, settings.wal_path)
    if not args.segment:
        _warn(settings, args.json)
    return int(any(one.corrupt or one.error for one in found))


def _export(args: argparse.Namespace, settings: Settings) -> int:
    status = 0
    for path in args.segment or segments(settings.wal_path):
        try:
            with closing(SegmentReader(path)) as reader:
                for record in _records(reader):
                    status |= _print(record)
        except WalError as error:
            print(f"spillway: {path}: {error}", file=sys.stderr)
            status = 1
    return status


def _print(record: Record) -> int:
    try:
        print(msgspec.json.encode(_document(record)).decode())
    except ValueError as error:
        print(f"spillway: {record.segment}: the record at {record.offset} is no batch: {error}", file=sys.stderr)
        return 1
    return 0


def _repair(args: argparse.Namespace, settings: Settings) -> int:
    found = list(map(_finding, segments(settings.wal_path)))
    damaged = [one for one in found if one.error]
    for one in damaged:
        path = settings.wal_path / one.segment
        if _is_in_use(path):
            print(f"{one.segment}: {one.error}; left alone, as its writer is alive: restart ingest, then try again")
            continue
        print(f"{one.segment}: {one.error}; {'moved' if args.apply else 'would be moved'} to the quarantine")
        if args.apply:
            quarantine = settings.beside_wal("quarantine")
            FILES.make_directory(quarantine)
            FILES.rename(path, quarantine / one.segment)
            FILES.sync_directory(quarantine)
            FILES.sync_directory(settings.wal_path)
    if not damaged:
        print(f"Nothing to repair in {settings.wal_path}, which has {len(found)} segment{'s' * (len(found) != 1)}. "
              "The replayer recovers what can be read behind a damaged record by itself.")
    _warn(settings)
    return 0


def _is_in_use(path: Path) -> bool:
    try:
        fd = FILES.open(path)
    except OSError:
        return False
    try:
        return FILES.is_locked(fd)
    except OSError:
        return False
    finally:
        FILES.close(fd)


def _finding(path: Path) -> Finding:
    age_s = count = 0
    try:
        age_s = int(time.time() - oldest_at_ns(path) / 1e9)
        with closing(SegmentReader(path)) as reader:
            for _ in _records(reader):
                count += 1
            return Finding(path.name, path.stat().st_size, age_s, reader.is_sealed, count, reader.torn_count,
                           reader.corrupt_count, "")
    except (WalError, OSError) as error:
        return Finding(path.name, 0, age_s, False, count, 0, 0, str(error))


def _records(reader: SegmentReader) -> Iterator[Record]:
    while found := reader.read(_READ_BYTES):
        yield from found


def _document(record: Record) -> dict[str, Any]:
    batch = from_record(record.payload)
    return {"segment": record.segment, "offset": record.offset, "batch_id": batch.batch_id, "count": batch.count,
            "received_at": batch.received_at, "events": list(events(batch))}


def _warn(settings: Settings, is_json: bool = False) -> None:
    # That it is empty lets somebody throw a disk away: it must not be said of the wrong directory alone.
    if not _is_in_use(settings.wal_path):
        print(f"No replayer is at work on {settings.wal_path}: it is down, or the stack was started with another "
              "SPILLWAY_DATA_DIR or SPILLWAY_WAL_DIR.", file=sys.stderr if is_json else sys.stdout)


def _show(found: list[Finding], is_json: bool, directory: Path) -> None:
    if is_json:
        for one in found:
            print(msgspec.json.encode(one._asdict()).decode())
    elif not found:
        print(f"The WAL in {directory} is empty.")
    else:
        print(f"{'segment':60} {'MiB':>6} {'age s':>7} {'state':7} {'records':>8} {'torn':>5} {'corrupt':>7}")
        for one in found:
            state = "damaged" if one.error else "sealed" if one.is_sealed else "live"
            print(f"{one.segment:60} {one.size_bytes / (1 << 20):6.1f} {one.age_s:7} {state:7} {one.records:8} "
                  f"{one.torn:5} {one.corrupt:7} {one.error}".rstrip())
