"""Settings of the inference service, from the environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import SettingsConfigDict

from tradeloop.common.bus.kafka import KafkaSettings
from tradeloop.common.portfolio import PortfolioSettings
from tradeloop.common.runtime.access import Tokens
from tradeloop.common.runtime.health import HttpSettings
from tradeloop.common.runtime.settings import ServiceSettings

NO_FEATURE_ROOT = "INFERENCE_FEATURES is online: INFERENCE_FEATURE_ROOT must name the folder of the features"


class PredictSettings(BaseModel):
    """Predictions over HTTP, `POST /v1/predict`, on the port of health."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    token: Tokens = None
    """The tokens that clients send, at least 16 letters, digits and signs each, or their SHA-256; without one nobody is
    let in."""
    at_once: int = Field(default=2, ge=1, le=64)
    """How many are answered at once; whoever comes then is told to ask again."""
    timeout_s: float = Field(default=5.0, gt=0)
    """How long one may take."""
    max_bytes: int = Field(default=1 << 20, ge=1)
    """The most bytes of a request's body."""
    max_age_s: float | None = Field(default=None, gt=0)
    """How old features of the online store may be that nobody asked for by their time. Two bars by default."""


class Settings(PortfolioSettings, ServiceSettings):
    """Environment variables start with `INFERENCE_`; those of a nested setting join with `__`."""

    model_config = SettingsConfigDict(env_prefix="INFERENCE_")

    kafka: KafkaSettings = KafkaSettings()
    http: HttpSettings = HttpSettings()
    predict: PredictSettings = PredictSettings()

    database_url: SecretStr
    """SQLAlchemy URL of the bar store: features whose records have expired are computed again from bars."""
    mlflow_tracking_uri: SecretStr
    """Address of the model registry: `http://USER:PASSWORD@HOST:PORT` or `sqlite:///FILE`."""
    features: Literal["topic", "online"] = "topic"
    """The place that decisions take features from: their messages, or Feast's online store. Set it for preprocess too,
    which then writes them there before it publishes them."""
    online_wait_s: float = Field(default=5.0, gt=0)
    """How long a decision waits for the features of its bar in the online store; then it is to hold, with the reason.
    Nothing is later than the portfolio's own deadline."""
    feature_root: Path | None = None
    """Folder of the features, needed where they are read online. Predictions over HTTP read the store, too."""
    feature_registry: dict[str, Any] | None = Field(default=None, repr=False)
    """Feast's registry section, as JSON, for a registry in SQL."""
    feature_online_store: dict[str, Any] | None = Field(default=None, repr=False)
    """Feast's online_store section, as JSON, for an online store in Redis."""

    def contradictions(self) -> Iterator[str]:
        """Faults that no variable has by itself, and two have together: a line each."""
        if self.features == "online" and self.feature_root is None:
            yield NO_FEATURE_ROOT
        if self.predict.token is not None and self.http.port is None:
            yield "INFERENCE_PREDICT__TOKEN is set, and nothing listens: set INFERENCE_HTTP__PORT too"
