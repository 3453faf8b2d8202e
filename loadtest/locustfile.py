"""Users that post events one by one and in batches, and write down what they were promised.

A failed or unknown request fails in locust's statistics under its outcome, and is no reason to exit with an error: it
is what the verifier judges. The exit code is 1 where the service broke its interface (a good request refused, a bad
one accepted, an answer that is none) or accepted nothing at all, 2 where this file itself failed.

`add_options` names the options besides locust's own, whose `--help` leaves them out.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import gevent
from locust import FastHttpUser, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest import batch, receipt
from loadtest.batch import Batch

_MAX_RETRIES = 3
_MAX_PAUSE_S = 5.0


@dataclass(slots=True)
class Run:
    """One run of one locust process: its id, its receipts, and what decides the exit code."""

    id: str
    receipts: receipt.Writer
    numbers: Iterator[int] = field(default_factory=count)
    sent_count: int = 0
    accepted_count: int = 0
    breach_count: int = 0

    @property
    def exit_code(self) -> int:
        """Returns 0 or 1; what is unknown is no error, as long as something was accepted."""
        return int(self.breach_count > 0 or self.sent_count > 0 == self.accepted_count)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one attempt.

    Args:
        kind: accepted, rejected or unknown.
        failure: What locust's statistics call it; None: as it should be.
        is_breach: The interface does not allow this answer.
        pause_s: How long the service asked, or common sense asks, to wait before the next attempt.
    """

    kind: str
    failure: str | None = None
    is_breach: bool = False
    pause_s: float = 0.0


def add_options(parser: LocustArgumentParser) -> None:
    """Adds our options to locust's; each can also be set in the environment."""
    option = parser.add_argument
    option("--receipts", default="receipts.jsonl", env_var="LOADTEST_RECEIPTS", help="file that receipts are added to")
    option("--rate", type=float, default=0, env_var="LOADTEST_RATE",
           help="new requests per second of all users together; 0: as many as they can")
    option("--seed", default=None, env_var="LOADTEST_SEED", help="what events and requests are like follows from it")
    option("--batch-size", type=int, default=100, env_var="LOADTEST_BATCH_SIZE",
           help="events in a batch; a quarter of the batches has fewer")
    option("--answer-timeout", type=float, default=30, env_var="LOADTEST_ANSWER_TIMEOUT",
           help="seconds without an answer after which an outcome is unknown")
    for name, share, text in (
        ("keyed", 0.5, "requests with an Idempotency-Key"),
        ("retry", 0.8, "requests with a key and an unknown outcome that are tried again"),
        ("repost", 0.05, "accepted requests with a key that are posted again"),
        ("gzip", 0.3, "compressed requests"),
        ("bad", 0.01, "requests that are bad on purpose"),
    ):
        option(f"--{name}", type=float, default=share, env_var=f"LOADTEST_{name.upper()}",
               help=f"share of {text}, 0 to 1")


def open_receipts(environment: Environment, **_: Any) -> None:
    """Starts the run of this process."""
    run = uuid4().hex
    writer = receipt.Writer(Path(_options(environment).receipts), run)
    environment.ingest_run = Run(run, writer)  # type: ignore[attr-defined]


def decide_exit_code(environment: Environment, **_: Any) -> None:
    """Replaces locust's rule that any failed request is an error."""
    if environment.runner and environment.runner.exceptions:
        environment.process_exit_code = 2
    else:
        environment.process_exit_code = environment.ingest_run.exit_code  # type: ignore[attr-defined]


class IngestUser(FastHttpUser):
    """Posts batches; the receipts are written here alone."""

    abstract = True
    # A redirect or a retry by the library would be an attempt without a receipt.
    max_redirects = 0
    max_retries = 0

    def __init__(self, environment: Environment) -> None:
        self.options = _options(environment)
        self.network_timeout = self.connection_timeout = self.options.answer_timeout
        super().__init__(environment)
        # To the library every status is an answer; which of them fails is decided here.
        self.client.client.valid_response_codes = frozenset(range(100, 600))  # type: ignore[misc]
        self.run_: Run = environment.ingest_run  # type: ignore[attr-defined]
        seed = self.options.seed
        self.chance = Random() if seed is None else Random(f"{seed} {next(self.run_.numbers)}")
        self.pace = constant_throughput(self.options.rate / self.options.num_users) if self.options.rate else None
        self.mix = batch.Mix(self.options.keyed, self.options.gzip, self.options.bad)

    def wait_time(self) -> float:
        """Returns how long to pause after a request, in seconds."""
        return float(self.pace(self)) if self.pace else 0.0

    def post(self, count: int, name: str) -> None:
        """Posts a new batch as a real client does: unknown is retried where a key makes that safe."""
        fresh = batch.make(self.run_.id, count, self.mix, self.chance)
        outcome = self._attempt(fresh, name)
        for _ in range(_MAX_RETRIES):
            gevent.sleep(outcome.pause_s)
            if outcome.kind != "unknown" or not fresh.is_keyed or self.chance.random() >= self.options.retry:
                break
            outcome = self._attempt(fresh, f"{name} retry")
        if outcome.kind == "accepted" and fresh.is_keyed and self.chance.random() < self.options.repost:
            self._attempt(fresh, f"{name} repost")

    def _attempt(self, sent: Batch, name: str) -> Outcome:
        self.run_.sent_count += 1
        self.run_.receipts.sent(sent.tag, sent.count, sent.is_keyed)
        name = f"/ingest {name} (bad on purpose)" if sent.is_bad else f"/ingest {name}"
        body: Any = sent.body  # annotated as text in locust, taken as bytes
        with self.client.post("/ingest", body, headers=sent.headers, name=name, catch_response=True) as response:
            outcome = self._note(sent, response)
            if outcome.failure is None:
                response.success()
            else:
                response.failure(outcome.failure)
        self.run_.breach_count += outcome.is_breach
        return outcome

    def _note(self, sent: Batch, response: Any) -> Outcome:
        """Writes the outcome down before anybody else hears of it."""
        status, content = response.status_code, _content(response)
        if status == 202 and content is not None:
            return self._note_accepted(sent, content)
        reason = f"{status} {_title(content)}" if content is not None else f"no answer: {_cause(response)}"
        if 400 <= status < 500:
            self.run_.receipts.rejected(sent.tag, status, reason)
            is_breach = not sent.is_bad and status not in (408, 429)
            return Outcome("rejected", None if sent.is_bad else f"rejected: {reason}", is_breach)
        self.run_.receipts.unknown(sent.tag, status, reason)
        is_breach = content is not None and status not in (502, 503, 504)
        return Outcome("unknown", f"unknown: {reason}", is_breach, _pause_s(response, self.chance))

    def _note_accepted(self, sent: Batch, content: bytes) -> Outcome:
        try:
            answer = json.loads(content)
            batch_id, count, durability = str(answer["batch_id"]), int(answer["accepted"]), str(answer["durability"])
        except (ValueError, KeyError, TypeError) as error:
            self.run_.receipts.unknown(sent.tag, 202, f"an answer that is none: {error!r}")
            return Outcome("unknown", "broken: 202 without batch_id, accepted and durability", is_breach=True)
        self.run_.accepted_count += 1
        self.run_.receipts.accepted(sent.tag, 202, batch_id, count, durability)
        wrong = "broken: a bad request was accepted" if sent.is_bad else (
            None if count == sent.count else "broken: not all events were accepted")
        return Outcome("accepted", wrong, is_breach=wrong is not None)


class SingleUser(IngestUser):
    """Posts events one by one."""

    @task
    def post_one(self) -> None:
        """Posts one event."""
        self.post(1, "single")


class BatchUser(IngestUser):
    """Posts batches."""

    @task
    def post_batch(self) -> None:
        """Posts a batch, mostly a full one."""
        most = self.options.batch_size
        self.post(most if self.chance.random() < 0.75 else self.chance.randint(1, most), "batch")


def _options(environment: Environment) -> Any:
    return environment.parsed_options


def _content(response: Any) -> bytes | None:
    """Returns the body of an answer that arrived whole, else None."""
    return response.content or b"" if response.request_meta["exception"] is None else None


def _cause(response: Any) -> str:
    """Returns a word for what cut the connection; the library wraps some causes."""
    cause = response.request_meta["exception"]
    return type(getattr(cause, "original", None) or cause).__name__


def _title(content: bytes | None) -> str:
    """Returns a problem document's title, by which statistics can group."""
    try:
        return str(json.loads(content or b"")["title"])[:80]
    except (ValueError, KeyError, TypeError):
        return "without a problem document"


def _pause_s(response: Any, chance: Random) -> float:
    """Returns Retry-After in seconds where there is one, spread so that clients do not come back all at once."""
    asked = (response.headers or {}).get("Retry-After", "")
    return min(_MAX_PAUSE_S, float(asked) if asked.isdigit() else 0.2) * chance.uniform(0.5, 1)


for hook, listener in (
    (events.init_command_line_parser, add_options), (events.init, open_receipts), (events.quitting, decide_exit_code),
):
    hook.add_listener(listener)  # type: ignore[no-untyped-call]
