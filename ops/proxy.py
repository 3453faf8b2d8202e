"""A TCP proxy on loopback between a client and a server, for what a network does to them: it delays, and it cuts."""

import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from urllib.parse import urlsplit

PIECE_BYTES = 1 << 18


class Proxy:
    """Stands before one server; its attributes may be changed while it runs.

    Args:
        url: Where the server is, or will be.

    Attributes:
        url: The same with the proxy's address.
        delay_s: How much later whatever the server says arrives.
        cut_after: Bytes of a request. The connection on which they came is cut when the server has answered, and the
            answer is lost: the client cannot know that it was heard.
        cut_count: How often that has happened.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = parts._replace(netloc=parts.netloc.replace(
            f"{parts.hostname}:{parts.port}", f"127.0.0.1:{self._listener.getsockname()[1]}"
        )).geturl()
        self.delay_s = 0.0
        self.cut_after: bytes | None = None
        self.cut_count = 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Ends it and every connection."""
        _end(self._listener)
        for connection in list(self._open):
            _end(connection)

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()
                continue
            _Link(self, client, server)


class _Link:
    """One connection: three threads, for what the client says, what the server says, and when that is passed on."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._client, self._server = proxy, client, server
        self._is_doomed = False
        self._said: queue.SimpleQueue[tuple[float, bytes] | None] = queue.SimpleQueue()
        proxy._open |= {client, server}
        for target in (self._requests, self._replies, self._pass_on):
            threading.Thread(target=target, daemon=True).start()

    def _requests(self) -> None:
        with suppress(OSError):
            while piece := self._client.recv(PIECE_BYTES):
                wanted = self._proxy.cut_after
                self._is_doomed = self._is_doomed or wanted is not None and wanted in piece
                self._server.sendall(piece)
        self._end()

    def _replies(self) -> None:
        with suppress(OSError):
            while piece := self._server.recv(PIECE_BYTES):
                if self._is_doomed:
                    self._proxy.cut_count += 1
                    break
                self._said.put((time.monotonic() + self._proxy.delay_s, piece))
        self._said.put(None)

    def _pass_on(self) -> None:
        with suppress(OSError):
            while said := self._said.get():
                due_at, piece = said
                time.sleep(max(0.0, due_at - time.monotonic()))
                self._client.sendall(piece)
        self._end()

    def _end(self) -> None:
        for connection in (self._client, self._server):
            _end(connection)
            self._proxy._open.discard(connection)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it
    connection.close()


@contextmanager
def proxied(url: str) -> Iterator[Proxy]:
    """Yields a proxy before the server at `url`."""
    with closing(Proxy(url)) as proxy:
        yield proxy
