"""Large bodies have their turn one after the other, and none waits for it without end."""

import gevent
import pytest
from gevent.lock import BoundedSemaphore

from app.errors import NotDurable
from app.pace import Pace
from tests.journal import DEADLINE_S


@pytest.fixture
def turn():
    return BoundedSemaphore()


def test_who_waits_for_too_long_is_refused_and_keeps_nobody_from_the_turn(turn):
    first, second, third = Pace(turn, DEADLINE_S), Pace(turn, 0.01), Pace(turn, DEADLINE_S)
    first.pause()
    with gevent.Timeout(DEADLINE_S), pytest.raises(NotDurable) as found:
        second.pause()
    assert found.value.cause == "inflight"
    second.close()
    first.close()
    third.pause()
    assert turn.locked()
    third.close()
    assert not turn.locked()


def test_who_is_ended_while_it_waits_keeps_nobody_from_the_turn(turn):
    first, second, third = (Pace(turn, DEADLINE_S) for _ in range(3))

    def wait():
        try:
            second.pause()
        finally:
            second.close()

    first.pause()
    waiting = gevent.spawn(wait)
    gevent.idle()
    waiting.kill()
    first.close()
    third.pause()
    third.close()
    assert not turn.locked()


def test_one_turn_lasts_until_it_is_closed_whatever_the_pauses(turn):
    one, other = Pace(turn, DEADLINE_S), Pace(turn, DEADLINE_S)
    one.pause()
    waiting = gevent.spawn(other.pause)
    for _ in range(10):
        gevent.sleep(0)
        one.pause()
    assert not waiting.ready()
    one.close()
    waiting.get(timeout=DEADLINE_S)
