"""A file system whose power can be cut: a small ext4 on a loop device. It needs root, mkfs.ext4 and mount."""

import fcntl
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType

from ops.errors import ChaosFailed

# Source: include/uapi/linux/ext4.h: _IOR('X', 125, __u32), and the flag that leaves the journal as it is on the device.
_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2

# Nothing is done later in the background, where it would be counted as what is written to it.
_MKFS = "mkfs.ext4 -q -F -b 4096 -m 0 -J size=4 -N 1024 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0".split()
TOOLS = (_MKFS[0], "mount", "umount")


class Ext4:
    """It is there while its context is.

    Its journal is not committed by time: that would hide a sync that is missing.

    Args:
        place: A directory for the image and the mount point.
        size_bytes: Of the image.

    Attributes:
        root: Where it is mounted.
    """

    def __init__(self, place: Path, size_bytes: int) -> None:
        self.root = place / "ext4"
        self._image = place / "image"
        self._size_bytes = size_bytes

    def __enter__(self) -> "Ext4":
        """Raises `ChaosFailed` where this machine does not let us."""
        try:
            self.root.mkdir()
            self._allocate()
            subprocess.run([*_MKFS, self._image], check=True)
            self._allocate()  # mkfs leaves holes where it writes zeros
            done = self._mount()
        except (OSError, subprocess.CalledProcessError) as error:
            raise ChaosFailed(f"no file system could be made: {error}") from error
        if done.returncode:
            raise ChaosFailed(f"a loop device may not be mounted here: {done.stderr.decode().strip()}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        if self.root.is_mount():
            unmount(self.root)

    def cut(self) -> tuple[int, int]:
        """Cuts the power. Returns the moments before and after, on the monotonic clock in nanoseconds."""
        began_at = time.monotonic_ns()
        cut_power(self.root)
        return began_at, time.monotonic_ns()

    def has_rebooted(self) -> bool:
        """Mounts it anew, unless anybody has a file open; returns whether it did.

        Raises:
            ChaosFailed: Somebody has another mount of it.
        """
        if subprocess.run(["umount", self.root], stderr=subprocess.DEVNULL).returncode:
            return False
        self._mount().check_returncode()
        try:
            os.listdir(self.root)
        except OSError as error:
            raise ChaosFailed(f"{self.root} did not come back ({error}): another mount namespace has it mounted too, "
                              "such as that of a container that was started meanwhile") from error
        return True

    def reboot(self) -> None:
        """Mounts it anew, from what is on the device.

        Raises:
            ChaosFailed: Somebody has a file open, or another mount of it.
        """
        if not self.has_rebooted():
            raise ChaosFailed(f"{self.root} is in use")

    def _allocate(self) -> None:
        with self._image.open("ab") as image:
            os.posix_fallocate(image.fileno(), 0, self._size_bytes)

    def _mount(self) -> "subprocess.CompletedProcess[bytes]":
        # `loop` frees the device by itself when it is unmounted.
        return subprocess.run(["mount", "-o", "loop,commit=1000", self._image, self.root], capture_output=True)


def cut_power(directory: Path) -> None:
    """Shuts the ext4 of a directory down: what is not on its device now is lost, and all that follows fails."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, _NO_LOG_FLUSH.to_bytes(4, "little"))
    finally:
        os.close(descriptor)


def unmount(place: Path) -> None:
    """Takes a file system away, also from under those who still use it."""
    if subprocess.run(["umount", place], stderr=subprocess.DEVNULL).returncode:
        subprocess.run(["umount", "-l", place], check=True)
