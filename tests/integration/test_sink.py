"""The sink away, slow, stopped or closed to us: real consumer processes on a real PostgreSQL, each event once after."""

import signal
import tempfile
import threading
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psycopg2
import pytest

from app import dead_letter, stream
from ops.postgres_server import PostgresServer
from ops.proxy import proxied
from tests import journal
from tests.conftest import Server, execute, pick_port, postgres_answers
from tests.journal import until
from tests.machine import tmpfs
from tests.sink import check_stored_once, is_drained, letters, make_tables

QUICK = {"SPILLWAY_SINK_TIMEOUT_S": "1", "SPILLWAY_CLAIM_IDLE_S": "3"}
HOLD = {"SPILLWAY_SINK_POLICY": "hold", "SPILLWAY_SINK_RETRIES": "1"}


def test_an_outage_longer_than_the_retries_moves_batches_to_the_dead_letters_from_where_they_are_replayed(
    client, consumer, redis_url, database_url, postgres_server
):
    process = consumer(SPILLWAY_SINK_RETRIES="6")
    before = journal.make_batch()
    journal.append(client, before)
    until(lambda: is_drained(client), "the consumer to be at work")
    postgres_server.stop()
    first = [journal.make_batch() for _ in range(5)]
    journal.append(client, *first)
    until(lambda: len(letters(client)) == 5, "the retries to be used up")
    more = [journal.make_batch() for _ in range(5)]
    for one in more:  # for longer than the consumer goes without looking back at what it has
        journal.append(client, one)
        until(lambda: is_drained(client), "the stream to go on being acknowledged")
        looked_back_at = time.monotonic() + 0.6
        until(lambda: time.monotonic() > looked_back_at, "time to pass")
    assert process.has_logged("load_failed", "attempt=6", "next_try_s", "moving_to_dead_letters", stream.DEAD_LETTERS)
    found = letters(client)
    assert {letter.death.reason for letter in found} == {dead_letter.SINK}
    assert [letter.batch for letter in found] == first + more and is_drained(client)
    assert found[0].death.attempts == 7 and found[0].death.first_failed_at < found[0].death.last_failed_at
    postgres_server.start()
    after = journal.make_batch()
    journal.append(client, after)
    until(lambda: after.batch_id in journal.stored(database_url), "new batches to be stored")
    assert len(letters(client)) == 10
    for _ in range(2):
        journal.append(client, *(dead_letter.to_replay(letter) for letter in found))
    until(lambda: is_drained(client), "the replay to be loaded")
    check_stored_once(database_url, [before, *first, *more, after])


def test_with_hold_an_outage_leaves_everything_pending_and_nothing_in_the_dead_letters(
    client, consumer, database_url, postgres_server
):
    process = consumer(**HOLD)
    batches = [journal.make_batch() for _ in range(3)]
    postgres_server.stop()
    journal.append(client, *batches[:1])
    until(lambda: process.has_logged("attempt=5", "policy=hold"), "many attempts")
    journal.append(client, *batches[1:])
    until(lambda: client.xpending(stream.STREAM, stream.GROUP)["pending"] == 3, "more to be read while it waits")
    postgres_server.start()
    until(lambda: is_drained(client), "all to be stored")
    check_stored_once(database_url, batches)
    assert letters(client) == [] and process.has_logged("servers_available")


def superuser(database_url):
    return database_url.replace("://spillway:", "://postgres:", 1)


def test_full_dead_letters_make_the_consumer_hold_and_do_not_keep_new_batches_out_when_the_sink_is_back(
    client, consumer, database_url, postgres_server
):
    process = consumer(SPILLWAY_SINK_RETRIES="0", SPILLWAY_DEAD_LETTERS_MAX_BYTES="100000")
    postgres_server.stop()
    batches = [journal.make_batch("x" * 1000, count=20) for _ in range(20)]
    for one in batches:
        journal.append(client, one)
        until(lambda: is_drained(client) or process.has_logged("dead_letters_full"), "it to be buried, or held")
    buried = [letter.batch.batch_id for letter in letters(client)]
    assert 1 <= len(buried) < 20 and client.xlen(stream.STREAM) == 20 - len(buried)
    postgres_server.start()
    until(lambda: is_drained(client), "what was held to be stored")
    assert sorted(journal.stored(database_url)) == sorted(
        one.batch_id for one in batches if one.batch_id not in buried
    )


@contextmanager
def refused_login(database_url):
    execute(superuser(database_url), "ALTER ROLE sink NOLOGIN")
    yield
    execute(superuser(database_url), "ALTER ROLE sink LOGIN")


@contextmanager
def no_table(database_url):
    execute(database_url, "ALTER TABLE log_events RENAME TO aside")
    yield
    execute(database_url, "ALTER TABLE aside RENAME TO log_events")


@contextmanager
def no_column(database_url):
    execute(database_url, "ALTER TABLE log_events RENAME host TO aside")
    yield
    execute(database_url, "ALTER TABLE log_events RENAME aside TO host")


@contextmanager
def no_partition(database_url):
    execute(database_url, "ALTER TABLE log_events DETACH PARTITION log_events_default")
    execute(database_url, "DO $$ DECLARE name text; BEGIN FOR name IN SELECT inhrelid::regclass FROM pg_inherits WHERE"
                          " inhparent = 'log_events'::regclass LOOP EXECUTE 'DROP TABLE ' || name; END LOOP; END $$")
    yield
    execute(database_url, "ALTER TABLE log_events ATTACH PARTITION log_events_default DEFAULT")


@contextmanager
def no_permission(database_url):
    execute(database_url, "REVOKE INSERT ON log_events FROM sink")
    yield
    execute(database_url, "GRANT INSERT ON log_events TO sink")


@pytest.mark.parametrize("fault", [refused_login, no_table, no_column, no_partition, no_permission])
def test_what_an_operator_has_to_mend_is_held_whatever_the_policy_and_said(
    fault, client, consumer, redis_url, database_url
):
    make_tables(redis_url, database_url)
    execute(superuser(database_url), "CREATE ROLE sink LOGIN PASSWORD 'sink'")
    execute(database_url, "GRANT ALL ON ALL TABLES IN SCHEMA public TO sink")
    parts = database_url.partition("://")[2].partition("@")[2]
    batches = [journal.make_batch() for _ in range(3)]
    with fault(database_url):
        process = consumer(url=f"postgresql://sink:sink@{parts}", SPILLWAY_SINK_RETRIES="0")
        journal.append(client, *batches)
        until(lambda: process.has_logged("load_held", "attempt=4", "an operator mends it"), "it to say so")
        assert letters(client) == [] and client.xlen(stream.STREAM) == 3
    until(lambda: is_drained(client), "all to be stored")
    check_stored_once(database_url, batches)
    process.terminate()
    assert process.wait(30) == 0
    execute(superuser(database_url), "DROP OWNED BY sink; DROP ROLE sink")


def test_a_read_only_server_is_tried_until_it_takes_writes(client, consumer, redis_url, database_url):
    make_tables(redis_url, database_url)
    name = database_url.rpartition("/")[2]
    execute(database_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    process = consumer(**HOLD)
    one = journal.make_batch()
    journal.append(client, one)
    until(lambda: process.has_logged("load_failed", "attempt=3"), "some attempts")
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SET transaction_read_only = off")
        cursor.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        connection.commit()
    until(lambda: is_drained(client), "it to be stored")
    check_stored_once(database_url, [one])


def test_a_lock_that_somebody_holds_is_waited_for_again_and_again(client, consumer, redis_url, database_url):
    make_tables(redis_url, database_url)
    one = journal.make_batch()
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE log_events")
        process = consumer(**QUICK, **HOLD)
        journal.append(client, one)
        until(lambda: process.has_logged("load_failed", "attempt=3"), "some attempts")
        connection.rollback()
    until(lambda: is_drained(client), "it to be stored")
    check_stored_once(database_url, [one])
    assert letters(client) == []


@pytest.fixture
def small_postgres():
    """A PostgreSQL on a small disk of its own, and what fills that."""
    place = Path(tempfile.mkdtemp(prefix="sp"))
    try:
        with tmpfs(place, "192m"):
            server = Server(PostgresServer(place, pick_port()), postgres_answers, signal.SIGINT, place / "log")
            server.start()
            try:
                yield server.url, place / "filler"
            finally:
                server.stop()
    finally:
        place.rmdir()


def test_a_full_disk_under_postgresql_is_waited_out(client, consumer, redis_url, small_postgres):
    url, filler = small_postgres
    make_tables(redis_url, url)
    batches = [journal.make_batch("x" * 1000, count=1000) for _ in range(3)]
    fill(filler)
    process = consumer(url=url, **HOLD)
    journal.append(client, *batches)
    until(lambda: process.has_logged("load_failed", "attempt=2", "cause=53100"), "it to meet the full disk")
    filler.unlink()
    until(lambda: is_drained(client), "all to be stored")
    assert {batch_id: len(found) for batch_id, found in journal.stored(url).items()} == {
        one.batch_id: 1000 for one in batches
    }
    assert letters(client) == []


def fill(path):
    """Takes all that is left of a disk."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_backend_that_is_terminated_in_the_middle_of_a_load_costs_nothing(
    client, consumer, redis_url, database_url
):
    make_tables(redis_url, database_url)
    execute(database_url, "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
                          " $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$")
    execute(database_url, "CREATE TRIGGER slow AFTER INSERT ON log_events EXECUTE FUNCTION slow()")
    consumer()
    batches = [journal.make_batch() for _ in range(3)]
    journal.append(client, *batches)
    killed = 0

    def has_killed_three():
        nonlocal killed
        with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                           " WHERE query LIKE '%COPY log_events%' AND state = 'active' AND pid <> pg_backend_pid()")
            killed += cursor.fetchone()[0]
        return killed >= 3

    until(has_killed_three, "three loads to be ended")
    execute(database_url, "DROP TRIGGER slow ON log_events")
    until(lambda: is_drained(client), "all to be stored")
    check_stored_once(database_url, batches)


def test_a_commit_whose_reply_is_lost_is_found_in_the_ledger(client, consumer, redis_url, database_url):
    make_tables(redis_url, database_url)
    with proxied(database_url) as proxy:
        consumer(url=proxy.url)
        batches = []
        for number in range(1, 4):
            batches.append(journal.make_batch())
            proxy.cut_after = b"COMMIT"
            journal.append(client, batches[-1])
            until(lambda: proxy.cut_count >= number, "the reply to be cut")
            proxy.cut_after = None
            until(lambda: is_drained(client), "it to be released")
        check_stored_once(database_url, batches)
        assert letters(client) == []


def test_a_stopped_postgresql_is_given_up_after_the_deadline_and_used_again_when_it_goes_on(
    client, consumer, database_url, postgres_server
):
    process = consumer(**QUICK, **HOLD)
    batches = [journal.make_batch() for _ in range(3)]
    journal.append(client, batches[0])
    until(lambda: is_drained(client), "the consumer to be at work")
    postgres_server.pause()
    journal.append(client, *batches[1:])
    until(lambda: process.has_logged("no answer from PostgreSQL in 1 s"), "the deadline to pass")
    until(lambda: process.has_logged("attempt=2"), "another attempt")
    postgres_server.resume()
    until(lambda: is_drained(client), "all to be stored")
    check_stored_once(database_url, batches)


def test_latency_to_both_servers_slows_it_down_and_breaks_nothing(client, consumer, redis_url, database_url):
    make_tables(redis_url, database_url)
    with proxied(database_url) as sink, proxied(redis_url) as buffer:
        consumer(url=sink.url, buffer=buffer.url)
        sink.delay_s = buffer.delay_s = 0.1
        batches = [journal.make_batch() for _ in range(30)]
        for one in batches:
            journal.append(client, one)
        until(lambda: is_drained(client), "all to be stored")
        check_stored_once(database_url, batches)
        assert letters(client) == []


def test_a_consumer_that_waits_for_the_sink_keeps_what_it_holds_and_is_not_robbed(
    client, consumer, redis_url, database_url
):
    make_tables(redis_url, database_url)
    one = journal.make_batch()
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE log_events")
        owner = consumer("owner", **QUICK, **HOLD)
        journal.append(client, one)
        until(lambda: owner.has_logged("load_failed"), "an attempt")
        other = consumer("other", **QUICK, **HOLD)
        until(lambda: owner.has_logged("attempt=8"), "more attempts than it takes to be robbed")
        row, = client.xpending_range(stream.STREAM, stream.GROUP, "-", "+", 10)
        assert row["consumer"] == b"owner" and not other.has_logged("entries_claimed")
        connection.rollback()
    until(lambda: is_drained(client), "it to be stored")
    check_stored_once(database_url, [one])


def test_sigterm_ends_a_consumer_that_waits_for_the_sink_at_once_and_a_successor_goes_on(
    client, consumer, database_url, postgres_server
):
    process = consumer(**HOLD)
    one = journal.make_batch()
    postgres_server.stop()
    journal.append(client, one)
    until(lambda: process.has_logged("attempt=5"), "it to wait for long")
    process.terminate()
    assert process.wait(30) == 0
    postgres_server.start()
    consumer("another", **QUICK)
    until(lambda: is_drained(client), "it to be taken over and stored")
    check_stored_once(database_url, [one])


def test_two_consumers_with_the_sink_away_bury_each_batch_once(client, consumer, postgres_server):
    postgres_server.stop()
    for name in ("one", "two"):
        consumer(name, SPILLWAY_SINK_RETRIES="0", **QUICK)
    batches = [journal.make_batch() for _ in range(200)]
    adding = threading.Thread(target=journal.append, args=(client, *batches))
    adding.start()
    adding.join()
    until(lambda: is_drained(client), "all to be buried")
    assert sorted(letter.batch.batch_id for letter in letters(client)) == sorted(one.batch_id for one in batches)
