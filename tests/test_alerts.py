"""The alert rules of deploy/prometheus: when each one fires, and that what it looks at is there to be seen."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, get_args

import yaml

from deploy.native.server import need
from tradeloop.common.messages import PortfolioEventKind
from tradeloop.common.messages.topics import SERVICE_TOPICS
from tradeloop.common.runtime.metrics import CATALOGUE

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "prometheus"
RULES = [rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]]
TESTS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "tests.yml").read_text())["tests"]


def promtool(*arguments: str) -> str:
    need(["promtool"], ["prometheus"])
    done = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_rules_are_rules() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "rules.yml")


def test_H6_each_alert_fires_when_it_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", "tests.yml")


def test_H6_each_alert_has_a_series_that_fires_and_one_that_does_not() -> None:
    tried = {(one["alertname"], bool(one["exp_alerts"])) for test in TESTS for one in test.get("alert_rule_test", ())}
    assert tried == {(rule["alert"], fires) for rule in RULES for fires in (True, False)}


def test_each_alert_says_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "action", "runbook"}


def test_each_alert_has_its_runbook_and_the_other_way_round() -> None:
    page = (ROOT / "docs" / "runbooks.md").read_text()
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", page, re.M | re.S))
    assert list(sections) == list(dict.fromkeys(sections)), "one section for each"
    assert set(sections) == {rule["alert"] for rule in RULES}
    for rule in RULES:
        assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{rule['alert'].lower()}"
        parts = re.findall(r"^- \*(\w+)\*: \S", sections[rule["alert"]], re.M)
        assert parts == ["Happened", "Look", "Do"], rule["alert"]


def test_each_service_is_missed() -> None:
    missed = [rule["labels"]["service"] for rule in RULES if rule["alert"] == "ServiceAbsent"]
    assert missed == list(SERVICE_TOPICS)
    for rule in RULES:
        if service := rule["labels"].get("service"):
            assert rule["expr"] == f'absent(tradeloop_build_info{{service="{service}"}})'


def test_H6_each_metric_that_a_rule_tells_of_is_one_that_a_service_has() -> None:
    """What their expressions look at is held by `test_dashboards`."""
    told = " ".join(" ".join(rule["annotations"].values()) for rule in RULES)
    assert set(re.findall(r"\btradeloop_\w+", told)) <= set(CATALOGUE)


def test_H6_each_event_that_is_counted_has_an_alert() -> None:
    """The labels are in no metric until something happens: they are read from the code that counts them."""
    text = "".join(file.read_text() for file in ROOT.glob("services/*/src/**/*.py"))
    counted = set(re.findall(r"""(?:\._?count\(|_tallies\[|found = \{\(|found \| \{\()"(\w+)", """, text))
    assert {"late_signal", "decision_failed", "features_failed", "online_refused"} <= counted
    counted |= set(re.findall(r'self\._wait\(published, time_us, "(\w+)"', text))
    # A replay runs ahead of decisions, so that what is online is later than its bar nearly always.
    counted -= {"features_overtaken_online"}
    # A live feed doubts, asks and reconnects all the time: what comes of it that is wrong has an alert.
    counted -= {"bar_doubted", "bar_filled", "frame_revised", "history_asked", "stream_interrupted"}
    # Each start and reconnection leaves bars without columns of trades, order books and news, and streams repeat
    # themselves, cross for a moment, and name other instruments: features that lack a column hold, visibly.
    counted -= {"flow_incomplete", "flow_ignored"}
    # A quarantine and a kill have metrics and alerts of their own, and their ends are what an operator wanted.
    counted |= set(get_args(PortfolioEventKind)) - {"quarantined", "released", "killed", "resumed"}
    named = {
        one for rule in RULES for found in re.findall(r'event=~?"([\w|]+)"', rule["expr"]) for one in found.split("|")
    }
    assert named == counted
