"""The state of a running stack on a few lines: what waits where, since when, and what does not answer.

Each part is asked at the same time as the others, and has a short deadline: what is down must not hide the rest.
"""

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import msgspec
import psycopg2

from ops import listener, secret, snapshot
from ops.checkup.finding import size
from ops.errors import Silent
from ops.stack import Facts
from workers import loader
from workers.entry import FORMAT_PREFIX, SET_ASIDE
from workers.watchdog import Watchdog

_TIMEOUT_S = 3  # above the second that admin gives Redis
_DETAIL_CHARS = 70

_POSTGRES = """
SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on', (
    SELECT max(substring(c.relname FROM '^log_events_(\\d{8})$'))
    FROM pg_inherits JOIN pg_class AS c ON c.oid = inhrelid WHERE inhparent = to_regclass('log_events')
), (
    SELECT string_agg(DISTINCT found.pid || coalesce(' (' || nullif(holder.application_name, '') || ')', ''), ', ')
    FROM pg_stat_activity AS load CROSS JOIN unnest(pg_blocking_pids(load.pid)) AS found (pid)
    LEFT JOIN pg_stat_activity AS holder ON holder.pid = found.pid
    WHERE load.application_name LIKE 'spillway %' AND load.wait_event_type = 'Lock'
)
"""
# What is shown of the metrics, and which they are.
_METRICS = {
    "last_load_at": "ingest_last_load_timestamp_seconds", "audited_at": "ingest_audit_timestamp_seconds",
    "gap_events": "ingest_audit_gap_events", "is_stream_broken": "ingest_stream_invariant_broken",
}
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What one part said: its answer, or why there is none."""

    answer: dict[str, Any] | None = None
    unknown: str | None = None


def observe(facts: Facts) -> dict[str, Part]:
    """Asks every part: `stream`, `pending`, `wal` and `metrics` of admin, `ingest`, and `postgres`."""
    asks: dict[str, Callable[[], dict[str, Any]]] = {
        "stream": lambda: _get(facts.admin_url, "/stream"),
        "pending": lambda: _get(facts.admin_url, "/pending"),
        "wal": lambda: _get(facts.admin_url, "/wal"),
        "metrics": lambda: _get(facts.admin_url, "/metrics"),
        "ingest": lambda: _get(facts.ingest_url, "/readyz"),
        "postgres": lambda: _postgres(facts.database_url),
    }
    with ThreadPoolExecutor(len(asks)) as threads:
        return dict(zip(asks, threads.map(_part, asks.values())))


def lines(parts: dict[str, Part]) -> list[tuple[str, str]]:
    """Returns what a person is shown: a name and a text each."""
    shows: tuple[tuple[str, str, Callable[[dict[str, Any]], str]], ...] = (
        ("ingest", "ingest", lambda _: "takes batches"),
        ("redis", "stream", lambda _: "answers"),
        ("stream", "stream", _stream),
        ("dead letters", "stream", lambda found: _letters(found["dead_letters"])),
        ("consumers", "pending", _consumers),
        ("last load", "metrics", _last_load),
        ("wal", "wal", _wal),
        ("postgres", "postgres", _sink),
        ("audit", "metrics", _audit),
    )
    found, said = [], ""
    for name, part, show in shows:
        text = _shown(parts[part], show)
        # What hangs on the same server is silent for the same reason.
        found.append((name, "unknown, as above" if text == said and parts[part].unknown else text))
        said = text
    return found


def duration(seconds: float) -> str:
    """Returns a time span as a person reads it."""
    for unit_s, unit in _UNITS:
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _shown(part: Part, show: Callable[[dict[str, Any]], str]) -> str:
    return f"unknown ({part.unknown})" if part.answer is None else show(part.answer)


def _part(ask: Callable[[], dict[str, Any]]) -> Part:
    try:
        return Part(answer=ask())
    except Silent as error:
        text = " ".join(str(error).split())
        return Part(unknown=text if len(text) <= _DETAIL_CHARS else f"{text[:_DETAIL_CHARS]}…")


def _get(url: str, path: str) -> dict[str, Any]:
    name = "admin" if path != "/readyz" else "ingest"
    try:
        reply = listener.ask(url, path, _TIMEOUT_S)
    except listener.ERRORS as error:
        raise Silent(f"{name} does not answer: {error}") from error
    if path == "/metrics":
        return _metrics(reply.body.decode(errors="replace"))
    try:
        found: dict[str, Any] = msgspec.json.decode(reply.body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Silent(f"{name} answers {reply.status}, and not in JSON") from error
    if reply.status != 200:
        raise Silent(f"{name}: {found.get('detail', reply.status)}")
    return found


def _metrics(text: str) -> dict[str, Any]:
    return {shown: _metric(text, name) for shown, name in _METRICS.items()}


def _metric(text: str, name: str) -> float | None:
    """Returns a metric's value; None where it has none yet."""
    found = re.search(rf"^{name} ([\d.e+]+)$", text, re.MULTILINE)
    return float(found[1]) if found else None


def _parameters(url: str) -> dict[str, Any]:
    """Returns how the loader connects, but that a server which takes no writes is to be looked at, too."""
    return loader.parameters(url, "status") | {"connect_timeout": _TIMEOUT_S, "target_session_attrs": "any"}


def _postgres(url: str) -> dict[str, Any]:
    try:
        with closing(psycopg2.connect(**_parameters(url))) as connection:
            with Watchdog(_TIMEOUT_S).guard(connection), snapshot.of(connection, _TIMEOUT_S) as cursor:
                cursor.execute(_POSTGRES)
                [(is_read_only, last, blockers)] = cursor.fetchall()
    except psycopg2.Error as error:
        raise Silent(secret.hidden(str(error), url)) from error
    day = datetime.strptime(last, "%Y%m%d").date().isoformat() if last else None
    return {"is_read_only": is_read_only, "partitions_until": day, "blocked_by": blockers}


def _stream(found: dict[str, Any]) -> str:
    if not found["entries"]:
        return "empty"
    count = _counted(found["entries"], "batch", "batches")
    return (f"{count}, {size(found['bytes'] or 0)}, oldest {duration(found['oldest_age_s'] or 0)}; "
            f"{found['pending']:,} pending, {found['lag']:,} waiting")


def _letters(found: dict[str, Any]) -> str:
    if not found["entries"]:
        return "none"
    return f"{_counted(found['entries'], 'letter', 'letters')}, {size(found['bytes'] or 0)}: `spillway dlq list`"


def _consumers(found: dict[str, Any]) -> str:
    # Under these names is what waits alone: no consumer bears them.
    known = [one for one in found["consumers"] if not one["name"].startswith((SET_ASIDE, FORMAT_PREFIX))]
    aside = sum(int(one["pending"]) for one in found["consumers"] if one not in known)
    tail = f"; {aside:,} set aside: ops/RUNBOOK.md, SpillwayBatchRefused and SpillwayStrangeFormat" if aside else ""
    if not known:
        return f"none at present (idle ones are removed){tail}"
    idle_s = min(one["idle_ms"] for one in known) / 1000
    busiest = max(known, key=lambda one: int(one["pending"]))
    text = f"{len(known)} in the group, last active {duration(idle_s)} ago"
    return f"{text}; {busiest['name']} holds {busiest['pending']:,}{tail}" if busiest["pending"] else text + tail


def _last_load(found: dict[str, Any]) -> str:
    return _ago(found["last_load_at"])


def _audit(found: dict[str, Any]) -> str:
    if not found["audited_at"]:
        return _ago(None)
    gap, is_broken = found["gap_events"] or 0, found["is_stream_broken"]
    verdict = "balanced" if not gap and not is_broken else f"NOT BALANCED, {gap:,.0f} events: `spillway audit`"
    return f"{verdict}, {_ago(found['audited_at'])}"


def _ago(at: float | None) -> str:
    return f"{duration(max(0.0, time.time() - at))} ago" if at else "none since the start"


def _wal(found: dict[str, Any]) -> str:
    if not found["active"]:
        return "idle"
    oldest = duration(found["oldest_age_s"] or 0)
    count = _counted(len(found["segments"]), "segment", "segments")
    return f"active: {count}, {size(found['bytes'])}, oldest {oldest}"


def _counted(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def _sink(found: dict[str, Any]) -> str:
    until, today = found["partitions_until"], datetime.now(UTC).date().isoformat()
    ahead = f"partitions until {until}" if until else "no partitions yet"
    if until and until < today:
        ahead += ", which is over"
    if found["blocked_by"]:
        return f"answers; loads wait for locks of pid {found['blocked_by']}; {ahead}"
    return f"takes no writes; {ahead}" if found["is_read_only"] else f"answers; {ahead}"
