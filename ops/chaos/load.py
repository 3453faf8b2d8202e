"""The load: locust in a process of its own, the receipts that it writes, and the verifier that holds them."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ops.errors import ChaosFailed

_LONGEST_S = 3600
_STOP_S = 60
_VERIFY_WAIT_S = 60


class Shape(NamedTuple):
    """How much load: requests a second (0: as many as can be), users, events in a batch, and a seed."""

    rate: float
    users: int
    batch_events: int
    seed: int


class Load:
    """Sustained load on one URL; it ends by itself after an hour, whoever dies.

    Args:
        url: Of ingest.
        receipts: The file that receipts are added to.
    """

    def __init__(self, url: str, receipts: Path, shape: Shape) -> None:
        self.receipts = receipts
        self._url = url
        self._shape = shape
        self._log = receipts.with_suffix(".locust.log")
        self._process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Begins."""
        shape, users = self._shape, str(self._shape.users)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "locust", "-f", str(_locustfile()), "--headless", "--only-summary",
                 "-u", users, "-r", users, "-t", f"{_LONGEST_S}s", "-H", self._url, "--receipts", str(self.receipts),
                 "--rate", str(shape.rate), "--batch-size", str(shape.batch_events), "--seed", str(shape.seed)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )

    def stop(self) -> int:
        """Ends it, and returns locust's exit status: 1 says that the service broke its interface.

        Raises:
            ChaosFailed: It could not do its work.
        """
        assert self._process
        self._process.terminate()
        try:
            status = self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ChaosFailed(f"locust did not end within {_STOP_S} s; see {self._log}") from None
        if status not in (0, 1):
            raise ChaosFailed(f"locust ended with status {status}; the end of {self._log}:\n{self._tail()}")
        return status

    def kill(self) -> None:
        """Ends it at once, if it runs."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def verify(self, database_url: str) -> dict[str, Any]:
        """Holds the receipts against the rows, and returns the verifier's verdict.

        Raises:
            ChaosFailed: It could not judge.
        """
        done = subprocess.run(
            [sys.executable, "-m", "loadtest.verify", str(self.receipts), "--wait", str(_VERIFY_WAIT_S), "--json",
             "--database-url", database_url], capture_output=True, text=True,
        )
        if done.returncode not in (0, 1):
            raise ChaosFailed(done.stderr.strip())
        verdict: dict[str, Any] = json.loads(done.stdout)
        return verdict

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])


def _locustfile() -> Path:
    found = find_spec("loadtest")
    assert found and found.origin
    return Path(found.origin).with_name("locustfile.py")
