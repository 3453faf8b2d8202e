"""What tests of a sink that fails share: consumers as processes, locks, triggers, and what became of the batches."""

from contextlib import closing, contextmanager

import psycopg2

from app import dead_letter, stream
from tests import journal
from tests.conftest import execute


def letters(client):
    """Returns the dead letters."""
    return [dead_letter.letter_of(*found) for found in client.xrange(stream.DEAD_LETTERS)]


def is_drained(client):
    """Tells whether the stream is empty."""
    return client.xlen(stream.STREAM) == 0


def check_stored_once(database_url, batches, text="event"):
    """Requires just these batches, each event once."""
    assert journal.stored(database_url) == {one.batch_id: journal.messages(one, text) for one in batches}


def make_tables(redis_url, database_url):
    """Makes the tables, as the first consumer does."""
    journal.make_consumer(redis_url, database_url)._loader.prepare()


@contextmanager
def transaction(database_url, *statements, name="operator"):
    """Runs statements in a transaction that stays open until the end, and is rolled back."""
    with closing(psycopg2.connect(database_url, application_name=name)) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        yield connection.info.backend_pid
        connection.rollback()


def add_trigger(database_url, body, table="log_events", when="BEFORE INSERT"):
    """Has a row of `table` that holds `bad` run a piece of PL/pgSQL."""
    column = "message" if table == "log_events" else "received_at::text"
    execute(database_url, f"CREATE FUNCTION harm() RETURNS trigger LANGUAGE plpgsql AS"
                          f" $$ BEGIN IF NEW.{column} LIKE '%bad%' THEN {body} END IF; RETURN NEW; END $$")
    execute(database_url, f"CREATE TRIGGER harm {when} ON {table} FOR EACH ROW EXECUTE FUNCTION harm()")
