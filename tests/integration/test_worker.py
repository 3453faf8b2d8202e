"""The worker's life on a real gunicorn: stops, reloads, recycling and kills under load; deadlines and bounds."""

import gzip
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest
import redis

from ops.program import WORKER_CLASSES
from tests.edge import CLIENT_TIMEOUT_S, Edge
from tests.hostile import EVENT, FOLLOWER, HEAD, SIZE
from tests.journal import ROOT, in_stream, until
from tests.machine import missing

MIB = 1 << 20
LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def start(redis_url, tmp_path):
    """Starts edges with options for gunicorn and settings; they are ended here."""
    with ExitStack() as ends:
        def started(*options, **settings):
            directory = tmp_path / str(len(list(tmp_path.iterdir())))
            directory.mkdir()
            settings.setdefault("SPILLWAY_REDIS_DEADLINE_MS", "30000")
            edge = Edge(redis_url, directory, options=options, **settings)
            ends.callback(edge.stop)
            return edge
        yield started


class Client(threading.Thread):
    """Posts on one connection, again and again, and opens another one only when it was told that this one ends.

    A connection that is refused has promised nothing; any other end without an answer is a request that was lost.
    One that the kernel made just as the listener closed is reset before anybody has seen it: that is in `unmet`.
    """

    def __init__(self, port, is_over):
        super().__init__()
        self.answered = []
        self.lost = []
        self.unmet = []
        self._port, self._is_over = port, is_over

    def run(self):
        while not self._is_over.is_set():
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=CLIENT_TIMEOUT_S)
                with closing(connection):
                    connection.connect()
                    self._post_on(connection)
            except ConnectionRefusedError:
                return

    def _post_on(self, connection):
        is_new = True
        while not self._is_over.is_set():
            try:
                connection.request("POST", "/ingest", EVENT, {"Content-Type": "application/json"})
                response = connection.getresponse()
                self.answered.append((response.status, json.loads(response.read())["batch_id"]))
            except (OSError, http.client.HTTPException) as error:
                (self.unmet if is_new and isinstance(error, ConnectionResetError) else self.lost).append(error)
                return
            is_new = False
            if response.will_close:
                return


@contextmanager
def load(edge, count=8):
    """Clients at work; yields them, and ends them."""
    is_over = threading.Event()
    clients = [Client(edge.port, is_over) for _ in range(count)]
    for one in clients:
        one.start()
    try:
        until(lambda: sum(len(one.answered) for one in clients) > 100, "some load")
        yield clients
    finally:
        is_over.set()
        for one in clients:
            one.join(CLIENT_TIMEOUT_S)


def assert_kept(edge, clients, redis_url, has_ended=False):
    """Requires that every request was answered and counted, and that what was acknowledged is in the stream, once."""
    assert [error for one in clients for error in one.lost + (one.unmet if not has_ended else [])] == []
    answered = [answer for one in clients for answer in one.answered]
    assert {status for status, _ in answered} == {202}
    until(lambda: edge.metric("ingest_requests_total", status="202") == len(answered), "the last to be counted")
    assert edge.metric("ingest_request_seconds_count") == len(answered)
    with closing(redis.Redis.from_url(redis_url, protocol=2)) as client:
        stored = in_stream(client)
    assert sorted(stored) == sorted(batch_id for _, batch_id in answered)


def test_a_stop_under_load_answers_every_request(start, redis_url):
    edge = start()
    with load(edge) as clients:
        edge.stop()
        for one in clients:
            one.join(CLIENT_TIMEOUT_S)
            assert not one.is_alive()
    assert_kept(edge, clients, redis_url, has_ended=True)


# Holds a worker between its boot and its first look at clients for as long as there is a file, and ends it then.
HELD = """
import os, pathlib, signal, time
exec(open("ops/gunicorn_conf.py").read())
def post_worker_init(worker):
    flag = pathlib.Path({flag!r})
    if flag.exists():
        flag.write_text("held")
        while flag.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
"""


def test_who_has_connected_is_answered_by_a_worker_that_is_stopped_before_it_has_looked(start, tmp_path):
    flag, config = tmp_path / "flag", tmp_path / "config.py"
    config.write_text(HELD.format(flag=str(flag)))
    edge = start("-c", str(config))
    [before] = edge.pids()
    flag.touch()
    edge.signal(signal.SIGHUP)
    until(lambda: flag.read_text() and before not in edge.pids(), "another worker, alone and held")
    clients = [edge.connection() for _ in range(5)]
    for client in clients:
        client.sendall(LIVE)
    flag.unlink()
    for client in clients:
        with closing(client):
            assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")


def test_reloads_under_load_answer_every_request(start, redis_url):
    edge = start()
    with load(edge) as clients:
        for _ in range(3):
            before, count = edge.pids(), sum(len(one.answered) for one in clients)
            edge.signal(signal.SIGHUP)
            until(lambda: len(edge.pids()) == 1 and not before & edge.pids(), "another worker alone")
            until(lambda: sum(len(one.answered) for one in clients) > count + 100, "it to answer")
    assert_kept(edge, clients, redis_url)


def test_a_worker_that_has_served_its_requests_is_followed_by_another_and_no_request_is_lost(start, redis_url):
    edge = start("--max-requests", "200", "--max-requests-jitter", "50")
    with load(edge) as clients:
        until(lambda: edge.log.count("Booting worker") > 4, "four more workers")
    assert_kept(edge, clients, redis_url)


def test_a_stop_does_not_wait_for_clients_that_want_nothing(start):
    edge = start("--graceful-timeout", "600")
    with ExitStack() as idle:
        for _ in range(5):
            connection = idle.enter_context(edge.connection())
            connection.sendall(LIVE)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        idle.enter_context(edge.connection())  # it has never sent anything
        edge.stop()


def test_a_request_that_is_half_sent_when_the_stop_begins_is_answered_as_the_last(start, redis_url):
    edge = start()
    with edge.connection() as connection:
        connection.sendall(HEAD + SIZE + b"\r\n" + EVENT[:5])
        until(lambda: edge.connection_count() == 1, "the worker to have it")
        edge.signal(signal.SIGTERM)
        until(lambda: "Worker exiting" in edge.log or not edge.is_live(), "the listener to be closed")
        connection.sendall(EVENT[5:])
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert received.startswith(b"HTTP/1.1 202 ") and b"\r\nConnection: close\r\n" in received


def test_what_does_not_come_to_its_end_is_cut_off_when_the_time_is_over(start):
    edge = start("--graceful-timeout", "1", SPILLWAY_BODY_TIMEOUT_S="600")
    with edge.connection() as connection:
        connection.sendall(HEAD + SIZE + b"\r\n" + EVENT[:5])
        until(lambda: edge.connection_count() == 1, "the worker to have it")
        edge.stop()
        with suppress(ConnectionResetError):
            assert connection.recv(65536) == b""


def test_a_worker_whose_hub_stands_still_is_replaced(start):
    edge = start("--timeout", "2")
    os.kill(edge.pid, signal.SIGSTOP)
    until(lambda: edge.pid not in edge.pids() and edge.pids(), "another worker")
    until(edge.is_live, "it to answer")


# Each compresses to some 60 KB, and takes a second or two.
LARGE = {
    "long integers": (b'{"message":"m","attributes":{"n":%b}}' % (b"7" * 4200), "application/x-ndjson"),
    "unknown floats": (b'{"message":"m",%b}' % b",".join(b'"f%d":%d.5' % (n, n) for n in range(90)),
                       "application/x-ndjson"),
    "text to escape": (b"\t\\" * 2000, "text/plain"),
    "no text": (b"\xff\xfe" * 700, "text/plain"),
}


@pytest.mark.parametrize("kind", LARGE)
def test_others_are_answered_while_large_bodies_are_looked_at(start, kind):
    line, media_type = LARGE[kind]
    edge = start(SPILLWAY_MAX_INFLIGHT_BYTES=str(1 << 30), SPILLWAY_BODY_TIMEOUT_S="600")
    sent = gzip.compress(b"\n".join([line] * 10_000))
    with edge.unharmed(), ThreadPoolExecutor(4) as threads:
        large = [threads.submit(edge.post, sent, media_type, Content_Encoding="gzip") for _ in range(4)]
        answered = 0
        while not any(one.done() for one in large):
            answered += edge.is_live()
        assert {one.result().status for one in large} == {202}
    assert answered > 5, "others were answered while the first of the large ones was looked at"


@pytest.mark.parametrize("sent", [b"P", HEAD, HEAD + b"X-A: " + b"a" * 3000, b"\r"], ids=ascii)
def test_a_head_that_does_not_come_is_given_up(start, sent):
    edge = start(SPILLWAY_HEADER_TIMEOUT_S="1")
    with edge.connection() as connection:
        connection.sendall(sent)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert received.startswith(b"HTTP/1.1 408 ") and b"urn:spillway:problem:slow_head" in received


def test_a_head_that_trickles_is_given_up_and_others_are_served(start):
    edge = start(SPILLWAY_HEADER_TIMEOUT_S="2")
    with ExitStack() as slow:
        connections = [slow.enter_context(edge.connection()) for _ in range(200)]
        for connection in connections:
            connection.sendall(HEAD)
        left = set(connections)

        def trickle():
            for connection in list(left):
                try:
                    connection.sendall(b"X")
                    connection.setblocking(False)
                    if connection.recv(65536):
                        left.discard(connection)
                except BlockingIOError:
                    pass
                except OSError:
                    left.discard(connection)
            assert edge.raw(FOLLOWER).startswith(b"HTTP/1.1 202")
            return not left
        until(trickle, "all of them to be cut off")


def test_a_connection_that_stays_idle_is_closed_without_a_word(start):
    edge = start("--keep-alive", "1", SPILLWAY_HEADER_TIMEOUT_S="600")
    with edge.connection() as connection:
        connection.sendall(LIVE)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert connection.recv(65536) == b""


def test_a_connection_that_never_says_anything_is_closed(start):
    edge = start(SPILLWAY_HEADER_TIMEOUT_S="1")
    with edge.connection() as connection:
        assert connection.recv(65536) == b""


def test_a_client_that_does_not_read_costs_little_and_is_cut_off(start):
    edge = start(SPILLWAY_BODY_TIMEOUT_S="2")
    before = edge.peak_bytes()
    with edge.connection() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(1)
        with pytest.raises(OSError):  # Either its own time is over, as nobody reads any more, or it is cut off.
            for _ in range(200):
                connection.sendall(LIVE * 10_000)
        until(lambda: edge.connection_count() == 0, "it to be cut off")
    assert edge.peak_bytes() - before < 8 * MIB
    assert edge.is_live()


def test_more_connections_than_allowed_wait_until_there_is_room(start):
    edge = start("--worker-connections", "3")
    with ExitStack() as held:
        first, *_ = [held.enter_context(edge.connection()) for _ in range(3)]
        until(lambda: edge.connection_count() == 3, "the worker to have them")
        with edge.connection() as late:
            late.sendall(LIVE)
            late.settimeout(0.5)
            with pytest.raises(TimeoutError):
                late.recv(65536)
            first.close()
            late.settimeout(CLIENT_TIMEOUT_S)
            assert late.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_worker_with_fewer_connections_gets_the_next_ones_and_one_that_stands_still_keeps_none_waiting(start):
    edge = start("--workers", "2")
    until(lambda: len(edge.pids()) == 2, "two workers")
    behind, ahead = edge.pids()
    with ExitStack() as held:
        def connect(count):
            connections = [held.enter_context(edge.connection()) for _ in range(count)]
            for connection in connections:
                connection.sendall(LIVE)
            for connection in connections:
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")

        until(lambda: (connect(2), all(map(edge.connection_count, (behind, ahead))))[1], "either to have some")
        os.kill(behind, signal.SIGSTOP)
        try:
            connect(20)
        finally:
            os.kill(behind, signal.SIGCONT)
        for _ in range(3):  # By chance alone it would come up with the other one in 1 of 25 tests.
            connect(30)
            if edge.connection_count(behind) >= edge.connection_count(ahead) - 3:
                return
    raise AssertionError("it had fewer all the time")


def test_refusals_are_counted_by_cause(start):
    edge = start()
    edge.raw(b"GET / HTTP/3.0\r\n\r\n")
    edge.raw(b"GET /\r\n\r\n")
    counts = [edge.metric("ingest_malformed_requests_total", cause=cause) for cause in ("version", "malformed")]
    assert counts == [1, 1]


@pytest.mark.parametrize("options", [(), ("--access-logfile", "-")])
def test_accesses_are_logged_where_gunicorn_is_told_to(start, options):
    edge = start(*options)
    edge.raw(FOLLOWER.replace(b"/ingest", b"/ingest?service=a%20b"))
    line = r'127\.0\.0\.1 - - \[[^]]+\] "POST /ingest\?service=a%20b HTTP/1\.1" 202 \d+ "-" "-"'
    assert bool(re.search(line, edge.log)) is bool(options)


@pytest.mark.parametrize("options", [
    ("--proxy-protocol", "v1"), ("--permit-obsolete-folding",), ("--header-map", "dangerous"),
    ("--casefold-http-method",),
])
def test_what_it_cannot_do_is_refused_at_the_start(options, tmp_path, redis_url):
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", "ops/gunicorn_conf.py", "-w", "1", "-b", "127.0.0.1:0",
         "-k", WORKER_CLASSES["spillway"], *options, "app.edge:get_app()"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, env={
            **os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": redis_url, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path),
            "SPILLWAY_DATA_DIR": str(tmp_path),
        },
    )
    assert done.returncode != 0
    assert f"gunicorn's {options[0][2:].replace('-', '_')} cannot be set with SPILLWAY_WORKER_CLASS" in done.stderr


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    directory = tmp_path_factory.mktemp("certificate")
    names = directory / "key.pem", directory / "cert.pem"
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", names[0], "-out", names[1],
             "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
            check=True, capture_output=True,
        )
    except FileNotFoundError:
        missing("openssl")
    return names


def test_it_speaks_tls(start, certificate):
    key, cert = certificate
    edge = start("--keyfile", str(key), "--certfile", str(cert), is_tls=True, SPILLWAY_HEADER_TIMEOUT_S="1")
    context = ssl.create_default_context(cafile=cert)

    def connected():
        return context.wrap_socket(edge.connection(), server_hostname="127.0.0.1")
    with connected() as connection:
        head = HEAD + b"Content-Length: %d\r\n\r\n" % (MIB + 2)
        connection.sendall(head + b'"' + b"a" * MIB + b'"')
        assert connection.recv(65536).startswith(b"HTTP/1.1 422")
        connection.sendall(FOLLOWER)
        assert connection.recv(65536).startswith(b"HTTP/1.1 202")
    with connected() as connection:
        connection.sendall(b"P")
        assert connection.recv(65536) == b""  # what is late is closed without a word
    assert b"HTTP/1.1" not in edge.raw(FOLLOWER)
    with edge.connection() as silent:
        assert silent.recv(65536) == b""


def test_a_unix_socket_is_served_too(start, tmp_path):
    place = str(tmp_path / "s")
    start("--bind", f"unix:{place}")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(place)
        connection.sendall(FOLLOWER)
        assert connection.recv(65536).startswith(b"HTTP/1.1 202")
