"""docker-compose.logs.yml and what it collects with, as far as that can be told without its images."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tradeloop.common.clock import SystemClock

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
OVERLAY: dict[str, Any] = yaml.safe_load((DEPLOY / "docker-compose.logs.yml").read_text())
BASE: dict[str, Any] = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
FLUENT_BIT: dict[str, Any] = yaml.safe_load((DEPLOY / "logs/fluent-bit.yaml").read_text())
OURS = sorted(folder.name for folder in (ROOT / "services").iterdir())
ADDED = sorted(OVERLAY["services"].keys() - BASE["services"].keys())

LINE = """
import logging
from datetime import UTC, datetime
import structlog
from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.clock import SystemClock
from tradeloop.common.messages import PortfolioMarked
from tradeloop.common.messages.topics import specs
from tradeloop.common.runtime.logs import configure_logging
from tradeloop.common.runtime.publish import publish
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import ServiceDefaults

class Says(ServiceDefaults):
    name, consumes = "execution", (PortfolioMarked,)
    def handle(self, message, position):
        structlog.get_logger().warning("said", decision_id="d")
        return ()

configure_logging()
bus = MemoryBus()
bus.create_topics(specs({}))
publish(bus.producer(), PortfolioMarked(universe="u", portfolio="p", time=datetime(2024, 1, 1, tzinfo=UTC),
    state="active", positions=(), cash=1, equity=1, peak_equity=1, drawdown=0), "test")
Runner(Says(), bus, SystemClock()).step()
"""


def test_every_service_hands_its_lines_over_and_none_waits_for_that() -> None:
    [port] = OVERLAY["services"]["fluent-bit"]["ports"]
    for service in OURS:
        logging = OVERLAY["services"][service]["logging"]
        assert logging["driver"] == "fluentd"
        assert logging["options"]["fluentd-async"] == "true"
        assert port == f"{logging['options']['fluentd-address']}:24224"
        assert OVERLAY["services"][service].keys() == {"logging"}
    assert sorted(OVERLAY["services"]) == sorted([*OURS, *ADDED])
    assert FLUENT_BIT["pipeline"]["inputs"][0]["port"] == 24224


@pytest.mark.parametrize("service", ADDED)
def test_what_collects_is_guarded_as_the_others_are(service: str) -> None:
    container = OVERLAY["services"][service]
    assert (container["cap_drop"], container["read_only"], container["init"]) == (["ALL"], True, True)
    assert "no-new-privileges:true" in container["security_opt"]
    assert not container["user"].startswith(("0", "root"))
    assert re.search(r":v?\d+\.\d+\.\d+", container["image"]), "pinned"
    assert all(port.startswith("127.0.0.1:") for port in container["ports"])
    assert {"cpus", "memory", "pids"} <= container["deploy"]["resources"]["limits"].keys()
    assert container["logging"]["driver"] == "json-file", "what collects does not collect itself"
    for volume in container["volumes"]:
        source = volume.split(":")[0]
        assert source in OVERLAY["volumes"] or (DEPLOY / source).is_file()
        assert "docker.sock" not in volume


def test_a_line_of_ours_is_read_with_its_time_and_its_fields() -> None:
    done = subprocess.run([sys.executable, "-c", LINE], capture_output=True, text=True, check=True)
    [line] = [json.loads(line) for line in done.stderr.splitlines() if '"said"' in line]
    [parser] = FLUENT_BIT["parsers"]
    [applied] = FLUENT_BIT["pipeline"]["filters"]
    assert (parser["format"], applied["parser"]) == ("json", parser["name"])
    assert applied["key_name"] == "log", "where Docker's driver puts a line"
    time_format = parser["time_format"].replace("%S.%L", "%S.%f")  # fractions of a second, as Fluent Bit says them
    read = datetime.strptime(line[parser["time_key"]], time_format).replace(tzinfo=UTC)
    assert abs((SystemClock().now() - read).total_seconds()) < 600
    [output] = FLUENT_BIT["pipeline"]["outputs"]
    metadata = dict(pair.strip().split("=") for pair in output["structured_metadata"].split(","))
    assert all(field == f"${name}" and isinstance(line[name], str) for name, field in metadata.items())
    labels = [label.strip() for label in output["label_keys"].split(",")]
    assert labels == ["$container_name", "$level"], "few values each: Loki keeps a stream for each combination"
    assert isinstance(line["level"], str)
    assert output["host"] in OVERLAY["services"]


def test_loki_keeps_lines_for_a_month_on_its_own_volume() -> None:
    loki = yaml.safe_load((DEPLOY / "logs/loki.yaml").read_text())
    assert loki["limits_config"]["retention_period"] == "720h"
    assert loki["compactor"]["retention_enabled"] is True
    assert "loki:/loki" in OVERLAY["services"]["loki"]["volumes"]
    folders = [loki["common"]["path_prefix"], *loki["common"]["storage"]["filesystem"].values()]
    assert all(folder.startswith("/loki") for folder in folders)
    assert loki["server"]["http_listen_port"] == FLUENT_BIT["pipeline"]["outputs"][0]["port"]
    assert "$(if $(LOGS),--file deploy/docker-compose.logs.yml)" in (ROOT / "Makefile").read_text()
