"""Rules, their tests and the dashboard's queries as Prometheus itself understands them, and the runbook's SQL."""

import re
import shutil
import subprocess
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest
import yaml

from tests import journal
from tests.machine import missing
from tests.prometheus import HOME, RUNBOOK, queries

TESTS = sorted((HOME / "tests").glob("*.yml"))


def promtool(*words):
    """Runs promtool, requires that it finds nothing wrong, and returns what it printed."""
    if not shutil.which("promtool"):
        missing("promtool")
    done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["prometheus.yml", "local.yml"])
def test_promtool_finds_nothing_wrong_with_configuration_and_rules(name):
    assert promtool("check", "config", "--lint=all", "--lint-fatal", HOME / name).count("SUCCESS") > 7


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_and_do_not_fire_as_their_tests_say(path):
    assert "SUCCESS" in promtool("test", "rules", path)


def test_promtool_s_tests_can_fail(tmp_path):
    """A rule whose bound is moved fails its tests: what passes above was looked at."""
    text = (HOME / "rules/wal.yml").read_text()
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/wal.yml").write_text(text.replace("wal_active == 1 unless", "wal_active == 2 unless"))
    (tmp_path / "tests").mkdir()
    shutil.copy(HOME / "tests/wal.yml", tmp_path / "tests")
    with pytest.raises(AssertionError, match="SpillwayWalActive"):
        promtool("test", "rules", tmp_path / "tests/wal.yml")


def test_every_query_of_the_dashboard_parses(tmp_path):
    rules = [{"record": f"query:{number}", "expr": expr} for number, expr in enumerate(queries())]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", file)


def test_the_runbook_s_sql_gives_a_day_that_lies_in_default_its_partition(redis_url, database_url):
    """Also the runbook's way to see which days do."""
    journal.make_consumer(redis_url, database_url)._loader.prepare()
    day = datetime.now(UTC).date() + timedelta(days=30)
    text = RUNBOOK.read_text()
    sql, = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    look = re.search(r'spillway psql "(SELECT date.*?)"', text)[1]
    for shown, written in (
        ("YYYYMMDD", f"{day:%Y%m%d}"), ("YYYY-MM-DD", f"{day}"), ("NEXT-DAY", f"{day + timedelta(days=1)}"),
    ):
        assert shown in sql
        sql = sql.replace(shown, written)
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("SET timezone = 'UTC'")
        for hour in (0, 23):
            cursor.execute(
                "INSERT INTO log_events (ts, received_at, batch_id, batch_index, message, attributes)"
                " VALUES (%s, now(), gen_random_uuid(), 0, 'early', '{}')", [f"{day} {hour}:59Z"],
            )
        cursor.execute(look)
        assert cursor.fetchall() == [(day, 2)]
        cursor.execute(sql)
        cursor.execute(look)
        assert cursor.fetchall() == []
        cursor.execute("SELECT tableoid::regclass::text, count(*) FROM log_events GROUP BY 1")
        assert cursor.fetchall() == [(f"log_events_{day:%Y%m%d}", 2)]
