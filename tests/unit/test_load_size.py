"""The size of a load: down to one for what may be the rows, and back up."""

import itertools

import pytest

from workers.load_size import LoadSize


@pytest.mark.parametrize("most", range(1, 70))
def test_it_halves_down_to_one_and_doubles_back_to_the_most(most):
    size = LoadSize(most)
    limits = []
    while size.limit > 1:
        limits.append(size.limit)
        size.note_failed(size.limit)
        assert size.limit == limits[-1] // 2
    size.note_failed(1)
    assert size.limit == 1
    for _ in range(most.bit_length()):
        size.note_loaded(size.limit, 0)
    assert size.limit == most


def test_a_load_smaller_than_it_may_be_proves_nothing_of_larger_ones():
    size = LoadSize(4)
    size.note_failed(4)
    size.note_loaded(1, 0)
    assert size.limit == 2
    size.note_failed(1)
    assert size.limit == 1


@pytest.mark.parametrize("bad", [set(), {0}, {31}, {7, 8}, {0, 31}, set(range(32))])
def test_whatever_is_bad_all_others_are_loaded_and_no_load_is_larger_than_it_may_be(bad):
    size, hand, loaded, alone = LoadSize(32), list(range(32)), [], []
    for attempts in itertools.count():
        if not hand:
            break
        part = hand[:size.limit]
        assert attempts < 32 * 6 and len(part) <= size.limit <= 32
        if bad.isdisjoint(part):
            size.note_loaded(len(part), len(part))
            loaded += part
            hand = hand[len(part):]
        else:
            size.note_failed(len(part))
            if len(part) == 1:
                alone.append(hand.pop(0))
    assert (set(loaded), set(alone)) == (set(range(32)) - bad, bad)


def test_what_was_loaded_tells_once_that_as_much_is_taken():
    size = LoadSize(4)
    assert not size.has_taken(1)
    size.note_loaded(1, 100)
    size.note_loaded(1, 10)
    assert size.has_taken(100) and not size.has_taken(1)
    size.note_loaded(1, 99)
    assert not size.has_taken(100)
