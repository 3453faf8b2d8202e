"""How things are broken, for real: with signals, supervisord, iptables, SQL, and a full or powerless disk.

Each function returns what heals; to heal is to undo one's own doing alone.
"""

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import redis

from ops.chaos.supervised import Supervised, send

Heal = Callable[[], None]
Inject = Callable[[Supervised], Heal]

_BUFFER_FULL_BYTES = 1 << 20
_ANSWER_S = 10
_SPILL_S = 2.0
_END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'spillway %%'"


def stop(name: str) -> Inject:
    """Stopped in order."""
    def inject(target: Supervised) -> Heal:
        target.stop(name)
        return lambda: target.start(name)
    return inject


def kill(name: str, is_child: bool = False) -> Inject:
    """SIGKILL; who watches over it starts it again."""
    def inject(target: Supervised) -> Heal:
        pids = target.pids(name)
        os.kill(pids[-1] if is_child else pids[0], signal.SIGKILL)
        return lambda: target.await_state(name, "RUNNING")
    return inject


def pause(name: str) -> Inject:
    """Stopped with SIGSTOP, connections and all."""
    def inject(target: Supervised) -> Heal:
        pids = target.pids(name)
        send(pids, signal.SIGSTOP)
        return lambda: send(pids, signal.SIGCONT)
    return inject


def pause_supervisord(target: Supervised) -> Heal:
    """Its children go on."""
    pids = [target.supervisord()]
    send(pids, signal.SIGSTOP)
    return lambda: send(pids, signal.SIGCONT)


def recycle(target: Supervised) -> Heal:
    """SIGHUP to the master."""
    os.kill(target.process("ingest").pid, signal.SIGHUP)
    return lambda: target.await_state("ingest", "RUNNING")


def restart_all(target: Supervised) -> Heal:
    """One after the other, servers last."""
    for name in ("ingest", "admin", "replayer", "keeper", *target.consumers(), "postgres", "redis"):
        target.stop(name)

    def heal() -> None:
        names = [process.name for process in target.all_processes()]
        for name in sorted(names, key=lambda name: name not in ("redis", "postgres")):
            target.start(name)
    return heal


def drop(name: str) -> Inject:
    """Packets to a server vanish, as where a cable is pulled: nobody is told."""
    def inject(target: Supervised) -> Heal:
        port = urlsplit(target.places.redis_url if name == "redis" else target.places.database_url).port
        rule = ["INPUT", "-i", "lo", "-p", "tcp", "--dport", str(port), "-j", "DROP",
                "-m", "comment", "--comment", f"spillway chaos {os.getpid()}"]
        subprocess.run(["iptables", "-I", *rule], check=True)

        def heal() -> None:
            subprocess.run(["iptables", "-D", *rule], check=True)
        return heal
    return inject


def fill_redis(target: Supervised) -> Heal:
    """Writes fail, reads go on."""
    with _redis(target) as client:
        before = str(client.config_get("maxmemory")["maxmemory"])
        client.config_set("maxmemory", _BUFFER_FULL_BYTES)

    def heal() -> None:
        with _redis(target) as again:
            again.config_set("maxmemory", before)
    return heal


def flush(target: Supervised) -> Heal:
    """FLUSHALL."""
    with _redis(target) as client:
        client.flushall()
    return lambda: None


def fill_wal(target: Supervised) -> Heal:
    """Redis stops, and there is no room for the WAL to grow."""
    assert target.disk
    filler = target.disk.root / "filler"
    _fill(filler)
    target.stop("redis")

    def heal() -> None:
        filler.unlink()
        target.start("redis")
    return heal


def freeze_wal(target: Supervised) -> Heal:
    """The disk under the WAL hangs: what would change it waits in the kernel."""
    assert target.disk
    root = target.disk.root
    subprocess.run(["fsfreeze", "--freeze", root], check=True)

    def heal() -> None:
        subprocess.run(["fsfreeze", "--unfreeze", root], check=True)
    return heal


def _fill(path: Path) -> None:
    """Makes a file that takes all the room there is."""
    with path.open("wb") as file:
        room = os.statvfs(path)
        piece = room.f_bavail * room.f_frsize
        while piece >= room.f_frsize:
            try:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, piece)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                piece //= 2  # some of the free blocks are for the file system itself


def cut_power(target: Supervised) -> Heal:
    """Redis stops, and a little later the disk under the WAL loses its power, and those who write to it with it."""
    assert target.disk
    disk = target.disk
    target.stop("redis")
    time.sleep(_SPILL_S)
    disk.cut()
    for name in ("ingest", "replayer"):
        target.crash(name)

    def heal() -> None:
        target.until(disk.has_rebooted, "the WAL's file system to be free")  # whoever looked into it has gone then
        for name in ("replayer", "ingest", "redis"):
            target.start(name)
    return heal


def close_postgres(target: Supervised) -> Heal:
    """Transactions are read-only by default."""
    _sql(target, "ALTER ROLE CURRENT_USER SET default_transaction_read_only = on", _END)

    def heal() -> None:
        _sql(target, "ALTER ROLE CURRENT_USER RESET default_transaction_read_only", _END)
    return heal


def end_backends(target: Supervised) -> Heal:
    """Those that are in the midst of a COPY, if there are any within some seconds; else all of our programs'."""
    for _ in range(200):
        if _sql(target, f"{_END} AND query LIKE '%%COPY log_events%%' AND state = 'active'"):
            return lambda: None
    _sql(target, _END)
    return lambda: None


def _sql(target: Supervised, *statements: str) -> int:
    """Runs statements, each by itself, and returns how many rows the last one had."""
    url, rows = target.places.database_url, 0
    with closing(psycopg2.connect(url, connect_timeout=_ANSWER_S)) as connection:
        for statement in statements:
            with connection, connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION READ WRITE")  # whatever it is by default by now
                cursor.execute(statement, ())
                rows = cursor.rowcount
    return rows


def _redis(target: Supervised) -> "closing[redis.Redis]":
    return closing(redis.Redis.from_url(target.places.redis_url, socket_timeout=_ANSWER_S))
