"""New beside old: this checkout's code and another's, end to end, by turns, and the other's a second time.

In a round each of the three has a stack of its own, started for the round by its own command and ended with it. All use
the same Redis and the same PostgreSQL, each in a database of its own there: nothing differs but the code. Turns are
short, and each of the three is first, second and last equally often: what the machine gives, which drifts by half
within minutes, is in all of them. "Old again" is measured just as "new" is: what its ratio differs from 1 by is noise.
"""

import math
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import psycopg2
import redis

from ops import scratch
from ops.bench import curve, passage
from ops.bench.checkout import Checkout
from ops.bench.end_to_end import WAYS, case
from ops.bench.figure import Figure, Line
from ops.bench.plan import Plan
from ops.bench.rig import Rig
from ops.errors import BenchFailed
from ops.stack import Stack

PART = "against"
SIZES = (1, 100, 1000)
SLACK = 0.02
NEW, OLD, AGAIN = "new", "old", "old again"
_SERVERS = ("redis", "postgres")
_SUPERUSER = "postgres"  # `ops.postgres_server` gives it the password of ours
_WARM_SIZE = 100
_STOP_S, _POLL_S = 60.0, 0.1
_CPU, _GENERATOR = "CPU, all programs", "cpu_us load generator"


class Verdict(msgspec.Struct, frozen=True):
    """Whether a size of batch is as fast as it was: new over old is not more than `SLACK` below old over old.

    Attributes:
        case: The size.
        is_held: Whether it is.
        new_over_old, old_over_old: Medians over all turns, each held against the turn of old beside it.
        new_between, old_between: Where each median is with 95 % probability, by what it was made of.
        new_cpu, old_cpu: The same of CPU an event; more is dearer.
    """

    case: str
    is_held: bool
    new_over_old: float
    new_between: tuple[float, float]
    new_cpu: float
    old_over_old: float
    old_between: tuple[float, float]
    old_cpu: float

    @property
    def text(self) -> str:
        """It in plain words."""
        new, old = (f"{ratio:.3f} ({least:.3f} to {most:.3f})" for ratio, (least, most) in (
            (self.new_over_old, self.new_between), (self.old_over_old, self.old_between)))
        return (f"{'held' if self.is_held else 'NOT HELD'}: {self.case}: new over old {new}; at least "
                f"{self.old_over_old - SLACK:.3f} is wanted, {SLACK} below old over old {old}; "
                f"CPU {self.new_cpu:.3f}, of old again {self.old_cpu:.3f}")

    @property
    def is_vague(self) -> bool:
        """Whether the noise is more than the slack, so that it may be otherwise another time."""
        least, most = self.old_between
        return max(1 - least, most - 1) > SLACK


@contextmanager
def servers(state: Path) -> Iterator[Stack]:
    """Starts a stack of which only the servers go on, and ends it."""
    with scratch.stack(state) as host:
        for process in host.processes():
            if process.name not in _SERVERS:
                host.supervisor.stop(process.name)
        deadline = time.monotonic() + _STOP_S
        while any(one.pid for one in host.processes() if one.name not in _SERVERS):
            if time.monotonic() > deadline:
                raise BenchFailed(f"waited {_STOP_S:.0f} s for programs beside the servers to end")
            time.sleep(_POLL_S)
        url = host.facts().database_url
        # It would come in one turn and not in the next; what a turn leaves is truncated.
        _execute(url, "ALTER SYSTEM SET autovacuum = off")
        _execute(url, "SELECT pg_reload_conf()")
        yield host


def measure(
    sides: dict[str, Checkout], host: Stack, place: Path, plan: Plan, consumers: int, number: int
) -> Iterator[Figure]:
    """Measures one round.

    Args:
        sides: The three, by name.
        host: Whose servers they use.
        place: Takes their data directories.
        plan: How long, and what.
        consumers: How many each has.
        number: Of the round, from 0.
    """
    with ExitStack() as ends:
        rigs = {name: ends.enter_context(_side(one, host, place, name, number, consumers))
                for name, one in sides.items()}
        ends.enter_context(curve.unwatched(*rigs.values()))
        for rig in rigs.values():
            passage.run(rig, plan, _WARM_SIZE)
        for size in SIZES:
            for order in orders(tuple(rigs), number, plan.turns):
                yield from _figures(size, {name: _turn(rigs[name], plan, size) for name in order})


def orders(names: Sequence[str], number: int, count: int) -> Iterator[Sequence[str]]:
    """Yields so many orders of a round: each begins with the next one; every other round goes backwards."""
    for start in range(number, number + count):
        first = start % len(names)
        order = [*names[first:], *names[:first]]
        yield order[::-1] if number % 2 else order


def _turn(rig: Rig, plan: Plan, size: int) -> passage.Passage:
    rig.clear()
    rig.settle()
    return passage.run(rig, plan, size)


def _figures(size: int, turns: dict[str, passage.Passage]) -> Iterator[Figure]:
    old = turns[OLD]
    for name in (NEW, AGAIN):
        one = turns[name]
        yield Figure(PART, case(size), f"{WAYS['stored']}, {name}", "events/s", one.stored, OLD, old.stored, one.facts)
    for name in (NEW, AGAIN):
        yield Figure(PART, case(size), f"{_CPU}, {name}", "us", _cpu_us(turns[name]), OLD, _cpu_us(old))


def _cpu_us(one: passage.Passage) -> float:
    return sum(value for name, value in one.facts.items() if name.startswith("cpu_us ") and name != _GENERATOR)


@contextmanager
def _side(one: Checkout, host: Stack, place: Path, name: str, number: int, consumers: int) -> Iterator[Rig]:
    """Runs the stack of one of the three, on servers that have nothing of it before."""
    place_of = (OLD, NEW, AGAIN).index(name)
    facts, state = host.facts(), place / name.replace(" ", "-")
    # Of this round alone: what the code made of it is not there in the next one.
    database = f"round_{number}_{place_of}"
    urls = {"REDIS_URL": _at(facts.redis_url, str(place_of + 1)), "DATABASE_URL": _at(facts.database_url, database)}
    with ExitStack() as ends:
        ends.callback(shutil.rmtree, state, ignore_errors=True)
        _execute(facts.database_url, f"CREATE DATABASE {database} OWNER {urlsplit(facts.database_url).username}")
        ends.callback(_flush, urls["REDIS_URL"])
        rig = Rig(ends.enter_context(one.running(state, **urls)), host)
        ends.callback(rig.close)
        rig.scale(consumers)
        yield rig


def _flush(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()


def _execute(url: str, statement: str) -> None:
    with closing(psycopg2.connect(url, user=_SUPERUSER)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)


def _at(url: str, path: str) -> str:
    return urlsplit(url)._replace(path=f"/{path}").geturl()


def verdicts(lines: Sequence[Line]) -> list[Verdict]:
    """Returns one for each size that was measured."""
    ratios = {(line.case, line.what): sorted(figure.ratio or 0.0 for figure in line.rounds)
              for line in lines if line.part == PART}
    found: list[Verdict] = []
    for name in dict.fromkeys(name for name, _ in ratios):
        new, again = (ratios[name, f"{WAYS['stored']}, {side}"] for side in (NEW, AGAIN))
        new_cpu, old_cpu = (statistics.median(ratios[name, f"{_CPU}, {side}"]) for side in (NEW, AGAIN))
        ratio, noise = statistics.median(new), statistics.median(again)
        is_held = ratio >= noise - SLACK
        found.append(Verdict(name, is_held, ratio, between(new), new_cpu, noise, between(again), old_cpu))
    return found


def between(ordered: Sequence[float]) -> tuple[float, float]:
    """Returns where the median of what the ascending values are drawn from is, with 95 % probability.

    Source: the sign test turned round; of a few values, the least and the most.
    """
    outside = max(0, math.floor(len(ordered) / 2 - 0.98 * math.sqrt(len(ordered))))
    return ordered[outside], ordered[-1 - outside]


def told(found: Sequence[Verdict]) -> str:
    """Returns verdicts as text, and which of them may be otherwise another time."""
    vague = ", ".join(one.case for one in found if one.is_vague)
    note = [f"In {vague} the same code differs from itself by more than {SLACK}: that says little. Measure again, with "
            "more rounds, where nothing else runs."] if vague else []
    return "\n".join(["", *(one.text for one in found), *note])
