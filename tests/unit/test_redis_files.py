"""Who wrote the file and who reads it, by its first bytes."""

import pytest

from ops import redis_files


@pytest.mark.parametrize("head, writer, readers", [
    (b"", "Redis 6.2 or earlier", None),
    (b"*2\r\n$6\r\nSELECT", "Redis 6.2 or earlier", {"Redis": (6, 2), "Valkey": (7, 2)}),
    (b"REDIS0009\xfa", "Redis 6.2 or earlier", {"Redis": (6, 2), "Valkey": (7, 2)}),
])
def test_the_file_of_6_2(tmp_path, head, writer, readers):
    (tmp_path / "appendonly.aof").write_bytes(head)
    found = redis_files.find(tmp_path)
    assert found is None if readers is None else (found.writer, found.readers) == (writer, readers)


@pytest.mark.parametrize("head, writer, readers", [
    (b"", "Redis 7 or Valkey", {"Redis": (7, 0), "Valkey": (7, 2)}),
    (b"*2\r\n$6\r\nSELECT", "Redis 7 or Valkey", {"Redis": (7, 0), "Valkey": (7, 2)}),
    (b"REDIS0009\xfa", "Redis 6.2 or earlier", {"Redis": (7, 0), "Valkey": (7, 2)}),
    (b"REDIS0010\xfa", "Redis 7.0", {"Redis": (7, 0), "Valkey": (7, 2)}),
    (b"REDIS0011\xfa", "Redis 7.2, or Valkey before 9", {"Redis": (7, 2), "Valkey": (7, 2)}),
    (b"REDIS0012\xfa", "Redis 7.4 or later", {"Redis": (7, 4)}),
    (b"REDIS0014\xfa", "Redis 8.0 or later", {"Redis": (8, 0)}),
    (b"VALKEY080\xfa", "Valkey 9.0 or later", {"Valkey": (9, 0)}),
    (b"VALKEY081\xfa", "Valkey 9.2 or later", {"Valkey": (9, 2)}),
    (b"VALKEY099\xfa", "Valkey 9.2 or later", {"Valkey": (9, 2)}),
])
def test_the_base_file_of_a_directory(tmp_path, head, writer, readers):
    parts = tmp_path / "appendonlydir"
    parts.mkdir()
    (parts / "appendonly.aof.7.base.rdb").write_bytes(head)
    (parts / "appendonly.aof.manifest").write_text(
        "file appendonly.aof.7.base.rdb seq 7 type b\n"
        "file appendonly.aof.6.incr.aof seq 6 type h\nfile appendonly.aof.7.incr.aof seq 7 type i startoffset 0\n"
    )
    found = redis_files.find(tmp_path)
    assert (found.writer, found.readers) == (writer, readers)
    assert found.path == parts / "appendonly.aof.7.base.rdb"
    assert not found.can_be_read_by("Redis", (6, 2, 14))
    assert found.can_be_read_by("Valkey", (9, 1, 2)) == (readers.get("Valkey", (99, 0)) <= (9, 1))


def test_nothing_is_nothing(tmp_path):
    assert redis_files.find(tmp_path) is None
