"""Settings of the preprocess service, from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from tradeloop.common.bus.kafka import KafkaSettings
from tradeloop.common.portfolio import PortfolioSettings
from tradeloop.common.runtime.health import HttpSettings
from tradeloop.common.runtime.settings import ServiceSettings


class Settings(PortfolioSettings, ServiceSettings):
    """Environment variables start with `PREPROCESS_`; those of a nested setting join with `__`."""

    model_config = SettingsConfigDict(env_prefix="PREPROCESS_")

    kafka: KafkaSettings = KafkaSettings()
    http: HttpSettings = HttpSettings()
    database_url: SecretStr
    """SQLAlchemy URL of the bar store."""
    feature_root: Path
    """Folder of the offline features, and of registry and online store unless these are set."""
    feature_registry: dict[str, Any] | None = Field(default=None, repr=False)
    """Feast's registry section, as JSON, for a registry in SQL."""
    feature_online_store: dict[str, Any] | None = Field(default=None, repr=False)
    """Feast's online_store section, as JSON, for an online store in Redis."""
    features: Literal["topic", "online"] = "topic"
    """The place that inference takes features from, as it is set there. With `online`, those of each bar are written
    online before they are published; else the newest are, with each commit, off the decisions' path."""
