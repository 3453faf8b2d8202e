"""The four experiments of the checklist by name: what is done, and which boxes it is judged by."""

from collections.abc import Callable
from typing import NamedTuple

from ops.chaos import consumer_crash, latency, postgres_outage, redis_outage
from ops.chaos.box import Box
from ops.chaos.evidence import Evidence
from ops.chaos.stage import Stage


class Experiment(NamedTuple):
    """One of them."""

    play: Callable[[Stage], Evidence]
    boxes: tuple[Box, ...]


EXPERIMENTS = {
    "redis-outage": Experiment(redis_outage.play, redis_outage.BOXES),
    "postgres-outage": Experiment(postgres_outage.play, postgres_outage.BOXES),
    "consumer-crash": Experiment(consumer_crash.play, consumer_crash.BOXES),
    "latency": Experiment(latency.play, latency.BOXES),
}
