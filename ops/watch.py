"""`spillway watch`: audits every minute and sends canaries, and shows both as metrics, until SIGTERM or SIGINT.

One of the programs under supervisor. It waits for servers that are away, and holds nothing that others need.
"""

import argparse
import logging
import os
import signal
import threading
from collections.abc import Callable

import redis

from app import log, stream
from app.errors import SettingError
from app.settings import Settings
from ops import program
from ops.auditor import Auditor
from ops.canary import Canary
from ops.census import Census
from ops.patrol import Patrol

logger = logging.getLogger(__name__)

_REDIS_TIMEOUT_S = 10.0
_STATEMENT_S = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds no arguments: settings come from the environment."""


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Watches until it is told to stop, and returns 0; 1 if a part of it has failed.

    Raises:
        SettingError: REDIS_URL or DATABASE_URL is not set.
    """
    if settings.redis_url is None or settings.database_url is None:
        raise SettingError("REDIS_URL and DATABASE_URL have to be set; `spillway up` sets them")
    log.setup("watch", settings.log_level)
    stop, failed = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    client = redis.Redis(connection_pool=stream.pool(settings.redis_url, _REDIS_TIMEOUT_S))
    auditor = Auditor(Census(client, settings.database_url, _STATEMENT_S), stop.wait)
    _start(Patrol(auditor, client).run, stop, failed)
    if settings.canary == "on":
        url = program.url(settings.bind, settings.port)
        _start(Canary(url, settings.database_url, settings.canary_token).run, stop, failed)
    logger.info(log.line("watch_started", pid=os.getpid(), canary=settings.canary))
    stop.wait()
    logger.info(log.line("watch_stopped"))
    return int(failed.is_set())


def _start(work: Callable[[threading.Event], None], stop: threading.Event, failed: threading.Event) -> None:
    """Runs a part in a thread of its own. Should it fail, all of it ends, to be started anew."""
    def run_part() -> None:
        try:
            work(stop)
        finally:
            if not stop.is_set():
                failed.set()
                stop.set()

    threading.Thread(target=run_part, daemon=True).start()
