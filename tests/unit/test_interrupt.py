"""Ctrl-C in the midst of breaking things: it waits for what must not be left half done, and comes once."""

import signal

import pytest

from ops.chaos import interrupt
from ops.chaos.stage import Stage
from ops.errors import ChaosFailed

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def listening():
    before = {number: signal.getsignal(number) for number in NUMBERS}
    for number in NUMBERS:
        signal.signal(number, signal.SIG_DFL)  # `nohup` has one ignored
    interrupt.listen()
    yield
    for number, told in before.items():
        signal.signal(number, told)


@pytest.mark.parametrize("number", NUMBERS)
def test_it_waits_for_the_end_of_what_is_being_done(number):
    done = []
    with pytest.raises(KeyboardInterrupt):
        with interrupt.postponed():
            signal.raise_signal(number)
            done.append(1)
    assert done == [1]


def test_what_failed_meanwhile_is_told_before_it():
    with pytest.raises(ChaosFailed):
        with interrupt.postponed():
            signal.raise_signal(signal.SIGINT)
            raise ChaosFailed("it cannot be healed")


def test_the_second_one_changes_nothing(capfd):
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    for number in NUMBERS:
        signal.raise_signal(number)
        with interrupt.postponed():
            signal.raise_signal(number)
    assert "is being mended first" in capfd.readouterr().err


def test_what_is_ignored_stays_so():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupt.listen()
    signal.raise_signal(signal.SIGHUP)


class Target:
    """Notes what is done to it; `trouble` is what happens while it is stopped."""

    def __init__(self, trouble):
        self.done, self.trouble = [], trouble

    def hosts(self):
        return {}

    def stop(self, name):
        self.trouble()
        self.done.append(f"stop {name}")

    def start(self, name):
        self.done.append(f"start {name}")


def fail():
    raise ChaosFailed("it did not stop in time")


@pytest.mark.parametrize("trouble, raised, done", [
    (lambda: signal.raise_signal(signal.SIGINT), KeyboardInterrupt, ["stop redis", "start redis"]),
    (fail, ChaosFailed, ["start redis"]),
])
def test_a_server_is_started_again_though_its_stop_was_interrupted_or_failed(trouble, raised, done):
    target = Target(trouble)
    with pytest.raises(raised):
        with Stage("redis-outage", target, None, 1.0, {}).stopped("redis"):
            target.done.append("held")
    assert target.done == done
