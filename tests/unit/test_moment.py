"""Times are read by us: whatever unit or offset they come in, one moment has one text, and no digit is lost."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import moment
from tests.sample import steady

LAST = "2199-12-31T23:59:59.999999Z"


@pytest.mark.parametrize(("sent", "read"), [
    (0, "1970-01-01T00:00:00.000000Z"),
    ("0", "1970-01-01T00:00:00.000000Z"),
    (1_767_225_600, "2026-01-01T00:00:00.000000Z"),
    (1_767_225_600_123, "2026-01-01T00:00:00.123000Z"),
    (1_767_225_600_123_456, "2026-01-01T00:00:00.123456Z"),
    (1_767_225_600_123_456_000, "2026-01-01T00:00:00.123456Z"),
    ("1767225600.5", "2026-01-01T00:00:00.500000Z"),
    ("1.7672256005e9", "2026-01-01T00:00:00.500000Z"),
    ("1.767225600123E+12", "2026-01-01T00:00:00.123000Z"),
    ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
    ("2026-01-01T00:00:00.5Z", "2026-01-01T00:00:00.5Z"),
    ("2026-01-01t00:00:00.123456z", "2026-01-01T00:00:00.123456Z"),
    ("2026-01-01 00:00:00+00:00", "2026-01-01T00:00:00.000000Z"),
    ("2026-01-01T05:30:00.123456000+05:30", "2026-01-01T00:00:00.123456Z"),
    ("2025-12-31T14:00:00-10:00", "2026-01-01T00:00:00.000000Z"),
    ("2024-02-29T12:00:00-00:00", "2024-02-29T12:00:00.000000Z"),
    ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
    ("1969-12-31T23:00:00-01:00", "1970-01-01T00:00:00.000000Z"),
    (LAST, LAST),
    ("2200-01-01T00:59:59.999999+01:00", LAST),
    (7_258_118_399, "2199-12-31T23:59:59.000000Z"),
])
def test_a_time_is_read_in_each_of_its_spellings(sent, read):
    assert moment.parse(sent) == read


@pytest.mark.parametrize("sent", [
    "1969-12-31T23:59:59.999999Z", "1970-01-01T00:59:59+01:00", "2200-01-01T00:00:00Z", "2199-12-31T23:30:00-00:30",
    7_258_118_400, 7_258_118_400_000_000_000, -1, "-1", "1e99", "9" * 20, "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59-23:59",
])
def test_a_time_out_of_range_is_refused(sent):
    with pytest.raises(ValueError, match="is not a time from 1970 to 2199|neither RFC 3339"):
        moment.parse(sent)


@pytest.mark.parametrize("sent", [
    "", " ", "now", "infinity", "-infinity", "epoch", "today", "NaN", "2026-01-01", "2026-01-01T00:00:00",
    "2026-01-01T00:00Z", "2026-1-1T00:00:00Z", "2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", "2025-02-29T00:00:00Z",
    "2026-01-01T25:00:00Z", "2026-01-01T00:60:00Z", "2026-01-01T00:00:00+24:00", "2026-01-01T00:00:00+0100",
    "2026-01-01T00:00:00,5Z", "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00Z ", " 2026-01-01T00:00:00Z",
    "2026-01-01T00:00:00Z\n", "2026-01-01T00:00:00.1234567890123456789012345678901Z", "12026-01-01T00:00:00Z",
    "Thu, 01 Jan 2026 00:00:00 GMT", "\u0661\u0667\u0666", "2026-01-01T00:00:0\u0661Z", "0x10", "1_000", "1e-5", "+1",
    "1767225600 BC", "2026-01-01T00:00:00Z BC", "\ud800", "9" * 400, "1e999999999",
])
def test_what_is_no_time_is_refused_in_words(sent):
    with pytest.raises(ValueError, match="neither RFC 3339|is not a time"):
        moment.parse(sent)


@pytest.mark.parametrize(("sent", "cut"), [
    (1_767_225_600_123_456_789, "2026-01-01T00:00:00.123456Z"),
    ("1767225600.1234567", "2026-01-01T00:00:00.123456Z"),
    ("2026-01-01T00:00:00.123456789Z", "2026-01-01T00:00:00.123456Z"),
    ("2026-01-01T00:00:00.123456000000000000000000000001Z", "2026-01-01T00:00:00.123456Z"),
    ("1767225600.123456000000000000000000000001", "2026-01-01T00:00:00.123456Z"),
    ("2025-12-31T23:59:59.999999999999999999999999999999Z", "2025-12-31T23:59:59.999999Z"),
    ("2199-12-31T23:59:59.999999999999999999999999999999Z", LAST),
])
def test_digits_below_the_microsecond_are_told_and_cut_and_never_rounded_up(sent, cut):
    with pytest.raises(moment.TooFine) as caught:
        moment.parse(sent)
    assert caught.value.cut == cut


moments = st.datetimes(datetime(1970, 1, 2), datetime(2199, 12, 30)).map(lambda naive: naive.replace(tzinfo=UTC))
offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@steady
@given(moments, offsets)
def test_one_moment_has_one_text_in_every_offset_and_unit(at, offset):
    micros = (at - moment.EPOCH) // timedelta(microseconds=1)
    text = moment.from_ns(micros * 1000)
    assert datetime.fromisoformat(text) == at
    assert moment.parse(at.astimezone(offset).isoformat()) in (text, text.replace(".000000", ""))
    assert moment.parse(text) == text
    assert moment.parse(f"{micros // 10**6}.{micros % 10**6:06d}") == text
    if micros >= 10**14:
        assert moment.parse(micros) == text
        assert moment.parse(micros * 1000) == text


@steady
@given(st.text() | st.integers())
def test_whatever_is_sent_is_a_time_in_range_or_refused(sent):
    try:
        read = moment.parse(sent)
    except ValueError:
        return
    assert moment.EPOCH <= datetime.fromisoformat(read) < moment.END


SECOND = st.datetimes(datetime(1969, 12, 31), datetime(2200, 1, 2)).map(lambda at: at.strftime("%Y-%m-%dT%H:%M:%S"))
TIMES = st.one_of(
    st.builds("{}{}".format, SECOND, st.sampled_from(["Z", ".1Z", ".123Z", ".123456Z", ".1234567Z", "+01:00", "z"])),
    st.sampled_from(["2026-02-30T12:00:00Z", "2026-01-31T24:00:00Z", "2026-01-31T12:60:00Z", "2026-01-31 12:00:00Z",
                     "", "now", "\ud800", "2026-01-31T12:00:00Z\n2026-01-31T12:00:00Z", "٢٠٢٦-01-31T12:00:00Z"]),
    st.integers(0, 10**18),
)


@steady
@given(st.one_of(st.lists(TIMES, min_size=1, max_size=4),
                 st.lists(SECOND.map("{}.123Z".format), min_size=1, max_size=4)))
def test_plain_times_are_those_that_stay_as_they_are(values):
    if moment.are_plain(values):
        assert list(map(moment.parse, values)) == values


@pytest.mark.parametrize("rest", ["Z", ".1Z", ".123Z", ".123456Z"])
def test_the_usual_times_are_plain_and_one_of_another_form_among_them_is_seen(rest):
    values = [f"2026-01-31T12:{minute:02}:07{rest}" for minute in range(60)]
    assert moment.are_plain(values)
    for other in ("2026-01-31T12:00:00+01:00", 1769860800, f"2026-02-30T12:00:00{rest}", "\x02N", ""):
        assert not moment.are_plain([*values, other]) and not moment.are_plain([other, *values])
