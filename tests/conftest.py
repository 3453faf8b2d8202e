"""Real servers for the tests: the embedded Redis and PostgreSQL on free ports, and whole stacks under supervisor."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg2
import pytest
import redis

from app import stream
from ops import family
from ops.postgres_server import PostgresServer
from ops.redis_server import RedisServer
from tests import journal
from tests.journal import ROOT, until

DEADLINE_S = 30
# Which servers the tests run on; unset: those that `spillway up` would take.
CHOSEN = {name: os.environ.get(name, "") for name in ("SPILLWAY_REDIS_SERVER", "SPILLWAY_POSTGRES_BIN")}


def pick_port():
    """Returns a free port outside the ephemeral range: a client that reconnects to a dead port inside it can end up
    connected to itself."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    outside = [*range(10_000, low), *range(high + 1, 65_536)] or range(1024, 65_536)
    while True:
        port = random.SystemRandom().choice(outside)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


class Server:
    """A real server that a test may stop, kill and pause; its data stay."""

    def __init__(self, server, is_answering, stop_signal, log):
        self.url = None
        self._server, self._is_answering, self._stop_signal, self._log = server, is_answering, stop_signal, log
        self._process = None

    def start(self):
        """Starts it, unless it runs, and returns once it answers."""
        if self._process is None:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(self._server.prepare(), stdout=log, stderr=log, cwd="/")
            self.url = self._server.url
        self.resume()
        until(lambda: self._process.poll() is not None or self._is_answering(self.url), "the server to answer")
        assert self._process.poll() is None, self._log.read_text()

    def stop(self):
        """Ends it in order, and waits until it has."""
        self._end(self._stop_signal)

    def kill(self):
        """Ends it with SIGKILL."""
        self._end(signal.SIGKILL)

    def pause(self):
        """Stops it answering, connections kept; a server of several processes as a whole."""
        self._signal_all(signal.SIGSTOP)

    def resume(self):
        """Lets it go on after `pause`."""
        self._signal_all(signal.SIGCONT)

    def _end(self, number):
        if self._process is not None:
            self.resume()
            pids = self._pids()
            self._process.send_signal(number)
            self._process.wait(DEADLINE_S)
            self._process = None
            # A postmaster that was killed leaves its children for a moment, and they keep a new one from starting.
            until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "its processes to end")

    def _pids(self):
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return [self._process.pid, *map(int, children)]

    def _signal_all(self, number):
        for pid in self._pids():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass  # a backend that has just ended


def redis_answers(url):
    """Tells whether Redis takes commands."""
    try:
        with closing(redis.Redis.from_url(url, socket_timeout=1)) as client:
            return client.ping()
    except redis.RedisError:
        return False


def postgres_answers(url):
    """Tells whether PostgreSQL takes connections."""
    try:
        psycopg2.connect(url, connect_timeout=2).close()
        return True
    except psycopg2.OperationalError:
        return False


@pytest.fixture(scope="session")
def short_dir():
    """A directory with a path short enough for Unix sockets, that PostgreSQL's own user may enter."""
    path = Path(tempfile.mkdtemp(prefix="sp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def free_port():
    """A port that nobody listens on."""
    return pick_port()


@pytest.fixture(scope="session")
def shared_redis(short_dir):
    """One Redis for the session; take `redis_server` or `redis_url`."""
    server = Server(
        RedisServer(short_dir, pick_port(), 256 << 20, CHOSEN["SPILLWAY_REDIS_SERVER"]), redis_answers,
        signal.SIGTERM, short_dir / "redis.log",
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def shared_postgres(short_dir):
    """One PostgreSQL for the session; take `postgres_server` or `database_url`."""
    server = Server(
        PostgresServer(short_dir, pick_port(), CHOSEN["SPILLWAY_POSTGRES_BIN"]), postgres_answers,
        signal.SIGINT, short_dir / "postgres.log",
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(shared_redis):
    """A running Redis, empty; whatever the test does to it, the next one finds it running."""
    shared_redis.start()
    with closing(redis.Redis.from_url(shared_redis.url)) as client:
        client.flushall()
        defaults = client.config_get("maxmemory")
        yield shared_redis
    shared_redis.start()
    with closing(redis.Redis.from_url(shared_redis.url)) as client:
        client.config_set("maxmemory", defaults["maxmemory"])


@pytest.fixture
def postgres_server(shared_postgres):
    """A running PostgreSQL; whatever the test does to it, the next one finds it running."""
    shared_postgres.start()
    yield shared_postgres
    shared_postgres.start()


@pytest.fixture
def redis_url(redis_server):
    """The URL of an empty Redis."""
    return redis_server.url


@pytest.fixture
def client(redis_url):
    """A client of an empty Redis in which the consumer group is."""
    with closing(redis.Redis.from_url(redis_url)) as client:
        stream.ensure_group(client)
        yield client


@pytest.fixture
def database_url(postgres_server):
    """The URL of an empty database of the test's own."""
    name = f"test_{uuid.uuid4().hex}"
    execute(postgres_server.url, f"CREATE DATABASE {name}")
    yield f"{postgres_server.url.rpartition('/')[0]}/{name}"
    postgres_server.start()
    until(lambda: is_dropped(postgres_server.url, name), "the database to be free")


@pytest.fixture
def consumer(redis_url, database_url, tmp_path):
    """A factory of consumer processes; each has its log in `.log`, and `.has_logged(*words)`."""
    processes = []

    def start(name="consumer-00", url=database_url, buffer=redis_url, **settings):
        log = tmp_path / name
        process = journal.start("-m", "workers.consumer", log=log, REDIS_URL=buffer, DATABASE_URL=url,
                                SPILLWAY_CONSUMER_NAME=name, SPILLWAY_PARTITION_DAYS="1", **settings)
        process.has_logged = lambda *words: all(word in log.read_text() for word in words)
        process.log = log
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.send_signal(signal.SIGCONT)
        process.terminate()
    assert {process.wait(timeout=30) for process in processes} <= {0, -signal.SIGKILL}


def is_dropped(url, name):
    """Drops a database; not yet while autovacuum, which only a superuser may end, is at work in it."""
    try:
        execute(url, f"DROP DATABASE {name} WITH (FORCE)")
    except psycopg2.errors.InsufficientPrivilege:
        return False
    return True


def execute(url, statement):
    """Runs one statement outside a transaction."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)


class RunningStack:
    """A data directory with ports of its own, and the `spillway` command on it.

    Args:
        state: The data directory.
        overrides: Settings by their names in the environment.
    """

    def __init__(self, state, overrides):
        ports = {
            f"SPILLWAY_{name}": str(pick_port()) for name in ("PORT", "ADMIN_PORT", "REDIS_PORT", "POSTGRES_PORT")
        }
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "CI")}
        # As installed or not: what is tested is this checkout.
        # Without canaries: tests count rows.
        self.environ = {**kept, **CHOSEN, **ports, "PYTHONPATH": str(ROOT), "SPILLWAY_DATA_DIR": str(state),
                        "SPILLWAY_CANARY": "off", **overrides}
        self.state = state

    def spillway(self, *words, status=0):
        """Runs the command, requires its exit status (None: any), and returns the finished process."""
        done = subprocess.run(
            [sys.executable, "-m", "ops.command", *words],
            env=self.environ, cwd=self.state.parent, capture_output=True, text=True, timeout=180,
        )
        assert status in (None, done.returncode), done.stdout + done.stderr
        return done

    def supervisorctl(self, *words):
        """Runs supervisorctl on the stack's configuration and returns what it printed."""
        return subprocess.run(
            [sys.executable, "-m", "supervisor.supervisorctl", "-c", self.facts["supervisor_config"], *words],
            capture_output=True, text=True, timeout=120,
        ).stdout

    @property
    def facts(self):
        """What `spillway status --json` says now."""
        return json.loads(self.spillway("status", "--json", status=None).stdout)

    def end(self):
        """Ends all of it, at once: the second that supervisord takes for each program is not what is tested."""
        for supervisord in family.supervisords(self.state):
            os.kill(supervisord, signal.SIGKILL)
        self.spillway("down", status=None)

    def pid(self, name):
        """Returns the pid of one running program, or None."""
        running = {process["name"]: process["pid"] for process in self.facts["processes"]
                   if process["state"] == "RUNNING"}
        return running.get(name)


@pytest.fixture
def stack(request):
    """A factory: `stack(SPILLWAY_WORKERS="1", …)` starts a whole stack of its own and returns it; all end here.

    `stack(is_started=False, …)` leaves the starting to the test.
    """
    with ExitStack() as ends:
        def start(is_started=True, **overrides):
            directory = Path(tempfile.mkdtemp(prefix="sp"))
            ends.callback(shutil.rmtree, directory)
            running = RunningStack(directory / "var", overrides)
            ends.callback(running.end)
            if is_started:
                running.spillway("up", "--detach")
            return running
        yield start
