"""Levels keep their text, and get the severity number that it stands for."""

import pytest

from app import severity


@pytest.mark.parametrize(("sent", "text", "number"), [
    ("INFO", "INFO", 9), ("info", "info", 9), ("Warning", "Warning", 13), ("err", "err", 17), ("FATAL4", "FATAL4", 24),
    ("trace", "trace", 1), ("notice", "notice", 10), ("emerg", "emerg", 21), ("", "", None), ("loud", "loud", None),
    ("9", "9", None), ("\u0131nfo", "\u0131nfo", 9), ("x" * 10_000, "x" * 10_000, None),
    (0, "UNSPECIFIED", 0), (1, "TRACE", 1), (9, "INFO", 9), (10, "INFO2", 10), (24, "FATAL4", 24),
])
def test_a_level_is_read_as_text_and_number(sent, text, number):
    assert severity.read(sent) == (text, number)


@pytest.mark.parametrize("sent", [-1, 25, 30, 10**100])
def test_a_number_that_is_no_severity_is_refused(sent):
    with pytest.raises(ValueError, match="0 to 24"):
        severity.read(sent)
