"""Loads through a real pgbouncer, of which nothing is expected, and connections that are refused for good."""

from contextlib import closing, contextmanager

import psycopg2
import pytest

from ops import overview
from ops.errors import Silent
from tests import journal
from tests.conftest import execute
from tests.journal import until
from tests.pooler import pooled
from tests.sink import check_stored_once, is_drained, letters, make_tables, transaction

QUICK = {"SPILLWAY_SINK_TIMEOUT_S": "1", "SPILLWAY_CLAIM_IDLE_S": "3", "SPILLWAY_SINK_RETRIES": "1"}


@pytest.fixture
def directory(short_dir):
    """Where pgbouncer's files are."""
    path = short_dir / "pooled"
    path.mkdir(exist_ok=True)
    return path


def test_loads_through_a_pooler_by_transaction_leave_nothing_on_its_connections(
    directory, client, consumer, database_url
):
    batches = [journal.make_batch() for _ in range(20)]
    with pooled(directory, database_url, "default_pool_size = 1") as url:
        processes = [consumer(name, url=url, **QUICK) for name in ("one", "two")]
        for one in batches:
            journal.append(client, one)
        until(lambda: is_drained(client), "all to be stored")
        check_stored_once(database_url, batches)
        with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT name, setting FROM pg_settings WHERE name IN ('statement_timeout', 'lock_timeout',"
                           " 'idle_in_transaction_session_timeout') AND setting <> '0'")
            assert cursor.fetchall() == []
            cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
            assert cursor.fetchone() == (0,)
        for process in processes:
            process.terminate()
            assert process.wait(30) == 0


def test_behind_a_pooler_a_load_has_its_time_limit_and_it_is_seen_whom_it_waits_for(
    directory, client, consumer, redis_url, database_url
):
    make_tables(redis_url, database_url)
    one = journal.make_batch()
    with pooled(directory, database_url) as url:
        with transaction(database_url, "LOCK TABLE log_events") as pid:
            process = consumer(url=url, **QUICK)
            journal.append(client, one)
            until(lambda: process.has_logged("cause=55P03", "attempt=4", f"pid {pid} (operator"), "attempts")
            assert letters(client) == []
            text = f"loads wait for locks of pid {pid} (operator)"
            until(lambda: text in overview._sink(overview._postgres(url)), "status to see a wait")
        until(lambda: is_drained(client), "it to be stored")
        process.terminate()
        assert process.wait(30) == 0
    check_stored_once(database_url, [one])


@contextmanager
def wrong_password(directory, url):
    yield url.replace("@", "x@")


@contextmanager
def no_database(directory, url):
    yield f"{url}_lacking"


@contextmanager
def refused_parameter(directory, url):
    with pooled(directory, url) as pooler:
        yield f"{pooler}?options=-c%20geqo%3Doff"


@contextmanager
def pooler_without_the_database(directory, url):
    with pooled(directory, url, "server_login_retry = 4") as pooler:
        yield f"{pooler}_lacking"


@contextmanager
def pooler_with_a_wrong_password(directory, url):
    with pooled(directory, url, "server_login_retry = 4", password="lost") as pooler:
        yield pooler


@contextmanager
def pooler_that_refuses_our_password(directory, url):
    with pooled(directory, url, "auth_type = scram-sha-256") as pooler:
        yield pooler.replace("@", ":lost@")


REFUSALS = [wrong_password, no_database, refused_parameter, pooler_without_the_database, pooler_with_a_wrong_password,
            pooler_that_refuses_our_password]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_connection_that_no_repetition_helps_is_held_and_said_and_status_says_it_too(
    refusal, directory, client, consumer, database_url
):
    one = journal.make_batch()
    with refusal(directory, database_url) as url:
        process = consumer(url=url, **QUICK | {"SPILLWAY_SINK_RETRIES": "0"})
        until(lambda: process.has_logged("load_held"), "the refusal")
        journal.append(client, one)
        until(lambda: process.has_logged("load_held attempt=4", "an operator mends it"), "more attempts than retries")
        assert letters(client) == [] and client.xlen("log_events") == 1
        with pytest.raises(Silent, match="FATAL|timeout expired"):
            overview._postgres(url)
        process.terminate()
        assert process.wait(30) == 0
    consumer("another", **QUICK)
    until(lambda: is_drained(client), "it to be stored")
    check_stored_once(database_url, [one])


def test_no_connection_left_is_an_outage_and_passes(client, consumer, redis_url, database_url):
    make_tables(redis_url, database_url)
    postgres = database_url.replace("://spillway:", "://postgres:", 1)
    execute(postgres, "CREATE ROLE narrow LOGIN PASSWORD 'narrow' CONNECTION LIMIT 0")
    try:
        execute(database_url, "GRANT ALL ON ALL TABLES IN SCHEMA public TO narrow")
        one = journal.make_batch()
        url = f"postgresql://narrow:narrow@{database_url.partition('@')[2]}"
        process = consumer(url=url, SPILLWAY_SINK_POLICY="hold")
        journal.append(client, one)
        until(lambda: process.has_logged("load_failed", "attempt=3", "too many connections"), "attempts")
        with pytest.raises(Silent, match="too many connections"):
            overview._postgres(url)
        execute(postgres, "ALTER ROLE narrow CONNECTION LIMIT -1")
        until(lambda: is_drained(client), "it to be stored")
        check_stored_once(database_url, [one])
        process.terminate()
        assert process.wait(30) == 0
    finally:
        execute(postgres, "DROP OWNED BY narrow; DROP ROLE narrow")
