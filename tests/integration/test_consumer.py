"""The consumer on real servers: what it reads, in which order, what it does with duplicates and with servers away."""

import os
import signal
import threading
import time
import tracemalloc

import msgspec
import psycopg2
import pytest
import redis
from prometheus_client import REGISTRY

from app import batch, count, stream
from app.errors import StreamUnavailable
from tests import journal
from workers import script
from workers.inbox import MAX_ENTRIES, Inbox


@pytest.fixture
def client(redis_url):
    client = redis.Redis.from_url(redis_url)
    stream.ensure_group(client)
    return client


def one_row(database_url, query):
    with psycopg2.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
    connection.close()
    return row


def test_batches_become_rows_with_a_ledger_row_each_and_leave_the_stream(client, redis_url, database_url):
    batches = [journal.make_batch(f"batch {number}", count=number + 1) for number in range(4)]
    journal.append(client, *batches)
    journal.drain(redis_url, database_url)
    expected = {one.batch_id: journal.messages(one, f"batch {number}") for number, one in enumerate(batches)}
    assert journal.stored(database_url) == expected
    assert one_row(database_url, "SELECT count(*), sum(event_count) FROM log_batches") == (4, 10)
    assert client.xlen(stream.STREAM) == 0
    assert client.xpending(stream.STREAM, stream.GROUP)["pending"] == 0


def test_copies_of_a_batch_are_stored_once_within_a_load_and_across_loads(client, redis_url, database_url):
    one = journal.make_batch()
    journal.append(client, one, one, one)
    journal.drain(redis_url, database_url)
    journal.append(client, one)
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == {one.batch_id: journal.messages(one)}


@pytest.mark.parametrize("is_one_load", [True, False])
def test_a_key_that_comes_back_with_another_body_is_buried_not_swallowed(
    is_one_load, client, redis_url, database_url
):
    first, second = journal.make_batch("first", key="k"), journal.make_batch("second", key="k")
    journal.append(client, first)
    if not is_one_load:
        journal.drain(redis_url, database_url)
    journal.append(client, second)
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == {first.batch_id: journal.messages(first, "first")}
    (_, letter), = client.xrange(stream.DEAD_LETTERS)
    assert letter[b"reason"] == b"idempotency_conflict" and stream.batch_of(letter) == second


def test_consumers_racing_for_copies_of_the_same_batches_store_each_once(client, redis_url, database_url):
    batches = [journal.make_batch(f"batch {number}") for number in range(20)]
    for _ in range(4):
        journal.append(client, *batches)
    threads = [
        threading.Thread(target=journal.drain, args=(redis_url, database_url, f"consumer-{number}"))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(journal.stored(database_url)) == sorted(one.batch_id for one in batches)
    assert one_row(database_url, "SELECT count(*) FROM log_events") == (60,)


def test_a_restarted_consumer_takes_its_own_pending_entries_first(client, redis_url):
    old, new = journal.append(client, journal.make_batch("old"), journal.make_batch("new"))
    client.xreadgroup(stream.GROUP, "consumer-00", {stream.STREAM: ">"}, count=1)
    inbox = Inbox(client, "consumer-00", 1)
    assert [[entry.entry_id for entry in inbox.read()] for _ in range(2)] == [[old], [new]]


def test_entries_that_a_lost_connection_has_taken_in_its_name_are_found_without_a_restart(
    client, redis_url, database_url
):
    # The network may deliver a read after its sender has given it up: entries are pending, and nobody has seen them.
    process = start_consumer(redis_url, database_url)
    try:
        first, second = journal.make_batch("first"), journal.make_batch("second")
        journal.append(client, first)
        journal.until(lambda: first.batch_id in journal.stored(database_url), "the consumer to be at work")
        taken = []
        while not taken:
            journal.append(client, second)
            taken = client.xreadgroup(stream.GROUP, "consumer-00", {stream.STREAM: ">"})
        third = journal.make_batch("third")
        journal.append(client, third)
        journal.until(lambda: third.batch_id in journal.stored(database_url), "newer entries to be stored")
        journal.until(lambda: client.xlen(stream.STREAM) == 0, "the taken entries to be found")
        assert second.batch_id in journal.stored(database_url)
    finally:
        stop(process)


def test_a_read_takes_no_further_entry_once_its_bytes_are_spent(client):
    ids = journal.append(client, *(journal.make_batch("x" * 1000, count=100) for _ in range(30)))
    inbox = Inbox(client, "consumer-00", 300_000)
    reads = []
    while sum(map(len, reads)) < len(ids):
        reads.append([entry.entry_id for entry in inbox.read()])
    assert [entry_id for read in reads for entry_id in read] == ids
    assert max(map(len, reads)) <= 3


def test_no_call_keeps_redis_from_others_for_long_however_many_entries_wait(client):
    ids = journal.append(client, *(journal.make_batch(count=1) for _ in range(MAX_ENTRIES + 700)))
    for _ in range(2):  # new to the consumer, and then its own of before
        inbox = Inbox(client, "consumer-00", 1 << 30)
        first, first_calls = called(client, inbox.read)
        second, _ = called(client, inbox.read)
        assert [entry.entry_id for entry in first + second] == ids
        assert len(first) == MAX_ENTRIES and len(first) / first_calls <= 500
    kept, calls = called(client, lambda: inbox.keep(first))
    assert [entry.entry_id for entry in kept] == ids[:MAX_ENTRIES] and len(kept) / calls <= 500
    assert inbox.read_more(first) == []
    _, calls = called(client, lambda: inbox.ack([(entry, count.LOADED) for entry in reversed(first)]))
    assert len(first) / calls <= 500
    assert [entry_id for entry_id, _ in client.xrange(stream.STREAM)] == ids[MAX_ENTRIES:]
    kinds, = count.read(client.hgetall(count.KEY)).values()
    assert kinds == {count.LOADED: MAX_ENTRIES}


def test_a_release_that_ends_half_way_is_done_again_and_counted_once(client, redis_url, database_url, monkeypatch):
    batches = [journal.make_batch(count=1) for _ in range(700)]
    journal.append(client, *batches)
    consumer = journal.make_consumer(redis_url, database_url)
    run, releases = Inbox._run, []

    def run_once(self, text, *arguments):
        if text == script.RELEASE:
            releases.append(text)
            if len(releases) == 2:
                raise StreamUnavailable("connect", "gone")
        return run(self, text, *arguments)

    monkeypatch.setattr(Inbox, "_run", run_once)
    with pytest.raises(StreamUnavailable):
        consumer.step()
    assert client.xlen(stream.STREAM) == 200
    consumer.step()
    assert client.xlen(stream.STREAM) == 0
    assert journal.stored(database_url) == {one.batch_id: journal.messages(one) for one in batches}
    kinds, = count.read(client.hgetall(count.KEY)).values()
    assert kinds == {count.LOADED: len(batches)}


def called(client, function):
    """Returns what a function does, and in how many calls of scripts."""
    before = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
    found = function()
    return found, client.info("commandstats")["cmdstat_evalsha"]["calls"] - before


def test_memory_is_bounded_by_bytes_whatever_the_size_of_the_entries(client):
    journal.append(client, *(journal.make_batch("small", count=1) for _ in range(500)))
    journal.append(client, *(journal.make_batch("x" * 1000, count=4000) for _ in range(16)))
    inbox = Inbox(client, "consumer-00", 1 << 20)
    inbox.read()
    tracemalloc.start()
    for _ in range(20):
        inbox.read()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 40 << 20  # sixteen such entries are 70 MB


def test_an_entry_that_is_no_batch_is_buried_and_the_others_are_loaded(client, redis_url, database_url):
    one = journal.make_batch()
    client.xadd(stream.STREAM, {"hello": "world"})
    client.xadd(stream.STREAM, dict(zip(*[iter(stream.fields_of(one))] * 2)) | {"batch_id": "'; DROP TABLE"})
    journal.append(client, one)
    journal.drain(redis_url, database_url)
    assert journal.stored(database_url) == {one.batch_id: journal.messages(one)}
    assert [letter[b"reason"] for _, letter in client.xrange(stream.DEAD_LETTERS)] == [b"not_an_entry"] * 2


@pytest.mark.parametrize("fields", [
    {"event_index": "1"}, {"batch_id": "x", "event_index": "no"}, {b"\xff": b"\0"},
    {f"field {number}": "value" for number in range(5000)},
])
def test_whatever_somebody_else_writes_into_the_stream_is_buried_and_stops_nobody(
    fields, client, redis_url, database_url
):
    client.xadd(stream.STREAM, fields)
    one = journal.make_batch()
    journal.append(client, one)
    journal.drain(redis_url, database_url)
    assert list(journal.stored(database_url)) == [one.batch_id]
    (_, letter), = client.xrange(stream.DEAD_LETTERS)
    assert letter[b"reason"] == b"not_an_entry"
    assert set(letter) >= {name if isinstance(name, bytes) else name.encode() for name in list(fields)[:3000]}


def test_a_pending_entry_that_somebody_deleted_is_reported_and_does_not_block(
    client, redis_url, database_url, caplog
):
    gone, kept = journal.make_batch("gone"), journal.make_batch("kept")
    entry_id, _ = journal.append(client, gone, kept)
    client.xreadgroup(stream.GROUP, "consumer-00", {stream.STREAM: ">"})
    client.xdel(stream.STREAM, entry_id)
    journal.drain(redis_url, database_url)
    assert list(journal.stored(database_url)) == [kept.batch_id]
    assert "entries_lost" in caplog.text
    assert client.xpending(stream.STREAM, stream.GROUP)["pending"] == 0


def newer(one):
    return msgspec.structs.replace(one, version=batch.FORMAT + 1)


def test_batches_of_a_newer_format_hold_nobody_and_are_neither_buried_nor_read_again_and_again(
    client, redis_url, database_url, caplog
):
    batches = [journal.make_batch() for _ in range(20)]
    strange = [newer(journal.make_batch()) for _ in range(20)]
    ids = journal.append(client, *(one for pair in zip(strange, batches) for one in pair))[::2]
    # The idle time is the shortest: whatever an old consumer would take over again, it does.
    consumer = journal.make_consumer(redis_url, database_url, claim_idle_s=2, sink_timeout_s=1)
    journal.until(lambda: (consumer.step(), len(journal.stored(database_url)) == 20)[1], "the others to be stored")
    before = client.info("commandstats")["cmdstat_xreadgroup"]["calls"]
    journal.until(lambda: (consumer.step(), gauge("ingest_strange_entries") == 20)[1], "it to look back")
    ends_at = time.monotonic() + 5
    rounds = 0
    while time.monotonic() < ends_at:
        assert consumer.step() == 0
        rounds += 1
    # A look back costs one, and so does waiting; none is for the strangers.
    assert client.info("commandstats")["cmdstat_xreadgroup"]["calls"] - before <= 3 * rounds + 10
    rows = client.xpending_range(stream.STREAM, stream.GROUP, "-", "+", 100)
    assert [(row["message_id"], row["consumer"]) for row in rows] == [(one, b"format-2") for one in ids]
    assert client.xlen(stream.DEAD_LETTERS) == 0 and caplog.text.count("strange_format") == 1


def test_a_consumer_that_knows_a_newer_format_takes_over_what_waits_for_it(
    client, redis_url, database_url, monkeypatch
):
    strange = [newer(journal.make_batch()) for _ in range(150)]
    orphan = journal.make_batch()
    journal.append(client, *strange, orphan)
    old = journal.make_consumer(redis_url, database_url, claim_idle_s=2, sink_timeout_s=1)
    old.step()
    client.xreadgroup(stream.GROUP, "gone", {stream.STREAM: ">"})
    journal.until(lambda: (old.step(), len(journal.stored(database_url)) == 1)[1], "what is behind them to be stored")
    for module in ("workers.consumer", "workers.takeover", "workers.loader"):
        monkeypatch.setattr(f"{module}.FORMAT", batch.FORMAT + 1)
    young = journal.make_consumer(redis_url, database_url, "young", claim_idle_s=2, sink_timeout_s=1)
    journal.until(lambda: (young.step(), client.xlen(stream.STREAM) == 0)[1], "it to take them over")
    assert len(journal.stored(database_url)) == 151 and client.xlen(stream.DEAD_LETTERS) == 0


def gauge(name):
    return REGISTRY.get_sample_value(name)


def test_events_go_to_the_partition_of_their_day_and_strange_days_to_the_default(client, redis_url, database_url):
    one = journal.make_batch(count=1)
    now_row = one.payload
    far_row = now_row.replace(b"\t0\t20", b"\t0\t21", 1)
    journal.append(client, one, batch.Batch(batch.new_id(), 1, one.sha256, one.received_at, far_row))
    journal.drain(redis_url, database_url)
    places = "SELECT array_agg(DISTINCT tableoid::regclass::text ORDER BY tableoid::regclass::text) FROM log_events"
    today = "SELECT 'log_events_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')"
    assert one_row(database_url, places)[0] == [one_row(database_url, today)[0], "log_events_default"]


def test_eight_consumers_that_start_at_once_on_an_empty_database_make_one_schema(client, database_url, redis_url):
    processes = [start_consumer(redis_url, database_url, f"consumer-{number}") for number in range(8)]
    try:
        made = "SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass('log_events')"
        connected = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'spillway consumer-_'"
        journal.until(lambda: one_row(database_url, made)[0] >= 4, "the partitions")
        journal.until(lambda: one_row(database_url, connected)[0] == 8, "all of them to be connected")
        assert all(process.poll() is None for process in processes)
    finally:
        stop(*processes)


def start_consumer(redis_url, database_url, name="consumer-00", log=None):
    return journal.start("-m", "workers.consumer", log=log, REDIS_URL=redis_url, DATABASE_URL=database_url,
                         SPILLWAY_CONSUMER_NAME=name)


def stop(*processes):
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(timeout=30) for process in processes] == [0] * len(processes)


def test_after_flushall_the_group_is_made_again_and_nothing_new_is_missed(client, redis_url, database_url, tmp_path):
    process = start_consumer(redis_url, database_url, log=tmp_path / "log")
    try:
        first = journal.make_batch("first")
        journal.append(client, first)
        journal.until(lambda: client.xlen(stream.STREAM) == 0, "the first batch to be loaded")
        client.flushall()
        second = journal.make_batch("second")
        journal.append(client, second)
        journal.until(lambda: second.batch_id in journal.stored(database_url), "the second batch to be stored")
        assert b"group_created" in (tmp_path / "log").read_bytes()
    finally:
        stop(process)


def test_a_consumer_waits_for_both_servers_and_goes_on_when_they_are_back(
    client, redis_url, database_url, redis_server, postgres_server, tmp_path
):
    process = start_consumer(redis_url, database_url, log=tmp_path / "log")
    try:
        for server, words in ((postgres_server, b"load_failed"), (redis_server, b"redis_unavailable")):
            one = journal.make_batch(words.decode())
            server.stop()
            try:
                if server is postgres_server:
                    journal.append(client, one)
                journal.until(lambda: words in (tmp_path / "log").read_bytes(), "the consumer to say so")
            finally:
                server.start()
            if server is redis_server:
                journal.append(redis.Redis.from_url(redis_url), one)
            journal.until(lambda: one.batch_id in journal.stored(database_url), "the batch to be stored")
            assert process.poll() is None
    finally:
        stop(process)


def test_sigterm_lets_the_load_at_hand_finish(client, redis_url, database_url):
    batches = [journal.make_batch(f"batch {number}", count=1000) for number in range(50)]
    process = start_consumer(redis_url, database_url)
    journal.append(client, *batches)
    journal.until(lambda: client.xlen(stream.STREAM) < 50, "the load to begin")
    stop(process)
    assert client.xpending(stream.STREAM, stream.GROUP)["pending"] == 0
    journal.drain(redis_url, database_url)
    assert one_row(database_url, "SELECT count(*) FROM log_events") == (50_000,)


def test_a_consumer_without_its_settings_says_which_and_exits_with_78():
    process = journal.start("-m", "workers.consumer", REDIS_URL="", DATABASE_URL="")
    assert process.wait(timeout=30) == os.EX_CONFIG
