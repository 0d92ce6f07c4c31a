"""Where the command finds the servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.bus.port import BusUnavailable
from tradeloop.common.errors import UserError


class Settings(BaseSettings):
    """Environment variables start with `TRADELOOP_`; those of a nested setting join with `__`."""

    model_config = SettingsConfigDict(env_prefix="TRADELOOP_", env_nested_delimiter="__", frozen=True, extra="forbid")

    kafka: KafkaSettings = KafkaSettings()
    database_url: SecretStr = SecretStr("sqlite:///bars.db")
    """SQLAlchemy URL of the bar store."""
    ledger_url: SecretStr = SecretStr("sqlite:///ledger.db")
    """SQLAlchemy URL of the order ledger."""
    mlflow_tracking_uri: str = "sqlite:///mlflow.db"


def load_settings() -> Settings:
    """The settings of the environment. Raises `UserError` for a variable that is not understood."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = error.errors(include_input=False)[0]  # an input may be a password
        variable = "TRADELOOP_" + "__".join(str(part).upper() for part in wrong["loc"])
        raise UserError(f"environment variable {variable}: {wrong['msg']}") from None


@contextmanager
def kafka_bus(bootstrap_servers: str | None = None, extra: Mapping[str, str] | None = None) -> Iterator[KafkaBus]:
    """The Kafka of the settings, or one at other servers; `extra` has properties of the client.

    Raises `UserError`, with what to set, where it cannot be reached meanwhile.
    """
    settings = load_settings().kafka
    if bootstrap_servers is not None:
        settings = settings.model_copy(update={"bootstrap_servers": bootstrap_servers})
    if extra is not None:
        settings = settings.model_copy(update={"extra": {**extra, **settings.extra}})
    try:
        with closing(KafkaBus(settings)) as bus:
            yield bus
    except BusUnavailable as error:
        raise UserError(
            f"{error}; another Kafka is named with --bootstrap-servers or TRADELOOP_KAFKA__BOOTSTRAP_SERVERS"
        ) from error
