"""What is broken: a running stack, as the experiments see it."""

import json
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ops import listener
from ops.chaos.evidence import LogLine
from ops.errors import ChaosFailed
from ops.proxy import Proxy
from ops.supervisor_client import ERRORS

_DEADLINE_S = 180.0
_POLL_S = 0.05


class Places(NamedTuple):
    """Where its listeners and servers are, as seen from here; the URLs hold passwords."""

    ingest_url: str
    admin_url: str
    redis_url: str
    database_url: str


class Target(ABC):
    """A running stack.

    Args:
        places: Where it is.

    Attributes:
        proxies: By name, what stands between its parts, where its network may be slowed.
    """

    def __init__(self, places: Places) -> None:
        self.places = places
        self.proxies: dict[str, Proxy] = {}

    @abstractmethod
    def hosts(self) -> dict[str, str]:
        """Returns the admin listener of each host that runs by a name that it keeps, ingest's first."""

    @abstractmethod
    def consumers(self) -> list[str]:
        """Returns the names of what consumes and runs."""

    @abstractmethod
    def consumer_of(self, name: str) -> str:
        """Returns how the consumer group knows one of `consumers`."""

    @abstractmethod
    def stop(self, name: str) -> None:
        """Stops a server or program in order, so that it stays down, and waits until it is."""

    @abstractmethod
    def start(self, name: str) -> None:
        """Starts what does not run, lets go on what is frozen, and waits until it runs."""

    @abstractmethod
    def freeze(self, name: str) -> None:
        """Keeps a program from going on; it lives, and its connections stay."""

    @abstractmethod
    def thaw(self, name: str) -> None:
        """Lets it go on."""

    @abstractmethod
    def crash(self, name: str) -> None:
        """Kills it with SIGKILL, so that it stays down."""

    @abstractmethod
    def wal_files(self) -> list[str]:
        """Returns the names of the WAL's segments on disk."""

    @abstractmethod
    def lines(self) -> list[LogLine]:
        """Returns what our programs have logged since this object was made, by time."""

    @abstractmethod
    def audit(self) -> dict[str, Any]:
        """Returns what `spillway audit --json` says once everything has come to rest.

        Raises:
            ChaosFailed: It cannot say.
        """

    def until(self, condition: Callable[[], bool], what: str, deadline_s: float = _DEADLINE_S) -> None:
        """Waits for a condition.

        Raises:
            ChaosFailed: It took too long.
        """
        deadline = time.monotonic() + deadline_s
        while time.monotonic() < deadline:
            with suppress(*ERRORS):
                if condition():
                    return
            time.sleep(_POLL_S)
        raise ChaosFailed(f"waited {deadline_s:.0f} s for {what}")

    def replay_letters(self) -> dict[str, Any]:
        """Replays the dead letters through the admin listener, and returns its answer.

        Raises:
            ChaosFailed: It refused.
        """
        reply = listener.ask(self.places.admin_url, "/dead-letters/replay", _DEADLINE_S, b"{}")
        if reply.status != 200:
            raise ChaosFailed(f"the replay was answered {reply.status}: {reply.text}")
        answer: dict[str, Any] = json.loads(reply.body)
        return answer


def audited(command: Sequence[str], environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runs an audit by this command; see `Target.audit`."""
    done = subprocess.run([*command, "audit", "--wait", "60", "--json"], env=environ, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise ChaosFailed(f"no audit: {done.stderr.strip()}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document
