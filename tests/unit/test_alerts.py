"""Alerts, their tests and the runbook are one set; what they name exists. promtool and a real Prometheus run them."""

import argparse
import re
import shlex
from importlib import import_module

import yaml

from app.settings import Settings
from ops import command, program, supervisor_config
from tests.journal import ROOT
from tests.prometheus import HOME, RUNBOOK, alerts, names, queries, rules
from tests.unit.test_house_rules import MODULES

ALERTS = alerts()
WATCHDOG = "SpillwayWatchdog"
SEVERITIES = {"page", "ticket"}
TEXT = RUNBOOK.read_text()
# `> letters.jsonl` and what follows it is the shell's. Words in capitals are for the reader to replace.
SPANS = [span.partition(" > ")[0] for span in re.findall(r"`([^`\n]+)`", TEXT)]
LOGS = {*supervisor_config._PROGRAMS, "consumer-*"} - {"consumers"}


def defined():
    """Returns the names of every series that the code makes."""
    found = set()
    for path in MODULES:
        for kind, name in re.findall(r'(Counter|Histogram|Gauge)\w*\(\s*"(\w+)"', path.read_text()):
            found |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "Histogram" else {name}
    return found


def cases():
    """Returns which alerts are expected to fire, and which not to, in some test of promtool's."""
    fires, is_quiet = set(), set()
    for path in (HOME / "tests").glob("*.yml"):
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                (fires if case["exp_alerts"] else is_quiet).add(case["alertname"])
    return fires, is_quiet


def test_names_are_told_from_functions_labels_and_words():
    expr = 'max by (job) (rate(a_total{le="x_y"}[5m])) / on (job) b:c:d offset 15m > 1e3 unless up - time() or abs(-e)'
    assert names(expr) == {"a_total", "b:c:d", "up", "e"}


def test_every_alert_says_how_urgent_it_is_what_it_is_and_where_to_read_on():
    for name, rule in ALERTS.items():
        assert re.fullmatch(r"Spillway([A-Z][a-z0-9]+)+", name)
        assert rule["labels"]["severity"] in SEVERITIES or name == WATCHDOG
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"ops/RUNBOOK.md#{name.lower()}"
    assert len(ALERTS) == sum("alert" in rule for rule in rules()) > 30


def test_every_alert_is_tested_firing_and_not_firing():
    fires, is_quiet = cases()
    assert fires == set(ALERTS)
    assert is_quiet == set(ALERTS) - {WATCHDOG}


def test_every_rule_file_is_tested():
    tests = [yaml.safe_load(path.read_text()) for path in (HOME / "tests").glob("*.yml")]
    tested = {file for test in tests for file in test["rule_files"]}
    assert tested == {f"../rules/{path.name}" for path in (HOME / "rules").glob("*.yml")}


def test_every_metric_that_rules_and_dashboard_ask_for_exists():
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = defined() | recorded | {"up", "ALERTS"}
    for expr in (*(rule["expr"] for rule in rules()), *queries()):
        assert names(expr) and not names(expr) - known or expr == "vector(1)", expr


def test_the_runbook_has_one_heading_an_alert_and_says_how_urgent_it_is():
    headings = re.findall(r"^## (\w+)\n\n\*\*Means \((\w+)\)\.\*\*", TEXT, re.MULTILINE)
    assert sorted(headings) == sorted((name, rule["labels"]["severity"]) for name, rule in ALERTS.items())
    assert len(headings) == TEXT.count("\n## Spillway")
    for part in ("Means", "Look.", "Do.", "At 3 a.m.?"):
        assert TEXT.count(f"\n**{part}") == len(headings), part


def test_the_runbook_has_an_index_in_the_order_of_its_headings():
    index = re.findall(r"^\| \[(\w+)\]\(#(\w+)\) \| (\w+) \|$", TEXT, re.MULTILINE)
    headings = re.findall(r"^## (Spillway\w+)$", TEXT, re.MULTILINE)
    assert index == [(name, name.lower(), ALERTS[name]["labels"]["severity"]) for name in headings]


def test_the_runbook_says_of_every_process_what_its_absence_means():
    rows = re.findall(r"^\| `([\w:-]+)`[^|]*\| `([\w-]+)\.log`[^|]*\| ([^|]+) \| [^|]+ \|$", TEXT, re.MULTILINE)
    assert {name.partition(":")[0] for name, _, _ in rows} == set(supervisor_config._PROGRAMS)
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name, log, where in rows:
        assert log == name.rpartition(":")[2]
        for service in re.findall(r"`(\w+)`", where):
            words = services[service]["command"]
            assert log.partition("-")[0] in words or service == name, f"{name} does not run in {service}"


def test_what_deletes_rows_or_letters_cannot_be_pasted_as_it_stands_and_wants_the_owner_s_word():
    blocks = [" ".join(block.split()) for block in re.split(r"\n(?=- )|\n\n(?! )", TEXT)]
    found = [block for block in blocks if re.search("DROP TABLE|DELETE FROM|dlq purge", block)]
    assert len(found) == 4
    for block in found:
        assert "with the owner's word" in block.lower()
        assert re.search("YYYYMMDD|REASON", block) and not re.search(r"_20\d{6}|'20\d\d-", block)


def test_the_runbook_names_no_alert_that_is_not_there():
    assert set(re.findall(r"\bSpillway[A-Z]\w+", TEXT)) == set(ALERTS)


def test_every_spillway_command_of_the_runbook_parses():
    lines = [span.removeprefix("docker compose exec ingestor ") for span in SPANS]
    lines = [line for line in lines if re.match(r"spillway \w", line)]
    assert len(lines) > 30
    for line in lines:
        _, name, *words = shlex.split(line.replace("REASON", "bad_event"))
        assert name in command._COMMANDS, line
        parser = argparse.ArgumentParser(exit_on_error=False)
        import_module(f"ops.{name}").add_arguments(parser)
        parser.parse_args(words)


def test_every_supervisorctl_line_of_the_runbook_names_a_program():
    programs = {*supervisor_config._PROGRAMS, "consumers:consumer-00", "consumers:*"}
    lines = [shlex.split(span) for span in SPANS if span.startswith("supervisorctl ")]
    assert len(lines) > 20
    for _, action, *words in lines:
        size = ["-20000"] if action == "tail" else []
        assert action in {"status", "start", "restart", "tail"} and words[:len(size)] == size, words
        assert set(words[len(size):]) <= programs | {"PROCESS"} and words[len(size):], words


def test_every_log_of_the_runbook_is_that_of_a_program():
    found = re.findall(r"`tail -n 99 \$LOG/(\S+)\.log`", TEXT)
    assert len(found) == TEXT.count("`tail -") > 20 and set(found) <= LOGS


def test_every_curl_of_the_runbook_asks_for_a_page_that_is_there():
    routes = {"I": (ROOT / "app/edge.py").read_text(), "A": (ROOT / "app/admin.py").read_text()}
    found = re.findall(r"`curl \"?\$([AI])(/\w+)(?:\?limit=10\")?`", TEXT)
    assert len(found) == TEXT.count("`curl ") > 10
    for listener, path in found:
        assert f'add_route("{path}"' in routes[listener], path


def test_the_runbook_rests_on_no_port_or_directory_of_a_host():
    body = TEXT[TEXT.index("\n## SpillwayWatchdog"):]
    assert "localhost" not in body and not re.search(r"(?<!\w)var/", body)


def test_settings_services_and_lines_of_the_log_that_the_runbook_names_exist():
    settings = {"REDIS_URL", *(f"SPILLWAY_{name.upper()}" for name in Settings.__struct_fields__)}
    assert set(re.findall(r"\b(?:SPILLWAY|REDIS)_[A-Z_]+", TEXT)) <= settings
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert set(re.findall(r"docker compose (?:logs|restart|exec) (\w+)", TEXT)) <= set(services)
    code = "".join(path.read_text() for path in MODULES)
    for word in {span for span in SPANS if re.fullmatch(r"[a-z]+(_[a-z]+)+", span)}:
        assert re.search(rf"\b{word}\b", code), word


def test_prometheus_looks_for_the_services_where_they_listen():
    config = yaml.safe_load((HOME / "prometheus.yml").read_text())
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    found, = config["scrape_configs"][0]["dns_sd_configs"]
    ours = {name for name, service in services.items() if set(program.NAMES) & set(service.get("command", []))}
    assert set(found["names"]) == ours
    assert found["port"] == Settings().admin_port
    local = yaml.safe_load((HOME / "local.yml").read_text())
    assert local["scrape_configs"][0]["static_configs"] == [{"targets": [f"127.0.0.1:{Settings().admin_port}"]}]
    assert {one["scrape_configs"][0]["job_name"] for one in (config, local)} == {"spillway"}
