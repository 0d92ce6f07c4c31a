"""A Kafka with passwords (SCRAM) and permissions (ACLs): what a service needs, and what happens without."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from pydantic import SecretStr

from deploy.native.kafka import jars, kafka_answers
from deploy.native.server import Program, Server, free_ports, run
from tests.waiting import until
from tradeloop.common.bus.kafka import KafkaBus, KafkaSettings
from tradeloop.common.bus.port import BusError, BusUnavailable, LogPosition
from tradeloop.common.clock import SystemClock
from tradeloop.common.messages import Message, ModelActivated, TrainingProgressed
from tradeloop.common.messages.topics import dead_letter_topic, retry_topic, specs, topic_of
from tradeloop.common.runtime.health import Health, HttpSettings
from tradeloop.common.runtime.policy import RunPolicy
from tradeloop.common.runtime.runner import Runner
from tradeloop.common.runtime.service import ServiceDefaults

SOURCE, OUTPUT = topic_of(TrainingProgressed).name, topic_of(ModelActivated).name
RETRY, DLQ = retry_topic(SOURCE, "picky"), dead_letter_topic(SOURCE, "picky")
POLICY = RunPolicy(commit_interval_s=0.0, attempts=2, retry_delay_s=0.1)
CLOCK = SystemClock()

# Who comes by the plain listener is nobody, and may do all: the broker itself, and who hands out permissions.
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAIN://127.0.0.1:{plain},SECURE://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAIN://127.0.0.1:{plain},SECURE://127.0.0.1:{secure}
listener.security.protocol.map=PLAIN:PLAINTEXT,SECURE:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAIN
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:{controller}
listener.name.secure.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.secure.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
log.dirs={folder}/data
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
"""


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """A broker's plain port and its secure one, where `picky` signs in with `s3cret`."""
    folder = tmp_path_factory.mktemp("secure-kafka")
    plain, secure, controller = free_ports(3)
    properties = Path(folder, "server.properties")
    properties.write_text(_PROPERTIES.format(plain=plain, secure=secure, controller=controller, folder=folder))
    java = ["java", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{jars()}/*"]
    user = ["--add-scram", "SCRAM-SHA-512=[name=picky,password=s3cret]"]
    cluster = ["--cluster-id", "tradeloop-secure-kafka", "--config", str(properties)]
    run([*java, "kafka.tools.StorageTool", "format", *cluster, *user])
    command = (*java, "kafka.Kafka", str(properties))
    program = Program("kafka", command, f"127.0.0.1:{plain}", lambda: kafka_answers("127.0.0.1", plain))
    with Server(program, folder):
        yield plain, secure


@pytest.fixture
def owner(ports: tuple[int, int]) -> Iterator[KafkaBus]:
    """Who may do all. Before each test all topics are there, and nobody else may do anything."""
    settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{ports[0]}")
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    anything = AclBindingFilter(
        ResourceType.ANY,
        None,  # type: ignore[arg-type]  # None stands for any
        ResourcePatternType.ANY,
        None,  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        AclOperation.ANY,
        AclPermissionType.ANY,
    )
    for future in admin.delete_acls([anything]).values():
        future.result()
    with closing(KafkaBus(settings)) as bus:
        bus.create_topics(specs({"picky": [SOURCE]}))
        yield bus


def settings_of(ports: tuple[int, int], password: str = "s3cret") -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers=f"127.0.0.1:{ports[1]}",
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="picky",
        sasl_password=SecretStr(password),
        request_timeout_s=5.0,
    )


@pytest.fixture
def guest(ports: tuple[int, int]) -> Iterator[KafkaBus]:
    """Who may do what it was permitted to."""
    with closing(KafkaBus(settings_of(ports))) as bus:
        yield bus


def permit(ports: tuple[int, int], kind: ResourceType, name: str, *operations: AclOperation) -> None:
    admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{ports[0]}"})
    bindings = [
        AclBinding(kind, name, ResourcePatternType.LITERAL, "User:picky", "*", each, AclPermissionType.ALLOW)
        for each in operations
    ]
    for future in admin.create_acls(bindings).values():
        future.result()


def permit_service(ports: tuple[int, int], but: Sequence[str] = ()) -> None:
    """The least that a service works with."""
    permit(ports, ResourceType.TOPIC, "*", AclOperation.DESCRIBE)
    permit(ports, ResourceType.TOPIC, SOURCE, AclOperation.READ)
    for topic in {OUTPUT, RETRY, DLQ} - {*but}:
        permit(ports, ResourceType.TOPIC, topic, AclOperation.WRITE)
    permit(ports, ResourceType.TOPIC, RETRY, AclOperation.READ)
    if "picky" not in but:
        permit(ports, ResourceType.GROUP, "picky", AclOperation.READ)


class Picky(ServiceDefaults):
    name = "picky"
    consumes: tuple[type[Message], ...] = (TrainingProgressed,)

    def __init__(self) -> None:
        self.seen: list[int] = []

    def handle(self, message: Message, position: LogPosition) -> Iterable[Message]:
        assert isinstance(message, TrainingProgressed)
        if message.step % 2:
            raise ValueError("odd")
        self.seen.append(message.step)
        time = datetime(2026, 1, 1, tzinfo=UTC)
        return [ModelActivated(universe="u", portfolio="p", time=time, model="m", version="1", model_id="x")]


def send(owner: KafkaBus, *steps: int) -> None:
    with closing(owner.producer()) as producer:
        for step in steps:
            message = TrainingProgressed(run_id="r", strategy="s", step=step, total=9)
            producer.publish(SOURCE, "r", message.encode(), {})
        producer.flush()


def count(bus: KafkaBus, topic: str) -> int:
    return sum(bus.end_offsets(topic).values())


def test_a_service_works_with_what_it_needs_and_no_more(
    ports: tuple[int, int], owner: KafkaBus, guest: KafkaBus
) -> None:
    permit_service(ports)
    service, before = Picky(), count(owner, DLQ)
    with closing(Runner(service, guest, CLOCK, POLICY)) as runner:
        send(owner, 2, 3, 4)
        until(lambda: runner.step(timeout_s=0.1) >= 0 and runner.counters.dead_letters)
        health = Health(runner, HttpSettings(), stop=threading.Event())
        health.sample()
        assert health.not_ready() == []
    assert service.seen[-2:] == [2, 4]
    assert count(owner, DLQ) == before + 1
    assert not owner.differences(specs({"picky": [SOURCE]}))
    place, end = max(guest.end_offsets(SOURCE).items(), key=lambda item: item[1])
    assert len(guest.read(place, end - 1, end)) == 1, "reading back takes no permission for a group"


def test_what_may_not_be_put_aside_stops_everything(ports: tuple[int, int], owner: KafkaBus, guest: KafkaBus) -> None:
    """It is not committed, nor is what follows: with the permission, all goes on from there."""
    permit_service(ports, but=[RETRY])
    service, before = Picky(), count(owner, RETRY)
    runner = Runner(service, guest, CLOCK, POLICY)
    until(lambda: runner.step(timeout_s=0.1) >= 0 and runner.assigned is not None)
    send(owner, 6, 7, 8)
    with pytest.raises(BusError, match=f"1 messages to {RETRY} were not stored: .*authorization failed"):
        until(lambda: runner.step(timeout_s=0.1) < 0)
    assert service.seen == [6]
    assert runner.counters.retried == 0
    runner.close()

    permit(ports, ResourceType.TOPIC, RETRY, AclOperation.WRITE)
    again = Picky()
    with closing(Runner(again, guest, CLOCK, POLICY)) as runner:
        until(lambda: runner.step(timeout_s=0.1) >= 0 and runner.counters.dead_letters)
    assert again.seen == [8]
    assert count(owner, RETRY) == before + 1


def test_a_group_that_is_not_permitted_is_an_error_at_once(
    ports: tuple[int, int], owner: KafkaBus, guest: KafkaBus
) -> None:
    permit_service(ports, but=["picky"])
    with (
        closing(guest.consumer("picky", [SOURCE])) as consumer,
        pytest.raises(BusError, match="Group authorization failed"),
    ):
        until(lambda: consumer.poll(timeout_s=0.1))


def test_a_topic_that_may_not_be_created_is_waited_for(
    ports: tuple[int, int], owner: KafkaBus, guest: KafkaBus
) -> None:
    permit(ports, ResourceType.TOPIC, SOURCE, AclOperation.READ)
    assert guest.partitions(SOURCE)
    assert not guest.partitions(OUTPUT), "what one may not see is not there"
    with pytest.raises(BusUnavailable, match=r"(?i)authoriz.* `tradeloop topics apply` creates it"):
        guest.create_topics(specs({}))


def test_a_wrong_password_is_told_in_the_log(
    ports: tuple[int, int], owner: KafkaBus, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with closing(KafkaBus(settings_of(ports, password="wr0ng"))) as bus, pytest.raises(BusUnavailable):
        bus.partitions(SOURCE)
    assert "SASL authentication error" in caplog.text
    assert "wr0ng" not in caplog.text
