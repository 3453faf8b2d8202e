"""What can be seen of a PostgreSQL: as the loader is connected, reading alone, and within seconds."""

import os
import re
import time
from contextlib import closing
from typing import Any

import msgspec
import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import parse_dsn

from workers import loader, transaction
from workers.watchdog import Watchdog

_TIMEOUT_S = 5
_LOOK_MS = 2000
DEFAULT_ROWS_LIMIT = 10_000
_NOT_READABLE = (
    psycopg2.errors.UndefinedTable, psycopg2.errors.InsufficientPrivilege, psycopg2.errors.LockNotAvailable,
    psycopg2.errors.QueryCanceled,
)

# As they are within a load: what ALTER ROLE and ALTER DATABASE say counts.
_SETTINGS = """
SELECT name, setting FROM pg_settings WHERE name IN (
    'server_version', 'server_version_num', 'synchronous_commit', 'synchronous_standby_names', 'fsync',
    'full_page_writes', 'default_transaction_read_only', 'server_encoding', 'max_connections',
    'superuser_reserved_connections', 'statement_timeout', 'idle_in_transaction_session_timeout', 'lock_timeout',
    'listen_addresses', 'data_directory'
)
"""
_SELF = """
SELECT current_user::text, current_database()::text, current_schema()::text, pg_is_in_recovery(),
    extract(epoch FROM clock_timestamp())::float8, pg_backend_pid(),
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int,
    (SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'spillway %')::int,
    coalesce(has_schema_privilege(current_schema(), 'CREATE'), false),
    (SELECT least(nullif(rolconnlimit, -1), nullif(datconnlimit, -1)) FROM pg_roles, pg_database
     WHERE rolname = current_user AND datname = current_database())
"""
_TABLES = """
SELECT c.relname::text, c.relkind::text, pg_has_role(c.relowner, 'USAGE'), array(
    SELECT p::text FROM unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p WHERE has_table_privilege(c.oid, p)
), array(
    SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
), array(
    SELECT attname::text FROM pg_attribute
    WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attnotnull AND NOT atthasdef AND attidentity = ''
), EXISTS (
    SELECT FROM pg_index WHERE indrelid = c.oid AND indisunique AND indisvalid AND indpred IS NULL
        AND indnkeyatts = 1 AND indkey[0] = (
            SELECT attnum FROM pg_attribute WHERE attrelid = c.oid AND attname = 'batch_id'
        )
)
FROM pg_class AS c WHERE c.oid IN (
    to_regclass('log_events'), to_regclass('log_batches'), to_regclass('log_events_default')
)
"""
_PARTITIONS = """
SELECT c.relname::text FROM pg_inherits JOIN pg_class AS c ON c.oid = inhrelid
WHERE inhparent = to_regclass('log_events')
"""
_DEFAULT_ROWS = f"SELECT count(*) FROM (SELECT FROM log_events_default LIMIT {DEFAULT_ROWS_LIMIT + 1}) AS found"
_STRAY_DAYS = """
SELECT DISTINCT (ts AT TIME ZONE 'UTC')::date::text FROM log_events_default
WHERE ts >= date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'
"""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """One table: its kind (`p` is partitioned), what we may do with it, its columns and those it must be given."""

    kind: str
    is_ours: bool
    privileges: list[str]
    columns: list[str]
    required: list[str]
    has_key: bool


class PostgresFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One PostgreSQL as the loader meets it.

    Attributes:
        settings: Of `pg_settings`, those that matter; what our role may not see is missing.
        schema: Where tables are made; None: nowhere.
        skew_s: Its clock less ours.
        connection_count, own_count: Clients now, and those of them that are ours.
        connection_limit: What our role or the database is limited to; None: not.
        is_shared: Whether two connections of ours share one backend: a pooler hands it out by transaction.
        pooler: The version of the pgbouncer between, where it tells us; None: there is none, or it does not.
        default_rows: Rows outside the partitions, at most one above `DEFAULT_ROWS_LIMIT`; None where we may not look.
        stray_days: Days from today on of which such rows are; None where we may not look.
        is_open: Whether it lets us in without a password; None where that could not be tried.
    """

    settings: dict[str, str]
    user: str = "spillway"
    database: str = "spillway"
    schema: str | None = "public"
    may_create: bool = True
    is_in_recovery: bool = False
    skew_s: float = 0.0
    connection_count: int = 0
    own_count: int = 0
    connection_limit: int | None = None
    is_shared: bool = False
    pooler: tuple[int, ...] | None = None
    has_own_options: bool = False
    tables: dict[str, Table] = {}
    partitions: list[str] = []
    default_rows: int | None = 0
    stray_days: list[str] | None = []
    is_open: bool | None = False


def observe(url: str, timeout_s: int) -> PostgresFacts:
    """Looks at the server.

    Args:
        url: libpq URL.
        timeout_s: `SPILLWAY_SINK_TIMEOUT_S`.

    Raises:
        psycopg2.Error: It does not answer, or does not let us in.
    """
    parameters = loader.parameters(url, "doctor") | {"connect_timeout": _TIMEOUT_S}
    with closing(_connect(parameters)) as connection, Watchdog(_TIMEOUT_S).guard(connection):
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(loader.begin(url, timeout_s))
            settings = dict(_rows(cursor, _SETTINGS))
            cursor.execute("COMMIT")
            began_at = time.time()
            [row] = _rows(cursor, _SELF)
            skew_s = row[4] - (began_at + time.time()) / 2
            tables = {name: _table(rest) for name, *rest in _rows(cursor, _TABLES)}
            partitions = sorted(name for name, in _rows(cursor, _PARTITIONS))
        return PostgresFacts(
            settings=settings, user=row[0], database=row[1], schema=row[2], is_in_recovery=row[3], skew_s=skew_s,
            connection_count=row[6], own_count=row[7], may_create=row[8], connection_limit=row[9],
            is_shared=_is_shared(connection, parameters), pooler=_pooler(url),
            has_own_options="options" in parse_dsn(url), tables=tables, partitions=partitions,
            default_rows=_default_rows(connection), stray_days=_stray_days(connection), is_open=_is_open(url),
        )


def _connect(parameters: dict[str, Any]) -> Connection:
    connection: Connection
    began_at = time.monotonic()
    try:
        connection = psycopg2.connect(**parameters)
    except psycopg2.OperationalError:
        if time.monotonic() - began_at >= _TIMEOUT_S - 1:
            raise
        # A server that takes no writes is to be looked at, too; any other error comes again.
        connection = psycopg2.connect(**parameters | {"target_session_attrs": "any"})
    return connection


def _rows(cursor: Any, statement: str) -> list[tuple[Any, ...]]:
    cursor.execute(statement)
    return list(cursor.fetchall())


def _table(row: list[Any]) -> Table:
    kind, is_ours, privileges, columns, required, has_key = row
    return Table(kind=kind, is_ours=is_ours, privileges=privileges, columns=columns, required=required, has_key=has_key)


def _is_shared(connection: Connection, parameters: dict[str, Any]) -> bool:
    """Asks two open connections for their backend: a pooler by transaction gives the one that is free to both."""
    with closing(_connect(parameters)) as second:
        second.autocommit = True
        pids = []
        for one in (connection, second):
            with one.cursor() as cursor:
                pids += _rows(cursor, "SELECT pg_backend_pid()")
    return pids[0] == pids[1]


def _pooler(url: str) -> tuple[int, ...] | None:
    """Asks the console that pgbouncer shows as a database, to those whom its `stats_users` names."""
    try:
        connection = psycopg2.connect(**{**parse_dsn(url), "dbname": "pgbouncer", "connect_timeout": _TIMEOUT_S})
    except psycopg2.OperationalError:
        return None
    with closing(connection):
        connection.autocommit = True  # it knows no transactions
        try:
            with connection.cursor() as cursor:
                [[text]] = _rows(cursor, "SHOW VERSION")
        except (psycopg2.Error, ValueError):  # a database of that name
            return None
    found = re.search(r"PgBouncer (\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else None


def _default_rows(connection: Connection) -> int | None:
    try:
        with connection.cursor() as cursor:
            return int(_rows(cursor, _DEFAULT_ROWS)[0][0])
    except _NOT_READABLE:
        return None


def _stray_days(connection: Connection) -> list[str] | None:
    try:
        with connection.cursor() as cursor, transaction.brief(cursor, 0, _LOOK_MS):
            return [day for day, in _rows(cursor, _STRAY_DAYS)]
    except _NOT_READABLE:
        return None


def _is_open(url: str) -> bool | None:
    """Tries without the password, wherever libpq could find one. A certificate is as good as a password."""
    found = parse_dsn(url)
    is_socket = found.get("host", "/").startswith("/")
    if is_socket or "PGPASSWORD" in os.environ or "PGSSLCERT" in os.environ or "sslcert" in found:
        return None
    found.pop("password", None)
    try:
        psycopg2.connect(**{**found, "passfile": f"{os.devnull}/none", "connect_timeout": _TIMEOUT_S}).close()
    except psycopg2.OperationalError:
        return False
    return True
