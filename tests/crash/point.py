"""Crash points: wrappers that send SIGKILL to their own process before or after a call, once.

Product code holds none: a test names the point in its subprocess's environment, `before:<call>` or `after:<call>`.
"""

import os
import signal
from pathlib import Path


def arm(target, name, call):
    """Replaces the attribute of `target` so that it dies before or after the next call, if that is the point."""
    point = os.environ["CRASH_POINT"]
    mark = Path(os.environ["CRASH_MARK"])
    original = getattr(target, name)

    def wrapped(*args, **kwargs):
        if point == f"before:{call}" and not mark.exists():
            die(mark)
        result = original(*args, **kwargs)
        if point == f"after:{call}" and not mark.exists():
            die(mark)
        return result

    setattr(target, name, wrapped)


def die(mark):
    """Leaves the mark, so that a successor lives, and dies without another instruction."""
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)
