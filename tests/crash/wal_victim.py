"""A real writer process that says which of its numbered records are confirmed, a test's hold on it, and a follower.

Arguments of the process: the root of the log, its own name, bytes of padding, after how many groups it ends (0: never),
and its fault: none, `cut:<number>`, `reorder:<number>:<seed>` or `intrude:<number>`, after those in `tests.wal_disk`.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from tests.wal_disk import CutFiles, IntrudedFiles, ReorderingFiles, writer_at
from wal.errors import WalFull
from wal.file import Files
from wal.reader import SegmentReader, segments

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 30


def labels_of(name, padding, number):
    """Returns the records of a group, which all differ, without their padding."""
    return [f"{name} {number} {index} {padding} ".encode() for index in range(3)]


class Ack(NamedTuple):
    """A group that was confirmed: its number and, on the monotonic clock, when its write began and had returned."""

    number: int
    began_at_ns: int
    acked_at_ns: int


class Victim:
    """A writer process in the hands of a test, killed when its context ends.

    Args:
        before: Words of a command that runs it.
        others: The arguments of the process.

    Attributes:
        process: It.
        errors: What it wrote to its standard error, once it has ended.
    """

    def __init__(self, root, name, padding=200, groups=0, fault="", before=()):
        words = [*before, sys.executable, "-m", "tests.crash.wal_victim", root, name, padding, groups, fault]
        self.process = subprocess.Popen(
            [*map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        self.errors = ""
        self._has_ended = False
        self._name, self._padding, self._said = name, padding, b""
        os.set_blocking(self.process.stdout.fileno(), False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.end()

    def poll(self):
        """Takes what it has said so far. Returns how many groups it has confirmed."""
        while chunk := self.process.stdout.read(1 << 16):
            self._said += chunk
        return self._said.count(b"\n")

    def end(self):
        """Waits for its end, and returns its exit status."""
        if not self._has_ended:
            out, errors = self.process.communicate(timeout=DEADLINE_S)
            self._said += out or b""
            self.errors = errors.decode()
            self._has_ended = True
        return self.process.returncode

    @property
    def acks(self):
        """All groups that it has confirmed."""
        return [Ack(*map(int, line.split())) for line in self._said.splitlines()]

    def confirmed(self, until_ns=sys.maxsize):
        """Returns the labels of what it had confirmed until then."""
        return self._labels(ack.number for ack in self.acks if ack.acked_at_ns <= until_ns)

    def tried(self):
        """Returns the labels of all that it may have written."""
        return self._labels(range(len(self.acks) + 1))

    def _labels(self, numbers):
        return {label for number in numbers for label in labels_of(self._name, self._padding, number)}


def label_of(payload):
    """Returns a numbered record without its padding, whose length is its last word; checks that all of it is there."""
    label = payload.rstrip(b"x")
    assert len(payload) - len(label) == int(label.split()[-1]), f"made up: {payload[:80]}"
    return label


class Follower:
    """One reader of the whole directory, as a replayer follows it.

    Attributes:
        delivered: The labels of all records whose segment was released. What was only read dies with the reader.
    """

    def __init__(self, root):
        self.delivered, self.torn_count, self.corrupt_count, self.released_count = set(), 0, 0, 0
        self._root, self._readers, self._labels = root, {}, {}

    def step(self):
        """Reads what there is and releases what is drained."""
        for path in segments(self._root / "log"):
            reader = self._readers.get(path) or self._readers.setdefault(path, SegmentReader(path))
            self._labels.setdefault(path, set()).update(label_of(record.payload) for record in reader.read(1 << 20))
            if reader.is_drained:
                self._release(path, reader)

    def forget(self):
        """The reader dies; another begins anew."""
        for reader in self._readers.values():
            reader.close()
        self._readers, self._labels = {}, {}

    def _release(self, path, reader):
        # Before: a removal that is not confirmed may be one all the same.
        self.delivered |= self._labels[path]
        reader.release(self._root / "quarantine")
        self.torn_count += reader.torn_count
        self.corrupt_count += reader.corrupt_count
        self.released_count += 1
        del self._readers[path], self._labels[path]


def files_of(disk, fault):
    """Returns the disk with that fault."""
    kind, *numbers = fault.split(":")
    if not kind:
        return Files()
    if kind == "intrude":
        return IntrudedFiles(*map(int, numbers))
    return {"cut": CutFiles, "reorder": ReorderingFiles}[kind](disk, *map(int, numbers))


def main(root, name, padding, groups, fault):
    """Writes groups until it is killed or the disk fails; a full log is waited for."""
    files = files_of(root, fault)
    writer = writer_at(root, files, segment_bytes=64 << 10, max_bytes=4 << 20)
    number = 0
    while not groups or number < groups:
        group = [label + b"x" * padding for label in labels_of(name, padding, number)]
        began_at = time.monotonic_ns()
        try:
            writer.write(group)
        except WalFull:
            time.sleep(0.001)
            continue
        os.write(1, b"%d %d %d\n" % (number, began_at, time.monotonic_ns()))  # one call an acknowledgement
        number += 1
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
