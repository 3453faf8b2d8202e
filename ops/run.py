"""`spillway run`: some of the programs in the foreground, as a container or another init system wants them.

One container is one host to us: its own admin beside its ingest or its consumer, because metrics are shared through
files named by pid, and pids of two containers collide. Nothing is restarted here: when one program ends, all do, and
the container's restart policy starts them again.
"""

import argparse
import os
import signal
import subprocess
import time

from app.errors import SettingError
from app.settings import Settings
from ops import metrics_dir, program

_POLL_S = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `run`."""
    parser.add_argument("program", nargs="+", choices=program.NAMES, help=" or ".join(program.NAMES))


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Runs the programs until one ends or SIGTERM comes, and returns the first one's exit status.

    Raises:
        SettingError: REDIS_URL or DATABASE_URL is not set.
    """
    if not (settings.redis_url and settings.database_url):
        raise SettingError("REDIS_URL and DATABASE_URL have to be set: `spillway run` starts no servers")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    metrics = metrics_dir.path(settings.state)
    metrics_dir.wipe(metrics)
    environment = program.environment(os.environ, settings, metrics, {})
    # Not where we were started: a directory with an `app` of its own would be imported from.
    processes = [
        subprocess.Popen(program.command(name, settings), env=environment, cwd="/", start_new_session=True)
        for name in args.program
    ]
    try:
        return _first(processes)
    except KeyboardInterrupt:
        return 0
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        metrics_dir.remove(metrics)


def _first(processes: list["subprocess.Popen[bytes]"]) -> int:
    while True:
        for process in processes:
            if (status := process.poll()) is not None:
                return status or 1
        time.sleep(_POLL_S)
