"""What can be seen of a directory and of the file system that it lies on."""

import os
import re
import stat
from pathlib import Path

import msgspec


class DirectoryFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A directory; where there is none yet, the nearest one above it, in which it would be made.

    Attributes:
        path: What was asked for.
        exists: Whether it is there itself.
        kind: Of the file system: `ext4`, `tmpfs`, …; empty where the system does not say.
        options: The mount's.
        free_inodes: None where the file system counts none.
        is_writable: Whether we may write there.
        is_ours: Whether it is root's or of the account that runs the service.
    """

    path: str
    exists: bool = True
    kind: str = "ext4"
    options: list[str] = []
    device: int = 1
    free_bytes: int = 1 << 40
    total_bytes: int = 1 << 41
    free_inodes: int | None = None
    mode: int = 0o700
    owner: int = 0
    is_writable: bool = True
    is_ours: bool = True


class FileFacts(msgspec.Struct, frozen=True):
    """A file that holds a secret."""

    path: str
    mode: int
    owner: int


def observe(path: Path, uid: int) -> DirectoryFacts:
    """Looks at a directory, which the account `uid` uses; 0 may use anybody's."""
    place = path
    while not place.is_dir():
        place = place.parent
    state, room = place.stat(), os.statvfs(place)
    kind, options = _mount(place.resolve())
    return DirectoryFacts(
        path=str(path), exists=place == path, kind=kind, options=options, device=state.st_dev,
        free_bytes=room.f_bavail * room.f_frsize, total_bytes=room.f_blocks * room.f_frsize,
        free_inodes=room.f_favail if room.f_files else None,
        mode=stat.S_IMODE(state.st_mode), owner=state.st_uid, is_writable=os.access(place, os.W_OK | os.X_OK),
        is_ours=state.st_uid in (0, uid) or uid == 0,
    )


def secrets(state: Path) -> list[FileFacts]:
    """Returns the files of a data directory that hold passwords, or lead to the processes."""
    names = ("stack.json", "supervisord.conf", "supervisor.sock", "postgres.password", "redis/password",
             "redis/redis.conf")
    found = []
    for name in names:
        try:
            one = (state / name).stat()
        except OSError:  # It is not there, or not ours to see, which is what we want to know of others.
            continue
        found.append(FileFacts(name, stat.S_IMODE(one.st_mode), one.st_uid))
    return found


def _mount(path: Path) -> tuple[str, list[str]]:
    """Returns the kind and the options of the mount that a path lies on: the last one of the deepest."""
    best, found = "", ("", [""])
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return "", []
    for line in lines:
        head, _, tail = line.partition(" - ")
        fields, (kind, _, own) = head.split(" "), tail.split(" ")[:3]
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[4])
        if path.is_relative_to(point) and len(point) >= len(best):
            best, found = point, (kind, sorted({*fields[5].split(","), *own.split(",")}))
    return found
