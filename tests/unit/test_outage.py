"""An outage is counted, waited for and told of as its policy says."""

import pytest

from app.errors import StreamUnavailable
from workers.errors import Locked, Misconfigured, Unavailable
from workers.outage import Outage, Policy

AWAY = Unavailable("57P03", "starting up")
LOCKED = Locked("55P03", "lock timeout")
DOUBTFUL = Unavailable("P0001", "not this one", is_doubtful=True)
CLOSED = Misconfigured("42501", "permission denied")
MAX_BYTES = 1000


def make(retries=3, is_holding=False):
    return Outage(Policy(retries, is_holding, MAX_BYTES), longest_delay_s=2.0)


def exhausted(outage, error, times, letters_bytes=0):
    return [outage.has_exhausted(error, lambda: letters_bytes) for _ in range(times)]


def test_after_the_retries_every_failed_load_is_buried_until_one_succeeds():
    outage = make(retries=3)
    assert exhausted(outage, AWAY, 6) == [False, False, False, True, True, True]
    assert outage.failures == 6 and outage.since
    outage.end()
    assert (outage.failures, outage.since) == (0, "")
    assert exhausted(outage, AWAY, 4) == [False, False, False, True]


def test_without_retries_the_first_failure_is_enough():
    assert exhausted(make(retries=0), AWAY, 1) == [True]


def test_who_holds_is_never_through_and_neither_is_who_waits_for_an_operator():
    assert not any(exhausted(make(is_holding=True), AWAY, 50))
    outage = make(retries=0)
    assert not any(exhausted(outage, CLOSED, 50)) and outage.failures == 0
    assert exhausted(outage, AWAY, 1) == [True]


@pytest.mark.parametrize("error", [LOCKED, DOUBTFUL])
def test_a_lock_and_what_is_tried_in_smaller_parts_never_count(error):
    outage = make(retries=0)
    assert not any(exhausted(outage, error, 50)) and outage.failures == 0
    assert exhausted(outage, AWAY, 1) == [True]


def test_what_is_tried_in_smaller_parts_waits_for_nobody():
    outage = make()
    assert all(outage.delay(DOUBTFUL) <= 0.1 for _ in range(20))


def test_what_is_refused_alone_may_be_buried_after_its_own_retries_and_is_named_twice(caplog):
    outage = make(retries=2)
    found = []
    for refusals in range(1, 6):
        outage.note_refused("batch", DOUBTFUL, refusals)
        found.append(outage.may_bury(refusals, lambda: 0))
    assert found == [False, False, True, True, True]
    assert not any(make(retries=2, is_holding=True).may_bury(refusals, lambda: 0) for refusals in range(6))
    assert not make(retries=2).may_bury(9, lambda: MAX_BYTES)
    assert (caplog.text.count("batch_set_aside"), caplog.text.count("batch_held")) == (1, 1)
    assert outage.refused_delay(2) < outage.refused_delay(3)


def test_full_dead_letters_make_it_hold_and_it_says_so_once(caplog):
    outage = make(retries=0)
    assert exhausted(outage, AWAY, 3, letters_bytes=MAX_BYTES) == [False] * 3
    assert caplog.text.count("dead_letters_full") == 1
    assert exhausted(outage, AWAY, 1, letters_bytes=MAX_BYTES - 1) == [True]


@pytest.mark.parametrize("error", [AWAY, CLOSED, StreamUnavailable("LOADING", "")])
def test_delays_grow_to_the_longest_and_no_two_consumers_keep_in_step(error):
    delays = [make().delay(error) for _ in range(50)]
    assert len(set(delays)) > 40 and all(0.05 <= delay_s <= 0.1 for delay_s in delays)
    outage = make()
    grown = [outage.delay(error) for _ in range(100)]
    assert all(1.0 <= delay_s <= 2.0 for delay_s in grown[10:])


def test_attempts_are_told_with_number_cause_and_next_try_and_not_for_ever(caplog):
    outage = make()
    for _ in range(200):
        outage.delay(AWAY)
    lines = caplog.text.splitlines()
    assert "load_failed attempt=1 cause=57P03 next_try_s=" in lines[0] and "retries=3 policy=dead-letter" in lines[0]
    assert 20 < len(lines) < 40
    outage.end()
    assert "servers_available failed_attempts=200" in caplog.text
    caplog.clear()
    outage.end()
    assert not caplog.text
