"""The real servers that tests talk to: one session-scoped fixture each, that gives an address.

A server is found on the first road that leads to one: an address in the environment, then a native process
started for this session. A road is a function that returns None where it cannot be taken, so that another one
is one more entry in a fixture's table. What no road leads to fails the tests that need it, in CI and at a desk.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

Road = Callable[[], AbstractContextManager[str] | None]
"""Returns a context that gives an address and stops the server at its end, or None."""

CACHE = Path(__file__).parent.parent / ".servers"
"""What the native servers need and the system's packages do not have. Ignored by git."""

KAFKA_VERSION = "4.1.1"
START_TIMEOUT_S = 60.0

_ROADS_TAKEN = pytest.StashKey[dict[str, str]]()

_KAFKA_POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tradeloop</groupId>
  <artifactId>kafka-for-tests</artifactId>
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

_KAFKA_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=BROKER://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=BROKER://127.0.0.1:{port}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
log.dirs={folder}/data
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
"""


class ServerError(Exception):
    """A server could not be had. The message ends with the remedy, or with the server's own last words."""


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config) -> Iterator[str]:
    """The bootstrap address, `host:port`, of an Apache Kafka without TLS that creates no topics by itself."""
    yield from _take(
        pytestconfig,
        "kafka",
        {"TRADELOOP_TEST_KAFKA": lambda: from_environment("TRADELOOP_TEST_KAFKA"), "native": native_kafka},
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for server, road in config.stash.get(_ROADS_TAKEN, {}).items():
        terminalreporter.write_line(f"server {server}: {road}")


def _take(config: pytest.Config, server: str, roads: Mapping[str, Road]) -> Iterator[str]:
    try:
        for road, lead in roads.items():
            if context := lead():
                with context as address:
                    config.stash.setdefault(_ROADS_TAKEN, {})[server] = f"{road}, {address}"
                    yield address
                return
        raise ServerError(f"none of {', '.join(roads)} leads to one")
    except ServerError as error:
        raise pytest.fail.Exception(f"no {server} for the tests: {error}", pytrace=False) from None


def from_environment(variable: str) -> AbstractContextManager[str] | None:
    """The address that an environment variable names; that server is neither started nor stopped."""
    address = os.environ.get(variable)
    return nullcontext(address) if address else None


@contextmanager
def native_kafka() -> Iterator[str]:
    """Apache Kafka on Java: one KRaft node on free ports of 127.0.0.1, with its data in a temporary folder."""
    classpath = f"{_kafka_jars()}/*"
    with tempfile.TemporaryDirectory(prefix="tradeloop-kafka-") as folder:
        port, controller_port = free_ports(2)
        properties = Path(folder, "server.properties")
        properties.write_text(_KAFKA_PROPERTIES.format(port=port, controller_port=controller_port, folder=folder))
        # A session is too short for the optimising compiler to pay.
        java = ["java", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", classpath]
        cluster_id = "tradeloop-tests-kafka0"  # 16 bytes in base64, as Kafka wants it
        format_options = ["--standalone", "--cluster-id", cluster_id, "--config", str(properties)]
        _run([*java, "kafka.tools.StorageTool", "format", *format_options])
        address = f"127.0.0.1:{port}"
        with process([*java, "kafka.Kafka", str(properties)], Path(folder, "kafka.log"), lambda: _kafka_answers(port)):
            yield address


def _kafka_answers(port: int) -> bool:
    if not listens(port):
        return False
    try:
        AdminClient({"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0}).list_topics(timeout=5)
    except KafkaException:
        return False
    return True


def _kafka_jars() -> Path:
    """The folder of the broker's jars, resolved by Maven once per version."""
    jars = CACHE / "kafka" / KAFKA_VERSION
    wanted = ("java",) if jars.is_dir() else ("java", "mvn")
    need(wanted, ["openjdk-17-jre-headless", "maven"])
    if not jars.is_dir():
        jars.parent.mkdir(parents=True, exist_ok=True)
        # Complete or not at all, and two sessions may do this at once: so beside its place, then renamed.
        with tempfile.TemporaryDirectory(dir=jars.parent) as folder:
            Path(folder, "pom.xml").write_text(_KAFKA_POM.format(version=KAFKA_VERSION))
            copy = ["dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=lib"]
            _run(["mvn", "-q", "-B", *copy], cwd=folder)
            if not jars.is_dir():
                Path(folder, "lib").rename(jars)
    return jars


def need(commands: Sequence[str], packages: Sequence[str]) -> None:
    """Make sure that commands exist: install Debian packages where this may be done, else say what to run."""
    missing = [command for command in commands if shutil.which(command) is None]
    if not missing:
        return
    update, install = ["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        remedy = f"apt-get update && {' '.join(install)}"
        raise ServerError(f"{' and '.join(missing)} not found; run as root: {remedy}")
    _run(update)
    _run(install)


@contextmanager
def process(command: Sequence[str], log: Path, answers: Callable[[], bool]) -> Iterator[None]:
    """A server for the time of the context; it does not outlive this interpreter, however that ends.

    Raises `ServerError`, with the end of its log, when it stops before it answers or does not answer in time.
    """
    # The shell kills the server as soon as its own standard input closes, which even a `kill -9` of us does.
    guard = 'exec 3<&0; "$@" </dev/null & server=$!; { read _ <&3; kill -9 $server; } 2>/dev/null & wait $server'
    with log.open("wb") as output:
        shell = subprocess.Popen(
            ["sh", "-c", guard, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with shell:
            try:
                deadline = time.monotonic() + START_TIMEOUT_S
                while not answers():
                    if shell.poll() is not None or time.monotonic() > deadline:
                        said = log.read_text(errors="replace")[-4000:]
                        raise ServerError(f"{command[0]} did not start; the end of its log:\n{said}")
                    time.sleep(0.05)
                yield
            finally:
                os.killpg(shell.pid, signal.SIGKILL)  # what it stored goes with it


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nothing listens now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def listens(port: int) -> bool:
    """Whether something accepts connections on a port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _run(command: Sequence[str], cwd: str | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ServerError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")
