"""Settings of the preprocess service, from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from tradeloop.common.bus.kafka import KafkaSettings
from tradeloop.common.portfolio import PortfolioSettings
from tradeloop.common.runtime.health import HttpSettings


class Settings(PortfolioSettings, BaseSettings):
    """Environment variables start with `PREPROCESS_`; those of a nested setting join with `__`."""

    model_config = SettingsConfigDict(env_prefix="PREPROCESS_", env_nested_delimiter="__", frozen=True, extra="forbid")

    kafka: KafkaSettings = KafkaSettings()
    http: HttpSettings = HttpSettings()
    database_url: SecretStr = SecretStr("sqlite:///bars.db")
    """SQLAlchemy URL of the bar store."""
    feature_root: Path = Path("features")
    """Folder of the offline features, and of registry and online store unless these are set."""
    feature_registry: dict[str, Any] | None = Field(default=None, repr=False)
    """Feast's registry section, as JSON, for a registry in SQL."""
    feature_online_store: dict[str, Any] | None = Field(default=None, repr=False)
    """Feast's online_store section, as JSON, for an online store in Redis."""
