"""The embedded PostgreSQL: its cluster, role, configuration and command."""

import os
import shutil
import subprocess
from pathlib import Path

from app.errors import SettingError
from ops import account, binary, secret

_NAME = "spillway"  # of the role and of the database

# Beside the defaults that initdb has chosen for this machine, for a table that is only loaded: room between
# checkpoints, whose full-page images are most of the log otherwise.
_CONFIG = """\
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
fsync = on
synchronous_commit = on
full_page_writes = on
shared_buffers = 256MB
max_wal_size = 4GB
checkpoint_timeout = 15min
wal_compression = on
log_destination = 'stderr'
logging_collector = off
"""


class PostgresServer:
    """A PostgreSQL of our own, whose role `spillway` owns the database of that name and may create others.

    Args:
        state: The data directory; the cluster lies in `postgres/` below it.
        port: Its port on loopback.
        chosen: `SPILLWAY_POSTGRES_BIN`; empty: the newest programs that can open the cluster.
    """

    def __init__(self, state: Path, port: int, chosen: str = "") -> None:
        self.cluster = state / "postgres"
        self.port = port
        self._chosen = chosen
        self._password = state / "postgres.password"

    @property
    def url(self) -> str:
        """The URL with its password, for libpq."""
        return f"postgresql://{_NAME}:{secret.password(self._password)}@127.0.0.1:{self.port}/{_NAME}"

    def prepare(self) -> list[str]:
        """Makes the cluster if there is none, and returns the command that serves it in the foreground.

        Raises:
            SettingError: No program was found that can open the cluster, or it cannot be reached.
        """
        self.cluster.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        programs = binary.postgres(self._major(), self._chosen)
        if self._major() is None:
            self._create(programs)
        self._configure(self.cluster)
        program = programs / "postgres"
        return [*account.prefix(self.cluster, program), str(program), "-D", str(self.cluster)]

    def _major(self) -> int | None:
        version = self.cluster / "PG_VERSION"
        return int(version.read_text().split(".")[0]) if version.exists() else None

    def _create(self, programs: Path) -> None:
        # Under another name until it is whole: a start that was cut short begins anew.
        draft = self.cluster.with_name("postgres.new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        account.give(draft)
        prefix = account.prefix(draft, programs / "initdb")
        password = secret.password(self._password)
        _run([
            *prefix, str(programs / "initdb"), f"--pgdata={draft}", "--username=postgres", "--auth=reject",
            "--encoding=UTF8", "--locale=C", "--data-checksums",
        ], "")
        (draft / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        with (draft / "postgresql.conf").open("a") as file:
            file.write("include_if_exists = 'spillway.conf'\n")
        self._configure(draft)
        _run([*prefix, str(programs / "postgres"), "--single", "-D", str(draft), "postgres"], (
            f"ALTER ROLE postgres PASSWORD '{password}'\n"
            f"CREATE ROLE {_NAME} LOGIN CREATEDB PASSWORD '{password}'\n"
            f"GRANT pg_monitor TO {_NAME}\n"
            f"CREATE DATABASE {_NAME} OWNER {_NAME}\n"
        ))
        draft.rename(self.cluster)

    def _configure(self, cluster: Path) -> None:
        path = cluster / "spillway.conf"
        secret.write(path, _CONFIG.format(port=self.port))
        account.give(path)


def _run(command: list[str], stdin: str) -> None:
    # No locale of the caller's, which the server's build may not know; a directory that every account can enter.
    environment = os.environ | {"LC_ALL": "C"}
    run = subprocess.run(command, input=stdin, text=True, capture_output=True, cwd="/", env=environment)
    # A failed statement does not end single-user mode with an error.
    errors = [line for line in run.stderr.splitlines() if "ERROR:" in line or "FATAL:" in line or "error:" in line]
    if run.returncode or errors:
        reason = "; ".join(errors) or run.stderr
        raise SettingError(f"DATABASE_URL is not set and PostgreSQL could not be set up: {reason}")
