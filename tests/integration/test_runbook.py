"""The runbook's block, pasted beside a real stack, and the commands by which it looks at things, run as they stand."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.machine import missing
from tests.prometheus import RUNBOOK

LOOKS = r"(?:curl|tail|df|redis-cli|supervisorctl status|spillway (?:audit|dlq list|psql|status|wal status))\b"
WRITES = r"DROP|SETID|…"


def pasted(running, script):
    """Runs the block and a script behind it in a shell that knows nothing else, and returns the finished process."""
    block = re.search(r"```sh\n(cd CHECKOUT.*?)```", RUNBOOK.read_text(), re.DOTALL)[1]
    places = {"CHECKOUT": ROOT, "$PWD/var": running.state, "$PWD/.venv/bin": Path(sys.executable).parent}
    for name, value in places.items():
        assert name in block
        block = block.replace(name, str(value))
    return subprocess.run(
        ["bash", "-c", f"{block}\nset -eu -o pipefail\n{script}"], capture_output=True, text=True, timeout=300,
        stdin=subprocess.DEVNULL,
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(running.state.parent), "PYTHONPATH": str(ROOT)},
    )


def looks():
    """Returns the commands that only look, each once."""
    spans = re.findall(r"`([^`\n]+)`", RUNBOOK.read_text())
    return [span for span in dict.fromkeys(spans) if re.match(LOOKS, span) and not re.search(WRITES, span)]


def test_the_block_finds_a_stack_with_ports_and_directories_of_its_own_and_its_looks_work(stack, tmp_path):
    if not shutil.which("curl"):
        missing("curl")
    running = stack(SPILLWAY_CONSUMERS="1", SPILLWAY_WORKERS="1", SPILLWAY_WAL_DIR=str(tmp_path / "log"))
    commands = looks()
    assert len(commands) > 30
    done = pasted(running, "".join(f"echo '==' {index}\n{line}\n" for index, line in enumerate(commands)))
    assert done.returncode == 0, f"{commands[int(done.stdout.rpartition('== ')[2].split()[0])]}: {done.stderr}"
    assert f"The WAL in {tmp_path / 'log'} is empty.\n==" in done.stdout, "also where the WAL is elsewhere"
    assert "No replayer" not in done.stdout and "\nBALANCED" in done.stdout


def test_the_block_starts_the_same_stack_again_when_it_is_down(stack):
    running = stack(SPILLWAY_CONSUMERS="1", SPILLWAY_WORKERS="1")
    before = running.facts["settings"]
    running.spillway("down")
    done = pasted(running, "spillway up --detach")
    assert done.returncode == 0, done.stderr
    assert "Nothing runs" in done.stdout and running.facts["settings"] == before
