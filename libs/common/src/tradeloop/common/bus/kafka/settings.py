"""Where Kafka is, how to sign in, and what the clients are told."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from tradeloop.common import tls

_NONE: Mapping[str, str] = MappingProxyType({})

FETCHING: Mapping[str, str | int] = MappingProxyType(
    {
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "allow.auto.create.topics": False,
        "fetch.wait.max.ms": 50,  # a partition that is resumed or sought waits for the fetch under way
        # What is fetched ahead: no more is asked for beyond these two, checked again after so many milliseconds ...
        "queued.min.messages": 5_000,
        "queued.max.messages.kbytes": 16_384,
        "fetch.queue.backoff.ms": 10,
        # ... and what is asked for at once, compressed. With the client's own defaults a backlog of small messages
        # takes 300 MB.
        "fetch.max.bytes": 2_097_152,
        "fetch.message.max.bytes": 131_072,
    }
)
"""Properties of whatever reads."""


_CONNECTING: Mapping[str, int | bool] = MappingProxyType(
    {
        # A server that is away is not asked twenty times a second, and one that is back not found ten seconds late.
        "reconnect.backoff.ms": 500,
        "reconnect.backoff.max.ms": 2000,
        # To each broker at once: connecting only where it has to, it waits half the backoff before each first time ...
        "enable.sparse.connections": False,
        "log.connection.close": False,  # ... and what it does not need, brokers close every ten minutes
    }
)
"""Properties of every client."""

_PASSED_ON = {
    "bootstrap_servers",
    "client_id",
    "sasl_mechanism",
    "sasl_username",
    "security_protocol",
    "ssl_ca_location",
    "ssl_certificate_location",
    "ssl_key_location",
}
"""Settings that have the client's own names, but for its dots."""


class KafkaSettings(BaseModel):
    """Where Kafka is and how to sign in."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    bootstrap_servers: str = "localhost:9092"
    """`host:port`, separated by commas."""
    prefix: str = Field(default="", max_length=100, pattern=r"^[a-zA-Z0-9._-]*$")
    """Stands before the name of every topic and group, unseen by who uses the bus: a replay's own topics."""
    client_id: str = "tradeloop"
    """The name of the process in the logs and quotas of the brokers."""
    group_instance_id: str | None = None
    """A stable name of this process among its group (a StatefulSet's pod name): a restart within the session
    timeout then keeps its partitions. Such a member does not leave its group when it closes."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How the brokers' listener is spoken to: with TLS or without, with a user or without."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """How the user signs in; needed with a `SASL_` protocol."""
    sasl_username: str | None = None
    """The user, which the permissions of the brokers are about."""
    sasl_password: SecretStr | None = None
    """The password of that user."""
    ssl_ca_location: str | None = None
    """File of the authorities whose certificates are trusted; the system's own when absent."""
    ssl_certificate_location: str | None = None
    """File of this client's own certificate, where the brokers ask for one."""
    ssl_key_location: str | None = None
    """File of its key."""
    longest_step_s: float = Field(default=300.0, gt=0)
    """How long a member may go without asking for messages, before its partitions go to others. A process that says
    nothing for as long counts as stuck, unless `HTTP__LIVE_WITHIN_S` says otherwise."""
    session_timeout_s: float | None = Field(default=None, gt=0)
    """How long Kafka waits for a member that fell silent, before its partitions go to others. By default 45 s for one
    with a static name, which is expected back, and 10 s for one without."""
    replication_factor: int | None = Field(default=None, gt=0)
    """Brokers that hold each new topic; by default 3, or as many as there are."""
    min_insync_replicas: int | None = Field(default=None, gt=0)
    """Brokers that must have a message before it counts as stored: by default, of new topics, all but one of those that
    hold them."""
    request_timeout_s: float = Field(default=10.0, gt=0)
    """How long one question may go unanswered before Kafka counts as unavailable."""
    extra: dict[str, str] = Field(default={}, repr=False)
    """Further librdkafka properties by their own names; they win over everything that is set here."""

    def client(self, own: Mapping[str, str | int] = _NONE) -> dict[str, str | int | float | bool]:
        """The properties of one librdkafka client: the shared ones, its own, and `extra`. Secrets are in the clear."""
        shared = self.model_dump(include=_PASSED_ON, exclude_none=True)
        properties: dict[str, str | int | float | bool] = {
            name.replace("_", "."): value for name, value in shared.items()
        }
        if self.sasl_password is not None:
            properties["sasl.password"] = self.sasl_password.get_secret_value()
        return {**_CONNECTING, **properties, **own, **self.extra}

    def trouble(self) -> str:
        """The obstacle to TLS at the first server, with the remedy; nothing where there is none."""
        host, _, port = self.bootstrap_servers.partition(",")[0].strip().rpartition(":")
        if not port.isdecimal():
            return ""
        return tls.trouble(
            host.strip("[]"),
            int(port),
            self.ssl_ca_location,
            encrypted=self.security_protocol.endswith("SSL"),
            ca_setting="KAFKA__SSL_CA_LOCATION",
            tls_setting="set KAFKA__SECURITY_PROTOCOL to match, such as SASL_SSL or SASL_PLAINTEXT",
        )
