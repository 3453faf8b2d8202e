"""The real `spillway dlq replay` with a crash point, a few letters at a time: `python -m tests.crash.dlq_victim`."""

import sys

from redis.client import Pipeline
from redis.connection import AbstractConnection

from app import letterbox
from app.letterbox import Letterbox
from ops import command
from tests.crash import point

letterbox._PAGE_LETTERS = 2
execute = Pipeline.execute


def arm_and_execute(self, *args, **kwargs):
    """Arms what the letters are sent by here: it sends everything else, too."""
    if not hasattr(AbstractConnection, "is_armed"):
        AbstractConnection.is_armed = True
        point.arm(AbstractConnection, "send_packed_command", "send")
    return execute(self, *args, **kwargs)


Pipeline.execute = arm_and_execute
point.arm(Letterbox, "_page", "page")
point.arm(Letterbox, "replay", "replay")
point.arm(Pipeline, "execute", "execute")

if __name__ == "__main__":
    sys.exit(command.main(["dlq", "replay"]))
