"""Experiment 1: the buffer is unavailable, and the WAL stands in for it."""

from ops.chaos.box import BALANCED, WHOLE, Box, Finding, all_accepted, first_when, logged, nothing_lost
from ops.chaos.evidence import Evidence
from ops.chaos.stage import Stage

_SETTLE_S = 60.0
_SPILL_S = 5.0
_MIB = 1 << 20


def play(stage: Stage) -> Evidence:
    """Redis is stopped and started again."""
    with stage.played():
        stage.baseline()
        with stage.stopped("redis"):
            stage.hold(stage.duration_s)
            stage.evidence.facts["wal_during"] = stage.target.wal_files()
        stage.until(lambda seen: seen.values.get("wal_active") == 0, _SETTLE_S)
        stage.hold(5.0)
        return stage.finish()


def _falls_back(evidence: Evidence) -> Finding:
    return logged(evidence, "ingest", "redis_unavailable", evidence.at("inject redis-stop"),
                  evidence.at("heal redis-stop"))


def _stays_responsive(evidence: Evidence) -> Finding:
    return all_accepted(evidence, evidence.at("inject redis-stop"), evidence.at("healed redis-stop"))


def _wal_becomes_active(evidence: Evidence) -> Finding:
    start = evidence.at("injected redis-stop")
    after_s = first_when(evidence, "wal_active", 1, start, evidence.at("heal redis-stop")) - start
    return Finding(after_s <= _SPILL_S, f"wal_active was 1 {after_s:.1f} s after Redis had stopped")


def _wal_grows(evidence: Evidence) -> Finding:
    sizes = evidence.values("wal_bytes", evidence.at("injected redis-stop"), evidence.at("heal redis-stop"))
    files = evidence.facts.get("wal_during", [])
    first, last = (sizes[0], sizes[-1]) if sizes else (0.0, 0.0)
    spilled = sum(one.durability == "wal" for one in evidence.answers)
    return Finding(bool(files) and last > first and spilled > 0,
                   f"{len(files)} segments on disk at the end, {last / _MIB:.0f} MiB, from {first / _MIB:.0f} MiB; "
                   f"{spilled:,} requests were promised `wal`")


def _replay_starts(evidence: Evidence) -> Finding:
    since = evidence.at("heal redis-stop")
    back = logged(evidence, "ingest", "redis_available", since)
    replay = logged(evidence, "replayer", "replay_started", since)
    return Finding(back.is_ticked and replay.is_ticked, f"{back.evidence} · {replay.evidence}")


def _wal_becomes_idle(evidence: Evidence) -> Finding:
    start = evidence.at("healed redis-stop")
    at = first_when(evidence, "wal_active", 0, start, evidence.at("verified"))
    last = evidence.values("wal_active", start, evidence.at("verified"))[-1:]
    return Finding(last == [0.0], f"wal_active was 0 {at - start:.1f} s after Redis was back, and at the end")


def _wal_is_emptied(evidence: Evidence) -> Finding:
    done = logged(evidence, "replayer", "replay_complete", evidence.at("heal redis-stop"))
    left = evidence.facts["wal_left"]
    return Finding(done.is_ticked and not left, f"segments left: {', '.join(left) or 'none'} · {done.evidence}")


BOXES = (
    Box("The ingestor service logs should indicate Redis is unavailable and it's falling back to the WAL.",
        _falls_back),
    Box("The `/ingest` endpoint should remain responsive, returning `202 Accepted`.", _stays_responsive),
    Box("The `wal_active` Prometheus metric should switch to `1`.", _wal_becomes_active),
    Box("WAL segment files should be created and grow in the configured WAL directory.", _wal_grows),
    Box("The ingestor service logs should indicate Redis is available again and that it's starting to replay events "
        "from the WAL.", _replay_starts),
    Box("The `wal_active` Prometheus metric should return to `0`.", _wal_becomes_idle),
    Box("After replay is complete, the WAL directory should be truncated (emptied).", _wal_is_emptied),
    Box("Query PostgreSQL to confirm that events ingested during the outage have been successfully processed and "
        "stored. There should be no data loss.", nothing_lost),
    WHOLE,
    BALANCED,
)
