"""What lies in the directory of an embedded Redis or Valkey, and which servers can read it.

A server takes what it does not know for nothing: it starts empty and takes writes beside full files. So they are looked
at before one is chosen, by the header of the file that a server would read first. Redis 6.2 writes `appendonly.aof`;
from 7 on, and Valkey, a manifest in `appendonlydir` names a base file and what came after it.

Source: rdb.h of Redis and of Valkey; each pair of writer and reader was run (tests/integration/test_redis_takeover.py).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from app.errors import SettingError

_AOF = "appendonly.aof"
_DIRECTORY = "appendonlydir"
# A base file or a dump without a key has 89 bytes.
_EMPTY_BYTES = 128
# RDB version → the first Redis that writes and reads it. One that is not here is a later Redis's.
_REDIS_VERSIONS = {9: (6, 2), 10: (7, 0), 11: (7, 2), 12: (7, 4)}
_LAST_SHARED = 11  # Valkey reads no later one of Redis
_VALKEY_VERSIONS = {80: (9, 0), 81: (9, 2)}
_DIRECTORY_SINCE = (7, 0)

Least = dict[str, tuple[int, int]]


class Files(NamedTuple):
    """The data at hand.

    Attributes:
        path: The file whose beginning tells who wrote it.
        magic: `REDIS`, `VALKEY`, or empty where it begins with a command.
        number: Its RDB version; 0 where it has none.
        is_directory: It is in `appendonlydir`, which Redis before 7 does not look into.
    """

    path: Path
    magic: str
    number: int
    is_directory: bool

    @property
    def readers(self) -> Least:
        """The servers that can read it, each with its first version that can."""
        if self.magic == "VALKEY":
            return {"Valkey": _VALKEY_VERSIONS.get(self.number, max(_VALKEY_VERSIONS.values()))}
        redis = _REDIS_VERSIONS.get(max(self.number, min(_REDIS_VERSIONS)), (8, 0))
        least: Least = {"Redis": max(redis, _DIRECTORY_SINCE) if self.is_directory else redis}
        return {"Valkey": (7, 2), **least} if self.number <= _LAST_SHARED else least

    @property
    def writer(self) -> str:
        """Who wrote it, as far as it tells, e.g. `Redis 7.4 or later`."""
        if self.magic == "VALKEY":
            return f"Valkey {_dotted(self.readers['Valkey'])} or later"
        if not self.number:
            return "Redis 7 or Valkey" if self.is_directory else "Redis 6.2 or earlier"
        if self.number == _LAST_SHARED:
            return "Redis 7.2, or Valkey before 9"
        words = {9: "Redis 6.2 or earlier", 10: "Redis 7.0"}
        return words.get(self.number, f"Redis {_dotted(self.readers['Redis'])} or later")

    def can_be_read_by(self, server: str, version: tuple[int, ...]) -> bool:
        """Tells whether `Redis` or `Valkey` of that version reads it, and does not start empty over it."""
        least = self.readers.get(server)
        return least is not None and version >= least

    def __str__(self) -> str:
        readers = " or ".join(f"{name} from {_dotted(least)} on" for name, least in self.readers.items())
        return f"{self.path}, written by {self.writer}, which {readers} can read"


def find(directory: Path) -> Files | None:
    """Returns what a server would have to read; None: nothing, it may start empty.

    Raises:
        SettingError: There are data that every server would start empty over, or two sets of them.
    """
    plain, parts = directory / _AOF, directory / _DIRECTORY
    manifest = parts / f"{_AOF}.manifest"
    if not manifest.exists():
        _refuse_lost(directory, parts)
        return _files(plain, False) if _is_full(plain, 0) else None
    base = next(_bases(manifest), None)
    path = manifest if base is None else parts / base
    # Killed while it took over the file of 6.2, a server has named it in the manifest and not moved it yet.
    if base == _AOF and not path.exists():
        return _files(plain, True)
    if _is_full(plain, 0):
        raise SettingError(
            f"REDIS_URL is not set, and two sets of data lie in {directory}: {plain}, written by Redis 6.2, and "
            f"{parts}. A server would read one and hide the other: move one away, start, and load the other from a "
            "SPILLWAY_DATA_DIR of its own"
        )
    return _files(path, True)


def is_taken_over(files: Files, version: tuple[int, ...]) -> bool:
    """Tells whether a server of that version moves the file into a directory: after that, 6.2 cannot read it."""
    return files.path.name == _AOF and files.path.parent.name != _DIRECTORY and version >= _DIRECTORY_SINCE


def _bases(manifest: Path) -> Iterator[str]:
    for line in manifest.read_text(errors="replace").splitlines():
        if found := re.fullmatch(r'file "?([^"]+?)"? seq \d+ type b.*', line):
            yield found[1]


def _refuse_lost(directory: Path, parts: Path) -> None:
    """Refuses what servers do not see: an AOF directory without its manifest, and a dump without an AOF."""
    lost = [path for path in sorted(parts.glob(f"{_AOF}.*"))
            if _is_full(path, 0 if path.name.endswith(".incr.aof") else _EMPTY_BYTES)]
    if lost:
        raise SettingError(
            f"REDIS_URL is not set, and {parts} holds {lost[-1].name} without {_AOF}.manifest: every server would "
            "start empty over it. Put the manifest back from a copy, or write it (ops/REFERENCE.md, Embedded servers)"
        )
    dump = directory / "dump.rdb"
    if _is_full(dump, _EMPTY_BYTES) and not _is_full(directory / _AOF, 0) and not parts.exists():
        raise SettingError(
            f"REDIS_URL is not set, and {dump} lies there without an append-only file: a server would start empty "
            "beside it. Move it away, or have the server that wrote it make the file with CONFIG SET appendonly yes"
        )


def _is_full(path: Path, above: int) -> bool:
    return path.is_file() and path.stat().st_size > above


def _files(path: Path, is_directory: bool) -> Files:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise SettingError(f"REDIS_URL is not set, and the data that {path} should hold cannot be read: "
                           f"{error.strerror}") from error
    found = re.fullmatch(rb"(REDIS|VALKEY)(\d{3,4})", head)
    return Files(path, found[1].decode(), int(found[2]), is_directory) if found else Files(path, "", 0, is_directory)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
