"""A server that a load generator is held against: it says how many requests it had, and stalls when it is told to."""

import socket
import threading
import time
from contextlib import suppress

ANSWER = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}"


class Stub:
    """Answers one request after the other, each in two pieces; the one numbered `stall_at` takes `stall_s`."""

    def __init__(self, answer=ANSWER, stall_at=-1, stall_s=0.0):
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/ingest"
        self._answer, self._stall_at, self._stall_s = answer, stall_at, stall_s
        self._turn = threading.Lock()
        self.count = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection, suppress(OSError):
            while connection.recv(1 << 16):
                with self._turn:
                    self.count += 1
                    if self.count == self._stall_at:
                        time.sleep(self._stall_s)
                connection.sendall(self._answer[:20])
                connection.sendall(self._answer[20:])
