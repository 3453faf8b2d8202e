"""What can go wrong behind the stream, and who is to blame.

    app.errors.SpillwayError
    └── Unavailable     the sink: back off, keep the entries pending, try again
"""

from app.errors import SpillwayError


class Unavailable(SpillwayError):
    """PostgreSQL did not confirm the load. Whether it is stored is unknown; the ledger tells at the next try.

    Args:
        cause: The SQLSTATE, or the class of the driver's error where the server sent none.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
