"""Judges this machine: its limits, its clock, who listens, and settings that are allowed and unwise."""

from collections.abc import Iterator, Mapping, Sequence

from app.settings import Settings, is_loopback
from ops.checkup.finding import Finding, bad, ok, size, unknown, warn
from ops.checkup.host_facts import HostFacts

_CONNECTIONS = 500  # gunicorn_conf's worker_connections
_FILES = _CONNECTIONS + 100  # and segments, Redis, metrics
_BACKLOG = 2048  # gunicorn's default
_SHM_LEAST, _SHM_ENOUGH = 4 << 20, 32 << 20
_SKEW_WARN_S, _SKEW_BAD_S = 2.0, 60.0


def check(
    facts: HostFacts, settings: Settings, has_redis: bool, is_embedded: bool, has_postgres: bool
) -> Iterator[Finding]:
    """Yields a finding for each check; `has_…`: one runs on this machine; `is_embedded`: the Redis is ours."""
    yield synced(facts)
    yield files(facts)
    yield backlog(facts)
    yield shared_memory(facts)
    yield memory(facts, settings, is_embedded)
    if has_redis:
        yield overcommit(facts)
        yield huge_pages(facts)
    if has_postgres:
        yield scheduler(facts)
    yield wal_bound(settings)
    yield deadline(settings)


def synced(facts: HostFacts) -> Finding:
    """Judges whether somebody keeps the clock."""
    name = "clock sync"
    if facts.is_clock_synced is None:
        return unknown(name, "the kernel does not say", remedy="timedatectl, or chronyc tracking")
    if not facts.is_clock_synced:
        return warn(name, "the kernel says that nobody keeps the clock", "received_at and events without a timestamp "
                    "drift, and with them the partition that they go to",
                    "run chrony or systemd-timesyncd; in a virtual machine the host may do it without the kernel's "
                    "knowing")
    return ok(name, "kept")


def skew(server: str, skew_s: float) -> Finding:
    """Judges how far a server's clock is from ours."""
    name = f"clock of {server}"
    seen = f"{abs(skew_s):.1f} s {'ahead' if skew_s > 0 else 'behind'}"
    remedy = "keep the time of both machines with chrony or systemd-timesyncd"
    if abs(skew_s) > _SKEW_BAD_S:
        return bad(name, seen, "ages, takeovers and partitions go by clocks that contradict each other", remedy)
    if abs(skew_s) > _SKEW_WARN_S:
        return warn(name, seen, "ages in metrics and `spillway status` are off by as much", remedy)
    return ok(name, "within 2 s of ours")


def files(facts: HostFacts) -> Finding:
    """Judges the limit of open files against the connections that a worker takes."""
    seen = f"up to {facts.file_limit:,} open files a process"
    if facts.file_limit < _FILES:
        return bad("file limit", seen, f"a worker takes {_CONNECTIONS} connections: before that it can open neither "
                   "connections nor WAL segments", "ulimit -n 4096 (systemd: LimitNOFILE=4096) before `spillway up`")
    return ok("file limit", seen)


def backlog(facts: HostFacts) -> Finding:
    """Judges how many connections may wait to be taken."""
    name = "listen backlog"
    if facts.somaxconn is None:
        return unknown(name, "net.core.somaxconn is hidden")
    if facts.somaxconn < _BACKLOG:
        return warn(name, f"net.core.somaxconn {facts.somaxconn}", f"a burst of over {facts.somaxconn} new connections "
                    "is dropped, and clients wait a second or more", "sysctl -w net.core.somaxconn=4096")
    return ok(name, f"net.core.somaxconn {facts.somaxconn}")


def shared_memory(facts: HostFacts) -> Finding:
    """Judges the room for metrics and heartbeats, which are mapped files."""
    name = "shared memory"
    if facts.shm_free_bytes is None:
        return warn(name, "no /dev/shm", "metrics are mapped files on the disk of SPILLWAY_DATA_DIR: when that is "
                    "full, workers die of SIGBUS", "mount a tmpfs on /dev/shm")
    seen = f"{size(facts.shm_free_bytes)} free in /dev/shm"
    remedy = "remove what fills it, or make it larger (docker: --shm-size 256m)"
    if facts.shm_free_bytes < _SHM_LEAST:
        return bad(name, seen, "metrics are mapped files there: when it is full, workers die of SIGBUS", remedy)
    if facts.shm_free_bytes < _SHM_ENOUGH:
        return warn(name, seen, "metrics are mapped files there: when it is full, workers die of SIGBUS", remedy)
    return ok(name, seen)


def memory(facts: HostFacts, settings: Settings, is_embedded: bool) -> Finding:
    """Judges whether what we may hold in memory is there: bodies and batches, and the embedded Redis."""
    name = "memory"
    needed = settings.workers * settings.max_inflight_bytes + (settings.redis_max_bytes if is_embedded else 0)
    if facts.memory_bytes is None:
        return unknown(name, "neither the machine nor a control group says how much there is")
    seen = f"{size(facts.memory_bytes)}, of which ingest{' and Redis' if is_embedded else ''} may take {size(needed)}"
    if needed > facts.memory_bytes:
        return warn(name, seen, "under load the kernel ends one of the processes", "lower SPILLWAY_MAX_INFLIGHT_BYTES, "
                    "SPILLWAY_WORKERS" + (" or SPILLWAY_REDIS_MAX_BYTES" if is_embedded else ""))
    return ok(name, seen)


def overcommit(facts: HostFacts) -> Finding:
    """Judges whether Redis can fork to rewrite its AOF."""
    name = "redis fork"
    if facts.overcommit is None:
        return unknown(name, "vm.overcommit_memory is hidden")
    if facts.overcommit != 1:
        return warn(name, f"vm.overcommit_memory {facts.overcommit}", "with the stream full Redis may not be able to "
                    "fork, and its AOF grows as it is not rewritten", "sysctl -w vm.overcommit_memory=1")
    return ok(name, "vm.overcommit_memory 1")


def huge_pages(facts: HostFacts) -> Finding:
    """Judges whether Redis's memory doubles after a fork."""
    name = "redis huge pages"
    if facts.huge_pages is None:
        return unknown(name, "not shown")
    if facts.huge_pages == "always":
        return warn(name, "transparent huge pages always", "while the AOF is rewritten Redis answers late and takes up "
                    "to twice its memory", "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")
    return ok(name, f"transparent huge pages {facts.huge_pages}")


def scheduler(facts: HostFacts) -> Finding:
    """Judges whether one backend of PostgreSQL, each of which is a session, may take as much CPU as all of ours."""
    name = "scheduler groups"
    if facts.is_autogrouped:
        return warn(name, "kernel.sched_autogroup_enabled 1", "a loading backend of PostgreSQL is given as much CPU as "
                    "ingest, Redis and consumers together: acknowledgements wait for it", "sysctl -w "
                    "kernel.sched_autogroup_enabled=0, or give either a control group (systemd: CPUWeight=100)")
    return ok(name, "not by session")


def wal_bound(settings: Settings) -> Finding:
    """Judges whether the WAL's bound has room for a segment of each worker."""
    held = settings.workers * settings.wal_segment_bytes
    seen = f"SPILLWAY_WAL_MAX_BYTES {size(settings.wal_max_bytes)}, a segment a worker {size(held)}"
    if held > settings.wal_max_bytes:
        return bad("wal bound", seen, "some workers never get a segment: while Redis is away they answer 503",
                   f"SPILLWAY_WAL_MAX_BYTES={4 * held}, or smaller SPILLWAY_WAL_SEGMENT_BYTES")
    return ok("wal bound", seen)


def deadline(settings: Settings) -> Finding:
    """Judges how long clients wait before the WAL takes over."""
    seen = f"SPILLWAY_REDIS_DEADLINE_MS {settings.redis_deadline_ms}"
    if settings.redis_deadline_ms > 5000:
        return warn("redis deadline", seen, "each outage makes clients wait that long, and many give up before",
                    "SPILLWAY_REDIS_DEADLINE_MS=250")
    if settings.redis_deadline_ms < 20:
        return warn("redis deadline", seen, "a sync of Redis's disk takes longer now and then: batches go to the WAL "
                    "though nothing is wrong", "SPILLWAY_REDIS_DEADLINE_MS=250")
    return ok("redis deadline", seen)


def exposure(bound: Mapping[str, Sequence[str]], settings: Settings) -> Iterator[Finding]:
    """Judges who reaches the listeners, none of which asks for a key.

    Args:
        bound: For `ingest` and `admin`, the addresses that they listen on.
        settings: Those of the stack.
    """
    can = {"ingest": "post events", "admin": "read, replay and purge what lies in the dead letters"}
    for name, addresses in bound.items():
        wide = [address for address in addresses if not is_loopback(address)]
        setting = "SPILLWAY_BIND" if name == "ingest" else "SPILLWAY_ADMIN_BIND"
        seen = f"listens on {', '.join(addresses)}" if addresses else "nobody listens"
        if not wide:
            yield ok(f"{name} listener", seen)
            continue
        why = f"whoever reaches the port may {can[name]}"
        remedy = f"{setting}=127.0.0.1 behind a proxy that asks for credentials, or a firewall"
        yield (warn if settings.open_bind == "allow" else bad)(f"{name} listener", seen, why, remedy)
