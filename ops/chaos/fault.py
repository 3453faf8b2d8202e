"""What can be broken, each by a name, and what clients may be told meanwhile."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg2
import redis

from ops.chaos import harm
from ops.chaos.disk import TOOLS
from ops.chaos.harm import Heal, Inject
from ops.chaos.supervised import Supervised
from ops.errors import ChaosFailed
from ops.supervisor_client import ERRORS

# What breaking things can raise.
_ERRORS = (*ERRORS, subprocess.CalledProcessError, psycopg2.Error, redis.RedisError)


@dataclass(frozen=True)
class Fault:
    """One way to break a stack.

    Args:
        name: As given on the command line.
        text: What is done.
        inject: Does it.
        refusals: What clients may be told beside 202 until it is over: `no answer`, `503`.
        needs: What must be there: `root`, `disk` (a file system of the WAL's own), or the name of a tool.
        is_lossy: It destroys what was acknowledged; it is never drawn, and clean is not expected.
    """

    name: str
    text: str
    inject: Inject
    refusals: frozenset[str] = frozenset()
    needs: tuple[str, ...] = ()
    is_lossy: bool = False

    def applied(self, target: Supervised) -> Heal:
        """Injects it, and returns what heals it.

        Raises:
            ChaosFailed: It could not be injected; the same of what is returned.
        """
        with _translated(self.name):
            heal = self.inject(target)

        def healed() -> None:
            with _translated(self.name):
                heal()
        return healed

    def lacks(self, target: Supervised) -> str:
        """Returns what is missing to inject it; empty where nothing is."""
        for need in self.needs:
            if need == "root" and os.geteuid() != 0:
                return "it needs root"
            if need == "disk" and target.disk is None:
                return f"it needs root, {', '.join(TOOLS)}, and a stack of its own, for a file system of the WAL's own"
            if need not in ("root", "disk") and not shutil.which(need):
                return f"it needs {need}"
        return ""


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise ChaosFailed(f"{name}: {error}") from error


_CUT = frozenset({"no answer"})
_FULL = frozenset({"503"})

FAULTS = {fault.name: fault for fault in (
    Fault("redis-stop", "Redis is stopped", harm.stop("redis")),
    Fault("redis-kill", "Redis is killed with SIGKILL", harm.kill("redis")),
    Fault("redis-pause", "Redis is paused with SIGSTOP", harm.pause("redis")),
    Fault("redis-drop", "packets to Redis are dropped", harm.drop("redis"), needs=("root", "iptables")),
    Fault("redis-full", "Redis is at its maxmemory", harm.fill_redis),
    Fault("redis-flush", "everything in Redis is deleted with FLUSHALL", harm.flush, is_lossy=True),
    Fault("wal-full", "Redis is stopped, and the disk under the WAL is full", harm.fill_wal, _FULL, ("disk",)),
    Fault("wal-hang", "the disk under the WAL hangs", harm.freeze_wal, needs=("disk", "fsfreeze")),
    Fault("power-cut", "Redis is stopped, and the disk under the WAL loses its power", harm.cut_power, _CUT | _FULL,
          ("disk",)),
    Fault("postgres-stop", "PostgreSQL is stopped", harm.stop("postgres")),
    Fault("postgres-kill", "PostgreSQL is killed with SIGKILL", harm.kill("postgres")),
    Fault("postgres-pause", "PostgreSQL is paused with SIGSTOP", harm.pause("postgres")),
    Fault("postgres-drop", "packets to PostgreSQL are dropped", harm.drop("postgres"), needs=("root", "iptables")),
    Fault("postgres-read-only", "PostgreSQL takes no writes", harm.close_postgres),
    Fault("postgres-backends", "backends are terminated in the midst of COPY", harm.end_backends),
    Fault("consumer-kill", "a consumer is killed with SIGKILL", harm.kill("consumers")),
    Fault("consumer-pause", "a consumer is paused with SIGSTOP", harm.pause("consumers")),
    Fault("replayer-kill", "the replayer is killed with SIGKILL", harm.kill("replayer")),
    Fault("keeper-kill", "the keeper of partitions is killed with SIGKILL", harm.kill("keeper")),
    Fault("admin-kill", "the admin process is killed with SIGKILL", harm.kill("admin")),
    Fault("worker-kill", "a gunicorn worker is killed with SIGKILL", harm.kill("ingest", is_child=True), _CUT),
    Fault("worker-recycle", "gunicorn's workers are replaced (SIGHUP)", harm.recycle),
    Fault("ingest-kill", "gunicorn's master is killed with SIGKILL", harm.kill("ingest"), _CUT),
    Fault("supervisor-pause", "supervisord is paused with SIGSTOP", harm.pause_supervisord),
    Fault("restart-all", "everything is stopped and started", harm.restart_all, _CUT),
)}
