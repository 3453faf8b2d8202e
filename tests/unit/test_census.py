"""Who may take a connection, by what all workers have."""

import os
from contextlib import ExitStack
from types import SimpleNamespace

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.pool import Pool

from app import census
from app.worker import Worker
from ops import gunicorn_conf
from tests.journal import until


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


class Acceptor(Worker):
    """A worker of which only the way to its connections is there; it holds them."""

    def __init__(self, age):
        self.age = age
        self._pool = Pool()

    def _serve(self, client, *_):
        with client:
            Event().wait()


def test_who_has_lost_a_race_leaves_the_next_to_one_that_has_fewer():
    workers = [Acceptor(1), Acceptor(2)]

    def connect():
        before = sum(len(one._pool) for one in workers)
        clients.enter_context(socket.create_connection(listeners[0].getsockname()))
        until(lambda: (gevent.sleep(0.001), sum(len(one._pool) for one in workers) > before)[1], "a worker to take it")

    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as clients:
        listeners = [clients.enter_context(socket.socket(fileno=os.dup(listener.fileno()))) for _ in workers]
        acceptors = [gevent.spawn(one._accept, each) for one, each in zip(workers, listeners)]
        try:
            connect()  # Either of them sees that it has come, and one comes too late.
            late = workers[not len(workers[1]._pool)]
            other = workers[late is workers[0]]
            acceptors[workers.index(other)].kill()
            for _ in range(8):
                late._pool.spawn(Event().wait)
            gevent.spawn_later(0.002, other._accept_one, listeners[workers.index(other)])
            connect()
            assert (len(late._pool), len(other._pool)) == (8, 2)
        finally:
            gevent.killall(acceptors)
            for one in workers:
                one._pool.kill()
