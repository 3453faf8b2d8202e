"""The real keeper process with a crash point: `python -m tests.crash.keeper_victim`."""

import sys

from tests.crash import point
from workers import keeper, partition

point.arm(partition, "_has_rows", "look")
point.arm(partition, "_is_validated", "validate")
point.arm(partition, "_attach", "attach")
point.arm(partition, "_drop_guard", "drop")

if __name__ == "__main__":
    sys.exit(keeper.main())
