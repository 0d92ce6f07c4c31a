"""Settings of the inference service, from the environment."""

from __future__ import annotations

from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from tradeloop.common.bus.kafka import KafkaSettings
from tradeloop.common.portfolio import PortfolioSettings
from tradeloop.common.runtime.health import HttpSettings
from tradeloop.common.settings import EnvironmentSettings


class Settings(PortfolioSettings, EnvironmentSettings):
    """Environment variables start with `INFERENCE_`; those of a nested setting join with `__`."""

    model_config = SettingsConfigDict(env_prefix="INFERENCE_")

    kafka: KafkaSettings = KafkaSettings()
    http: HttpSettings = HttpSettings()

    database_url: SecretStr
    """SQLAlchemy URL of the bar store: features whose records have expired are computed again from bars."""
    mlflow_tracking_uri: SecretStr
    """Address of the model registry: `http://USER:PASSWORD@HOST:PORT` or `sqlite:///FILE`."""
