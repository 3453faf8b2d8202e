"""Looks at the service by the means that an operator has: the admin listener, the receipts and the logs."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from app.errors import SpillwayError
from ops import listener
from ops.chaos.evidence import Answer, LogLine, Sample

_EVERY_S = 0.5
_ANSWER_S = 3.0
# What is sampled → the metric that says it, summed over its labels: what holds now, and what every host counts.
_STATES = {
    "wal_active": "wal_active", "wal_bytes": "ingest_wal_bytes", "wal_segments": "ingest_wal_segments",
    "redis_up": "ingest_redis_up",
}
_COUNTERS = {
    "loaded_events": "ingest_loaded_events_total", "claimed_entries": "ingest_claimed_entries_total",
    "lost_entries": "ingest_lost_entries_total", "load_seconds": "ingest_load_seconds_sum",
    "loads": "ingest_load_seconds_count", "load_batches": "ingest_load_batches_sum",
    "corrupt_records": "ingest_wal_corrupt_records_total",
}
_METRICS = _STATES | _COUNTERS


class Recorder:
    """Takes a sample twice a second in a thread of its own, from `start` to `stop`.

    Args:
        hosts: Returns the admin listener of each host, as `Target.hosts` does.
    """

    def __init__(self, hosts: Callable[[], Mapping[str, str]]) -> None:
        self._hosts = hosts
        self._counts = Counts()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._record, daemon=True)
        self.samples: list[Sample] = []

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends, once the last sample is taken."""
        self._stopped.set()
        self._thread.join()

    @property
    def latest(self) -> Sample:
        """The last sample; one without values before the first."""
        return self.samples[-1] if self.samples else Sample(0.0, {})

    def _record(self) -> None:
        while not self._stopped.is_set():
            began = time.monotonic()
            with suppress(SpillwayError):  # else this one moment cannot be told
                self.samples.append(self._look())
            self._stopped.wait(max(0.05, began + _EVERY_S - time.monotonic()))

    def _look(self) -> Sample:
        at, hosts = time.time(), self._hosts()
        told = {host: _sums(text) for host, url in hosts.items() if (text := _get(url, "/metrics"))}
        values = {name: told[host][name] for host in list(hosts)[:1] if host in told for name in _STATES}
        self._counts.see(told)
        if not hosts.keys() - self._counts.hosts:
            values |= self._counts.totals
        url = next(iter(hosts.values()))
        if buffer := _document(_get(url, "/stream")):
            values |= {"stream_entries": buffer["entries"], "pending": buffer["pending"],
                       "dead_letters": buffer["dead_letters"]["entries"]}
        return Sample(at, values, held(url))


class Counts:
    """What several hosts have counted: it never falls, though one of them is away for a while or begins anew.

    Attributes:
        totals: By name.
        hosts: Those that have been seen.
    """

    def __init__(self) -> None:
        self.totals = dict.fromkeys(_COUNTERS, 0.0)
        self._last: dict[str, Mapping[str, float]] = {}

    @property
    def hosts(self) -> Set[str]:
        """See the class."""
        return self._last.keys()

    def see(self, told: Mapping[str, Mapping[str, float]]) -> None:
        """Takes what the hosts say that answer."""
        for host, values in told.items():
            last = self._last.get(host, {})
            for name in self.totals:
                value, before = values[name], last.get(name, 0.0)
                self.totals[name] += value - before if value >= before else value
            self._last[host] = values


def held(admin_url: str) -> dict[str, tuple[int, int]] | None:
    """Returns by consumer how many entries it holds, and for how many ms it has been idle; None: it cannot be told."""
    pending = _document(_get(admin_url, "/pending"))
    return {one["name"]: (one["pending"], one["idle_ms"]) for one in pending["consumers"]} if pending else None


def _sums(text: str) -> dict[str, float]:
    sums = dict.fromkeys(_METRICS.values(), 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in sums:
                sums[sample.name] += sample.value
    return {name: sums[metric] for name, metric in _METRICS.items()}


def _get(url: str, path: str) -> str:
    try:
        reply = listener.ask(url, path, _ANSWER_S)
    except listener.ERRORS:
        return ""
    return reply.body.decode() if reply.status == 200 else ""


def _document(text: str) -> dict[str, Any] | None:
    return json.loads(text) if text else None


def answers(receipts: Path) -> list[Answer]:
    """Returns the answers that the load has written down so far; those on their way are not among them."""
    found: list[Answer] = []
    sent: dict[str, tuple[float, int]] = {}
    for record in _records(receipts):
        at = datetime.fromisoformat(record["at"]).timestamp()
        kind = record["receipt"]
        if kind == "sent":
            sent[record["tag"]] = (at, record["count"])
        elif kind in ("accepted", "rejected", "unknown"):
            sent_at, count = sent[record["tag"]]
            found.append(Answer(at, kind, record["status"], count, at - sent_at, record.get("durability", ""),
                                record.get("batch_id", "")))
    return found


def _records(receipts: Path) -> Iterator[dict[str, Any]]:
    with receipts.open("rb") as lines:
        for line in lines:
            if line.endswith(b"}\n"):  # else the end of what is being written
                yield json.loads(line)


def log_lines(program: str, lines: Iterable[str]) -> Iterator[LogLine]:
    """Yields the lines of a log that are ours: `<time> <LEVEL> <process> <event> …`."""
    for line in lines:
        stamp, _, rest = line.strip().partition(" ")
        words = rest.split(" ", 3)
        try:
            at = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()
        except ValueError:
            continue
        if len(words) >= 3:
            yield LogLine(at, program, words[2], line.strip())
