"""A real writer process: appends numbered records, and says on its standard output which are confirmed.

Arguments: the root of the log, its own name, bytes of padding, and after how many groups it ends (0: never).
"""

import os
import sys
from pathlib import Path

from tests.wal_disk import writer_at
from wal.file import Files


def main(root, name, padding, groups):
    """Writes groups of three until it is killed."""
    writer = writer_at(Path(root), Files(), segment_bytes=64 << 10, max_bytes=1 << 30)
    number = 0
    while not groups or number < groups:
        group = [f"{name} {number} {index} ".encode() + b"x" * padding for index in range(3)]
        writer.write(group)
        os.write(1, b"%d\n" % number)  # one call an acknowledgement
        number += 1
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
