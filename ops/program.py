"""The commands of our own processes, the same under supervisor and in a container."""

import secrets
import sys
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

from app.settings import Settings

NAMES = ("ingest", "replayer", "admin", "consumer", "keeper", "watch")

WORKER_CLASSES = {"spillway": "app.worker.Worker", "gevent": "gevent"}

_PROCESS = [sys.executable, "-m", "ops.process"]
_GUNICORN = [sys.executable, "-m", "gunicorn", "--config", str(Path(__file__).with_name("gunicorn_conf.py"))]

# glibc gives memory back as soon as a large buffer is freed, and the kernel hands it out again page by page for the
# next one: a quarter of the time that the edge takes for a batch of a thousand. Source: mallopt(3).
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(128 << 20), "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}


def command(name: str, settings: Settings) -> list[str]:
    """Returns the command of one process, which reads the rest of its settings from the environment."""
    if name == "logs":
        return [sys.executable, "-m", "ops.rotation"]
    if name in ("consumer", "keeper", "replayer"):
        return [*_PROCESS, f"workers.{name}"]
    if name == "watch":
        return [*_PROCESS, "ops.command", name]
    is_ingest = name == "ingest"
    host, port = (settings.bind, settings.port) if is_ingest else (settings.admin_bind, settings.admin_port)
    workers = settings.workers if is_ingest else 1
    app = "app.edge:get_app()" if is_ingest else "ops.admin:get_app()"
    worker_class = WORKER_CLASSES[settings.worker_class if is_ingest else "gevent"]
    return [
        *_GUNICORN, f"--bind={authority(host, port)}", f"--workers={workers}", f"--worker-class={worker_class}",
        f"--name={name}", app,
    ]


def environment(
    environ: Mapping[str, str], settings: Settings, metrics: Path, urls: Mapping[str, str]
) -> dict[str, str]:
    """Returns the environment of the processes: the caller's, with what they must agree on filled in."""
    # A word that ingest and the canary alone know, for as long as they run: nobody else may choose the log.
    token = settings.canary_token or secrets.token_urlsafe(24)
    return {
        **_MALLOC, **environ, **urls, "SPILLWAY_DATA_DIR": str(settings.state),
        "SPILLWAY_WAL_DIR": str(settings.wal_path), "SPILLWAY_CANARY_TOKEN": token,
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
    }


def url(host: str, port: int) -> str:
    """Returns where a listener is reached from this machine."""
    address = ip_address(host)
    if address.is_unspecified:
        address = ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"http://{authority(str(address), port)}"


def authority(host: str, port: int) -> str:
    """Returns `host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
