"""A look at a Kafka cluster that changes nothing: whether it answers, who may sign in, and what that user may do."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclOperation,
    AdminClient,
    ConfigResource,
    ConsumerGroupDescription,
    ResourceType,
)

from tradeloop.common.bus.kafka.errors import as_bus_error, log, translated
from tradeloop.common.bus.kafka.permissions import Granted, compared
from tradeloop.common.bus.kafka.settings import KafkaSettings
from tradeloop.common.bus.kafka.wire import Names
from tradeloop.common.bus.port import Access, BusError, BusUnavailable, Partition

_REFUSALS = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
    }
)
"""Errors that no patience mends, though the client tries again all the same."""
_LOOK_S = 1.0


class Members(NamedTuple):
    """A consumer group as the cluster knows it."""

    processes: int
    committed: Mapping[Partition, int]
    """The offset that it goes on from, where it has committed one."""


class Examined:
    """A cluster as the user of some settings sees it. Waits no longer than `wait_s` for an answer."""

    def __init__(self, settings: KafkaSettings, wait_s: float) -> None:
        self._wait_s, self._names, self._servers = wait_s, Names(settings.prefix), settings.bootstrap_servers
        self._heard: list[KafkaError] = []
        properties: dict[str, Any] = {**settings.client(), "error_cb": self._heard.append}
        self._admin = AdminClient(properties, logger=log)

    def brokers(self) -> int:
        """How many brokers there are. Raises `BusUnavailable`, or `BusError` for a refusal to let the user in."""
        doing, end_s = f"cannot reach {self._servers}", time.monotonic() + self._wait_s
        while True:
            try:
                return len(self._admin.list_topics(timeout=_LOOK_S).brokers)
            except KafkaException as error:
                self._admin.poll(0)  # hands over what the client heard of the brokers
                if refusal := next((one for one in self._heard if one.code() in _REFUSALS), None):
                    raise as_bus_error(doing, refusal) from None
                if time.monotonic() > end_s:
                    heard = self._heard[0] if self._heard else error.args[0]
                    raise BusUnavailable(f"Kafka: {doing}: {heard.str()}") from None

    def lacking(self, access: Access) -> Sequence[str]:
        """The rights of an access that this user lacks, in words; topics that it may not see are absent to it.

        A cluster that knows no permissions permits everything. Raises `BusUnavailable`.
        """
        wanted = {
            **dict.fromkeys(sorted(access.sees - access.reads - access.writes), ("DESCRIBE",)),
            **{topic: ("READ",) for topic in sorted(access.reads)},
        }
        for topic in sorted(access.writes):
            wanted[topic] = (*wanted.get(topic, ()), "WRITE")
        topics = {self._names.outer(topic): topic for topic in wanted}
        with translated("cannot describe topics"):
            described = self._admin.describe_topics(
                TopicCollection(list(topics)), include_authorized_operations=True, request_timeout=self._wait_s
            )
        found = []
        for outer, future in described.items():
            topic = topics[outer]
            try:
                may = {each.name for each in future.result().authorized_operations or ()}
            except KafkaException as error:
                if error.args[0].code() not in (
                    KafkaError.TOPIC_AUTHORIZATION_FAILED,
                    KafkaError.UNKNOWN_TOPIC_OR_PART,
                ):
                    raise as_bus_error(f"cannot describe topic {topic}", error.args[0]) from None
                may = set()
            found += [f"{operation} topic {topic}" for operation in wanted[topic] if operation not in may]
        return [*found, *self._lacking_group(access.group)]

    def members(self, group: str) -> Members:
        """The processes of a group, and how far they are. Raises `BusUnavailable`, or `BusError` for a refusal."""
        name = self._names.outer(group)
        described = self._described(group)
        if described is None:
            return Members(0, {})
        with translated(f"cannot read what group {group} committed"):
            asked = [ConsumerGroupTopicPartitions(name)]
            offsets = self._admin.list_consumer_group_offsets(asked, request_timeout=self._wait_s)
            places = offsets[name].result().topic_partitions or ()
        committed = {
            Partition(inner, place.partition): place.offset
            for place in places
            if (inner := self._names.inner(place.topic)) is not None and place.offset >= 0
        }
        return Members(len(described.members), committed)

    def refuses(self) -> bool:
        """Whether the cluster knows permissions at all: without an authorizer everybody may do everything.

        One that does not tell is taken to. Raises `BusUnavailable`, or `BusError` where this user may not ask.
        """
        with translated("cannot read the configuration of a broker"):
            brokers = self._admin.list_topics(timeout=self._wait_s).brokers
            asked = [ConfigResource(ResourceType.BROKER, str(min(brokers)))]
            [described] = self._admin.describe_configs(asked, request_timeout=self._wait_s).values()
            entry = described.result().get("authorizer.class.name")
        return entry is None or entry.value != ""

    def differences(self, accesses: Iterable[Access]) -> Granted:
        """The changes that `KafkaBus.permit` would make. Raises as it does."""
        return compared(self._admin, accesses, self._names, self._wait_s)

    def _lacking_group(self, group: str) -> Sequence[str]:
        try:
            described = self._described(group)
        except BusUnavailable:
            raise
        except BusError:  # a refusal
            return [f"READ group {group}"]
        may = (AclOperation.READ,) if described is None else described.authorized_operations or ()
        return () if AclOperation.READ in may else [f"READ group {group}"]

    def _described(self, group: str) -> ConsumerGroupDescription | None:
        """A group; None where nobody has been a member yet. Raises `BusUnavailable`, or `BusError` for a refusal."""
        name, end_s = self._names.outer(group), time.monotonic() + self._wait_s
        while True:
            described = self._admin.describe_consumer_groups(
                [name], include_authorized_operations=True, request_timeout=self._wait_s
            )
            try:
                found: ConsumerGroupDescription = described[name].result()
                return found
            except KafkaException as exception:
                error: KafkaError = exception.args[0]
                if error.code() == KafkaError.GROUP_ID_NOT_FOUND:
                    return None
                translation = as_bus_error(f"cannot describe group {group}", error)
                # A broker that has just started takes its groups up a moment later.
                if not isinstance(translation, BusUnavailable) or time.monotonic() > end_s:
                    raise translation from None
                self._admin.poll(0.1)
