"""Where a run was made: without that, no figure of it means anything."""

import os
import platform
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg2
import redis

from app.settings import Settings
from ops.bench import checkout
from ops.bench.limit import Sync
from ops.checkup import host_facts
from ops.stack import Facts

_SETTINGS = ("workers", "worker_class", "consumers", "wal", "redis_deadline_ms", "stream_max_bytes", "load_max_bytes")
_IDLE_LOAD = 0.5  # a core, above which others take a part of what is measured


def describe(settings: Settings, facts: Facts, sync: Sync, load: float) -> dict[str, Any]:
    """Returns date, commit, command, machine, servers and the settings that matter; of the latter those that there are.

    Args:
        settings: Of the stack.
        facts: Of the stack, for its servers.
        sync: Of the disk that everything lies on.
        load: Load average before anything was started.
    """
    cores = os.cpu_count() or 1
    note = {"note": f"others were at work on the machine: load average {load:.1f} before it began, on {cores} cores"}
    return {
        **(note if load > _IDLE_LOAD * cores else {}),
        "made_at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": checkout.commit(checkout.ROOT),
        "command": " ".join(["spillway", *sys.argv[1:]]),
        "machine": {
            "cpu": _cpu_model(), "cores": cores, "memory_gib": round(_memory_bytes() / (1 << 30), 1),
            "kernel": platform.release(), "fdatasync_per_s": round(sync.rate),
            "fdatasync_p50_us": round(sync.p50_s * 1e6, 1), "fdatasync_p99_us": round(sync.p99_s * 1e6, 1),
            "load_average_before": round(load, 2), "autogroup": host_facts.is_autogrouped(None),
        },
        "versions": {"python": platform.python_version(), "gunicorn": version("gunicorn"), **servers(facts)},
        "settings": {name: getattr(settings, name) for name in _SETTINGS if hasattr(settings, name)},
    }


def _cpu_model() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def servers(facts: Facts) -> dict[str, str]:
    """Returns the servers' versions by name. Valkey tells one of the Redis that it is compatible with, too."""
    with redis.Redis.from_url(facts.redis_url) as client:
        info = client.info("server")
    name = "valkey" if "valkey_version" in info else "redis"
    connection = psycopg2.connect(facts.database_url)
    try:
        number = connection.server_version
    finally:
        connection.close()
    return {name: str(info[f"{name}_version"]), "postgresql": f"{number // 10_000}.{number % 10_000}"}
