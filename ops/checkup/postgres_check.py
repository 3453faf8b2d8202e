"""Judges a PostgreSQL: what its COMMIT is worth, whether a load can be done as whom we are, and where its rows go."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

from app.batch import COLUMNS
from app.settings import Settings
from ops.checkup.finding import Finding, bad, ok, unknown, warn
from ops.checkup.postgres_facts import DEFAULT_ROWS_LIMIT, PostgresFacts, Table

_OLDEST = 140_000
_RECONNECT = "; then supervisorctl restart consumers:*, which keep their sessions"
_LEDGER = {"batch_id", "body_sha256", "event_count", "received_at", "loaded_at", "dead_events"}
_NEEDED = {"log_events": {"INSERT"}, "log_batches": {"SELECT", "INSERT", "UPDATE", "DELETE"}}


def check(facts: PostgresFacts, settings: Settings) -> Iterator[Finding]:
    """Yields a finding for each check."""
    yield version(facts)
    yield durability(facts)
    yield crash_safety(facts)
    yield writes(facts)
    yield encoding(facts)
    yield schema(facts)
    yield privileges(facts)
    yield partitions(facts, settings, datetime.now(UTC).date())
    yield strays(facts)
    yield timeouts(facts, settings)
    yield connections(facts, settings)
    yield pooler(facts)
    yield password(facts, settings)


def version(facts: PostgresFacts) -> Finding:
    """Judges the version."""
    text, number = facts.settings["server_version"], int(facts.settings["server_version_num"])
    if number < _OLDEST:
        return bad("postgres version", text, "the statements of a load need 14", "upgrade PostgreSQL to 14 or later")
    return ok("postgres version", text)


def durability(facts: PostgresFacts) -> Finding:
    """Names what COMMIT is worth: after it, nothing else holds the batch."""
    name = "postgres durability"
    value = facts.settings["synchronous_commit"]
    seen = f"synchronous_commit {value}"
    role = f"{_quoted(facts.user)} IN DATABASE {_quoted(facts.database)}"
    remedy = f"ALTER ROLE {role} SET synchronous_commit = on{_RECONNECT}"
    if value == "off":
        return bad(name, seen, "a crash of PostgreSQL loses the last commits, and nothing else holds those batches "
                   "any more", remedy)
    standbys = facts.settings.get("synchronous_standby_names", "")
    if value == "local" and standbys:
        return warn(name, f"{seen}, synchronous_standby_names {standbys}", "a failover loses the commits that no "
                    "standby has yet", remedy)
    return ok(name, seen)


def crash_safety(facts: PostgresFacts) -> Finding:
    """Judges whether PostgreSQL survives a power cut."""
    off = [name for name in ("fsync", "full_page_writes") if facts.settings[name] != "on"]
    if off:
        return bad("postgres crash safety", ", ".join(f"{name} off" for name in off), "a power cut can destroy the "
                   "whole cluster", "; ".join(f"ALTER SYSTEM SET {name} = on" for name in off)
                   + "; SELECT pg_reload_conf()")
    return ok("postgres crash safety", "fsync on, full_page_writes on")


def writes(facts: PostgresFacts) -> Finding:
    """Judges whether it takes writes."""
    name = "postgres writes"
    if facts.is_in_recovery:
        return bad(name, "a standby", "nothing is loaded: batches wait in Redis, then in the WAL or the dead letters",
                   "let DATABASE_URL name the primary, or all hosts: postgresql://host1,host2/…")
    if facts.settings["default_transaction_read_only"] == "on":
        user, database = _quoted(facts.user), _quoted(facts.database)
        return bad(name, "default_transaction_read_only on", "nothing is loaded: batches wait in Redis, then in the "
                   "WAL or the dead letters", "find who has set it with \\drds, and e.g. "
                   f"ALTER ROLE {user} RESET default_transaction_read_only; "
                   f"ALTER DATABASE {database} RESET …{_RECONNECT}")
    return ok(name, "taken")


def encoding(facts: PostgresFacts) -> Finding:
    """Judges the database's encoding."""
    found = facts.settings["server_encoding"]
    if found != "UTF8":
        return bad("postgres encoding", found, "events with characters that it lacks are refused, one by one, and go "
                   "to the dead letters", "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and load into that")
    return ok("postgres encoding", found)


def schema(facts: PostgresFacts) -> Finding:
    """Judges whether the tables are those that this version loads into."""
    name = "postgres schema"
    events, batches = facts.tables.get("log_events"), facts.tables.get("log_batches")
    if not events and not batches:
        if facts.schema and facts.may_create:
            return ok(name, "no tables yet: the first consumer makes them")
        return bad(name, f"no tables, and {facts.user} may make none in {facts.schema or 'any schema of search_path'}",
                   "nothing is loaded", f"GRANT CREATE ON SCHEMA {facts.schema or 'public'} TO {_quoted(facts.user)}")
    faults = [*_lacking("log_events", events, set(COLUMNS)), *_lacking("log_batches", batches, _LEDGER)]
    if events and events.kind != "p":
        faults.append("log_events is not partitioned")
    if batches and not batches.has_key:
        faults.append("log_batches has no unique index on batch_id: it would not remove duplicates")
    if events and (alien := set(events.required) - set(COLUMNS)):
        faults.append(f"log_events wants a value for {', '.join(sorted(alien))}")
    if not faults and "log_events_default" not in facts.tables:
        return warn(name, "log_events_default is missing", "a batch with a time outside the partitions is held for "
                    "ever", "CREATE TABLE log_events_default PARTITION OF log_events DEFAULT")
    if faults:
        return bad(name, "; ".join(faults), "it is not the schema of this version, and nothing is loaded until it is",
                   "mend the tables (ops/REFERENCE.md, Tables); consumers add at their start what they can")
    return ok(name, "as this version makes it")


def privileges(facts: PostgresFacts) -> Finding:
    """Judges what our role may do to the tables."""
    name = "postgres privileges"
    lacking = [f"{privilege} ON {table}" for table, needed in _NEEDED.items() if table in facts.tables
               for privilege in sorted(needed - set(facts.tables[table].privileges))]
    if lacking:
        return bad(name, f"{facts.user} lacks {', '.join(lacking)}", "no load succeeds: batches are held in Redis "
                   "until this is mended", "; ".join(f"GRANT {one} TO {_quoted(facts.user)}" for one in lacking))
    events = facts.tables.get("log_events")
    if events and not (events.is_ours and facts.may_create):
        return warn(name, f"{facts.user} may load, and not make partitions", "rows go to log_events_default, which "
                    "becomes one large table, unless somebody else makes the partitions",
                    f"GRANT CREATE ON SCHEMA {facts.schema} TO {_quoted(facts.user)}; "
                    f"ALTER TABLE log_events OWNER TO {_quoted(facts.user)}")
    return ok(name, f"{facts.user} may do what a load does")


def partitions(facts: PostgresFacts, settings: Settings, today: date) -> Finding:
    """Judges whether there are partitions for the days to come."""
    name = "postgres partitions"
    if "log_events" not in facts.tables:
        return ok(name, "no table yet")
    days = {today + timedelta(days=offset) for offset in range(settings.partition_days + 1)}
    lacking = sorted(day for day in days if f"log_events_{day:%Y%m%d}" not in facts.partitions)
    if not lacking:
        return ok(name, f"until {max(days)}")
    missing = f"{lacking[0]}" + (f" and {len(lacking) - 1} more" if len(lacking) > 1 else "")
    return warn(name, f"none for {missing}", "rows of those days go to log_events_default, and stay there",
                "see partition_refused in the consumers' log: it may be rows in log_events_default, or a privilege; "
                "consumers try again once an hour and when they start")


def strays(facts: PostgresFacts) -> Finding:
    """Judges how much lies outside the partitions."""
    name = "postgres default rows"
    if "log_events_default" not in facts.tables:
        return ok(name, "no table yet")
    if facts.default_rows is None:
        return unknown(name, f"{facts.user} may not read log_events_default, or it is locked")
    if facts.default_rows > DEFAULT_ROWS_LIMIT:
        return warn(name, f"over {DEFAULT_ROWS_LIMIT:,} rows in log_events_default", "queries by time read all of "
                    "them, and no partition can be made for their days",
                    "SELECT ts::date, service, count(*) FROM log_events_default GROUP BY 1, 2 says whose")
    return ok(name, f"{facts.default_rows:,} rows in log_events_default")


def timeouts(facts: PostgresFacts, settings: Settings) -> Finding:
    """Judges whether PostgreSQL gives a load the time that we do, and no more."""
    name = "postgres timeouts"
    wanted_ms = settings.sink_timeout_s * 1000
    found = {one: int(facts.settings[one]) for one in ("statement_timeout", "idle_in_transaction_session_timeout")}
    seen = ", ".join(f"{one} {value / 1000:g} s" if value else f"{one} off" for one, value in found.items())
    whose = "`options` in DATABASE_URL replace the loader's" if facts.has_own_options else "the loader's do not arrive"
    add = (f"add -c statement_timeout={settings.sink_timeout_s}s "
           f"-c idle_in_transaction_session_timeout={settings.sink_timeout_s}s to them, or take them out")
    if any(0 < value < wanted_ms for value in found.values()):
        return warn(name, f"{seen}; {whose}", f"a load that takes longer is cut, though SPILLWAY_SINK_TIMEOUT_S gives "
                    f"it {settings.sink_timeout_s} s, and tried again from its beginning", add)
    if not found["idle_in_transaction_session_timeout"]:
        return warn(name, f"{seen}; {whose}", "a consumer that stops within a load keeps the others from its batches",
                    add)
    return ok(name, seen)


def connections(facts: PostgresFacts, settings: Settings) -> Finding:
    """Judges whether there are connections for every process of this host."""
    name = "postgres connections"
    needed = settings.consumers + 2 * settings.workers
    offered = int(facts.settings["max_connections"]) - int(facts.settings["superuser_reserved_connections"])
    if facts.connection_limit is not None:
        offered = min(offered, facts.connection_limit)
    free = offered - (facts.connection_count - facts.own_count)
    seen = f"{offered} for us and others, {facts.connection_count} in use; this host takes up to {needed}"
    remedy = "raise max_connections or the role's CONNECTION LIMIT, or lower SPILLWAY_CONSUMERS"
    if offered < settings.consumers:
        return bad(name, seen, "some consumers never get a connection", remedy)
    if free < needed:
        return warn(name, seen, "consumers and GET /batches/<id> may be refused a connection", remedy)
    return ok(name, seen)


def pooler(facts: PostgresFacts) -> Finding:
    """Tells whether a session is ours alone. Loads do without."""
    if facts.is_shared:
        return ok("postgres pooler", "one by transaction: a load sets its timeouts within its own")
    return ok("postgres pooler", "none, or one by session")


def password(facts: PostgresFacts, settings: Settings) -> Finding:
    """Judges whether whoever reaches it may write into it."""
    name = "postgres password"
    if facts.is_open is None:
        return unknown(name, "could not be tried: a Unix socket, a certificate or PGPASSWORD")
    if not facts.is_open:
        return ok(name, "wanted")
    listens = facts.settings.get("listen_addresses", "unknown")
    if set(listens.replace(" ", "").split(",")) <= {"localhost", "127.0.0.1", "::1"}:
        return warn(name, f"none, listening on {listens}", "every account of this machine can read and write the rows",
                    "in pg_hba.conf put scram-sha-256 for trust")
    return (warn if settings.open_bind == "allow" else bad)(
        name, f"none, listening on {listens}", "whoever reaches the port can read and write the rows",
        "in pg_hba.conf put scram-sha-256 for trust; SPILLWAY_OPEN_BIND=allow says that it is meant",
    )


def _lacking(name: str, table: Table | None, columns: set[str]) -> list[str]:
    if table is None:
        return [f"{name} is missing"]
    missing = sorted(columns - set(table.columns))
    return [f"{name} lacks {', '.join(missing)}"] if missing else []


def _quoted(name: str) -> str:
    """Returns an identifier as it can be pasted."""
    return name if name.isidentifier() and name.islower() else '"' + name.replace('"', '""') + '"'
