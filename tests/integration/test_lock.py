"""Somebody's lock under real consumers: a wait is no outage, whatever the policy, and they say who holds it."""

import time

import pytest

from tests import journal
from tests.conftest import execute
from tests.journal import until
from tests.sink import check_stored_once, is_drained, letters, make_tables, transaction

QUICK = {"SPILLWAY_SINK_TIMEOUT_S": "1", "SPILLWAY_CLAIM_IDLE_S": "3", "SPILLWAY_SINK_RETRIES": "1"}

PARTITION = "log_events_' || to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD') || '"
LOCKS = {
    "all in share mode": "LOCK TABLE log_events IN SHARE MODE",
    "all": "LOCK TABLE log_events IN ACCESS EXCLUSIVE MODE",
    "a partition": f"DO $$ BEGIN EXECUTE 'LOCK TABLE {PARTITION} IN ACCESS EXCLUSIVE MODE'; END $$",
    "an index is built": f"DO $$ BEGIN EXECUTE 'CREATE INDEX ON {PARTITION} (host)'; END $$",
    "the ledger": "LOCK TABLE log_batches IN ACCESS EXCLUSIVE MODE",
    "another table": "LOCK TABLE journal IN ACCESS EXCLUSIVE MODE",
}


def write_elsewhere(database_url):
    """Has each row write to another table, too."""
    execute(database_url, "CREATE TABLE journal (batch_id uuid)")
    execute(database_url, "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
                          " $$ BEGIN INSERT INTO journal VALUES (NEW.batch_id); RETURN NEW; END $$")
    execute(database_url, "CREATE TRIGGER note AFTER INSERT ON log_events FOR EACH ROW EXECUTE FUNCTION note()")


@pytest.mark.parametrize("what, policy", [*((what, "dead-letter") for what in LOCKS), ("all", "hold")])
def test_a_lock_is_waited_for_whatever_the_policy_and_it_is_said_who_holds_it(
    what, policy, client, consumer, redis_url, database_url
):
    make_tables(redis_url, database_url)
    write_elsewhere(database_url)
    batches = [journal.make_batch() for _ in range(5)]
    with transaction(database_url, LOCKS[what]) as pid:
        process = consumer(**QUICK, SPILLWAY_SINK_POLICY=policy)
        journal.append(client, *batches[:3])
        until(lambda: process.has_logged("load_failed", "attempt=4"), "more attempts than there are retries")
        journal.append(client, *batches[3:])
        until(lambda: process.has_logged("load_failed", "attempt=5"), "one more")
        assert letters(client) == [] and client.xlen("log_events") == 5
    until(lambda: is_drained(client), "all to be stored")
    check_stored_once(database_url, batches)
    assert letters(client) == []
    said = process.log.read_text()
    assert said.count("load_waits_for_lock") == 1 and f"pid {pid} (operator, idle in transaction" in said
    assert "lock_is_free" in said and "servers_available" in said


def test_waits_that_are_each_shorter_than_the_lock_timeout_are_no_slow_load_either(
    client, consumer, redis_url, database_url
):
    # Every row takes a lock of its own and waits less for it than a wait may last: the statement runs out of time.
    make_tables(redis_url, database_url)
    execute(database_url, "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                          " PERFORM set_config('lock_timeout', '0', true);"
                          " PERFORM pg_advisory_xact_lock(7); RETURN NEW; END $$")
    execute(database_url, "CREATE TRIGGER wait BEFORE INSERT ON log_events FOR EACH ROW EXECUTE FUNCTION wait()")
    one = journal.make_batch()
    with transaction(database_url, "SELECT pg_advisory_lock(7)") as pid:
        process = consumer(**QUICK)
        journal.append(client, one)
        until(lambda: process.has_logged("cause=57014", "attempt=4", f"pid {pid} (operator"), "attempts")
        assert letters(client) == [] and not process.has_logged("batch_set_aside")
    until(lambda: is_drained(client), "it to be stored")
    check_stored_once(database_url, [one])
    assert letters(client) == []


def test_a_lock_that_the_watchdog_meets_first_is_none_of_the_rows_fault(client, consumer, redis_url, database_url):
    make_tables(redis_url, database_url)
    one = journal.make_batch()
    url = f"{database_url}?options=-c%20statement_timeout%3D0%20-c%20lock_timeout%3D0"
    with transaction(database_url, "LOCK TABLE log_events"):
        process = consumer(url=url, **QUICK)
        journal.append(client, one)
        until(lambda: process.has_logged("load_waits_for_lock", "cause=Overdue", "attempt=4"), "attempts")
        assert letters(client) == []
    until(lambda: is_drained(client), "it to be stored")
    check_stored_once(database_url, [one])


def test_a_deadlock_is_tried_again_and_never_buried(client, consumer, redis_url, database_url):
    make_tables(redis_url, database_url)
    execute(database_url, "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
                          " $$ BEGIN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END $$")
    execute(database_url, "CREATE TRIGGER fail BEFORE INSERT ON log_events FOR EACH ROW EXECUTE FUNCTION fail()")
    one = journal.make_batch()
    process = consumer(**QUICK)
    journal.append(client, one)
    until(lambda: process.has_logged("cause=40P01", "attempt=4"), "attempts")
    assert letters(client) == []
    execute(database_url, "DROP TRIGGER fail ON log_events")
    until(lambda: is_drained(client), "it to be stored")
    check_stored_once(database_url, [one])


@pytest.mark.parametrize("may_monitor", [True, False])
def test_no_more_is_said_than_the_role_may_see_and_of_a_query_80_characters(
    may_monitor, client, consumer, redis_url, database_url
):
    make_tables(redis_url, database_url)
    postgres = database_url.replace("://spillway:", "://postgres:", 1)
    execute(postgres, "CREATE ROLE sink LOGIN PASSWORD 'sink'")
    try:
        execute(database_url, "GRANT ALL ON ALL TABLES IN SCHEMA public TO sink")
        if may_monitor:
            execute(postgres, "GRANT pg_monitor TO sink")
        query = f"SELECT 'beginning', '{'x' * 60}', 'client data'"
        with transaction(database_url, "LOCK TABLE log_events IN SHARE MODE", query) as pid:
            process = consumer(url=f"postgresql://sink:sink@{database_url.partition('@')[2]}", **QUICK)
            journal.append(client, journal.make_batch())
            until(lambda: process.has_logged("load_waits_for_lock", f"pid {pid} (operator"), "it to be said")
            assert process.has_logged("'beginning'") == may_monitor and not process.has_logged("client data")
        until(lambda: is_drained(client), "it to be stored")
        assert letters(client) == []
        process.terminate()
        assert process.wait(30) == 0
    finally:
        execute(postgres, "DROP OWNED BY sink; DROP ROLE sink")


def test_a_wait_that_ends_before_the_load_gives_up_is_said_too(client, consumer, redis_url, database_url):
    make_tables(redis_url, database_url)
    process = consumer()
    one = journal.make_batch()
    with transaction(database_url, "LOCK TABLE log_events") as pid:
        journal.append(client, one)
        until(lambda: process.has_logged("load_waits_for_lock", f"pid {pid}"), "it to be said while it waits")
        began_at = time.monotonic()
    until(lambda: is_drained(client) and process.has_logged("lock_is_free"), "it to go on")
    assert time.monotonic() - began_at < journal.DEADLINE_S and not process.has_logged("load_failed")
    check_stored_once(database_url, [one])
