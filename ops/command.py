"""The `spillway` command: reads the settings, and hands over to the module of the subcommand.

A subcommand is one entry in `_COMMANDS` and one module with `add_arguments(parser)` and `run(args, settings) -> int`;
the module is imported only when it is asked for.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from app.errors import SettingError, SpillwayError
from app.settings import Settings
from ops.errors import NotReady

_COMMANDS = {
    "up": "start everything",
    "down": "stop everything, and wait until it has gone",
    "status": "show what runs",
    "doctor": "check what a deployment gets wrong, and say what to do about it",
    "run": "run some of the programs in the foreground without supervisor, as a container does",
    "watch": "audit every minute and send canaries, shown as metrics; one of the programs that `up` starts",
    "wal": "look into the write-ahead log",
    "dlq": "look through the dead letters, replay or delete them",
    "audit": "tell whether everything that was accepted is accounted for",
    "redis": "send one command to Redis, such as INFO server, and print the reply",
    "psql": "open the database, or run one statement in it",
    "chaos": "break things under load, and tick the boxes of the chaos checklist",
    "bench": "measure speed, latency and recovery, each beside its limit in the same run",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Returns:
        The subcommand's exit status; 78 for a setting that is not allowed, 75 when a server that is not ours is
        awaited, 1 for what else failed, 130 after Ctrl-C.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    chosen = next((word for word in words if word in _COMMANDS), None)
    module = import_module(f"ops.{chosen}") if chosen else None
    parser = argparse.ArgumentParser(prog="spillway", description="A durable HTTP log-ingestion service.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, text in _COMMANDS.items():
        subparser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if module and name == chosen:
            module.add_arguments(subparser)
    args = parser.parse_args(words)
    assert module
    try:
        return int(module.run(args, Settings.from_env(os.environ)))
    except (SpillwayError, OSError, KeyboardInterrupt) as error:
        return _failed(error)


def _failed(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        print("spillway: interrupted", file=sys.stderr)
        return 130
    print(f"spillway: {error}", file=sys.stderr)
    if isinstance(error, SettingError):
        return os.EX_CONFIG
    return os.EX_TEMPFAIL if isinstance(error, NotReady) else 1


if __name__ == "__main__":
    sys.exit(main())
