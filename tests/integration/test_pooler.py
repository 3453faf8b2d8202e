"""Behind a pooler by transaction what one client leaves on a connection is the next one's: we leave nothing."""

import argparse
import io
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest

from app.appender import Appender
from app.settings import Settings
from loadtest import verify
from ops import doctor, overview
from ops.auditor import Auditor
from ops.canary import STREAM, Canary, Flight
from ops.census import Census
from ops.stack import Facts
from tests.journal import drain, make_batch
from tests.pooler import pooled
from workers import schema

# One connection for all: what is left on it is found.
ONE = "default_pool_size = 1"
# What a session has otherwise than the server starts it; pgbouncer sets each client's own name.
LEFT = """
SELECT name, setting FROM pg_settings WHERE source = 'session' AND name <> 'application_name'
AND name NOT LIKE 'transaction\\_%' ORDER BY name
"""
SHOWN = ("statement_timeout", "default_transaction_read_only", "lock_timeout", "default_transaction_isolation",
         "transaction_read_only", "work_mem", "cursor_tuple_fraction", "search_path")


def look_for_a_canary(url, client, redis_url, tmp_path):
    canary = Canary("http://127.0.0.1:1", url, "", every_s=3600)
    canary.flights.append(Flight("3b241101-e2bb-4255-8caf-4136c566a962", STREAM, 0.0, 0.0))
    canary.step()
    assert canary.flights[0].answered_s > 0, "the database was not asked"
    return canary  # keeps its connection


def audit(url, client, redis_url, tmp_path):
    report = Auditor(Census(client, url, 60), time.sleep).audit(datetime.now(UTC) - timedelta(minutes=1))
    assert report.is_balanced and any(bucket.rows for bucket in report.buckets.values())


def show_status(url, client, redis_url, tmp_path):
    facts = Facts("http://127.0.0.1:1", "http://127.0.0.1:1", "", url, "", "", [])
    assert overview.observe(facts)["postgres"].answer["is_read_only"] is False


def examine(url, client, redis_url, tmp_path):
    doctor.run(argparse.Namespace(json=True), Settings(redis_url=redis_url, database_url=url, data_dir=str(tmp_path)))


def verify_a_run(url, client, redis_url, tmp_path):
    assert list(verify.stored(url, ["none"])) == []


def session(url):
    """Returns what a client finds on the connection that it is given, and tries to copy a row by it."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(LEFT)
        left = cursor.fetchall()
        found = {}
        for name in SHOWN:
            cursor.execute(f"SHOW {name}")
            found[name] = cursor.fetchone()[0]
        cursor.copy_expert(schema.COPY, io.BytesIO(make_batch("copied", 1).payload))
        connection.rollback()  # one that is closed before would take the pooler's with it
        return left, found


@pytest.mark.parametrize("lines", [(ONE,), (ONE, "ignore_startup_parameters = options")], ids=["refuses", "ignores"])
@pytest.mark.parametrize("use", [look_for_a_canary, audit, show_status, examine, verify_a_run])
def test_nothing_is_left_on_a_connection_that_others_are_given(
    use, lines, client, redis_url, database_url, tmp_path, short_dir
):
    with closing(Appender(redis_url, 5)) as appender:
        assert appender.append([make_batch("stored", 3)]) == [None]
    drain(redis_url, database_url)
    directory = short_dir / f"pooler-{use.__name__}-{len(lines)}"
    directory.mkdir()
    with pooled(directory, database_url, *lines) as url:
        before = session(url)
        kept = use(url, client, redis_url, tmp_path)
        assert session(url) == before
        del kept
