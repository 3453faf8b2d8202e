"""What can be seen of a Redis: by its answers alone, with the rights of the service, and within seconds."""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import redis

from app import stream
from app.errors import StreamUnavailable
from app.settings import is_loopback

_TIMEOUT_S = 3.0
_SETTINGS = "appendonly appendfsync no-appendfsync-on-rewrite dir bind protected-mode save".split()
_INFO = (
    "redis_version valkey_version redis_mode cluster_enabled role loading "
    "aof_last_write_status aof_last_bgrewrite_status aof_enabled "
    "rdb_last_bgsave_status maxmemory maxmemory_policy used_memory total_system_memory maxclients"
).split()

Seen = TypeVar("Seen")


class RedisFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One Redis as it was seen.

    Attributes:
        info: Of INFO, the fields that matter.
        config: Of CONFIG GET, the settings that matter; None where the server hides it.
        skew_s: Its clock less ours.
        has_stream: Whether there is a stream; None where we may not look.
        has_group: Whether the stream has the consumer group.
        write_error: What it said when the service's probe was written; empty: it took it.
        is_open: Whether it serves who brings no password; None where that could not be tried.
        is_local: Whether it is reached on this machine.
    """

    info: dict[str, str] = {}
    config: dict[str, str] | None = None
    skew_s: float = 0.0
    has_stream: bool | None = False
    has_group: bool = False
    write_error: str = ""
    is_open: bool | None = False
    is_local: bool = True


def observe(url: str) -> RedisFacts:
    """Looks at the server; writes nothing but the service's own probe, which goes by itself.

    Raises:
        StreamUnavailable: It does not answer, or does not let us in.
    """
    client = redis.Redis(connection_pool=stream.pool(url, _TIMEOUT_S))
    with closing(client), stream.translated():
        client.ping()
        return RedisFacts(
            info=_info(client),
            config=_config(client),
            skew_s=_skew_s(client),
            has_stream=_or(None, lambda: bool(client.exists(stream.STREAM))),
            has_group=_or(False, lambda: _has_group(client)),
            write_error=_write_error(client),
            is_open=_is_open(url),
            is_local=is_local(url),
        )


def is_local(url: str) -> bool:
    """Tells whether a server's URL leads to this machine."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return False
    return not host or host == "localhost" or is_loopback(host)


def _or(fallback: Any, look: Callable[[], Seen]) -> Any:
    """Returns what is seen, or the fallback where the server does not let us look."""
    try:
        return look()
    except redis.ResponseError:
        return fallback


def _info(client: redis.Redis) -> dict[str, str]:
    found: dict[str, Any] = _or({}, client.info)
    return {name: str(found[name]) for name in _INFO if name in found}


def _config(client: redis.Redis) -> dict[str, str] | None:
    found: dict[str, str] = {}
    for name in _SETTINGS:  # 6.2 takes one pattern at a time
        answer: dict[Any, Any] | None = _or(None, lambda: client.config_get(name))
        if answer is None:
            return None
        found.update({_text(key): _text(value) for key, value in answer.items()})
    return found or None


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _skew_s(client: redis.Redis) -> float:
    began_at = time.time()
    seconds, micros = _or((began_at, 0), client.time)
    return float(seconds + micros / 1e6 - (began_at + time.time()) / 2)


def _has_group(client: redis.Redis) -> bool:
    groups: Any = client.xinfo_groups(stream.STREAM)  # an error where there is no stream
    return any(group["name"] == stream.GROUP.encode() for group in groups)


def _write_error(client: redis.Redis) -> str:
    try:
        client.set(stream.PROBE, "1", px=10_000)
    except redis.RedisError as error:
        return str(stream.unavailable(error))
    return ""


def _is_open(url: str) -> bool | None:
    """Tries without the password."""
    parts = urlsplit(url)
    if parts.scheme == "unix" or not parts.password:
        return None if parts.scheme == "unix" else True
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        with closing(redis.Redis(connection_pool=stream.pool(bare, _TIMEOUT_S))) as client, stream.translated():
            client.ping()
    except StreamUnavailable as error:
        return False if error.cause in ("NOAUTH", "DENIED", "NOPERM") else None
    return True
