"""What ends again and again is told from what has ended once."""

from datetime import datetime

import pytest

from ops import loop
from ops.supervisor_client import Process

NOW = datetime(2026, 1, 1, 12, 0, 10)
OTHER = "2026-01-01 12:00:00,000 INFO spawned: 'admin' with pid 7\n2026-01-01 12:00:00,000 INFO stopped: admin (exit)\n"


def details(text, tmp_path):
    log = tmp_path / "supervisord.log"
    log.write_text(text)
    processes = [Process(name, "RUNNING", 1, 5, "", "") for name in ("admin", "consumers:consumer-00")]
    return [one.detail for one in loop.marked(processes, log, NOW)]


@pytest.mark.parametrize(("name", "place"), [("admin", 0), ("consumer-00", 1)])
def test_three_ends_in_ten_minutes_are_a_loop(name, place, tmp_path):
    ends = [f"2026-01-01 {at},123 WARN exited: {name} (exit status 1; not expected)\n{OTHER}"
            for at in ("11:49:00", "11:51:00", "11:59:59", "12:00:00")]
    assert details("".join(ends[:3]), tmp_path) == ["", ""]
    found = details("".join(ends), tmp_path)
    assert found[place] == "ended 3 times in 10 min, last 10 s ago: its log" and found[not place] == ""


def test_without_a_log_there_is_none(tmp_path):
    assert loop.marked([], tmp_path / "none", NOW) == []
