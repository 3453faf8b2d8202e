"""`spillway psql`: the machine's psql, or the embedded server's, on the running stack's database."""

import argparse
import os
import shutil
from pathlib import Path

from psycopg2.extensions import make_dsn, parse_dsn

from app.errors import SettingError
from app.settings import Settings
from ops import binary
from ops.errors import StackFailed
from ops.stack import Stack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `psql`."""
    parser.add_argument("sql", nargs="?", help="run this and return; without it, psql takes commands")


def _program(settings: Settings) -> str:
    """The server's own first: Debian's /usr/bin/psql is a wrapper that may have nothing to run."""
    try:
        beside = binary.postgres(chosen=settings.postgres_bin) / "psql"
    except SettingError:
        beside = Path("psql")
    found = shutil.which(beside) or shutil.which("psql")
    if found is None:
        raise SettingError("psql is not on PATH: install postgresql-client, or use `spillway status --json`'s URL")
    return found


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Becomes psql.

    Raises:
        StackFailed: Nothing runs.
        SettingError: The machine has no psql.
    """
    stack = Stack(settings.state)
    if not stack.is_up():
        raise StackFailed(f"nothing runs in {stack.state}; `spillway up` starts it")
    program = _program(settings)
    command = ["--command", args.sql] if args.sql else []
    url = parse_dsn(stack.facts().database_url)
    # By the environment: anybody may read a command line, and with it the password.
    password = {"PGPASSWORD": url.pop("password")} if "password" in url else {}
    os.execve(program, [program, make_dsn(**url), *command], {**os.environ, **password})
