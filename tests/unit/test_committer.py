"""The committer answers each request once, with what became of its own batch, and never before it is confirmed."""

import gevent
import pytest
from gevent.event import Event

from app.batch import Batch
from app.committer import Committer
from app.errors import NotDurable, StreamUnavailable

DEADLINE_S = 0.2
REFUSED = StreamUnavailable("OOM", "full")


class Target:
    """Keeps the groups that it is given; each waits for `gate`, and then does as `answer` says."""

    def __init__(self, answer=lambda batches: [None] * len(batches)):
        self.groups = []
        self.answer = answer
        self.gate = Event()
        self.gate.set()

    def append(self, batches):
        self.groups.append([batch.batch_id for batch in batches])
        self.gate.wait()
        return self.answer(batches)


def batch(name, size=1):
    return Batch(str(name), 1, "", "", bytes(size))


def outcomes(target, *batches, deadline_s=5.0):
    """Commits batches at the same time and returns for each None, or the error that its request got."""
    committer = Committer(target, deadline_s)

    def commit(one):
        try:
            committer.commit(one)
        except NotDurable as error:
            return error

    greenlets = [gevent.spawn(commit, one) for one in batches]
    gevent.joinall(greenlets, timeout=10, raise_error=True)
    assert all(greenlet.dead for greenlet in greenlets), "a request was never answered"
    return [greenlet.value for greenlet in greenlets]


def test_a_batch_is_confirmed_when_the_target_has_confirmed_it():
    target = Target()
    target.gate.clear()
    committer = Committer(target, 5)
    request = gevent.spawn(committer.commit, batch("a"))
    gevent.sleep(0)
    gevent.sleep(0)
    assert target.groups == [["a"]] and not request.dead
    target.gate.set()
    request.get(timeout=5)


def test_what_waits_while_a_group_is_on_its_way_is_the_next_group_in_order():
    target = Target()
    target.gate.clear()
    committer = Committer(target, 5)
    first = gevent.spawn(committer.commit, batch(0))
    gevent.sleep(0)
    gevent.sleep(0)
    rest = [gevent.spawn(committer.commit, batch(number)) for number in range(1, 101)]
    gevent.sleep(0)
    target.gate.set()
    gevent.joinall([first, *rest], timeout=5, raise_error=True)
    assert target.groups == [["0"], [str(number) for number in range(1, 101)]]


def test_a_group_ends_before_it_is_too_large_and_takes_at_least_one():
    target = Target()
    mib = 1 << 20
    assert outcomes(target, *(batch(name, 3 * mib) for name in "abcde"), batch("f", 20 * mib)) == [None] * 6
    assert target.groups == [["a", "b"], ["c", "d"], ["e"], ["f"]]


def test_each_request_gets_the_outcome_of_its_own_batch():
    def every_second_refused(batches):
        return [REFUSED if int(one.batch_id) % 2 else None for one in batches]

    found = outcomes(Target(every_second_refused), *map(batch, range(10)))
    assert [error is not None for error in found] == [bool(number % 2) for number in range(10)]
    assert all(error.__cause__ is REFUSED and error.cause == "stream" for error in found[1::2])


@pytest.mark.parametrize("failure", [StreamUnavailable("connect", "refused"), ValueError("a fault of ours"), OSError()])
def test_when_a_group_fails_all_of_its_requests_are_told_and_the_next_group_is_tried(failure):
    def fail(batches):
        target.answer = lambda batches: [None] * len(batches)
        raise failure

    target = Target(fail)
    committer = Committer(target, 5)
    failed = [gevent.spawn(committer.commit, batch(name)) for name in "abc"]
    gevent.joinall(failed, timeout=5)
    assert all(isinstance(request.exception, NotDurable) for request in failed)
    committer.commit(batch("d"))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_target_that_answers_for_another_number_of_batches_confirms_none_that_it_did_not_name(count):
    found = outcomes(Target(lambda batches: [None] * count), batch("a"), batch("b"))
    assert [error is None for error in found] == [index < count for index in range(2)]


def test_a_target_that_does_not_answer_fails_its_group_after_the_deadline():
    target = Target()
    target.gate.clear()
    found = outcomes(target, batch("a"), batch("b"), deadline_s=DEADLINE_S)
    assert [str(error.__cause__) for error in found] == [f"deadline: no reply within {DEADLINE_S} s"] * 2


def test_what_waits_behind_a_group_that_fails_fails_with_it_so_that_nobody_waits_for_two_deadlines():
    target = Target()
    target.gate.clear()
    large = [batch(number, 8 << 20) for number in range(5)]  # each a group of its own
    assert all(outcomes(target, *large, deadline_s=DEADLINE_S))
    assert target.groups == [["0"]]


def test_a_sign_of_life_is_asked_for_without_a_batch_and_is_as_good_as_the_batches_beside_it():
    target = Target()
    assert outcomes(target, None) == [None] and target.groups == [[]]
    found = outcomes(Target(lambda batches: [REFUSED] * len(batches)), None, batch("a"))
    assert all(error.__cause__ is REFUSED for error in found)


def test_a_change_of_state_is_logged_once(caplog):
    target = Target(lambda batches: [REFUSED] * len(batches))
    committer = Committer(target, 5)
    for _ in range(3):
        with pytest.raises(NotDurable):
            committer.commit(batch("a"))
    target.answer = lambda batches: [None] * len(batches)
    for _ in range(3):
        committer.commit(batch("a"))
    assert [record.message.split()[0] for record in caplog.records] == ["redis_unavailable", "redis_available"]
