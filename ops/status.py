"""`spillway status`: what runs, for people (passwords hidden) or as JSON (with them)."""

import argparse
import re
from typing import Any

import msgspec

from app.settings import Settings
from ops.stack import Facts, Stack
from ops.supervisor_client import Process

_DOWN = 3  # as LSB's `status` actions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `status`."""
    parser.add_argument("fact", nargs="?", choices=Facts.__struct_fields__, metavar="fact",
                        help=f"print this one alone, passwords included: {', '.join(Facts.__struct_fields__)}")
    parser.add_argument("--json", action="store_true", help="as JSON, passwords included")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Returns 0 when supervisord runs, 3 when nothing does.

    Raises:
        StackFailed: supervisord runs and does not answer.
    """
    stack = Stack(settings.state)
    if not stack.is_up():
        print(_json({"is_up": False, "data_dir": str(stack.state), "processes": []}) if args.json else _down(stack))
        return _DOWN
    if args.fact:
        print(getattr(stack.facts(), args.fact))
        return 0
    facts, processes = stack.facts(), stack.processes()
    if args.json:
        print(_json({"is_up": True, **msgspec.to_builtins(facts), "processes": msgspec.to_builtins(processes)}))
        return 0
    for name, value in msgspec.to_builtins(facts).items():
        print(f"{name:18} {_redacted(value if isinstance(value, str) else ', '.join(value))}")
    print(_table(processes))
    return 0


def _json(value: dict[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode()


def _down(stack: Stack) -> str:
    orphans = ", ".join(map(str, sorted(stack.orphans())))
    return f"Nothing runs in {stack.state}." if not orphans else (
        f"supervisord is gone and has left processes {orphans} running; `spillway down` ends them."
    )


def _redacted(text: str) -> str:
    return re.sub(r"(://[^:@/]*:)[^@]*(?=@)", r"\1***", text)


def _table(processes: list[Process]) -> str:
    rows = [("process", "state", "pid", "up for", ""), *(
        (process.name, process.state, str(process.pid or "-"), f"{process.uptime_s} s", process.detail)
        for process in processes
    )]
    return "\n" + "\n".join("{:24} {:10} {:>8} {:>10}  {}".format(*row).rstrip() for row in rows)
