"""Which letters an operator means, and how that is written."""

import pytest

from app import dead_letter, letter_filter
from app.letter_filter import Filter
from tests import journal
from tests.unit.test_dead_letter import letter_of

NOW_MS = 1_769_860_800_000  # 2026-01-31T12:00:00Z


def read(reason=None, service=None, batch=None, since=None, ids=()):
    return letter_filter.read(reason, service, batch, since, ids, lambda: NOW_MS)


def test_nothing_given_means_every_letter():
    assert read() == Filter() and read().is_empty
    assert read().matches(letter_of(journal.make_batch())) and read().matches(dead_letter.letter_of(b"0-1", {}))


@pytest.mark.parametrize("since, since_ms", [
    ("90s", NOW_MS - 90_000), ("15m", NOW_MS - 900_000), ("2h", NOW_MS - 7_200_000), ("3d", NOW_MS - 259_200_000),
    ("999999999d", 0), ("2026-01-31T12:00:00Z", NOW_MS), ("2026-01-31T13:00:00.5+01:00", NOW_MS + 500),
])
def test_since_is_a_point_in_time_or_a_duration_before_now(since, since_ms):
    assert read(since=since).since_ms == since_ms


@pytest.mark.parametrize("since", [
    "90", "", "s", "-5m", "5 m", "1.5h", "٣s", "1769860800", "2026-01-31", "2026-01-31T12:00:00", "yesterday",
    "2026-02-30T00:00:00Z", "9999-01-01T00:00:00Z", "\x1b[31m", "9" * 5000 + "s",
])
def test_what_is_no_time_is_refused_with_what_is_one(since):
    with pytest.raises(ValueError, match="since '"):
        read(since=since)


@pytest.mark.parametrize("words, what", [
    ({"reason": "nonsense"}, "sink_unavailable, sink_refuses, bad_event"), ({"batch": "nonsense"}, "not a UUID"),
    ({"ids": ["1-1", "1"]}, "'1' is not the id of a letter"), ({"ids": ["-"]}, "not the id"), ({"ids": ["+"]}, "not"),
    ({"ids": ["1-99999999999999999999"]}, "not the id"), ({"ids": ["1-1 "]}, "not the id"),
])
def test_what_is_not_allowed_is_refused_with_what_is(words, what):
    with pytest.raises(ValueError, match=what):
        read(**words)


def test_ids_are_written_as_redis_writes_them_and_each_once():
    assert read(ids=["007-0", "7-0", "7-1"]).letter_ids == ("7-0", "7-1")


def test_a_letter_is_meant_when_all_that_is_given_holds():
    one = journal.make_batch()
    letter = letter_of(one, letter_id=f"{NOW_MS}-5".encode())
    right = {"reason": dead_letter.SINK, "batch": one.batch_id.upper(), "since": "0s", "ids": [f"{NOW_MS}-5"]}
    wrong = {"reason": dead_letter.KILLS, "batch": journal.make_batch().batch_id, "since": "2026-01-31T12:00:00.001Z",
             "ids": [f"{NOW_MS}-4"], "service": "web"}
    for name, value in right.items():
        assert read(**{name: value}).matches(letter)
    assert read(**right).matches(letter)
    for name, value in wrong.items():
        assert not read(**{**right, name: value}).matches(letter)


def test_conflicts_are_named_by_their_reason_or_by_id():
    assert read(reason=dead_letter.CONFLICT).names_conflicts and read(ids=["1-1"]).names_conflicts
    assert not read().names_conflicts and not read(service="web", since="1h").names_conflicts
