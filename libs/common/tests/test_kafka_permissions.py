"""`tradeloop topics permit` on a real Kafka: each service may do what it does, and nothing that is another's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from deploy.native.kafka import SUPERUSER, sign_in
from deploy.native.kafka import kafka as kafka_program
from deploy.native.server import Server, free_ports
from tests.waiting import until
from tradeloop.common.bus.kafka import Granted, KafkaBus, KafkaSettings, Permission
from tradeloop.common.bus.kafka.permissions import everything
from tradeloop.common.bus.port import Access, BusError
from tradeloop.common.messages.topics import (
    CATALOGUE,
    LOOKED_UP,
    SERVICE_TOPICS,
    accesses,
    dead_letter_topic,
    retry_topic,
    specs,
)

GOVERNOR = "governor"
"""A user whom nothing is permitted at first, and who is no superuser."""
USERS = (SUPERUSER, GOVERNOR, *SERVICE_TOPICS)
EVERY = [spec.name for spec in specs(SERVICE_TOPICS)]


def password(user: str) -> str:
    return f"not-a-secret-{user}"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Kafka with a message in each topic, and permissions as the catalogue has them."""
    folder = tmp_path_factory.mktemp("permitted-kafka")
    [port] = free_ports(1)
    with Server(kafka_program(folder, port, {user: password(user) for user in USERS}), folder) as server:
        with closing(bus_of(server.address, SUPERUSER)) as bus:
            bus.create_topics(specs(SERVICE_TOPICS))
            granted = bus.permit(accesses())
            assert granted.given
            assert not granted.taken
            with closing(bus.producer()) as producer:
                for topic in EVERY:
                    producer.publish(topic, "u", b"{}", {})
                producer.flush()
        yield server.address


def settings_of(address: str, user: str) -> KafkaSettings:
    login = sign_in(user, password(user))
    return KafkaSettings.model_validate({"bootstrap_servers": address, "request_timeout_s": 5.0, **login})


def bus_of(address: str, user: str) -> KafkaBus:
    return KafkaBus(settings_of(address, user))


def unless_refused(error: BusError) -> bool:
    """False where a permission is lacking; anything else that went wrong is an error."""
    if "authorization failed" not in str(error):
        raise error
    return False


def writes(bus: KafkaBus, topic: str) -> bool:
    if not bus.partitions(topic):
        return False  # it does not even see that the topic is there
    with closing(bus.producer()) as producer:
        producer.publish(topic, "u", b"{}", {})
        try:
            producer.flush()
        except BusError as error:
            return unless_refused(error)
    return True


def reads(bus: KafkaBus, topic: str) -> bool:
    """Whether it may read what `tradeloop` wrote there."""
    if not bus.partitions(topic):
        return False
    partition, end = max(bus.end_offsets(topic).items(), key=lambda item: item[1])
    assert end > 0
    try:
        return len(bus.read(partition, end - 1, end)) == 1
    except BusError as error:
        return unless_refused(error)


@pytest.mark.parametrize("service", SERVICE_TOPICS)
def test_a_service_cannot_write_what_is_anothers_nor_read_what_it_has_no_use_for(address: str, service: str) -> None:
    """By the catalogue's own lists of writers and readers, read here once more and not from the permissions."""
    with closing(bus_of(address, service)) as bus:
        written = {topic for topic in EVERY if writes(bus, topic)}
        read = {topic for topic in EVERY if reads(bus, topic)}
    own = {name for name, topic in CATALOGUE.items() if service in topic.writers}
    taken_in = {name for name, topic in CATALOGUE.items() if service in topic.readers}
    retries = {retry_topic(topic, service) for topic in taken_in}
    assert written == own | retries | {dead_letter_topic(topic, service) for topic in taken_in}
    assert read == own | retries | taken_in | {*LOOKED_UP.get(service, ())}


@pytest.mark.parametrize("service", SERVICE_TOPICS)
def test_a_service_is_a_member_of_its_own_group_alone(address: str, service: str) -> None:
    topics = SERVICE_TOPICS[service]
    with closing(bus_of(address, service)) as bus:
        with closing(bus.consumer(service, topics)) as consumer:
            until(lambda: consumer.poll(timeout_s=0.1) or consumer.assignment)
        other = next(name for name in SERVICE_TOPICS if name != service)
        with closing(bus.consumer(other, topics)) as consumer, pytest.raises(BusError, match="authorization failed"):
            until(lambda: consumer.poll(timeout_s=0.1))
        assert all(bus.partitions(spec.name) for spec in specs({service: topics})), "it creates none that is there"
        with pytest.raises(BusError, match=r"(?i)authoriz"):
            bus.permit([Access(service, service, frozenset(EVERY), frozenset(EVERY), frozenset())])
        with pytest.raises(BusError, match=r"(?i)authoriz"):
            bus.delete_topics([next(iter(topics))])


def test_to_permit_again_changes_nothing_and_what_is_too_much_is_taken_away(address: str) -> None:
    too_much = AclBinding(
        ResourceType.TOPIC,
        "execution.",
        ResourcePatternType.PREFIXED,
        "User:ingest",
        "*",
        AclOperation.WRITE,
        AclPermissionType.ALLOW,
    )
    orders = "execution.orders.v1"
    with closing(bus_of(address, SUPERUSER)) as owner, closing(bus_of(address, "ingest")) as ingest:
        total = owner.permit(accesses()).total
        assert owner.permit(accesses()) == Granted([], [], total)
        admin = AdminClient(settings_of(address, SUPERUSER).client())
        for future in admin.create_acls([too_much]).values():
            future.result()
        until(lambda: writes(ingest, orders))
        named = "execution. (prefixed, allow, from *)"
        assert owner.permit(accesses()) == Granted([], [Permission("ingest", "topic", named, "WRITE")], total)
        until(lambda: not writes(ingest, orders))


def test_an_administrator_governs_a_cluster_as_its_superuser_would(address: str) -> None:
    with closing(bus_of(address, SUPERUSER)) as owner, closing(bus_of(address, GOVERNOR)) as governor:
        with pytest.raises(BusError, match=r"(?i)authorization failed"):
            governor.permit(accesses())
        granted = owner.permit(accesses(), GOVERNOR)
        assert {(each.kind, each.name) for each in granted.given} == {
            ("topic", "*"),
            ("group", "*"),
            ("cluster", "kafka-cluster"),
        }
        assert owner.permit(accesses(), GOVERNOR) == Granted([], [], granted.total)
        until(lambda: writes(governor, "execution.orders.v1"))
        governor.create_topics([replace(specs(SERVICE_TOPICS)[0], name="governed")])
        governor.delete_topics(["governed"])
        governor.permit(accesses(), GOVERNOR)
        governor.permit(accesses())  # who is not named stays what it is
        assert writes(governor, "execution.orders.v1")
        # What brokers do with each other belongs to them.
        assert "CLUSTER_ACTION" not in {each.operation for each in everything(GOVERNOR)}


def test_who_is_no_user_and_who_has_a_wrong_password_gets_nowhere(address: str) -> None:
    for login in ({}, sign_in("ingest", "wrong-password"), sign_in("somebody", password("ingest"))):
        properties = {name.replace("_", "."): value for name, value in login.items()}
        client = AdminClient({"bootstrap.servers": address, "log_level": 0, **properties})
        with pytest.raises(KafkaException):
            client.list_topics(timeout=2)


def test_a_kafka_without_an_authorizer_says_so(kafka: str) -> None:
    with (
        closing(KafkaBus(KafkaSettings(bootstrap_servers=kafka))) as bus,
        pytest.raises(BusError, match=r"(?i)no authorizer is configured"),
    ):
        bus.permit(accesses())
