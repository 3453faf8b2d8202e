"""One HTTP connection of the project's own load generator: no threads, no blocking, no more work than a request needs.
"""

import re
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from ops.errors import BenchFailed

_CONNECT_S = 10
_RECEIVE_BYTES = 1 << 16
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def posts(url: str, bodies: Sequence[bytes]) -> list[bytes]:
    """Returns whole requests, as they go over the wire."""
    parts = urlsplit(url)
    head = f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]


def get(url: str) -> bytes:
    """Returns a whole request without a body."""
    parts = urlsplit(url)
    return f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()


class Client:
    """One connection that is kept alive, with at most one request on its way.

    Args:
        url: Of the server.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((str(parts.hostname), parts.port or 80), _CONNECT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._unsent = memoryview(b"")
        self._received = b""
        self.number = self._socket.fileno()

    def send(self, request: bytes) -> bool:
        """Begins to send a request; returns whether all of it went."""
        self._unsent = memoryview(request)
        return self.resume()

    def resume(self) -> bool:
        """Sends what is left of the request; returns whether all of it went."""
        while self._unsent:
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent):]
            except BlockingIOError:
                return False
        return True

    def status(self) -> int:
        """Takes in what came; returns the status of the answer once it is whole, and 0 before.

        Raises:
            BenchFailed: The server ended the connection.
        """
        try:
            part = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return 0
        if not part:
            raise BenchFailed("the server ended a connection while it was measured")
        received = self._received + part
        end = received.find(b"\r\n\r\n")
        found = _LENGTH.search(received, 0, end + 2) if end >= 0 else None
        if end < 0 or len(received) < end + 4 + (int(found[1]) if found else 0):
            self._received = received
            return 0
        self._received = b""
        return int(received[9:12])

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()
