"""Settings of the ingest service, from the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from tradeloop.common.bus.kafka import KafkaSettings
from tradeloop.common.runtime.health import HttpSettings
from tradeloop.common.runtime.settings import ServiceSettings
from tradeloop.ingest.application.live import LivePolicy


class Settings(ServiceSettings):
    """Environment variables start with `INGEST_`; those of a nested setting join with `__`."""

    model_config = SettingsConfigDict(env_prefix="INGEST_")

    kafka: KafkaSettings = KafkaSettings()
    http: HttpSettings = HttpSettings()
    database_url: SecretStr
    """SQLAlchemy URL of the bar store."""
    min_rows: int = Field(default=10, ge=2)
    """A file with fewer bars is refused."""
    file_root: Path = Path("/")
    """The folder that files of bars must lie under, links followed."""
    live: LivePolicy = LivePolicy()
    """How patient live feeds are, such as `INGEST_LIVE__GRACE_S`."""
    keep_events: bool = True
    """Whether the trades, order books and news that live feeds bring are stored beside the bars."""
    chunk_frames: int = Field(default=64, ge=1)
    """How many base frames a replay publishes at once."""
    sources: Path | None = None
    """YAML file of the sources of market data, a section for each venue. Without it: their defaults."""
    window_frames: int = Field(default=256, ge=1)
    """How many base frames of a replay may be out that a portfolio of its universe has not marked."""
