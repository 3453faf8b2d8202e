"""Becomes one of our processes: makes what it needs to share its metrics, and runs its module in its place.

`python -m ops.process workers.consumer`: what that imports opens its files of metrics before it could do so itself.
"""

import os
import runpy
import sys

from app import metric_file


def main() -> None:
    """Runs the module that is named first, with the arguments behind it."""
    metric_file.prepare(os.environ)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
