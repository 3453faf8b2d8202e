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

from ops.chaos import disk
from ops.errors import ChaosFailed

# What every dice-throwing test prints; with the same WAL_SEED it throws the same.
SEED = int(os.environ.get("WAL_SEED") or time.time_ns() % 10**9)
IMAGE_BYTES = 16 << 20  # the smallest that has room for a journal and some segments

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
        disk.unmount(place)


class Ext4(disk.Ext4):
    """A small one, which tells what is written to its device."""

    def __init__(self, place):
        super().__init__(place, IMAGE_BYTES)

    def __enter__(self):
        needs(*disk.TOOLS)
        try:
            return super().__enter__()
        except ChaosFailed as error:
            missing(f"a container that may mount a loop device ({error})")

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


@contextmanager
def frozen(directory):
    """Stops a file system from here to the end: what would change it hangs in the kernel."""
    needs("fsfreeze")
    subprocess.run(["fsfreeze", "--freeze", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", directory], check=True)
