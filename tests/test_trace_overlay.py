"""docker-compose.traces.yml, as far as that can be told without its image."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from tradeloop.common.runtime.settings import ServiceSettings

ROOT = Path(__file__).parent.parent
OVERLAY: dict[str, Any] = yaml.safe_load((ROOT / "deploy/docker-compose.traces.yml").read_text())
BASE: dict[str, Any] = yaml.safe_load((ROOT / "deploy/docker-compose.yml").read_text())
OURS = sorted(folder.name for folder in (ROOT / "services").iterdir())


@pytest.mark.parametrize("service", OURS)
def test_every_service_sends_its_spans_where_they_are_taken(service: str) -> None:
    settings: type[ServiceSettings] = import_module(f"tradeloop.{service}.config").Settings
    [(variable, endpoint)] = OVERLAY["services"][service]["environment"].items()
    assert variable == f"{settings.model_config['env_prefix']}TRACES__ENDPOINT"
    name = endpoint.removeprefix("http://").removesuffix(":4318")
    assert name in OVERLAY["services"].keys() - BASE["services"].keys()


def test_what_is_added_is_kept_small_and_nothing_waits_for_it() -> None:
    assert OVERLAY["services"].keys() - BASE["services"].keys() == {"jaeger"}
    added = OVERLAY["services"]["jaeger"]
    assert added["read_only"] is True
    assert added["cap_drop"] == ["ALL"]
    assert added["security_opt"] == ["no-new-privileges:true"]
    assert not added["user"].startswith("0")
    assert ":" in added["image"]
    assert not added["image"].endswith(":latest")
    assert all(port.startswith("127.0.0.1:") for port in added["ports"])
    assert set(added["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert all("depends_on" not in OVERLAY["services"][service] for service in OURS)
    assert "$(if $(TRACES),--file deploy/docker-compose.traces.yml)" in (ROOT / "Makefile").read_text()
