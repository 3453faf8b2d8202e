"""The chaos checklist as a program: it drives load, breaks things for real, and judges by what was seen.

`experiment` does, `recorder` sees, `box` judges: the judge is pure, from `evidence` to boxes.
"""

from ops.chaos.command import add_arguments, run

__all__ = ["add_arguments", "run"]
