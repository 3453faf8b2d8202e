"""The log against a model, on a disk that loses, keeps or garbles every page that was not synced."""

import shutil
from random import Random

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.wal_disk import LossyFiles, die, make_memory_dir, writer_at
from wal.errors import WalFailed, WalFull
from wal.reader import SegmentReader, segments

SIZES = st.lists(st.sampled_from([0, 1, 7, 40, 500, 700, 3000]), min_size=1, max_size=5)


class LogMachine(RuleBasedStateMachine):
    """The model: what was tried, what was confirmed, and what the reader has handed out."""

    def __init__(self):
        super().__init__()
        self.root = make_memory_dir()
        self.files = LossyFiles(self.root)
        self.tried, self.confirmed, self.delivered = set(), set(), set()
        self.readers = {}
        self.writers = [self.open(), self.open()]

    def open(self):
        return writer_at(self.root, self.files, segment_bytes=2048, max_bytes=16 * 2048)

    @rule(which=st.integers(0, 1), sizes=SIZES, sync_failures=st.sampled_from([0, 0, 0, 1, 2]))
    def write(self, which, sizes, sync_failures):
        """A group, whose records all differ, with failing syncs or without."""
        group = [b"%d %d " % (len(self.tried) + number, size) + b"x" * size for number, size in enumerate(sizes)]
        self.tried.update(group)
        self.files.sync_failures = sync_failures
        try:
            self.writers[which].write(group)
            self.confirmed.update(group)
        except WalFull:
            pass  # the reader is behind
        except WalFailed:
            assert sync_failures
        self.files.sync_failures = 0

    @rule(which=st.integers(0, 1))
    def seal(self, which):
        """The writer ends its segment."""
        self.writers[which].seal()

    @rule(which=st.integers(0, 1))
    def kill(self, which):
        """The writer dies, and another is opened."""
        die(self.writers[which])
        self.writers[which] = self.open()

    @rule(max_bytes=st.integers(1, 4000), failing=st.sampled_from([0, 0, 0, 1, 2, 3, 5, 8]))
    def read(self, max_bytes, failing=0):
        """One read of every segment, each record checked; with a failing call or without."""
        for path in segments(self.root / "log"):
            self.files.failing_read = failing
            try:
                reader = self.readers.get(path) or self.readers.setdefault(path, SegmentReader(path, self.files))
                payloads = {record.payload for record in reader.read(max_bytes)}
            except WalFailed:
                assert failing
                continue
            finally:
                self.files.failing_read = 0
            assert payloads <= self.tried, "a record that nobody wrote"
            assert reader.corrupt_count == 0, "what was confirmed is damaged"
            self.delivered |= payloads

    @precondition(lambda self: any(reader.is_drained for reader in self.readers.values()))
    @rule()
    def release(self):
        """Whatever was read to its end goes."""
        for path, reader in list(self.readers.items()):
            if reader.is_drained:
                reader.release(self.root / "quarantine")
                del self.readers[path]

    @rule(seed=st.integers(0, 2**32))
    def power_loss(self, seed):
        """Everybody dies, and the disk keeps of what was not synced what it likes."""
        for writer in self.writers:
            die(writer)
        self.forget_readers()
        self.files.power_loss(Random(seed))
        self.writers = [self.open(), self.open()]

    def forget_readers(self):
        """The reader dies."""
        for reader in self.readers.values():
            reader.close()
        self.readers = {}

    def teardown(self):
        """At last everything confirmed arrives, and the log is empty."""
        try:
            self.power_loss(0)
            while segments(self.root / "log"):
                self.read(10_000)
                self.release()
            assert self.confirmed <= self.delivered, "a confirmed record is lost"
        finally:
            self.forget_readers()
            shutil.rmtree(self.root)


TestLog = LogMachine.TestCase
TestLog.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
