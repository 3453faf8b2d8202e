"""The directory in which the processes of one host share their metrics: in memory, wiped before they start.

Never on the disk of the WAL: the files are mapped, and a full disk would kill their writers with SIGBUS.
"""

import hashlib
import shutil
from pathlib import Path


def path(state: Path) -> Path:
    """Returns the directory that belongs to this data directory alone."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        return state / "run" / "metrics"
    return memory / f"spillway-{hashlib.sha256(bytes(state)).hexdigest()[:16]}"


def wipe(directory: Path) -> None:
    """Makes it, empty; only while no process of ours runs."""
    remove(directory)
    directory.mkdir(mode=0o700, parents=True)


def remove(directory: Path) -> None:
    """Removes it with what it holds."""
    shutil.rmtree(directory, ignore_errors=True)
