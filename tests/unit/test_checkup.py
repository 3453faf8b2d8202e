"""The doctor's verdicts: each is a function of what was seen, so that every fault can be shown to it."""

from datetime import date

import msgspec
import pytest

from app.batch import COLUMNS
from app.settings import Settings
from ops import secret
from ops.checkup import disk_check, host_check, postgres_check, redis_check, release
from ops.checkup.disk_facts import DirectoryFacts, FileFacts
from ops.checkup.finding import size
from ops.checkup.host_facts import HostFacts, has_cpu_group
from ops.checkup.postgres_facts import PostgresFacts, Table
from ops.checkup.redis_facts import RedisFacts

SETTINGS = Settings()
OPEN = Settings(open_bind="allow")
GIB = 1 << 30
TODAY = date(2026, 1, 31)

REDIS = RedisFacts(
    info={
        "redis_version": "7.2.4", "valkey_version": "9.1.2", "cluster_enabled": "0", "role": "master",
        "aof_enabled": "1",
        "aof_last_write_status": "ok", "aof_last_bgrewrite_status": "ok", "rdb_last_bgsave_status": "ok",
        "maxmemory": str(GIB), "maxmemory_policy": "noeviction", "used_memory": "1000000",
        "total_system_memory": str(8 * GIB),
    },
    config={"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no", "dir": "/data",
            "bind": "127.0.0.1", "protected-mode": "yes"},
    has_stream=True, has_group=True,
)
POSTGRES = PostgresFacts(
    settings={
        "server_version": "17.12", "server_version_num": "170012", "synchronous_commit": "on", "fsync": "on",
        "synchronous_standby_names": "", "full_page_writes": "on", "default_transaction_read_only": "off",
        "server_encoding": "UTF8", "max_connections": "100", "superuser_reserved_connections": "3",
        "statement_timeout": "30000", "idle_in_transaction_session_timeout": "30000", "lock_timeout": "10000",
        "listen_addresses": "localhost",
    },
    tables={
        "log_events": Table(kind="p", is_ours=True, privileges=["INSERT"], columns=list(COLUMNS),
                            required=["ts", "message"], has_key=False),
        "log_batches": Table(
            kind="r", is_ours=True, privileges=["SELECT", "INSERT", "UPDATE", "DELETE"], required=["batch_id"],
            columns=["batch_id", "body_sha256", "event_count", "received_at", "loaded_at", "dead_events"], has_key=True,
        ),
        "log_events_default": Table(kind="r", is_ours=True, privileges=[], columns=[], required=[], has_key=False),
    },
    partitions=[f"log_events_202601{day}" for day in (30, 31)] + [f"log_events_2026020{day}" for day in range(1, 8)],
)
WAL = DirectoryFacts(path="/srv/wal")
HOST = HostFacts(
    file_limit=4096, memory_bytes=8 * GIB, overcommit=1, huge_pages="madvise", somaxconn=4096, shm_free_bytes=GIB,
    is_clock_synced=True,
)


def with_info(**changes):
    """Returns the good Redis with other fields of INFO; None: it does not show that one."""
    info = {name: value for name, value in {**REDIS.info, **changes}.items() if value is not None}
    return msgspec.structs.replace(REDIS, info=info)


def of_redis(version):
    """Returns the good one as a Redis of that version."""
    return with_info(valkey_version=None, redis_version=version)


def with_config(facts=REDIS, **changes):
    """Returns a Redis with other settings; `_` in their names stands for `-`."""
    config = {**facts.config, **{name.replace("_", "-"): value for name, value in changes.items()}}
    return msgspec.structs.replace(facts, config=config)


def redis(**changes):
    """Returns the good Redis with other facts."""
    return msgspec.structs.replace(REDIS, **changes)


def with_setting(**changes):
    """Returns the good PostgreSQL with other settings."""
    return msgspec.structs.replace(POSTGRES, settings={**POSTGRES.settings, **changes})


def of_postgres(version, number):
    """Returns what is said of a version of PostgreSQL."""
    return release.postgres_version(with_setting(server_version=version, server_version_num=number))


def postgres(**changes):
    """Returns the good PostgreSQL with other facts."""
    return msgspec.structs.replace(POSTGRES, **changes)


def with_table(name, **changes):
    """Returns the good PostgreSQL with another table; without changes, without it."""
    tables = {**POSTGRES.tables, name: msgspec.structs.replace(POSTGRES.tables[name], **changes)}
    if not changes:
        del tables[name]
    return postgres(tables=tables)


def wal(**changes):
    """Returns the good directory with other facts."""
    return msgspec.structs.replace(WAL, **changes)


def host(**changes):
    """Returns the good machine with other facts."""
    return msgspec.structs.replace(HOST, **changes)


HIDDEN = redis(config=None)

REDIS_CASES = [
    (release.redis_version(REDIS), "ok", "Valkey 9.1.2"),
    (release.redis_version(with_info(valkey_version="9.1.1")), "warn", "upgrade to 9.1.2"),
    (release.redis_version(with_info(valkey_version="9.0.1")), "ok", "Valkey 9.0.1"),
    (release.redis_version(with_info(valkey_version="8.1.1")), "warn", "upgrade to 8.1.4"),
    (release.redis_version(of_redis("6.0.16")), "bad", "6.2"),
    (release.redis_version(of_redis("6.2.14")), "warn", "CVE-2025-49844"),
    (release.redis_version(of_redis("6.2.20")), "ok", "Redis 6.2.20"),
    (release.redis_version(of_redis("7.0.15")), "warn", "upgrade to 8.2 or later; a distribution"),
    (release.redis_version(of_redis("8.4.0")), "ok", "Redis 8.4.0"),
    (release.redis_version(of_redis("255.255.255")), "ok", "Redis 255"),
    (release.redis_version(of_redis(None)), "unknown", "provider"),
    (release.cluster(with_info(cluster_enabled="1")), "bad", "cluster-enabled no"),
    (release.cluster(with_info(cluster_enabled=None, redis_mode="cluster")), "bad", "WAL"),
    (release.cluster(with_info(cluster_enabled=None)), "unknown", "INFO"),
    (redis_check.durability(with_config(appendfsync="everysec")), "warn", "up to 1 s"),
    (redis_check.durability(with_config(appendfsync="everysec")), "warn", "through an outage of PostgreSQL"),
    (redis_check.durability(with_config(appendfsync="no")), "bad", "half a minute"),
    (redis_check.durability(with_config(with_info(aof_enabled="0"), appendonly="no")), "bad", "memory alone"),
    (redis_check.durability(HIDDEN), "unknown", "SPILLWAY_WAL=always"),
    (redis_check.rewriting(with_config(no_appendfsync_on_rewrite="yes")), "bad", "nothing is synced"),
    (redis_check.rewriting(HIDDEN), "unknown", "provider"),
    (redis_check.persistence(with_info(aof_last_write_status="err")), "bad", "MISCONF"),
    (redis_check.persistence(with_info(rdb_last_bgsave_status="err")), "bad", "/data"),
    (redis_check.persistence(with_info(aof_last_bgrewrite_status="err")), "warn", "BGREWRITEAOF"),
    (redis_check.persistence(with_info(aof_last_write_status=None)), "unknown", "INFO"),
    (redis_check.writes(redis(write_error="OOM: command not allowed")), "warn", "full"),
    (redis_check.writes(redis(write_error="NOPERM: no permissions")), "bad", "ACL SETUSER"),
    (redis_check.writes(redis(write_error="MISCONF: errors writing")), "bad", "MISCONF"),
    (redis_check.role(with_info(role="slave")), "bad", "primary"),
    (redis_check.role(with_info(role=None)), "unknown", ""),
    (redis_check.eviction(with_info(maxmemory_policy="allkeys-lru")), "bad", "deletes the stream"),
    (redis_check.eviction(with_info(maxmemory_policy="volatile-ttl")), "warn", "noeviction"),
    (redis_check.eviction(with_info(maxmemory_policy=None)), "unknown", "provider"),
    (redis_check.memory(with_info(maxmemory="0"), SETTINGS), "warn", "no limit"),
    (redis_check.memory(with_info(maxmemory=str(GIB // 2)), SETTINGS), "warn", "OOM"),
    (redis_check.memory(with_info(total_system_memory=str(GIB // 2)), SETTINGS), "warn", "the machine has"),
    (redis_check.memory(with_info(maxmemory=None), SETTINGS), "unknown", "768 MiB"),
    (redis_check.memory(REDIS, Settings(stream_max_bytes=2 * GIB)), "warn", "SPILLWAY_STREAM_MAX_BYTES"),
    (redis_check.memory(REDIS, Settings(stream_max_bytes=GIB // 8)), "warn", "stay there"),
    (redis_check.group(redis(has_group=False)), "warn", "XGROUP CREATE"),
    (redis_check.group(redis(has_group=False, has_stream=False)), "ok", "no stream yet"),
    (redis_check.group(redis(has_group=False, has_stream=None)), "unknown", "ACL"),
    (redis_check.password(redis(is_open=True), SETTINGS), "ok", "this machine alone"),
    (redis_check.password(with_config(redis(is_open=True), bind="0.0.0.0", protected_mode="no"), SETTINGS), "bad",
     "listening on 0.0.0.0"),
    (redis_check.password(with_config(redis(is_open=True), bind="", protected_mode="no"), SETTINGS), "bad", "every"),
    (redis_check.password(with_config(redis(is_open=True), bind="0.0.0.0", protected_mode="no"), OPEN), "warn", ""),
    (redis_check.password(with_config(redis(is_open=True), bind="* -::*"), SETTINGS), "ok", "this machine alone"),
    (redis_check.password(with_config(msgspec.structs.replace(of_redis("6.2.14"), is_open=True),
                                      bind="10.0.0.1"), SETTINGS), "bad", "10.0.0.1"),
    (redis_check.password(redis(is_open=True, is_local=False, config=None), SETTINGS), "bad", "unknown addresses"),
    (redis_check.password(redis(is_open=None), SETTINGS), "unknown", ""),
]
POSTGRES_CASES = [
    (of_postgres("13.9", "130009"), "bad", "14"),
    (of_postgres("14.24", "140024"), "warn", "15 to 18"),
    (of_postgres("15.19", "150019"), "warn", "15.20 is out"),
    (of_postgres("15.21", "150021"), "ok", "15.21"),
    (of_postgres("19.0", "190000"), "warn", "tried are 15 to 18"),
    (postgres_check.durability(with_setting(synchronous_commit="off")), "bad", "SET synchronous_commit = on"),
    (postgres_check.durability(with_setting(synchronous_commit="local", synchronous_standby_names="a")), "warn", "a"),
    (postgres_check.durability(with_setting(synchronous_commit="local")), "ok", "local"),
    (postgres_check.crash_safety(with_setting(fsync="off")), "bad", "ALTER SYSTEM SET fsync = on"),
    (postgres_check.crash_safety(with_setting(full_page_writes="off")), "bad", "full_page_writes"),
    (postgres_check.writes(postgres(is_in_recovery=True)), "bad", "standby"),
    (postgres_check.writes(with_setting(default_transaction_read_only="on")), "bad", "RESET"),
    (postgres_check.encoding(with_setting(server_encoding="SQL_ASCII")), "bad", "UTF8"),
    (postgres_check.schema(postgres(tables={})), "ok", "makes them"),
    (postgres_check.schema(postgres(tables={}, may_create=False)), "bad", "GRANT CREATE ON SCHEMA public TO spillway"),
    (postgres_check.schema(postgres(tables={}, schema=None, may_create=False)), "bad", "search_path"),
    (postgres_check.schema(with_table("log_batches")), "bad", "log_batches is missing"),
    (postgres_check.schema(with_table("log_events", columns=list(COLUMNS[:-1]))), "bad", "lacks attributes"),
    (postgres_check.schema(with_table("log_events", kind="r")), "bad", "not partitioned"),
    (postgres_check.schema(with_table("log_events", required=["tenant"])), "bad", "tenant"),
    (postgres_check.schema(with_table("log_batches", has_key=False)), "bad", "unique index"),
    (postgres_check.schema(with_table("log_batches", columns=["batch_id"])), "bad", "dead_events"),
    (postgres_check.schema(with_table("log_events_default")), "warn", "DEFAULT"),
    (postgres_check.privileges(with_table("log_events", privileges=["SELECT"])), "bad",
     "GRANT INSERT ON log_events TO spillway"),
    (postgres_check.privileges(with_table("log_events", is_ours=False)), "warn", "OWNER TO spillway"),
    (postgres_check.privileges(postgres(may_create=False, user="Odd One")), "warn", 'TO "Odd One"'),
    (postgres_check.partitions(POSTGRES, SETTINGS, TODAY), "ok", "until 2026-02-07"),
    (postgres_check.partitions(POSTGRES, SETTINGS, date(2026, 2, 6)), "warn", "2026-02-08 and 5 more"),
    (postgres_check.partitions(POSTGRES, SETTINGS, date(2026, 2, 6)), "warn", "whether the keeper runs"),
    (postgres_check.partitions(postgres(stray_days=["2026-02-08", "2026-02-07"]), SETTINGS, date(2026, 2, 6)), "warn",
     "rows of 2026-02-08 lie in log_events_default"),
    (postgres_check.partitions(postgres(tables={}), SETTINGS, TODAY), "ok", "no table"),
    (postgres_check.strays(postgres(default_rows=10_001)), "warn", "over 10,000 rows"),
    (postgres_check.strays(postgres(default_rows=10_000)), "ok", "10,000"),
    (postgres_check.strays(postgres(default_rows=None)), "unknown", "may not read"),
    (postgres_check.timeouts(with_setting(statement_timeout="5000"), SETTINGS), "warn", "statement_timeout 5 s"),
    (postgres_check.timeouts(with_setting(idle_in_transaction_session_timeout="0"), SETTINGS), "warn", "off"),
    (postgres_check.timeouts(msgspec.structs.replace(with_setting(statement_timeout="100"), has_own_options=True),
                             SETTINGS), "warn", "`options` in DATABASE_URL"),
    (postgres_check.connections(with_setting(max_connections="4"), SETTINGS), "bad", "max_connections"),
    (postgres_check.connections(postgres(connection_limit=5), SETTINGS), "warn", "5 for us"),
    (postgres_check.connections(postgres(connection_count=95, own_count=2), SETTINGS), "warn", "95 in use"),
    (postgres_check.connections(postgres(connection_count=95, own_count=90), SETTINGS), "ok", "95 in use"),
    (release.pooler(postgres(is_shared=True)), "warn", "lead to PostgreSQL itself"),
    (release.pooler(postgres(is_shared=True, pooler=(1, 18, 0))), "warn", "mended after 1.25.2"),
    (release.pooler(postgres(pooler=(1, 18, 0))), "ok", "pgbouncer 1.18.0 by session"),
    (release.pooler(postgres(pooler=(1, 22, 0))), "warn", "1.22.1 or later"),
    (release.pooler(postgres(is_shared=True, pooler=(1, 21, 0))), "warn", "leak memory"),
    (postgres_check.password(postgres(is_open=True), SETTINGS), "warn", "every account"),
    (postgres_check.password(msgspec.structs.replace(with_setting(listen_addresses="*"), is_open=True), SETTINGS),
     "bad", "scram-sha-256"),
    (postgres_check.password(msgspec.structs.replace(with_setting(listen_addresses="*"), is_open=True), OPEN),
     "warn", "scram-sha-256"),
    (postgres_check.password(postgres(is_open=None), SETTINGS), "unknown", ""),
]
DISK_CASES = [
    *((disk_check.durability(wal(kind=kind), True), "bad", "restarts") for kind in ("tmpfs", "ramfs")),
    *((disk_check.durability(wal(kind=kind), True), "bad", "network") for kind in ("nfs4", "cifs", "9p", "fuse.sshfs")),
    (disk_check.durability(wal(kind="overlay"), True), "warn", "container"),
    (disk_check.durability(wal(kind="overlay"), False), "bad", "volume"),
    (disk_check.durability(wal(kind="overlay", options=["volatile"]), True), "bad", "volatile"),
    (disk_check.durability(wal(kind=""), True), "unknown", "findmnt"),
    *((disk_check.durability(wal(kind=kind), False), "ok", kind) for kind in ("ext4", "xfs", "btrfs", "zfs")),
    (disk_check.room(wal(free_bytes=2 * GIB), 0, SETTINGS), "warn", f"SPILLWAY_WAL_MAX_BYTES={2 * GIB - (16 << 20)}"),
    (disk_check.room(wal(free_bytes=2 * GIB), 3 * GIB, SETTINGS), "ok", "3 GiB used"),
    (disk_check.room(wal(free_bytes=40 << 20), 0, SETTINGS), "bad", "503"),
    (disk_check.inodes(wal(free_inodes=10)), "bad", "df -i /srv/wal"),
    (disk_check.inodes(wal(free_inodes=None)), "ok", "not counted"),
    (disk_check.access("wal permissions", wal(mode=0o777), "SPILLWAY_WAL_DIR"), "bad", "chmod go-w /srv/wal"),
    (disk_check.access("wal permissions", wal(mode=0o755), "SPILLWAY_WAL_DIR"), "warn", "chmod o-r /srv/wal"),
    (disk_check.access("wal permissions", wal(mode=0o711), "SPILLWAY_WAL_DIR"), "ok", "711"),
    (disk_check.access("wal permissions", wal(is_ours=False, owner=7), "SPILLWAY_WAL_DIR"), "bad", "another account"),
    (disk_check.access("wal permissions", wal(is_writable=False), "SPILLWAY_WAL_DIR"), "bad", "not writable"),
    (disk_check.access("wal permissions", wal(options=["ro"]), "SPILLWAY_WAL_DIR"), "bad", "not writable"),
    (disk_check.access("wal permissions", wal(exists=False, mode=0o777), "SPILLWAY_WAL_DIR"), "ok", "not exist yet"),
    (disk_check.access("x", wal(exists=False, is_writable=False), "SPILLWAY_WAL_DIR"), "bad", "SPILLWAY_WAL_DIR"),
    (disk_check.data(wal(kind="tmpfs")), "warn", "SPILLWAY_DATA_DIR"),
    (disk_check.neighbours(WAL, {"redis": 1, "postgres": 1}), "warn", "redis and postgres"),
    (disk_check.neighbours(WAL, {"redis": 2, "postgres": None}), "ok", "unknown of postgres"),
    (disk_check.secrets([FileFacts("stack.json", 0o644, 0), FileFacts("a", 0o600, 0)]), "bad", "chmod go= stack.json"),
    (disk_check.secrets([FileFacts("stack.json", 0o600, 0)]), "ok", "1 file"),
]
HOST_CASES = [
    (host_check.synced(host(is_clock_synced=False)), "warn", "chrony"),
    (host_check.synced(host(is_clock_synced=None)), "unknown", "timedatectl"),
    (host_check.skew("redis", 1.9), "ok", ""),
    (host_check.skew("redis", -2.5), "warn", "2.5 s behind"),
    (host_check.skew("redis", 61.0), "bad", "61.0 s ahead"),
    (host_check.files(host(file_limit=256)), "bad", "ulimit -n 4096"),
    (host_check.files(host(file_limit=1024)), "ok", "1,024"),
    (host_check.backlog(host(somaxconn=128)), "warn", "somaxconn=4096"),
    (host_check.backlog(host(somaxconn=None)), "unknown", ""),
    (host_check.shared_memory(host(shm_free_bytes=1 << 20)), "bad", "SIGBUS"),
    (host_check.shared_memory(host(shm_free_bytes=16 << 20)), "warn", "--shm-size"),
    (host_check.shared_memory(host(shm_free_bytes=None)), "warn", "no /dev/shm"),
    (host_check.memory(host(memory_bytes=GIB), SETTINGS, True), "warn", "SPILLWAY_REDIS_MAX_BYTES"),
    (host_check.memory(host(memory_bytes=GIB), SETTINGS, False), "ok", "512 MiB"),
    (host_check.memory(host(memory_bytes=None), SETTINGS, False), "unknown", ""),
    (host_check.overcommit(host(overcommit=0)), "warn", "vm.overcommit_memory=1"),
    (host_check.overcommit(host(overcommit=None)), "unknown", ""),
    (host_check.huge_pages(host(huge_pages="always")), "warn", "madvise"),
    (host_check.huge_pages(host(huge_pages=None)), "unknown", ""),
    (host_check.scheduler(host(is_autogrouped=True)), "warn", "kernel.sched_autogroup_enabled=0"),
    (host_check.scheduler(host(is_autogrouped=False)), "ok", "not by session"),
    (host_check.wal_bound(Settings(wal_max_bytes=16 << 20)), "bad", "503"),
    (host_check.deadline(Settings(redis_deadline_ms=10_000)), "warn", "250"),
    (host_check.deadline(Settings(redis_deadline_ms=10)), "warn", "250"),
    (next(host_check.exposure({"ingest": ["0.0.0.0"]}, SETTINGS)), "bad", "SPILLWAY_BIND=127.0.0.1"),
    (next(host_check.exposure({"admin": ["127.0.0.1", "::"]}, OPEN)), "warn", "SPILLWAY_ADMIN_BIND=127.0.0.1"),
    (next(host_check.exposure({"admin": ["127.0.0.1", "::1"]}, SETTINGS)), "ok", "::1"),
]


@pytest.mark.parametrize("finding, level, words", [*REDIS_CASES, *POSTGRES_CASES, *DISK_CASES, *HOST_CASES],
                         ids=lambda value: getattr(value, "check", ""))
def test_a_fault_is_found_with_what_to_do(finding, level, words):
    assert finding.level == level, finding
    assert words in f"{finding.seen} {finding.why} {finding.remedy}"
    if level in ("warn", "bad"):
        assert finding.why and finding.remedy
    if level == "ok":
        assert not finding.why and not finding.remedy


def test_where_nothing_is_wrong_nothing_is_found(monkeypatch):
    monkeypatch.setattr(postgres_check, "datetime", FixedDay)
    findings = [
        *redis_check.check(REDIS, SETTINGS), *postgres_check.check(POSTGRES, SETTINGS),
        *disk_check.check(WAL, WAL, 0, SETTINGS, True), *host_check.check(HOST, SETTINGS, True, True, True),
    ]
    assert [one for one in findings if one.level != "ok"] == []
    assert len({one.check for one in findings}) == len(findings) > 30


@pytest.mark.parametrize("membership, weighted, expected", [
    ("4:memory:/x\n1:cpu,cpuacct:/\n0::/", "", False),
    ("4:memory:/\n1:cpu,cpuacct:/docker/x\n0::/", "", True),
    ("0::/", None, False),
    ("0::/", "", True),  # seen from within a container
    ("0::/user.slice/session-1.scope", "user.slice/session-1.scope", True),
    ("0::/user.slice/session-1.scope", "user.slice", True),
    ("0::/user.slice/session-1.scope", "system.slice", False),
    ("", None, False),
])
def test_a_control_group_for_cpu_is_seen_in_either_hierarchy(tmp_path, membership, weighted, expected):
    (tmp_path / "user.slice" / "session-1.scope").mkdir(parents=True)
    if weighted is not None:
        (tmp_path / weighted).mkdir(exist_ok=True)
        (tmp_path / weighted / "cpu.weight").write_text("100\n")
    assert has_cpu_group(membership, tmp_path) is expected


class FixedDay:
    """A calendar on which the good PostgreSQL's partitions lie ahead."""

    @staticmethod
    def now(_):
        return FixedDay

    @staticmethod
    def date():
        return TODAY


@pytest.mark.parametrize("url, shown", [
    ("redis://:secret@h:1/0", "redis://:***@h:1/0"),
    ("postgresql://u:p@ss@h/db", "postgresql://u:***@h/db"),
    ("postgresql://h/db?user=u&password=secret&port=1", "postgresql://h/db?user=u&password=***&port=1"),
    ("postgresql://u@h/db", "postgresql://u@h/db"),
])
def test_a_url_is_shown_without_its_password(url, shown):
    assert secret.redacted(url) == shown


def test_what_an_error_quotes_of_a_password_is_hidden():
    url = "postgresql://u:first@second@h/db"
    assert secret.hidden('could not translate host name "second@h"', url) == 'could not translate host name "***@h"'
    assert secret.hidden("no password there", "redis://h:1/0") == "no password there"


def test_sizes_read_as_people_write_them():
    assert [size(count) for count in (0, 1023, 1536, 16 << 20, 768 << 20, 3 * GIB, 5 << 40)] == [
        "0 bytes", "1023 bytes", "1.5 KiB", "16 MiB", "768 MiB", "3 GiB", "5 TiB",
    ]
