"""The real replayer process with a crash point: `python -m tests.crash.replayer_victim`."""

import sys

from app.appender import Appender
from tests.crash import point
from wal.reader import SegmentReader
from workers import replayer

point.arm(SegmentReader, "read", "read")
point.arm(Appender, "append", "append")
point.arm(SegmentReader, "release", "release")

if __name__ == "__main__":
    sys.exit(replayer.main())
