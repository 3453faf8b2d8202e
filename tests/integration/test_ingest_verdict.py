"""One verdict of both worker classes on what is hostile, or the stricter one of ours; never two requests out of one."""

import re
import socket
from contextlib import closing

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from app import stream
from tests.edge import WORKER_CLASSES, Edge
from tests.hostile import EVENT, FOLLOWER, REFUSED, TAKEN
from tests.sample import steady

REFUSALS = {400, 414, 417, 431, 501, 505}


@pytest.fixture(scope="module")
def edges(shared_redis, tmp_path_factory):
    running = {
        name: Edge(shared_redis.url, tmp_path_factory.mktemp(name), name, SPILLWAY_REDIS_DEADLINE_MS="30000")
        for name in WORKER_CLASSES
    }
    yield running
    for edge in running.values():
        edge.stop()


@pytest.fixture
def ours(edges):
    """The edge with our own worker class, that has to be unharmed after the test."""
    with edges["spillway"].unharmed():
        yield edges["spillway"]


@pytest.fixture
def client(redis_url):
    with closing(redis.Redis.from_url(redis_url, protocol=2)) as client:
        yield client


def statuses(received):
    """Returns the final statuses in what was received."""
    return [int(found) for found in re.findall(rb"HTTP/1\.[01] ([2-5]\d\d) ", received)]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_hostile_is_refused_once_and_nothing_behind_it_is_read(ours, client, name):
    received = ours.raw(REFUSED[name] + FOLLOWER, is_half_closed=True)
    (status,) = statuses(received)
    head, _, content = received.partition(b"\r\n\r\n")
    assert status in REFUSALS
    assert b"application/problem+json" in head and content.endswith(b"}")
    assert b"\r\nConnection: close" in head
    assert client.xlen(stream.STREAM) == 0


@pytest.mark.parametrize("name", REFUSED)
def test_ours_refuses_whatever_gunicorn_refuses(edges, client, name):
    theirs = statuses(edges["gevent"].raw(REFUSED[name] + FOLLOWER, is_half_closed=True))
    # What they take for a request of its own, or refuse and go on behind it, is where ours is stricter.
    stricter = {"no Host": [202, 202], "1.2": [202], "unknown method": [400, 202]}
    assert theirs == stricter.get(name, theirs)
    assert name in stricter or (len(theirs) == 1 and theirs[0] in REFUSALS)


@pytest.mark.parametrize("worker_class", WORKER_CLASSES)
@pytest.mark.parametrize("name", TAKEN)
def test_what_is_unusual_and_right_is_taken(edges, client, name, worker_class):
    received = edges[worker_class].raw(TAKEN[name] + FOLLOWER, is_half_closed=True)
    # Behind an answer in HTTP/1.0 the connection ends.
    assert statuses(received) == ([202] if name == "1.0" else [202, 202])
    for _, entry in client.xrange(stream.STREAM):
        assert stream.batch_of(entry).payload.split(b"\t")[8] == b"m"


def in_pieces(edge, pieces):
    """Sends each piece in a segment of its own, as far as the kernel can be told, and returns what comes back."""
    with edge.connection() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


names = st.lists(st.sampled_from([name for name in TAKEN if name != "1.0"]), min_size=1, max_size=4)


@steady
@given(chosen=names, cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_wherever_the_bytes_are_cut_the_answers_are_the_same(edges, chosen, cuts):
    sent = b"".join(TAKEN[name] for name in chosen) + FOLLOWER
    ends = sorted({cut % len(sent) for cut in cuts} | {0, len(sent)})
    pieces = [sent[start:end] for start, end in zip(ends, ends[1:])]
    assert statuses(in_pieces(edges["spillway"], pieces)) == [202] * (len(chosen) + 1)


def test_byte_by_byte_is_all_the_same(ours, client):
    sent = TAKEN["trailer"] + TAKEN["extensions"] + TAKEN["Expect"] + FOLLOWER
    assert statuses(in_pieces(ours, [bytes([byte]) for byte in sent])) == [202] * 4


garbage = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda junk: FOLLOWER.split(b"\r\n\r\n")[0] + junk, st.binary(max_size=60)),
    st.builds(
        lambda name, at, junk, drop: REFUSED.get(name, TAKEN.get(name))[:at] + junk + (
            REFUSED.get(name, TAKEN.get(name))[at + drop:]),
        st.sampled_from([name for name, sent in {**REFUSED, **TAKEN}.items() if len(sent) < 1000]),
        st.integers(0, 400), st.binary(max_size=8), st.integers(0, 8),
    ),
)


@steady
@given(sent=garbage)
def test_garbage_gets_no_fault_of_ours_and_harms_nobody(edges, sent):
    received = edges["spillway"].raw(sent, is_half_closed=True)
    assert all(status < 500 or status in (501, 505) for status in statuses(received))
    assert statuses(edges["spillway"].raw(FOLLOWER)) == [202]


def test_a_hundred_requests_sent_ahead_are_answered_in_order(ours, client):
    bodies = [b'{"message":"%d"}' % number for number in range(100)]
    sent = b"".join(
        b"POST /ingest HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body) for body in bodies
    )
    received = ours.raw(sent, is_half_closed=True)
    ids = re.findall(rb'"batch_id":"([-0-9a-f]+)"', received)
    by_id = {fields[b"batch_id"]: stream.batch_of(fields) for _, fields in client.xrange(stream.STREAM)}
    assert [by_id[one].payload.split(b"\t")[8] for one in ids] == [b"%d" % number for number in range(100)]


def test_event_is_what_the_cases_hold():
    assert all(EVENT in sent for name, sent in TAKEN.items() if name != "chunks of a byte")
