"""The verifier's SQL against a real PostgreSQL: each fault is planted in real rows and found, and no other."""

import gzip
import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import psycopg2
import pytest
from psycopg2.extras import execute_values

from loadtest import batch, receipt, verify
from loadtest.batch import Batch

COLUMNS = (
    "received_at, batch_id, batch_index, ts, level, severity, service, host, message, trace_id, span_id, attributes"
)
TABLE = """
    CREATE TABLE log_events (
        received_at timestamptz NOT NULL, batch_id uuid NOT NULL, batch_index int NOT NULL, ts timestamptz NOT NULL,
        level text, severity smallint, service text, host text, message text NOT NULL, trace_id text, span_id text,
        attributes jsonb NOT NULL
    ) PARTITION BY RANGE (ts);
    CREATE TABLE log_events_default PARTITION OF log_events DEFAULT;
"""
A, K, OTHER, STRANGE = (str(UUID(int=number)) for number in (1, 2, 3, 4))


def copy(column: str = "", value: str = "") -> str:
    """Returns the statement that stores the rows of A once more, one column changed."""
    cells = ", ".join(value if name == column else name for name in COLUMNS.split(", "))
    return f"INSERT INTO log_events ({COLUMNS}) SELECT {cells} FROM log_events WHERE batch_id = '{A}'"


def insert(connection: Any, sent: Batch, batch_id: str) -> None:
    """Stores a batch as the service must."""
    body = gzip.decompress(sent.body) if "Content-Encoding" in sent.headers else sent.body
    is_lines = sent.headers["Content-Type"] == "application/x-ndjson"
    events = [json.loads(line) for line in body.splitlines()] if is_lines else json.loads(body)
    fields = ("level", "service", "host", "message", "trace_id", "span_id")
    with connection, connection.cursor() as cursor:
        execute_values(cursor, f"INSERT INTO log_events ({COLUMNS}) VALUES %s", [
            (datetime.now(UTC), batch_id, index, moment(event["timestamp"]), event.get("level"), None,
             *(event.get(field) for field in fields[1:]), json.dumps(event["attributes"]))
            for index, event in enumerate(events if isinstance(events, list) else [events])
        ])


def moment(timestamp: str | int) -> datetime:
    if isinstance(timestamp, str):
        return datetime.fromisoformat(timestamp)
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=timestamp)


@pytest.fixture
def history(database_url: str, tmp_path: Path) -> Path:
    """Receipts of an accepted batch A, a keyed batch K of unknown outcome, and a rejected one; A and K are stored."""
    path, chance = tmp_path / "receipts.jsonl", Random(1)
    writer = receipt.Writer(path, "run")
    accepted, unknown, rejected = (batch.make("run", 200, batch.Mix(keyed, 0.5, 0), chance) for keyed in (0, 1, 0))
    for sent in (accepted, unknown, rejected):
        writer.sent(sent.tag, sent.count, sent.is_keyed)
    writer.accepted(accepted.tag, 202, A, accepted.count, "stream")
    writer.rejected(rejected.tag, 422, "no")
    with closing(psycopg2.connect(database_url)) as connection:
        with connection, connection.cursor() as cursor:
            cursor.execute(TABLE)
        insert(connection, accepted, A)
        insert(connection, unknown, K)
        insert(connection, batch.make("another run", 50, batch.Mix(), chance), OTHER)
    return path


ALTERATIONS = (
    "message = message || ' '", "ts = ts + interval '1 microsecond'", "level = NULL", "level = 'INFO' || level",
    "service = service || '-2'", "host = 'other'", "span_id = 'other'", "attributes = attributes || '{\"x\": 1}'",
    "attributes = attributes - 'http.status'", "attributes = attributes - 'digest'",
)


@pytest.mark.parametrize(("plant", "faults"), [
    (f"DELETE FROM log_events WHERE batch_id = '{OTHER}'", {}),
    (f"DELETE FROM log_events WHERE batch_id = '{K}'", {}),
    (f"DELETE FROM log_events WHERE batch_id = '{A}'", {"missing": 200}),
    (f"DELETE FROM log_events WHERE batch_id = '{A}' AND batch_index = 199", {"missing": 1}),
    (f"DELETE FROM log_events WHERE batch_id = '{K}' AND batch_index > 0", {"partial": 199}),
    (f"{copy()} AND batch_index = 7", {"duplicate": 1}),
    (copy("batch_id", f"'{STRANGE}'"), {"duplicate": 200}),
    (copy("trace_id", "'never sent'"), {"phantom": 200}),
    (copy("trace_id", "NULL"), {"phantom": 200}),
    (copy("trace_id", "%(rejected)s"), {"phantom": 200}),
    (copy("batch_index", "batch_index + 200"), {"phantom": 200, "altered": 200}),
    (f"UPDATE log_events SET batch_id = '{STRANGE}' WHERE batch_id = '{A}'", {"misstated": 200}),
    (f"UPDATE log_events SET batch_index = 199 - batch_index WHERE batch_id = '{A}'", {"altered": 200}),
    *((f"UPDATE log_events SET {change} WHERE batch_id = '{A}' AND batch_index = 7", {"altered": 1})
      for change in ALTERATIONS),
])
def test_a_fault_planted_in_real_rows_is_found(
    plant: str, faults: dict[str, int], history: Path, database_url: str, capsys: pytest.CaptureFixture[str],
) -> None:
    assert verify.main([str(history), "--database-url", database_url]) == 0, capsys.readouterr().out
    capsys.readouterr()
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(plant, {"rejected": list(receipt.read(history).promises)[2]})
        assert cursor.rowcount > 0
    assert verify.main([str(history), "--database-url", database_url, "--json"]) == int(bool(faults))
    found = json.loads(capsys.readouterr().out)["faults"]
    assert {name: tally["events"] for name, tally in found.items() if tally["batches"]} == faults


def test_the_verifier_waits_for_what_may_still_come_right(history: Path, database_url: str) -> None:
    steps = [
        f"ALTER TABLE late RENAME TO log_events; CREATE TABLE rest AS SELECT * FROM log_events WHERE batch_id = '{A}';"
        f"DELETE FROM log_events WHERE batch_id = '{A}'",
        "INSERT INTO log_events SELECT * FROM rest",
    ]
    with closing(psycopg2.connect(database_url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE log_events RENAME TO late")
            verdict = verify.verify(receipt.read(history), database_url, 30, lambda _: cursor.execute(steps.pop(0)))
            assert verdict.is_clean and steps == []
            cursor.execute(copy())
            verdict = verify.verify(receipt.read(history), database_url, 30, lambda _: pytest.fail("waited"))
            assert not verdict.is_clean
