"""Every form that a body may have becomes the Batch that its sender meant, or is refused with what is wrong."""

import hashlib
import json
import re
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import document, event, form, moment, slice
from app.errors import Rejected
from app.form import FORMS, Limits
from tests.sample import numbers, objects, steady, texts, to_json

ID = "00000000-0000-7000-8000-000000000000"
NOW_NS = 1_767_225_600_000_000_000
LIMITS, ROOMY = Limits(100, 5000), Limits(100, 10 << 20)
NAMES = ("received_at", "batch_id", "index", "timestamp", "level", "severity", "service", "host", "message", "trace_id",
         "span_id", "attributes")


def make(body, media_type="application/json", defaults=(), limits=LIMITS):
    return form.to_batch(FORMS[media_type], body, defaults, ID, NOW_NS, limits)


def rows(*args, **kwargs):
    """Returns the rows of a body by column; none of the texts in these tests need escaping but by JSON."""
    payload = make(*args, **kwargs).payload.decode()
    found = []
    for line in payload.splitlines():
        cells = [None if cell == r"\N" else cell.replace("\\\\", "\\") for cell in line.split("\t")]
        row = dict(zip(NAMES, cells, strict=True))
        found.append({**row, "attributes": json.loads(row["attributes"])})
    return found


def one(document_, **kwargs):
    row, = rows(json.dumps(document_).encode(), **kwargs)
    return {name: value for name, value in row.items()
            if value not in (None, {}) and name not in ("received_at", "batch_id", "index", "severity")}


def refusal(*args, **kwargs):
    with pytest.raises(Rejected) as caught:
        make(*args, **kwargs)
    return caught.value


NOW = moment.from_ns(NOW_NS)


@pytest.mark.parametrize(("sent", "stored"), [
    ({"message": "m"}, {"message": "m", "timestamp": NOW}),
    *(({name: "m"}, {"message": "m", "timestamp": NOW}) for name in ("message", "msg", "log", "body")),
    *(({"message": "m", name: 0}, {"message": "m", "timestamp": "1970-01-01T00:00:00.000000Z"})
      for name in ("timestamp", "ts", "time", "@timestamp")),
    *(({"message": "m", name: "info"}, {"message": "m", "timestamp": NOW, "level": "info"})
      for name in ("level", "severity", "lvl")),
    *(({"message": "m", name: "s"}, {"message": "m", "timestamp": NOW, "service": "s"})
      for name in ("service", "app", "service.name")),
    *(({"message": "m", name: "h"}, {"message": "m", "timestamp": NOW, "host": "h"}) for name in ("host", "hostname")),
    ({"message": "m", "trace_id": "t", "span_id": "p"},
     {"message": "m", "timestamp": NOW, "trace_id": "t", "span_id": "p"}),
    ({"message": "m", "level": 17}, {"message": "m", "timestamp": NOW, "level": "ERROR"}),
    ({"message": "m", "level": "x" * 100}, {"message": "m", "timestamp": NOW, "level": "x" * 100}),
    ({"message": "m", "user": 7, "ok": None},
     {"message": "m", "timestamp": NOW, "attributes": {"user": 7, "ok": None}}),
    ({"message": "m", "attributes": {"a": 1}, "b": 2},
     {"message": "m", "timestamp": NOW, "attributes": {"a": 1, "b": 2}}),
    ({"message": "m", "msg": "n"}, {"message": "m", "timestamp": NOW, "attributes": {"msg": "n"}}),
    ({"message": "m", "attributes": {"a": 1}, "a": 2},
     {"message": "m", "timestamp": NOW, "attributes": {"a": 1, "_a": 2}}),
    ({"message": "m", "attributes": {"a": 1, "_a": 2}, "a": 3},
     {"message": "m", "timestamp": NOW, "attributes": {"a": 1, "_a": 2, "__a": 3}}),
    ({"message": None, "msg": "m"}, {"message": "m", "timestamp": NOW, "attributes": {"message": None}}),
    ({"message": "m", "service": None, "timestamp": None, "level": None, "attributes": None},
     {"message": "m", "timestamp": NOW}),
    ({"message": "m", "ts": "2026-01-01T00:00:00.123456789Z"},
     {"message": "m", "timestamp": "2026-01-01T00:00:00.123456Z",
      "attributes": {"timestamp": "2026-01-01T00:00:00.123456789Z"}}),
    ({"message": "m", "ts": 1_767_225_600_123_456_789, "attributes": {"timestamp": "mine"}},
     {"message": "m", "timestamp": "2026-01-01T00:00:00.123456Z",
      "attributes": {"timestamp": "mine", "_timestamp": 1_767_225_600_123_456_789}}),
    ({"message": "m", "ts": 1767225600.5}, {"message": "m", "timestamp": "2026-01-01T00:00:00.500000Z"}),
    ({"message": ""}, {"message": "", "timestamp": NOW}),
], ids=lambda value: ascii(value)[:60])
def test_an_object_is_read_in_all_its_spellings_and_nothing_of_it_is_dropped(sent, stored):
    assert one(sent) == stored


@pytest.mark.parametrize(("body", "media_type", "messages"), [
    (b'{"message":"a"}', "application/json", ["a"]),
    (b' \n{"message":"a"}\n ', "application/json", ["a"]),
    (b'[{"message":"a"},{"msg":"b"}]', "application/json", ["a", "b"]),
    (b' [ {"message":"a"} ] ', "application/json", ["a"]),
    (b'{"message":"a"}\n{"message":"b"}', "application/x-ndjson", ["a", "b"]),
    (b'{"message":"a"}\r\n{"message":"b"}\r\n', "application/x-ndjson", ["a", "b"]),
    (b'\n\r\n{"message":"a"}\n \t\n\n{"msg":"b"}\n\n', "application/ndjson", ["a", "b"]),
    (b'{"message":"a"}', "application/jsonl", ["a"]),
    (b"a", "text/plain", ["a"]),
    (b"a\nb\n", "text/plain", ["a", "b"]),
    (b"a\r\nb", "text/plain", ["a", "b"]),
    (b"\n\r\na\n\n\nb\n\n", "text/plain", ["a", "b"]),
    (b" \n a ", "text/plain", [" ", " a "]),
    ("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg".encode(), "text/plain", ["a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"]),
    (b"\xef\xbb\xbfa", "text/plain", ["\ufeffa"]),
    (b"caf\xe9 \xff\xfe \xed\xa0\x80 \xc0\x80", "text/plain", [r"caf\xe9 \xff\xfe \xed\xa0\x80 \xc0\x80"]),
    (rb"already \xe9", "text/plain", [r"already \xe9"]),
])
def test_each_form_is_cut_into_its_events(body, media_type, messages):
    payload = make(body, media_type).payload.decode().removesuffix("\n").split("\n")
    assert [line.split("\t")[8].replace("\\\\", "\\") for line in payload] == messages


@pytest.mark.parametrize(("body", "media_type"), [
    (b'{"message":"a"}', "application/json"), (b'[{"msg":"a"}]', "application/json"), (b"a\n", "text/plain"),
    (b'{"message":"a"}\n', "application/x-ndjson"), (b'{"msg":"a","service":null}\n', "application/x-ndjson"),
])
def test_defaults_hold_in_every_form(body, media_type):
    row, = rows(body, media_type, [("host", "h"), ("level", 9), ("service", "s")])
    assert (row["host"], row["level"], row["severity"], row["service"]) == ("h", "INFO", "9", "s")


def test_defaults_yield_to_what_an_event_says():
    assert one({"message": "m", "service": "mine"}, defaults=[("service", "s")])["service"] == "mine"


def in_objects(depth):
    """Returns an event nested so deep, itself counted."""
    return b'{"message":"m","attributes":' + b'{"a":' * (depth - 1) + b"1" + b"}" * depth


def in_arrays(depth):
    """Returns an event nested so deep, itself and its attributes counted."""
    return b'{"message":"m","a":' + b"[" * (depth - 2) + b"]" * (depth - 2) + b"}"


@pytest.mark.parametrize(("body", "field", "reason"), [
    (b"1", None, "an event is a JSON object, not a number"),
    (b"[[]]", None, "an event is a JSON object, not an array"),
    (b'"text"', None, "not text"), (b"null", None, "not null"), (b"true", None, "not true or false"),
    (b"{}", "message", "required"), (b'{"message":null}', "message", "required"),
    (b'{"message":5}', "message", "text is allowed, not a number"), (b'{"message":["a"]}', "message", "not an array"),
    (b'{"message":1.5}', "message", "not a number"), (b'{"message":"m","service":{}}', "service", "not an object"),
    (b'{"message":"m","trace_id":7}', "trace_id", "not a number"), (b'{"message":"m","host":true}', "host", "not true"),
    (b'{"message":"m","level":true}', "level", "not true or false"),
    (b'{"message":"m","level":25}', "level", "0 to 24"),
    (b'{"message":"m","level":1.5}', "level", "not a number"), (b'{"message":"m","level":[]}', "level", "not an array"),
    (b'{"message":"m","attributes":[]}', "attributes", "an object is allowed, not an array"),
    (b'{"message":"m","attributes":"x"}', "attributes", "not text"),
    (b'{"message":"m","timestamp":"now"}', "timestamp", "neither RFC 3339"),
    (b'{"message":"m","timestamp":false}', "timestamp", "not true or false"),
    (b'{"message":"m","ts":"1969-12-31T23:59:59Z"}', "timestamp", "neither|1970 to 2199"),
    (b'{"message":"m","time":"2200-01-01T00:00:00Z"}', "timestamp", "1970 to 2199"),
    (rb'{"message":"a\u0000b"}', "message", "NUL"), (rb'{"message":"m","service":"\u0000"}', "service", "NUL"),
    (rb'{"message":"m","level":"\u0000"}', "level", "NUL"), (rb'{"message":"m","x":["\u0000"]}', "attributes", "NUL"),
    (rb'{"message":"m","\u0000":1}', "attributes", "NUL"), (rb'{"message":"\ud800"}', "message", "lone surrogate"),
    (rb'{"message":"\udc00\ud800"}', "message", "lone surrogate"),
    (rb'{"message":"m","a":{"\udfff":1}}', "attributes", "lone surrogate"),
    (rb'{"message":"m","timestamp":"\ud800"}', "timestamp", "neither RFC 3339"),
    (in_objects(65), "attributes", "nested deeper than 64"), (in_arrays(65), "attributes", "nested deeper than 64"),
    (in_arrays(900), "attributes", "nested deeper than 64"),
    (b'{"message":"m","x":1e325}', "attributes", "exponent beyond"),
    (b'{"message":"m","x":[1E-400]}', "attributes", "exponent beyond"),
    (b'{"message":"m","x":1e999999999999}', "attributes", "exponent beyond"),
    (b'{"message":"m","x":0.' + b"1" * 5000 + b"}", "attributes", "over 4300 digits"),
    (b'{"message":"' + b"a" * 5001 + b'"}', None, "5001 bytes; an event has at most 5000"),
    (b'{"message":"' + b"\xc3\xa9" * 2501 + b'"}', None, "5002 bytes; an event has at most 5000"),
])
def test_an_event_at_fault_is_named_with_its_index_field_and_reason(body, field, reason):
    lines = b'{"message":"good"}\n' + body.replace(b"\n", b"")
    array = b'[{"message":"good"},' + body + b"]"
    for found in (refusal(lines, "application/x-ndjson"), refusal(array)):
        fault, = found.faults
        assert (found.status, found.cause, fault.index, fault.field) == (422, "bad_event", 1, field)
        assert re.search(reason, fault.reason)


def test_the_first_twenty_faults_are_named():
    found = refusal(b"[" + b",".join([b"1"] * 50) + b"]")
    assert [fault.index for fault in found.faults] == list(range(20))


@pytest.mark.parametrize(("body", "reason"), [
    (b'{"message":"m"', "byte 14"), (b'{"message":"m"}}', "byte 15"), (b"{'message':1}", "byte 1"), (b"{", "byte 1"),
    (b'{"message":"m",}', "comma with nothing after it at byte 15"), (b'{"message":NaN}', "byte 11"),
    (b'{"message":"m","x":-Infinity}', "byte 20"),
    (b'\xef\xbb\xbf{"message":"m"}', "byte 0"), (b'{"message":"\xff"}', "not UTF-8 at byte 12"),
    ('{"message":"\u00e9\u4e2d", x}'.encode(), "byte 20"), (b'{"message":"a\tb"}', "byte 13"),
    (b"[" * 100_000, "deeper than 64"),
    (b'{"message":"m"}{"message":"n"}', "byte 15"), (b'{"message":"\xed\xa0\x80"}', "not UTF-8 at byte 12"),
    (b'{"message":"m" , }', "nothing after it at byte 17"), (b'[{"message":"m"},]', "nothing after it at byte 17"),
    (b'{"x":[1,],"message":"m"}', "nothing after it at byte 8"), (b'{"x":[,]}', "Expecting value at byte 6"),
    (b'{"x":[1,,]}', "Expecting value at byte 8"),
    (b"hello", "byte 0"), (b"{message:1}", "byte 1"), (b'{"message":01}', "byte 12"), (b"\x1f\x8b\x08", "byte 1"),
])
def test_broken_json_is_refused_with_the_byte(body, reason):
    found = refusal(body)
    assert (found.status, found.cause) == (422, "not_json")
    assert reason in found.detail
    found = refusal(b'{"message":"good"}\n' + body, "application/x-ndjson")
    assert (found.status, found.cause, found.faults[0].index) == (422, "not_json", 1)
    assert reason in found.faults[0].reason


@pytest.mark.parametrize(("body", "media_type"), [
    (b"", "application/json"), (b"[]", "application/json"), (b"", "text/plain"), (b"\n\r\n\n", "text/plain"),
    (b"\n \n", "application/x-ndjson"), (b"", "application/x-ndjson"),
])
def test_a_body_without_events_is_refused(body, media_type):
    assert (refusal(body, media_type).status, refusal(body, media_type).cause) == (422, "empty")


@pytest.mark.parametrize(("media_type", "event_", "separator", "frame"), [
    ("application/json", b'{"message":"m"}', b",", b"[%s]"), ("application/json", b'{"msg":"m"}', b",", b"[%s]"),
    ("application/x-ndjson", b'{"message":"m"}', b"\n", b"%s"),
    ("application/x-ndjson", b'{"msg":"m"}', b"\n", b"%s\n"),
    ("text/plain", b"m", b"\n", b"%s"),
])
def test_the_most_events_of_a_request_is_exact_in_every_form(media_type, event_, separator, frame):
    assert make(frame % separator.join([event_] * 100), media_type).count == 100
    found = refusal(frame % separator.join([event_] * 101), media_type)
    assert (found.status, found.cause) == (413, "too_many_events")


@pytest.mark.parametrize("name", ["message", "msg"])
def test_the_largest_event_is_exact(name):
    assert make(json.dumps({name: "a" * 5000}).encode()).count == 1
    assert make(b"a" * 5000, "text/plain").count == 1
    assert refusal(json.dumps({name: "a" * 5001}).encode()).faults[0].index == 0
    assert refusal(b"a" * 5001, "text/plain").faults[0].index == 0


@pytest.mark.parametrize("deep", [in_objects(64), in_arrays(64)])
def test_the_deepest_event_is_exact(deep):
    assert make(deep).count == make(b"[" + deep + b"]").count == make(deep, "application/x-ndjson").count == 1


def test_a_text_that_is_too_long_once_it_is_escaped_is_refused():
    limits = Limits(100, 5000, 4000)
    assert make(b"\xff" * 500 + b"\n" + b"\xff" * 500, "text/plain", limits=limits).count == 2
    found = refusal(b"\xff" * 500 + b"\n" + b"\xff" * 500 + b"\na", "text/plain", limits=limits)
    assert (found.status, found.cause) == (413, "too_large")


def test_of_a_text_with_too_many_lines_no_more_are_read_than_are_needed():
    with mock.patch.object(form, "Event", side_effect=event.Event) as made:
        assert refusal(b"a\n" * 1_000_000, "text/plain").cause == "too_many_events"
    assert made.call_count == LIMITS.max_events + 1


@pytest.mark.parametrize("unit", [b"[]", b"{}", b"1", b"1.5", b'""', b'{"message":""}', b'{"a":[1,"]"]}'])
def test_json_of_more_values_than_there_may_be_is_refused_before_it_is_decoded(unit):
    body = b"[" + b",".join([unit] * 1_000_001) + b"]"
    with mock.patch.object(form, "_counted", side_effect=AssertionError("it was decoded")):
        found = refusal(body)
    assert (found.status, found.cause) == (413, "too_many_values")


@pytest.mark.parametrize("text", [b"," * 3_000_000, b"[{,\\\"" * 600_000, b"\\\\" * 1_500_000])
def test_separators_within_strings_are_no_values(text):
    assert make(b'{"message":"' + text + b'"}', limits=ROOMY).count == 1


def test_a_string_without_its_end_is_looked_at_once():
    found = refusal(b'{"message":"' + b"\\\"," * 2_000_000)
    assert found.cause == "not_json"


def test_a_field_whose_name_is_taken_again_and_again_is_refused_in_no_time():
    taken = {"_" * count + "a": 1 for count in range(20)}
    found = refusal(json.dumps({"message": "m", "attributes": taken, "a": 2}).encode())
    assert found.faults[0].field == "attributes"


def test_the_digest_tells_bodies_and_defaults_apart():
    one_, other = b'{"message":"a"}', b'{"message":"b"}'
    digests = {
        form.digest(one_, []), form.digest(other, []), form.digest(one_, [("service", "s")]),
        form.digest(one_, [("host", "s")]), form.digest(one_, [("host", "s"), ("service", "")]),
    }
    assert len(digests) == 5


canonical = st.fixed_dictionaries({"message": texts}, optional={
    "timestamp": st.integers(0, 7_258_118_399) | st.just("2026-01-01T01:00:00.5+01:00"),
    "level": texts | st.integers(0, 24), "service": texts, "host": texts, "trace_id": texts, "span_id": texts,
    "attributes": objects | st.dictionaries(texts, numbers),
})
plain = canonical.filter(
    lambda sent: not event.has_stand_in(to_json(sent).encode()) and len(str(sent.get("level"))) < 33
)


@steady
@given(st.lists(plain, min_size=1, max_size=4), st.booleans())
def test_the_quick_and_the_careful_way_write_the_same_bytes_for_canonical_events(events, is_array):
    media_type = "application/json" if is_array else "application/x-ndjson"
    body = (to_json(events) if is_array else "\n".join(map(to_json, events))).encode()
    with mock.patch.object(document, "read", side_effect=AssertionError("the quick way balked")):
        quick = make(body, media_type, limits=ROOMY)
    with mock.patch.object(event, "has_stand_in", return_value=True), \
            mock.patch.object(event, "encode", side_effect=AssertionError("the careful way was not taken")):
        assert make(body, media_type, limits=ROOMY) == quick


@steady
@given(st.lists(st.dictionaries(
    st.sampled_from(("message", "timestamp", "level", "service", "attributes", "msg", "x")),
    st.none() | st.booleans() | numbers | texts | objects, max_size=4,
).map(to_json) | st.text(max_size=6), min_size=1, max_size=3), st.sampled_from(("\n", "", ",", " ", "\r\n", "\r")))
def test_the_typed_and_the_untyped_decoders_agree_on_what_is_taken(pieces, separator):
    body = separator.join(pieces).encode(errors="replace")
    for media_type in ("application/json", "application/x-ndjson"):
        def outcome(body=body, media_type=media_type):
            try:
                return make(body, media_type)
            except Rejected as error:
                return error.status, error.cause, error.detail, error.faults
        either = outcome()
        with mock.patch.object(event, "has_stand_in", return_value=True):
            assert outcome() == either


byte_pieces = st.binary(max_size=6) | st.sampled_from((b"\\udc", b"\\x", b"\\", b"\xff", b"\xed\xb2\x80", b"80"))


@steady
@given(st.lists(byte_pieces).map(b"".join))
def test_bytes_that_are_not_utf_8_are_written_as_hexadecimal_and_nothing_else_is_touched(line):
    reference = line.replace(b"\0", b"").replace(b"\n", b"")
    assert form._text(reference) == reference.decode(errors="backslashreplace")


@steady
@given(st.binary(max_size=60))
def test_no_bytes_whatever_break_a_form(body):
    for media_type in FORMS:
        try:
            assert make(body, media_type).count
        except Rejected as error:
            assert error.status in (413, 422) and error.detail


@pytest.fixture
def small_slices(monkeypatch):
    """A body of a few bytes is a large one, and a slice of it a few bytes or two events."""
    for name, value in {"LARGE_BYTES": 8, "_BYTES": 40, "_EVENTS": 2, "_MAX_ENCODED": 2}.items():
        monkeypatch.setattr(slice, name, value)


def outcome(*args, **kwargs):
    try:
        return make(*args, **kwargs)
    except Rejected as error:
        return error.status, error.cause, error.detail, error.faults


@steady
@given(st.lists(st.dictionaries(
    st.sampled_from(("message", "timestamp", "level", "service", "attributes", "msg", "x")),
    st.none() | st.booleans() | numbers | texts | objects, max_size=4,
).map(to_json) | plain.map(to_json) | st.text(max_size=6), min_size=1, max_size=7),
    st.sampled_from((",", "\n", ",", " ")), st.booleans(), st.sampled_from(([], [("service", "s")])))
def test_a_body_in_slices_is_what_it_is_in_one(small_slices, pieces, separator, is_array, defaults):
    body = separator.join(pieces).encode(errors="replace")
    body = b"[" + body + b"]" if is_array else body
    for media_type in ("application/json", "application/x-ndjson", "text/plain"):
        found = outcome(body, media_type, defaults)
        with pytest.MonkeyPatch.context() as whole:
            whole.setattr(slice, "LARGE_BYTES", 1 << 20)
            assert found == outcome(body, media_type, defaults)


@pytest.mark.parametrize("sent", [b'{"message":"m"}', b'{"msg":"m"}'])
@pytest.mark.parametrize("media_type", ["application/json", "application/x-ndjson", "text/plain"])
def test_others_have_their_turn_between_any_two_slices(small_slices, sent, media_type):
    body = b"[" + b",".join([sent] * 50) + b"]" if media_type == "application/json" else b"\n".join([sent] * 50)
    pauses = mock.Mock()
    assert form.to_batch(FORMS[media_type], body, [], ID, NOW_NS, LIMITS, pause=pauses).count == 50
    assert pauses.call_count > 49


def test_a_body_that_is_not_large_is_never_interrupted():
    pauses = mock.Mock(side_effect=AssertionError("it was"))
    assert form.to_batch(FORMS["application/json"], b'{"message":"m"}', [], ID, NOW_NS, LIMITS, pause=pauses).count
    assert form.digest(b"a" * 1000, [], pauses)


def test_the_digest_of_a_body_does_not_depend_on_slices():
    body = b"abc" * 1_000_000
    assert form.digest(body, [("host", "h")]) == hashlib.sha256(body + b"\0host=h").hexdigest()


@steady
@given(st.binary(max_size=300), st.integers(0, 383) | st.integers(384, 2000), st.binary(max_size=300))
def test_a_long_number_is_seen_wherever_it_begins_and_a_short_one_is_not(before, count, after):
    before, after = before.translate(None, b"0123456789"), after.translate(None, b"0123456789")
    assert slice.has_long_number(before + b"7" * count + after) == (count >= 384)


@pytest.mark.parametrize("digits", [18, 300, 301, 383, 384, 4200, 4300])
@pytest.mark.parametrize("count", [1, 30])
def test_a_long_integer_is_kept_digit_by_digit_however_it_is_read(digits, count):
    number = "-" + "7" * (digits - 1)
    sent = f'{{"message":"m","attributes":{{"n":{number}}}}}'
    limits = Limits(100, 5000)
    for media_type, body in (("application/json", f"[{','.join([sent] * count)}]"),
                             ("application/x-ndjson", "\n".join([sent] * count))):
        lines = make(body.encode(), media_type, limits=limits).payload.decode().splitlines()
        assert [line.split("\t")[-1] for line in lines] == [f'{{"n":{number}}}'] * count


def test_no_integer_is_made_of_many_digits():
    sent = f'{{"message":"m","attributes":{{"n":{"7" * 4200}}}}}'
    body = f"[{','.join([sent] * 10)}]".encode()
    with mock.patch.object(event, "encode", side_effect=AssertionError("the quick way makes one")):
        assert make(body).count == 10


@pytest.mark.parametrize("body", [b"[" * 600_000, b"[" + b"[" * 300_000 + b"]" * 300_000 + b"]"])
def test_a_large_array_that_is_nested_without_end_is_refused_as_a_small_one_is(body):
    assert "deeper than 64" in refusal(body).detail
