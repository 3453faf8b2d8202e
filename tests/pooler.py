"""A real pgbouncer before a database, by transaction unless it is told otherwise."""

import os
import shutil
import subprocess
from contextlib import contextmanager
from urllib.parse import urlsplit

from ops import account
from ops.checkup import host_facts
from tests.conftest import pick_port
from tests.journal import until
from tests.machine import missing


@contextmanager
def pooled(directory, url, *lines, password=None):
    """Runs a pgbouncer by transaction before the database, and yields its URL.

    Args:
        lines: Of its configuration; later ones win.
        password: With which it logs in to PostgreSQL; None: the right one.
    """
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        missing("pgbouncer")
    parts, port = urlsplit(url), pick_port()
    (directory / "users").write_text(f'"{parts.username}" "{password or parts.password}"\n')
    config = directory / "pgbouncer.ini"
    config.write_text("\n".join([
        "[databases]", f"* = host=127.0.0.1 port={parts.port}", "[pgbouncer]", "pool_mode = transaction",
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =", "auth_type = trust",
        f"auth_file = {directory}/users", *lines,
    ]))
    for path in (directory, *directory.iterdir()):
        path.chmod(0o755)
    user = ["-u", account.owner().pw_name] if os.geteuid() == 0 else []
    with subprocess.Popen([program, *user, config], stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: host_facts.listeners(port), "pgbouncer")
            yield f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}"
        finally:
            process.terminate()
