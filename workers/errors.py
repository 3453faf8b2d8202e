"""What can go wrong behind the stream, and who is to blame.

    app.errors.SpillwayError
    ├── Poison              the data: find what is at fault and bury it; never tried again as it is
    └── Unavailable         the sink: back off, keep the entries pending, try again
        ├── Locked          somebody who is at work on the tables: as above, for as long as it takes, and say who
        └── Misconfigured   an operator: as above, for as long as it takes, and say what to mend
"""

from typing import NamedTuple

from app.errors import SpillwayError


class Blocker(NamedTuple):
    """Who holds a lock that a load waits for, as far as our role may see it.

    Args:
        pid: Of its backend; 0: a prepared transaction.
        application: Its application_name.
        state: `active`, `idle in transaction`, …
        since: When its query began.
        query: The first 80 characters of it.
    """

    pid: int
    application: str
    state: str
    since: str
    query: str

    def __str__(self) -> str:
        who = f"{self.application or 'unnamed'}, {self.state or 'state unknown'} since {self.since or 'unknown'}"
        return f"pid {self.pid} ({who}): {self.query}"


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
        detail: What it said.
        is_doubtful: It may be for some of the rows that it did not: try fewer.
    """

    def __init__(self, cause: str, detail: str, is_doubtful: bool = False) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause
        self.detail = detail
        self.is_doubtful = is_doubtful

    def settled(self) -> "Unavailable":
        """Returns the same without the doubt: it is not for the rows."""
        return type(self)(self.cause, self.detail)


class Misconfigured(Unavailable):
    """No repetition helps before somebody mends it: a table, a permission, a password, a setting."""


class Locked(Unavailable):
    """Somebody keeps the load waiting, and will let it go: a lock, or a partition that is being made. No outage."""
