"""The load test tells the truth: what locust writes down is what the server answered.

Run as a program, this file is the server, which answers in a fixed pattern.
"""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4, uuid5

import pytest

from loadtest import receipt

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30

# What the server does with a request, and what that is to the client.
OUTCOMES = {
    "202": "accepted", "few": "accepted", "422": "rejected", "408": "rejected", "500": "unknown", "503": "unknown",
    "504": "unknown", "cut": "unknown", "torn": "unknown", "none": "unknown",
}


@contextmanager
def program(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, **options) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def locust(pattern: str, directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Runs the load test against a server that answers in `pattern`; `directory` gets `receipts` and `requests`."""
    if find_spec("locust") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("locust is not installed")
    with program(sys.executable, __file__, pattern, str(directory / "requests")) as server:
        assert server.stdout
        port = server.stdout.readline().strip()
        with program(
            sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "-u", "6", "-r", "60",
            "--host", f"http://127.0.0.1:{port}", "--receipts", str(directory / "receipts"), "--batch-size", "5",
            *options, stderr=subprocess.PIPE,
        ) as client:
            yield client


def test_receipts_hold_what_the_server_answered(tmp_path: Path) -> None:
    pattern = "202 202 503 cut 202 torn 408 202 504"
    with locust(pattern, tmp_path, "-t", "2s", "--bad", "0", "--repost", "0.5", "--json") as client:
        output, errors = client.communicate(timeout=DEADLINE_S)
    assert client.returncode == 0, errors
    told, in_flight = receipts(tmp_path / "receipts")
    happened = requests(tmp_path / "requests")
    assert {kind for outcomes in told.values() for kind, _ in outcomes} == {"accepted", "rejected", "unknown"}
    assert in_flight <= 6
    assert sum(map(len, happened.values())) - sum(map(len, told.values())) <= in_flight
    for tag, outcomes in told.items():  # an equal number also says that no library has sent anything again
        assert outcomes == [(OUTCOMES[action], batch_id) for action, batch_id in happened[tag]][:len(outcomes)]
    statistics = json.loads(output)
    kinds = [kind for outcomes in told.values() for kind, _ in outcomes]
    assert sum(entry["num_requests"] for entry in statistics) == len(kinds) > 50
    assert sum(entry["num_failures"] for entry in statistics) == len(kinds) - kinds.count("accepted")
    assert {entry["name"] for entry in statistics} == {
        f"/ingest {what}{again}" for what in ("single", "batch") for again in ("", " retry", " repost")}


@pytest.mark.parametrize(("pattern", "bad", "code", "text"), [
    ("202 422", "0", 1, "rejected: 422 Refused"), ("202 500", "0", 1, "unknown: 500 Refused"),
    ("202 none", "0", 1, "broken: 202 without"), ("202 few", "0", 1, "broken: not all events were accepted"),
    ("202", "1", 1, "broken: a bad request was accepted"), ("503", "0", 1, "unknown: 503 Refused"),
    ("202 503", "0", 0, "unknown: 503 Refused"),
])
def test_only_a_broken_interface_fails_the_run(pattern: str, bad: str, code: int, text: str, tmp_path: Path) -> None:
    with locust(pattern, tmp_path, "-t", "3s", "--bad", bad) as client:
        output = "".join(client.communicate(timeout=DEADLINE_S))
    assert (client.returncode, text in output) == (code, True), output


def test_a_rate_is_kept_and_a_seed_makes_the_same_requests_again(tmp_path: Path) -> None:
    sizes = []
    for name in ("one", "other"):
        directory = tmp_path / name
        directory.mkdir()
        with locust("202", directory, "-u", "1", "-t", "3s", "--rate", "10", "--seed", "7", "--repost", "0") as client:
            client.communicate(timeout=DEADLINE_S)
        promises = receipt.read(directory / "receipts").promises
        assert 1 < len(promises) <= 31
        sizes.append([promise.count for promise in promises.values()])
    both = min(map(len, sizes))
    assert sizes[0][:both] == sizes[1][:both]


def test_a_killed_run_leaves_its_requests_unknown(tmp_path: Path) -> None:
    path = tmp_path / "receipts"
    with locust("hang", tmp_path) as client:
        until(lambda: path.exists() and path.read_bytes().count(b'"sent"') == 6)
        client.send_signal(signal.SIGKILL)
        client.wait(DEADLINE_S)
    assert [promise.outcome for promise in receipt.read(path).promises.values()] == ["unknown"] * 6


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def receipts(path: Path) -> tuple[dict[str, list[tuple[str, str]]], int]:
    """Returns the outcomes by tag, each with its batch id, and how many attempts have none."""
    told, in_flight = defaultdict(list), 0
    for line in path.read_text().split("\n"):
        record = json.loads(line) if line else {"receipt": "run"}
        if record["receipt"] == "sent":
            in_flight += 1
        elif record["receipt"] != "run":
            in_flight -= 1
            told[record["tag"]].append((record["receipt"], record.get("batch_id", "")))
    return told, in_flight


def requests(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Returns what the server did by tag, each with the batch id that it gave."""
    happened = defaultdict(list)
    for line in path.read_text().splitlines():
        tag, action, batch_id = line.split(",")
        happened[tag].append((action, batch_id))
    return happened


def serve(pattern: list[str], log: int) -> None:
    """Answers `/ingest` on a free port, which it prints, with one action of the pattern after the other."""
    from gevent import monkey
    monkey.patch_all()
    from gevent.event import Event
    from gevent.pywsgi import WSGIHandler, WSGIServer

    class Handler(WSGIHandler):  # type: ignore[misc]
        def get_environ(self) -> dict[str, Any]:
            return super().get_environ() | {"socket": self.socket}  # type: ignore[no-any-return]

    def torn(connection: Any, content: bytes) -> Iterator[bytes]:
        yield content[:9]
        connection.shutdown(2)

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        body = environ["wsgi.input"].read()
        body = gzip.decompress(body) if environ.get("HTTP_CONTENT_ENCODING") else body
        tags = re.findall(rb'"trace_id": ?"([0-9a-f]{32})"', body)
        key, action = environ.get("HTTP_IDEMPOTENCY_KEY"), pattern[0]
        pattern.append(pattern.pop(0))
        batch_id = str(uuid5(UUID(int=0), key) if key else uuid4()) if OUTCOMES.get(action) == "accepted" else ""
        os.write(log, f"{tags[0].decode()},{action},{batch_id}\n".encode())
        if action == "hang":
            Event().wait()
        if action == "cut":
            environ["socket"].shutdown(2)
        if action.isdigit() and action != "202":
            start(f"{action} Refused", [("Content-Type", "application/problem+json"), ("Retry-After", "0")])
            return [b'{"title": "Refused"}']
        count = len(tags) - (action == "few")
        content = json.dumps({"batch_id": batch_id, "accepted": count, "durability": "stream"}).encode()
        start("202 Accepted", [] if action == "none" else [("Content-Length", str(len(content)))])
        return torn(environ["socket"], content) if action == "torn" else [b"x" if action == "none" else content]

    server = WSGIServer(("127.0.0.1", 0), answer, handler_class=Handler, log=None, error_log=None)
    server.start()
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(sys.argv[1].split(), os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT))
