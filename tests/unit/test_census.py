"""Who may take a connection, by what all workers have."""

from types import SimpleNamespace

import pytest

from app import census
from ops import gunicorn_conf


@pytest.fixture(autouse=True)
def nobody():
    """Ends with nobody known."""
    yield
    for number in range(4):
        census.forget(number)


def test_a_lone_worker_may_always_take_one():
    assert all(census.may_take(1, count) for count in range(1000))


def test_who_has_more_than_another_leaves_it_the_next():
    assert census.may_take(1, 0) and census.may_take(2, 0)
    assert not census.may_take(1, 1)
    assert census.may_take(2, 1) and census.may_take(1, 1)
    assert census.may_take(3, 0) and not census.may_take(1, 1)


def test_of_many_a_sixteenth_more_is_as_many():
    census.may_take(1, 150)
    assert census.may_take(2, 160)
    assert not census.may_take(2, 161)


def test_who_has_ended_counts_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    census.may_take(1, 0)
    assert not census.may_take(2, 5)
    gunicorn_conf.child_exit(None, SimpleNamespace(age=1, pid=1))
    assert census.may_take(2, 5)
