"""Settings of the training service, from the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from tradeloop.common.bus.kafka import KafkaSettings
from tradeloop.common.runtime.health import HttpSettings
from tradeloop.common.runtime.settings import ServiceSettings

LONGEST_RUN_S = 86_400.0
"""How long one training may keep the service from all else. It neither polls nor steps meanwhile."""
SILENCE_S = 3_600.0
"""How long a training may say nothing before the process counts as stuck. It speaks after each rollout."""


class Settings(ServiceSettings):
    """Environment variables start with `TRAINING_`; those of a nested setting join with `__`."""

    model_config = SettingsConfigDict(env_prefix="TRAINING_", nested_model_default_partial_update=True)

    kafka: KafkaSettings = KafkaSettings(longest_step_s=LONGEST_RUN_S)
    http: HttpSettings = HttpSettings(live_within_s=SILENCE_S)
    database_url: SecretStr
    """SQLAlchemy URL of the bar store."""
    feature_root: Path
    """Folder of the offline features, and of registry and online store unless these are set."""
    feature_registry: dict[str, Any] | None = Field(default=None, repr=False)
    """Feast's registry section, as JSON, for a registry in SQL."""
    feature_online_store: dict[str, Any] | None = Field(default=None, repr=False)
    """Feast's online_store section, as JSON, for an online store in Redis."""
    mlflow_tracking_uri: SecretStr
    """Address of the model registry: `http://USER:PASSWORD@HOST:PORT` or `sqlite:///FILE`."""
    idle_s: float | None = Field(default=None, gt=0)
    """How long nothing may wait before the process ends by itself, as a job does that learns what it is asked and is
    gone: with status 0 where all of it succeeded. A service, without it, waits for ever."""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Where PyTorch computes: `auto` is a GPU where there is one. Part of what makes a run repeatable: another device
    gives another policy, and only of the processor is it known that it gives the same one again, byte for byte."""
    threads: int = Field(default=1, ge=1)
    """Threads of PyTorch. Part of what makes a run repeatable: another number gives another policy. Networks this
    small gain little from a second one, and lose most of their speed to it when the cores are not idle."""
