"""The real consumer process with a crash point: `python -m tests.crash.consumer_victim`."""

import sys

from tests.crash import point
from workers import consumer, loader
from workers.inbox import Inbox
from workers.loader import Loader

point.arm(Inbox, "read", "read")
point.arm(loader, "_enter", "enter")
point.arm(loader, "_copy", "copy")
point.arm(Loader, "load", "load")
point.arm(Inbox, "ack", "ack")
point.arm(Inbox, "bury", "bury")

if __name__ == "__main__":
    sys.exit(consumer.main())
