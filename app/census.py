"""Census: how many connections each worker has, in memory that all of them share.

The workers wait at one socket, and whoever comes by first takes the connection: of clients that come at once and stay,
one worker then serves three times as many as another, and what they send waits while a core has nothing to do.
"""

import mmap

_SLOTS = 64
_SHARE = 16

# Made in gunicorn's master, which imports this before it forks. A slot has one more than its worker's connections; 0:
# nobody. Only that worker writes to it, and the master once it has ended.
_counts = memoryview(mmap.mmap(-1, 4 * _SLOTS)).cast("i")


def may_take(number: int, count: int) -> bool:
    """Tells the others how many connections a worker has.

    Args:
        number: Of the worker: its `age`, which the master counts. Of two that are 64 apart one is not seen.
        count: Its connections.

    Returns:
        Whether it may take another: none has fewer, or so few that it is over a sixteenth of its own.
    """
    mine = _counts[number % _SLOTS] = 1 + count
    # Without a default it would end who asks just as the master forgets one that had the same slot.
    return mine - min(filter(None, _counts), default=mine) <= count // _SHARE


def forget(number: int) -> None:
    """Forgets a worker that takes no more."""
    _counts[number % _SLOTS] = 0
