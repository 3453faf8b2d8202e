"""What tests know of Prometheus: the shipped rules and dashboard, the metrics that they name, and a real server."""

import json
import re
import shutil
import signal
import subprocess
import urllib.parse
import urllib.request
from contextlib import suppress

import yaml

from tests.journal import ROOT, until
from tests.machine import missing

HOME = ROOT / "ops/prometheus"
DASHBOARD = ROOT / "ops/grafana/dashboards/spillway.json"
RUNBOOK = ROOT / "ops/RUNBOOK.md"

_WORDS = {"and", "or", "unless", "on", "by", "offset", "group_left", "group_right", "ignoring", "without", "bool"}


def rules():
    """Returns every rule that is shipped, in order of file and place."""
    files = yaml.safe_load((HOME / "prometheus.yml").read_text())["rule_files"]
    return [rule for pattern in files for path in sorted(HOME.glob(pattern))
            for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def alerts():
    """Returns the rules that are alerts, by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def panels():
    """Returns the dashboard's panels but for its rows."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries():
    """Returns what the dashboard asks, with the values of Grafana's variables for a test."""
    found = [target["expr"] for panel in panels() for target in panel["targets"]]
    found += [one["expr"] for one in json.loads(DASHBOARD.read_text())["annotations"]["list"]]
    for name, value in (("$__rate_interval", "1m"), ("$job", "spillway.*"), ("$instance", ".*")):
        found = [expr.replace(name, value) for expr in found]
    assert not any("$" in expr for expr in found)
    return found


def names(expr):
    """Returns the metrics that an expression names."""
    bare = re.sub(r"\"[^\"]*\"|\{[^}]*\}|\[[^\]]*\]", "", expr)
    bare = re.sub(r"\b(?:by|on|ignoring|without|group_left|group_right) ?\([^)]*\)", "", bare)
    bare = re.sub(r"\boffset \w+", "", bare)
    return {word for word in re.findall(r"(?<![\w:.$])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])", bare)} - _WORDS


class Prometheus:
    """A real one, on the shipped rules.

    Only time is changed: it looks every second, and the minutes that an alert has to last are seconds. What the rules
    ask is what is shipped.

    Args:
        directory: Empty; takes its configuration and its data.
        port: To listen on.
        targets: Admin listeners, as `host:port`.
    """

    def __init__(self, directory, port, targets):
        if not shutil.which("prometheus"):
            missing("prometheus")
        config = yaml.safe_load((HOME / "local.yml").read_text())
        config["global"] = dict.fromkeys(config["global"], "1s")
        config["scrape_configs"][0]["static_configs"] = [{"targets": list(targets)}]
        (directory / "rules").mkdir()
        for path in (HOME / "rules").glob("*.yml"):
            hurried, count = re.subn(r"^( +for: \d+)m$", r"\1s", path.read_text(), flags=re.MULTILINE)
            assert count or "for:" not in path.read_text()
            (directory / "rules" / path.name).write_text(hurried)
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._url = f"http://127.0.0.1:{port}"
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data",
                 f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log, cwd=directory,
            )
        until(self._is_ready, "Prometheus")

    def ask(self, path, **query):
        """Returns the data of an answer of its API; requires success."""
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(query)}") as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        return answer["data"]

    def states(self):
        """Returns the alerts that are active: their states by name, firing before pending."""
        found = sorted((one["labels"]["alertname"], one["state"]) for one in self.ask("alerts")["alerts"])
        return {name: state for name, state in reversed(found)}

    def firing(self):
        """Returns the names of the alerts that fire."""
        return {name for name, state in self.states().items() if state == "firing"}

    def stop(self):
        """Ends it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)

    def _is_ready(self):
        assert self._process.poll() is None, self._log.read_text()
        with suppress(OSError):
            with urllib.request.urlopen(f"{self._url}/-/ready") as response:
                return response.status == 200
