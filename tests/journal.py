"""What tests of the pipeline share: making batches, appending them, draining the stream, and reading what is stored."""

import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import msgspec
import psycopg2
import redis

from app import batch, form, stream
from app.settings import Settings
from workers import consumer

ROOT = Path(__file__).resolve().parents[1]
LIMITS = form.Limits(10_000, 1 << 20)
DEADLINE_S = 60


def make_batch(text="event", count=3, key=None):
    """Returns a batch of `count` events whose messages are `<text> <index>`."""
    body = "\n".join(f"{text} {index}" for index in range(count)).encode()
    name = (batch.new_id(), batch.KEYLESS) if key is None else (batch.id_of_key(key), form.digest(body, []))
    return form.to_batch(form.FORMS["text/plain"], body, [], name[0], time.time_ns(), LIMITS, name[1])


def merge(*texts, count=1, bad=()):
    """Returns the ids of requests that are merged, each of `count` events as in `make_batch`, and the merged batch.

    Args:
        bad: Which of its events PostgreSQL is to refuse.
    """
    series = batch.Series()
    made = [msgspec.structs.replace(one, payload=one.payload.replace(one.batch_id.encode(), batch_id.encode()),
                                    batch_id=batch_id)
            for one, batch_id in ((make_batch(text, count), series.next_id()) for text in texts)]
    return [one.batch_id for one in made], bad_at(batch.merged(made), *bad)


def bad_at(one, *places):
    """Returns the batch with events that PostgreSQL refuses at these places."""
    rows = one.payload.split(b"\n")
    for place in places:
        rows[place] = rows[place].rpartition(b"\t")[0] + b"\tno JSON"
    return msgspec.structs.replace(one, payload=b"\n".join(rows))


def in_stream(client):
    """Returns the messages of the first event of each request in the stream, by the id that it was answered with; one
    id in two entries is an error."""
    found = {}
    for _, fields in client.xrange(stream.STREAM):
        first = {}
        for row in stream.batch_of(fields).payload.split(b"\n")[:-1]:
            cells = row.split(b"\t")
            first.setdefault(cells[1].decode(), cells[8])
        assert not found.keys() & first.keys()
        found |= first
    return found


def append(client, *batches):
    """Adds entries to the stream and returns their ids."""
    return [client.execute_command("XADD", stream.STREAM, "*", *stream.fields_of(one)) for one in batches]


def make_consumer(redis_url, database_url, name="consumer-00", **changes):
    """Returns a consumer as `workers.consumer.main` makes it; settings by their field names."""
    settings = Settings(**{"consumer_name": name, "partition_days": 1, **changes})
    return consumer.make(settings, redis_url, database_url)


def drain(redis_url, database_url, name="consumer-00"):
    """Runs a consumer in this process until the stream is empty."""
    client = redis.Redis.from_url(redis_url)
    stream.ensure_group(client)
    one = make_consumer(redis_url, database_url, name)
    until(lambda: (one.step(), client.xlen(stream.STREAM) == 0)[1], "the stream to be empty")


def stored(database_url):
    """Returns the stored messages by batch id, in order of their index; none while there is no table yet."""
    found = {}
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        try:
            cursor.execute("SELECT batch_id::text, message FROM log_events ORDER BY batch_id, batch_index")
        except psycopg2.errors.UndefinedTable:
            return found
        for batch_id, message in cursor.fetchall():
            found.setdefault(batch_id, []).append(message)
    return found


def messages(one, text="event"):
    """Returns what `stored` should say of a batch that `make_batch` made."""
    return [f"{text} {index}" for index in range(one.count)]


def until(condition, what, deadline_s=DEADLINE_S):
    """Polls a condition and returns its first true value; fails after the deadline."""
    ends_at = time.monotonic() + deadline_s
    while time.monotonic() < ends_at:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {deadline_s} s for {what}")


def start(*command, log=None, **environ):
    """Starts a subprocess of this interpreter in the checkout; its output goes to `log`."""
    output = open(log, "ab") if log else subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=output, stderr=output,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
    )
