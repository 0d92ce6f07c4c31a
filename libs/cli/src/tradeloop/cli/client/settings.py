"""Where the command finds the servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from tradeloop.common import settings
from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.bus.port import BusUnavailable
from tradeloop.common.errors import UserError

READ_ELSEWHERE: Mapping[str, str] = {
    "TRADELOOP_COMMIT": "The source that an image was built from; services tell it at `/build`.",
    "TRADELOOP_DEBUG": "Set by `tradeloop --debug`: shows the traceback of an error, and all log lines.",
    "TRADELOOP_HOME": "The folder of the embedded stack, in place of `--home`.",
    "TRADELOOP_PORTFOLIO_FOLDER": "The folder of portfolios, in place of `--portfolios`.",
    "TRADELOOP_TEST_": "Variables of the tests: servers that they are to use, seeds, lengths.",
}
"""Variables of the command's prefix that its settings do not hold, and their meaning."""


class Settings(settings.EnvironmentSettings):
    """Environment variables start with `TRADELOOP_`; those of a nested setting join with `__`."""

    model_config = SettingsConfigDict(env_prefix="TRADELOOP_")

    kafka: KafkaSettings = KafkaSettings()
    database_url: SecretStr = SecretStr("sqlite:///bars.db")
    """SQLAlchemy URL of the bar store."""
    ledger_url: SecretStr = SecretStr("sqlite:///ledger.db")
    """SQLAlchemy URL of the order ledger."""
    mlflow_tracking_uri: SecretStr = SecretStr("sqlite:///mlflow.db")
    """Address of the model registry."""
    admin_url: SecretStr | None = None
    """SQLAlchemy URL of PostgreSQL for a superuser, who makes databases and roles."""
    roles: dict[str, SecretStr] = Field(default={})
    """Passwords of the services' roles, by role."""


def load_settings() -> Settings:
    """The settings of the environment. Raises `UserError` for a variable that is not understood."""
    return settings.load_settings(Settings, tuple(READ_ELSEWHERE))


@contextmanager
def kafka_bus(bootstrap_servers: str | None = None, extra: Mapping[str, str] | None = None) -> Iterator[KafkaBus]:
    """The Kafka of the settings, or one at other servers; `extra` has properties of the client.

    Raises `UserError`, with what to set, where it cannot be reached meanwhile.
    """
    kafka = load_settings().kafka
    if bootstrap_servers is not None:
        kafka = kafka.model_copy(update={"bootstrap_servers": bootstrap_servers})
    if extra is not None:
        kafka = kafka.model_copy(update={"extra": {**extra, **kafka.extra}})
    try:
        with closing(KafkaBus(kafka)) as bus:
            yield bus
    except BusUnavailable as error:
        raise UserError(
            f"{error}; another Kafka is named with --bootstrap-servers or TRADELOOP_KAFKA__BOOTSTRAP_SERVERS"
        ) from error
