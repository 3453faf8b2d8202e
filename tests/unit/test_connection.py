"""One connection over a pair of sockets, served from small WSGI applications: what may come of what an app does."""

import math
import re
import socket as blocking
import subprocess
import sys
from contextlib import closing, contextmanager

import gevent
import pytest
from gevent import socket

from app.connection import WHOLE, Connection, Terms
from app.head import Limits
from app.wire import Wire
from tests.journal import ROOT

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"


@contextmanager
def client(app, counts=math.inf, notes=None, idle_timeout_s=5, scheme_fields=None):
    """A socket of which the other end is served."""
    served = []

    def count():
        served.append(1)
        return len(served) < counts

    terms = Terms(app, Limits(2048, 40, 4096), 5, idle_timeout_s, 5, count, notes)
    here, there = socket.socketpair()
    connection = Connection(Wire(there, 5), {"wsgi.url_scheme": "http"}, scheme_fields or {}, terms)
    greenlet = gevent.spawn(connection.serve)
    with closing(here):
        here.settimeout(10)
        yield here
    greenlet.join(10)
    assert greenlet.successful()


def exchange(app, *sent, **terms):
    """Returns all that comes back for what is sent, with the client's end closed behind it."""
    with client(app, **terms) as here:
        for piece in sent:
            here.sendall(piece)
        here.shutdown(blocking.SHUT_WR)
        received = b""
        while piece := here.recv(65536):
            received += piece
        return received


def answering(status="200 OK", headers=(), body=[b"body"]):
    """Returns an app that gives this answer."""
    def app(environ, start_response):
        start_response(status, list(headers))
        return body
    return app


def split(received):
    head, _, content = received.partition(b"\r\n\r\n")
    return head, content


def test_an_answer_in_a_list_has_its_length():
    head, content = split(exchange(answering(body=[b"a", b"bc"]), GET))
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"\r\nContent-Length: 3" in head and content == b"abc"
    assert re.search(rb"\r\nDate: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT(\r\n|$)", head)


def test_an_answer_that_comes_in_pieces_is_chunked():
    received = exchange(answering(body=iter([b"a", b"", b"bc"])), GET, LAST)
    heads = received.count(b"Transfer-Encoding: chunked")
    assert heads == 2 and received.count(b"1\r\na\r\n") == 1  # the second one finds the iterator at its end
    assert received.count(b"0\r\n\r\n") == 2


def test_an_answer_in_pieces_to_an_old_client_ends_with_the_connection():
    head, content = split(exchange(answering(body=iter([b"a", b"bc"])), OLD + OLD))
    assert b"Transfer-Encoding" not in head and b"Connection: close" in head and content == b"abc"


def test_an_answer_in_pieces_with_a_length_is_sent_as_it_is():
    head, content = split(exchange(answering(headers=[("Content-Length", "3")], body=iter([b"a", b"bc"])), GET))
    assert b"Transfer-Encoding" not in head and content == b"abc"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("kind", [list, iter])
def test_no_body_follows_a_status_without_one(status, kind):
    received = exchange(answering(status, body=kind([b"x"])), GET, LAST)
    assert received.count(b"HTTP/1.1 ") == 2 and b"x" not in received.lower().replace(b"expires", b"")


@pytest.mark.parametrize("kind", [list, iter])
def test_no_body_follows_the_answer_to_head(kind):
    head, content = split(exchange(answering(headers=[("Content-Length", "4")], body=kind([b"body"])),
                                   GET.replace(b"GET", b"HEAD")))
    assert b"Content-Length: 4" in head and content == b""


def test_what_the_app_writes_goes_before_what_it_returns():
    def app(environ, start_response):
        start_response("200 OK", [])(b"written ")
        return [b"returned"]
    assert split(exchange(app, GET))[1] == b"written returned"


def test_an_error_may_replace_an_answer_that_has_not_begun():
    def app(environ, start_response):
        start_response("200 OK", [])
        start_response("418 Teapot", [], (ValueError, ValueError(), None))
        return [b""]
    assert exchange(app, GET).startswith(b"HTTP/1.1 418 Teapot\r\n")


@pytest.mark.parametrize("app", [
    answering(headers=[("X", "a\r\nSet-Cookie: b")]), answering(headers=[("X\r\n", "a")]), answering("200 OK\r\nX: y"),
    answering(headers=[("X", "a\nb")]), answering(headers=[("X", "a\0")]), answering(headers=[("X", "\u4e2d")]),
    lambda environ, start_response: 1 / 0, lambda environ, start_response: None, lambda environ, start_response: [b"x"],
    lambda environ, start_response: iter([b"x"]),
    lambda environ, start_response: [start_response("200 OK", []), start_response("200 OK", [])],
], ids=range(11))
def test_a_fault_of_the_app_is_a_503_and_nothing_of_its_answer(app):
    head, content = split(exchange(app, GET + GET))
    assert head.startswith(b"HTTP/1.1 503 ") and b"Connection: close" in head and b"Set-Cookie" not in head
    assert b"retry-after: 1" in head
    assert b"urn:spillway:problem:internal" in content and b"HTTP/1.1" not in content


def test_a_fault_in_the_middle_of_an_answer_cuts_it_off():
    def body():
        yield b"a"
        raise ValueError("x")
    received = exchange(answering(body=body()), GET + GET)
    assert received.endswith(b"1\r\na\r\n") and received.count(b"HTTP/1.1") == 1


def test_the_result_is_closed_whatever_comes():
    class Result:
        closed = 0

        def __iter__(self):
            yield b"a"
            raise ValueError("x")

        def close(self):
            self.closed += 1

    result = Result()
    exchange(answering(body=result), GET)
    assert result.closed == 1


def test_an_app_may_start_its_answer_with_the_first_piece():
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "1")])
        yield b"a"
    assert split(exchange(app, GET))[1] == b"a"


def test_hop_by_hop_fields_are_not_for_the_app_to_say():
    headers = [("Connection", "close"), ("Transfer-Encoding", "gzip"), ("Date", "x")]
    head, _ = split(exchange(answering(headers=headers), GET))
    assert b"Connection" not in head and b"gzip" not in head and head.count(b"Date") == 1


def test_a_body_that_came_with_its_head_is_one_object():
    seen = []

    def app(environ, start_response):
        seen.append((environ[WHOLE], environ["wsgi.input"].read()))
        start_response("200 OK", [])
        return []
    exchange(app, POST + b"12345" + GET)
    assert seen[0][0] is seen[0][1] and [one for one, _ in seen] == [b"12345", b""]


@pytest.mark.parametrize(("calls", "expected"), [
    ([("read",)], [b"a\nbc\nd"]), ([("read", 3), ("read", 3), ("read", 3)], [b"a\nb", b"c\nd", b""]),
    ([("readline",), ("readline", 2), ("readline",), ("readline",)], [b"a\n", b"bc", b"\n", b"d"]),
    ([("readlines",)], [[b"a\n", b"bc\n", b"d"]]), ([("read", 0), ("read", -1), ("read",)], [b"", b"a\nbc\nd", b""]),
    ([("readline",), ("read",)], [b"a\n", b"bc\nd"]),
])
@pytest.mark.parametrize("pieces", [
    (b"Content-Length: 6\r\n\r\n", b"a\nbc\nd"),
    (b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\na\nb\r\n3\r\nc\nd\r\n0\r\n\r\n"),
    (b"Content-Length: 6\r\n\r\na\nbc\nd",), (b"Content-Length: 6\r\n\r\na", b"\nbc\nd"),
], ids=["length", "chunks", "whole", "cut"])
def test_the_input_is_read_as_a_file_is(pieces, calls, expected):
    seen = []

    def app(environ, start_response):
        gevent.sleep(0)
        for name, *args in calls if environ["REQUEST_METHOD"] == "POST" else ():
            seen.append(getattr(environ["wsgi.input"], name)(*args))
        start_response("200 OK", [])
        return []
    received = exchange(app, b"POST / HTTP/1.1\r\nHost: x\r\n", *pieces)
    assert (seen, received.count(b"200 OK")) == (expected, 1)


@pytest.mark.parametrize("sent", [
    POST, POST + b"1234", POST.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
])
def test_a_body_that_nobody_has_read_ends_the_connection(sent):
    head, content = split(exchange(answering(), sent))
    assert b"Connection: close" in head and content == b"body"


def test_the_last_request_of_a_worker_says_that_it_is_the_last():
    received = exchange(answering(), GET + GET + GET, counts=2)
    assert received.count(b"HTTP/1.1 200") == 2 and received.count(b"Connection: close") == 1


def test_without_time_for_another_request_there_is_none():
    received = exchange(answering(), GET + GET, idle_timeout_s=0)
    assert received.count(b"HTTP/1.1 200") == 1 and b"Connection: close" in received


def test_an_old_client_is_kept_if_it_asks():
    keep = OLD.replace(b"\r\n\r\n", b"\r\nConnection: Keep-Alive\r\n\r\n")
    received = exchange(answering(), keep + OLD)
    assert received.count(b"HTTP/1.1 200") == 2 and received.count(b"Connection: keep-alive") == 1


def test_a_client_that_waits_to_be_asked_for_its_body_is_asked_when_it_is_read():
    def app(environ, start_response):
        body = environ["wsgi.input"].read() if environ["PATH_INFO"] == "/read" else b""
        start_response("200 OK", [])
        return [body]
    waiting = POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    with client(app) as here:
        here.sendall(waiting.replace(b"POST /", b"POST /read"))
        assert here.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        here.sendall(b"12345")
        assert here.recv(1000).endswith(b"12345")
        here.sendall(waiting)
        answer = here.recv(1000)
        assert answer.startswith(b"HTTP/1.1 200") and b"Connection: close" in answer


def test_an_access_is_noted_as_gunicorn_does():
    notes = []
    exchange(answering(headers=[("X-B", "2")]), GET.replace(b"\r\n\r\n", b"\r\nX-A: 1\r\n\r\n"),
             notes=lambda *line: notes.append(line))
    (response, request, environ, duration), = notes
    assert (response.status, response.sent, environ["RAW_URI"]) == ("200 OK", 4, "/")
    assert ("X-A", "1") in request.headers and ("X-B", "2") in response.headers and duration.total_seconds() >= 0


@pytest.mark.parametrize(("target", "path", "query"), [
    (b"/a%2Fb%20c?d=%20", "/a/b c", "d=%20"), (b"/%c3%a9", "/\xc3\xa9", ""), (b"//a/b", "//a/b", ""), (b"/?", "/", ""),
    (b"http://h:80/p?q", "/p", "q"), (b"http://h", "/", ""), (b"/a?b?c", "/a", "b?c"), (b"/%zz", "/%zz", ""),
])
def test_the_target_is_read_as_gunicorn_reads_it(target, path, query):
    seen = []

    def app(environ, start_response):
        seen.append((environ["RAW_URI"].encode(), environ["PATH_INFO"], environ["QUERY_STRING"]))
        start_response("200 OK", [])
        return []
    exchange(app, GET.replace(b" / ", b" %b " % target))
    assert seen == [(target, path, query)]


def test_the_fields_of_the_environ():
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        start_response("200 OK", [])
        return []
    fields = b"HOST: h\r\nX-A:  1 \t\r\nx-a: 2\r\nX_B: 3\r\nContent-Type: t\r\nX-C:\r\nX-D: \xe9\r\n"
    exchange(app, b"GET / HTTP/1.1\r\n" + fields + b"\r\n")
    assert {name: value for name, value in seen.items() if name.startswith(("HTTP_", "CONTENT"))} == {
        "HTTP_HOST": "h", "HTTP_X_A": "1,2", "CONTENT_TYPE": "t", "HTTP_X_C": "", "HTTP_X_D": "\xe9",
    }


@pytest.mark.parametrize(("fields", "scheme"), [
    (b"", "http"), (b"X-Forwarded-Proto: https\r\n", "https"), (b"X-Forwarded-Proto: http\r\n", "http"),
    (b"X-Forwarded-Ssl: on\r\nX-Forwarded-Proto: https\r\n", "https"), (b"X_Forwarded_Proto: https\r\n", "http"),
    (b"X-Forwarded-Ssl: off\r\nX-Forwarded-Proto: https\r\n", None),
])
@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_trusted_proxy_tells_the_scheme(fields, scheme, is_trusted):
    seen = []

    def app(environ, start_response):
        seen.append(environ["wsgi.url_scheme"])
        start_response("200 OK", [])
        return []
    trusted = {"HTTP_X_FORWARDED_PROTO": "https", "HTTP_X_FORWARDED_SSL": "on"} if is_trusted else {}
    received = exchange(app, GET[:-2] + fields + b"\r\n", scheme_fields=trusted)
    if is_trusted and scheme is None:
        assert received.startswith(b"HTTP/1.1 400 ")
    else:
        assert seen == [scheme if is_trusted else "http"]


def test_the_master_imports_nothing_that_must_not_be_imported_unpatched():
    """Gunicorn's master imports the worker class before it forks, and patches nothing."""
    code = (
        "import sys, app.worker; found = {'redis', 'prometheus_client', 'falcon', 'psycopg2'} & set(sys.modules); "
        "sys.exit(f'{found} are imported' if found else 0)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
