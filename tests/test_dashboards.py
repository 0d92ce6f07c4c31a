"""The dashboards of deploy/grafana: as their code says, as Grafana reads them, of metrics that there are."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.__main__ import FOLDER, SOURCE, files
from deploy.grafana.panels import DASHBOARDS, Panel
from deploy.native.server import need
from tests.watched import SCRAPED, SHOWN, asked, families, shown_labels, unknown_labels
from tradeloop.cli.commands.metrics import as_markdown
from tradeloop.common.runtime.metrics import CATALOGUE, Family

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]]
PANELS = [(page, panel) for page in DASHBOARDS for panel in page.panels]


def test_the_files_are_what_the_code_says() -> None:
    assert {file: file.read_text() for file in sorted(FOLDER.glob("*.json"))} == files()


def lost(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    """The places of our JSON that Grafana's own types do not have, or read as something else."""
    if isinstance(ours, dict):
        for key, value in ours.items():
            if not isinstance(theirs, dict) or key not in theirs:
                yield f"{where}.{key}"
            else:
                yield from lost(value, theirs[key], f"{where}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for n, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(one, other, f"{where}[{n}]")
    elif ours != theirs:
        yield where


def read_by_grafana(dashboard: dict[str, Any]) -> Any:
    """What Grafana's own types make of a dashboard."""
    plugins.register_default_plugins()
    return json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_grafana_understands_all_of_it(file: Path) -> None:
    """By the types that Grafana publishes of its dashboards: a key that it does not know would be lost."""
    ours = json.loads(file.read_text())
    assert list(lost(ours, read_by_grafana(ours))) == []
    ours["panels"][0]["gridpos"] = ours["panels"][0].pop("gridPos")
    ours["panels"][1]["targets"][0]["legend"] = ours["panels"][1]["targets"][0].pop("legendFormat")
    assert list(lost(ours, read_by_grafana(ours))) == [".panels[0].gridpos", ".panels[1].targets[0].legend"]


def test_panels_lie_beside_each_other() -> None:
    for file in FOLDER.glob("*.json"):
        panels = json.loads(file.read_text())["panels"]
        cells = [
            (x, y)
            for at in (panel["gridPos"] for panel in panels)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        ]
        assert len(cells) == len(set(cells))
        assert len({panel["title"] for panel in panels}) == len({panel["id"] for panel in panels}) == len(panels)


def test_they_are_provisioned_from_the_prometheus_that_scrapes() -> None:
    folder = ROOT / "deploy" / "grafana" / "provisioning"
    [source] = yaml.safe_load((folder / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert {"type": source["type"], "uid": source["uid"]} == SOURCE
    [provider] = yaml.safe_load((folder / "dashboards" / "tradeloop.yaml").read_text())["providers"]
    assert provider["options"]["path"] == "/etc/grafana/dashboards"


def looked_at(declared: Mapping[str, Family]) -> set[str]:
    """The families in panels and rules, each with labels that it has. Raises `AssertionError` for any other."""
    seen = set()
    for panel, expression, legend in SHOWN:
        seen |= families(expression, declared)
        assert not (unknown := unknown_labels(expression, declared)), f"{panel.title}: no label {unknown}"
        has = {label for name in families(expression, declared) for label in declared[name].labels} | SCRAPED
        if "ALERTS" not in expression:
            assert set(shown_labels(legend)) <= has, f"{panel.title}: {legend}"
    for rule in RULES:
        seen |= families(rule["expr"], declared)
        assert not (unknown := unknown_labels(rule["expr"], declared)), f"{rule['alert']}: no label {unknown}"
    return seen


def test_what_is_shown_is_declared_and_what_is_declared_is_shown() -> None:
    assert looked_at(CATALOGUE) == set(CATALOGUE)


@pytest.mark.parametrize("name", ["tradeloop_portfolio_equity_quote", "tradeloop_handle_seconds", "tradeloop_ready"])
def test_a_metric_that_is_renamed_on_one_side_is_noticed(name: str) -> None:
    renamed = dict(CATALOGUE)
    family = renamed.pop(name)
    renamed[f"{name}_new"] = replace(family, name=f"{name}_new")
    with pytest.raises(AssertionError, match=f"no service measures {name}"):
        looked_at(renamed)


def test_a_label_that_is_renamed_on_one_side_is_noticed() -> None:
    name = "tradeloop_orders_total"
    renamed = {**CATALOGUE, name: replace(CATALOGUE[name], labels=("universe", "portfolio", "status"))}
    with pytest.raises(AssertionError, match=r"no label \{'outcome'\}"):
        looked_at(renamed)


def test_each_family_is_documented_and_ends_with_its_unit() -> None:
    page = as_markdown()
    assert (ROOT / "docs" / "metrics.md").read_text() == page
    assert re.findall(r"^\| `(\w+)`", page, re.M) == sorted(
        CATALOGUE,
        key=lambda name: ("", "ingest", "preprocess", "inference", "execution", "training").index(
            CATALOGUE[name].services[0] if CATALOGUE[name].services else ""
        ),
    )
    for name, family in CATALOGUE.items():
        assert name.endswith("_total") == (family.kind == "counter")
        assert family.kind != "histogram" or name.endswith("_seconds")
        assert re.fullmatch(r"tradeloop_[a-z_]+", name)


def test_prometheus_understands_each_expression(tmp_path: Path) -> None:
    need(["promtool"], ["prometheus"])
    rules = [{"record": f"panel:{n}", "expr": asked(each[1])} for n, each in enumerate(SHOWN)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(SHOWN)} rules found" in done.stdout + done.stderr


def test_what_is_chosen_above_is_used_below() -> None:
    for page, panel in PANELS:
        uses = any("$portfolio" in expression for expression, _ in panel.queries)
        assert page.chooses or not uses, f"{page.name}: {panel.title}"
    assert all(isinstance(panel, Panel) for _, panel in PANELS)
