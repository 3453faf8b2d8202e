"""A head that comes again is read as it would be by itself, whatever was read before it on its connection."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Rejected
from app.head import END, Head, Limits, read_scheme
from app.memo import Memo
from tests.hostile import HEAD, REFUSED, TAKEN
from tests.sample import steady

LIMITS = Limits(2048, 40, 4096)
TIGHT = Limits(2048, 40, 34)  # a length of 17 digits is too long for it
COMMON = {"SERVER_NAME": "s", "wsgi.url_scheme": "http"}
SCHEME = {"HTTP_X_FORWARDED_PROTO": "https", "HTTP_X_FORWARDED_SSL": "on"}
LENGTHS = (b"0", b"1", b"7", b"15", b"015", b"15 ", b"16", b"9" * 18, b"9" * 19, b"9" * 20, b"-1", b"1_0", b"1, 1", b"")
FIELDS = (
    b"Content-Length: %b", b"content-length: %b", b"Content-Length:%b", b"Content-Length:  %b", b"X-Content-Length: %b",
    b" Content-Length: %b", b"Content-Length", b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Host: y",
    b"Connection: close", b"Connection: Upgrade\r\nUpgrade: websocket", b"X-Forwarded-Proto: https",
    b"X-Forwarded-Proto: http", b"X-Forwarded-Ssl: on", b"X: \xff", b"X: \0", b"X-A: %b",
)


def sized(length, *fields):
    return HEAD + b"".join(field + b"\r\n" for field in fields) + b"Content-Length: " + length + END


def cut(text):
    """Returns the head of a request; empty where it does not end."""
    return text[:text.find(END) + len(END)] if END in text else b""


def said(read, text):
    """Returns what a way of reading says about a head."""
    try:
        head, environ, length = read(text)
    except Rejected as error:
        return error.status, error.cause, error.detail
    return environ, length, head.keeps_alive, head.expects


def alone(text, limits=LIMITS):
    """Returns what is said about a head by itself."""
    def read(text):
        head = Head(text, limits)
        environ = {**COMMON, **head.environ}
        read_scheme(environ, SCHEME)
        return head, environ, head.length
    return said(read, text)


@pytest.mark.parametrize("name", [*REFUSED, *TAKEN])
def test_what_is_hostile_is_read_alike_behind_whatever_it_looks_like(name):
    text = cut({**REFUSED, **TAKEN}[name])
    memo = Memo(COMMON, SCHEME, LIMITS)
    for before in (sized(b"15"), sized(b"16"), text, text.replace(b": 15", b": 16"), text.replace(b": 15", b": 05")):
        said(memo.read, before)
        assert said(memo.read, text) == alone(text)


# Few choices, so that heads often are each other's neighbours.
heads = st.builds(
    lambda line, fields: line + b"\r\n" + b"".join(field + b"\r\n" for field in fields) + b"\r\n",
    st.sampled_from((
        b"POST /ingest HTTP/1.1\r\nHost: x", b"GET / HTTP/1.1\r\nHost: x", b"POST /ingest HTTP/1.0",
        b"HEAD /x?y HTTP/1.1\r\nHost: x", b"GET / HTTP/1.1",
    )),
    st.lists(st.builds(
        lambda field, length: field.replace(b"%b", length), st.sampled_from(FIELDS),
        st.sampled_from((b"15", b"16", *LENGTHS)),
    ), max_size=3),
)
neighbours = st.builds(
    lambda text, lengths: [cut(text.replace(b"-Length: 15", b"-Length: " + one)) for one in lengths],
    heads | st.sampled_from([sized(b"15"), sized(b"15", b"Expect: 100-continue")]),
    st.lists(st.sampled_from(LENGTHS) | st.binary(min_size=2, max_size=2), min_size=1, max_size=6),
)


@steady
@given(st.lists(heads.map(lambda text: [text]) | neighbours, max_size=8).map(lambda lists: sum(lists, [])),
       st.sampled_from((LIMITS, TIGHT, Limits(2048, 3, 4096))))
def test_whatever_was_read_before_a_head_is_read_as_by_itself(texts, limits):
    memo = Memo(COMMON, SCHEME, limits)
    assert [said(memo.read, text) for text in texts] == [alone(text, limits) for text in texts]


@pytest.mark.parametrize("text", [
    sized(b"15", b"X-Content-Length: 15"), HEAD + b"Content-Length: 15\r\nX-Content-Length: 15\r\n\r\n",
    HEAD + b"X-Content-Length: 15\r\n\r\n", HEAD + b"X-A: Content-Length: 15\r\n\r\n",
    HEAD + b"Content-Length: 15 \r\nX-Forwarded-Proto: https\r\n\r\n",
], ids=range(5))
def test_a_head_that_differs_by_any_byte_is_another(text):
    memo = Memo(COMMON, SCHEME, LIMITS)
    for index in range(len(text)):
        for byte in (b"\r", b"\n", b" ", b":", b"0", b"5", b"x", b"\xff"):
            assert said(memo.read, text) == alone(text)
            other = cut(text[:index] + byte + text[index + 1:]) or text
            assert said(memo.read, other) == alone(other)


@pytest.mark.parametrize("limits", [LIMITS, TIGHT])
@pytest.mark.parametrize("first", LENGTHS)
@pytest.mark.parametrize("second", LENGTHS)
def test_each_length_is_its_own(first, second, limits):
    memo = Memo(COMMON, SCHEME, limits)
    said(memo.read, sized(first))
    assert said(memo.read, sized(second)) == alone(sized(second), limits)


def test_the_same_head_but_for_its_length_is_read_once():
    memo = Memo(COMMON, SCHEME, LIMITS)
    found = [memo.read(sized(b"%d" % size)) for size in range(100, 200)]
    assert [length for *_, length in found] == list(range(100, 200))
    assert [environ["CONTENT_LENGTH"] for _, environ, _ in found] == list(map(str, range(100, 200)))
    assert len({id(head) for head, *_ in found}) == 1


@pytest.mark.parametrize("text", [sized(b"15"), sized(b"0"), HEAD + b"\r\n"])
def test_what_the_app_does_to_its_environ_stays_there(text):
    memo = Memo(COMMON, SCHEME, LIMITS)
    for _ in range(3):
        _, environ, _ = memo.read(text)
        assert said(memo.read, text) == alone(text)
        environ.clear()
    assert COMMON == {"SERVER_NAME": "s", "wsgi.url_scheme": "http"}


def test_a_large_head_is_not_kept():
    memo = Memo(COMMON, SCHEME, LIMITS)
    text = sized(b"15", b"X-A: " + b"x" * 2048)
    assert memo.read(text)[0] is not memo.read(text)[0]
    assert memo.read(sized(b"15"))[0] is memo.read(sized(b"15"))[0]
