"""What the processes of a stack use: CPU and memory, by the names that supervisor has for them, from /proc."""

import os
from collections.abc import Iterator
from pathlib import Path

from ops import family
from ops.stack import Stack

_TICKS = os.sysconf("SC_CLK_TCK")
_KIB = 1024


def usage(stack: Stack) -> dict[str, float]:
    """Returns seconds of CPU so far by program, children that have ended included; a pool is one program.

    In steps of the kernel's clock tick, 10 ms. A program that is restarted meanwhile begins anew.
    """
    spent: dict[str, float] = {}
    for name, pid in _members(stack):
        program = name.partition(":")[0]
        spent[program] = spent.get(program, 0.0) + seconds(pid)
    return spent


def per_event(before: dict[str, float], after: dict[str, float], event_count: int) -> dict[str, float]:
    """Returns µs of CPU an event by program, as facts of a figure."""
    return {f"cpu_us {name}": (spent_s - before.get(name, 0.0)) / event_count * 1e6
            for name, spent_s in after.items() if spent_s >= before.get(name, 0.0)}


def resident(stack: Stack) -> dict[str, float]:
    """Returns resident bytes of each supervised process and its descendants, without memory that they share."""
    held: dict[str, float] = {}
    for name, pid in _members(stack):
        held[name] = held.get(name, 0.0) + _resident_bytes(pid)
    return held


def _members(stack: Stack) -> Iterator[tuple[str, int]]:
    """Yields each process of the stack with the supervised one that it comes from."""
    names = {process.pid: process.name for process in stack.processes() if process.pid}
    for pid in family.children(stack.state) | set(names):
        ancestor = pid
        while ancestor > 1 and ancestor not in names:
            ancestor = _parent(ancestor)
        if ancestor in names:
            yield names[ancestor], pid


def _stat(pid: int) -> list[str]:
    try:
        # Behind the name, which may hold spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return []


def _parent(pid: int) -> int:
    return int((_stat(pid) or ["", "0"])[1])


def seconds(pid: int) -> float:
    """Returns seconds of CPU that a process and the children it has waited for have used; 0 where it has ended."""
    # Its own, and that of the children it has waited for: what a process of the tree has used stays in the sum.
    return sum(map(int, _stat(pid)[11:15])) / _TICKS


def _resident_bytes(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    sizes = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return (int(sizes.get("RssAnon", 0)) + int(sizes.get("RssFile", 0))) * float(_KIB)
