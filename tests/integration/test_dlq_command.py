"""`spillway dlq` on a real Redis: what it shows, chooses, replays, purges and refuses; what a terminal never sees."""

import json
import re
import subprocess
import sys
from contextlib import closing

import pytest
import redis

from app import dead_letter, stream
from app.errors import StreamUnavailable
from app.letterbox import Letterbox
from ops import command
from tests import journal
from tests.letter import bury, letters, lone, make_service_batch

MORE = "There are more: --limit N shows so many."
LEFT = ("Left 1 letter of not_an_entry: they hold no batch and cannot be replayed; `spillway dlq show` tells what they "
        "are.\n")


@pytest.fixture
def spillway(redis_url, monkeypatch, tmp_path, capsys):
    """Runs `spillway dlq`: returns its exit status, what it printed, and what it complained of."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SPILLWAY_DATA_DIR", str(tmp_path))

    def run(*words):
        return command.main(["dlq", *words]), *capsys.readouterr()
    return run


def test_list_shows_a_table_and_sums_it_up(client, spillway):
    one = journal.make_batch(count=7)
    first = bury(client, one, detail="server closed the connection\n\tunexpectedly " + "x" * 100)
    second = bury(client, lone(one, 5), dead_letter.BAD_EVENT, sqlstate="22P02")
    status, out, complaint = spillway("list")
    head, *rows, last = out.splitlines()
    assert (status, complaint) == (0, "") and len(rows) == 2
    assert head.split() == "letter made at reason sqlstate batch index events attempts detail".split()
    assert re.match(rf"{first} +\d{{4}}-\d\d-\d\dT\S+Z +sink_unavailable +57P01 +{one.batch_id} +- +7 +3 +server closed"
                    r" the connection unexpectedly x+…$", rows[0])
    assert re.match(rf"{second} .+ bad_event +22P02 +{one.batch_id} +5 +1 +3 ", rows[1])
    assert last == "Found 2 letters with 8 events: 1 sink_unavailable (7 events), 1 bad_event (1 event)."


def test_list_shows_so_many_and_says_that_there_are_more(client, spillway):
    for _ in range(101):
        bury(client, journal.make_batch(count=1))
    status, out, complaint = spillway("list")
    *_, total, more = out.splitlines()
    assert (status, complaint) == (0, "") and len(out.splitlines()) == 103
    assert total.startswith("Shown are the first 100 letters with 100 events: 100 sink_unavailable") and more == MORE
    out = spillway("list", "--limit", "3")[1]
    assert len(out.splitlines()) == 6 and out.endswith(f"{MORE}\n")
    assert spillway("list", "--limit", "101")[1].splitlines()[-1].startswith("Found 101 letters")
    status, out, complaint = spillway("list", "--json")
    assert len(out.splitlines()) == 100 and complaint.endswith(f"{MORE}\n")
    status, out, complaint = spillway("list", "--json", "--limit", "1000")
    assert len(list(map(json.loads, out.splitlines()))) == 101 and complaint.startswith("Found 101 letters")


def test_options_and_ids_choose(client, spillway):
    web = make_service_batch("web")
    ids = [bury(client, web), bury(client, journal.make_batch(), dead_letter.KILLS), bury(client, journal.make_batch())]

    def chosen(*words):
        status, out, _ = spillway("list", "--json", *words)
        assert status == 0
        return [json.loads(line)["letter_id"] for line in out.splitlines()]

    assert chosen("--since", "1h") == chosen("--since", "2020-01-01T00:00:00Z") == ids
    assert chosen("--since", "2199-01-01T00:00:00Z") == chosen("--reason", "bad_batch") == []
    assert chosen("--reason", "kills_consumer") == chosen(ids[1]) == [ids[1]]
    assert chosen("--service", "web") == chosen("--batch", web.batch_id) == [ids[0]]
    assert chosen(ids[2], ids[1], "--reason", "sink_unavailable") == [ids[2]]


def test_show_and_export_tell_whole_letters_with_their_events(client, spillway):
    one = journal.make_batch(count=2)
    letter_id = bury(client, one)
    document = letters(client)[0].document()
    status, out, _ = spillway("show", letter_id)
    assert status == 0 and json.loads(out) == document and "\n  \"reason\"" in out
    bury(client, journal.make_batch())
    status, out, complaint = spillway("export", "--batch", one.batch_id)
    assert status == 0 and json.loads(out) == document and complaint.startswith("Exported 1 letter with 2 events")
    status, out, complaint = spillway("show", "1-1")
    assert (status, out) == (1, "") and "no letter 1-1" in complaint


def test_replay_says_what_it_did_and_what_it_left_and_how_to_choose_that(client, spillway, redis_url, database_url):
    bury(client, journal.make_batch())
    bury(client, journal.make_batch(), dead_letter.CONFLICT)
    client.xadd(stream.DEAD_LETTERS, {"reason": dead_letter.NOT_AN_ENTRY})
    status, out, _ = spillway("replay", "--dry-run")
    assert status == 0 and "Would replay 1 letter with 3 events: 1 sink_unavailable (3 events)." in out
    assert client.xlen(stream.STREAM) == 0
    status, out, _ = spillway("replay")
    assert status == 0 and "Replayed 1 letter with 3 events: 1 sink_unavailable (3 events).\n" in out
    assert re.search("Left 1 letter of idempotency_conflict: .*--reason idempotency_conflict", out)
    assert re.search("Left 1 letter of not_an_entry: .*cannot be replayed", out)
    status, out, _ = spillway("replay", "--reason", "idempotency_conflict")
    assert status == 0 and "1 idempotency_conflict" in out and "Left" not in out
    assert spillway("replay")[:2] == (0, f"{LEFT}Replayed no letter.\n") and client.xlen(stream.STREAM) == 2
    journal.drain(redis_url, database_url)
    assert len(journal.stored(database_url)) == 2


def test_purge_wants_to_be_told_which(client, spillway):
    for reason in (dead_letter.SINK, dead_letter.BAD_BATCH, dead_letter.KILLS):
        bury(client, journal.make_batch(), reason)
    status, out, complaint = spillway("purge")
    assert (status, out) == (2, "") and "--all" in complaint
    assert spillway("purge", "--dry-run", "--all")[1].startswith("Would purge 3 letters with 9 events")
    assert len(letters(client)) == 3
    status, out, _ = spillway("purge", "--reason", "bad_batch")
    assert (status, out) == (0, "Purged 1 letter with 3 events: 1 bad_batch (3 events).\n")
    assert spillway("purge", "--all")[1].startswith("Purged 2 letters") and not letters(client)


def test_nothing_to_do_is_said_and_no_failure(spillway):
    assert spillway("list") == (0, "Found no letter: none matches.\n", "")
    assert spillway("replay") == (0, "Replayed no letter: none matches.\n", "")
    assert spillway("purge", "1-1") == (0, "Purged no letter: none matches.\n", "")
    assert spillway("export") == (0, "", "Exported no letter: none matches.\n")


@pytest.mark.parametrize("words", [
    ("list", "--since", "\x1b[31m"), ("replay", "1"), ("purge", "--batch", "nonsense"), ("show", "nonsense"),
])
def test_wrong_arguments_are_refused_with_what_is_right(words, spillway):
    status, out, complaint = spillway(*words)
    assert (status, out) == (2, "") and complaint.startswith("spillway dlq: ") and "\x1b" not in complaint


@pytest.mark.parametrize("words", [("list", "--reason", "nonsense"), ("list", "--limit", "0"), ("show",), ()])
def test_words_that_there_are_not_are_refused(words, spillway):
    with pytest.raises(SystemExit) as raised:
        spillway(*words)
    assert raised.value.code == 2


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_terminal_sees_no_control_character_of_a_hostile_letter(encoding, client, redis_url, tmp_path):
    hostile = "\x1b]0;owned\x07\x1b[2J\r\n\x00\x7f\x9b31m\u202e\u2028é中\U0001f469"
    fields = dict.fromkeys(("reason", "detail", "sqlstate", "attempts", "batch_id", hostile), hostile)
    client.xadd(stream.DEAD_LETTERS, fields | {"payload": b"\xff\xfe\x1b"})
    one = make_service_batch("web", "web\x9b", message=hostile.replace("\0", ""))
    letter_id = bury(client, one, detail=hostile)
    for words in (("list",), ("list", "--json"), ("show", letter_id), ("export",), ("replay", "--dry-run")):
        done = subprocess.run(
            [sys.executable, "-m", "ops.command", "dlq", *words], cwd=journal.ROOT, capture_output=True,
            env={"PATH": "", "REDIS_URL": redis_url, "SPILLWAY_DATA_DIR": str(tmp_path), "PYTHONIOENCODING": encoding},
        )
        text = done.stdout.decode(encoding) + done.stderr.decode(encoding)
        assert done.returncode == 0, text
        assert all(char.isprintable() or char == "\n" for char in text)
        if words[0] in ("show", "export"):
            text = done.stdout.decode(encoding)
            document = json.loads(text if words[0] == "show" else text.splitlines()[-1])
            assert document["events"][1]["message"] == hostile.replace("\0", "")
            assert ("中" in text) == (encoding == "utf-8")


def test_a_reader_that_has_seen_enough_is_no_failure(client, redis_url, tmp_path):
    for _ in range(50):
        bury(client, journal.make_batch("x" * 1000, count=10))
    environ = {"PATH": "/usr/bin:/bin", "REDIS_URL": redis_url, "SPILLWAY_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m ops.command dlq export | head -c 100"],
        cwd=journal.ROOT, env=environ, capture_output=True, text=True,
    )
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 100, "")


def test_where_nothing_runs_and_no_redis_is_named_the_command_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("SPILLWAY_DATA_DIR", str(tmp_path))
    assert command.main(["dlq", "list"]) == 78
    assert "REDIS_URL" in capsys.readouterr().err


def test_a_redis_that_goes_away_in_the_midst_leaves_the_sum_of_what_was_done(client, spillway, monkeypatch):
    monkeypatch.setattr("app.letterbox._PAGE_LETTERS", 2)
    for _ in range(5):
        bury(client, journal.make_batch())
    replayed, calls = Letterbox.replay, []

    def replay_once(self, letters_):
        calls.append(letters_)
        if len(calls) > 1:
            raise StreamUnavailable("connect", "gone")
        return replayed(self, letters_)

    monkeypatch.setattr(Letterbox, "replay", replay_once)
    status, out, complaint = spillway("replay")
    assert (status, complaint) == (1, "spillway: connect: gone\n")
    assert out == "Replayed 2 letters with 6 events: 2 sink_unavailable (6 events).\n"


def test_the_letters_of_a_running_stack_are_found_by_its_data_directory(stack):
    running = stack(SPILLWAY_WORKERS="1", SPILLWAY_CONSUMERS="1")
    facts, one = running.facts, journal.make_batch()
    with closing(redis.Redis.from_url(facts["redis_url"])) as client:
        letter_id = bury(client, one)
    assert letter_id in running.spillway("dlq", "list").stdout
    assert running.spillway("dlq", "replay").stdout.startswith("Replayed 1 letter with 3 events")
    expected = {one.batch_id: journal.messages(one)}
    journal.until(lambda: journal.stored(facts["database_url"]) == expected, "the batch to be stored")
