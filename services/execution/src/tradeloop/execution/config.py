"""Settings of the execution service, from the environment."""

from __future__ import annotations

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from tradeloop.common.bus.kafka import KafkaSettings
from tradeloop.common.portfolio import PortfolioSettings
from tradeloop.common.runtime.health import HttpSettings


class Settings(PortfolioSettings, BaseSettings):
    """Environment variables start with `EXECUTION_`; those of a nested setting join with `__`."""

    model_config = SettingsConfigDict(env_prefix="EXECUTION_", env_nested_delimiter="__", frozen=True, extra="forbid")

    kafka: KafkaSettings = KafkaSettings()
    http: HttpSettings = HttpSettings()

    ledger_url: SecretStr = SecretStr("sqlite:///ledger.db")
    """SQLAlchemy URL of the order ledger."""
