"""Experiment 2: the sink is unavailable, and dead letters take what it does not."""

from ops.chaos.box import BALANCED, WHOLE, Box, Finding, logged, nothing_lost
from ops.chaos.evidence import Evidence, median
from ops.chaos.stage import Stage

_SETTLE_S = 60.0


def play(stage: Stage) -> Evidence:
    """PostgreSQL is stopped until there are dead letters, and started again."""
    with stage.played():
        stage.baseline()
        with stage.stopped("postgres"):
            stage.hold(stage.duration_s)
            stage.until(lambda seen: seen.values.get("dead_letters", 0) > 0, stage.evidence.facts["patience_s"])
            stage.hold(5.0)
        loaded = stage.latest.values.get("loaded_events", 0.0)
        stage.until(lambda seen: seen.values.get("loaded_events", 0.0) > loaded, _SETTLE_S)
        stage.mark("letters kept")
        stage.hold(10.0)
        return stage.finish()


def _retries_with_backoff(evidence: Evidence) -> Finding:
    lines = evidence.said("consumer", "load_failed", *_outage(evidence))
    mine = [line for line in lines if line.program == lines[0].program]
    delays = [float(line.field("next_try_s")) for line in mine]
    attempts = [int(line.field("attempt")) for line in mine]
    is_growing = len(delays) >= 3 and max(delays) > 2 * delays[0] and attempts == sorted(attempts)
    shown = ", ".join(f"{delay:.2f}" for delay in delays[:8])
    return Finding(is_growing, f"{len(lines)} lines load_failed; {mine[0].program if mine else 'no consumer'} waited "
                               f"{shown} … s between its attempts")


def _pending_grows(evidence: Evidence) -> Finding:
    before = median(evidence.values("pending", evidence.at("baseline"), evidence.at("inject postgres-stop")))
    most = max(evidence.values("pending", *_outage(evidence)), default=0.0)
    return Finding(most > 10 and most > 3 * before,
                   f"XPENDING counted up to {most:,.0f} batches, {before:,.0f} before the outage")


def _moves_to_dead_letters(evidence: Evidence) -> Finding:
    start, end = _outage(evidence)
    letters = max(evidence.values("dead_letters", start, end), default=0.0)
    line = logged(evidence, "consumer", "moving_to_dead_letters", start, end)
    return Finding(line.is_ticked and letters > 0, f"{letters:,.0f} letters in log_events_dlq · {line.evidence}")


def _stream_is_acknowledged(evidence: Evidence) -> Finding:
    start, end = _outage(evidence)
    letters = evidence.values("dead_letters", start, end)
    first_at = next((one.at for one in evidence.samples if one.values.get("dead_letters") and one.at > start),
                    float("inf"))
    most_before = max(evidence.values("stream_entries", start, first_at), default=0.0)
    lengths = evidence.values("stream_entries", first_at, end)
    accepted = sum(one.kind == "accepted" for one in evidence.answered(first_at, end))
    last = lengths[-1] if lengths else float("inf")
    return Finding(bool(letters and lengths) and last <= most_before,
                   f"the stream had up to {most_before:,.0f} entries before the first letter, and {last:,.0f} at the "
                   f"end of the outage, after {accepted:,} more requests")


def _loads_again(evidence: Evidence) -> Finding:
    start, end = evidence.at("healed postgres-stop"), evidence.at("load ended")
    loaded = evidence.values("loaded_events", start, end)
    gained = loaded[-1] - loaded[0] if loaded else 0.0
    line = logged(evidence, "consumer", "servers_available", evidence.at("heal postgres-stop"))
    return Finding(gained > 0 and line.is_ticked,
                   f"{gained:,.0f} events stored in {end - start:.0f} s · {line.evidence}")


def _letters_remain(evidence: Evidence) -> Finding:
    kept = evidence.values("dead_letters", evidence.at("letters kept"), evidence.at("drained"))
    left = evidence.facts["letters_left"]
    return Finding(left > 0 and bool(kept) and left >= max(kept),
                   f"{left:,.0f} letters when all else had drained, {max(kept, default=0):,.0f} when PostgreSQL was "
                   f"back")


def _letters_replayed(evidence: Evidence) -> Finding:
    replayed = evidence.facts.get("replayed", {"letters": 0, "events": 0})
    clean = nothing_lost(evidence)
    return Finding(clean.is_ticked and replayed["letters"] > 0,
                   f"{replayed['letters']:,} letters with {replayed['events']:,} events replayed; {clean.evidence}")


def _outage(evidence: Evidence) -> tuple[float, float]:
    return evidence.at("inject postgres-stop"), evidence.at("heal postgres-stop")


BOXES = (
    Box("The consumer worker logs should show errors when trying to write to PostgreSQL, followed by retry attempts "
        "with backoff.", _retries_with_backoff),
    Box("The number of pending messages (XPENDING) should grow significantly.", _pending_grows),
    Box("After the configured number of retries, the consumer logs should indicate that failed batches are being "
        "moved to the DLQ stream (`log_events_dlq`).", _moves_to_dead_letters),
    Box("The main `log_events` stream should continue to be acknowledged, preventing it from growing indefinitely.",
        _stream_is_acknowledged),
    Box("New messages should start processing and sinking to PostgreSQL successfully.", _loads_again),
    Box("Messages in the DLQ remain there.", _letters_remain),
    Box("Beyond the checklist: a replay of the letters stores every accepted event once.", _letters_replayed),
    WHOLE,
    BALANCED,
)
