"""`spillway bench`: measures on stacks of its own in scratch directories, with embedded servers, and ends them.

All is measured in turn, round by round, each figure right beside its limit, because machines are noisy: the ratios are
what to quote, not one of the rates. Exit status: 0 everything was measured, and beside another checkout nothing has
become slower; 1 something could not be measured, or has.
"""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import psycopg2
import redis

from app.settings import Settings
from ops import scratch
from ops.bench import (
    against, backlog, checkout, compression, curve, drain, end_to_end, growth, latency, limit, load, machine, outage,
    peer, plan, poison, replay, table, variant,
)
from ops.bench.figure import Figure, Line, lines
from ops.bench.plan import Plan
from ops.bench.rig import Rig
from ops.errors import BenchFailed

PARTS = (end_to_end.PART, latency.PART, outage.PART, replay.PART, drain.PART, poison.PART)
BY_NAME = (variant.PART, compression.PART)  # choices not taken: what is taken is in the others
_LARGE = {"SPILLWAY_REDIS_MAX_BYTES": str(4 << 30), "SPILLWAY_STREAM_MAX_BYTES": str(4 << 30)}
_REPLAY_SIZE = 1000
_Measure = Callable[[], Iterator[Figure]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bench`."""
    parser.description = (
        "Measure, each figure beside its limit in the same run. Takes about 10 minutes and 3 GB of disk; --quick a "
        "minute; table 4 minutes and 4 GB; compression 2 minutes; curves 17 minutes, 13 GB of disk and 3 GB of memory; "
        "--against 14 minutes."
    )
    option = parser.add_argument
    option("part", nargs="?", default="default", metavar="part",
           choices=["default", *PARTS, *BY_NAME, curve.PART, "all"],
           help=f"{', '.join(PARTS)} (these by default); {', '.join(BY_NAME)}, {curve.PART}; or all")
    option("--quick", action="store_true", help="one short round of small sizes: shows that it works, not how fast")
    option("--rounds", type=int, default=None, metavar="N", help="rounds, of which the medians are shown (5)")
    option("--generator", choices=["auto", "wrk", "own"], default="auto",
           help="of closed-loop load; auto: wrk where it is installed, else our own, which takes more CPU")
    option("--against", type=Path, metavar="PATH",
           help="hold end-to-end against that of another checkout of Spillway: by turns, on the same servers, and the "
                "other one a second time, which shows the noise. New over old may be 0.02 below old over old in "
                "batches of 1, 100 and 1,000; where it is less, the exit status is 1")
    option("--fluent-bit", type=Path, metavar="PATH", help="compare with this Fluent Bit, http in and pgsql out")
    option("--output", type=Path, default=Path("bench"), metavar="DIR",
           help="takes bench.json, RESULTS.md and the plots as SVG (bench)")
    option("--json", action="store_true", help="print bench.json instead of the table")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Measures, prints and writes; returns 0, or 1 where another checkout was faster.

    Raises:
        BenchFailed: Something could not be measured; nothing is printed or written.
    """
    measured = _compared if args.against else _measured
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.disable()  # the schema's own lines; failures raise
    rounds = args.rounds or (1 if args.quick else 5)
    try:
        with scratch.directory("bench") as place:
            facts, figures = measured(args, settings, place, rounds)
    except (redis.RedisError, psycopg2.Error, subprocess.SubprocessError) as error:
        raise BenchFailed(f"what is needed to measure failed: {' '.join(str(error).split())}") from error
    found = lines(figures)
    verdicts = against.verdicts(found)
    _write(args, facts | {"rounds": rounds}, found, verdicts)
    return int(not all(one.is_held for one in verdicts))


def _measured(
    args: argparse.Namespace, settings: Settings, place: Path, rounds: int
) -> tuple[dict[str, Any], list[Figure]]:
    """Returns where it was measured, and what."""
    load_before = os.getloadavg()[0]
    generator = load.generator(args.generator)
    program = peer.found(args.fluent_bit) if args.fluent_bit else None
    peer_name = peer.version(program) if program else ""
    one = plan.make(generator, args.quick)
    figures: list[Figure] = []
    with ExitStack() as ends:
        most = str(max(settings.consumers, *drain.CONSUMERS))
        rig = _rig(ends, place / "var", settings.consumers, SPILLWAY_CONSUMERS=most)
        facts = machine.describe(settings, rig.facts, limit.sync(place), load_before) | {"generator": generator.name}
        if "note" in facts:
            _tell(str(facts["note"]))
        measures = _measures(args, settings, place, ends, rig, one)
        if program:
            other = ends.enter_context(peer.running(program, rig, place))
            measures[peer.PART] = lambda: peer.measure(rig, other, peer_name, one)
        for number in range(rounds):
            for name, measure in measures.items():
                _tell(f"round {number + 1} of {rounds}: {name}")
                rig.scale(settings.consumers)
                figures += measure()
    if args.part in (curve.PART, "all"):
        figures += _curves(settings, place, one, rounds)
    return facts, figures


def _compared(
    args: argparse.Namespace, settings: Settings, place: Path, rounds: int
) -> tuple[dict[str, Any], list[Figure]]:
    """Returns where this checkout was measured beside another, and what."""
    if args.part not in ("default", end_to_end.PART) or args.fluent_bit:
        raise BenchFailed(f"--against measures {end_to_end.PART} alone, and nothing else beside it")
    load_before = os.getloadavg()[0]
    new, old = checkout.own(), checkout.found(args.against)
    generator = load.generator(args.generator)
    one = plan.make(generator, args.quick)
    figures: list[Figure] = []
    sides = {against.OLD: old, against.NEW: new, against.AGAIN: old}
    with against.servers(place / "servers") as host:
        facts = machine.describe(settings, host.facts(), limit.sync(place), load_before)
        if "note" in facts:
            _tell(str(facts["note"]))
        for number in range(rounds):
            _tell(f"round {number + 1} of {rounds}: {checkout.commit(new.root)} against {checkout.commit(old.root)}")
            figures += against.measure(sides, host, place, one, settings.consumers, number)
    return facts | {"generator": generator.name, "against": checkout.commit(old.root)}, figures


def _measures(
    args: argparse.Namespace, settings: Settings, place: Path, ends: ExitStack, rig: Rig, one: Plan
) -> dict[str, _Measure]:
    """Returns the parts that are wanted; starts what only they need."""
    wanted = {"default": PARTS, "all": (*PARTS, *BY_NAME)}.get(args.part, (args.part,))
    bare = ends.enter_context(limit.bare_tables(rig.facts.database_url))
    copy_bytes = settings.load_max_bytes
    measures: dict[str, _Measure] = {
        latency.PART: lambda: latency.measure(rig, one), outage.PART: lambda: outage.measure(rig, one),
        drain.PART: lambda: drain.measure(rig, bare, one, copy_bytes), poison.PART: lambda: poison.measure(rig, one),
        compression.PART: lambda: compression.measure(rig, one),
    }
    if end_to_end.PART in wanted:
        always = _rig(ends, place / "always", settings.consumers, SPILLWAY_WAL="always")
        empty = ends.enter_context(limit.empty_server())
        measures[end_to_end.PART] = lambda: end_to_end.measure(rig, always, bare, empty, one, copy_bytes)
    if replay.PART in wanted:
        log = replay.ReplayBench(one.bodies[_REPLAY_SIZE].encoded, *scratch.free_ports(1))
        ends.enter_context(log.started())
        measures[replay.PART] = log.measure
    if variant.PART in wanted:
        measures[variant.PART] = variant.TableBench(rig, one.table_events, copy_bytes).measure
    return {name: measures[name] for name in (*PARTS, *BY_NAME) if name in wanted}


def _curves(settings: Settings, place: Path, one: Plan, rounds: int) -> list[Figure]:
    """Measures the curves, each on two stacks of its own, and the rounds of a point in a row."""
    def pair(name: str, *changes: dict[str, str]) -> tuple[Rig, Rig]:
        _tell(f"curves: {name}")
        first, second = (_rig(ends, place / f"{name}-{number}", settings.consumers, **its)
                         for number, its in enumerate(changes))
        return first, second

    figures: list[Figure] = []
    with ExitStack() as ends:
        rigs = pair("workers", *({"SPILLWAY_WORKERS": str(count)} for count in curve.WORKER_COUNTS))
        for _ in range(rounds):
            figures += curve.workers(dict(zip(curve.WORKER_COUNTS, rigs)), one)
    with ExitStack() as ends:
        figures += backlog.measure(*pair("backlog", *[_LARGE | backlog.SETTINGS] * 2), one, rounds)
    with ExitStack() as ends:
        figures += growth.measure(*pair("table", *[_LARGE] * 2), one, rounds)
    return figures


def _rig(ends: ExitStack, state: Path, consumers: int, **changes: str) -> Rig:
    """Starts a stack, of whose consumers so many run."""
    rig = Rig(ends.enter_context(scratch.stack(state, None, **changes)))
    ends.callback(rig.close)
    rig.scale(consumers)
    return rig


def _write(
    args: argparse.Namespace, facts: dict[str, Any], found: list[Line], verdicts: list[against.Verdict]
) -> None:
    document = facts | {"lines": msgspec.to_builtins(found)}
    text = table.render(found)
    if verdicts:
        document["verdicts"] = msgspec.to_builtins(verdicts)
        text += f"\n{against.told(verdicts)}"
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "bench.json").write_text(json.dumps(document, indent=1) + "\n")
    (args.output / "RESULTS.md").write_text(table.markdown(facts, text))
    print(json.dumps(document) if args.json else text)
    if find_spec("matplotlib"):
        from ops.bench import plot  # not there without the extra
        plot.draw(found, args.output)
    else:
        _tell("no plots: pip install 'spillway[bench]'")
    _tell(f"written to {args.output}")


def _tell(text: str) -> None:
    print(f"spillway bench: {text}", file=sys.stderr, flush=True)
