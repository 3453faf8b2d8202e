"""What can go wrong at the edge and in the contract, and who is to blame.

    SpillwayError
    ├── SettingError        an operator: the process refuses to start
    ├── Rejected            the client's data: 4xx, never tried again as it is
    ├── NotDurable          a server: no store confirmed the batch: 503, the client tries again
    └── StreamUnavailable   a server: Redis did not confirm
        └── StreamLost      the group or the stream is gone: re-create it, and say so
"""

from dataclasses import dataclass


class SpillwayError(Exception):
    """The root; never raised itself."""


class SettingError(SpillwayError):
    """A setting has a value that is not allowed. Nothing was started; mend the environment and start again."""


@dataclass(frozen=True)
class Fault:
    """One event at fault: its index in the request (from 0), the field (None: the event itself) and the reason."""

    index: int
    field: str | None
    reason: str


class Rejected(SpillwayError):
    """The request can never be taken as it is. Nothing of it was stored; answer with `status`.

    Args:
        status: The HTTP status code, 4xx.
        cause: A closed-set word for metrics and the problem's `type`, e.g. `"not_json"`.
        detail: What, where, and what is allowed, for a person.
        faults: The events at fault, the first 20; empty when the request as a whole is.
    """

    def __init__(self, status: int, cause: str, detail: str, faults: tuple[Fault, ...] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.cause = cause
        self.detail = detail
        self.faults = faults


class NotDurable(SpillwayError):
    """No store confirmed the batch, or there is no room to try. Answer 503 with `Retry-After`; never a 2xx.

    Args:
        cause: A closed-set word: `"inflight"`, `"wal_full"`, `"wal_failed"`, `"wal_overdue"`, `"stalled"` or
            `"internal"`.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause
        self.detail = detail


class StreamUnavailable(SpillwayError):
    """Redis did not confirm in time, or refused. Whether it stored anything is unknown; copy again or answer 503.

    Args:
        cause: Redis's error code (`"OOM"`, `"LOADING"`, …) or a word for the failure (`"connect"`, `"deadline"`).
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


class StreamLost(StreamUnavailable):
    """The stream or its consumer group does not exist (FLUSHALL, an empty restart): create the group at 0, alert."""
