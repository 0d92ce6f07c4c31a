"""Apache Kafka on Java: one KRaft node, from the jars that Maven resolves."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from deploy.certificates import Certified
from deploy.native.server import CACHE, Program, alone, free_ports, listens, need, run, write_secret

VERSION = "4.3.1"
CLUSTER_ID = "tradeloop-native-kafka"
"""16 bytes in base64, as Kafka wants it."""

_POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tradeloop</groupId>
  <artifactId>kafka</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>{version}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId>
      <artifactId>slf4j-simple</artifactId>
      <version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""

# The quorum is given, not stored, so that a stopped node may be started again on other ports. A killed one is let in
# again when its session has timed out.
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=BROKER://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=BROKER://127.0.0.1:{port}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:{controller_port}
log.dirs={folder}/data
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
broker.heartbeat.interval.ms=1000
broker.session.timeout.ms=4000
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
"""

# With users, the broker's own listeners ask for a password too: whoever reaches the controller could give orders.
_USERS = """\
listener.security.protocol.map=BROKER:{protocol},CONTROLLER:{protocol}
sasl.enabled.mechanisms=PLAIN
sasl.mechanism.inter.broker.protocol=PLAIN
sasl.mechanism.controller.protocol=PLAIN
listener.name.broker.plain.sasl.jaas.config={login}
listener.name.controller.plain.sasl.jaas.config={login}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:{superuser}
"""
_TLS_PROPERTIES = {
    "ssl.keystore.type": "PEM",
    "ssl.keystore.location": "{files.both}",
    "ssl.truststore.type": "PEM",
    "ssl.truststore.location": "{files.authorities}",
    "ssl.enabled.protocols": "TLSv1.3,TLSv1.2",
}
_LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required {options};"

SUPERUSER = "tradeloop"
"""The user who may do all: people, and what creates topics and gives permissions."""


def kafka(folder: Path, port: int, passwords: Mapping[str, str] | None = None, tls: Certified | None = None) -> Program:
    """A node on 127.0.0.1 that creates no topics by itself. Its address is `host:port`.

    With `passwords`, by user, each client has to be one of them, and may do what it was permitted to (`tradeloop topics
    permit`); `SUPERUSER` may do all. Without, anybody may, and there is no TLS.
    """
    # Faster to start, and fast enough for one machine, than with the optimising compiler.
    java = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{jars()}/*"]
    properties = folder / "server.properties"
    [controller_port] = free_ports(1)
    text = _PROPERTIES.format(port=port, controller_port=controller_port, folder=folder)
    write_secret(properties, text + _users(passwords, tls) if passwords else text)
    format_options = ["--cluster-id", CLUSTER_ID, "--config", str(properties), "--ignore-formatted"]
    run([*java, "kafka.tools.StorageTool", "format", *format_options])
    authorities = None if tls is None else tls.authorities
    login = {} if passwords is None else sign_in(SUPERUSER, passwords[SUPERUSER], authorities)
    return Program(
        "kafka",
        (*java, "kafka.Kafka", str(properties)),
        f"127.0.0.1:{port}",
        lambda: kafka_answers("127.0.0.1", port, login),
    )


def sign_in(user: str, password: str, authorities: Path | None = None) -> dict[str, str]:
    """The settings of Kafka with which a user signs in there, by name: over TLS where `authorities` is its CA file."""
    trusting = {} if authorities is None else {"ssl_ca_location": str(authorities)}
    return {
        "security_protocol": "SASL_PLAINTEXT" if authorities is None else "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_username": user,
        "sasl_password": password,
        **trusting,
    }


def kafka_answers(host: str, port: int, login: Mapping[str, str] | None = None) -> bool:
    """Whether a broker there tells its topics, to who signs in so."""
    if not listens(port, host):
        return False
    properties = {name.replace("_", "."): value for name, value in (login or {}).items()}
    try:
        AdminClient({"bootstrap.servers": f"{host}:{port}", "log_level": 0, **properties}).list_topics(timeout=5)
    except KafkaException:
        return False
    return True


def _users(passwords: Mapping[str, str], tls: Certified | None) -> str:
    own = {"username": SUPERUSER, "password": passwords[SUPERUSER]}
    options = own | {f"user_{user}": password for user, password in passwords.items()}
    login = _LOGIN.format(options=" ".join(f'{name}="{value}"' for name, value in options.items()))
    protocol = "SASL_PLAINTEXT" if tls is None else "SASL_SSL"
    text = _USERS.format(login=login, superuser=SUPERUSER, protocol=protocol)
    if tls is None:
        return text
    return text + "".join(f"{name}={value.format(files=tls)}\n" for name, value in _TLS_PROPERTIES.items())


def jars() -> Path:
    """The folder of the broker's jars, resolved by Maven once per version."""
    jars = CACHE / "kafka" / VERSION
    wanted = ("java",) if jars.is_dir() else ("java", "mvn")
    need(wanted, ["openjdk-17-jre-headless", "maven"])
    with alone():
        if not jars.is_dir():
            jars.parent.mkdir(parents=True, exist_ok=True)
            # Complete or not at all: so beside its place, then renamed.
            with tempfile.TemporaryDirectory(dir=jars.parent) as folder:
                Path(folder, "pom.xml").write_text(_POM.format(version=VERSION))
                copy = ["dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=lib"]
                run(["mvn", "-q", "-B", *copy], cwd=folder)
                Path(folder, "lib").rename(jars)
    return jars
