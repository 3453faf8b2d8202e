"""The status monitor that a 202 names, on real servers."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

from tests import journal


@contextmanager
def edge(port, directory, **environ):
    """Runs ingest with one worker."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-k", "gevent", "-b", f"127.0.0.1:{port}", "--no-control-socket",
         "app.edge:get_app()"], cwd=journal.ROOT, stderr=subprocess.DEVNULL,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory), "SPILLWAY_DATA_DIR": str(directory), **environ},
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def get(url, data=None):
    """Returns status, headers and document; status 0 while nobody listens."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "text/plain"})) as response:
            return response.status, response.headers, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.loads(error.read())
    except urllib.error.URLError:
        return 0, {}, {}


def test_location_says_404_until_the_batch_is_stored_and_then_what_is_stored(
    redis_url, database_url, postgres_server, free_port, tmp_path
):
    with edge(free_port, tmp_path, REDIS_URL=redis_url, DATABASE_URL=database_url) as url:
        journal.until(lambda: get(f"{url}/readyz")[0] == 200, "ingest to be ready")
        status, headers, accepted = get(f"{url}/ingest", b"one\ntwo")
        assert (status, headers["Location"]) == (202, f"/batches/{accepted['batch_id']}")
        monitor = url + headers["Location"]
        status, headers, problem = get(monitor)
        assert (status, headers["Retry-After"]) == (404, "1") and "not stored" in problem["detail"]
        journal.drain(redis_url, database_url)
        status, _, document = get(monitor)
        assert status == 200
        assert {name: document[name] for name in ("batch_id", "state", "event_count", "dead_count")} == {
            "batch_id": accepted["batch_id"], "state": "stored", "event_count": 2, "dead_count": 0}
        assert get(f"{url}/batches/no-uuid")[0] == 404
        postgres_server.stop()
        status, headers, _ = get(monitor)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert get(f"{url}/ingest", b"three")[0] == 202
