"""Events become rows of COPY text, the same bytes on the quick way and on the careful one."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app import event
from app.event import Event
from tests.sample import NAUGHTY, steady, texts

NOW = "2026-01-01T00:00:00.000000Z"
PREFIX = "received\tid\t"
MIB = 1 << 20


def cells(made):
    """Returns the rows of a payload, each as its cells; escapes stay."""
    assert made.endswith(b"\n")
    return [row.split(b"\t") for row in made[:-1].split(b"\n")]


def both(*events):
    quick = event.encode(events, PREFIX, NOW, MIB)
    assert quick == event.encode_carefully(events, PREFIX, NOW)
    return cells(quick)


def test_a_row_has_the_columns_in_their_order():
    one = Event("m", "2026-01-02T00:00:00Z", "warn", "s", "h", "t", "p", {"a": 1})
    assert both(one) == [
        [b"received", b"id", b"0", b"2026-01-02T00:00:00Z", b"warn", b"13", b"s", b"h", b"m", b"t", b"p", b'{"a":1}'],
    ]


def test_fields_that_were_not_sent_are_null_and_the_time_is_that_of_receipt():
    null = rb"\N"
    assert both(Event("m")) == [[b"received", b"id", b"0", NOW.encode(), *[null] * 4, b"m", null, null, b"{}"]]


def test_each_row_of_a_batch_has_its_index():
    assert [row[2] for row in both(*[Event("m")] * 12)] == [str(index).encode() for index in range(12)]


@pytest.mark.parametrize(("sent", "cell"), [
    ("a\tb", rb"a\tb"), ("a\nb", rb"a\nb"), ("a\rb", rb"a\rb"), ("a\\b", rb"a\\b"), ("\\N", rb"\\N"), ("\\.", rb"\\."),
    ("\\t", rb"\\t"), ("\\\n", rb"\\\n"), ("", b""), ("\u2028", "\u2028".encode()),
])
def test_what_copy_gives_a_meaning_to_is_escaped(sent, cell):
    row, = both(Event(sent, service=sent))
    assert (row[8], row[6]) == (cell, cell)


@pytest.mark.parametrize(("level", "written"), [
    ("info", (b"info", b"9")), ("loud", (b"loud", rb"\N")), (17, (b"ERROR", b"17")), (0, (b"UNSPECIFIED", b"0")),
    ("", (b"", rb"\N")), ("a\tb", (rb"a\tb", rb"\N")),
])
def test_a_level_is_written_as_text_and_number(level, written):
    row, = both(Event("m", level=level))
    assert tuple(row[4:6]) == written


clean = texts.filter(lambda text: not event.has_stand_in(text.encode()))
nullable = clean | st.just(event.NULL)
attributes = st.dictionaries(clean, clean | st.integers() | st.none() | st.lists(clean) | st.dictionaries(clean, clean))


@steady
@given(st.lists(st.builds(
    Event, clean, st.sampled_from((event.NULL, 0, "2026-01-01T00:00:00+01:00")), nullable | st.integers(0, 24),
    nullable, nullable, nullable, nullable, attributes,
), min_size=1, max_size=5))
def test_both_ways_write_the_same_bytes(events):
    try:
        assert len(both(*events)) == len(events)
    except event.Suspect:
        assume(False)  # so many braces within texts that they might be depth


@pytest.mark.parametrize("naughty", [text for text in NAUGHTY if event.has_stand_in(text.encode())], ids=ascii)
def test_a_client_s_text_is_never_taken_for_the_stand_in_of_null(naughty):
    row, = cells(event.encode_carefully([Event(naughty, service=naughty)], PREFIX, NOW))
    assert row[6] == row[8] == naughty.encode().replace(b"\\", rb"\\")
    assert row[7] == rb"\N"


@pytest.mark.parametrize("body", [b"a\x00b", b"\x01", b"x\x02", rb'"\u0000"', rb'"\u0001"', rb'"\u000a"'])
def test_a_body_that_may_hold_a_stand_in_is_told(body):
    assert event.has_stand_in(body)


def is_left_to_the_careful_way(events):
    try:
        event.encode(events, PREFIX, NOW, MIB)
    except event.Suspect:
        return True
    return False


@pytest.mark.parametrize(("events", "is_suspect"), [
    ([Event("a" * (MIB - 200))], False), ([Event("a" * (MIB + 1))], True),
    ([Event("m"), Event("a" * MIB), Event("m")], True),
    ([Event("a" * (MIB // 2))] * 4, False), ([Event("\U0001f469" * (MIB // 4 - 200))], False),
    ([Event("\U0001f469" * (MIB // 4))], True), ([Event("m", attributes={"a": "\u00e9" * (MIB // 2)})], True),
])
def test_the_quick_way_leaves_events_about_the_limit_to_the_careful_one(events, is_suspect):
    assert is_left_to_the_careful_way(events) == is_suspect


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("opener", "end"), [("[", "]"), ('{"":', "}")])
@pytest.mark.parametrize(("depth", "is_suspect"), [(event.MAX_DEPTH - 1, False), (event.MAX_DEPTH, True)])
def test_the_quick_way_leaves_what_is_nested_deeply_to_the_careful_one(count, opener, end, depth, is_suspect):
    attributes = event.msgspec.json.decode('{"":' + opener * (depth - 2) + "[]" + end * (depth - 2) + "}")
    events = [Event("m", attributes=attributes)] * count
    assert is_left_to_the_careful_way(events) == is_suspect


def test_defaults_fill_only_what_was_not_sent():
    one = Event("m", service="", level=0)
    one.set_defaults([("service", "s"), ("host", "h"), ("level", "info")])
    assert (one.service, one.host, one.level) == ("", "h", 0)


def test_a_level_that_is_long_is_not_kept_in_a_cache():
    # A thousand levels of a megabyte each would be a gigabyte that never goes away.
    with pytest.raises(event.msgspec.ValidationError):
        event.msgspec.json.decode(b'{"message":"m","level":"' + b"x" * 33 + b'"}', type=Event)
