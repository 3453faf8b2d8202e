"""Looks at the service by the means that an operator has: the admin listener, the receipts and the logs."""

import http.client
import json
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from ops.chaos.evidence import Answer, LogLine, Sample

_EVERY_S = 0.5
_ANSWER_S = 3.0
# What is sampled → the metric that says it, summed over its labels.
_METRICS = {
    "wal_active": "wal_active", "wal_bytes": "ingest_wal_bytes", "wal_segments": "ingest_wal_segments",
    "redis_up": "ingest_redis_up", "loaded_events": "ingest_loaded_events_total",
    "claimed_entries": "ingest_claimed_entries_total", "lost_entries": "ingest_lost_entries_total",
    "load_seconds": "ingest_load_seconds_sum", "loads": "ingest_load_seconds_count",
    "load_batches": "ingest_load_batches_sum", "corrupt_records": "ingest_wal_corrupt_records_total",
}


class Recorder:
    """Takes a sample twice a second in a thread of its own, from `start` to `stop`.

    Args:
        admin_urls: The admin listener of each host; what they count is added up.
    """

    def __init__(self, admin_urls: list[str]) -> None:
        self._urls = admin_urls
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
            self.samples.append(look(self._urls))
            self._stopped.wait(max(0.05, began + _EVERY_S - time.monotonic()))


def look(admin_urls: list[str]) -> Sample:
    """Takes one sample."""
    at = time.time()
    values: dict[str, float] = {}
    for url in admin_urls:
        text = _get(url, "/metrics")
        for name, value in _sums(text).items() if text else ():
            values[name] = max(values.get(name, 0.0), value) if name == "redis_up" else values.get(name, 0.0) + value
    buffer, pending = (_document(_get(admin_urls[0], path)) for path in ("/stream", "/pending"))
    if buffer:
        values |= {"stream_entries": buffer["entries"], "pending": buffer["pending"],
                   "dead_letters": buffer["dead_letters"]["entries"]}
    held = {one["name"]: (one["pending"], one["idle_ms"]) for one in pending["consumers"]} if pending else None
    return Sample(at, values, held)


def _sums(text: str) -> dict[str, float]:
    sums = dict.fromkeys(_METRICS.values(), 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in sums:
                sums[sample.name] += sample.value
    return {name: sums[metric] for name, metric in _METRICS.items()}


def _get(url: str, path: str) -> str:
    # Not urllib: it would ask the environment's proxy for our own address.
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_ANSWER_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
        return body if response.status == 200 else ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


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
