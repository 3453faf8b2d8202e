"""Hand-over 3, WAL → stream: the replayer is killed before and after each step; the ledger removes what it repeats."""

import signal

import pytest

from app.batch import to_record
from tests import journal
from wal.writer import Writer

POINTS = ["after:read", "before:append", "after:append", "before:release", "after:release"]
SIZES = {"segment_bytes": 1 << 20, "max_bytes": 1 << 30, "min_free_bytes": 0}


@pytest.mark.parametrize("point", POINTS)
def test_a_replay_that_is_killed_and_begun_again_stores_each_event_once(point, tmp_path, redis_url, database_url):
    directory, spares = tmp_path / "wal", tmp_path / "spare"
    directory.mkdir()
    spares.mkdir()
    batches = [journal.make_batch(f"batch {number}") for number in range(20)]
    writer = Writer(directory, spares, **SIZES)
    for one in batches:
        writer.write([to_record(one)])
    writer.close()
    environ = {"REDIS_URL": redis_url, "SPILLWAY_WAL_DIR": str(directory), "CRASH_POINT": point,
               "CRASH_MARK": str(tmp_path / "mark")}

    victim = journal.start("-m", "tests.crash.replayer_victim", log=tmp_path / "log", **environ)
    assert victim.wait(timeout=journal.DEADLINE_S) == -signal.SIGKILL, (tmp_path / "log").read_text()
    successor = journal.start("-m", "tests.crash.replayer_victim", log=tmp_path / "log", **environ)
    try:
        journal.until(lambda: not list(directory.iterdir()), "the WAL to be drained")
    finally:
        successor.terminate()
        successor.wait(timeout=journal.DEADLINE_S)
    journal.drain(redis_url, database_url)
    expected = {one.batch_id: journal.messages(one, f"batch {number}") for number, one in enumerate(batches)}
    assert journal.stored(database_url) == expected
