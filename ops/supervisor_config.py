"""Writes supervisord's configuration: which programs there are, in which order they start and how each is stopped.

Servers start first and stop last. Every program writes to its own log itself, not into a pipe that supervisord would
have to empty: a stopped supervisord must not block what it started. `stdout_logfile` names the same file, for
`supervisorctl tail`; the program `logs` keeps it from growing without bound (`ops/rotation.py`).
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.errors import SettingError
from app.settings import Settings
from ops import program

_MAX_SOCKET_BYTES = 107
_SOCKET_SUFFIX_BYTES = len(".4194304")  # supervisord binds `<socket>.<pid>` first

_HEAD = """\
; Written by `spillway up`, from the environment, at every start.
[unix_http_server]
file=%(here)s/supervisor.sock
chmod=0700

[supervisord]
nodaemon=true
silent=true
pidfile=%(here)s/supervisord.pid
logfile=%(here)s/log/supervisord.log
logfile_maxbytes={log_max_bytes}
logfile_backups=1
directory=%(here)s
{user}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://%(here)s/supervisor.sock
"""

_PROGRAM = """
[program:{name}]
command=/bin/sh -c 'exec "$0" "$@" >>"%(here)s/log/{log}.log" 2>&1' {command}
stdout_logfile=%(here)s/log/{log}.log
stdout_logfile_maxbytes=0
redirect_stderr=true
priority={priority}
autorestart=true
startretries=1000000
startsecs=1
stopsignal={stopsignal}
stopwaitsecs={stopwaitsecs}
stopasgroup={stopasgroup}
killasgroup=true
environment={environment}
"""

_POOL = """\
process_name=consumer-%(process_num)02d
numprocs={count}
"""


@dataclass(frozen=True)
class _Program:
    priority: int
    stopwaitsecs: int  # longer than what the process itself allows for its last work
    stopsignal: str = "TERM"
    stopasgroup: str = "true"


_PROGRAMS = {
    "redis": _Program(10, 60),
    # INT is the fast shutdown, which ends the backends itself; its checkpoint may have to write much.
    "postgres": _Program(20, 120, "INT", "false"),
    "keeper": _Program(25, 10),  # what it is at may be cut short anywhere
    "consumers": _Program(30, 15),  # and the time that a load may take
    "replayer": _Program(35, 30),
    "admin": _Program(40, 30),
    "ingest": _Program(50, 40),
    "logs": _Program(60, 30),
    "watch": _Program(55, 10),
}


def check(state: Path) -> None:
    """Refuses a data directory that supervisord could not work in.

    Raises:
        SettingError: Its path is too long for a Unix socket, or has characters that the configuration cannot carry.
    """
    excess = len(os.fsencode(state / "supervisor.sock")) + _SOCKET_SUFFIX_BYTES - _MAX_SOCKET_BYTES
    if excess > 0:
        raise SettingError(
            f"SPILLWAY_DATA_DIR={str(state)!r} is not allowed: a Unix socket lies in it, whose path has at most "
            f"{_MAX_SOCKET_BYTES} bytes; take one that is {excess} shorter"
        )
    if re.search(r"[\x00-\x1f\"'`$\\;#%]", str(state)):
        raise SettingError(f"SPILLWAY_DATA_DIR={str(state)!r} is not allowed: a path without \" ' ` $ \\ ; # % is")


def render(
    settings: Settings, servers: Mapping[str, Sequence[str]], overrides: Mapping[str, Mapping[str, str]],
) -> str:
    """Returns the configuration.

    Args:
        settings: Those of the stack.
        servers: The embedded servers' commands by program name; one that is not there is somebody else's.
        overrides: By program, what it has in its environment instead of what supervisord has.
    """
    commands = {
        **servers,
        "keeper": program.command("keeper", settings),
        "consumers": program.command("consumer", settings),
        "replayer": program.command("replayer", settings),
        "admin": program.command("admin", settings),
        "ingest": program.command("ingest", settings),
        "logs": program.command("logs", settings),
        "watch": program.command("watch", settings),
    }
    user = "" if os.geteuid() else "user=root\n"
    head = _HEAD.format(user=user, log_max_bytes=settings.log_max_bytes)
    parts = [head, *(_section(name, command, settings, overrides.get(name, {})) for name, command in commands.items())]
    pool = _POOL.format(count=settings.consumers)
    return "".join(part + pool if part.startswith("\n[program:consumers]") else part for part in parts)


def _section(name: str, command: Sequence[str], settings: Settings, override: Mapping[str, str]) -> str:
    extra_s = settings.sink_timeout_s if name == "consumers" else 0
    environment = {key: value.replace("%", "%%") for key, value in override.items()}
    if name == "consumers":
        environment["SPILLWAY_CONSUMER_NAME"] = f"{settings.consumer_name}-%(process_num)02d"
    return _PROGRAM.format(
        name=name,
        log="consumer-%(process_num)02d" if name == "consumers" else name,
        command=shlex.join(command).replace("%", "%%"),
        environment=",".join(f'{key}="{value}"' for key, value in environment.items()),
        **vars(replace(_PROGRAMS[name], stopwaitsecs=_PROGRAMS[name].stopwaitsecs + extra_s)),
    )
