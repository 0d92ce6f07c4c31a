"""The settings of each service, wherever it runs: embedded, as native processes, in Compose, in a test.

A service's `Settings` declare what it needs; a `Deployment` says where that is. Fields of one name mean one thing in
all services, so that the two are matched by name and nothing is said twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic_settings import BaseSettings

from tradeloop.common.messages.topics import SERVICE_TOPICS
from tradeloop.common.portfolio import Portfolio

ANY: TypeAdapter[Any] = TypeAdapter(Any)

SERVICES = tuple(SERVICE_TOPICS)
"""The five services, in the order in which a bar meets them."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Where the parts of a stack are, by the names of the services' settings. None is left to a service's default."""

    database_url: str | None = field(default=None, repr=False)
    ledger_url: str | None = field(default=None, repr=False)
    mlflow_tracking_uri: str | None = None
    feature_root: Path | None = None
    feature_registry: Mapping[str, Any] | None = field(default=None, repr=False)
    """Feast's registry section."""
    feature_online_store: Mapping[str, Any] | None = field(default=None, repr=False)
    """Feast's online_store section."""
    features: str | None = None
    """Where decisions take features from: `topic` or `online`."""
    sources: Path | None = None
    """The YAML file of the sources of market data."""
    portfolio_folder: Path | None = None
    portfolios: tuple[Portfolio, ...] | None = None
    kafka: Mapping[str, str] = field(default_factory=dict)
    """The settings of Kafka that all services share, by name."""

    def settings(self, service: str) -> dict[str, Any]:
        """The arguments of a service's `Settings`, but for Kafka's."""
        fields = settings_class(service).model_fields
        found = {name: getattr(self, name, None) for name in fields if name != "kafka"}
        return {name: value for name, value in found.items() if value is not None}

    def environment(self, service: str, instance: str | None = None) -> dict[str, str]:
        """The environment variables of one process of a service; `instance` names it among several."""
        kafka = {
            **self.kafka,
            "client_id": f"tradeloop-{instance or service}",
            "group_instance_id": instance or service,
        }
        values = {f"KAFKA__{name.upper()}": value for name, value in kafka.items()}
        for name, value in self.settings(service).items():
            values[name.upper()] = str(value) if isinstance(value, (str, Path)) else ANY.dump_json(value).decode()
        prefix = settings_class(service).model_config["env_prefix"]
        return {f"{prefix}{name}": value for name, value in values.items()}


def settings_class(service: str) -> type[BaseSettings]:
    """The class of a service's settings."""
    found: type[BaseSettings] = import_module(f"tradeloop.{service}.config").Settings
    return found
