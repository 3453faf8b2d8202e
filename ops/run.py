"""`spillway run`: some of the programs in the foreground, as a container or another init system wants them.

One container is one host to us: its own admin beside its ingest or its consumer, because metrics are shared through
files named by pid, and pids of two containers collide. Nothing is restarted here: when one program ends, all do, and
the container's restart policy starts them again.
"""

import argparse
import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence

from app import log
from app.errors import SettingError
from app.settings import Settings
from ops import metrics_dir, program

logger = logging.getLogger(__name__)

_POLL_S = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `run`."""
    parser.add_argument("program", nargs="+", choices=program.NAMES, help=" or ".join(program.NAMES))


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Runs the programs until SIGTERM comes, which is 0, or until one ends, which is its exit status, and never 0.

    Raises:
        SettingError: REDIS_URL or DATABASE_URL is not set.
    """
    if not (settings.redis_url and settings.database_url):
        raise SettingError("REDIS_URL and DATABASE_URL have to be set: `spillway run` starts no servers")
    log.setup("run", settings.log_level)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    metrics = metrics_dir.path(settings.state)
    metrics_dir.wipe(metrics)
    environment = program.environment(os.environ, settings, metrics, {})
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name in args.program:
            # Not where we were started: a directory with an `app` of its own would be imported from.
            command = program.command(name, settings)
            processes.append(subprocess.Popen(command, env=environment, cwd="/", start_new_session=True))
        return _first(args.program, processes)
    except KeyboardInterrupt:
        return 0
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        metrics_dir.remove(metrics)


def _first(names: Sequence[str], processes: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Waits until one has ended, says which, and returns its exit status, or 128 and the number of its signal."""
    while True:
        for name, process in zip(names, processes):
            if (status := process.poll()) is not None:
                logger.error(log.line("program_ended", program=name, status=status, then="the others are stopped"))
                return 128 - status if status < 0 else status or 1
        time.sleep(_POLL_S)
