"""What chaos reads of a container: its environment and its log."""

import pytest

from ops.chaos.compose import attributed, variables
from ops.chaos.recorder import log_lines


def test_a_variable_that_compose_only_passes_on_is_not_set():
    words = ["REDIS_URL=redis://:a=b@redis:6379/0", "SPILLWAY_WAL", "SPILLWAY_BIND=0.0.0.0", "EMPTY="]
    assert variables(words) == {"REDIS_URL": "redis://:a=b@redis:6379/0", "SPILLWAY_BIND": "0.0.0.0", "EMPTY": ""}


@pytest.mark.parametrize("name, program", [
    ("ingest", "ingest"), ("replayer", "replayer"), ("run", "run"), ("48ac17da96ac", "consumer 48ac17da96ac"),
])
def test_a_line_belongs_to_the_program_that_it_names(name, program):
    [line] = log_lines("", [f"2026-01-31T12:00:00.000Z INFO {name} started pid=8"])
    assert attributed(line).program == program
