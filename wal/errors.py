"""What can go wrong in the log, and who is to blame.

    WalError
    ├── RecordTooLarge    the data: never tried again as it is
    ├── WalFull           the budget or the disk has no room: tried again, nothing of the group was kept
    ├── WalFailed         the disk failed: none of the group may be acknowledged
    ├── WalCorrupt        bytes on disk are not what was written: a person looks
    └── WalClosed         us: closed, or used in another process than the one that opened it
"""


class WalError(Exception):
    """The root; never raised itself."""


class RecordTooLarge(WalError):
    """A record is larger than any segment may be. Nothing of its group was kept; refuse it for good.

    Args:
        size_bytes: The record's length.
        max_bytes: What is allowed.
    """

    def __init__(self, size_bytes: int, max_bytes: int) -> None:
        super().__init__(f"a record of {size_bytes} bytes; at most {max_bytes} are allowed")
        self.size_bytes = size_bytes
        self.max_bytes = max_bytes


class WalFull(WalError):
    """The byte budget or the disk's free space is used up. Nothing of the group was kept; refuse it for now."""


class WalFailed(WalError):
    """The disk failed. The group may or may not appear to the reader; acknowledge none of it.

    From a reader: the segment could not be read or released now; leave it, go on with the next and come back.
    """


class WalCorrupt(WalError):
    """A segment's header is not one that this version wrote. The reader counts it; its segment is quarantined."""


class WalClosed(WalError):
    """The writer was closed, or belongs to another process: after a fork, open one of your own."""
