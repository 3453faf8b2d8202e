"""Under its own name and version stands the server that a figure was measured on: Valkey also tells one of Redis."""

import pytest

from ops.bench import machine
from ops.stack import Facts
from tests import versions


@pytest.mark.parametrize("version", versions.VERSIONS)
def test_the_buffer_stands_in_the_results_under_its_own_name_and_version(version, database_url):
    with versions.running(version) as url:
        facts = Facts("", "", url, database_url, "", "", [], {})
        found = machine.servers(facts)
    name, number = version.split()
    assert set(found) == {name, "postgresql"} and found[name].startswith(f"{number}.")
