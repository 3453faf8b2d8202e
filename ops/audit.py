"""`spillway audit`: is everything that was accepted accounted for? For a person, or as JSON."""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import redis

from app import count, letter_filter, stream
from app.batch import from_record
from app.errors import SettingError
from app.settings import Settings
from ops.auditor import Auditor, Report
from ops.balance import Bucket
from ops.census import Census
from ops.stack import Stack
from wal.errors import WalError
from wal.reader import SegmentReader, segments

_TIMEOUT_S = 10.0
_STATEMENT_S = 600
_POLL_S = 1.0
_READ_BYTES = 4 << 20
_USAGE = 2  # as argparse's
_SHOWN_GAPS = 50

_COUNTED = {
    count.ADDED: "added to the stream, every copy",
    count.LOADED: "  released as loaded",
    count.RETURNED: "  released as returned to their batches from the dead letters",
    count.DUPLICATE: "  removed as duplicates",
    count.BURIED: "  moved to the dead letters",
}
_THERE = {
    "in_stream": "  in the stream now",
    "wal": "in the WAL of this host, not released yet",
    "ledger": "in the ledger (log_batches)",
    "rows": "  rows (log_events)",
    "dead": "  refused by PostgreSQL, in the dead letters alone",
    "letters": "in the dead letters now",
    "replayed": "  replayed from them",
    "purged": "  purged from them",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `audit`."""
    parser.add_argument("--since", default="6h", metavar="TIME",
                        help="the first minute that PostgreSQL is asked about: RFC 3339, or 90s, 15m, 2h, 3d ago (6h)")
    parser.add_argument("--wait", type=float, default=0, metavar="S",
                        help="look again until everything balances and nothing is on its way, for so long at most (0)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Audits; returns 0 if everything balances, 1 if not, 2 for a wrong argument.

    Raises:
        SettingError: Nothing runs here, and REDIS_URL or DATABASE_URL is not set.
        NotReady: A server is away: nothing can be said.
    """
    try:
        since_ms = letter_filter.read_since_ms(args.since, lambda: time.time_ns() // 1_000_000)
    except ValueError as error:
        print(f"spillway audit: {error}", file=sys.stderr)
        return _USAGE
    since = datetime.fromtimestamp(since_ms / 1000, UTC)
    redis_url, database_url = _urls(settings)
    client = redis.Redis(connection_pool=stream.pool(redis_url, _TIMEOUT_S))
    auditor = Auditor(Census(client, database_url, _STATEMENT_S))
    ends_at = time.monotonic() + args.wait
    report = auditor.audit(since)
    while not (report.is_balanced and report.is_at_rest) and time.monotonic() < ends_at:
        time.sleep(_POLL_S)
        report = auditor.audit(since)
    wal = _in_wal(settings)
    print(_json(report, since, wal) if args.json else "\n".join(_lines(report, since, wal)))
    return int(not report.is_balanced)


def _urls(settings: Settings) -> tuple[str, str]:
    stack = Stack(settings.state)
    if stack.is_up():
        return stack.facts().redis_url, stack.facts().database_url
    if settings.redis_url and settings.database_url:
        return settings.redis_url, settings.database_url
    raise SettingError(f"nothing runs in {stack.state}, and REDIS_URL and DATABASE_URL are not both set")


def _in_wal(settings: Settings) -> tuple[int, list[str]]:
    """Returns events in segments that are not released, some of which may be in the stream by now, and what is damaged.

    Reads beside writers and the replayer, and disturbs neither.
    """
    events, damaged = 0, []
    for path in segments(settings.wal_path) if settings.wal_path.is_dir() else ():
        try:
            with closing(SegmentReader(path)) as reader:
                while records := reader.read(_READ_BYTES):
                    events += sum(from_record(record.payload).count for record in records)
                if reader.corrupt_count:
                    damaged.append(f"{path.name}: {reader.corrupt_count} damaged records")
        except (WalError, ValueError) as error:
            if path.exists():  # else it was released meanwhile
                damaged.append(f"{path.name}: {error}")
    return events, damaged


def _totals(report: Report, since: datetime) -> dict[str, int]:
    first = f"{since:%Y-%m-%dT%H:%M}"
    chosen = [bucket for minute, bucket in report.buckets.items() if minute >= first]

    def total(*names: str) -> int:
        return sum(bucket.of(name) if name in count.KINDS else getattr(bucket, name)
                   for bucket in chosen for name in names)

    return {
        **{kind: total(kind) for kind in _COUNTED},
        "in_stream": total("in_stream", "in_stream_lone"),
        "ledger": total("ledger", "ledger_old"), "rows": total("rows"), "dead": total("dead"),
        "letters": total("letters", "letters_lone"), "replayed": total(count.REPLAYED),
        "purged": total(count.PURGED, count.PURGED_LONE),
    }


def _pruned(report: Report, since: datetime) -> str:
    """Returns the minute before which there are no counts; empty where that is none that was asked for."""
    pruned = report.buckets.pruned
    return pruned if pruned > f"{since:%Y-%m-%dT%H:%M}" else ""


def _lines(report: Report, since: datetime, wal: tuple[int, list[str]]) -> Iterator[str]:
    state, totals = report.stream, {**_totals(report, since), "wal": wal[0]}
    yield f"Events received since {since:%Y-%m-%d %H:%M} UTC:"
    yield from (f"{totals[name]:>16,}  {text}" for name, text in {**_COUNTED, **_THERE}.items())
    lag = "not known to this Redis" if state.lag is None else str(state.lag)
    yield f"Stream: {state.entries} entries, {state.pending} pending, lag {lag}."
    if report.moving:
        yield f"{_counted(len(report.moving), 'minute')} moved while they were read, and are not judged: " \
              f"{_listed(sorted(report.moving))}."
    if pruned := _pruned(report, since):
        yield f"Counts of minutes before {pruned.replace('T', ' ')} UTC are taken away, being old: what was added " \
              "and released above lacks them, and of those minutes the ledger is held against the rows."
    yield from (f"WAL: {text}" for text in wal[1])
    if report.is_balanced:
        yield "BALANCED: every event is accounted for."
        return
    minutes = {finding.minute for finding in report.findings}
    yield f"NOT BALANCED: {report.gap_events:,} events in {_counted(len(minutes), 'minute')}, " \
          f"{_counted(len(state.faults), 'fault')} of the stream."
    for minute, gap in report.findings[:_SHOWN_GAPS]:
        amount = f"{gap.events} missing" if gap.events > 0 else f"{-gap.events} too many"
        yield f"  {minute}  {gap.check:8}{amount:>18}  {gap.text}"
    if len(report.findings) > _SHOWN_GAPS:
        yield f"  and {len(report.findings) - _SHOWN_GAPS} more; --json shows all"
    yield from (f"  stream: {fault}" for fault in state.faults)


def _json(report: Report, since: datetime, wal: tuple[int, list[str]]) -> str:
    document: dict[str, Any] = {
        "balanced": report.is_balanced, "since": f"{since - timedelta(seconds=since.second):%Y-%m-%dT%H:%MZ}",
        "gap_events": report.gap_events,
        "unbalanced": [{"minute": minute, **gap._asdict()} for minute, gap in report.findings],
        "moving": sorted(report.moving), "pruned": _pruned(report, since),
        "totals": {**_totals(report, since), "wal": wal[0]},
        "stream": report.stream._asdict(), "wal_damage": wal[1],
        "buckets": {minute: _bucket(bucket) for minute, bucket in sorted(report.buckets.items())},
    }
    return msgspec.json.encode(document).decode()


def _bucket(bucket: Bucket) -> dict[str, Any]:
    return {name: value for name, value in msgspec.to_builtins(bucket).items() if value}


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _listed(minutes: list[str]) -> str:
    return ", ".join(minutes[:3]) + (" and others" if len(minutes) > 3 else "")
