"""What can be broken, each by a name: how, how it is healed, and what clients may be told meanwhile.

A fault's `inject` returns what heals it; to heal is to undo one's own doing alone.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg2
import redis

from ops.chaos.target import Target

Heal = Callable[[], None]
Inject = Callable[[Target], Heal]

_BUFFER_FULL_BYTES = 1 << 20
_ANSWER_S = 10


@dataclass(frozen=True)
class Fault:
    """One way to break a stack.

    Args:
        name: As given on the command line.
        text: What is done.
        inject: Does it.
        refusals: What clients may be told beside 202 until it is over: `no answer`, `503`.
        needs: What the machine must have: `root`, or the name of a tool.
        is_lossy: It destroys what was acknowledged; it is never drawn, and clean is not expected.
    """

    name: str
    text: str
    inject: Inject
    refusals: frozenset[str] = frozenset()
    needs: tuple[str, ...] = ()
    is_lossy: bool = False

    def lacks(self, target: Target) -> str:
        """Returns what is missing to inject it; empty where nothing is."""
        for need in self.needs:
            if need == "root" and os.geteuid() != 0:
                return "it needs root"
            if need == "wal-room" and target.wal_room is None:
                return "it needs root, and a stack of its own, for a small file system"
            if need not in ("root", "wal-room") and not shutil.which(need):
                return f"it needs {need}"
        return ""


def _stop(name: str) -> Inject:
    def inject(target: Target) -> Heal:
        target.stop(name)
        return lambda: target.start(name)
    return inject


def _kill(name: str, is_child: bool = False) -> Inject:
    """SIGKILL; who watches over it starts it again."""
    def inject(target: Target) -> Heal:
        pids = target.pids(name)
        os.kill(pids[-1] if is_child else pids[0], signal.SIGKILL)
        return lambda: target.await_state(name, "RUNNING")
    return inject


def _pause(name: str) -> Inject:
    def inject(target: Target) -> Heal:
        pids = target.pids(name)
        _signal(pids, signal.SIGSTOP)
        return lambda: _signal(pids, signal.SIGCONT)
    return inject


def _pause_supervisord(target: Target) -> Heal:
    pids = [target.supervisord()]
    _signal(pids, signal.SIGSTOP)
    return lambda: _signal(pids, signal.SIGCONT)


def _recycle(target: Target) -> Heal:
    os.kill(target.process("ingest").pid, signal.SIGHUP)
    return lambda: target.await_state("ingest", "RUNNING")


def _restart_all(target: Target) -> Heal:
    for name in ("ingest", "admin", "replayer", *target.consumers(), "postgres", "redis"):
        target.stop(name)

    def heal() -> None:
        names = [process.name for process in target.all_processes()]
        for name in sorted(names, key=lambda name: name not in ("redis", "postgres")):
            target.start(name)
    return heal


def _drop(name: str) -> Inject:
    """Packets to a server vanish, as where a cable is pulled: nobody is told."""
    def inject(target: Target) -> Heal:
        port = urlsplit(target.facts.redis_url if name == "redis" else target.facts.database_url).port
        rule = ["INPUT", "-i", "lo", "-p", "tcp", "--dport", str(port), "-j", "DROP",
                "-m", "comment", "--comment", f"spillway chaos {os.getpid()}"]
        subprocess.run(["iptables", "-I", *rule], check=True)

        def heal() -> None:
            subprocess.run(["iptables", "-D", *rule], check=True)
        return heal
    return inject


def _fill_redis(target: Target) -> Heal:
    with _redis(target) as client:
        before = str(client.config_get("maxmemory")["maxmemory"])
        client.config_set("maxmemory", _BUFFER_FULL_BYTES)

    def heal() -> None:
        with _redis(target) as again:
            again.config_set("maxmemory", before)
    return heal


def _flush(target: Target) -> Heal:
    with _redis(target) as client:
        client.flushall()
    return lambda: None


def _fill_wal(target: Target) -> Heal:
    """Redis stops, and there is no room for the WAL to grow."""
    assert target.wal_room
    filler = target.wal_room / "filler"
    target.stop("redis")
    with filler.open("wb") as file:
        free = os.statvfs(target.wal_room)
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)

    def heal() -> None:
        filler.unlink()
        target.start("redis")
    return heal


def _close_postgres(target: Target) -> Heal:
    _sql(target, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")

    def heal() -> None:
        _sql(target, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
    return heal


def _end_backends(target: Target) -> Heal:
    """Those that are in the midst of a COPY, if there are any within some seconds; else all of our programs'."""
    own = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'spillway %%'"
    for _ in range(200):
        if _sql(target, f"{own} AND query LIKE 'COPY%%' AND state = 'active'"):
            return lambda: None
    _sql(target, own)
    return lambda: None


def _sql(target: Target, *statements: str) -> int:
    """Runs statements, each by itself, and returns how many rows the last one had."""
    url, rows = target.facts.database_url, 0
    options = "-c default_transaction_read_only=off"
    with closing(psycopg2.connect(url, options=options, connect_timeout=_ANSWER_S)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement, ())
                rows = cursor.rowcount
    return rows


def _redis(target: Target) -> "closing[redis.Redis]":
    return closing(redis.Redis.from_url(target.facts.redis_url, socket_timeout=_ANSWER_S))


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass  # it has ended meanwhile


_CUT = frozenset({"no answer"})
_FULL = frozenset({"503"})

FAULTS = {fault.name: fault for fault in (
    Fault("redis-stop", "Redis is stopped", _stop("redis")),
    Fault("redis-kill", "Redis is killed with SIGKILL", _kill("redis")),
    Fault("redis-pause", "Redis is paused with SIGSTOP", _pause("redis")),
    Fault("redis-drop", "packets to Redis are dropped", _drop("redis"), needs=("root", "iptables")),
    Fault("redis-full", "Redis is at its maxmemory", _fill_redis),
    Fault("redis-flush", "everything in Redis is deleted with FLUSHALL", _flush, is_lossy=True),
    Fault("wal-full", "Redis is stopped, and the disk under the WAL is full", _fill_wal, _FULL, ("root", "wal-room")),
    Fault("postgres-stop", "PostgreSQL is stopped", _stop("postgres")),
    Fault("postgres-kill", "PostgreSQL is killed with SIGKILL", _kill("postgres")),
    Fault("postgres-pause", "PostgreSQL is paused with SIGSTOP", _pause("postgres")),
    Fault("postgres-drop", "packets to PostgreSQL are dropped", _drop("postgres"), needs=("root", "iptables")),
    Fault("postgres-read-only", "PostgreSQL takes no writes", _close_postgres),
    Fault("postgres-backends", "backends are terminated in the midst of COPY", _end_backends),
    Fault("consumer-kill", "a consumer is killed with SIGKILL", _kill("consumers")),
    Fault("consumer-pause", "a consumer is paused with SIGSTOP", _pause("consumers")),
    Fault("replayer-kill", "the replayer is killed with SIGKILL", _kill("replayer")),
    Fault("admin-kill", "the admin process is killed with SIGKILL", _kill("admin")),
    Fault("worker-kill", "a gunicorn worker is killed with SIGKILL", _kill("ingest", is_child=True), _CUT),
    Fault("worker-recycle", "gunicorn's workers are replaced (SIGHUP)", _recycle),
    Fault("ingest-kill", "gunicorn's master is killed with SIGKILL", _kill("ingest"), _CUT),
    Fault("supervisor-pause", "supervisord is paused with SIGSTOP", _pause_supervisord),
    Fault("restart-all", "everything is stopped and started", _restart_all, _CUT),
)}
