"""The files for Prometheus and Grafana, against what is exported."""

import json
import re
from typing import Any

import pytest
import yaml

from automl.orchestration.metrics import SERIES, exported
from automl.places import deploy_folder

DEPLOY = deploy_folder()
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "trimtab.json").read_text())
NAMES = re.compile(r"\b(?:ray_)?trimtab_\w+")
LABELS = re.compile(r"\((\w+(?:, \w+)*)\) \(")


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_the_dashboard_shows_exactly_what_is_exported() -> None:
    shown = {name for expression in expressions() for name in NAMES.findall(expression)}
    assert shown == {exported(name) for name in SERIES}
    variables = DASHBOARD["templating"]["list"]
    asked = {name for variable in variables for name in NAMES.findall(variable["definition"])}
    assert asked <= shown
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize("expression", expressions())
def test_panels_ask_by_labels_that_the_metrics_have(expression: str) -> None:
    series = {exported(name): each for name, each in SERIES.items()}
    (name,) = NAMES.findall(expression)
    for labels in LABELS.findall(expression):
        assert set(labels.split(", ")) <= {"run", *series[name].labels}
    assert ("rate(" in expression) <= (series[name].kind == "counter")
    assert '{run=~"$run"}' in expression


def test_panels_do_not_overlap_and_read_the_provisioned_source() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    uids = {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]}
    assert uids == {source["uid"] for source in sources}


def test_everything_listens_on_loopback_and_what_is_mounted_is_there() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    for service in services.values():
        assert "ports" not in service
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists()
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/trimtab.yaml").read_text())["providers"][0]
    assert any(provider["options"]["path"] in volume for volume in services["grafana"]["volumes"])
    scraped = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert [each["job_name"] for each in scraped] == ["trimtab", "ray"]
