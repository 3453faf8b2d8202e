"""What tests ask of the machine they run on: its tools, and file systems of their own, one of which can lose its power.
"""

import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.wal_disk import cut_power

# What every dice-throwing test prints; with the same WAL_SEED it throws the same.
SEED = int(os.environ.get("WAL_SEED") or time.time_ns() % 10**9)
IMAGE_BYTES = 16 << 20  # the smallest that has room for a journal and some segments
# Nothing is done later in the background, where it would be counted as what the log writes.
MKFS = "mkfs.ext4 -q -F -b 4096 -m 0 -J size=4 -N 1024 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0".split()

TRACED = "trace=openat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,fsync,fdatasync,msync,write"
CALL = re.compile(r"\d+ +(\w+)\((.*)\) += (-?\d+)")


def missing(what):
    """Skips, where a person may lack a tool; fails in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is needed")
    pytest.skip(f"{what} is needed")


def needs(*tools):
    """Asks for programs, and for root to run them."""
    if os.geteuid() != 0:
        missing(f"root, for {tools[0]},")
    for tool in tools:
        if not shutil.which(tool):
            missing(tool)


def strace(trace):
    """Returns the words that run a command and write to `trace` by which calls it changed and synced files."""
    if not shutil.which("strace"):
        missing("strace")
    return "strace", "-f", "-y", "-s", "300", "-e", TRACED, "-o", trace


@contextmanager
def injected(pid, fault):
    """Injects a fault into a process's system calls, as strace's `-e inject=` takes it, from here to the end."""
    if not shutil.which("strace"):
        missing("strace")
    call = fault.partition(":")[0]
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(pid), "-e", f"trace={call}", "-e", f"inject={fault}"],
        stderr=subprocess.PIPE, text=True,
    )
    try:
        line = tracer.stderr.readline()
        if "attached" not in line:
            missing(f"a container in which strace may attach ({line.strip()})")
        yield
    finally:
        tracer.terminate()
        tracer.communicate(timeout=30)


def calls(trace):
    """Yields the system calls that succeeded: name, arguments, and the line."""
    for line in trace.read_text().splitlines():
        found = CALL.match(line)
        if found and not found[3].startswith("-"):
            yield found[1], found[2], line


def unmount(place):
    """Takes a file system away, also from under those who still use it."""
    if subprocess.run(["umount", place], stderr=subprocess.DEVNULL).returncode:
        subprocess.run(["umount", "-l", place], check=True)


@contextmanager
def tmpfs(place, size):
    """A file system in memory of that size, as `mount` spells it."""
    needs("mount", "umount")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "wal-test", place], capture_output=True)
    if done.returncode:
        missing(f"a container that may mount ({done.stderr.decode().strip()})")
    try:
        yield place
    finally:
        unmount(place)


class Ext4:
    """A small ext4 on a loop device, whose power can be cut. It is there while its context is.

    Its journal is not committed by time: that would hide a sync that is missing.

    Args:
        place: A directory for the image and the mount point.

    Attributes:
        root: Where it is mounted.
    """

    def __init__(self, place):
        self.root = place / "ext4"
        self._image = place / "image"

    def __enter__(self):
        needs(MKFS[0], "mount", "umount")
        self.root.mkdir()
        self._allocate()
        subprocess.run([*MKFS, self._image], check=True)
        self._allocate()  # mkfs leaves holes where it writes zeros
        done = self._mount()
        if done.returncode:
            missing(f"a container that may mount a loop device ({done.stderr.decode().strip()})")
        return self

    def __exit__(self, *_):
        if self.root.is_mount():
            unmount(self.root)

    def cut(self):
        """Cuts the power. Returns the moments before and after, on the monotonic clock in nanoseconds."""
        began_at = time.monotonic_ns()
        cut_power(self.root)
        return began_at, time.monotonic_ns()

    def reboot(self):
        """Mounts it anew, from what is on the device. Fails while anybody has a file open."""
        subprocess.run(["umount", self.root], check=True)
        self._mount().check_returncode()

    def punch_free_blocks(self):
        """Gives the blocks that it does not use back to the file system of its image."""
        # The loop driver takes a short write for a success: a request must not span an old block and a hole.
        (self._device / "queue/max_sectors_kb").write_text("4")
        subprocess.run(["fstrim", self.root], check=True)

    @property
    def written_bytes(self):
        """What was written to the device so far."""
        return int((self._device / "stat").read_text().split()[6]) * 512

    @property
    def _device(self):
        number = self.root.stat().st_dev
        return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")

    def _allocate(self):
        with self._image.open("ab") as image:
            os.posix_fallocate(image.fileno(), 0, IMAGE_BYTES)

    def _mount(self):
        # `loop` frees the device by itself when it is unmounted.
        return subprocess.run(["mount", "-o", "loop,commit=1000", self._image, self.root], capture_output=True)
