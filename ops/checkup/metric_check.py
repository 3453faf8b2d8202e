"""Judges whether anybody sees what the processes count: their files are mapped, and may be gone while they are."""

from collections.abc import Iterable
from pathlib import Path

from ops.checkup.finding import Finding, bad, ok, warn

_NAME = "metrics"
_LOGIND = Path("/run/systemd/system")
_FIRST_USER = 1000  # systemd leaves what belongs to users of the system alone


def shared(directory: Path, pids: Iterable[int], uid: int, logind: Path = _LOGIND) -> Finding:
    """Judges the files of running processes.

    Args:
        directory: Where they lie.
        pids: The processes, ours or not.
        uid: Whom they run as.
        logind: There where systemd is what runs this machine.
    """
    lost = [pid for pid in sorted(pids) if _has_lost(directory, pid)]
    if lost:
        return bad(_NAME, f"the files of {len(lost)} processes are no longer in {directory}", "nobody sees what they "
                   "count, alerts included", "supervisorctl -c <supervisor_config of `spillway status`> restart all; "
                   "find what removed them")
    if uid >= _FIRST_USER and logind.is_dir() and str(directory).startswith("/dev/shm/"):
        return warn(_NAME, f"{directory} of user {uid}", "systemd removes what a user has there when the last session "
                    "ends (RemoveIPC)", "loginctl enable-linger, RemoveIPC=no in logind.conf, or run as a system user")
    return ok(_NAME, f"shared in {directory}")


def _has_lost(directory: Path, pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:  # It has just ended, or is not ours to look at.
        return False
    return any(f" {directory}/" in line and line.endswith(" (deleted)") for line in lines)
