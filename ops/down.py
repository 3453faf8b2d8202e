"""`spillway down`: ends everything that runs for the data directory, orphans included."""

import argparse

from app.settings import Settings
from ops.stack import Stack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `down`: none."""


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Returns 0 once nothing runs any more, and says whether something had to be ended."""
    stack = Stack(settings.state)
    if not stack.state.is_dir():
        print(f"Nothing runs: there is no {stack.state}.")
        return 0
    with stack.lock():
        print("Spillway is down." if stack.stop() else f"Nothing runs in {stack.state}.")
    return 0
