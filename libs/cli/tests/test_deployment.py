"""One declaration of what services are told: as arguments and as environment variables it is the same."""

from __future__ import annotations

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


def test_no_password_is_shown() -> None:
    assert "secret" not in repr(WHOLE)
