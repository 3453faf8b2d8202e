"""The watch's metrics. A gauge keeps the last value that a process has set, also when that process has ended: how old
it is, its timestamp tells. `ops/REFERENCE.md` says what each one means.
"""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

_LATEST: Final = "mostrecent"
_PATH = ["path"]

audit_gap = Gauge(
    "ingest_audit_gap_events", "Events that two audits in a row found missing, or too many.", multiprocess_mode=_LATEST
)
audit_unbalanced = Gauge(
    "ingest_audit_unbalanced_buckets", "Minutes that two audits in a row found unbalanced.", multiprocess_mode=_LATEST
)
audit_timestamp = Gauge(
    "ingest_audit_timestamp_seconds", "When the last audit was finished, since 1970.", multiprocess_mode=_LATEST
)
invariant_broken = Gauge(
    "ingest_stream_invariant_broken", "1 where the stream is not as it always has to be.", multiprocess_mode=_LATEST
)
canary_latency = Histogram(
    "ingest_canary_latency_seconds", "From a canary's post to its row, by the way that it was sent.", _PATH,
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
)
canary_sent = Counter("ingest_canary_sent_total", "Canaries sent, by the way.", _PATH)
canary_lost = Counter("ingest_canary_lost_total", "Canaries accepted that are no row within their deadline.", _PATH)
for _path in ("stream", "wal"):  # there from the start, so that the first one is an increase
    canary_sent.labels(_path)
    canary_lost.labels(_path)
canary_refused = Counter("ingest_canary_refused_total", "Canaries that were not accepted.")
canary_timestamp = Gauge(
    "ingest_canary_timestamp_seconds", "When the last canary became a row, since 1970.", multiprocess_mode=_LATEST
)
