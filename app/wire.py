"""Wire: the bytes of one client's connection. Every wait for the client has a deadline, and is ended from outside.

There is no timer for each wait: whoever owns the connections calls `expire` on those whose `deadline` has passed. That
shuts the socket for reading, which wakes the greenlet that waits as the client's own end would; nothing is thrown into
a greenlet that may have gone on meanwhile.
"""

import math
import os
import socket
import ssl
import time
from contextlib import suppress

from gevent import get_hub, getcurrent

PIECE_BYTES = 1 << 16  # most that is received at a time, and so that is held of requests sent ahead
_LINGER_S = 2
_LINGER_BYTES = 64 << 20


class Wire:
    """Owns the socket. Used by one greenlet.

    Args:
        sock: A socket of gevent's, connected.
        send_timeout_s: Longest that the client may take to read what is sent to it at a time.

    Attributes:
        buffer: What was received and is not used yet.
        deadline: When the wait of now ends, on the monotonic clock; infinity when nobody waits for the client.
        is_expired: A wait was ended; nothing more is received.
    """

    def __init__(self, sock: socket.socket, send_timeout_s: float) -> None:
        self.buffer = b""
        self.deadline = math.inf
        self.is_expired = False
        self._socket = sock
        self._send_timeout_s = send_timeout_s
        self._is_sending = False
        self._descriptor = sock.fileno()
        self._hub = get_hub()
        self._readable = self._hub.loop.io(self._descriptor, 1)
        self._waiter: getcurrent | None = None

    def receive(self, deadline: float, max_bytes: int = PIECE_BYTES) -> bytes:
        """Waits for bytes, and lets others run meanwhile also if there are some.

        Returns:
            Some bytes; none when the client has ended, or the deadline has passed (`is_expired`).

        Raises:
            OSError: The connection is gone.
        """
        if self.is_expired:
            return b""
        self.deadline = deadline
        try:
            return self._received(max_bytes)
        finally:
            self.deadline = math.inf

    def take(self, deadline: float, max_bytes: int) -> bytes:
        """Returns up to `max_bytes` of the buffer, or else received; as `receive` does."""
        if not self.buffer:
            return self.receive(deadline, min(max_bytes, PIECE_BYTES))
        taken, self.buffer = self.buffer[:max_bytes], self.buffer[max_bytes:]
        return taken

    def send(self, data: bytes) -> None:
        """Sends all of it, mostly in one call.

        Raises:
            OSError: The connection is gone, or the client does not read.
        """
        try:
            sent = os.write(self._descriptor, data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._send_rest(memoryview(data)[sent:])

    def expire(self) -> None:
        """Ends the wait of the greenlet that uses it; called by others."""
        self.is_expired = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR if self._is_sending else socket.SHUT_RD)

    def close(self, is_lingering: bool) -> None:
        """Closes the connection.

        Args:
            is_lingering: What the client may still be sending is received and dropped for a while: to close before
                would make the kernel throw away the answer that the client has not read yet.
        """
        with suppress(OSError):
            if is_lingering and not self.is_expired:
                self._linger()
        self._readable.stop()
        self._readable.close()
        self._socket.close()

    def _received(self, max_bytes: int) -> bytes:
        while True:
            self._waiter = getcurrent()
            if not self._readable.active:
                self._readable.start(self._wake)
            try:
                self._hub.switch()
            finally:
                self._waiter = None
            try:
                return os.read(self._descriptor, max_bytes)
            except BlockingIOError:
                continue  # A wake-up for nothing.

    def _wake(self) -> None:
        """Goes on with the greenlet that waits; called by the hub, which goes on looking, as most clients only send
        when they have their answer.
        """
        if self._waiter:
            self._waiter.switch()
        else:
            self._readable.stop()

    def _send_rest(self, rest: memoryview) -> None:
        self.deadline, self._is_sending = time.monotonic() + self._send_timeout_s, True
        try:
            self._socket.sendall(rest)
        finally:
            self.deadline, self._is_sending = math.inf, False

    def _linger(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)
        deadline, count = time.monotonic() + _LINGER_S, 0
        while count < _LINGER_BYTES and (piece := self.receive(deadline)):
            count += len(piece)


class SecureWire(Wire):
    """The same over TLS.

    Args:
        sock: A socket of gevent's, connected.
        send_timeout_s: Longest that the client may take to read what is sent to it at a time.
        context: Of the server; the handshake is made with the first bytes.
    """

    def __init__(self, sock: socket.socket, send_timeout_s: float, context: ssl.SSLContext) -> None:
        super().__init__(sock, send_timeout_s)
        self._socket = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self._descriptor = self._socket.fileno()

    def send(self, data: bytes) -> None:
        """Sends all of it; as `Wire.send`."""
        self._send_rest(memoryview(data))

    def expire(self) -> None:
        """Ends the wait, and what was to be said after it: TLS has no half of a connection left to say it on."""
        self.is_expired = True
        with suppress(OSError), socket.socket(fileno=os.dup(self._descriptor)) as twin:
            twin.shutdown(socket.SHUT_RDWR)

    def _received(self, max_bytes: int) -> bytes:
        return self._socket.recv(max_bytes)

    def _linger(self) -> None:
        pass  # TLS tells the client what is whole
