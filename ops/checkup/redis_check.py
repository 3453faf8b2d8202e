"""Judges a Redis: what its answer to a write is worth, and what it does when it is full."""

from collections.abc import Iterator

from app import stream
from app.settings import Settings
from ops.checkup import release
from ops.checkup.finding import Finding, bad, ok, size, unknown, warn
from ops.checkup.redis_facts import RedisFacts

_PERSIST = "and the same in redis.conf"
_KEPT = ("; what came by the WAL stays there until WAITAOF confirms it (Redis 8.0 on), or until it is stored: through "
         "an outage of PostgreSQL too")


def check(facts: RedisFacts, settings: Settings) -> Iterator[Finding]:
    """Yields a finding for each check."""
    yield from release.redis(facts)
    yield durability(facts)
    yield rewriting(facts)
    yield persistence(facts)
    yield writes(facts)
    yield role(facts)
    yield eviction(facts)
    yield memory(facts, settings)
    yield group(facts)
    yield password(facts, settings)


def durability(facts: RedisFacts) -> Finding:
    """Names what an acknowledgement from the stream is worth."""
    name = "redis durability"
    always = f"redis-cli CONFIG SET appendfsync always; redis-cli CONFIG SET appendonly yes; {_PERSIST}"
    is_off = facts.info.get("aof_enabled") == "0" or (facts.config or {}).get("appendonly") == "no"
    if is_off:
        return bad(name, "appendonly no", "what was acknowledged is in memory alone, and lost when Redis ends"
                   + _KEPT, always)
    if facts.config is None:
        return unknown(
            name, f"CONFIG is hidden; AOF {'on' if facts.info.get('aof_enabled') == '1' else 'unknown'}",
            "clients are told redis_fsync unknown, and it may be that a power cut loses what was acknowledged" + _KEPT,
            "ask the provider for appendonly yes and appendfsync always, or set SPILLWAY_WAL=always: then the disk "
            "of this host confirms, until Redis has taken it",
        )
    fsync = facts.config.get("appendfsync", "unknown")
    seen = f"appendonly yes, appendfsync {fsync}"
    if fsync == "everysec":
        return warn(name, seen, "a power cut loses up to 1 s of acknowledged events (2 s where the disk lags); clients "
                    "are told redis_fsync everysec" + _KEPT, always)
    if fsync == "no":
        return bad(name, seen, "a power cut loses what the kernel had not written yet, half a minute of acknowledged "
                   "events" + _KEPT, always)
    return ok(name, seen) if fsync == "always" else unknown(name, seen, remedy=always)


def rewriting(facts: RedisFacts) -> Finding:
    """Judges whether syncing pauses while the AOF is rewritten."""
    name = "redis rewrite"
    if facts.config is None:
        return unknown(name, "CONFIG is hidden", remedy="ask the provider for no-appendfsync-on-rewrite no")
    seen = f"no-appendfsync-on-rewrite {facts.config.get('no-appendfsync-on-rewrite', 'unknown')}"
    if seen.endswith("yes"):
        return bad(name, seen, "while the AOF is rewritten nothing is synced, and a power cut loses what was "
                   "acknowledged meanwhile", f"redis-cli CONFIG SET no-appendfsync-on-rewrite no, {_PERSIST}")
    return ok(name, seen)


def persistence(facts: RedisFacts) -> Finding:
    """Judges whether the last writes to Redis's own disk went well."""
    name = "redis persistence"
    failed = [field for field in ("aof_last_write_status", "rdb_last_bgsave_status", "aof_last_bgrewrite_status")
              if facts.info.get(field, "ok") != "ok"]
    if not failed:
        if "aof_last_write_status" not in facts.info:
            return unknown(name, "INFO shows no persistence", remedy="let the user run INFO")
        return ok(name, "the last write, save and rewrite went well")
    seen = ", ".join(f"{field} {facts.info[field]}" for field in failed)
    remedy = f"look at Redis's log and at the room in {(facts.config or {}).get('dir', 'its directory')}"
    if failed == ["aof_last_bgrewrite_status"]:
        return warn(name, seen, "the AOF grows until its disk is full, as it is not rewritten",
                    f"{remedy}; then redis-cli BGREWRITEAOF")
    return bad(name, seen, "Redis refuses writes (MISCONF): batches go to the WAL, and stay there", remedy)


def writes(facts: RedisFacts) -> Finding:
    """Judges whether the service's probe could be written."""
    name = "redis writes"
    cause = facts.write_error.partition(":")[0]
    if not facts.write_error:
        return ok(name, "taken")
    if cause == "NOPERM":
        return bad(name, facts.write_error, "Redis's user may not do what the service does",
                   f"ACL SETUSER <user> ~{stream.STREAM}* +@all -@admin -@dangerous +info +config|get")
    remedy = "see `spillway status`: are consumers loading, and are there dead letters to replay or purge?"
    if cause == "OOM":
        return warn(name, facts.write_error, "Redis is full: batches go to the WAL until there is room again", remedy)
    return bad(name, facts.write_error, "batches go to the WAL, and stay there", "mend what Redis names")


def role(facts: RedisFacts) -> Finding:
    """Judges whether it is the one that takes writes."""
    name = "redis role"
    found = facts.info.get("role", "")
    if found == "slave":
        return bad(name, "replica", "a replica takes no writes: batches go to the WAL, and stay there",
                   "let REDIS_URL name the primary, or promote this one: redis-cli REPLICAOF NO ONE")
    return ok(name, "primary") if found == "master" else unknown(name, f"role {found or 'unknown'}")


def eviction(facts: RedisFacts) -> Finding:
    """Judges what Redis throws away when it is full."""
    name = "redis eviction"
    policy = facts.info.get("maxmemory_policy", "")
    seen = f"maxmemory-policy {policy or 'unknown'}"
    remedy = f"redis-cli CONFIG SET maxmemory-policy noeviction, {_PERSIST}"
    if policy.startswith("allkeys-"):
        return bad(name, seen, "when Redis is full it deletes the stream, with every batch that was acknowledged",
                   remedy)
    if policy.startswith("volatile-"):
        return warn(name, seen, "it spares keys without an expiry, such as the stream, until one gets one by mistake",
                    remedy)
    if not policy:
        return unknown(name, seen, remedy="ask the provider for maxmemory-policy noeviction")
    return ok(name, seen)


def memory(facts: RedisFacts, settings: Settings) -> Finding:
    """Judges the memory against the bounds of the stream and of the dead letters, and of the machine."""
    name = "redis memory"
    limit = int(facts.info.get("maxmemory", "0"))
    machine = int(facts.info.get("total_system_memory", "0"))
    needed = settings.stream_max_bytes + settings.dead_letters_max_bytes
    bounds = f"SPILLWAY_STREAM_MAX_BYTES + SPILLWAY_DEAD_LETTERS_MAX_BYTES are {size(needed)}"
    if "maxmemory" not in facts.info:
        return unknown(name, "INFO shows no maxmemory", remedy=f"ask the provider for more than {size(needed)}")
    if machine and max(limit, needed) > machine:
        return warn(name, f"maxmemory {_limit(limit)}, the machine has {size(machine)}; {bounds}",
                    "the kernel ends Redis before it is full", "lower maxmemory and both bounds, or add memory")
    if not limit:
        return warn(name, f"maxmemory 0, no limit; {bounds}", "what else is in Redis grows until the kernel ends it",
                    f"redis-cli CONFIG SET maxmemory {needed * 4 // 3}, {_PERSIST}")
    if limit < needed:
        return warn(name, f"maxmemory {size(limit)}; {bounds}", "Redis is full before the bounds are met: writes fail "
                    "(OOM) where they would have gone to the WAL in order",
                    f"SPILLWAY_REDIS_MAX_BYTES={needed * 4 // 3} (yours: maxmemory), or lower the bounds")
    if settings.dead_letters_max_bytes > settings.stream_max_bytes:
        return warn(name, f"dead letters up to {size(settings.dead_letters_max_bytes)}, stream and dead letters up to "
                    f"{size(settings.stream_max_bytes)}", "letters alone can reach the stream's bound: batches then go "
                    "to the WAL, and stay there until some are replayed or purged",
                    "SPILLWAY_STREAM_MAX_BYTES above SPILLWAY_DEAD_LETTERS_MAX_BYTES")
    return ok(name, f"maxmemory {size(limit)}, used {size(int(facts.info.get('used_memory', '0')))}; {bounds}")


def group(facts: RedisFacts) -> Finding:
    """Judges whether the consumer group is there."""
    name = "redis group"
    if facts.has_stream is None:
        return unknown(name, "the user may not look", remedy=f"ACL SETUSER <user> ~{stream.STREAM}* +exists +xinfo")
    if not facts.has_stream:
        return ok(name, "no stream yet: the first worker or consumer makes it, with its group")
    if not facts.has_group:
        return warn(name, f"stream {stream.STREAM} without group {stream.GROUP}", "somebody has taken it away; nothing "
                    "is loaded until a consumer has made it again",
                    f"start the consumers, or redis-cli XGROUP CREATE {stream.STREAM} {stream.GROUP} 0")
    return ok(name, f"{stream.GROUP} on {stream.STREAM}")


def password(facts: RedisFacts, settings: Settings) -> Finding:
    """Judges whether whoever reaches it may use it."""
    name = "redis password"
    if facts.is_open is None:
        return unknown(name, "could not be tried")
    if not facts.is_open:
        return ok(name, "wanted")
    config = facts.config or {}
    bound = [address.lstrip("-") for address in config.get("bind", "").split()]
    is_closed = bool(bound) and all(address.startswith(("127.", "::1")) for address in bound)
    # Before 7 an explicit `bind` put protected-mode out of action.
    is_new = int(facts.info.get("redis_version", "0").partition(".")[0]) >= 7
    if is_closed or (facts.is_local and config.get("protected-mode") == "yes" and (is_new or not bound)):
        return ok(name, "none, and it serves this machine alone")
    listens = "unknown addresses" if facts.config is None else " ".join(bound) or "every address"
    return (warn if settings.open_bind == "allow" else bad)(
        name, f"none, listening on {listens}", "whoever reaches the port can read and delete every batch",
        "set requirepass or an ACL user, and put it into REDIS_URL; SPILLWAY_OPEN_BIND=allow says that it is meant",
    )


def _limit(limit: int) -> str:
    return size(limit) if limit else "0 (none)"
