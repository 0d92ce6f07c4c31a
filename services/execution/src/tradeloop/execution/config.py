"""Settings of the execution service, from the environment."""

from __future__ import annotations

from pydantic import SecretStr
from pydantic_settings import SettingsConfigDict

from tradeloop.common.bus.kafka import KafkaSettings
from tradeloop.common.portfolio import PortfolioSettings
from tradeloop.common.runtime.health import HttpSettings
from tradeloop.common.runtime.settings import ServiceSettings


class Settings(PortfolioSettings, ServiceSettings):
    """Environment variables start with `EXECUTION_`; those of a nested setting join with `__`."""

    model_config = SettingsConfigDict(env_prefix="EXECUTION_")

    kafka: KafkaSettings = KafkaSettings()
    http: HttpSettings = HttpSettings()

    ledger_url: SecretStr
    """SQLAlchemy URL of the order ledger."""
