"""Settings of the execution service, from the environment."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict

from tradeloop.common.portfolio import Portfolio


class Settings(BaseSettings):
    """Environment variables start with `EXECUTION_`."""

    model_config = SettingsConfigDict(env_prefix="EXECUTION_", frozen=True, extra="forbid")

    portfolios: tuple[Portfolio, ...]
    """The portfolios to trade, as JSON."""
    ledger_url: str = "sqlite:///ledger.db"
    """SQLAlchemy URL of the order ledger."""
