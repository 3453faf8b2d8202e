"""The audit on real servers: whatever happens on the way it balances, and whatever is lost or doubled it finds."""

import json
import os
import signal
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta

import msgspec
import psycopg2
import pytest

from app import count, dead_letter, stream
from app.appender import Appender
from app.dead_letter import Death
from app.letter_filter import Filter
from app.letterbox import Letterbox, Report
from ops import auditor
from ops.auditor import Auditor
from ops.census import Census
from ops.errors import NotReady
from tests import journal
from tests.conftest import RunningStack, pick_port
from tests.crash.test_load import run_victim
from tests.edge import Edge
from workers import script
from workers.inbox import Inbox

HOUR = timedelta(hours=1)
AT = "2026-01-31T12:00:00.000000Z"


def send(redis_url, *batches):
    """Adds batches as the edge and the replayer do."""
    appender = Appender(redis_url, 10)
    assert appender.append(batches) == [None] * len(batches)
    appender.close()


def send_raw(client, *batches):
    journal.append(client, *batches)


@pytest.fixture
def audit(client, database_url):
    """Audits as `spillway audit` does."""
    one = Auditor(Census(client, database_url, 60), lambda _: None)
    return lambda: one.audit(datetime.now(UTC) - HOUR)


@pytest.fixture
def drain(redis_url, database_url):
    return lambda: journal.drain(redis_url, database_url)


def execute(database_url, statement):
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)


def gaps(report):
    found = {}
    for _, gap in report.findings:
        found[gap.check] = found.get(gap.check, 0) + gap.events
    return found


def counts(client):
    found = {}
    for kinds in count.read(client.hgetall(count.KEY)).values():
        for kind, events in kinds.items():
            found[kind] = found.get(kind, 0) + events
    return found


def assert_balanced(report):
    assert report.is_balanced and not report.moving, (report.findings, report.stream)


# What happens on the way


def test_before_anything_has_come_it_balances(audit):
    assert_balanced(audit())


def test_what_is_in_the_stream_pending_loaded_doubled_or_in_conflict_balances_at_every_stage(
    audit, drain, client, redis_url
):
    batches = [journal.make_batch(f"batch {number}", count=number + 1) for number in range(4)]
    send(redis_url, *batches)
    assert_balanced(audit())
    Inbox(client, "consumer-00", 1 << 20).read()
    assert_balanced(audit())
    drain()
    assert_balanced(audit())
    send(redis_url, batches[0], batches[1], batches[1])
    send(redis_url, journal.make_batch("first", key="k"), journal.make_batch("second", key="k"))
    assert_balanced(audit())
    drain()
    assert_balanced(report := audit())
    assert counts(client) == {"added": 10 + 5 + 6, "loaded": 13, "duplicate": 5, "buried": 3}
    assert sum(bucket.letters for bucket in report.buckets.values()) == 3


def test_refused_events_their_replay_return_and_purge_balance(audit, drain, client, redis_url, database_url):
    good, poor, worse = journal.make_batch(), journal.make_batch(count=10), journal.make_batch()
    send(redis_url, journal.bad_at(poor, 3, 7), journal.bad_at(worse, 0, 1), good)
    drain()
    assert_balanced(audit())
    assert counts(client) == {"added": 16, "loaded": 13, "buried": 3, "buried_lone": 2}
    letterbox = Letterbox(client)
    letterbox.replay_matching(Filter(), Report())  # refused again: they come back
    assert_balanced(audit())
    drain()
    assert_balanced(audit())
    lone = [letter for letter in letterbox.page("", 100, 1 << 20) if letter.index is not None]
    mended = dead_letter.lone_event(lone[0].batch, lone[0].index, lone[0].batch.payload.replace(b"no JSON", b"{}"))
    send(redis_url, mended)
    drain()
    assert counts(client)["returned"] == 1
    letterbox.purge_matching(Filter(reason=dead_letter.BAD_EVENT), Report())
    assert_balanced(audit())
    letterbox.purge_matching(Filter(), Report())
    assert_balanced(audit())
    assert counts(client)["purged_lone"] == 2 and counts(client)["purged"] == 3


@pytest.mark.parametrize("point, kind", [("after:load", "loaded"), ("before:ack", "loaded"), ("after:ack", "loaded")])
def test_a_consumer_killed_between_commit_and_release_is_no_duplicate(
    point, kind, audit, drain, client, redis_url, database_url, tmp_path
):
    send(redis_url, *(journal.make_batch(f"batch {number}") for number in range(5)))
    run_victim(point, tmp_path, redis_url, database_url)
    assert_balanced(audit())
    drain()
    assert_balanced(audit())
    assert counts(client) == {"added": 15, kind: 15}


def test_an_entry_that_another_consumer_takes_over_after_its_commit_is_counted_once(
    audit, drain, client, redis_url, database_url
):
    send(redis_url, journal.make_batch())
    victim = Inbox(client, "victim", 1 << 20)
    entry, = victim.read()
    loader = journal.make_consumer(redis_url, database_url)._loader
    outcome = loader.load([entry.batch], [entry.entry_id.decode()], None)
    client.xclaim(stream.STREAM, stream.GROUP, "consumer-00", 0, [entry.entry_id])
    drain()
    victim.ack([(entry, count.LOADED)])
    loader.close()
    assert outcome.stored == [0]
    assert_balanced(audit())
    assert counts(client) == {"added": 3, "loaded": 3}


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_release_that_does_not_ask_who_owns_the_entry_is_found(
    is_asked, audit, client, redis_url, database_url, monkeypatch,
):
    if not is_asked:
        monkeypatch.setattr(script, "RELEASE", script.RELEASE.replace("if mine[ARGV[i]] then", "if true then"))
    send(redis_url, journal.make_batch(count=10))
    victim, thief = (journal.make_consumer(redis_url, database_url, name) for name in ("victim", "thief"))
    victim._gather()
    [(entry_id, _)] = client.xrange(stream.STREAM)
    client.xclaim(stream.STREAM, stream.GROUP, "thief", 0, [entry_id])
    assert thief.step() == 1
    victim._work()  # it wakes, and finishes what is another's by now
    assert audit().is_balanced == is_asked


def test_what_was_buried_although_it_had_been_committed_balances_before_and_after_its_replay(
    audit, drain, client, redis_url, database_url
):
    send(redis_url, journal.make_batch())
    inbox = Inbox(client, "consumer-00", 1 << 20)
    entry, = inbox.read()
    loader = journal.make_consumer(redis_url, database_url)._loader
    loader.load([entry.batch], [entry.entry_id.decode()], None)
    loader.close()
    inbox.bury(entry.entry_id, Death(dead_letter.SINK, "no answer", "", 1, AT, AT, "consumer-00"))
    assert_balanced(audit())
    Letterbox(client).replay_matching(Filter(), Report())
    drain()
    assert_balanced(audit())
    assert counts(client) == {"added": 6, "buried": 3, "replayed": 3, "duplicate": 3}


def test_what_is_no_batch_is_none_of_the_events(audit, drain, client):
    client.xadd(stream.STREAM, {"hello": "world"})
    assert_balanced(audit())
    drain()
    assert client.xlen(stream.DEAD_LETTERS) == 1
    assert_balanced(audit())


def test_a_redis_that_is_full_counts_what_it_does_not_refuse(audit, drain, client, redis_url):
    send(redis_url, *(journal.make_batch("x" * 1000, count=50) for _ in range(10)))
    client.config_set("maxmemory", 1)
    with closing(Appender(redis_url, 10)) as appender:
        appender._connection.connect()
        appender._is_open = True  # a full Redis lets nobody make the group that is there already
        outcomes = appender.append([journal.make_batch(), journal.make_batch()])
    assert [outcome.cause for outcome in outcomes] == ["OOM", "OOM"]
    assert_balanced(audit())
    drain()
    assert_balanced(audit())
    assert counts(client) == {"added": 500, "loaded": 500}


def test_what_the_stream_refuses_within_the_transaction_is_not_counted(client, redis_url):
    highest = (1 << 64) - 1
    client.xadd(stream.STREAM, {"no": "id comes after this"}, id=f"{highest}-{highest}")
    with closing(Appender(redis_url, 10)) as appender:
        outcomes = appender.append([journal.make_batch(), journal.make_batch()])
    assert all(outcomes)
    assert counts(client) == {"added": 0}


# What is lost or doubled


def test_an_entry_that_is_deleted_by_hand_is_found_in_its_minute_before_and_after_delivery(
    audit, drain, client, redis_url
):
    one = journal.make_batch()
    send(redis_url, one, journal.make_batch(), journal.make_batch())
    first, second, _ = client.xrange(stream.STREAM)
    client.xdel(stream.STREAM, first[0])
    finding, = audit().findings
    assert (finding.minute, finding.gap.check, finding.gap.events) == (count.minute_of(one), "stream", 3)
    client.xreadgroup(stream.GROUP, "consumer-00", {stream.STREAM: ">"}, count=1)
    client.xdel(stream.STREAM, second[0])
    report = audit()
    assert gaps(report) == {"stream": 6}
    assert any("deleted while they were pending" in fault for fault in report.stream.faults)
    drain()
    report = audit()
    assert gaps(report) == {"stream": 6} and report.stream.faults == ()


def test_a_trimmed_stream_is_found(audit, drain, client, redis_url):
    send(redis_url, *(journal.make_batch() for _ in range(5)))
    client.xtrim(stream.STREAM, maxlen=2, approximate=False)
    assert gaps(audit()) == {"stream": 9}
    drain()
    assert gaps(audit()) == {"stream": 9}


def test_an_entry_acknowledged_and_not_deleted_is_one_that_nobody_will_get_again(audit, client, redis_url):
    send(redis_url, journal.make_batch(), journal.make_batch())
    entry_id = client.xreadgroup(stream.GROUP, "consumer-00", {stream.STREAM: ">"}, count=1)[0][1][0][0]
    assert audit().stream.faults == ()
    client.xack(stream.STREAM, stream.GROUP, entry_id)
    fault = audit().stream.faults[-1]
    assert "nobody will get them again" in fault and entry_id.decode() in fault


def test_a_redis_that_counts_wrongly_since_its_restart_is_not_believed(audit, drain, client, redis_server):
    send(redis_server.url, journal.make_batch())
    drain()
    client.bgrewriteaof()  # what the group has read stands in the new base alone, not in what is added to it
    journal.until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], "the AOF to be written anew")
    send(redis_server.url, *(journal.make_batch() for _ in range(3)))
    drain()
    assert audit().stream.faults == ()
    redis_server.stop()
    redis_server.start()
    report = audit()
    assert report.stream.faults == () and gaps(report) == {}
    assert not report.stream.lag  # 7.0 says 3; 6.2 does not say


def test_a_stream_without_its_group_is_found(audit, client, redis_url):
    send(redis_url, journal.make_batch())
    client.xgroup_destroy(stream.STREAM, stream.GROUP)
    assert any("no group" in fault for fault in audit().stream.faults)


@pytest.mark.parametrize("statement, expected", [
    ("DELETE FROM log_events WHERE message = 'event 1'", {"rows": 2}),
    ("INSERT INTO log_events SELECT * FROM log_events WHERE message = 'event 1'", {"rows": -2}),
    ("DELETE FROM log_batches WHERE event_count = 4", {"ledger": 4, "rows": -4}),
    ("UPDATE log_batches SET dead_events = '{1}' WHERE event_count = 4", {"rows": -1, "dead": 1}),
])
def test_what_somebody_changes_in_postgresql_is_found(
    statement, expected, audit, drain, client, redis_url, database_url
):
    send(redis_url, journal.make_batch(count=3), journal.make_batch(count=4))
    drain()
    assert_balanced(audit())
    execute(database_url, statement)
    assert gaps(audit()) == expected


def test_an_entry_that_is_released_without_having_been_loaded_is_found(audit, client, redis_url):
    send(redis_url, journal.make_batch())
    inbox = Inbox(client, "consumer-00", 1 << 20)
    inbox.ack([(entry, count.LOADED) for entry in inbox.read()])
    assert gaps(audit()) == {"ledger": 3}


def test_a_lone_event_that_is_released_without_having_been_loaded_is_found(
    audit, drain, client, redis_url
):
    send(redis_url, journal.bad_at(journal.make_batch(count=10), 3))
    drain()
    Letterbox(client).replay_matching(Filter(), Report())
    assert_balanced(audit())
    inbox = Inbox(client, "consumer-00", 1 << 20)
    inbox.ack([(entry, count.RETURNED) for entry in inbox.read()])
    assert gaps(audit()) == {"dead": 1}


def test_a_letter_that_is_deleted_by_hand_is_found(audit, drain, client, redis_url):
    send(redis_url, journal.bad_at(journal.make_batch(count=10), 3), journal.bad_at(journal.make_batch(count=2), 0, 1))
    drain()
    for letter_id, fields in client.xrange(stream.DEAD_LETTERS):
        if b"event_index" not in fields:
            client.xdel(stream.DEAD_LETTERS, letter_id)
    assert gaps(audit()) == {"letters": 2}
    client.delete(stream.DEAD_LETTERS)
    assert gaps(audit()) == {"letters": 3, "dead": 1}


@pytest.mark.parametrize("kind, change, expected", [
    ("added", 1, {"stream": 1}), ("added", -1, {"stream": -1}), ("loaded", -1, {"stream": 1, "ledger": -1}),
])
def test_a_count_that_is_altered_is_found(kind, change, expected, audit, drain, client, redis_url):
    one = journal.make_batch()
    send(redis_url, one)
    drain()
    client.hincrby(count.KEY, f"{count.minute_of(one)}:{kind}", change)
    assert gaps(audit()) == expected


def test_an_entry_that_is_written_past_the_service_is_found(audit, drain, client):
    send_raw(client, journal.make_batch())
    assert gaps(audit()) == {"stream": -3}
    drain()
    assert gaps(audit()) == {"stream": -3}


def test_a_redis_that_lost_everything_is_told_by_what_the_ledger_knows(audit, drain, client, redis_url):
    send(redis_url, journal.make_batch(), journal.make_batch())
    drain()
    send(redis_url, journal.make_batch("never to be seen again"))
    client.flushall()
    finding, = audit().findings
    assert (finding.gap.check, finding.gap.events) == ("ledger", -6)
    assert "Redis has lost counts" in finding.gap.text


def test_a_server_that_is_away_is_no_gap(audit, client, redis_server, postgres_server):
    postgres_server.stop()
    with pytest.raises(NotReady, match="PostgreSQL"):
        audit()
    postgres_server.start()
    redis_server.stop()
    with pytest.raises(NotReady, match="Redis"):
        audit()


# Looking on and on


def test_news_are_read_until_they_balance_and_again_when_their_counts_change(
    drain, client, redis_url, database_url
):
    old = aged(minutes=-5)
    send(redis_url, old)
    drain()
    asked = []

    class Watched(Census):
        def _ask(self, minutes, buckets):
            asked.append(minutes)
            super()._ask(minutes, buckets)

    one = Auditor(Watched(client, database_url, 60), lambda _: None)
    for _ in range(2):
        assert one.audit_news(datetime.now(UTC) - HOUR).is_balanced
    assert count.minute_of(old) in asked[0] and count.minute_of(old) not in asked[-1]
    assert len(asked[0]) > 50 and len(asked[-1]) < 10
    execute(database_url, "DELETE FROM log_events")
    assert one.audit_news(datetime.now(UTC) - HOUR).is_balanced, "that is for `spillway audit` to find"
    send(redis_url, old)
    drain()
    assert gaps(one.audit_news(datetime.now(UTC) - HOUR)) == {"rows": 3}
    assert gaps(one.audit_news(datetime.now(UTC) - HOUR)) == {"rows": 3}, "until it is mended"


def aged(text="event", **offset):
    """Returns a batch that was received at another time."""
    one, at = journal.make_batch(text), f"{datetime.now(UTC) + timedelta(**offset):%Y-%m-%dT%H:%M:%S.%fZ}"
    payload = one.payload.replace(one.received_at.encode(), at.encode())
    return msgspec.structs.replace(one, received_at=at, payload=payload)


def test_old_counts_are_taken_away_once_nothing_of_their_minutes_is_left(audit, drain, client, redis_url, caplog):
    batches = {name: aged(name, days=-10, minutes=number) for number, name in enumerate(("loaded", "lost", "letter"))}
    send(redis_url, *batches.values(), journal.make_batch("new"))
    lost, = [entry_id for entry_id, fields in client.xrange(stream.STREAM) if b"lost 0" in fields[b"payload"]]
    client.xdel(stream.STREAM, lost)
    inbox = Inbox(client, "consumer-00", 1 << 20)
    for entry in inbox.read():
        if entry.batch == batches["letter"]:
            inbox.bury(entry.entry_id, Death(dead_letter.SINK, "", "", 1, AT, AT, "consumer-00"))
    limit = datetime.now(UTC) - timedelta(days=7)
    assert auditor.prune(client, audit(), limit) == 1, "one is still in the stream"
    drain()
    report = audit()
    assert auditor.prune(client, report, limit) == 1
    assert caplog.text.count("audit_gap_pruned") == 1
    left = count.read(client.hgetall(count.KEY))
    assert {minute for minute in left if minute < f"{limit:%Y-%m-%dT%H:%M}"} == {count.minute_of(batches["letter"])}
    assert client.hget(count.KEY, count.PRUNED).decode() == f"{limit:%Y-%m-%dT%H:%M}"
    Letterbox(client).replay_matching(Filter(), Report())
    send(redis_url, batches["loaded"])
    drain()
    assert_balanced(audit())


def test_counts_that_move_while_they_are_pruned_stay(audit, drain, client, redis_url):
    old = aged(days=-10)
    send(redis_url, old)
    drain()
    report = audit()
    send(redis_url, old)
    assert auditor.prune(client, report, datetime.now(UTC) - timedelta(days=7)) == 0
    drain()
    assert_balanced(audit())


@pytest.fixture
def pruned(audit, drain, client, redis_url):
    """Batches whose counts were taken away, but for those of one that has its letter still."""
    batches = {name: aged(name, days=-10, minutes=number) for number, name in enumerate(("loaded", "other", "letter"))}
    send(redis_url, batches["letter"])
    inbox = Inbox(client, "consumer-00", 1 << 20)
    for entry in inbox.read():
        inbox.bury(entry.entry_id, Death(dead_letter.SINK, "", "", 1, AT, AT, "consumer-00"))
    send(redis_url, batches["loaded"], batches["other"])
    drain()
    assert auditor.prune(client, audit(), datetime.now(UTC) - timedelta(days=7)) == 2
    return batches


@pytest.fixture
def audit_all(client, database_url):
    """Audits as `spillway audit --since 11d` does."""
    one = Auditor(Census(client, database_url, 60), lambda _: None)
    return lambda: one.audit(datetime.now(UTC) - timedelta(days=11))


def test_minutes_whose_counts_were_taken_away_are_judged_by_their_rows_alone(pruned, audit_all, database_url):
    assert_balanced(audit_all())
    execute(database_url, "DELETE FROM log_events WHERE message = 'other 1'")
    report = audit_all()
    assert gaps(report) == {"rows": 1} and report.findings[0].minute == count.minute_of(pruned["other"])


def test_what_comes_of_a_minute_after_its_counts_were_taken_away_balances_at_every_stage(
    pruned, audit_all, drain, client, redis_url
):
    first = aged("first", days=-10, minutes=3)  # of a WAL that was found: its minute has never been counted
    send(redis_url, pruned["loaded"], first)
    assert_balanced(audit_all())
    Inbox(client, "consumer-00", 1 << 20).read()
    assert_balanced(audit_all())
    drain()
    assert_balanced(audit_all())
    Letterbox(client).replay_matching(Filter(), Report())
    assert_balanced(audit_all())
    drain()
    assert_balanced(audit_all())
    assert audit_all().buckets[count.minute_of(first)].rows == first.count


def test_a_letter_of_a_minute_before_the_last_pruning_that_is_deleted_by_hand_is_found(pruned, audit_all, client):
    client.delete(stream.DEAD_LETTERS)
    assert gaps(audit_all()) == {"letters": 3}


def test_the_command_says_from_when_on_there_are_counts(pruned, command):
    limit = f"{datetime.now(UTC) - timedelta(days=7):%Y-%m-%d %H:}"
    shown = command.spillway("audit", "--since", "11d").stdout
    assert f"Counts of minutes before {limit}" in shown and "BALANCED: every event is accounted for." in shown
    document = json.loads(command.spillway("audit", "--json", "--since", "11d").stdout)
    assert document["balanced"] and document["pruned"].startswith(limit.replace(" ", "T"))
    assert "Counts of minutes before" not in command.spillway("audit").stdout


class Load:
    """Real consumers, of which any may be killed, and clients that post each body twice through a real edge."""

    def __init__(self, redis_url, database_url, directory):
        self._environ = {
            "REDIS_URL": redis_url, "DATABASE_URL": database_url, "SPILLWAY_PARTITION_DAYS": "1",
            "SPILLWAY_SINK_TIMEOUT_S": "1", "SPILLWAY_CLAIM_IDLE_S": "2",
        }
        self.statuses = []
        self._stop = threading.Event()
        self._edge = Edge(redis_url, directory)
        self._consumers = [self._consumer(number) for number in range(2)]
        self._threads = [threading.Thread(target=self._post, args=(number,)) for number in range(4)]
        for thread in self._threads:
            thread.start()

    def kill_one(self, number):
        os.kill(self._consumers[number].pid, signal.SIGKILL)
        self._consumers[number].wait()
        self._consumers[number] = self._consumer(number)

    def end_posts(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._edge.stop()

    def end(self):
        for process in self._consumers:
            process.terminate()
            process.wait(30)

    def _consumer(self, number):
        return journal.start("-m", "workers.consumer", SPILLWAY_CONSUMER_NAME=f"consumer-0{number}", **self._environ)

    def _post(self, thread):
        number = 0
        while not self._stop.is_set():
            number += 1
            text = "\n".join(f"event {index}" for index in range(1 + number // 2 % 40)).encode()
            answer = self._edge.post(text, "text/plain", Idempotency_Key=f"{thread} {number // 2}")
            self.statuses.append(answer.status)


def test_under_load_with_consumers_killed_no_look_is_a_false_alarm_and_at_the_end_all_of_it_balances(
    client, redis_url, database_url, tmp_path
):
    census = Census(client, database_url, 60)
    one, watching = (Auditor(census, lambda _: None) for _ in range(2))
    load, looks, still = Load(redis_url, database_url, tmp_path), 0, 0
    ends_at = time.monotonic() + 20
    try:
        while time.monotonic() < ends_at:
            for look in (one.audit, watching.audit_news):
                report = look(datetime.now(UTC) - HOUR)
                assert report.is_balanced, (report.findings, report.stream)
                looks += 1
                still += not report.moving
            if looks % 20 == 0:
                load.kill_one(looks // 20 % 2)
        load.end_posts()
        journal.until(lambda: client.xlen(stream.STREAM) == 0, "all to be released")
        assert_balanced(one.audit(datetime.now(UTC) - HOUR))
    finally:
        load.end_posts()
        load.end()
    found = counts(client)
    print(f"{looks} looks at {len(load.statuses)} posts, in {still} of which nothing moved: {found}")
    assert set(load.statuses) == {202} and looks > 20
    assert found["added"] == found["loaded"] + found["duplicate"] and found["duplicate"]


# The command


@pytest.fixture
def command(redis_url, database_url, tmp_path):
    """`spillway audit` on the servers of the test."""
    running = RunningStack(tmp_path / "var", {"REDIS_URL": redis_url, "DATABASE_URL": database_url})
    running.state.mkdir()
    return running


def test_the_command_says_for_people_and_programs_whether_it_balances(command, client, drain, redis_url, database_url):
    send(redis_url, journal.make_batch(), journal.make_batch())
    drain()
    shown = command.spillway("audit").stdout
    assert "BALANCED: every event is accounted for." in shown and " 6  added to the stream" in shown
    assert "NOT" not in shown
    execute(database_url, "DELETE FROM log_events WHERE message = 'event 1'")
    shown = command.spillway("audit", "--since", "2h", status=1).stdout
    assert "NOT BALANCED: 2 events in 1 minute" in shown and "log_events has lost rows" in shown
    document = json.loads(command.spillway("audit", "--json", status=1).stdout)
    assert (document["balanced"], document["gap_events"]) == (False, 2)
    assert [(found["check"], found["events"]) for found in document["unbalanced"]] == [("rows", 2)]
    assert document["totals"]["added"] == 6 and document["totals"]["rows"] == 4
    assert "NOT" in command.spillway("audit", "--wait", "1", status=1).stdout


def test_the_command_counts_what_is_in_the_wal(command, redis_url):
    edge_dir = command.state.parent / "edge"
    edge_dir.mkdir()
    edge = Edge(redis_url, edge_dir, SPILLWAY_WAL="always", SPILLWAY_WAL_DIR=str(command.state / "wal"))
    try:
        assert edge.post(b"one\ntwo", "text/plain").document["durability"] == "wal"
        document = json.loads(command.spillway("audit", "--json").stdout)
        assert document["totals"]["wal"] == 2 and document["wal_damage"] == []
    finally:
        edge.stop()


def test_the_command_tells_a_server_that_is_away_from_a_gap(command, redis_url):
    command.environ["DATABASE_URL"] = f"postgresql://nobody@127.0.0.1:{pick_port()}/none"
    assert "nothing can be said" in command.spillway("audit", status=os.EX_TEMPFAIL).stderr
    command.spillway("audit", "--since", "yesterday", status=2)
    del command.environ["DATABASE_URL"]
    assert "DATABASE_URL" in command.spillway("audit", status=os.EX_CONFIG).stderr
