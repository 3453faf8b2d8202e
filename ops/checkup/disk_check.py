"""Judges where the WAL and the data directory lie: whether what is synced there stays, how much fits, and who reads it.
"""

from collections.abc import Iterator, Mapping

from app.settings import Settings
from ops.checkup.disk_facts import DirectoryFacts, FileFacts
from ops.checkup.finding import Finding, bad, ok, size, unknown, warn

_MEMORY = {"tmpfs", "ramfs"}
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "afs", "gfs2", "ocfs2"}
_NETWORK_FUSE = {"fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.mount-s3"}
_MIN_INODES = 1000


def check(
    wal: DirectoryFacts, state: DirectoryFacts, used_bytes: int, settings: Settings, is_embedded: bool
) -> Iterator[Finding]:
    """Yields a finding for each check.

    Args:
        wal, state: `SPILLWAY_WAL_DIR` and `SPILLWAY_DATA_DIR`.
        used_bytes: What segments and drafts take already.
        settings: Those of the stack.
        is_embedded: Whether Redis and PostgreSQL lie in the data directory too.
    """
    yield durability(wal, is_embedded)
    yield room(wal, used_bytes, settings)
    yield inodes(wal)
    yield access("wal permissions", wal, "SPILLWAY_WAL_DIR")
    yield data(state)
    yield access("data permissions", state, "SPILLWAY_DATA_DIR")


def durability(wal: DirectoryFacts, is_embedded: bool) -> Finding:
    """Judges what a sync is worth there."""
    name = "wal disk"
    seen = f"{wal.kind or 'unknown file system'} under {wal.path}"
    move = "set SPILLWAY_WAL_DIR to a directory on a local disk (in a container: a volume)"
    if wal.kind in _MEMORY:
        return bad(name, seen, "it is memory: what is acknowledged from the WAL is gone when this host restarts", move)
    if wal.kind in _NETWORK | _NETWORK_FUSE:
        return bad(name, seen, "a mapped file on a network file system can lose what was synced, and locks may not "
                   "hold across hosts", move)
    if wal.kind == "overlay" and "volatile" in wal.options:
        return bad(name, f"{seen}, mounted volatile", "syncing does nothing there", move)
    if wal.kind == "overlay":
        why = "it goes with its container: what is acknowledged from the WAL is lost when that is replaced"
        # A trial whose servers are in the same container has nothing that would outlive it anyway.
        return (warn if is_embedded else bad)(name, seen, why, move)
    if not wal.kind:
        return unknown(name, seen, remedy="findmnt --target <directory> says what it is: it must be a local disk")
    return ok(name, seen)


def room(wal: DirectoryFacts, used_bytes: int, settings: Settings) -> Finding:
    """Judges whether the WAL's bound fits."""
    name = "wal room"
    left = wal.free_bytes - settings.wal_min_free_bytes
    bound = settings.wal_max_bytes - used_bytes
    seen = f"{size(wal.free_bytes)} free, SPILLWAY_WAL_MAX_BYTES {size(settings.wal_max_bytes)}"
    if used_bytes:
        seen += f", {size(used_bytes)} used"
    if left < settings.workers * settings.wal_segment_bytes:
        return bad(name, seen, f"there is no room for a segment a worker ({size(settings.wal_segment_bytes)}) and "
                   "SPILLWAY_WAL_MIN_FREE_BYTES: while Redis is away clients get 503",
                   "make room, or set SPILLWAY_WAL_DIR to another disk")
    if left < bound:
        return warn(name, seen, "an outage of Redis fills the disk before the WAL has met its bound",
                    f"make room, or SPILLWAY_WAL_MAX_BYTES={max(1024, left + used_bytes)}")
    return ok(name, seen)


def inodes(wal: DirectoryFacts) -> Finding:
    """Judges whether files can be made."""
    if wal.free_inodes is None:
        return ok("wal inodes", "not counted there")
    if wal.free_inodes < _MIN_INODES:
        return bad("wal inodes", f"{wal.free_inodes} free", "segments cannot be made, though there is room",
                   f"df -i {wal.path}; remove what has so many small files")
    return ok("wal inodes", f"{wal.free_inodes:,} free")


def access(name: str, place: DirectoryFacts, setting: str) -> Finding:
    """Judges who may write and read there; passing through, as the data directory allows, shows nothing."""
    seen = f"{place.path} mode {place.mode:03o}, owner {place.owner}"
    if not place.exists:
        if not place.is_writable:
            return bad(name, f"{place.path} does not exist, and we may not make it", "nothing starts",
                       f"mkdir -p it as the account that runs Spillway, or move {setting}")
        return ok(name, f"{place.path} does not exist yet; it is made for its owner alone")
    if "ro" in place.options or not place.is_writable:
        return bad(name, f"{seen}, not writable", "nothing can be stored there",
                   f"run as its owner, mount it rw, or move {setting}")
    if not place.is_ours:
        return bad(name, seen, "it belongs to another account, which can remove or replace what was acknowledged",
                   f"chown it to the account that runs Spillway, or move {setting}")
    if place.mode & 0o022:
        return bad(name, seen, "others can remove or replace what was acknowledged", f"chmod go-w {place.path}")
    if place.mode & 0o004:
        return warn(name, seen, "every account of this machine can see what is in it", f"chmod o-r {place.path}")
    return ok(name, seen)


def data(state: DirectoryFacts) -> Finding:
    """Judges where the rest of the state lies."""
    seen = f"{state.kind or 'unknown file system'} under {state.path}"
    if state.kind in _MEMORY:
        return warn("data disk", seen, "embedded servers and passwords are gone when this host restarts",
                    "set SPILLWAY_DATA_DIR to a directory on a disk")
    return ok("data disk", seen)


def neighbours(wal: DirectoryFacts, servers: Mapping[str, int | None]) -> Finding:
    """Judges whether one full disk takes everything at once.

    Args:
        wal: Where the WAL lies.
        servers: The device of each server's data; None: not on this machine, or not to be seen.
    """
    same = [name for name, device in servers.items() if device == wal.device]
    if same:
        return warn("wal neighbours", f"on the same file system as the data of {' and '.join(same)}", "when they fill "
                    "it, what should bridge their outage has no room either",
                    "set SPILLWAY_WAL_DIR to a file system of its own")
    seen = ", ".join(name for name, device in servers.items() if device is None)
    return ok("wal neighbours", f"no server's data{f'; unknown of {seen}' if seen else ''}")


def secrets(files: list[FileFacts]) -> Finding:
    """Judges who may read the passwords."""
    wrong = [one for one in files if one.mode & 0o077]
    if wrong:
        return bad("secrets", ", ".join(f"{one.path} mode {one.mode:03o}" for one in wrong), "others can read the "
                   "passwords of Redis and PostgreSQL, or control the processes",
                   f"chmod go= {' '.join(one.path for one in wrong)} in SPILLWAY_DATA_DIR; and change the passwords")
    return ok("secrets", f"{len(files)} files, for their owner alone" if files else "none yet")
