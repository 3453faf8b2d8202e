"""Worker: gunicorn's gevent worker with a request loop of our own; selected by `SPILLWAY_WORKER_CLASS`.

Owns the process: it accepts connections, ends the waits of clients that are late, and stops in order. Everything else
(start, signals, heartbeat, reload) is gunicorn's.

Gunicorn's master imports this module, before it forks and without patching: nothing that sleeps or opens sockets may be
imported here, nor prometheus_client, which would take the master's pid for all workers'.
"""

import gc
import os
import time
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from typing import Any

import gevent
from gevent import socket
from gevent.event import Event
from gevent.pool import Pool
from gunicorn.config import Config
from gunicorn.http.wsgi import base_environ
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

from app import census
from app.errors import SettingError
from app.settings import Settings
from app.wire import SecureWire, Wire

_TICK_S = 0.25
_IDLE_GRACE_S = 1.0
# How long, and how often, a connection is left to a worker that has fewer, should that one come by.
_LEAVE_S, _LEAVE_TIMES = 0.001, 4

# What gunicorn's own loop does on top, and this one does not: refused rather than forgotten.
_UNSUPPORTED = (
    "casefold_http_method", "header_map", "http_protocols", "permit_obsolete_folding",
    "permit_unconventional_http_method", "permit_unconventional_http_version", "post_request", "pre_request",
    "protocol", "proxy_protocol", "strip_header_spaces",
)


class Worker(GeventWorker):  # type: ignore[misc]
    """The worker class."""

    alive: bool
    _stopping: Event | None = None

    def init_process(self) -> None:
        """Checks gunicorn's settings; patches and runs."""
        given, default = self.cfg.settings, Config().settings
        wrong = [name for name in _UNSUPPORTED if name in given and given[name].get() != default[name].get()]
        if os.environ.get("SCRIPT_NAME"):
            wrong.append("SCRIPT_NAME")
        if wrong:
            raise SettingError(f"gunicorn's {', '.join(wrong)} cannot be set with SPILLWAY_WORKER_CLASS=spillway")
        super().init_process()

    def run(self) -> None:
        """Serves until it is told to stop; then answers what is in flight, within gunicorn's `graceful_timeout`."""
        self._stopping = stopping = Event()
        self._pool = Pool(self.worker_connections)
        self._connections: set[Any] = set()
        self._settings = Settings.from_env(os.environ)
        self._connect = self._make_connect()
        self._tls = ssl_context(self.cfg) if self.cfg.is_ssl else None
        gc.freeze()  # What was loaded stays; to look through it again and again would stop every request for a while.
        acceptors = [gevent.spawn(self._accept, listener) for listener in self.sockets]
        while self.alive:
            self._tick()
            stopping.wait(_TICK_S)
        gevent.killall(acceptors)
        census.forget(self.age)
        self._stop()

    def handle_exit(self, sig: int, frame: object) -> None:
        """Stops, at once if there is nothing to wait for."""
        super().handle_exit(sig, frame)
        self._stop_waiting()

    def _make_connect(self) -> Callable[..., Any]:
        # Not above: the master would import Falcon and prometheus_client with it.
        from app import connection, head
        cfg, settings = self.cfg, self._settings
        return partial(connection.Connection, terms=connection.Terms(
            self.wsgi,
            head.Limits(*(
                limit or head.MAX_BYTES  # gunicorn's 0: none
                for limit in (cfg.limit_request_line, cfg.limit_request_fields, cfg.limit_request_field_size)
            )),
            settings.header_timeout_s, cfg.keepalive, settings.body_timeout_s, self._count,
            self.log.access if _has_access_log(cfg) else None,
        ))

    def _count(self) -> bool:
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
            self._stop_waiting()
        return bool(self.alive)

    def _stop_waiting(self) -> None:
        if self._stopping:  # A signal may come before anything runs.
            self._stopping.set()

    def _tick(self) -> None:
        """Shows the arbiter that the hub runs, and ends the waits that have taken too long."""
        self.notify()
        now = time.monotonic()
        for connection in list(self._connections):
            if connection.wire.deadline <= now:
                connection.wire.expire()

    def _accept(self, listener: socket.socket) -> None:
        """Takes one connection each time that the hub comes by: other workers get theirs, those with fewer first."""
        # Else gevent's accept waits by itself where another worker was faster, and the next one is taken unasked.
        listener.settimeout(0)
        while True:
            self._pool.wait_available()
            socket.wait_read(listener.fileno())
            for _ in range(_LEAVE_TIMES):
                if census.may_take(self.age, len(self._pool)):
                    break
                gevent.sleep(_LEAVE_S)
            self._accept_one(listener)

    def _accept_one(self, listener: socket.socket) -> bool:
        """Takes a connection if one waits; returns whether."""
        try:
            client, address = listener.accept()
        except BlockingIOError:
            return False  # Another worker has taken it.
        except OSError as error:
            self.log.warning("accept failed: %s", error)
            gevent.sleep(_TICK_S)
            return False
        self._pool.spawn(self._serve, client, address, listener.getsockname())
        return True

    def _serve(self, client: socket.socket, address: Any, listener_name: Any) -> None:
        timeout_s = self._settings.body_timeout_s
        try:
            wire = SecureWire(client, timeout_s, self._tls) if self._tls else Wire(client, timeout_s)
        except OSError:
            client.close()  # It is gone before TLS could begin.
            return
        connection = self._connect(wire, self._environ(address, listener_name), self._scheme_fields(address))
        self._connections.add(connection)
        try:
            connection.serve()
        finally:
            self._connections.discard(connection)

    def _environ(self, address: Any, listener_name: Any) -> dict[str, Any]:
        """Returns what is the same in every environ of a connection; over a Unix socket there are no addresses."""
        host, port = listener_name[:2] if isinstance(listener_name, tuple) else (str(listener_name), "")
        peer, peer_port = address[:2] if isinstance(address, tuple) else (str(address), "")
        return {
            **base_environ(self.cfg), "wsgi.multithread": True, "wsgi.url_scheme": "https" if self._tls else "http",
            "SCRIPT_NAME": "", "SERVER_NAME": host, "SERVER_PORT": str(port),
            "REMOTE_ADDR": peer, "REMOTE_PORT": str(peer_port),
        }

    def _scheme_fields(self, address: Any) -> dict[str, str]:
        """Returns the fields that tell a trusted peer's scheme, by their keys in the environ, with what says https."""
        trusted = self.cfg.forwarded_allow_ips
        if isinstance(address, tuple) and "*" not in trusted and not any(
            ip_address(address[0]) in network for network in self.cfg.forwarded_allow_networks()
        ):
            return {}
        return {f"HTTP_{name.replace('-', '_')}": value for name, value in self.cfg.secure_scheme_headers.items()}

    def _stop(self) -> None:
        """Answers what is in flight, and what comes on connections that are in use; ends those that are idle."""
        began = time.monotonic()
        for listener in self.sockets:
            listener.settimeout(0)
            while self._pool.free_count() and self._accept_one(listener):
                pass  # Who has connected already would be cut off.
            listener.close()
        # The pool, not the connections: what was accepted just now has not begun to be one.
        while len(self._pool) and time.monotonic() < began + self.cfg.graceful_timeout:
            self._tick()
            if time.monotonic() > began + _IDLE_GRACE_S:
                self._end_idle()
            self._pool.join(timeout=_TICK_S)
        if len(self._pool):
            self.log.warning("Worker graceful timeout (pid:%s)", self.pid)
            self._pool.kill(timeout=1)

    def _end_idle(self) -> None:
        for connection in list(self._connections):
            if connection.is_idle:
                connection.wire.expire()  # What has arrived by now is still served.


def _has_access_log(cfg: Any) -> bool:
    """Tells whether gunicorn's logger writes, or counts, accesses."""
    has_syslog = cfg.syslog and not cfg.disable_redirect_access_to_syslog
    return bool(cfg.accesslog or cfg.logconfig or cfg.logconfig_dict or cfg.logconfig_json or has_syslog
                or cfg.statsd_host)
