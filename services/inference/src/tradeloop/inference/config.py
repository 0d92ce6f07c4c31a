"""Settings of the inference service, from the environment."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict

from tradeloop.common.portfolio import Portfolio


class Settings(BaseSettings):
    """Environment variables start with `INFERENCE_`."""

    model_config = SettingsConfigDict(env_prefix="INFERENCE_", frozen=True, extra="forbid")

    portfolios: tuple[Portfolio, ...]
    """The portfolios to decide for, as JSON."""
    mlflow_tracking_uri: str = "sqlite:///mlflow.db"
