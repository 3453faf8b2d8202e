"""The real consumer process with a crash point: `python -m tests.crash.consumer_victim`."""

import os
import signal
import sys

from tests.crash import point
from workers import consumer, ledger, loader
from workers.inbox import Inbox
from workers.loader import Loader
from workers.trial import Trial

point.arm(Inbox, "read", "read")
point.arm(ledger, "enter", "enter")
point.arm(loader, "copy", "copy")
point.arm(Loader, "load", "load")
point.arm(Inbox, "ack", "ack")
point.arm(Inbox, "bury", "bury")
point.arm(Inbox, "bury_events", "bury_events")
point.arm(Trial, "run", "sift")

copy = loader.copy


def copy_or_die(cursor, batches, before):
    """Dies of a batch that holds the word, every time."""
    _, _, word = os.environ["CRASH_POINT"].partition("poison:")
    if word and any(word.encode() in batch.payload for batch in batches):
        os.kill(os.getpid(), signal.SIGKILL)
    copy(cursor, batches, before)


loader.copy = copy_or_die

if __name__ == "__main__":
    sys.exit(consumer.main())
