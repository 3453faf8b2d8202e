"""`spillway chaos`: breaks a stack under load and ticks the boxes of the checklist, each with what was seen.

It starts a stack of its own in a scratch directory, with embedded servers, and ends it; or it takes the one that runs
in `SPILLWAY_DATA_DIR` (`--attach`) or in containers (`--compose`), with its settings. Exit status: 0 every box is
ticked; 1 one is not; 2 an experiment could not be made.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.errors import SpillwayError
from app.settings import Settings
from ops import scratch
from ops.chaos import interrupt, nemesis, report
from ops.chaos.compose import Compose
from ops.chaos.disk import Ext4
from ops.chaos.evidence import Evidence
from ops.chaos.experiment import EXPERIMENTS, Experiment
from ops.chaos.fault import FAULTS
from ops.chaos.load import Load, Shape
from ops.chaos.report import Result
from ops.chaos.stage import Stage
from ops.chaos.supervised import Supervised
from ops.chaos.target import Target
from ops.errors import ChaosFailed
from ops.proxy import Proxy
from ops.stack import Stack

_NOT_MADE = 2
_NEEDED = ("locust", "matplotlib")
_DISK_BYTES = 512 << 20
# Short and small, so that what the checklist waits for comes within the minute.
_SETTINGS = {"SPILLWAY_SINK_TIMEOUT_S": "5", "SPILLWAY_CLAIM_IDLE_S": "10", "SPILLWAY_SINK_RETRIES": "6",
             "SPILLWAY_CONSUMERS": "4", "SPILLWAY_LOG_LEVEL": "INFO", "SPILLWAY_WAL_SEGMENT_BYTES": str(2 << 20)}
# Who reaches a server through which proxy, where its network is to be slow.
_PROXIED = {"ingest-redis": ("ingest", "REDIS_URL"), "consumer-redis": ("consumers", "REDIS_URL"),
            "consumer-postgres": ("consumers", "DATABASE_URL")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `chaos`."""
    parser.description = f"Break things under load, and judge. Faults of `nemesis`: {', '.join(FAULTS)}."
    option = parser.add_argument
    option("experiment", nargs="?", default="all", choices=["all", *EXPERIMENTS, "nemesis"], metavar="experiment",
           help=f"{', '.join(EXPERIMENTS)}; all of these (all); or nemesis: faults drawn by chance")
    option("--attach", action="store_true", help="break the stack that runs in SPILLWAY_DATA_DIR, not one of its own")
    option("--compose", nargs="?", const="docker compose", metavar="COMMAND",
           help="break the containers of the Compose file in the current directory, by this command (docker compose)")
    option("--duration", type=float, default=30.0, metavar="S", help="how long a fault stays, in seconds (30)")
    option("--minutes", type=float, default=10.0, metavar="M", help="how long the nemesis goes on (10)")
    option("--fault", action="append", choices=list(FAULTS), metavar="NAME",
           help="let the nemesis draw from these alone")
    option("--rate", type=float, default=100.0, metavar="N", help="requests per second; 0: as many as can be (100)")
    option("--users", type=int, default=20, metavar="N", help="clients at the same time (20)")
    option("--batch-size", type=int, default=100, metavar="N",
           help="events in a batch; half of the requests are single events (100)")
    option("--seed", type=int, default=1, metavar="N", help="load and nemesis follow from it (1)")
    option("--output", type=Path, default=Path("chaos"), metavar="DIR",
           help="takes report.html, report.json, receipts and logs (chaos)")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Makes the experiments, prints the checklist and writes the report; returns the exit status."""
    if not all(map(find_spec, _NEEDED)):
        print(f"spillway chaos: {' and '.join(_NEEDED)} are needed: pip install 'spillway[chaos]'", file=sys.stderr)
        return _NOT_MADE
    from ops.chaos import page  # not there without the extra
    interrupt.listen()
    args.output.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    status = 0
    try:
        for name, experiment in _chosen(args).items():
            results.append(_make(name, experiment, args, settings))
            print(report.table(results[-1:]), flush=True)
    except (SpillwayError, subprocess.CalledProcessError) as error:
        print(f"spillway chaos: {error}", file=sys.stderr)
        status = _NOT_MADE
    if results:
        print(report.summary(results))
        facts = {"arguments": {name: str(value) for name, value in vars(args).items()}}
        (args.output / "report.json").write_text(report.document(results, facts))
        (args.output / "report.html").write_text(page.render(results, facts))
        print(f"Report: {args.output / 'report.html'}")
    return status or int(not all(result.is_ticked for result in results))


def _chosen(args: argparse.Namespace) -> dict[str, Experiment]:
    if args.experiment == "all":
        is_foreign = args.attach or args.compose
        return {name: one for name, one in EXPERIMENTS.items() if not (is_foreign and name == "latency")}
    if args.experiment == "nemesis":
        return {"nemesis": nemesis.experiment(args.minutes, args.seed, args.fault)}
    return {args.experiment: EXPERIMENTS[args.experiment]}


def _make(name: str, experiment: Experiment, args: argparse.Namespace, settings: Settings) -> Result:
    with _target(name, args, settings) as (target, facts):
        receipts = args.output / f"receipts-{name}.jsonl"
        receipts.unlink(missing_ok=True)
        shape = Shape(args.rate, args.users, args.batch_size, args.seed)
        stage = Stage(name, target, Load(target.places.ingest_url, receipts, shape), args.duration, facts)
        evidence: Evidence = experiment.play(stage)
    return report.judge(evidence, experiment.boxes)


@contextmanager
def _target(name: str, args: argparse.Namespace, settings: Settings) -> Iterator[tuple[Target, dict[str, Any]]]:
    if args.attach or args.compose:
        if name == "latency":
            raise ChaosFailed("latency needs proxies between the parts, which only a stack of its own has")
        yield _in_containers(args.compose) if args.compose else _attached(settings)
        return
    with ExitStack() as ends:
        place = ends.enter_context(scratch.directory("chaos"))
        ends.push(_kept_logs(place, args.output / f"log-{name}"))
        disk = _disk(ends, place) if name == "nemesis" else None
        proxies: dict[str, Proxy] = {}
        changes = {**_SETTINGS, **({"SPILLWAY_WAL_DIR": str(disk.root)} if disk else {})}
        slowed = _slowed(ends, proxies) if name == "latency" else None
        stack = ends.enter_context(scratch.stack(place / "var", slowed, **changes))
        own = Settings.from_env({
            **os.environ, "SPILLWAY_DATA_DIR": str(stack.state), "SPILLWAY_WAL_DIR": "", **changes,
        })
        yield Supervised(stack, own, proxies, disk), _facts(own)


def _in_containers(command: str) -> tuple[Target, dict[str, Any]]:
    """Takes the settings from the ingestor's environment."""
    target = Compose(shlex.split(command), Path.cwd())
    target.reach()
    return target, _facts(Settings.from_env(target.environment))


def _attached(settings: Settings) -> tuple[Target, dict[str, Any]]:
    stack = Stack(settings.state)
    if not stack.is_up():
        raise ChaosFailed(f"nothing runs in {stack.state}: `spillway up` first, or leave --attach out")
    return Supervised(stack, settings), _facts(settings)


def _facts(settings: Settings) -> dict[str, Any]:
    names = ("claim_idle_s", "sink_retries", "sink_timeout_s", "redis_deadline_ms", "consumers", "workers", "wal")
    # Each attempt may wait for the server, and then as long again until the next.
    patience_s = 60.0 + 2.0 * settings.sink_retries * settings.sink_timeout_s
    return {**{name: getattr(settings, name) for name in names}, "patience_s": patience_s}


def _slowed(ends: ExitStack, proxies: dict[str, Proxy]) -> Callable[[str, str], scratch.Overrides]:
    """Returns what puts a proxy before each server and each program; the proxies are filled in when it is called."""
    def override(redis_url: str, database_url: str) -> scratch.Overrides:
        overrides: dict[str, dict[str, str]] = {}
        for name, (client, variable) in _PROXIED.items():
            proxies[name] = Proxy(redis_url if variable == "REDIS_URL" else database_url)
            ends.callback(proxies[name].close)
            overrides.setdefault(client, {})[variable] = proxies[name].url
        return overrides
    return override


def _disk(ends: ExitStack, place: Path) -> Ext4 | None:
    """Returns a file system for the WAL, or None where we may not make one."""
    if os.geteuid() != 0:
        return None
    try:
        return ends.enter_context(Ext4(place, _DISK_BYTES))
    except ChaosFailed as error:
        print(f"spillway chaos: {error}; faults that need one are left out", file=sys.stderr)
        return None


def _kept_logs(place: Path, kept: Path) -> Callable[..., None]:
    """Returns what saves the logs of the stack when an experiment ends."""
    def save(*_: object) -> None:
        kept.mkdir(parents=True, exist_ok=True)
        for log in (place / "var" / "log").glob("*.log"):
            with suppress(OSError):
                (kept / log.name).write_bytes(log.read_bytes())
    return save
