"""Holds a receipts file against PostgreSQL: was every promise kept?

Exit codes: 0 every promise was kept; 1 a promise was broken, and the first 20 are named; 2 cannot judge (no receipts,
a damaged file, no database).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import psycopg2

from loadtest.event import ALTERED
from loadtest.judge import MEANINGS, Fault, Stored, Verdict, judge
from loadtest.receipt import BadReceipts, History, read

_POLL_S = 1.0

# Of the transaction alone: a pooler would give to others what the session sets. All rows will be read.
_PLAN = "SET TRANSACTION READ ONLY; SET LOCAL cursor_tuple_fraction = 1; SET LOCAL work_mem = '128MB'"

# Two levels: the inner one leaves narrow rows to group and spill, where COUNT(DISTINCT) would sort wide ones.
_STORED = f"""
    SELECT tag, batch_id::text, sum(copies)::bigint, count(*), min(batch_index), max(batch_index), sum(altered)::bigint
    FROM (
        SELECT trace_id AS tag, batch_id, batch_index, count(*) AS copies, count(*) FILTER (WHERE {ALTERED}) AS altered
        FROM log_events WHERE attributes->>'run' = ANY(%s) GROUP BY 1, 2, 3
    ) AS event
    GROUP BY tag, batch_id ORDER BY tag, batch_id
"""


def stored(database_url: str, runs: Sequence[str]) -> Iterator[Stored]:
    """Yields what is stored of the runs, ordered by tag; flat memory, one snapshot.

    Raises:
        psycopg2.Error: The database is away, or has no such table.
    """
    with closing(psycopg2.connect(database_url, connect_timeout=5, application_name="loadtest.verify")) as connection:
        with connection.cursor() as plan:
            plan.execute(_PLAN)
        with connection.cursor("stored") as cursor:
            cursor.itersize = 10_000
            cursor.execute(_STORED, (list(runs),))
            for row in cursor:
                yield Stored(*row)


def verify(
    history: History, database_url: str, wait_s: float, sleep: Callable[[float], object] = time.sleep,
) -> Verdict:
    """Judges, and while that can still become better judges again, for `wait_s` at most.

    Raises:
        psycopg2.Error: At the deadline the database could not be read.
    """
    deadline = time.monotonic() + wait_s
    while True:
        is_last = time.monotonic() >= deadline
        try:
            verdict = judge(history.promises, stored(database_url, history.runs))
        except psycopg2.Error:
            if is_last:
                raise
        else:
            if is_last or verdict.is_final:
                return verdict
        sleep(max(0.0, min(_POLL_S, deadline - time.monotonic())))


def table(verdict: Verdict) -> str:
    """Returns the verdict in plain words."""
    lines = [f"{'':12}{'batches':>12}{'events':>14}"]
    rows = [(name, tally, "") for name, tally in verdict.outcomes.items()]
    rows.insert(2, ("  recovered", verdict.recovered, "outcome unknown, and stored"))
    rows += [(kind.value, tally, MEANINGS[kind]) for kind, tally in verdict.faults.items()]
    lines += [f"{name:12}{tally.batches:>12,}{tally.events:>14,}  {meaning}".rstrip() for name, tally, meaning in rows]
    lines.append("clean: every promise was kept" if verdict.is_clean else "broken promises, the first of them:")
    return "\n".join(lines + [_sentence(fault) for fault in verdict.named])


def _sentence(fault: Fault) -> str:
    return f"  {fault.kind}: batch {fault.batch_id or '?'}, tag {fault.tag or 'none'}: {fault.detail}"


def document(verdict: Verdict) -> str:
    """Returns the verdict as JSON."""
    return json.dumps({"clean": verdict.is_clean, **asdict(verdict)})


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the verdict and returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        if not options.database_url:
            raise BadReceipts("no database: give --database-url or set DATABASE_URL")
        verdict = verify(read(options.receipts), options.database_url, options.wait)
    except (BadReceipts, OSError, psycopg2.Error) as error:
        print(f"cannot judge {options.receipts}: {str(error).strip()}", file=sys.stderr)
        return 2
    print(document(verdict) if options.json else table(verdict))
    return 0 if verdict.is_clean else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("receipts", type=Path, help="the file that locust's --receipts named; may hold several runs")
    parser.add_argument("--database-url", default=os.environ.get("DATABASE_URL"), metavar="URL",
                        help="PostgreSQL as a libpq URL (default: DATABASE_URL)")
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS",
                        help="judge again until clean or until waiting cannot help, at most this long (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the verdict as one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
