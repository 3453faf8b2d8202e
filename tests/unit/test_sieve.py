"""The sieve finds exactly what is at fault, with few attempts, whatever it is told about where that is."""

from hypothesis import given
from hypothesis import strategies as st

from tests.sample import steady
from workers.sieve import Refusal, line_at_fault, refused


class Judge:
    """Refuses every part with one at fault in it; `hint` says where it says that one is."""

    def __init__(self, bad, hint):
        self.taken, self.attempts, self._bad, self._hint = [], 0, bad, hint

    def __call__(self, start, end):
        self.attempts += 1
        found = [index for index in range(start, end) if index in self._bad]
        if not found:
            self.taken += range(start, end)
            return None
        return Refusal("22P02", "bad", self._hint(found[0] - start))


@steady
@given(st.integers(0, 200), st.integers(1, 200), st.sets(st.integers(0, 199), max_size=20), st.sampled_from([
    lambda at: at, lambda at: None, lambda at: at + 3, lambda at: 0, lambda at: 10**9,
]))
def test_whatever_it_is_told_those_at_fault_are_named_in_order_and_all_others_are_taken_once(count, size, bad, hint):
    judge = Judge(bad, hint)
    parts = [(start, min(start + size, count)) for start in range(0, count, size)]
    named = [index for index, _ in refused(parts, judge)]
    assert named == sorted(index for index in bad if index < count)
    assert sorted(judge.taken) == [index for index in range(count) if index not in bad]


def test_it_takes_three_attempts_for_each_at_fault_if_it_is_told_which():
    judge = Judge(set(range(0, 10_000, 100)), lambda at: at)
    assert len(list(refused([(0, 10_000)], judge))) == 100
    assert judge.attempts <= 3 * 100 + 1


def test_one_at_fault_costs_its_part_alone_another_try():
    judge = Judge({550}, lambda at: at)
    assert len(list(refused([(start, start + 100) for start in range(0, 1000, 100)], judge))) == 1
    assert judge.attempts == 10 + 3 and judge.taken == [index for index in range(1000) if index != 550]


def test_it_is_not_tried_again_what_was_refused_before_it_began():
    judge = Judge({7}, lambda at: at)
    assert [index for index, _ in refused([(0, 10)], judge, Refusal("22P02", "bad", 7))] == [7]
    assert judge.attempts == 3


def test_it_takes_logarithmically_many_if_it_is_not():
    judge = Judge({7777}, lambda at: None)
    assert [index for index, _ in refused([(0, 10_000)], judge)] == [7777]
    assert judge.attempts <= 3 * 14


def test_the_context_of_a_copy_tells_the_line():
    assert line_at_fault('COPY log_events, line 3, column ts: "x"') == 2
    assert line_at_fault("JSON data, line 1: {...\nCOPY log_events, line 12, column attributes") == 11
    assert line_at_fault(None) is None and line_at_fault("SQL statement") is None
