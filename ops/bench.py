"""`spillway bench`: events per second from HTTP to COMMIT, beside a bare COPY of the same rows in the same run.

Runs on stacks of its own in scratch directories, with embedded servers, and ends them: one acknowledges from Redis, one
from the WAL (`SPILLWAY_WAL=always`). All is measured in turn, round by round, because machines are noisy: the ratios
are what to quote, not one of the rates.
"""

import argparse
import http.client
import io
import json
import logging
import queue
import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import psycopg2
from psycopg2.extensions import connection as Connection

from app import batch, form
from app.settings import Settings
from ops import scratch
from ops.bench_replay import ReplayBench
from ops.stack import Facts
from workers import schema

_BATCH_EVENTS = 1000
_CONNECTIONS = 4
_COPY_BYTES = 8 << 20
_DRAIN_DEADLINE_S = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--quick", action="store_true", help="a tenth of the events and three rounds: a smoke test")
    parser.add_argument("--rounds", type=int, default=None, help="rounds, of which the medians are shown (5)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Measures and prints; returns 0."""
    logging.disable()  # the schema's own lines; failures raise
    batches = 50 if args.quick else 500
    rounds = args.rounds or (3 if args.quick else 5)
    bodies = [_body(number) for number in range(batches)]
    replay = ReplayBench([_encoded(body) for body in bodies], *scratch.free_ports(1))
    with (
        scratch.directory("bench") as place, scratch.stack(place / "fallback") as fallback,
        scratch.stack(place / "always", SPILLWAY_WAL="always") as always, replay.started(),
    ):
        figures = [_round(fallback.facts(), always.facts(), replay, bodies) for _ in range(rounds)]
    print(json.dumps(_summary(figures, batches)) if args.json else _table(_summary(figures, batches)))
    return 0


def _body(seed: int) -> bytes:
    chance = random.Random(seed)
    levels, paths = ("DEBUG", "INFO", "INFO", "INFO", "WARN", "ERROR"), ("/api/cart", "/api/items", "/login", "/health")
    second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    return json.dumps([
        {
            "timestamp": f"{second}.{index:06}Z",
            "level": chance.choice(levels),
            "service": chance.choice(("checkout", "search", "identity")),
            "host": f"web-{chance.randrange(8)}",
            "message": f"{chance.choice(paths)} took {chance.randrange(900)} ms for user {chance.randrange(10**6)}",
            "trace_id": f"{chance.getrandbits(128):032x}",
            "attributes": {"status": chance.choice((200, 200, 404)), "bytes": chance.randrange(10**5), "cached": False},
        }
        for index in range(_BATCH_EVENTS)
    ]).encode()


def _round(
    fallback: Facts, always: Facts, replay: ReplayBench, bodies: Sequence[bytes]
) -> dict[str, float]:
    count = len(bodies) * _BATCH_EVENTS
    with _connected(fallback.database_url, "public") as own, _connected(fallback.database_url, "bare") as bare:
        acknowledged_s, stored_s = _end_to_end(fallback.ingest_url, own, bodies)
        copied_s = _bare_copy(bare, bodies)
    with _connected(always.database_url, "public") as own:
        always_acknowledged_s, always_stored_s = _end_to_end(always.ingest_url, own, bodies)
    return {
        "acknowledged": count / acknowledged_s, "end_to_end": count / stored_s, "bare_copy": count / copied_s,
        "ratio": copied_s / stored_s, "always_acknowledged": count / always_acknowledged_s,
        "always_end_to_end": count / always_stored_s, "always_ratio": stored_s / always_stored_s,
        "replay": replay.rate(),
    }


@contextmanager
def _connected(url: str, place: str) -> Iterator[Connection]:
    """Connects to empty tables in a schema of their own."""
    connection = psycopg2.connect(url, options=f"-c search_path={place}")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {place}")
        connection.autocommit = False
        schema.ensure(connection)
        schema.ensure_partitions(connection, 1)
        connection.autocommit = True
        cursor.execute("TRUNCATE log_events, log_batches")
    try:
        yield connection
    finally:
        connection.close()


def _end_to_end(url: str, connection: Connection, bodies: Sequence[bytes]) -> tuple[float, float]:
    """Posts the bodies; returns seconds until the last was acknowledged, and until the last was committed."""
    work: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    for body in bodies:
        work.put(body)
    clients = [threading.Thread(target=_post_all, args=(url, work)) for _ in range(_CONNECTIONS)]
    started = time.monotonic()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    acknowledged_s = time.monotonic() - started
    with connection.cursor() as cursor:
        while _stored(cursor) < len(bodies) * _BATCH_EVENTS:
            if time.monotonic() - started > _DRAIN_DEADLINE_S:
                raise TimeoutError(f"not all events were stored within {_DRAIN_DEADLINE_S} s")
            time.sleep(0.005)
    return acknowledged_s, time.monotonic() - started


def _stored(cursor: Any) -> int:
    cursor.execute("SELECT coalesce(sum(event_count), 0) FROM log_batches")
    return int(cursor.fetchone()[0])


def _post_all(url: str, work: "queue.SimpleQueue[bytes]") -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    while True:
        try:
            body = work.get_nowait()
        except queue.Empty:
            return connection.close()
        while not _is_accepted(connection, body):
            time.sleep(0.05)


def _is_accepted(connection: http.client.HTTPConnection, body: bytes) -> bool:
    connection.request("POST", "/ingest", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    if response.status not in (202, 503):
        raise RuntimeError(f"/ingest answered {response.status}")
    return response.status == 202


def _bare_copy(connection: Connection, bodies: Sequence[bytes]) -> float:
    """Returns the seconds that COPY and COMMIT take for the same rows, in transactions as large as a consumer's."""
    payloads = [_encoded(body).payload for body in bodies]
    transactions = [b""]
    for payload in payloads:
        transactions[-1] += payload
        if len(transactions[-1]) >= _COPY_BYTES:
            transactions.append(b"")
    started = time.monotonic()
    with connection.cursor() as cursor:
        for rows in filter(None, transactions):
            cursor.copy_expert(schema.COPY, io.BytesIO(rows), 1 << 18)
    return time.monotonic() - started


def _encoded(body: bytes) -> batch.Batch:
    limits = form.Limits(_BATCH_EVENTS, 1 << 20)
    return form.to_batch(form.FORMS["application/json"], body, [], batch.new_id(), time.time_ns(), limits)


def _summary(figures: Sequence[dict[str, float]], batches: int) -> dict[str, Any]:
    medians = {name: statistics.median(figure[name] for figure in figures) for name in figures[0]}
    return {"batches": batches, "batch_events": _BATCH_EVENTS, "rounds": figures, "median": medians}


def _table(summary: dict[str, Any]) -> str:
    names = {
        "acknowledged": "acknowledged, events/s", "end_to_end": "end to end (HTTP to COMMIT), events/s",
        "bare_copy": "bare COPY of the same rows, events/s", "ratio": "end to end / bare COPY",
        "always_acknowledged": "SPILLWAY_WAL=always, acknowledged, events/s",
        "always_end_to_end": "SPILLWAY_WAL=always, end to end, events/s",
        "always_ratio": "always / fallback, end to end", "replay": "replay from the WAL alone, events/s",
    }
    head = f"{summary['batches']} batches of {_BATCH_EVENTS} events, {len(summary['rounds'])} rounds"
    lines = [head, f"{'':44}{'min':>12}{'median':>12}{'max':>12}"]
    for name, title in names.items():
        values = [figure[name] for figure in summary["rounds"]]
        cells = (min(values), summary["median"][name], max(values))
        kind = ".2f" if name.endswith("ratio") else ",.0f"
        lines.append(f"{title:44}" + "".join(f"{cell:12{kind}}" for cell in cells))
    return "\n".join(lines)
