"""wrk, the load generator of the benchmark where there is one."""

import pytest

from ops.bench import load, wrk
from ops.errors import BenchFailed
from tests.machine import missing
from tests.stub import Stub


@pytest.fixture
def generator():
    if not wrk.program():
        missing("wrk")
    return load.generator("wrk")


def test_it_posts_for_as_long_as_it_is_told(generator):
    assert generator.name.startswith("wrk 4")
    with Stub() as stub:
        tally = generator.run(stub.url, [b'{"message": "a"}', b'{"message": "b"}'], 4, 1)
    assert 0 < tally.answers <= stub.count
    assert tally.rate == tally.answers / tally.seconds and tally.seconds > 0.9


def test_its_errors_are_errors_and_no_rate(generator):
    with Stub(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n") as stub, pytest.raises(BenchFailed, match="status"):
        generator.run(stub.url, [b"{}"], 2, 1)
