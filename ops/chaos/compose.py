"""A stack in containers: broken with `docker compose stop`, `start`, `kill`, `pause` and `unpause`."""

import json
import shlex
import socket
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
from ops.program import NAMES, url

_INGEST_PORT, _ADMIN_PORT, _POSTGRES_PORT = 8080, 8081, 5432
_SERVICES = ("ingestor", "redis", "postgres", "consumer")
_CALL_S = 180.0
_CONNECT_S = 5.0
_LOOK_EVERY_S = 2.0


class Compose(Target):
    """The project of a Compose file that runs.

    Args:
        command: How Compose is called: `docker compose` or `docker-compose`.
        directory: Of the Compose file.

    Attributes:
        environment: That of its ingestor, which says how it is set.

    Raises:
        ChaosFailed: It does not run.
    """

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        self._command = [*command, "--project-directory", str(directory)]
        self._began_at = time.time()
        docker("version")  # what is missing is told by whom it concerns, and not as Compose's traceback
        _output([*command, "version"])
        self._ids = {service: self._found(service) for service in _SERVICES}
        [ingestor] = inspected(*self._ids["ingestor"][:1])
        self.environment = variables(ingestor["Config"]["Env"])
        self._ingest_url, self._admin_url = (published(ingestor, port) for port in (_INGEST_PORT, _ADMIN_PORT))
        self._hosts: dict[str, str] = {}
        self._looked_at = float("-inf")
        super().__init__(self._places())

    def reach(self) -> None:
        """Connects to the containers that are asked by their addresses.

        Raises:
            ChaosFailed: They lead nowhere, as with an engine in a virtual machine.
        """
        for service, port in (("postgres", _POSTGRES_PORT), ("consumer", _ADMIN_PORT)):
            for one in inspected(*self._ids[service]):
                try:
                    socket.create_connection((address(one), port), _CONNECT_S).close()
                except OSError as error:
                    raise ChaosFailed(f"{service} is not reached at {address(one)}:{port} ({error}): this needs an "
                                      "engine on this Linux machine") from error

    def hosts(self) -> dict[str, str]:
        """See `Target`: the ingestor, and the consumers' containers by their ids."""
        if time.monotonic() - self._looked_at > _LOOK_EVERY_S:
            ids = self._ids["consumer"]
            found = {name: address(one) for name, one in zip(ids, inspected(*ids)) if not one["State"]["Paused"]}
            consumers = {name: f"http://{place}:{_ADMIN_PORT}" for name, place in found.items() if place}
            self._hosts = {"ingestor": self._admin_url, **consumers}
            self._looked_at = time.monotonic()
        return self._hosts

    def consumers(self) -> list[str]:
        """See `Target`: ids of containers."""
        ids = self._ids["consumer"]
        return [name for name, one in zip(ids, inspected(*ids)) if one["State"]["Running"]]

    def consumer_of(self, name: str) -> str:
        """See `Target`: a container's host name is its consumer's."""
        return str(inspected(name)[0]["Config"]["Hostname"])

    def stop(self, name: str) -> None:
        """See `Target`."""
        self._compose("stop", name)

    def start(self, name: str) -> None:
        """See `Target`: a service, or a container by its id."""
        if name in self._ids:
            self._compose("start", name)
        else:
            [one] = inspected(name)
            docker(*(("unpause", name) if one["State"]["Paused"] else ("start", name)))
        ids = self._ids.get(name, [name])
        self.until(lambda: all(map(is_healthy, inspected(*ids))), f"{name} to be healthy")
        self._looked_at = float("-inf")
        self.places = self._places()  # it may have another address now

    def freeze(self, name: str) -> None:
        """See `Target`."""
        docker("pause", name)
        self._looked_at = float("-inf")

    def thaw(self, name: str) -> None:
        """See `Target`."""
        docker("unpause", name)

    def crash(self, name: str) -> None:
        """See `Target`: a container that is killed by hand is not started again."""
        docker("kill", name)
        self._looked_at = float("-inf")

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
        for name in (*self._ids["ingestor"], *self._ids["consumer"]):
            found += log_lines("", docker("logs", "--since", since, name).splitlines())
        return sorted((attributed(line) for line in found), key=lambda line: line.at)

    def _places(self) -> Places:
        return Places(self._ingest_url, self._admin_url, self._url("REDIS_URL"), self._url("DATABASE_URL"))

    def _url(self, name: str) -> str:
        """Returns a URL of the containers' environment, with the server's address instead of its name."""
        server = "redis" if name == "REDIS_URL" else "postgres"
        [one] = inspected(*self._ids[server][:1])
        return self.environment[name].replace(f"@{server}:", f"@{address(one)}:")

    def _found(self, service: str) -> list[str]:
        """Returns the ids of a service's containers, all of which run."""
        ids = [one[:12] for one in self._compose("ps", "--all", "--quiet", service).split()]
        if not ids or not all(one["State"]["Running"] for one in inspected(*ids)):
            raise ChaosFailed(f"{service} does not run here: `{shlex.join(self._command[:-2])} up --detach` first")
        return ids

    def _compose(self, *words: str) -> str:
        return _output([*self._command, *words])


def docker(*words: str) -> str:
    """Returns what `docker` says; of logs also what they have of the standard error.

    Raises:
        ChaosFailed: It did not do it.
    """
    return _output(["docker", *words])


def inspected(*containers: str) -> list[dict[str, Any]]:
    """Returns what the engine knows of containers, in their order."""
    found: list[dict[str, Any]] = json.loads(docker("inspect", *containers))
    return found


def address(container: dict[str, Any]) -> str:
    """Returns where a container is reached; empty while it does not run."""
    networks = container["NetworkSettings"]["Networks"]
    return next((str(one["IPAddress"]) for one in networks.values() if one["IPAddress"]), "")


def published(container: dict[str, Any], port: int) -> str:
    """Returns where a port is reached from this machine.

    Raises:
        ChaosFailed: It is not published.
    """
    for place in container["NetworkSettings"]["Ports"].get(f"{port}/tcp") or ():
        return url(place["HostIp"], int(place["HostPort"]))
    raise ChaosFailed(f"port {port} of {container['Name'].lstrip('/')} is not published")


def is_healthy(container: dict[str, Any]) -> bool:
    """Whether it runs, and its check says so, where it has one."""
    state = container["State"]
    return bool(state["Running"]) and state.get("Health", {}).get("Status", "healthy") == "healthy"


def variables(words: Sequence[str]) -> dict[str, str]:
    """Returns the environment that Docker lists; what Compose passes on, and does not have itself, is a name alone."""
    return dict(one.split("=", 1) for one in words if "=" in one)


def attributed(line: LogLine) -> LogLine:
    """Returns the line with the program that its head names; a consumer's there is its container's name."""
    name = line.text.split(" ", 3)[2]
    program = name if name in (*NAMES, "run") else f"consumer {name}"
    return LogLine(line.at, program, line.event, line.text)


def _output(command: list[str]) -> str:
    text = shlex.join(command)
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", timeout=_CALL_S,
            start_new_session=True,  # a terminal's Ctrl-C is for us: half a heal would be none
        )
    except subprocess.TimeoutExpired as error:
        raise ChaosFailed(f"`{text}` took longer than {_CALL_S:.0f} s") from error
    except OSError as error:
        raise ChaosFailed(f"`{command[0]}` could not be run: {error.strerror}") from error
    if done.returncode:
        raise ChaosFailed(f"`{text}` failed: {done.stderr.strip()}")
    return done.stdout + (done.stderr if command[1] == "logs" else "")
