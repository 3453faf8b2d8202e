"""The tally hands over what prometheus_client would have counted by itself, each time once."""

import gevent
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram

from app.tally import BulkHistogram, Tally
from tests.journal import until
from tests.sample import steady

BOUNDS = (0.001, 0.5, 2)


def samples(registry):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in registry.collect() for sample in family.samples if not sample.name.endswith("_created")
    }


@steady
@given(rounds=st.lists(st.lists(st.tuples(
    st.sampled_from(["202", "400", "503"]), st.integers(0, 5),
    st.sampled_from([*BOUNDS, 0.0, 100.0]) | st.integers(0, 4000).map(lambda number: number / 1024),
))))
def test_it_counts_as_one_by_one(rounds):
    registries = CollectorRegistry(), CollectorRegistry()
    tally = Tally()
    bulk = BulkHistogram("seconds", "", buckets=BOUNDS, registry=registries[0])
    seconds = Histogram("seconds", "", buckets=BOUNDS, registry=registries[1])
    added, requests = (Counter("requests", "", ["status"], registry=registry) for registry in registries)
    for answers in rounds:
        for status, amount, duration in answers:
            tally.add(added.labels(status), amount)
            tally.observe(bulk, duration)
            requests.labels(status).inc(amount)
            seconds.observe(duration)
        tally.flush()
    found, expected = map(samples, registries)
    total = "seconds_sum",
    assert abs(found.pop(total) - expected.pop(total)) < 1e-6
    assert found == expected


class Broken(Counter):
    """A counter whose file cannot be written to until it is mended."""

    is_mended = False

    def inc(self, amount=1, exemplar=None):
        if not self.is_mended:
            raise OSError("No space left on device")
        super().inc(amount)


def test_what_cannot_be_handed_over_ends_nothing_and_is_said_once(caplog):
    registry = CollectorRegistry()
    broken, sound = Broken("broken", "", registry=registry), Counter("sound", "", registry=registry)
    tally = Tally()
    for _ in range(3):
        tally.add(broken)
        tally.add(sound)
        tally.flush()
    assert samples(registry)["sound_total",] == 3
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    broken.is_mended = True
    tally.add(broken)
    tally.flush()
    tally.flush()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert samples(registry)["broken_total",] == 1


def test_it_goes_on_after_a_failure():
    registry = CollectorRegistry()
    broken, sound = Broken("broken", "", registry=registry), Counter("sound", "", registry=registry)
    tally = Tally()
    tally.start()
    for count in (1, 2):
        tally.add(broken)
        tally.add(sound)
        until(lambda: (gevent.sleep(0.01), samples(registry)["sound_total",] == count)[1], "the next round")
