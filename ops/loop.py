"""Loops: processes that end again and again, which supervisord says are RUNNING whenever it has just started them anew.

It keeps no count; its log has a line for each end that nobody asked for.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from ops.supervisor_client import Process

_SPAN = timedelta(minutes=10)
_LEAST = 3
_TAIL_BYTES = 1 << 18
_ENDED = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ \w+ exited: (\S+) ", re.MULTILINE)


def marked(processes: Sequence[Process], log: Path, now: datetime) -> list[Process]:
    """Returns the processes, where they have ended three times in ten minutes with that as their detail.

    Args:
        processes: Of one supervisord.
        log: Its log.
        now: In local time without a zone, as there.
    """
    ends = _ends(log, now - _SPAN)
    return [_marked(one, ends[one.name.rpartition(":")[2]], now) for one in processes]


def _marked(one: Process, ends: Sequence[datetime], now: datetime) -> Process:
    if len(ends) < _LEAST:
        return one
    last_s = max(0.0, (now - ends[-1]).total_seconds())
    return msgspec.structs.replace(one, detail=f"ended {len(ends)} times in 10 min, last {last_s:.0f} s ago: its log")


def _ends(log: Path, since: datetime) -> defaultdict[str, list[datetime]]:
    found: defaultdict[str, list[datetime]] = defaultdict(list)
    if not log.exists():
        return found
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    for at, name in _ENDED.findall(text):
        if (moment := datetime.fromisoformat(at)) >= since:
            found[name].append(moment)
    return found
