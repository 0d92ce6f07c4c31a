"""Settings of the inference service, from the environment."""

from __future__ import annotations

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from tradeloop.common.bus.kafka import KafkaSettings
from tradeloop.common.portfolio import PortfolioSettings
from tradeloop.common.runtime.health import HttpSettings


class Settings(PortfolioSettings, BaseSettings):
    """Environment variables start with `INFERENCE_`; those of a nested setting join with `__`."""

    model_config = SettingsConfigDict(env_prefix="INFERENCE_", env_nested_delimiter="__", frozen=True, extra="forbid")

    kafka: KafkaSettings = KafkaSettings()
    http: HttpSettings = HttpSettings()

    database_url: SecretStr | None = None
    """SQLAlchemy URL of the bar store: features whose records have expired are computed again from bars."""
    mlflow_tracking_uri: str = "sqlite:///mlflow.db"
