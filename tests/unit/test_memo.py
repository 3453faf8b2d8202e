"""A head that was read before is read as it would be for the first time, whatever stood in its place meanwhile."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import memo
from app.errors import Rejected
from app.head import END, Head, Limits
from app.memo import read_head
from tests.hostile import HEAD, REFUSED, TAKEN
from tests.sample import steady

LIMITS = Limits(2048, 40, 4096)
TIGHT = Limits(2048, 40, 34)  # a length of 17 digits is too long for it
LENGTHS = (b"0", b"1", b"7", b"15", b"015", b"15 ", b"16", b"9" * 18, b"9" * 19, b"9" * 20, b"-1", b"1_0", b"1, 1", b"")
FIELDS = (b"Content-Length: %b", b"content-length: %b", b"Content-Length:%b", b"Content-Length:  %b",
          b"X-Content-Length: %b", b" Content-Length: %b", b"Transfer-Encoding: chunked", b"Expect: 100-continue",
          b"Connection: close", b"Connection: Upgrade\r\nUpgrade: websocket", b"X-A: %b", b"Host: y", b"Content-Length",
          b"X: \xff", b"X: \0", b"X-A: %b\r\n \r\nContent-Length: 3")


def sized(length, *fields):
    return HEAD + b"".join(field + b"\r\n" for field in fields) + b"Content-Length: " + length + END


def fresh(text, limits):
    """Returns what is said about a head by itself."""
    try:
        head = Head(text, limits)
    except Rejected as error:
        return error.status, error.cause, error.detail
    return head.environ, head.length, head.keeps_alive, head.expects


def recalled(text, limits):
    """Returns the same by way of the memo."""
    environ = {}
    try:
        head, length = read_head(text, environ, limits)
    except Rejected as error:
        return error.status, error.cause, error.detail
    return environ, length, head.keeps_alive, head.expects


@pytest.mark.parametrize("name", [*REFUSED, *TAKEN])
def test_what_is_hostile_is_read_alike_the_first_time_and_the_second(name):
    request = {**REFUSED, **TAKEN}[name]
    text = request[:request.find(END) + 4]
    for length in (b"15", b"3", b"15"):
        variant = text.replace(b": 15\r\n", b": " + length + b"\r\n")
        assert recalled(variant, LIMITS) == recalled(variant, LIMITS) == fresh(variant, LIMITS)


@steady
@given(st.lists(st.builds(
    lambda line, fields: line + b"\r\n" + b"".join(field + b"\r\n" for field in fields) + b"\r\n",
    st.sampled_from((b"POST /ingest HTTP/1.1", b"GET / HTTP/1.1", b"POST /ingest HTTP/1.0", b"HEAD /x?y HTTP/1.1")),
    st.lists(st.builds(
        lambda field, length: field.replace(b"%b", length), st.sampled_from((b"Host: x",) * 8 + FIELDS),
        st.sampled_from(LENGTHS),
    ), max_size=6),
), max_size=8), st.sampled_from((LIMITS, TIGHT, Limits(2048, 3, 4096))))
def test_whatever_was_read_before_a_head_is_read_as_by_itself(texts, limits):
    assert [recalled(text, limits) for text in texts] == [fresh(text, limits) for text in texts]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("limits", [LIMITS, TIGHT])
def test_each_length_is_its_own(length, limits):
    recalled(sized(b"15"), limits)
    recalled(sized(b"1"), limits)
    assert recalled(sized(length), limits) == fresh(sized(length), limits)


def test_the_same_head_but_for_its_length_is_read_once():
    memo._head.cache_clear()
    lengths = [recalled(sized(b"%d" % size, b"X-Once: 1"), LIMITS)[1] for size in range(100, 200)]
    assert lengths == list(range(100, 200))
    assert memo._head.cache_info().misses == 1


def test_what_the_app_does_to_its_environ_stays_there():
    environ = {"SERVER_NAME": "s"}
    read_head(sized(b"15"), environ, LIMITS)
    environ["PATH_INFO"] = environ["HTTP_X"] = environ["REQUEST_METHOD"] = "other"
    assert recalled(sized(b"15"), LIMITS) == fresh(sized(b"15"), LIMITS)


def test_large_heads_and_refused_ones_are_not_kept():
    memo._head.cache_clear()
    for index in range(2 * memo._MAX_HEADS):
        assert recalled(sized(b"15", b"X-A: %d%b" % (index, b"x" * 1024)), LIMITS)[1] == 15
        assert recalled(sized(b"15", b"Host: y%d" % index), LIMITS)[0] == 400
    assert memo._head.cache_info().currsize == 0
