"""The admin listener: `/metrics` for every process of the host, its own health, what lies where, and the dead letters.

Whoever reaches it may read and purge what lies in the dead letters: it listens on loopback unless told otherwise.
"""

import logging
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import falcon
import redis
from falcon import Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from app import log, metric_file, problem, stream
from app.edge import Live
from app.errors import SettingError, StreamUnavailable
from app.fold import ProcessMetrics
from app.inspector import Pending, Stream, Wal, read_state
from app.letter_resource import Clearance, DeadLetter, DeadLetters
from app.letterbox import Letterbox
from app.settings import Settings, is_loopback
from wal.reader import oldest_at_ns, segments, used_bytes

logger = logging.getLogger(__name__)

_REDIS_TIMEOUT_S = 1.0
_LETTERS_TIMEOUT_S = 10.0  # some MiB are sent and synced at a time


class StreamCollector(Collector):
    """Reads the stream's state when it is scraped; without Redis only `ingest_redis_up` 0."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yields the gauges; raises nothing."""
        try:
            state = read_state(self._client)
        except StreamUnavailable:
            yield GaugeMetricFamily("ingest_redis_up", "Whether Redis answers the admin process.", 0)
            return
        yield GaugeMetricFamily("ingest_redis_up", "Whether Redis answers the admin process.", 1)
        yield GaugeMetricFamily("ingest_stream_entries", "Batches in the stream, delivered or not.", state.entries)
        yield GaugeMetricFamily("ingest_stream_pending_entries", "Batches delivered and not yet stored.", state.pending)
        yield GaugeMetricFamily("ingest_stream_bytes", "Redis memory of the stream.", state.size_bytes or 0)
        yield GaugeMetricFamily(
            "ingest_stream_oldest_entry_age_seconds", "Age of the oldest batch in the stream.", state.oldest_age_s or 0
        )
        yield GaugeMetricFamily("ingest_dead_letter_entries", "Letters in the dead-letter stream.", state.letters)
        yield GaugeMetricFamily("ingest_dead_letter_bytes", "Redis memory of dead letters.", state.letters_bytes or 0)
        yield GaugeMetricFamily(
            "ingest_dead_letter_oldest_age_seconds", "Age of the oldest dead letter.", state.oldest_letter_age_s or 0
        )


class WalCollector(Collector):
    """Reads the WAL directory when it is scraped: what lies there is the state, whichever process made it."""

    def __init__(self, directory: Path, quarantine: Path) -> None:
        self._directory = directory
        self._quarantine = quarantine

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yields the gauges.

        Raises:
            WalError, OSError: The disk fails. No metrics at all are told then: the target counts as down.
        """
        found = segments(self._directory) if self._directory.is_dir() else []
        age_s = max(0.0, time.time() - oldest_at_ns(found[0]) / 1e9) if found else 0.0
        size = used_bytes(self._directory) if found else 0
        yield GaugeMetricFamily("wal_active", "1 from the first batch in the WAL until it is drained.", bool(found))
        yield GaugeMetricFamily("ingest_wal_segments", "WAL segments that are not released.", len(found))
        yield GaugeMetricFamily("ingest_wal_bytes", "Bytes of WAL segments.", size)
        yield GaugeMetricFamily("ingest_wal_oldest_segment_age_seconds", "Age of the oldest WAL segment.", age_s)
        yield GaugeMetricFamily(
            "ingest_wal_quarantined_segments", "Damaged segments that a person is to look at.",
            len(segments(self._quarantine)),
        )
        if self._directory.is_dir():
            disk = shutil.disk_usage(self._directory)
            yield GaugeMetricFamily("ingest_wal_disk_bytes", "Size of the file system under the WAL.", disk.total)
            yield GaugeMetricFamily("ingest_wal_disk_free_bytes", "What is free on it to our user.", disk.free)


class BoundCollector(Collector):
    """What the settings say, for rules that compare with it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yields the gauges."""
        own = self._settings
        is_first = own.wal == "always"
        yield GaugeMetricFamily("ingest_wal_always", "Whether the WAL takes everything first.", is_first)
        yield GaugeMetricFamily("ingest_wal_max_bytes", "SPILLWAY_WAL_MAX_BYTES.", own.wal_max_bytes)
        yield GaugeMetricFamily("ingest_stream_max_bytes", "SPILLWAY_STREAM_MAX_BYTES.", own.stream_max_bytes)
        yield GaugeMetricFamily(
            "ingest_dead_letter_max_bytes", "SPILLWAY_DEAD_LETTERS_MAX_BYTES.", own.dead_letters_max_bytes
        )


class Metrics:
    """`GET /metrics`: what the processes of this host have counted, and what the collectors read."""

    def __init__(self, directory: str | None, collectors: Iterable[Collector]) -> None:
        self._registry = CollectorRegistry()
        if directory:  # Without one every process has to keep its own to itself.
            self._registry.register(ProcessMetrics(Path(directory)))
        for collector in collectors:
            self._registry.register(collector)

    def on_get(self, req: Request, resp: Response) -> None:
        """Answers in Prometheus's text format."""
        resp.content_type = CONTENT_TYPE_LATEST
        resp.data = generate_latest(self._registry)


class Ready:
    """`GET /readyz`: Redis answers."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def on_get(self, req: Request, resp: Response) -> None:
        """Answers 200, or 503 with the reason."""
        try:
            with stream.translated():
                self._client.ping()
        except StreamUnavailable as error:
            raise falcon.HTTPServiceUnavailable(description=str(error), retry_after=1) from error
        resp.text = '{"status": "ready"}'


class NoSniff:
    """Middleware: what clients sent is shown as the JSON that it is, and never guessed to be a page."""

    def process_response(self, req: Request, resp: Response, resource: Any, req_succeeded: bool) -> None:
        """Adds the header to every answer."""
        resp.set_header("X-Content-Type-Options", "nosniff")


class OwnName:
    """Middleware of a listener on loopback: a page elsewhere, whose name was made to point here, is not let in."""

    def process_request(self, req: Request, resp: Response) -> None:
        """Refuses a request to any other name or address than this machine's own."""
        if not (req.host == "localhost" or is_loopback(req.host)):
            raise falcon.HTTPForbidden(
                description=f"Host {req.host[:80]!r} is not localhost or a loopback address; this listener is for "
                            "this machine alone, unless SPILLWAY_ADMIN_BIND says otherwise"
            )


def create_app(
    client: redis.Redis, letterbox: Letterbox, metrics: Metrics, wal: Path, spares: Path, is_local: bool
) -> "falcon.App[Request, Response]":
    """Returns the WSGI application."""
    app = falcon.App(middleware=[NoSniff()])
    if is_local:
        app.add_middleware(OwnName())
    app.req_options.keep_blank_qs_values = False
    problem.install(app)
    app.add_route("/livez", Live())
    app.add_route("/readyz", Ready(client))
    app.add_route("/metrics", metrics)
    app.add_route("/pending", Pending(client))
    app.add_route("/stream", Stream(client))
    app.add_route("/wal", Wal(wal, spares))
    app.add_route("/dead-letters", DeadLetters(letterbox))
    app.add_route("/dead-letters/{letter_id}", DeadLetter(letterbox))
    app.add_route("/dead-letters/replay", Clearance(letterbox, "replayed", letterbox.replay_matching, False))
    app.add_route("/dead-letters/purge", Clearance(letterbox, "purged", letterbox.purge_matching, True))
    return app


def get_app(more: Sequence[Collector] = ()) -> Any:
    """Returns the application for this process; called by gunicorn after fork and patching.

    Args:
        more: Collectors beside those of the WAL, of the stream and of the settings.
    """
    settings = Settings.from_env(os.environ)
    if settings.redis_url is None:
        raise SettingError("REDIS_URL is not set; `spillway up` sets it for the embedded server")
    log.setup("admin", settings.log_level)
    client, patient = (
        redis.Redis(connection_pool=stream.pool(settings.redis_url, timeout_s))
        for timeout_s in (_REDIS_TIMEOUT_S, _LETTERS_TIMEOUT_S)
    )
    wal = WalCollector(settings.wal_path, settings.beside_wal("quarantine"))
    metrics = Metrics(os.environ.get(metric_file.VARIABLE),
                      [wal, StreamCollector(client), BoundCollector(settings), *more])
    return create_app(client, Letterbox(patient), metrics, settings.wal_path, settings.beside_wal("spare"),
                      is_loopback(settings.admin_bind))
