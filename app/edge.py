"""The ingest listener: what gunicorn's workers serve. `get_app` reads the environment, `create_app` takes parts."""

import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import falcon
import redis.retry
from falcon import Request, Response
from gevent import monkey
from gevent.threadpool import ThreadPool
from prometheus_client import Counter

from app import log, metric, problem
from app.appender import Appender
from app.committer import Committer
from app.errors import NotDurable, SettingError
from app.ingest import Ingest
from app.monitor import Monitor
from app.prober import Bounds
from app.settings import Settings
from app.spill import Spill, make_writer


class Live:
    """`GET /livez`: the process answers, and lacks nothing that only a restart would mend: a disk that hangs is no
    reason to end a process that serves others.

    Args:
        ended: Returns the names of lanes that have ended.
    """

    def __init__(self, ended: Callable[[], list[str]] = list) -> None:
        self._ended = ended

    def on_get(self, req: Request, resp: Response) -> None:
        """Answers 200, or 503 through `NotDurable`."""
        if ended := self._ended():
            raise NotDurable("internal", f"lane {' and '.join(ended)}: has ended; restart this process")
        resp.text = '{"status": "live"}'


class Ready:
    """`GET /readyz`: a batch that came now would be confirmed, and no lane has stalled."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer

    def on_get(self, req: Request, resp: Response) -> None:
        """Answers 200, or 503 through `NotDurable`."""
        self._committer.check()
        resp.text = '{"status": "ready"}'


class CountStatus:
    """Middleware that counts the answers to `/ingest`."""

    def process_response(self, req: Request, resp: Response, resource: Any, req_succeeded: bool) -> None:
        """Counts one answer, whatever made it."""
        if req.path == "/ingest":
            metric.tally.add(_requests(resp.status))


@cache
def _requests(status: int | str) -> Counter:
    """Returns the counter for a status, given as its code or as the whole line."""
    return metric.requests.labels(str(status)[:3])


def create_app(committer: Committer, appender: Appender, settings: Settings) -> "falcon.App[Request, Response]":
    """Returns the WSGI application."""
    app = falcon.App(middleware=[CountStatus()])
    app.req_options.keep_blank_qs_values = True
    problem.install(app)
    app.add_route("/ingest", Ingest(committer, appender, settings))
    app.add_route("/livez", Live(committer.ended))
    app.add_route("/readyz", Ready(committer))
    if settings.database_url:
        app.add_route("/batches/{batch_id:uuid}", Monitor(settings.database_url))
    return app


def get_app() -> "falcon.App[Request, Response]":
    """Returns the application for this process; called by gunicorn after fork and patching.

    Raises:
        SettingError: A setting is not allowed.
    """
    # Imported before patching, redis-py would put the whole worker to sleep.
    if not monkey.is_module_patched("socket") or vars(redis.retry)["sleep"] is not time.sleep:
        raise SettingError("the ingest worker class has to be gevent, and nothing may import redis before it patches")
    settings = Settings.from_env(os.environ)
    if settings.redis_url is None:
        raise SettingError("REDIS_URL is not set; `spillway up` sets it for the embedded server")
    log.setup("ingest", settings.log_level)
    bounds = Bounds(settings.redis_deadline_ms / 1000, settings.stream_max_bytes)
    appender, prober = (Appender(settings.redis_url, bounds.deadline_s) for _ in range(2))
    # A thread of its own: the hub's pool also resolves names, and one slow disk would stop that.
    spill = Spill(make_writer(settings), ThreadPool(1).spawn, settings.wal_deadline_ms / 1000)
    committer = Committer(appender, spill, prober, bounds, settings.wal == "always")
    metric.tally.start()
    return create_app(committer, appender, settings)
