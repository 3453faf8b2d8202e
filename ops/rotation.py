"""The program `logs`: keeps the log files of a data directory within bounds. `python -m ops.rotation` runs it.

Every program appends to its log itself (`ops/supervisor_config.py`), and most of them, Redis and PostgreSQL among them,
would not open another file when theirs is renamed. So the file stays: its older part is copied to `<name>.log.1`, and
then taken out of it by the file system, while its writers append on (FALLOC_FL_COLLAPSE_RANGE: ext4, xfs, and overlay
over them). Nobody waits, and no line is lost; one may begin in the one file and end in the other.

Elsewhere (tmpfs, btrfs, zfs) the file is cut to nothing when all of it is copied, and a line that is written in between
may be lost, which its first lines then say.
"""

import ctypes
import errno
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import IO

from app import log
from app.errors import SettingError
from app.settings import Settings

logger = logging.getLogger(__name__)

_EVERY_S = 2.0
_COLLAPSE = 0x08
_PIECE_BYTES = 1 << 20
_CANNOT = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NOTE = b"log_cut why=\"this file system takes nothing out of a file: lines written at this moment may be lost\"\n"
_OWN = "supervisord.log"  # supervisord rotates it itself


class Rotation:
    """Keeps every `*.log` of one directory below a size, and one older part of each beside it.

    Args:
        directory: Where the logs lie.
        max_bytes: The size from which on a log is cut. What is written between two rounds comes on top.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._failed: set[str] = set()

    def step(self) -> int:
        """Cuts the logs that are too large, and returns how many those were."""
        cut_count = 0
        for path in sorted(self._directory.glob("*.log")):
            if path.name == _OWN:
                continue
            try:
                cut_count += self._cut(path)
                self._failed.discard(path.name)
            except OSError as error:
                # Once for each, until it goes well again: the disk may be full.
                if path.name not in self._failed:
                    logger.error(log.line("log_not_rotated", file=path.name, detail=error))
                self._failed.add(path.name)
        return cut_count

    def run(self, stop: threading.Event) -> None:
        """Repeats `step` until `stop` is set."""
        while not stop.is_set():
            self.step()
            stop.wait(_EVERY_S)

    def _cut(self, path: Path) -> bool:
        size = path.stat().st_size
        if size <= self._max_bytes:
            return False
        with path.open("r+b") as file:
            fd = file.fileno()
            # By whole blocks, and not up to the end, as the file system wants it.
            block = os.fstatvfs(fd).f_bsize
            older = (size - 1) // block * block
            is_kept = self._keep(fd, older, path)
            # Killed here, it is done again, and the older part stands in both files meanwhile.
            if not _collapse(fd, older):
                _truncate(fd, older if is_kept else sys.maxsize, path)
        return True

    def _keep(self, fd: int, count: int, path: Path) -> bool:
        """Copies the first bytes of a log beside it; without room for that they go, since the data need what is left.
        """
        draft = path.with_name(f"{path.name}.part")
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                _copy(fd, 0, count, file)
        except OSError as error:
            draft.unlink(missing_ok=True)
            if error.errno not in _NO_ROOM:
                raise
            logger.error(log.line("log_part_dropped", file=path.name, bytes=count, why=error.strerror))
            return False
        draft.replace(_older(path))
        return True


def _older(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _copy(fd: int, start: int, stop: int, target: IO[bytes]) -> int:
    """Copies what is between the offsets, as far as the file goes; returns where that ended."""
    while start < stop and (piece := os.pread(fd, min(_PIECE_BYTES, stop - start), start)):
        target.write(piece)
        start += len(piece)
    return start


def _collapse(fd: int, count: int) -> bool:
    """Takes the first bytes out of the file; returns False where the file system cannot."""
    # Python's own fallocate takes no mode.
    call = ctypes.CDLL(None, use_errno=True).fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if not count:
        return False
    if call(fd, _COLLAPSE, 0, count) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number))


def _truncate(fd: int, start: int, path: Path) -> None:
    """Copies what follows, too, and cuts the file to nothing at once when no more comes."""
    with _older(path).open("ab", buffering=0) as older:
        while (end := _copy(fd, start, sys.maxsize, older)) > start:
            start = end
        os.ftruncate(fd, 0)
    with path.open("ab", buffering=0) as file:
        file.write(_NOTE)


def main() -> int:
    """Runs until SIGTERM or SIGINT."""
    try:
        settings = Settings.from_env(os.environ)
    except SettingError as error:
        print(f"logs: {error}", file=sys.stderr)
        return os.EX_CONFIG
    log.setup("logs", settings.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    Rotation(settings.state / "log", settings.log_max_bytes).run(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
