"""The Grafana dashboard, as far as it can be judged without a Grafana: its shape, its units and its order."""

import json
from itertools import combinations

import yaml

from tests.journal import ROOT
from tests.prometheus import DASHBOARD, panels

GRAFANA = ROOT / "ops/grafana"
BOARD = json.loads(DASHBOARD.read_text())
UNITS = {"short", "s", "bytes", "Bps", "reqps", "cps", "percentunit", "bool_yes_no"}


def overlap(one, other):
    """Tells whether two panels lie on each other."""
    return (one["x"] < other["x"] + other["w"] and other["x"] < one["x"] + one["w"]
            and one["y"] < other["y"] + other["h"] and other["y"] < one["y"] + one["h"])


def test_rows_are_in_the_order_in_which_an_event_flows():
    rows = sorted((panel["gridPos"]["y"], panel["title"]) for panel in BOARD["panels"] if panel["type"] == "row")
    assert [title for _, title in rows] == [
        "Requests", "Acceptance", "Write-ahead log", "Stream", "Loads", "Dead letters", "Proof", "Processes",
    ]


def test_panels_have_ids_of_their_own_and_lie_beside_each_other():
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids)) > 40
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    assert all(place["w"] > 0 and place["h"] > 0 for place in places)
    assert all(0 <= place["x"] <= 24 - place["w"] for place in places)
    assert not [pair for pair in combinations(places, 2) if overlap(*pair)]


def test_every_panel_has_a_title_a_text_a_unit_and_queries_with_legends():
    for panel in panels():
        assert panel["type"] in ("timeseries", "stat")
        assert panel["title"] and panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(references) == len(set(references))
        assert all(target["expr"] and target["legendFormat"] for target in panel["targets"])


def test_every_query_is_of_the_chosen_installation():
    for panel in panels():
        for target in panel["targets"]:
            assert target["expr"].count("{") == target["expr"].count("$job") or "ALERTS{" in target["expr"]


def test_installation_and_host_can_be_chosen_and_the_wal_s_use_is_marked():
    assert [variable["name"] for variable in BOARD["templating"]["list"]] == ["job", "instance"]
    assert ["wal_active" in one["expr"] for one in BOARD["annotations"]["list"]] == [True]


def test_everything_asks_the_data_source_that_is_provisioned():
    source, = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    wanted = {"type": source["type"], "uid": source["uid"]}
    users = [*panels(), *(target for panel in panels() for target in panel["targets"]), *BOARD["annotations"]["list"],
             *BOARD["templating"]["list"]]
    assert all(user["datasource"] == wanted for user in users)
    provider, = yaml.safe_load((GRAFANA / "provisioning/dashboards/spillway.yml").read_text())["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    assert BOARD["uid"] == "spillway" and BOARD["id"] is None
