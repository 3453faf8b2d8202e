"""Experiment 4: servers answer, and later than they used to."""

from ops.chaos.box import BALANCED, NO_LOSS, WHOLE, Box, Finding, first_of
from ops.chaos.evidence import Evidence, median, percentile
from ops.chaos.stage import Stage

_DELAY_S = 0.05
_INGEST_DELAY_S = 0.1  # stands out from what a busy machine does by itself
_SETTLE_S = 60.0


def play(stage: Stage) -> Evidence:
    """Each reply of a server comes later: to ingest, to the consumers from Redis, and from PostgreSQL."""
    deadline_s = stage.evidence.facts["redis_deadline_ms"] / 1000
    each_s = max(5.0, stage.duration_s / 2)
    with stage.played():
        stage.baseline()
        for name, delay_s in (
            ("ingest-redis", _INGEST_DELAY_S), ("ingest-redis-timeout", 2 * deadline_s),
            ("consumer-redis", _DELAY_S), ("consumer-postgres", _DELAY_S),
        ):
            proxy = stage.target.proxies[name.removesuffix("-timeout")]
            stage.mark(f"inject {name}", f"{1000 * delay_s:.0f} ms more for each reply")
            proxy.delay_s = delay_s
            stage.hold(each_s)
            stage.mark(f"heal {name}")
            proxy.delay_s = 0.0
            stage.until(lambda seen: seen.values.get("wal_active") == 0, _SETTLE_S)
            stage.hold(3.0)
        return stage.finish()


def _ingest_latency(evidence: Evidence) -> Finding:
    quiet = evidence.at("baseline"), evidence.at("inject ingest-redis")
    slow = _phase(evidence, "ingest-redis")
    (before_p50, before_p99), (p50, p99) = (
        (_ack_ms(evidence, 0.5, *period), _ack_ms(evidence, 0.99, *period)) for period in (quiet, slow)
    )
    answers = evidence.answered(*slow)
    failed = [one for one in answers if one.kind == "unknown"]
    # By the median: on a busy machine a single slow answer before decides where the p99 lay.
    return Finding(bool(answers) and not failed and p50 >= before_p50 + 0.8 * 1000 * _INGEST_DELAY_S,
                   f"p99 {p99:.0f} ms and p50 {p50:.0f} ms, before {before_p99:.0f} ms and {before_p50:.0f} ms; "
                   f"{len(answers):,} answers, {len(failed)} failures{first_of(failed)}")


def _timeout_spills(evidence: Evidence) -> Finding:
    start, end = _phase(evidence, "ingest-redis-timeout")
    answers = evidence.answered(start, end)
    spilled = sum(one.durability == "wal" for one in answers)
    failed = [one for one in answers if one.kind == "unknown"]
    is_active = 1.0 in evidence.values("wal_active", start, end)
    return Finding(spilled > 0 and is_active and not failed,
                   f"{spilled:,} of {len(answers):,} requests were promised `wal`, p99 "
                   f"{_ack_ms(evidence, 0.99, start, end):.0f} ms; wal_active {int(is_active)}; "
                   f"{len(failed)} failures{first_of(failed)}")


def _consumer_redis(evidence: Evidence) -> Finding:
    return _slow_consumers(evidence, "consumer-redis")


def _consumer_postgres(evidence: Evidence) -> Finding:
    return _slow_consumers(evidence, "consumer-postgres")


def _slow_consumers(evidence: Evidence, phase: str) -> Finding:
    quiet = evidence.at("baseline"), evidence.at("inject ingest-redis")
    slow = _phase(evidence, phase)
    backlogs = [median(evidence.values("stream_entries", *period)) for period in (quiet, slow)]
    loads = [_mean(evidence, "load_seconds", "loads", *period) for period in (quiet, slow)]
    answers = evidence.answered(*slow)
    failed = [one for one in answers if one.kind == "unknown"]
    is_slower = loads[1] > loads[0] or phase == "consumer-redis"
    is_whole = not failed and bool(answers) and evidence.facts["letters_left"] == 0
    return Finding(is_slower and backlogs[1] > backlogs[0] and is_whole,
                   f"a load took {1000 * loads[1]:.0f} ms, {1000 * loads[0]:.0f} ms before; {backlogs[1]:,.0f} entries "
                   f"in the stream (median), {backlogs[0]:,.0f} before; {len(failed)} failures{first_of(failed)}; "
                   f"{evidence.facts['letters_left']:.0f} dead letters")


def _phase(evidence: Evidence, name: str) -> tuple[float, float]:
    return evidence.at(f"inject {name}"), evidence.at(f"heal {name}")


def _ack_ms(evidence: Evidence, share: float, start: float, end: float) -> float:
    return 1000 * percentile((one.latency_s for one in evidence.answered(start, end) if one.kind == "accepted"), share)


def _mean(evidence: Evidence, total: str, count: str, start: float, end: float) -> float:
    totals, counts = (evidence.values(name, start, end) for name in (total, count))
    return (totals[-1] - totals[0]) / max(1.0, counts[-1] - counts[0]) if totals and counts else 0.0


BOXES = (
    Box("Ingestor <-> Redis: ingestion latency (p99) should increase.", _ingest_latency),
    Box("Ingestor <-> Redis: if latency is high enough to cause timeouts, the WAL fallback should engage.",
        _timeout_spills),
    Box("Consumer <-> PostgreSQL: batch processing times should increase, and the system should remain stable but "
        "process logs more slowly.", _consumer_postgres),
    Box("Beyond the checklist: Consumer <-> Redis: a backlog, and nothing else.", _consumer_redis),
    NO_LOSS,
    WHOLE,
    BALANCED,
)
