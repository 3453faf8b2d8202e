"""Ctrl-C and its like: what they end is undone first, and never left half done.

The first one ends an experiment; those that come while it is undone are answered, and change nothing.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def listen() -> None:
    """Makes the first signal a KeyboardInterrupt; those that are ignored, as under nohup, stay so."""
    for number in _heard():
        signal.signal(number, _end)


@contextmanager
def postponed() -> Iterator[None]:
    """Lets a signal wait until the block has ended.

    Raises:
        KeyboardInterrupt: At the end, where one came; what the block itself raised goes before.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        _wait(number, frame)

    before = {number: signal.signal(number, note) for number in _heard()}
    try:
        yield
    finally:
        for number, told in before.items():
            signal.signal(number, told)
    if came and before[signal.Signals(came[0])] is not _wait:
        signal.raise_signal(came[0])


def _heard() -> list[signal.Signals]:
    return [number for number in _NUMBERS if signal.getsignal(number) is not signal.SIG_IGN]


def _end(number: int, _: FrameType | None) -> NoReturn:
    for other in _heard():
        signal.signal(other, _wait)
    raise KeyboardInterrupt


def _wait(number: int, _: FrameType | None) -> None:
    print("spillway chaos: what was broken is being mended first", file=sys.stderr, flush=True)
