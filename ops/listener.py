"""Asks a listener of the service one thing, on a connection of its own."""

import http.client
from collections.abc import Mapping
from contextlib import closing
from typing import NamedTuple
from urllib.parse import urlsplit

ERRORS = (OSError, http.client.HTTPException)  # it did not answer


class Reply(NamedTuple):
    """What it answered."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        """The body on one line, cut to what is worth showing."""
        return " ".join(self.body.decode(errors="replace").split())[:200]


def ask(
    url: str, target: str, timeout_s: float, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """Gets, or where there is a body posts, and returns the answer, whatever its status.

    Args:
        url: Of the listener; its path counts for nothing.
        target: Path and query.
        timeout_s: Longest silence.
        body: JSON.
        headers: Fields besides its type.

    Raises:
        OSError, http.client.HTTPException: There was none; `ERRORS`.
    """
    # Not urllib: it would ask the environment's proxy for our own address.
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout_s)) as connection:
        if body is None:
            connection.request("GET", target, headers=dict(headers or {}))
        else:
            connection.request("POST", target, body, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return Reply(response.status, response.read())
