"""The files through which the processes of one host share their metrics, and what must hold for them.

Standard library alone: a process comes here before it imports prometheus_client, which opens its files on import and
ends the process where the directory is gone, or, where the disk is full, has it killed by SIGBUS.
"""

import fcntl
import json
import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from app import log

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

KINDS = ("counter", "histogram", "gauge_max", "gauge_mostrecent", "gauge_livemax")  # all that our metrics are of
_LIFE = "counter"  # the kind whose file a living process holds locked
_FILE_BYTES = 1 << 16  # of a new file of prometheus_client, which no process of ours outgrows
_MANIFEST = "folded.json"


class Manifest(NamedTuple):
    """What is folded.

    Attributes:
        number: Of the files that hold what ended processes have counted; those of other numbers count for nothing.
        names: Files that are in there, and count no more.
    """

    number: int = 0
    names: tuple[str, ...] = ()


def prepare(environ: MutableMapping[str, str]) -> None:
    """Makes what this process needs to share its metrics: at its start, as the directory may be gone by then, and with
    all its room. Where that cannot be, the process runs, and keeps them to itself.
    """
    if VARIABLE not in environ:
        return
    directory = Path(environ[VARIABLE])
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(directory):
            settle(directory)  # A process that had our number may be in there.
            for kind in KINDS:
                descriptor = os.open(directory / f"{kind}_{os.getpid()}.db", os.O_RDWR | os.O_CREAT, 0o600)
                os.posix_fallocate(descriptor, 0, _FILE_BYTES)
                if kind == _LIFE:
                    fcntl.flock(descriptor, fcntl.LOCK_SH)  # until the process ends, however it does
                else:
                    os.close(descriptor)
    except OSError as error:
        print(log.line("metrics_not_shared", directory=directory, error=error), file=sys.stderr)
        del environ[VARIABLE]


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keeps others from folding, reading or beginning files."""
    with open(directory / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_alive(directory: Path, pid: int) -> bool:
    """Tells whether files of a process may still be written to; also of one that another container cannot see."""
    if os.path.exists(f"/proc/{pid}"):
        return True
    try:
        with open(directory / f"{_LIFE}_{pid}.db", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def manifest(directory: Path) -> Manifest:
    """Returns what is folded; nothing where nobody has."""
    try:
        number, names = json.loads((directory / _MANIFEST).read_text())
    except FileNotFoundError:
        return Manifest()
    return Manifest(number, tuple(names))


def publish(directory: Path, found: Manifest) -> None:
    """Has everybody see it, all at once."""
    draft = directory / f"{_MANIFEST}.new"
    draft.write_text(json.dumps(found))
    draft.rename(directory / _MANIFEST)


def settle(directory: Path) -> Manifest:
    """Removes what is folded, which whoever has folded it may not have come to; under the lock."""
    found = manifest(directory)
    if found.names:
        for name in found.names:
            (directory / name).unlink(missing_ok=True)
        found = Manifest(found.number)
        publish(directory, found)
    return found
