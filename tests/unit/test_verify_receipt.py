"""A receipts file tells what was promised, however the run that wrote it ended."""

import json
from pathlib import Path

import pytest

from loadtest.receipt import BadReceipts, Promise, Writer, parse, read
from loadtest.verify import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "receipts.jsonl"


def test_each_outcome_becomes_its_promise(path: Path) -> None:
    writer = Writer(path, "run")
    for tag, count, is_keyed in (("a", 5, True), ("a", 5, True), ("r", 1, False), ("u", 2, False), ("s", 3, False)):
        writer.sent(tag, count, is_keyed)
    writer.unknown("a", 503, "away")
    writer.accepted("a", 202, "id", 5, "stream")
    writer.rejected("r", 422, "no message")
    writer.unknown("u", 0, "cut")
    history = read(path)
    assert history.runs == ["run"]
    assert history.promises == {
        "a": Promise(5, True, ("id",), unknown_count=1), "r": Promise(1, False),
        "u": Promise(2, False, unknown_count=1), "s": Promise(3, False, unknown_count=1)}
    assert [promise.outcome for promise in history.promises.values()] == ["accepted", "rejected", "unknown", "unknown"]


def test_an_answer_with_another_count_is_remembered(path: Path) -> None:
    writer = Writer(path, "run")
    writer.sent("a", 5, False)
    writer.accepted("a", 202, "id", 4, "stream")
    assert read(path).promises == {"a": Promise(5, False, ("id",), miscounted=4)}


def test_a_file_torn_at_any_byte_is_read_and_promises_no_more_than_it_did(path: Path) -> None:
    first = Writer(path, "run")
    first.sent("a", 5, False)
    whole_sent = path.stat().st_size
    first.accepted("a", 202, "id", 5, "wal")
    whole = path.read_bytes()
    for length in range(whole_sent, len(whole)):
        path.write_bytes(whole[:length])
        assert read(path).promises == {"a": Promise(5, False, unknown_count=1)}
        second = Writer(path, "next")
        second.sent("b", 1, False)
        history = read(path)
        assert history.runs == ["run", "next"] and history.promises["b"] == Promise(1, False, unknown_count=1)


def lines(*records: dict[str, object]) -> list[bytes]:
    return [json.dumps(record).encode() + b"\n" for record in records]


RUN: dict[str, object] = {"receipt": "run", "run": "r"}
SENT: dict[str, object] = {"receipt": "sent", "tag": "a", "count": 1, "keyed": False}
REJECTED: dict[str, object] = {"receipt": "rejected", "tag": "a"}


@pytest.mark.parametrize("bad", [
    pytest.param([], id="empty"),
    pytest.param(lines(RUN), id="nothing sent"),
    pytest.param([*lines(RUN), b"{\n", *lines(SENT)], id="torn in the middle of a run"),
    pytest.param([*lines(RUN, SENT), b"{\n", b"{\n", *lines(RUN)], id="torn twice"),
    pytest.param(lines(SENT, {"receipt": "rejected", "tag": "b"}), id="an outcome of what was not sent"),
    pytest.param(lines(SENT, REJECTED, REJECTED), id="two outcomes of one attempt"),
    pytest.param(lines(SENT, SENT | {"count": 2}), id="one tag, two requests"),
    pytest.param(lines(SENT, {"receipt": "accepted", "tag": "a"}), id="accepted without a batch id"),
    pytest.param(lines(SENT, {"receipt": "lost", "tag": "a"}), id="unknown kind"),
    pytest.param(lines(SENT | {"count": "many"}), id="a count that is none"),
])
def test_a_damaged_file_is_not_judged(bad: list[bytes], path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadReceipts):
        parse(bad)
    path.write_bytes(b"".join(bad))
    assert main([str(path), "--database-url", "postgresql://"]) == 2
    assert "cannot judge" in capsys.readouterr().err


def test_without_a_file_or_a_database_there_is_no_verdict(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    assert main([str(path), "--database-url", "postgresql://"]) == 2
    Writer(path, "run").sent("a", 1, False)
    assert main([str(path)]) == 2
    assert main([str(path), "--database-url", "no url at all"]) == 2
    assert main([str(path), "--database-url", f"postgresql:///?host={path.parent}"]) == 2


def test_a_write_cut_short_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(path, "run")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr("os.write", lambda *_: 1)
        writer.sent("a", 1, False)
