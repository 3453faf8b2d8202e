"""A stack in containers: broken with `docker compose stop`, `start`, `kill`, `pause` and `unpause`."""

import json
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ops.chaos.evidence import LogLine
from ops.chaos.recorder import log_lines
from ops.chaos.target import Places, Target, audited
from ops.errors import ChaosFailed

_ADMIN_PORT = 8081
_CALL_S = 180.0


class Compose(Target):
    """The project of a Compose file that runs.

    Args:
        command: How Compose is called: `docker compose` or `docker-compose`.
        directory: Of the Compose file.
        ingest_url, admin_url: Of its ingestor, as published.

    Attributes:
        environment: That of its ingestor, which says how it is set.

    Raises:
        ChaosFailed: It does not run.
    """

    def __init__(self, command: Sequence[str], directory: Path, ingest_url: str, admin_url: str) -> None:
        self._command = [*command, "--project-directory", str(directory)]
        self._directory = directory
        self._admin_url = admin_url
        self._began_at = time.time()
        found: list[str] = self._inspected(self._ids("ingestor")[0])["Config"]["Env"]
        self.environment = variables(found)
        self._ingest_url = ingest_url
        super().__init__(self._places())

    @property
    def admin_urls(self) -> list[str]:
        """See `Target`; a container has none while it does not run."""
        addresses = (self._address(one) for one in self._ids("consumer"))
        return [self._admin_url, *(f"http://{address}:{_ADMIN_PORT}" for address in addresses if address)]

    def consumers(self) -> list[str]:
        """See `Target`: ids of containers."""
        return [one for one in self._ids("consumer") if self._inspected(one)["State"]["Running"]]

    def consumer_of(self, name: str) -> str:
        """See `Target`: a container's host name is its consumer's."""
        return str(self._inspected(name)["Config"]["Hostname"])

    def stop(self, name: str) -> None:
        """See `Target`."""
        self._compose("stop", name)

    def start(self, name: str) -> None:
        """See `Target`: a service, or a container by its id."""
        if name in ("redis", "postgres"):
            self._compose("start", name)
            self.until(lambda: self._is_healthy(name), f"{name} to be healthy")
        else:
            self._docker("start", name)
        self.places = self._places()  # it may have another address now

    def freeze(self, name: str) -> None:
        """See `Target`."""
        self._docker("pause", name)

    def thaw(self, name: str) -> None:
        """See `Target`."""
        self._docker("unpause", name)

    def crash(self, name: str) -> None:
        """See `Target`: a container that is killed by hand is not started again."""
        self._docker("kill", name)

    def wal_files(self) -> list[str]:
        """See `Target`."""
        listed = self._compose("exec", "-T", "ingestor", "ls", "/var/lib/spillway/wal")
        return sorted(name for name in listed.split() if name.endswith(".wal"))

    def audit(self) -> dict[str, Any]:
        """See `Target`."""
        return audited([*self._command, "exec", "-T", "ingestor", "spillway"])

    def lines(self) -> list[LogLine]:
        """See `Target`."""
        since = datetime.fromtimestamp(self._began_at, UTC).isoformat()
        found: list[LogLine] = []
        for service in ("ingestor", "consumer"):
            for one in self._ids(service):
                done = subprocess.run(["docker", "logs", "--since", since, one], capture_output=True, text=True)
                found += log_lines("", (done.stdout + done.stderr).splitlines())
        return sorted((attributed(line) for line in found), key=lambda line: line.at)

    def _places(self) -> Places:
        return Places(self._ingest_url, self._admin_url, self._url("REDIS_URL"), self._url("DATABASE_URL"))

    def _ids(self, service: str) -> list[str]:
        ids = self._compose("ps", "--all", "--quiet", service).split()
        if not ids:
            raise ChaosFailed(f"{self._directory} has no container of {service}: `docker compose up --detach` first")
        return ids

    def _inspected(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._docker("inspect", container))[0]
        return found

    def _address(self, container: str) -> str:
        networks = self._inspected(container)["NetworkSettings"]["Networks"]
        return next((str(one["IPAddress"]) for one in networks.values() if one["IPAddress"]), "")

    def _is_healthy(self, service: str) -> bool:
        return all(self._inspected(one)["State"].get("Health", {}).get("Status") == "healthy"
                   for one in self._ids(service))

    def _url(self, name: str) -> str:
        """Returns a URL of the containers' environment, with the server's address instead of its name."""
        url = self.environment[name]
        server = "redis" if name == "REDIS_URL" else "postgres"
        return url.replace(f"@{server}:", f"@{self._address(self._ids(server)[0])}:")

    def _compose(self, *words: str) -> str:
        return _output([*self._command, *words])

    def _docker(self, *words: str) -> str:
        return _output(["docker", *words])


def variables(words: Sequence[str]) -> dict[str, str]:
    """Returns the environment that Docker lists; what Compose passes on, and does not have itself, is a name alone."""
    return dict(one.split("=", 1) for one in words if "=" in one)


def attributed(line: LogLine) -> LogLine:
    """Returns the line with the program that its head names; a consumer's there is its container's name."""
    name = line.text.split(" ", 3)[2]
    program = name if name in ("ingest", "replayer", "admin", "run") else f"consumer {name}"
    return LogLine(line.at, program, line.event, line.text)


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_CALL_S)
    if done.returncode:
        raise ChaosFailed(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
