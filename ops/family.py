"""Finds and ends the processes that belong to one data directory, also when their supervisord is gone.

A process is known by what it carries, never by a name alone: the configuration in its command line (supervisord), the
socket of its supervisord in its environment (what that has started), or, for PostgreSQL, which overwrites its
environment, its program at work in our cluster.
"""

import os
import signal
from pathlib import Path


def supervisord_command(python: str, state: Path) -> list[str]:
    """Returns the command that starts this directory's supervisord, by which `supervisords` finds it again."""
    return [python, "-m", "supervisor.supervisord", "-n", "-c", str(state / "supervisord.conf")]


def supervisords(state: Path) -> set[int]:
    """Returns the pids that run this directory's configuration: none or one."""
    return {pid for pid in _pids() if _is_supervisord(pid, state)}


def children(state: Path) -> set[int]:
    """Returns the pids of what a supervisord of this directory has started, their descendants included."""
    return {pid for pid in _pids() if _is_child(pid, state)}


def environment(pid: int) -> dict[str, str]:
    """Returns what a process was started with; empty where it has ended or is another user's."""
    pairs = (os.fsdecode(field).partition("=") for field in _fields(pid, "environ"))
    return {name: value for name, _, value in pairs if name}


def end(pid: int, state: Path, number: signal.Signals) -> None:
    """Signals a process that `supervisords` or `children` returned, if it still is one.

    PostgreSQL gets its fast shutdown for TERM, which it would take as: when the clients have gone.
    """
    try:
        descriptor = os.pidfd_open(pid)  # what the check and the signal both mean, whoever has the number by then
    except ProcessLookupError:
        return
    try:
        if _is_supervisord(pid, state) or _is_child(pid, state):
            is_fast = number == signal.SIGTERM and _program(pid) == "postgres"
            signal.pidfd_send_signal(descriptor, signal.SIGINT if is_fast else number)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _is_supervisord(pid: int, state: Path) -> bool:
    return _fields(pid, "cmdline")[1:] == [os.fsencode(word) for word in supervisord_command("", state)][1:]


def _is_child(pid: int, state: Path) -> bool:
    if b"SUPERVISOR_SERVER_URL=unix://" + os.fsencode(state / "supervisor.sock") in _fields(pid, "environ"):
        return True
    return _program(pid) == "postgres" and _link(pid, "cwd") == str(state / "postgres")


def _program(pid: int) -> str:
    return Path(_link(pid, "exe").removesuffix(" (deleted)")).name


def _fields(pid: int, file: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:  # it has ended, or is another user's
        return []


def _link(pid: int, name: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/{name}")
    except OSError:
        return ""
