"""What is sent is what is stored: payloads go through a real COPY, and SELECT gives them back unchanged."""

import io
import json
from contextlib import closing

import psycopg2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app import batch, form, moment
from tests.journal import LIMITS
from tests.sample import NAUGHTY, exact, from_json, numbers, objects, steady, texts, to_json
from workers import schema

NOW_NS = 1_767_225_600_123_456_789
TEXTS = ("level", "service", "host", "message", "trace_id", "span_id")
SELECT = f"""
    SELECT to_char(ts AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), attributes::text, {', '.join(TEXTS)}
    FROM log_events ORDER BY batch_index
"""


@pytest.fixture
def cursor(database_url):
    with closing(psycopg2.connect(database_url)) as connection:
        schema.ensure(connection)
        with connection.cursor() as cursor:
            yield cursor


def stored(cursor, body, media_type="application/json", defaults=()):
    """Returns the rows that a request becomes, in order, by column; of numbers, not a digit is lost on the way."""
    made = form.to_batch(form.FORMS[media_type], body, defaults, batch.new_id(), NOW_NS, LIMITS)
    cursor.copy_expert(schema.COPY, io.BytesIO(made.payload))
    assert cursor.rowcount == made.count
    cursor.execute(SELECT)
    rows = [{"timestamp": ts, "attributes": exact(from_json(attributes)), **dict(zip(TEXTS, rest))}
            for ts, attributes, *rest in cursor.fetchall()]
    cursor.connection.rollback()  # One table serves all examples.
    return rows


def expected(event):
    absent = {"timestamp": moment.from_ns(NOW_NS), **dict.fromkeys(TEXTS)}
    return {**absent, **event, "attributes": exact(event.get("attributes", {}))}


events = st.fixed_dictionaries(
    {"message": texts},
    optional={**{name: texts for name in TEXTS if name != "message"}, "attributes": objects},
)


@steady
@given(st.lists(events, min_size=1, max_size=4), st.booleans())
@example([{"message": "\x02\x02", "service": "\x02\x02", "level": "\x02\x02"}], True)
def test_any_text_and_any_number_in_any_field_comes_back_as_it_was_sent(cursor, sent, ensure_ascii):
    assert stored(cursor, to_json(sent, ensure_ascii).encode()) == [expected(event) for event in sent]


@steady
@given(st.lists(events, min_size=1, max_size=4))
def test_lines_of_json_are_stored_as_an_array_of_the_same_events_is(cursor, sent):
    lines = "\r\n".join(to_json(event) for event in sent)
    assert stored(cursor, lines.encode(), "application/x-ndjson") == [expected(event) for event in sent]


@steady
@given(st.binary() | st.lists(texts).map("\n".join).map(str.encode))
def test_any_bytes_are_stored_as_lines_with_what_is_not_utf_8_as_hexadecimal(cursor, noise):
    body = b"first\n" + noise.replace(b"\0", b"")
    lines = [line.removesuffix(b"\r").decode(errors="backslashreplace") for line in body.split(b"\n")]
    rows = stored(cursor, body, "text/plain")
    assert [row["message"] for row in rows] == [line for line in lines if line]


@steady
@given(texts, texts, texts)
def test_defaults_of_the_query_are_stored_as_they_were_sent(cursor, service, host, level):
    defaults = [("host", host), ("level", level), ("service", service)]
    for body, media_type in ((b'{"message": "m"}', "application/json"), (b"m", "text/plain")):
        row, = stored(cursor, body, media_type, defaults)
        assert row == expected({"message": "m", "service": service, "host": host, "level": level})


@steady
@given(st.dictionaries(texts, numbers, min_size=1, max_size=20))
def test_numbers_keep_every_digit(cursor, named):
    row, = stored(cursor, to_json({"message": "m", "attributes": named}).encode())
    assert row["attributes"] == exact(named)


@pytest.mark.parametrize("naughty", NAUGHTY, ids=ascii)
def test_a_naughty_string_is_stored_as_message_service_attribute_key_and_value(cursor, naughty):
    event = {"message": naughty, "service": naughty, "attributes": {naughty: naughty, "nested": [{naughty: [naughty]}]}}
    for ensure_ascii in (False, True):
        assert stored(cursor, json.dumps(event, ensure_ascii=ensure_ascii).encode()) == [expected(event)]


@pytest.mark.parametrize("timestamp", [
    "1970-01-01T00:00:00.000000Z", "2026-02-28T23:59:59.999999Z", "2199-12-31T23:59:59.999999Z",
])
def test_a_time_keeps_its_microsecond_at_both_ends_of_its_range(cursor, timestamp):
    row, = stored(cursor, json.dumps({"message": "m", "timestamp": timestamp}).encode())
    assert row["timestamp"] == timestamp
