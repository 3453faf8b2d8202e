"""Every setting of the service: one typed, frozen object, read from the environment once, by entry points alone.

A bad value is refused with its name, its value and what is allowed. `python -m app.settings` prints the table that
stands in `ops/REFERENCE.md`.
"""

import os
import re
import socket
import sys
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

from app.errors import SettingError

MIB = 1 << 20

Port = Annotated[int, Meta(ge=1, le=65535)]
Bytes = Annotated[int, Meta(ge=1024, le=1 << 40)]


def _doc(text: str) -> Meta:
    return Meta(description=text)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings, named as in the environment without the prefix `SPILLWAY_`."""

    database_url: Annotated[
        Annotated[str, Meta(pattern="^postgres(ql)?://")] | None,
        _doc("PostgreSQL (15 to 18) as a libpq URL; unset: the embedded server."),
    ] = None
    redis_url: Annotated[
        Annotated[str, Meta(pattern="^(rediss?|unix)://")] | None,
        _doc("Redis (>= 6.2) or Valkey as a URL; unset: the embedded server."),
    ] = None
    data_dir: Annotated[str, _doc("State: embedded servers, logs, sockets.")] = "./var"
    bind: Annotated[str, _doc("IP address that ingest listens on.")] = "127.0.0.1"
    port: Annotated[Port, _doc("Port of ingest.")] = 8080
    admin_bind: Annotated[str, _doc("IP address that admin and metrics listen on.")] = "127.0.0.1"
    admin_port: Annotated[Port, _doc("Port of admin and metrics.")] = 8081
    open_bind: Annotated[
        Literal["refuse", "allow"],
        _doc("`allow`: take a non-loopback address although whoever reaches the port may then post or read."),
    ] = "refuse"
    redis_port: Annotated[Port, _doc("Port of the embedded Redis, on loopback.")] = 6380
    postgres_port: Annotated[Port, _doc("Port of the embedded PostgreSQL, on loopback.")] = 5433
    redis_server: Annotated[
        str, _doc("Program of the embedded Redis, 6.2 or later, or Valkey; unset: the first that can read the data.")
    ] = ""
    postgres_bin: Annotated[
        str, _doc("Directory of the embedded PostgreSQL's programs; unset: the newest that can open the cluster.")
    ] = ""
    redis_max_bytes: Annotated[Bytes, _doc("`maxmemory` of the embedded Redis; full: the WAL takes over.")] = 1024 * MIB
    workers: Annotated[int, Meta(ge=1, le=256), _doc("Gunicorn workers of ingest.")] = 2
    worker_class: Annotated[
        Literal["spillway", "gevent"],
        _doc("Gunicorn's worker class for ingest: `spillway`, a request loop of our own; `gevent`: gunicorn's."),
    ] = "spillway"
    consumers: Annotated[int, Meta(ge=1, le=256), _doc("Consumer processes on this host.")] = 2
    consumer_name: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9_.:-]{1,200}$"),
        _doc("Name in the consumer group, stable over restarts; unset: the host's name."),
    ] = ""
    redis_deadline_ms: Annotated[
        int, Meta(ge=10, le=60_000), _doc("Longest that an acknowledgement waits for Redis, ms.")
    ] = 250
    stream_max_bytes: Annotated[
        Bytes, _doc("Redis memory of stream and dead letters above which batches go to the WAL.")
    ] = 512 * MIB
    wal: Annotated[
        Literal["fallback", "always"],
        _doc("`fallback`: the WAL takes what Redis does not; `always`: it takes everything first, and Redis follows."),
    ] = "fallback"
    wal_deadline_ms: Annotated[
        int, Meta(ge=10, le=60_000), _doc("Longest that an acknowledgement waits for the WAL's disk, ms; more: 503.")
    ] = 5000
    wal_dir: Annotated[str, _doc("Where WAL segments lie; unset: `wal` below `SPILLWAY_DATA_DIR`.")] = ""
    wal_max_bytes: Annotated[Bytes, _doc("Bytes of WAL segments on this host; more: 503.")] = 4096 * MIB
    wal_segment_bytes: Annotated[Bytes, _doc("Size of a WAL segment; each worker keeps a spare one.")] = 16 * MIB
    wal_min_free_bytes: Annotated[Bytes, _doc("Free space that the WAL leaves on its file system.")] = 16 * MIB
    header_timeout_s: Annotated[
        int, Meta(ge=1, le=600), _doc("Longest that a request's head may take to arrive, s.")
    ] = 10
    body_timeout_s: Annotated[
        int, Meta(ge=1, le=600), _doc("Longest that a body may take to arrive, and an answer to be read, s.")
    ] = 30
    max_body_bytes: Annotated[Bytes, _doc("Largest body as sent.")] = 8 * MIB
    max_decoded_bytes: Annotated[Bytes, _doc("Largest body decompressed.")] = 64 * MIB
    max_events: Annotated[int, Meta(ge=1, le=1_000_000), _doc("Most events in a request.")] = 10_000
    max_event_bytes: Annotated[Bytes, _doc("Largest event, its fields as UTF-8.")] = MIB
    max_inflight_bytes: Annotated[
        Bytes, _doc("Most bytes of batches that one worker holds unacknowledged; more: 503.")
    ] = 256 * MIB
    load_max_bytes: Annotated[
        Bytes, _doc("Bytes that one transaction loads, give or take one batch; no more than 4,000 batches.")
    ] = 8 * MIB
    sink_retries: Annotated[
        int, Meta(ge=0, le=1_000_000),
        _doc("Times that a failed load is tried again before `SPILLWAY_SINK_POLICY` decides."),
    ] = 10
    sink_policy: Annotated[
        Literal["dead-letter", "hold"],
        _doc("`dead-letter`: move it to `log_events_dlq`, from where it can be replayed; `hold`: keep trying."),
    ] = "dead-letter"
    dead_letters_max_bytes: Annotated[
        Bytes, _doc("Redis memory of dead letters from which on a load is held although the policy is `dead-letter`.")
    ] = 256 * MIB
    sink_timeout_s: Annotated[
        int, Meta(ge=1, le=3600), _doc("Longest that a load may take; then its connection is cut, s.")
    ] = 30
    claim_idle_s: Annotated[
        int, Meta(ge=1, le=86_400),
        _doc("For how long a consumer may leave a batch alone before others take it over, s."),
    ] = 60
    canary: Annotated[
        Literal["on", "off"], _doc("`on`: an event of service `spillway-canary` every 30 s, looked for in the table.")
    ] = "on"
    canary_token: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9_-]{16,200}$"),
        _doc("Secret by which the canary asks ingest for the WAL; unset: made anew at every start."),
    ] = ""
    partition_days: Annotated[int, Meta(ge=1, le=366), _doc("Daily partitions of `log_events` created ahead.")] = 7
    log_max_bytes: Annotated[
        Bytes, _doc("Size of a log file from which on its older part moves to `<name>.log.1`.")
    ] = 64 * MIB
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], _doc("Least severe line that is logged.")
    ] = "INFO"

    def __post_init__(self) -> None:
        for name in ("bind", "admin_bind"):
            _check_bind(_variable(name), getattr(self, name), self.open_bind)
        if self.max_inflight_bytes < 2 * self.max_body_bytes:
            raise SettingError(
                f"SPILLWAY_MAX_INFLIGHT_BYTES={self.max_inflight_bytes} is not allowed: at least twice "
                f"SPILLWAY_MAX_BODY_BYTES is, {2 * self.max_body_bytes}, as a request holds its body and its batch"
            )
        if self.claim_idle_s < 2 * self.sink_timeout_s:
            raise SettingError(
                f"SPILLWAY_CLAIM_IDLE_S={self.claim_idle_s} is not allowed: at least twice SPILLWAY_SINK_TIMEOUT_S is, "
                f"{2 * self.sink_timeout_s}, or others would take what a living consumer is loading"
            )
        if not self.consumer_name:
            msgspec.structs.force_setattr(self, "consumer_name", socket.gethostname())

    @property
    def state(self) -> Path:
        """`data_dir` as an absolute path."""
        return Path(self.data_dir).absolute()

    @property
    def wal_path(self) -> Path:
        """`wal_dir`, or its place below `data_dir`, as an absolute path."""
        return Path(self.wal_dir).absolute() if self.wal_dir else self.state / "wal"

    def beside_wal(self, name: str) -> Path:
        """Returns `<wal_path>.<name>`, on the same file system: below `wal_path` where that is a mount point."""
        path = self.wal_path
        return path / f".{name}" if os.path.ismount(path) else path.with_name(f"{path.name}.{name}")

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Reads the settings; an empty value counts as unset.

        Raises:
            SettingError: A value is not allowed, or a name begins with `SPILLWAY_` and is not a setting.
        """
        hints = get_type_hints(cls, include_extras=True)
        names = {_variable(field): field for field in cls.__struct_fields__}
        for name in environ:
            if name.startswith("SPILLWAY_") and name not in names:
                raise SettingError(f"{name} is not a setting; the settings are {', '.join(sorted(names))}")
        return cls(**{
            field: _converted(name, environ[name], hints[field]) for name, field in names.items() if environ.get(name)
        })


def _variable(field: str) -> str:
    return field.upper() if field.endswith("_url") else f"SPILLWAY_{field.upper()}"


def _converted(name: str, text: str, kind: Any) -> Any:
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        shown = re.sub(r"(://[^:@/]*:).*(?=@)", r"\1***", text)
        raise SettingError(f"{name}={shown!r} is not allowed: {_allowed(msgspec.inspect.type_info(kind))}") from error


def _allowed(kind: Any) -> str:
    if isinstance(kind, msgspec.inspect.Metadata):
        return _allowed(kind.type)
    if isinstance(kind, msgspec.inspect.UnionType):
        return _allowed(next(one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType)))
    if isinstance(kind, msgspec.inspect.IntType):
        return f"a whole number from {kind.ge} to {kind.le} is"
    if isinstance(kind, msgspec.inspect.LiteralType):
        return f"one of {', '.join(map(str, kind.values))} is"
    return f"text matching {kind.pattern} is"


def is_loopback(address: str) -> bool:
    """Tells whether it is an IP address that only this machine reaches."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def _check_bind(name: str, address: str, open_bind: str) -> None:
    try:
        ip_address(address)
    except ValueError as error:
        raise SettingError(f"{name}={address!r} is not allowed: an IP address is, such as 127.0.0.1 or ::1") from error
    if not is_loopback(address) and open_bind != "allow":
        raise SettingError(
            f"{name}={address!r} is not a loopback address, and there are no keys: whoever reaches the port could "
            "use it. SPILLWAY_OPEN_BIND=allow says that this is meant"
        )


def table() -> str:
    """Returns the settings as a Markdown table: name, default, what it is."""
    rows = ["| setting | default | what it is |", "|---|---|---|"]
    hints = get_type_hints(Settings, include_extras=True)
    for field in msgspec.structs.fields(Settings):
        text = next(m.description for m in reversed(hints[field.name].__metadata__) if m.description)
        default = "unset" if field.default in (None, "") else f"`{field.default}`"
        rows.append(f"| `{_variable(field.name)}` | {default} | {text} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
    try:
        Settings.from_env(os.environ)
    except SettingError as wrong:
        print(wrong, file=sys.stderr)
        sys.exit(os.EX_CONFIG)
