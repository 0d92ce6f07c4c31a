"""One declaration of what services are told: as arguments and as environment variables it is the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tradeloop.cli.client.deployment import SERVICES, Deployment, settings_class
from tradeloop.common.market import Instrument, Timeframe, Universe
from tradeloop.common.portfolio import Portfolio

UNIVERSE = Universe(name="u", instruments=(Instrument(id="x:A"),), timeframe=Timeframe.H1)
WHOLE = Deployment(
    database_url="postgresql+psycopg://me:secret@here/bars",
    ledger_url="postgresql+psycopg://me:secret@here/ledger",
    mlflow_tracking_uri="http://here:5000",
    feature_root=Path("features"),
    feature_registry={"registry_type": "sql", "path": "postgresql://me:secret@here/features"},
    feature_online_store={"type": "redis", "connection_string": "here:6379,password=secret"},
    portfolio_folder=Path("portfolios"),
    portfolios=(Portfolio(name="book", universe=UNIVERSE, strategy="example"),),
    kafka={"bootstrap_servers": "here:9092", "prefix": "test."},
)


@pytest.mark.parametrize("service", SERVICES)
def test_arguments_and_environment_say_the_same(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = settings_class(service)
    given: Any = kind(**WHOLE.settings(service))
    for name, value in WHOLE.environment(service, f"{service}-1").items():
        monkeypatch.setenv(name, value)
    read: Any = kind()
    assert read.model_dump(exclude={"kafka"}) == given.model_dump(exclude={"kafka"})
    assert read.kafka.bootstrap_servers == "here:9092"
    assert (read.kafka.client_id, read.kafka.group_instance_id) == (f"tradeloop-{service}-1", f"{service}-1")


def started(service: str, **environment: str) -> list[str]:
    """The lines that a process of a service ends with, at once, for these variables beside those of a deployment."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(f"{service.upper()}_")}
    told = {name: value for name, value in WHOLE.environment(service).items() if not name.endswith("_PORTFOLIOS")}
    done = subprocess.run(
        [sys.executable, "-m", f"tradeloop.{service}.main"],
        env={**own, **told, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    return done.stderr.splitlines()


@pytest.mark.parametrize("service", SERVICES)
def test_H1_each_service_refuses_a_variable_that_it_does_not_know(service: str) -> None:
    prefix = service.upper()
    [line] = started(service, **{f"{prefix}_KAFKA__SASL_PASSWRD": "hunter2"})
    assert f"{prefix}_KAFKA__SASL_PASSWRD is unknown: the nearest known one is {prefix}_KAFKA__SASL_PASSWORD" in line


def test_H1_a_service_in_an_empty_folder_says_so(tmp_path: Path) -> None:
    [line] = started("execution", EXECUTION_PORTFOLIO_FOLDER=str(tmp_path), EXECUTION_LEDGER_URL="sqlite://")
    assert f"no portfolios in {tmp_path}: put a YAML file for each one there" in line


def test_no_password_is_shown() -> None:
    assert "secret" not in repr(WHOLE)
