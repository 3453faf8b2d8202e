"""Waits until a stack that was started answers, or says which program keeps it from that, with the end of its log."""

import math
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from ops import listener
from ops.errors import NotReady, StackFailed
from ops.stack import Facts, Stack

_FAIL_S = 15.0  # so long may a program end and be tried again: a server that was killed leaves locks for a moment
_ANSWER_S = 5
_POLL_S = 0.1
_TAIL_LINES = 15


@dataclass(frozen=True)
class _Obstacle:
    """What keeps the stack from being ready, where to read more, and how long it may."""

    text: str
    log: Path
    patience_s: float = math.inf
    is_foreign: bool = False

    def error(self) -> StackFailed:
        """Returns what to raise when the patience is over."""
        if self.is_foreign:
            return NotReady(self.text)
        tail = self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:] if self.log.exists() else []
        return StackFailed("\n    ".join([f"{self.text}. The end of {self.log}:", *tail]))


def wait(stack: Stack, supervisord: "subprocess.Popen[bytes]", deadline_s: float) -> None:
    """Returns once every program runs, ingest and admin are ready, and PostgreSQL takes connections.

    Raises:
        StackFailed: Something of ours ended, or did not answer in time.
        NotReady: Everything runs, and waits for a server that is not ours.
    """
    began = time.monotonic()
    while obstacle := _obstacle(stack, supervisord):
        if time.monotonic() - began > min(deadline_s, obstacle.patience_s):
            raise obstacle.error()
        time.sleep(_POLL_S)


def _obstacle(stack: Stack, supervisord: "subprocess.Popen[bytes]") -> _Obstacle | None:
    own_log = stack.log / "supervisord.log"
    if supervisord.poll() is not None:
        return _Obstacle(f"supervisord ended with status {supervisord.returncode}", own_log, 0)
    try:
        processes = stack.processes()
    except StackFailed as error:
        return _Obstacle(str(error), own_log)
    for process in sorted(processes, key=lambda process: not process.is_failing):
        if process.state != "RUNNING":
            text = f"{process.name} is {process.state} ({process.detail})"
            return _Obstacle(text, Path(process.log), _FAIL_S if process.is_failing else math.inf)
    return _silent(stack)


def _silent(stack: Stack) -> _Obstacle | None:
    facts = stack.facts()
    found = {name: text for name, text in {
        "postgres": _connect(facts),
        "admin": _get("admin", facts.admin_url),
        "ingest": _get("ingest", facts.ingest_url),
    }.items() if text}
    if not found:
        return None
    is_foreign = len(facts.embedded) < 2
    return _Obstacle("; ".join(found.values()), stack.log / f"{next(iter(found))}.log", is_foreign=is_foreign)


def _connect(facts: Facts) -> str:
    try:
        psycopg2.connect(facts.database_url, connect_timeout=_ANSWER_S).close()
    except psycopg2.Error as error:
        return f"PostgreSQL does not answer ({' '.join(str(error).split())})"
    return ""


def _get(name: str, url: str) -> str:
    try:
        reply = listener.ask(url, "/readyz", _ANSWER_S)
    except listener.ERRORS as error:
        return f"{name} does not answer on {url} ({error})"
    return "" if reply.status == 200 else f"{name} is not ready ({reply.status}: {reply.text})"
