"""The edge's metrics. Labels come from closed sets alone; `ops/REFERENCE.md` says what each one means."""

from prometheus_client import Counter, Gauge, Histogram

from app.tally import BulkHistogram, Tally

_LOG = ["durability"]

tally = Tally()  # for what is counted too often to be counted one by one

requests = Counter("ingest_requests_total", "Requests to /ingest by status code.", ["status"])
for _status in (202, 500, 503):  # there from the start, so that the first one is an increase
    requests.labels(_status)
rejected = Counter("ingest_rejected_requests_total", "Requests to /ingest refused, by cause.", ["cause"])
malformed = Counter("ingest_malformed_requests_total", "Requests refused before any path was looked at.", ["cause"])
accepted_batches = Counter("ingest_accepted_batches_total", "Requests acknowledged, by the log that holds them.", _LOG)
accepted_events = Counter("ingest_accepted_events_total", "Events acknowledged, by the log that holds them.", _LOG)
body_bytes = Counter("ingest_body_bytes_total", "Bytes of acknowledged bodies as sent.")
request_seconds = BulkHistogram(
    "ingest_request_seconds", "From the request's headers to its answer.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
commit_seconds = BulkHistogram(
    "ingest_commit_seconds", "From the first batch that waits for a group to its end.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
wal_write_seconds = Histogram(
    "ingest_wal_write_seconds", "One group's write to the WAL, its fdatasync included.",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5),
)
lane_stalled = Gauge(
    "ingest_lane_stalled_seconds", "For how long a lane has not come round although it has work.", ["lane"],
    multiprocess_mode="livemax",
)
for _lane in ("stream", "wal"):
    lane_stalled.labels(_lane)
wal_poisoned = Counter("ingest_wal_poisoned_segments_total", "WAL segments given up because a sync failed.")
group_batches = BulkHistogram(
    "ingest_group_batches", "Batches confirmed in one round trip.", buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)
