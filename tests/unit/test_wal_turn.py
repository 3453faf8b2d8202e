"""Whose turn it is to read a log: one process's, until it ends."""

import errno
import fcntl
import signal
import subprocess
import sys
import threading

import pytest

from wal.errors import WalFailed
from wal.turn import Turn
from workers import replayer

TAKE = "import sys, time; from pathlib import Path; from wal.turn import Turn; " \
    "turn = Turn(Path(sys.argv[1])); print(turn.take(), flush=True); time.sleep(600)"


def test_the_turn_is_one_process_s_until_that_is_killed(tmp_path):
    turn = Turn(tmp_path)
    with subprocess.Popen([sys.executable, "-c", TAKE, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        assert not turn.take()
        other.kill()
    assert other.returncode == -signal.SIGKILL
    assert turn.take() and turn.take()
    assert not Turn(tmp_path).take()
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_on_directories_keeps_nobody_from_replaying(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.EBADF, "NFS locks what is open for writing")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(WalFailed):
        Turn(tmp_path).take()
    replayer.await_turn(Turn(tmp_path), threading.Event())
    assert "replayer_may_not_be_alone" in caplog.text


def test_a_replayer_that_stands_by_stops_when_it_is_told(tmp_path):
    assert (first := Turn(tmp_path)).take()
    stop = threading.Event()
    stop.set()
    replayer.await_turn(Turn(tmp_path), stop)
    assert first.take()
