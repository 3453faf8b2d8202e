"""The unprivileged account that PostgreSQL runs under when we are root, since it refuses to run as root.

Its files may lie below a directory that this account cannot enter (`/root`, `mktemp -d`). Then it is given one
capability, to pass and read what is closed to it, and where the container withholds that one, the next wider.
"""

import os
import pwd
import subprocess
from collections.abc import Sequence
from pathlib import Path

from app.errors import SettingError

_CAPABILITIES = (None, "dac_read_search", "dac_override")


def owner() -> pwd.struct_passwd:
    """Returns whom root lets run the server and own its files: `postgres`, or else `nobody`."""
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def give(path: Path) -> None:
    """Makes the account the owner of a file or directory that we have made."""
    if os.geteuid() == 0:
        # The directory may be the account's already: a link that it has put there is not followed.
        os.chown(path, owner().pw_uid, owner().pw_gid, follow_symlinks=False)


def prefix(directory: Path, binary: Path) -> list[str]:
    """Returns the command to put before one that must run as `owner()`; empty when that is us.

    Args:
        directory: What it must be able to enter, owned by it.
        binary: What it must be able to run.

    Raises:
        SettingError: No capability that we may pass on lets the account reach both.
    """
    if os.geteuid() != 0:
        return []
    for capability in _CAPABILITIES:
        command = _setpriv(owner(), capability)
        if _is_enough(command, directory, binary):
            return command
    raise SettingError(
        f"SPILLWAY_DATA_DIR={str(directory.parent)!r} is not allowed: under root PostgreSQL runs as "
        f"{owner().pw_name!r}, which cannot reach {directory} and {binary}. Move the one that lies below a closed "
        "directory, run as another user, or set DATABASE_URL"
    )


def _setpriv(user: pwd.struct_passwd, capability: str | None) -> list[str]:
    ids = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    if capability is None:
        return ids
    # access(2), with which PostgreSQL looks for its own binaries, drops the capabilities of a non-root user unless
    # no_setuid_fixup is set.
    bits = ["--securebits=+no_setuid_fixup", f"--inh-caps=+{capability}", f"--ambient-caps=+{capability}"]
    return ids + bits


def _is_enough(command: Sequence[str], directory: Path, binary: Path) -> bool:
    probe = 'cd "$0" && test -w . && exec "$1" --version'
    run = subprocess.run(
        [*command, "/bin/sh", "-c", probe, directory, binary],
        cwd="/",  # ours may be one that the account cannot enter
        env=os.environ | {"LC_ALL": "C"},
        capture_output=True,
    )
    # It runs, and then cannot find itself, where access(2) sees less than exec.
    return run.returncode == 0 and b"invalid binary" not in run.stderr
