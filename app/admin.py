"""The admin listener: `/metrics` for every process of the host, its own health, what lies where, and the dead letters.

Whoever reaches it may read and purge what lies in the dead letters: it listens on loopback unless told otherwise.
"""

import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import falcon
import redis
from falcon import Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector

from app import log, problem, stream
from app.edge import Live
from app.errors import SettingError, StreamUnavailable
from app.inspector import Pending, Stream, Wal
from app.letter_resource import Clearance, DeadLetter, DeadLetters
from app.letterbox import Letterbox
from app.settings import Settings, is_loopback
from wal.reader import oldest_at_ns, segments, used_bytes

logger = logging.getLogger(__name__)

_REDIS_TIMEOUT_S = 1.0
_LETTERS_TIMEOUT_S = 10.0  # some MiB are sent and synced at a time


class StreamCollector:
    """Reads the stream's state when it is scraped; without Redis only `ingest_redis_up` 0."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yields the gauges; raises nothing."""
        try:
            with stream.translated():
                lengths = [self._client.xlen(key) for key in (stream.STREAM, stream.DEAD_LETTERS)]
                groups = self._client.xinfo_groups(stream.STREAM) if self._client.exists(stream.STREAM) else []
        except StreamUnavailable:
            yield GaugeMetricFamily("ingest_redis_up", "Whether Redis answers the admin process.", 0)
            return
        pending = sum(group["pending"] for group in groups if group["name"] == stream.GROUP.encode())
        yield GaugeMetricFamily("ingest_redis_up", "Whether Redis answers the admin process.", 1)
        yield GaugeMetricFamily("ingest_stream_entries", "Batches in the stream, delivered or not.", lengths[0])
        yield GaugeMetricFamily("ingest_stream_pending_entries", "Batches delivered and not yet stored.", pending)
        yield GaugeMetricFamily("ingest_dead_letter_entries", "Batches in the dead-letter stream.", lengths[1])


class WalCollector:
    """Reads the WAL directory when it is scraped: what lies there is the state, whichever process made it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Yields the gauges; raises nothing."""
        found = segments(self._directory) if self._directory.is_dir() else []
        age_s = max(0.0, time.time() - oldest_at_ns(found[0]) / 1e9) if found else 0.0
        size = used_bytes(self._directory) if found else 0
        yield GaugeMetricFamily("wal_active", "1 from the first batch in the WAL until it is drained.", bool(found))
        yield GaugeMetricFamily("ingest_wal_segments", "WAL segments that are not released.", len(found))
        yield GaugeMetricFamily("ingest_wal_bytes", "Bytes of WAL segments.", size)
        yield GaugeMetricFamily("ingest_wal_oldest_segment_age_seconds", "Age of the oldest WAL segment.", age_s)


class Metrics:
    """`GET /metrics`."""

    def __init__(self, directory: str, client: redis.Redis, wal: Path) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(WalCollector(wal))
        MultiProcessCollector(self._registry, directory)
        self._registry.register(StreamCollector(client))

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
    client: redis.Redis, letterbox: Letterbox, metrics_dir: str, wal: Path, spares: Path, is_local: bool
) -> "falcon.App[Request, Response]":
    """Returns the WSGI application."""
    app = falcon.App(middleware=[NoSniff()])
    if is_local:
        app.add_middleware(OwnName())
    app.req_options.keep_blank_qs_values = False
    problem.install(app)
    app.add_route("/livez", Live())
    app.add_route("/readyz", Ready(client))
    app.add_route("/metrics", Metrics(metrics_dir, client, wal))
    app.add_route("/pending", Pending(client))
    app.add_route("/stream", Stream(client))
    app.add_route("/wal", Wal(wal, spares))
    app.add_route("/dead-letters", DeadLetters(letterbox))
    app.add_route("/dead-letters/{letter_id}", DeadLetter(letterbox))
    app.add_route("/dead-letters/replay", Clearance(letterbox, "replayed", letterbox.replay_matching, False))
    app.add_route("/dead-letters/purge", Clearance(letterbox, "purged", letterbox.purge_matching, True))
    return app


def get_app() -> Any:
    """Returns the application for this process; called by gunicorn after fork and patching."""
    settings = Settings.from_env(os.environ)
    if settings.redis_url is None:
        raise SettingError("REDIS_URL is not set; `spillway up` sets it for the embedded server")
    log.setup("admin", settings.log_level)
    client, patient = (
        redis.Redis(connection_pool=stream.pool(settings.redis_url, timeout_s))
        for timeout_s in (_REDIS_TIMEOUT_S, _LETTERS_TIMEOUT_S)
    )
    metrics_dir = os.environ["PROMETHEUS_MULTIPROC_DIR"]
    return create_app(client, Letterbox(patient), metrics_dir, settings.wal_path, settings.beside_wal("spare"),
                      is_loopback(settings.admin_bind))
