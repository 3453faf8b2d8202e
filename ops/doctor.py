"""`spillway doctor`: checks what a deployment gets wrong, and says what to do about it. Changes nothing; all that it
writes is the probe that the service writes, too, and that goes by itself.

Looks at the running stack of the data directory, with the settings that it was started with; where nothing runs, at the
servers of REDIS_URL and DATABASE_URL; and in any case at this machine.
"""

import argparse
import os
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import psycopg2

from app.errors import SettingError, StreamUnavailable
from app.settings import Settings
from ops import family, metrics_dir, secret
from ops.checkup import (
    disk_check, disk_facts, host_check, host_facts, metric_check, postgres_check, postgres_facts, redis_check,
    redis_facts, release,
)
from ops.checkup.finding import Finding, away, bad, unknown
from ops.redis_server import RedisServer
from ops.stack import Stack
from wal.errors import WalError
from wal.reader import used_bytes
from workers.blame import Blame, blame

_ENCODE = "characters such as @ : / % in a password are written %40 %3A %2F %25"
_WIDTH = 110
_HEAD = "{:8} {:22} {}"
_INDENT = " " * len(_HEAD.format("", "", ""))


class _Patient(NamedTuple):
    """What is looked at. `pid` is a process of the running stack; a URL that is None is of a server that is off."""

    stack: Stack
    is_up: bool
    pid: int | None
    settings: Settings
    redis_url: str | None
    database_url: str | None
    embedded: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `doctor`."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Returns 0 when nothing is bad, 78 when something is, 75 when nothing is but a server does not answer."""
    patient = _patient(settings)
    findings = list(_findings(patient))
    if args.json:
        print(msgspec.json.format(msgspec.json.encode({
            "data_dir": str(patient.stack.state), "is_up": patient.is_up, "findings": findings,
        })).decode())
    else:
        print(_text(patient, findings))
    if any(one.level == "bad" for one in findings):
        return os.EX_CONFIG
    return os.EX_TEMPFAIL if any(one.is_away for one in findings) else 0


def _patient(settings: Settings) -> _Patient:
    stack = Stack(settings.state)
    if not stack.is_up():
        embedded = [name for name, url in (("redis", settings.redis_url), ("postgres", settings.database_url))
                    if url is None]
        return _Patient(stack, False, None, settings, settings.redis_url, settings.database_url, embedded)
    facts = stack.facts()
    for pid in sorted(family.children(stack.state)):
        environ = family.environment(pid)
        if environ.get("SUPERVISOR_PROCESS_NAME") not in (None, "redis", "postgres"):  # theirs have limits of their own
            found = Settings.from_env(environ)
            return _Patient(stack, True, pid, found, facts.redis_url, facts.database_url, facts.embedded)
    return _Patient(stack, True, None, settings, facts.redis_url, facts.database_url, facts.embedded)


def _findings(patient: _Patient) -> Iterator[Finding]:
    dirs: dict[str, str | None] = {name: None for name in ("redis", "postgres")}
    dirs |= {name: str(patient.stack.state) for name in patient.embedded}
    yield from _redis(patient, dirs)
    yield from release.old_volume(release.OLD_VOLUME)
    yield from _postgres(patient, dirs)
    yield from _disk(patient, dirs)
    has_redis = redis_facts.is_local(patient.redis_url or "")
    is_embedded = "redis" in patient.embedded
    has_postgres = redis_facts.is_local(patient.database_url or "")
    facts = host_facts.observe(patient.pid)
    yield from host_check.check(facts, patient.settings, has_redis, is_embedded, has_postgres)
    if patient.pid:
        state, uid = patient.stack.state, os.stat(f"/proc/{patient.pid}").st_uid
        yield metric_check.shared(metrics_dir.path(state), family.children(state), uid)
    yield from host_check.exposure({
        "ingest": host_facts.listeners(patient.settings.port) if patient.pid else [patient.settings.bind],
        "admin": host_facts.listeners(patient.settings.admin_port) if patient.pid else [patient.settings.admin_bind],
    }, patient.settings)


def _redis(patient: _Patient, dirs: dict[str, str | None]) -> Iterator[Finding]:
    url = patient.redis_url
    if url is None:
        yield _stopped_redis(patient)
        return
    try:
        facts = redis_facts.observe(url)
    except ValueError as error:
        yield bad("redis", secret.hidden(str(error), url), "REDIS_URL cannot be read", _ENCODE)
        return
    except StreamUnavailable as error:
        yield _no_redis(secret.redacted(url), secret.hidden(str(error), url), error.cause)
        return
    yield from redis_check.check(facts, patient.settings)
    yield host_check.skew("redis", facts.skew_s)
    if facts.is_local and facts.config:
        dirs["redis"] = facts.config.get("dir")


def _stopped_redis(patient: _Patient) -> Finding:
    settings = patient.settings
    try:
        _, program = RedisServer(
            patient.stack.state, settings.redis_port, settings.redis_max_bytes, settings.redis_server,
        ).choice()
    except SettingError as error:
        return bad("redis", str(error), "`spillway up` refuses, and what is in these files is not loaded",
                   "ops/RUNBOOK.md, What always holds")
    return unknown("redis", "embedded, and not running", remedy=f"`spillway up` starts it: {program}")


def _no_redis(url: str, detail: str, cause: str) -> Finding:
    if cause in ("NOAUTH", "WRONGPASS", "NOPERM", "DENIED"):
        return bad("redis", f"{url}: {detail}", "every batch goes to the WAL, and stays there",
                   "put the right user and password into REDIS_URL")
    return away("redis", f"{url} does not answer: {detail}",
                "start it, or mend REDIS_URL; meanwhile batches go to the WAL")


def _postgres(patient: _Patient, dirs: dict[str, str | None]) -> Iterator[Finding]:
    url = patient.database_url
    if url is None:
        yield unknown("postgres", "embedded, and not running", remedy="`spillway up` starts it")
        return
    try:
        facts = postgres_facts.observe(url, patient.settings.sink_timeout_s)
    except psycopg2.Error as error:
        yield _no_postgres(url, error)
        return
    yield from postgres_check.check(facts, patient.settings)
    yield host_check.skew("postgres", facts.skew_s)
    if redis_facts.is_local(url):
        dirs["postgres"] = facts.settings.get("data_directory") or dirs["postgres"]


def _no_postgres(url: str, error: psycopg2.Error) -> Finding:
    detail = secret.hidden(" ".join(str(error).split()), url)
    if "unsupported startup parameter" in detail:
        return bad("postgres", detail, "a pooler stands between, and refuses a parameter of DATABASE_URL: nothing is "
                   "loaded, batches are held in Redis until this is mended",
                   "take it out of DATABASE_URL, or name it in pgbouncer.ini's ignore_startup_parameters")
    if type(error) is psycopg2.ProgrammingError:
        return bad("postgres", detail, "DATABASE_URL cannot be read: nothing is loaded", _ENCODE)
    if blame(error) is Blame.OPERATOR:
        return bad("postgres", detail, "nothing is loaded: batches are held in Redis until this is mended",
                   "mend what PostgreSQL names: the role, its password, the database, pg_hba.conf, or DATABASE_URL")
    return away("postgres", f"{secret.redacted(url)} does not answer: {detail}",
                "start it, or mend DATABASE_URL; meanwhile batches wait in Redis")


def _disk(patient: _Patient, dirs: dict[str, str | None]) -> Iterator[Finding]:
    settings, state = patient.settings, patient.stack.state
    uid = os.stat(f"/proc/{patient.pid}").st_uid if patient.pid else os.geteuid()
    wal = disk_facts.observe(settings.wal_path, uid)
    try:
        used = used_bytes(settings.wal_path)
    except WalError:  # Not ours to read, which is said below.
        used = 0
    yield from disk_check.check(wal, disk_facts.observe(state, uid), used, settings, len(patient.embedded) == 2)
    yield disk_check.neighbours(wal, {name: _device(path) for name, path in dirs.items()})
    yield disk_check.secrets(disk_facts.secrets(state))


def _device(path: str | None) -> int | None:
    return os.stat(path).st_dev if path and os.path.exists(path) else None  # It may be in another container.


def _text(patient: _Patient, findings: list[Finding]) -> str:
    if patient.is_up:
        where = f"The stack that runs in {patient.stack.state}, as it was started:"
    else:
        where = f"Nothing runs in {patient.stack.state}; as the environment has it:"
    counts = Counter(one.level for one in findings)
    totals = ", ".join(f"{counts[level]} {level}" for level in ("ok", "warn", "bad", "unknown") if counts[level])
    return "\n".join([where, *map(_shown, findings), f"{totals}."])


def _shown(one: Finding) -> str:
    lines = _wrapped(one.seen, "")
    if one.level != "ok":
        lines += _wrapped(one.why, "") + _wrapped(one.remedy, "> ")
    first, *rest = lines
    return "\n".join([_HEAD.format(one.level, one.check, first), *(f"{_INDENT}{line}" for line in rest)])


def _wrapped(text: str, mark: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH - len(_INDENT), initial_indent=mark, subsequent_indent=" " * len(mark),
                         break_long_words=False, break_on_hyphens=False)
