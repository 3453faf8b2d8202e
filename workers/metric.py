"""The consumers' metrics. Labels come from closed sets alone; `ops/REFERENCE.md` says what each one means."""

from prometheus_client import Counter, Gauge, Histogram

from app import dead_letter

loaded_batches = Counter("ingest_loaded_batches_total", "Batches committed to PostgreSQL.")
loaded_events = Counter("ingest_loaded_events_total", "Events committed to PostgreSQL.")
loaded_bytes = Counter("ingest_loaded_bytes_total", "Bytes of payload committed to PostgreSQL.")
duplicate_batches = Counter("ingest_duplicate_batches_total", "Batches that the ledger knew: acknowledged, not loaded.")
buried_batches = Counter("ingest_buried_batches_total", "Batches moved to the dead letters, by reason.", ["reason"])
for _reason in dead_letter.REASONS:  # there from the start, so that the first one is an increase
    buried_batches.labels(_reason)
buried_events = Counter("ingest_buried_events_total", "Events of stored batches that went to the dead letters alone.")
claimed_entries = Counter("ingest_claimed_entries_total", "Batches taken over from consumers that were gone.")
lost_entries = Counter("ingest_lost_entries_total", "Entries that somebody deleted while they were pending.")
groups_created = Counter("ingest_groups_created_total", "Times that a consumer had to create the consumer group.")
failed_steps = Counter("ingest_failed_steps_total", "Rounds ended by a server that is away, by server.", ["server"])
for _server in ("redis", "postgres"):
    failed_steps.labels(_server)
lock_wait_seconds = Counter("ingest_lock_wait_seconds_total", "Time that loads were seen waiting for somebody's lock.")
replayed_batches = Counter("ingest_replayed_batches_total", "Batches shipped from the WAL to the stream.")
replayed_events = Counter("ingest_replayed_events_total", "Events shipped from the WAL to the stream.")
failed_replays = Counter("ingest_failed_replays_total", "Rounds of the replayer that Redis ended.")
wal_torn = Counter("ingest_wal_torn_records_total", "Records cut short by a crash before they were acknowledged.")
wal_corrupt = Counter("ingest_wal_corrupt_records_total", "Acknowledged records that the disk has damaged: lost data.")
last_load_at = Gauge(
    "ingest_last_load_timestamp_seconds", "When a batch was last committed; 0: not yet.", multiprocess_mode="max",
)
partitions_until = Gauge(
    "ingest_partitions_until_timestamp_seconds", "Up to when every day from today on has a partition.",
    multiprocess_mode="mostrecent",
)
refused_partitions = Gauge(
    "ingest_refused_partitions", "Days that get no partition while rows of theirs lie in default.",
    multiprocess_mode="mostrecent",
)
failed_upkeep = Counter("ingest_failed_upkeep_total", "Steps of upkeep that could not be done, by cause.", ["cause"])
for _cause in ("locked", "slow", "rows", "large", "forbidden", "occupied", "server"):
    failed_upkeep.labels(_cause)
set_aside_entries = Gauge(
    "ingest_set_aside_entries", "Batches that are refused alone while others are loaded.",
    multiprocess_mode="mostrecent",
)
strange_entries = Gauge(
    "ingest_strange_entries", "Batches of a format that the consumer does not know.", multiprocess_mode="mostrecent",
)
load_seconds = Histogram(
    "ingest_load_seconds", "From the first ledger row to COMMIT.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30),
)
load_batches = Histogram(
    "ingest_load_batches", "Batches in one transaction.", buckets=(1, 2, 5, 10, 20, 50, 100, 500, 1000, 5000, 20000),
)
