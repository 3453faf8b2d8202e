"""The judge of the chaos checklist: where all went well every box is ticked; each thing that went wrong unticks one.
"""

import copy
from itertools import islice
from random import Random

import pytest

from ops.chaos import report
from ops.chaos.evidence import Answer, Evidence, LogLine, Mark, Sample
from ops.chaos.experiment import EXPERIMENTS
from ops.chaos.fault import FAULTS
from ops.chaos.nemesis import BOXES as NEMESIS
from ops.chaos.nemesis import draws
from tests.journal import ROOT

CLEAN = {
    "clean": True, "outcomes": {"accepted": {"batches": 900, "events": 9000}},
    "faults": {kind: {"batches": 0, "events": 0} for kind in ("missing", "duplicate", "altered")},
}
AUDIT = {
    "balanced": True, "gap_events": 0, "unbalanced": [], "stream": {"faults": []},
    "totals": dict.fromkeys(("added", "loaded", "duplicate", "buried", "in_stream", "ledger", "rows"), 0),
}
FACTS = {"is_interface_kept": True, "is_drained": True, "wal_left": [], "letters_left": 0, "claim_idle_s": 10,
         "wal_during": ["1.wal"]}
VICTIM = "host-01"


def proof():
    """Returns a verdict and an audit that find nothing."""
    return copy.deepcopy(CLEAN), copy.deepcopy(AUDIT)


def line(at, program, event, **fields):
    pairs = " ".join(f"{name}={value}" for name, value in fields.items())
    return LogLine(at, program, event, f"stamp WARNING {program} {event} {pairs}")


def marked(*names):
    return [Mark(10.0 * index, name) for index, name in enumerate(names)]


def steady(until, **changes):
    """Ten answers a second; `changes` gives the durability or latency from a time on."""
    return [Answer(at / 10, "accepted", 202, 10, 0.01, "stream") for at in range(0, 10 * until)]


def redis_outage():
    marks = marked("load", "baseline", "inject redis-stop", "injected redis-stop", "heal redis-stop",
                   "healed redis-stop", "load ended", "drained", "verified")
    samples = [
        Sample(float(at), {"wal_active": float(31 <= at < 55), "wal_bytes": 100.0 * max(0, min(at, 50) - 30)})
        for at in range(80)
    ]
    answers = [Answer(one.at, one.kind, 202, 10, 0.01, "wal" if 20 < one.at < 50 else "stream") for one in steady(60)]
    lines = [line(21.0, "ingest", "redis_unavailable"), line(50.5, "ingest", "redis_available"),
             line(51.0, "replayer", "replay_started"), line(54.0, "replayer", "replay_complete")]
    return Evidence("redis-outage", marks, samples, answers, lines, dict(FACTS), *proof())


def postgres_outage():
    marks = marked("load", "baseline", "inject postgres-stop", "injected postgres-stop", "heal postgres-stop",
                   "healed postgres-stop", "letters kept", "load ended", "drained", "replayed", "verified")
    samples = [Sample(float(at), {
        "pending": 400.0 if 22 < at < 40 else 2.0, "stream_entries": 500.0 if 22 < at < 32 else 100.0,
        "dead_letters": 0.0 if at < 32 else min(50.0, at), "loaded_events": float(at if at < 20 or at > 50 else 20),
    }) for at in range(90)]
    lines = [*(line(21.0 + number, "consumer-00", "load_failed", attempt=number, next_try_s=0.1 * 2 ** number)
               for number in range(1, 6)),
             line(32.0, "consumer-00", "moving_to_dead_letters"), line(50.0, "consumer-00", "servers_available")]
    facts = {**FACTS, "letters_left": 50, "replayed": {"letters": 50, "events": 500}}
    return Evidence("postgres-outage", marks, samples, steady(70), lines, facts, *proof())


def consumer_crash():
    marks = marked("load", "baseline", "inject", "injected", "heal", "healed", "load ended", "drained", "verified")
    samples = [Sample(float(at), {"claimed_entries": 0.0 if at < 39 else 7.0},
                      {VICTIM: (7 if at < 39 else 0, 1000 * (at - 20))}) for at in range(80)]
    lines = [line(39.0, "consumer-00", "entries_claimed", count=7, from_consumer=VICTIM)]
    facts = {**FACTS, "victim": VICTIM, "held": 7, "consumers": 2}
    return Evidence("consumer-crash", marks, samples, steady(60), lines, facts, *proof())


def latency():
    phases = ("ingest-redis", "ingest-redis-timeout", "consumer-redis", "consumer-postgres")
    marks = marked("load", "baseline", *(f"{do} {name}" for name in phases for do in ("inject", "heal")), "load ended",
                   "drained")
    slow = {20: 0.12, 40: 0.3}
    answers = [Answer(one.at, one.kind, 202, 10, slow.get(int(one.at) // 10 * 10, 0.01),
                      "wal" if 41 <= one.at < 50 else "stream") for one in steady(100)]
    samples = [Sample(float(at), {
        "wal_active": float(41 <= at < 52), "stream_entries": 30.0 if 60 <= at < 70 or 80 <= at < 90 else 3.0,
        "loads": float(at), "load_seconds": 0.01 * at + (0.2 * min(10, at - 80) if at > 80 else 0.0),
    }) for at in range(120)]
    return Evidence("latency", marks, samples, answers, [], dict(FACTS), *proof())


GOOD = {one().name: one for one in (redis_outage, postgres_outage, consumer_crash, latency)}


def unticked(evidence, boxes=None):
    """Returns the positions of the boxes that are not ticked."""
    result = report.judge(evidence, boxes or EXPERIMENTS[evidence.name].boxes)
    return [index for index, tick in enumerate(result.ticks) if not tick.is_ticked]


@pytest.mark.parametrize("name", GOOD)
def test_an_experiment_in_which_all_went_well_ticks_every_box(name):
    result = report.judge(GOOD[name](), EXPERIMENTS[name].boxes)
    assert result.is_ticked, report.table([result])


def test_every_experiment_has_a_good_example():
    assert set(GOOD) == set(EXPERIMENTS)


def without(evidence, event):
    evidence.lines = [one for one in evidence.lines if one.event != event]


def always(evidence, name, value, start=0.0, end=1e9):
    for sample in evidence.samples:
        if start <= sample.at < end:
            sample.values[name] = value


def answered(evidence, start, end, kind, status, durability=""):
    evidence.answers = [Answer(one.at, kind, status, one.events, one.latency_s, durability)
                        if start <= one.at < end else one for one in evidence.answers]


def lost(evidence):
    evidence.verdict["faults"]["missing"] = {"batches": 1, "events": 10}
    evidence.verdict["clean"] = False


def unbalanced(evidence):
    gaps = [{"minute": "now", "text": "rows are missing"}]
    evidence.audit.update(balanced=False, gap_events=3, unbalanced=gaps)


def silent(evidence, start, end):
    evidence.answers = [one for one in evidence.answers if not start <= one.at < end]


FAILURES = [
    ("redis-outage", lambda e: without(e, "redis_unavailable"), [0]),
    ("redis-outage", lambda e: answered(e, 30, 30.2, "unknown", 503), [1]),
    ("redis-outage", lambda e: answered(e, 30, 30.2, "unknown", 0), [1]),
    ("redis-outage", lambda e: silent(e, 30, 34), [1]),
    ("redis-outage", lambda e: setattr(e, "answers", [a for a in e.answers if a.at < 20 or int(a.at * 10) % 5]), [1]),
    ("redis-outage", lambda e: always(e, "wal_active", 0.0, 0, 40), [2]),
    ("redis-outage", lambda e: always(e, "wal_bytes", 100.0), [3]),
    ("redis-outage", lambda e: e.facts.update(wal_during=[]), [3]),
    ("redis-outage", lambda e: answered(e, 20, 50, "accepted", 202, "stream"), [3]),
    ("redis-outage", lambda e: without(e, "redis_available"), [4]),
    ("redis-outage", lambda e: without(e, "replay_started"), [4]),
    ("redis-outage", lambda e: always(e, "wal_active", 1.0, 55), [5]),
    ("redis-outage", lambda e: always(e, "wal_active", 1.0, 70), [5]),
    ("redis-outage", lambda e: without(e, "replay_complete"), [6]),
    ("redis-outage", lambda e: e.facts.update(wal_left=["1.wal"]), [6, 8]),
    ("redis-outage", lost, [7]),
    ("redis-outage", lambda e: setattr(e, "verdict", {}), [7]),
    ("redis-outage", lambda e: e.verdict["outcomes"]["accepted"].update(events=0), [7]),
    ("redis-outage", lambda e: e.facts.update(is_drained=False), [8]),
    ("redis-outage", lambda e: e.facts.update(is_interface_kept=False), [8]),
    ("redis-outage", unbalanced, [9]),
    ("redis-outage", lambda e: setattr(e, "audit", {}), [9]),
    ("redis-outage", lambda e: e.audit["totals"].update(in_stream=1), [9]),
    ("postgres-outage", lambda e: without(e, "load_failed"), [0]),
    ("postgres-outage", lambda e: setattr(e, "lines", [
        line(one.at, one.program, one.event, attempt=1, next_try_s=0.1) if one.event == "load_failed" else one
        for one in e.lines]), [0]),
    ("postgres-outage", lambda e: always(e, "pending", 3.0), [1]),
    ("postgres-outage", lambda e: without(e, "moving_to_dead_letters"), [2]),
    ("postgres-outage", lambda e: always(e, "dead_letters", 0.0, 0, 40), [2, 3]),
    ("postgres-outage", lambda e: always(e, "stream_entries", 900.0, 35), [3]),
    ("postgres-outage", lambda e: always(e, "loaded_events", 20.0, 40), [4]),
    ("postgres-outage", lambda e: without(e, "servers_available"), [4]),
    ("postgres-outage", lambda e: e.facts.update(letters_left=49), [5]),
    ("postgres-outage", lambda e: e.facts.pop("replayed"), [6]),
    ("postgres-outage", lost, [6]),
    ("consumer-crash", lambda e: setattr(e, "samples", [Sample(s.at, s.values, {}) for s in e.samples]), [0]),
    ("consumer-crash", lambda e: without(e, "entries_claimed"), [1]),
    ("consumer-crash", lambda e: setattr(e, "lines", [
        line(39.0, "consumer-00", "entries_claimed", count=7, from_consumer="host-07")]), [1]),
    ("consumer-crash", lambda e: setattr(e, "lines", [
        line(46.0, "consumer-00", "entries_claimed", count=7, from_consumer=VICTIM)]), [1]),
    ("consumer-crash", lambda e: always(e, "claimed_entries", 0.0), [1]),
    ("consumer-crash", lost, [2]),
    ("latency", lambda e: answered(e, 20, 20.2, "unknown", 503), [0]),
    ("latency", lambda e: setattr(e, "answers", [
        Answer(one.at, one.kind, 202, 1, 0.01, one.durability) for one in e.answers]), [0]),
    ("latency", lambda e: answered(e, 40, 50, "accepted", 202, "stream"), [1]),
    ("latency", lambda e: always(e, "wal_active", 0.0), [1]),
    ("latency", lambda e: always(e, "load_seconds", 1.0), [2]),
    ("latency", lambda e: always(e, "stream_entries", 3.0, 80), [2]),
    ("latency", lambda e: always(e, "stream_entries", 3.0, 60, 70), [3]),
    ("latency", lambda e: e.facts.update(letters_left=1), [2, 3]),
    ("latency", lost, [4]),
]


@pytest.mark.parametrize(("name", "spoil", "expected"), FAILURES)
def test_what_went_wrong_unticks_its_box_and_no_other(name, spoil, expected):
    evidence = GOOD[name]()
    spoil(evidence)
    assert unticked(evidence) == expected


def test_every_box_can_be_unticked():
    for name, experiment in EXPERIMENTS.items():
        reached = {index for case, _, indexes in FAILURES if case == name for index in indexes}
        # The last two are every experiment's, and are unticked in one.
        count = len(experiment.boxes)
        assert reached | {count - 2, count - 1} == set(range(count)), name


def nemesis(*refused):
    """A worker is killed from 10 to 20; answers at these times are missing."""
    marks = [Mark(0.0, "load"), Mark(5.0, "baseline"), Mark(10.0, "inject worker-kill"),
             Mark(10.5, "injected worker-kill"), Mark(19.0, "heal worker-kill"), Mark(20.0, "healed worker-kill"),
             Mark(40.0, "load ended"), Mark(41.0, "drained")]
    answers = steady(40) + [Answer(at, "unknown", status, 1, 0.1) for at, status in refused]
    facts = {**FACTS, "not_recovered": [], "left_out": {}, "injected": ["worker-kill"]}
    return Evidence("nemesis", marks, [], answers, [], facts, *proof())


@pytest.mark.parametrize(("refused", "expected"), [
    ([], []), ([(12.0, 0)], []), ([(20.5, 0)], []), ([(9.0, 0)], [0]), ([(30.0, 0)], [0]), ([(12.0, 503)], [0]),
])
def test_the_nemesis_may_be_refused_only_what_its_fault_allows(refused, expected):
    assert unticked(nemesis(*refused), NEMESIS) == expected


def test_a_service_that_does_not_come_back_by_itself_is_found():
    evidence = nemesis()
    evidence.facts["not_recovered"] = ["worker-kill"]
    assert unticked(evidence, NEMESIS) == [1]


def test_the_same_seed_draws_the_same_faults():
    one, same, other = ([*islice(draws(Random(seed), list(FAULTS)), 50)] for seed in (7, 7, 8))
    assert one == same != other
    assert len({name for name, _, _ in one}) > 10 and not list(draws(Random(7), []))


def test_a_loss_that_is_meant_has_to_show_in_the_audit():
    evidence = nemesis()
    evidence.facts["injected"] = ["redis-flush"]
    evidence.audit.update(totals={**AUDIT["totals"], "in_stream": 1})
    assert unticked(evidence, NEMESIS) == [4]
    unbalanced(evidence)
    assert unticked(evidence, NEMESIS) == []


def test_the_report_shows_every_box_and_draws_the_time_line():
    from ops.chaos import page
    results = [report.judge(GOOD[name](), EXPERIMENTS[name].boxes) for name in GOOD]
    html = page.render(results, {"arguments": {"rate": "100"}})
    assert html.count("✓") == sum(len(one.boxes) for one in EXPERIMENTS.values()) and "✗" not in html
    assert html.count("<svg") == len(EXPERIMENTS)
    assert "http://" not in html.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", "")


def test_every_fault_is_documented():
    reference = (ROOT / "ops/REFERENCE.md").read_text()
    for fault in FAULTS.values():
        mark = "¹" * bool(fault.needs) + "²" * fault.is_lossy
        told = ", ".join(sorted(fault.refusals)) or "–"
        assert f"| `{fault.name}`{mark} | {fault.text} | {told} |" in reference
    for name in (*EXPERIMENTS, "nemesis"):
        assert f"| `{name}` |" in reference
