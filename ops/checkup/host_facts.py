"""What can be seen of this machine: limits, clock, memory and who listens where."""

import ctypes
import os
import re
import resource
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import msgspec

_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronized
_LISTEN = "0A"


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """This machine; None is what it does not show.

    Attributes:
        file_limit: Soft limit of open files: of the running ingest, or else ours.
        memory_bytes: What the machine, or our control group, has.
        huge_pages: `always`, `madvise` or `never`.
        shm_free_bytes: Room in `/dev/shm`; None: there is none.
        is_clock_synced: Whether the kernel says that somebody keeps the clock.
        is_autogrouped: Whether the scheduler shares CPU among sessions first, as it does with processes that are in no
            control group of their own for CPU.
    """

    file_limit: int = 1024
    memory_bytes: int | None = None
    overcommit: int | None = None
    huge_pages: str | None = None
    somaxconn: int | None = None
    shm_free_bytes: int | None = None
    is_clock_synced: bool | None = None
    is_autogrouped: bool = False


def observe(pid: int | None) -> HostFacts:
    """Looks at the machine.

    Args:
        pid: The running ingest.
    """
    return HostFacts(
        file_limit=_file_limit(pid),
        memory_bytes=_memory_bytes(),
        overcommit=_number("/proc/sys/vm/overcommit_memory"),
        huge_pages=_huge_pages(),
        somaxconn=_number("/proc/sys/net/core/somaxconn"),
        shm_free_bytes=_shm_free_bytes(),
        is_clock_synced=_is_clock_synced(),
        is_autogrouped=is_autogrouped(pid),
    )


def is_autogrouped(pid: int | None) -> bool:
    """Tells whether the scheduler groups a process, or ours, by its session.

    Source: sched(7), "The autogroup feature".
    """
    return bool(_number("/proc/sys/kernel/sched_autogroup_enabled")) and not has_cpu_group(
        _text(f"/proc/{pid or 'self'}/cgroup") or "", Path("/sys/fs/cgroup"))


def has_cpu_group(membership: str, root: Path) -> bool:
    """Tells whether a process is in a control group that CPU is given to.

    Args:
        membership: Its `/proc/<pid>/cgroup`.
        root: Where the unified hierarchy is mounted.

    Source: cgroups(7), "/proc/[pid]/cgroup"; the kernel's "Control Group v2", "cpu.weight".
    """
    paths = {name: path for line in membership.splitlines()
             for _, names, path in [line.split(":", 2)] for name in names.split(",")}
    if "cpu" in paths:
        return paths["cpu"] != "/"
    place = root / paths.get("", "/").strip("/")
    # The first of all has no weight; within a container what looks like that has one.
    return any((one / "cpu.weight").exists() for one in (place, *place.parents))


def listeners(port: int) -> list[str]:
    """Returns the addresses on which somebody of this machine, or of our container, listens on a TCP port."""
    found = {str(address) for table in ("tcp", "tcp6") for address, number in _listening(table) if number == port}
    return sorted(found)


def _listening(table: str) -> Iterator[tuple[IPv4Address | IPv6Address, int]]:
    for line in (_text(f"/proc/net/{table}") or "").splitlines()[1:]:
        fields = line.split()
        if fields[3] != _LISTEN:
            continue
        address, _, port = fields[1].rpartition(":")
        # 32-bit words, each in the machine's order.
        words = b"".join(socket.htonl(int(address[at:at + 8], 16)).to_bytes(4, "big") if _IS_LITTLE
                         else bytes.fromhex(address[at:at + 8]) for at in range(0, len(address), 8))
        yield (IPv4Address(words) if len(words) == 4 else IPv6Address(words)), int(port, 16)


_IS_LITTLE = socket.htonl(1) != 1


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None


def _number(path: str) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if text.isdecimal() else None


def _file_limit(pid: int | None) -> int:
    found = re.search(r"^Max open files +(\d+)", _text(f"/proc/{pid}/limits") or "", re.MULTILINE) if pid else None
    return int(found[1]) if found else resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _memory_bytes() -> int | None:
    found = [_number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory/memory.limit_in_bytes")]
    if match := re.search(r"^MemTotal: +(\d+) kB", _text("/proc/meminfo") or "", re.MULTILINE):
        found.append(int(match[1]) << 10)
    return min((one for one in found if one), default=None)


def _huge_pages() -> str | None:
    found = re.search(r"\[(\w+)\]", _text("/sys/kernel/mm/transparent_hugepage/enabled") or "")
    return found[1] if found else None


def _shm_free_bytes() -> int | None:
    try:
        room = os.statvfs("/dev/shm")
    except OSError:
        return None
    return room.f_bavail * room.f_frsize


def _is_clock_synced() -> bool | None:
    """Asks the kernel, which knows it from whoever keeps the clock."""
    try:
        state = int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)))  # zeros: it only reads
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR
