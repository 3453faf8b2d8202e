"""`spillway up`: starts everything, waits until it answers, and stays with it unless detached."""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from app.settings import Settings
from ops import readiness
from ops.errors import NotReady
from ops.stack import Stack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `up`."""
    parser.add_argument("--detach", action="store_true", help="return once everything answers, and leave it running")
    parser.add_argument("--wait", type=float, default=60.0, metavar="S", help="how long it may take to answer (60)")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Starts the stack, or says that it runs already.

    Raises:
        SettingError: It cannot be started as it is set.
        StackFailed: A program failed; everything was ended again.
        NotReady: Detached, and a server that is not ours does not answer; everything runs and waits for it.
    """
    stack = Stack(settings.state)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, as Ctrl-C does
    with stack.lock():
        if stack.is_up():
            stack.processes()
            print(f"Spillway is already up.\n{_summary(stack)}")
            return 0
        if stack.orphans():
            print("Ending what a killed supervisord has left running.", file=sys.stderr)
            stack.stop()
        supervisord = stack.start(settings, os.environ)
        _await(stack, supervisord, args)
    return 0 if args.detach else _stay(stack, supervisord)


def _await(stack: Stack, supervisord: "subprocess.Popen[bytes]", args: argparse.Namespace) -> None:
    try:
        readiness.wait(stack, supervisord, args.wait)
    except NotReady as error:
        if args.detach:
            raise
        print(f"spillway: {error}", file=sys.stderr)
    except BaseException:
        stack.stop()
        raise
    print(f"Spillway is up.\n{_summary(stack)}", flush=True)


def _stay(stack: Stack, supervisord: "subprocess.Popen[bytes]") -> int:
    try:
        return int(supervisord.wait() != 0)
    except KeyboardInterrupt:
        print("Stopping.", flush=True)
        return 0
    finally:
        # A second Ctrl-C must not leave half of it running.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with stack.lock():
            # When ours was ended by `down`, the next `up` may have come before us.
            if supervisord.poll() is None or not stack.is_up():
                stack.stop()


def _summary(stack: Stack) -> str:
    facts = stack.facts()
    post = f"curl -H 'Content-Type: application/json' -d '{{\"message\": \"hello\"}}' {facts.ingest_url}/ingest"
    return "\n".join([
        f"  ingest   {facts.ingest_url}/ingest",
        f"  admin    {facts.admin_url}/metrics",
        f"  logs     {stack.log}",
        "Next:",
        f"  {post}",
        f"  {_own('spillway')} status",
        f"  {_own('supervisorctl')} -c {shlex.quote(facts.supervisor_config)} status",
        f"  {_own('spillway')} down",
    ])


def _own(script: str) -> str:
    # As it can be pasted: the environment's scripts are seldom on PATH.
    return script if shutil.which(script) else shlex.quote(os.path.relpath(Path(sys.executable).with_name(script)))
