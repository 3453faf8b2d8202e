"""wrk, a load generator in C: how it is found, what it is told and what it says.

Source: https://github.com/wg/wrk, SCRIPTING.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ops.errors import BenchFailed

# Bodies come from a file, one a line, and are made into requests before the clock starts.
_SCRIPT = """\
local requests, at = {}, 0
function init(args)
  if args[1] == nil then return end
  wrk.headers["Content-Type"] = "application/json"
  for body in io.lines(args[1]) do requests[#requests + 1] = wrk.format("POST", nil, nil, body) end
  request = function()
    at = at % #requests + 1
    return requests[at]
  end
end
function done(summary, latency, count)
  local e = summary.errors
  io.write(string.format("tally answers=%d microseconds=%d connect=%d read=%d write=%d status=%d timeout=%d\\n",
    summary.requests, summary.duration, e.connect, e.read, e.write, e.status, e.timeout))
end
"""
_TALLY = re.compile(r"^tally answers=(\d+) microseconds=(\d+) (.+)$", re.MULTILINE)
_MAX_BODIES = 1000  # More would come from beyond the caches, and take a tenth of what the server has of the cores.
_TIMEOUT_S = 60
_GRACE_S = 120


class Outcome(NamedTuple):
    """What wrk counted; every answer was a 2xx or a 3xx."""

    answers: int
    seconds: float


def program() -> str | None:
    """Returns where wrk is, or None."""
    return shutil.which("wrk")


def version(path: str) -> str:
    """Returns its name and version."""
    said = subprocess.run([path, "-v"], capture_output=True, text=True).stdout
    found = re.match(r"wrk \S*?(\d[\w.]*)", said)
    return f"wrk {found[1]}" if found else "wrk"


def run(path: str, url: str, bodies: Sequence[bytes], connections: int, duration_s: int) -> Outcome:
    """Posts the bodies in turn, the first thousand of them, for whole seconds, or gets `url` where there are none.

    Raises:
        BenchFailed: A request was refused or not answered, or wrk itself failed.
    """
    with tempfile.TemporaryDirectory(prefix="spillway-wrk-") as place:
        script, lines = Path(place) / "post.lua", Path(place) / "bodies"
        script.write_text(_SCRIPT)
        lines.write_bytes(b"\n".join(bodies[:_MAX_BODIES]))
        command = [path, "--threads=1", f"--connections={connections}", f"--duration={duration_s}s",
                   f"--timeout={_TIMEOUT_S}s", f"--script={script}", url, *(["--", str(lines)] if bodies else [])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=duration_s + _GRACE_S)
    if done.returncode:
        raise BenchFailed(f"wrk ended with status {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return parse(done.stdout)


def parse(text: str) -> Outcome:
    """Returns what the script wrote at its end.

    Raises:
        BenchFailed: There were errors, or it is not there.
    """
    found = _TALLY.search(text)
    if not found:
        raise BenchFailed(f"wrk said nothing of its load: {text.strip()[-300:]!r}")
    errors = dict(pair.split("=") for pair in found[3].split())
    failed = [f"{count} {name}" for name, count in errors.items() if int(count)]
    if failed:
        raise BenchFailed(f"wrk met errors while it measured: {', '.join(failed)}")
    if not int(found[1]):
        raise BenchFailed("wrk had no answer while it measured")
    return Outcome(int(found[1]), int(found[2]) / 1e6)
