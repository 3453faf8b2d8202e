"""What can go wrong behind the stream, and who is to blame.

    app.errors.SpillwayError
    ├── Poison              the data: find what is at fault and bury it; never tried again as it is
    └── Unavailable         the sink: back off, keep the entries pending, try again
        ├── Misconfigured   an operator: as above, for as long as it takes, and say what to mend
        └── Locked          somebody who is at work on the tables: as above, for as long as it takes
"""

from app.errors import SpillwayError


class Poison(SpillwayError):
    """PostgreSQL refuses something in the load, and nothing of it is stored.

    Args:
        sqlstate: PostgreSQL's code, or the class of the driver's error where it sent none.
        detail: What it said.
    """

    def __init__(self, sqlstate: str, detail: str) -> None:
        super().__init__(f"{sqlstate}: {detail}")
        self.sqlstate = sqlstate
        self.detail = detail


class Unavailable(SpillwayError):
    """PostgreSQL did not confirm the load. Whether it is stored is unknown; the ledger tells at the next try.

    Args:
        cause: The SQLSTATE, or the class of the driver's error where the server sent none.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail


class Misconfigured(Unavailable):
    """No repetition helps before somebody mends it: a table, a permission, a password, a setting."""


class Locked(Unavailable):
    """Somebody keeps the load waiting, and will let it go: a lock, or a partition that is being made. No outage."""
