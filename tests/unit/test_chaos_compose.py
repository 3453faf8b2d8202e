"""Chaos on containers without an engine: stand-ins for `docker` and `docker-compose` answer as they did.

What they print was taken from a real run of docker-compose.yml (Docker 20.10.24, docker-compose 1.29.2, two consumers),
cut down to what is read: tests/golden/compose.json.
"""

import json
import sys

import pytest

from ops.chaos.compose import Compose, attributed, docker, published, variables
from ops.chaos.recorder import Counts, log_lines
from ops.errors import ChaosFailed
from tests.journal import ROOT

CANNED = json.loads((ROOT / "tests/golden/compose.json").read_text())
INGESTOR, FIRST, SECOND = CANNED["ps"]["ingestor"][0], *CANNED["ps"]["consumer"]
REDIS = CANNED["ps"]["redis"][0]

# Notes how it was called. What was done to a container decides how it was when it was inspected after that.
STAND_IN = """#!{python} -IS
import json, pathlib, sys

here = pathlib.Path(__file__).parent
canned, states = (json.loads((here / name).read_text()) for name in ("canned.json", "states.json"))
words = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(words) + chr(10))
if words[0] == "docker-compose" and words[1] == "--project-directory":
    del words[1:3]
name, verb, last = words[0], words[1], words[-1]
ids = [one[:12] for one in canned["ps"].get(last, [last])]
if verb == "ps":
    print(*canned["ps"].get(last, []), sep=chr(10))
elif verb == "inspect":
    print(json.dumps([canned["inspect"][one][states.get(one, "running")] for one in words[2:]]))
elif verb == "logs":
    print(canned["logs"][last]["stdout"], end="")
    print(canned["logs"][last]["stderr"], end="", file=sys.stderr)
elif verb == "exec":
    print(canned["exec"][last], end="")
elif verb in ("stop", "start", "kill", "pause", "unpause"):
    after = dict(stop="stopped", kill="killed", start="restarted", pause="paused", unpause="running")
    states.update((one, after[verb]) for one in ids)
    (here / "states.json").write_text(json.dumps(states))
elif verb != "version":
    sys.exit(name + " does not know " + verb)
"""


class Engine:
    """The stand-ins, and how they were called."""

    def __init__(self, directory):
        self.directory = directory
        (directory / "canned.json").write_text(json.dumps(CANNED))
        (directory / "states.json").write_text("{}")
        for name in ("docker", "docker-compose"):
            (directory / name).write_text(STAND_IN.format(python=sys.executable))
            (directory / name).chmod(0o755)

    def change(self, change):
        canned = json.loads((self.directory / "canned.json").read_text())
        change(canned)
        (self.directory / "canned.json").write_text(json.dumps(canned))

    def calls(self, name, *verbs):
        calls = map(json.loads, (self.directory / "calls").read_text().splitlines())
        return [words for words in calls if words[0] == name and any(verb in words for verb in verbs)]


@pytest.fixture
def engine(tmp_path, monkeypatch):
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return Engine(directory)


@pytest.fixture
def compose(engine):
    return Compose(["docker-compose"], ROOT)


def place(container, state="running"):
    [network] = CANNED["inspect"][container][state]["NetworkSettings"]["Networks"].values()
    return network["IPAddress"]


def test_places_and_settings_are_those_of_the_containers(compose):
    postgres = CANNED["ps"]["postgres"][0][:12]
    assert compose.places == (
        "http://127.0.0.1:18480", "http://127.0.0.1:18481", f"redis://:spillway@{place(REDIS[:12])}:6379/0",
        f"postgresql://spillway:spillway@{place(postgres)}:5432/spillway",
    )
    assert compose.environment["SPILLWAY_SINK_TIMEOUT_S"] == "5" and "SPILLWAY_WAL" not in compose.environment


def test_every_host_is_asked_and_known_by_its_container(compose):
    assert list(compose.hosts().items()) == [
        ("ingestor", "http://127.0.0.1:18481"),
        *((one[:12], f"http://{place(one[:12])}:8081") for one in (FIRST, SECOND)),
    ]
    assert compose.consumer_of(FIRST[:12]) == FIRST[:12]


def test_a_server_that_is_started_again_is_followed_to_its_new_address(compose, engine):
    before = compose.places.redis_url
    compose.stop("redis")
    compose.start("redis")
    assert place(REDIS[:12], "restarted") != place(REDIS[:12])
    assert compose.places.redis_url == before.replace(place(REDIS[:12]), place(REDIS[:12], "restarted"))
    prefix = ["docker-compose", "--project-directory", str(ROOT)]
    assert engine.calls("docker-compose", "stop", "start") == [[*prefix, "stop", "redis"], [*prefix, "start", "redis"]]


def test_a_consumer_that_is_killed_is_no_host_until_it_is_started_again_elsewhere(compose, engine):
    name = FIRST[:12]
    compose.freeze(name)
    assert name not in compose.hosts()
    compose.crash(name)
    assert name not in compose.hosts() and compose.consumers() == [SECOND[:12]]
    compose.start(name)
    assert compose.hosts()[name] == f"http://{place(name, 'restarted')}:8081"
    assert engine.calls("docker", "pause", "kill", "start") == [
        ["docker", "pause", name], ["docker", "kill", name], ["docker", "start", name]]


def test_a_consumer_that_is_frozen_goes_on_when_it_is_to_run(compose, engine):
    compose.freeze(FIRST[:12])
    compose.start(FIRST[:12])
    assert engine.calls("docker", "unpause", "start") == [["docker", "unpause", FIRST[:12]]]
    assert FIRST[:12] in compose.hosts()


def test_logs_of_both_kinds_of_container_come_by_time_and_name_their_programs(compose):
    lines = compose.lines()
    assert [line.at for line in lines] == sorted(line.at for line in lines)
    assert {("ingest", "redis_unavailable"), ("replayer", "replay_complete"),
            (f"consumer {SECOND[:12]}", "entries_claimed")} <= {(line.program, line.event) for line in lines}


def test_segments_are_listed_in_the_ingestor(compose, engine):
    files = compose.wal_files()
    assert len(files) > 1 and all(name.endswith(".wal") for name in files)
    assert engine.calls("docker-compose", "exec")[0][3:] == ["exec", "-T", "ingestor", "ls", "/var/lib/spillway/wal"]


@pytest.mark.parametrize("change, text", [
    (lambda canned: canned["ps"].update(ingestor=[]), "ingestor does not run here: `docker-compose up --detach` first"),
    (lambda canned: canned["inspect"][REDIS[:12]].update(running=canned["inspect"][REDIS[:12]]["stopped"]),
     "redis does not run here"),
    (lambda canned: canned["inspect"][INGESTOR[:12]]["running"]["NetworkSettings"].update(Ports={}),
     "port 8080 of chaoscompose_ingestor_1 is not published"),
])
def test_what_does_not_run_is_named(engine, change, text):
    engine.change(change)
    with pytest.raises(ChaosFailed) as raised:
        Compose(["docker-compose"], ROOT)
    assert text in str(raised.value)


@pytest.mark.parametrize("name, text", [
    ("docker", "`docker` could not be run: No such file"), ("docker-compose", "`docker-compose` could not be run"),
])
def test_what_is_not_there_is_named(engine, name, text):
    (engine.directory / name).unlink()
    with pytest.raises(ChaosFailed, match=text):
        Compose(["docker-compose"], ROOT)


def test_containers_that_are_not_reached_are_named(engine):
    def move(canned):
        for one in canned["ps"]["postgres"]:
            for network in canned["inspect"][one[:12]]["running"]["NetworkSettings"]["Networks"].values():
                network["IPAddress"] = "no.such.address.invalid"
    engine.change(move)
    with pytest.raises(ChaosFailed, match="postgres is not reached at no.such.address.invalid:5432"):
        Compose(["docker-compose"], ROOT).reach()


def test_what_docker_says_against_it_is_told(engine):
    with pytest.raises(ChaosFailed, match="`docker dance` failed: docker does not know dance"):
        docker("dance")


def test_a_port_is_where_it_is_published():
    container = {"Name": "/x", "NetworkSettings": {"Ports": {"8080/tcp": [{"HostIp": "0.0.0.0", "HostPort": "9"}]}}}
    assert published(container, 8080) == "http://127.0.0.1:9"


def test_what_hosts_count_never_falls_though_one_is_away_or_begins_anew():
    counts, nothing = Counts(), dict.fromkeys(Counts().totals, 0.0)
    seen = []
    for told in ({"a": 5.0, "b": 7.0}, {"a": 6.0}, {"a": 6.0, "b": 1.0}, {"a": 8.0, "b": 2.0}):
        counts.see({host: {**nothing, "loaded_events": value} for host, value in told.items()})
        seen.append(counts.totals["loaded_events"])
    assert seen == [12.0, 13.0, 14.0, 17.0]


def test_a_variable_that_compose_only_passes_on_is_not_set():
    words = ["REDIS_URL=redis://:a=b@redis:6379/0", "SPILLWAY_WAL", "SPILLWAY_BIND=0.0.0.0", "EMPTY="]
    assert variables(words) == {"REDIS_URL": "redis://:a=b@redis:6379/0", "SPILLWAY_BIND": "0.0.0.0", "EMPTY": ""}


@pytest.mark.parametrize("name, program", [
    ("ingest", "ingest"), ("replayer", "replayer"), ("watch", "watch"), ("keeper", "keeper"), ("run", "run"),
    ("48ac17da96ac", "consumer 48ac17da96ac"),
])
def test_a_line_belongs_to_the_program_that_it_names(name, program):
    [line] = log_lines("", [f"2026-01-31T12:00:00.000Z INFO {name} started pid=8"])
    assert attributed(line).program == program
