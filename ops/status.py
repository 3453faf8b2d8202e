"""`spillway status`: what runs and how it stands, for people (passwords hidden) or as JSON (with them)."""

import argparse
import shlex
import sys
from datetime import datetime
from typing import Any

import msgspec

from app.settings import Settings
from ops import loop, overview, secret
from ops.errors import StackFailed
from ops.stack import Facts, Stack
from ops.supervisor_client import Process

_DOWN = 3  # as LSB's `status` actions
_WIDTH = 100
_MANY = 6  # consumers from which on those that run share a line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `status`."""
    parser.add_argument("fact", nargs="?", choices=Facts.__struct_fields__, metavar="fact",
                        help="print this one alone, passwords included (settings: for a shell to read): "
                             f"{', '.join(Facts.__struct_fields__)}")
    parser.add_argument("--json", action="store_true", help="as JSON, passwords included")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Returns 0 when supervisord runs, 3 when nothing does.

    Raises:
        StackFailed: supervisord runs and does not answer; the rest is shown all the same.
    """
    stack = Stack(settings.state)
    if not stack.is_up():
        if args.fact:
            return _fact_of_none(stack, args.fact)
        print(_json({"is_up": False, "data_dir": str(stack.state), "processes": []}) if args.json else _down(stack))
        return _DOWN
    facts = stack.facts()
    if args.fact:
        print(_fact(facts, args.fact))
        return 0
    silence: StackFailed | None = None
    processes: list[Process] = []
    try:
        processes = loop.marked(stack.processes(), stack.log / "supervisord.log", datetime.now())
    except StackFailed as error:
        silence = error
    parts = overview.observe(facts)
    print(_report(facts, processes, parts) if args.json else _screen(facts, processes, parts))
    if silence:
        raise silence
    return 0


def _report(facts: Facts, processes: list[Process], parts: dict[str, overview.Part]) -> str:
    state = {name: part.answer if part.answer is not None else {"unknown": part.unknown}
             for name, part in parts.items()}
    return _json({"is_up": True, **msgspec.to_builtins(facts), "processes": msgspec.to_builtins(processes),
                  "state": state})


def _screen(facts: Facts, processes: list[Process], parts: dict[str, overview.Part]) -> str:
    named = [(name, _shown(value)) for name, value in msgspec.to_builtins(facts).items()]
    return "\n".join([
        *(f"{name:18} {value}" for name, value in named),
        "", *_table(processes),
        "", *(f"{name:18} {text}" for name, text in overview.lines(parts)),
    ])


def _shown(value: str | list[str] | dict[str, str]) -> str:
    if isinstance(value, dict):
        return f"{len(value)} given at the start: `spillway status settings`"
    return secret.redacted(value) if isinstance(value, str) else ", ".join(value)


def _fact(facts: Facts, name: str) -> object:
    if name != "settings":
        return getattr(facts, name)
    return "\n".join(f"export {variable}={shlex.quote(value)}" for variable, value in facts.settings.items())


def _fact_of_none(stack: Stack, name: str) -> int:
    # What reads it in a shell must not take a sentence for a URL; the settings are wanted most when nothing runs.
    print(_down(stack), file=sys.stderr)
    if name == "settings" and stack.was_up():
        print(_fact(stack.facts(), name))
    return _DOWN


def _json(value: dict[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode()


def _down(stack: Stack) -> str:
    orphans = ", ".join(map(str, sorted(stack.orphans())))
    return f"Nothing runs in {stack.state}." if not orphans else (
        f"supervisord is gone and has left processes {orphans} running; `spillway down` ends them."
    )


def _table(processes: list[Process]) -> list[str]:
    if not processes:
        return ["processes          unknown (supervisord does not answer)"]
    rows = [("process", "state", "pid", "up for", "")]
    consumers = [one for one in processes if one.name.startswith("consumers:") and one.state == "RUNNING"
                 and not one.detail]
    shared = consumers if len(consumers) > _MANY else []
    rows += [
        (one.name, one.state, str(one.pid or "-"), _up_for(one), one.detail)
        for one in processes if one not in shared
    ]
    if shared:
        youngest = overview.duration(min(one.uptime_s for one in shared))
        rows.append((f"consumers:* ({len(shared)})", "RUNNING", "-", youngest, ""))
    return ["{:28} {:8} {:>8} {:>8}  {}".format(*row)[:_WIDTH].rstrip() for row in rows]


def _up_for(process: Process) -> str:
    return overview.duration(process.uptime_s) if process.state == "RUNNING" else "-"
