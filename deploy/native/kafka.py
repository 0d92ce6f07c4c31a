"""Apache Kafka on Java: one KRaft node, from the jars that Maven resolves."""

from __future__ import annotations

import tempfile
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from deploy.native.server import CACHE, Program, alone, free_ports, listens, need, run

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


def kafka(folder: Path, port: int) -> Program:
    """A node on 127.0.0.1 without TLS, that creates no topics by itself. Its address is `host:port`."""
    # Faster to start, and fast enough for one machine, than with the optimising compiler.
    java = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{jars()}/*"]
    properties = folder / "server.properties"
    [controller_port] = free_ports(1)
    properties.write_text(_PROPERTIES.format(port=port, controller_port=controller_port, folder=folder))
    format_options = ["--cluster-id", CLUSTER_ID, "--config", str(properties), "--ignore-formatted"]
    run([*java, "kafka.tools.StorageTool", "format", *format_options])
    return Program(
        "kafka", (*java, "kafka.Kafka", str(properties)), f"127.0.0.1:{port}", lambda: kafka_answers("127.0.0.1", port)
    )


def kafka_answers(host: str, port: int) -> bool:
    """Whether a broker there tells its topics."""
    if not listens(port, host):
        return False
    try:
        AdminClient({"bootstrap.servers": f"{host}:{port}", "log_level": 0}).list_topics(timeout=5)
    except KafkaException:
        return False
    return True


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
