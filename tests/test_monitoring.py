"""deploy/prometheus and deploy/grafana use only metrics that exist, in queries that can be read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

promql: Any = pytest.importorskip("promql_parser")
yaml: Any = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[1]
RULES = yaml.safe_load((ROOT / "deploy/prometheus/rallypoint-alerts.yaml").read_text())
BOARD = json.loads((ROOT / "deploy/grafana/rallypoint.json").read_text())
METRICS = (ROOT / "docs/metrics.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()


def documented() -> dict[str, set[str]]:
    """The labels of each metric in docs/metrics.md, under all names that a query may use."""
    found: dict[str, set[str]] = {}
    for line in METRICS.splitlines():
        cells = [each.strip() for each in line.strip("|").split("|")]
        if len(cells) != 4 or not cells[0].startswith("`rallypoint_"):
            continue
        labels = set(re.findall(r"`(\w+)`", cells[2]))
        for name in re.findall(r"`(\w+)`", cells[0]):
            suffixes = ("_bucket", "_sum", "_count") if cells[1] == "histogram" else ("",)
            for suffix in suffixes:
                found[name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
    return found


def queries() -> Iterator[tuple[str, str]]:
    """(where, query)"""
    for group in RULES["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$instance", ".*")


QUERIES = list(queries())


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[each for each, _ in QUERIES])
def test_each_query_is_promql_over_metrics_that_exist(where: str, query: str) -> None:
    promql.parse(query)
    known = documented()
    names = re.findall(r"\b(rallypoint_\w+)", query)
    assert names or query.startswith("up{"), where
    own = {"instance", "job"}
    for name in names:
        assert name in known, f"{where}: {name}"
    labels = {label for name in names for label in known[name]} | own
    for by in re.findall(r"by \(([^)]*)\)", query):
        assert set(re.split(r",\s*", by)) <= labels, f"{where}: by ({by})"


def test_a_query_that_is_wrong_is_found() -> None:
    with pytest.raises(ValueError, match=r"."):
        promql.parse("sum by (x (rallypoint_ready)")


def test_each_alert_says_what_to_do_and_is_in_the_runbook() -> None:
    rules: list[dict[str, Any]] = [each for group in RULES["groups"] for each in group["rules"]]
    assert len(rules) == len({each["alert"] for each in rules}) > 5
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "action"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
        assert f"| `{rule['alert']}` |" in OPERATIONS


def test_the_dashboard_has_a_place_for_each_panel() -> None:
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(each["gridPos"]["x"], each["gridPos"]["y"]) for each in panels]
    assert len(set(places)) == len(places)
    assert all(
        x >= 0 and x + each["gridPos"]["w"] <= 24
        for (x, _), each in zip(places, panels, strict=True)
    )
    for panel in panels:
        for target in panel["targets"]:
            assert target["legendFormat"]
