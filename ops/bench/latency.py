"""How long an acknowledgement takes, by the share of the top rate that is asked for: single events, open-loop, with the
consumers loading. The top rate is that of the same generator, measured just before: both spend the same on a request.
"""

from collections.abc import Iterator

from ops.bench import load, schedule
from ops.bench.client import posts
from ops.bench.figure import Figure, quantile
from ops.bench.plan import CONNECTIONS, Plan
from ops.bench.rig import Rig

PART = "latency"
SHARES = (0.25, 0.50, 0.75, 0.90)
QUANTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
_CONNECTIONS = 256


def measure(rig: Rig, plan: Plan) -> Iterator[Figure]:
    """Measures one round."""
    requests = posts(rig.ingest, plan.bodies[1].bodies)
    rig.clear()
    answers, seconds = load.closed(rig.ingest, requests, CONNECTIONS[1], plan.load_s)
    top_rate = answers / seconds
    yield Figure(PART, "closed loop", "top rate", "requests/s", top_rate)
    for share in SHARES:
        rig.clear()
        timing = schedule.run(rig.ingest, requests, share * top_rate, plan.latency_s, _CONNECTIONS)
        backlog = len(timing.latencies_s) - rig.stored()
        yield Figure(PART, f"{share:.0%} of the top rate", "from due to acknowledged, p99", "ms",
                     1e3 * quantile(sorted(timing.latencies_s), QUANTILES["p99"]),
                     facts=_facts(timing, share * top_rate) | {"backlog events": float(max(0, backlog))})


def _facts(timing: schedule.Timing, rate: float) -> dict[str, float]:
    ordered, late = sorted(timing.latencies_s), sorted(timing.late_s) or [0.0]
    return {
        "asked requests/s": rate, "reached requests/s": len(ordered) / timing.seconds,
        **{f"{name} ms": 1e3 * quantile(ordered, share) for name, share in QUANTILES.items()},
        "generator late p99 ms": 1e3 * quantile(late, 0.99), "generator late max ms": 1e3 * late[-1],
        "most waiting requests": float(timing.max_waiting),
    }
