"""The witness: tells when the stream is as durable as the WAL for what was shipped to it, so that a segment may go.

It asks Redis anew before each release, as its configuration changes while it runs. `appendfsync always`: at once. Else
where WAITAOF tells the truth: once what was shipped is synced. Else: once the stream has let go of it, which is stored
in PostgreSQL then, or a dead letter; what was there before it, and may be set aside for long, keeps nothing. A Redis
that was started anew in between may have lost it: it is shipped again.

Source: https://github.com/redis/redis/pull/13793: WAITAOF confirmed under `everysec` what was not synced. Mended in
Redis 8.0; Valkey 9.1.2 still does it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis
from redis.utils import str_if_bytes

from app import stream

_POLL_S = 1.0
_HONEST = (8, 0)

# Keys: the stream. Arguments: two ids in turn. Returns 1 where an entry is after the one and up to the other, else 0.
_LEFT = """
local left = {}
for i = 1, #ARGV, 2 do
  left[#left + 1] = #redis.call('XRANGE', KEYS[1], '(' .. ARGV[i], ARGV[i + 1], 'COUNT', 1)
end
return left
"""


@dataclass(eq=False)
class Shipment:
    """What a segment's records became.

    Attributes:
        servers: The run ids of those that it was begun on and that confirmed them: one, unless Redis was started anew
            meanwhile.
        first_id: An id in the stream that all of its entries are behind.
        last_id: An id in the stream that none of its entries is behind; empty: not asked for yet.
    """

    servers: set[str] = field(default_factory=set)
    first_id: str = "0-0"
    last_id: str = ""


class Witness:
    """Owns a connection of its own: WAITAOF is about what its connection wrote last.

    Args:
        url: Of Redis.
        timeout_s: Of silence, then the connection is given up.
        poll_s: How often it asks where a confirmation takes its time.
        clock: Monotonic, in seconds.

    Attributes:
        waits_for: What the last call still waited for: `"nothing"`, `"sync"` (WAITAOF) or `"load"` (the stream).
        fsync: How durable Redis's replies were then: `appendfsync`, `"off"` or `"unknown"`.
    """

    def __init__(
        self, url: str, timeout_s: float, poll_s: float = _POLL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.waits_for = "nothing"
        self.fsync = "unknown"
        self._pool = stream.pool(url, timeout_s)
        self._poll_s = poll_s
        self._clock = clock
        self._client: redis.Redis | None = None
        self._server = ""
        self._is_honest = False
        self._marked: list[Shipment] = []  # those before the write that WAITAOF is asked about
        self._poll_at = 0.0

    def begin(self, shipment: Shipment) -> None:
        """Notes where in the stream its entries begin, before the first is appended.

        Raises:
            StreamUnavailable: Redis is away.
        """
        with self._connected() as client:
            shipment.first_id = _last_id(client)
        shipment.servers.add(self._server)

    def confirmed(self, shipments: Sequence[Shipment]) -> list[Shipment]:
        """Returns those that a power cut, of any machine, does not lose now.

        Raises:
            StreamUnavailable: Redis is away: none may be released.
        """
        if self.waits_for != "nothing" and self._clock() < self._poll_at:
            return []
        with self._connected() as client:
            return self._ask(client, [one for one in shipments if not self.has_lost(one)])

    def has_lost(self, shipment: Shipment) -> bool:
        """Tells whether Redis was started anew since, as far as the last call of `confirmed` saw."""
        return shipment.servers != {self._server}

    @contextmanager
    def _connected(self) -> Iterator[redis.Redis]:
        try:
            with stream.translated():
                if self._client is None:
                    self._client = redis.Redis(connection_pool=self._pool, single_connection_client=True)
                    info = _server_info(self._client)
                    self._server, self._is_honest = info.get("run_id", ""), _is_honest(info)
                yield self._client
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._pool.disconnect()
        # A new connection has written nothing: WAITAOF would confirm that.
        self._client, self._marked = None, []

    def _ask(self, client: redis.Redis, shipments: list[Shipment]) -> list[Shipment]:
        self.fsync = _fsync_of(client)
        if self.fsync == "always":
            self.waits_for = "nothing"
            # The sync before this reply covers all that was written before it, also under another setting.
            client.set(stream.PROBE, "1", px=10_000)
            return shipments
        self.waits_for = "sync" if self._is_honest else "load"
        found = self._synced(client, shipments) if self._is_honest else []
        if not found:
            found = self._loaded(client, shipments)
        self._poll_at = self._clock() + self._poll_s
        return found

    def _synced(self, client: redis.Redis, shipments: list[Shipment]) -> list[Shipment]:
        self._marked = [one for one in self._marked if one in shipments]
        if not self._marked:  # else the mark would move away from what is being synced
            client.set(stream.PROBE, "1", px=10_000)
            self._marked = shipments
        try:
            local, _ = client.execute_command("WAITAOF", 1, 0, 1)
        except redis.ResponseError:  # without an AOF, or where it is not allowed
            self.waits_for = "load"
            return []
        if not local:
            return []
        # One that cannot be released may be asked for again and again: the others get a mark of their own.
        found, self._marked = self._marked, []
        return found

    def _loaded(self, client: redis.Redis, shipments: list[Shipment]) -> list[Shipment]:
        if not all(one.last_id for one in shipments):
            last_id = _last_id(client)
            for one in shipments:
                one.last_id = one.last_id or last_id
        ids = [entry_id for one in shipments for entry_id in (one.first_id, one.last_id)]
        left: Any = client.eval(_LEFT, 1, stream.STREAM, *ids)
        return [one for one, count in zip(shipments, left, strict=True) if not count]


def _server_info(client: redis.Redis) -> dict[str, str]:
    try:
        return client.info("server")
    except redis.ResponseError:
        return {}


def _is_honest(info: dict[str, str]) -> bool:
    """Tells whether the server's WAITAOF can be believed: Redis's own, from 8.0 on."""
    version = tuple(int(part) for part in str(info.get("redis_version", "")).split(".")[:2] if part.isdigit())
    return version >= _HONEST and not {"server_name", "valkey_version"} & info.keys()


def _fsync_of(client: redis.Redis) -> str:
    try:
        found = client.config_get("*append*")
    except redis.ResponseError:
        return "unknown"  # Managed servers hide CONFIG.
    if found.get("appendonly") != "yes":
        return "off"
    # `always` pauses while the AOF is rewritten, if it is told to.
    return "no" if found.get("no-appendfsync-on-rewrite") == "yes" else str(found.get("appendfsync", "unknown"))


def _last_id(client: redis.Redis) -> str:
    try:
        return str(str_if_bytes(client.xinfo_stream(stream.STREAM)["last-generated-id"]))
    except redis.ResponseError as error:
        if "no such key" not in str(error):
            raise
        return "0-0"  # Somebody has deleted the stream.
