"""Topics of a Kafka cluster: to create, compare, measure and read them, and to make producers and consumers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from tradeloop.common.bus.kafka.consumer import KafkaConsumer
from tradeloop.common.bus.kafka.errors import log, no_topic, refused, translated
from tradeloop.common.bus.kafka.examined import Examined
from tradeloop.common.bus.kafka.permissions import Granted, permit
from tradeloop.common.bus.kafka.producer import KafkaProducer
from tradeloop.common.bus.kafka.reader import KafkaReader
from tradeloop.common.bus.kafka.settings import KafkaSettings
from tradeloop.common.bus.kafka.wire import Names
from tradeloop.common.bus.port import Access, BusError, BusUnavailable, Partition, Record, TopicSpec

_Callback = Callable[[Collection[Partition]], None]
_DAY_MS = 86_400_000
_REPLICAS = 3


class Difference(NamedTuple):
    """A setting of a topic that differs: its value in the catalogue, and the value found."""

    topic: str
    setting: str
    """A property of the topic's configuration, or `partitions`."""
    wanted: str
    found: str | None
    """None where the topic does not exist."""


class KafkaBus:
    """Topics of a Kafka cluster.

    The `range` assignor is chosen over the cooperative one because only it co-partitions: partition n of every
    topic that a group reads goes to the same member, which the joins by universe rely on. The price is that
    every rebalance revokes everything first.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings, self._names = settings, Names(settings.prefix)
        self.longest_step_s = settings.longest_step_s

    def create_topics(self, topics: Iterable[TopicSpec]) -> None:
        existing = self._topics()
        missing = {spec.name: spec for spec in topics if spec.name not in existing}
        if not missing:
            return
        replicas, in_sync = self._replicas()
        new = [
            NewTopic(
                self._names.outer(name),
                num_partitions=spec.partitions,
                replication_factor=replicas,
                config={"min.insync.replicas": str(in_sync), **configuration(spec)},
            )
            for name, spec in sorted(missing.items())
        ]
        with translated("cannot create topics"):
            created = self._admin.create_topics(new, request_timeout=self._settings.request_timeout_s)
        for topic, future in created.items():
            try:
                with translated(f"cannot create topic {topic}", ignore=(KafkaError.TOPIC_ALREADY_EXISTS,)):
                    future.result()
            except BusError as error:
                if refused(error):  # somebody else makes it, sooner or later
                    raise BusUnavailable(
                        f"{error} It is not there, or not to be seen: `tradeloop topics apply` creates it, and "
                        "`tradeloop topics permit` says who may use it"
                    ) from error
                raise
        # The controller has them; brokers learn of them, and take up their leadership, a moment later.
        for _ in range(100):
            try:
                existing = self._topics()
                if missing.keys() <= existing.keys():
                    self._bounds(Partition(topic, n) for topic in missing for n in range(existing[topic]))
                    return
            except BusUnavailable:
                log.debug("Kafka: the leaders of new topics do not answer yet")
            self._admin.poll(0.1)
        raise BusUnavailable(
            f"Kafka: topics {', '.join(sorted(missing))} were created, but their leaders do not answer"
        )

    def differences(self, topics: Iterable[TopicSpec]) -> Sequence[Difference]:
        """Where the cluster's topics are not as specified. Topics that nobody specified do not count.

        Raises `BusUnavailable`.
        """
        existing, different = self._topics(), []
        specs = list(topics)
        found = self._configurations([spec.name for spec in specs if spec.name in existing])
        # By default nothing is said of topics that exist: with more demanded than hold them, none could be written to.
        demanded = self._settings.min_insync_replicas
        in_sync = {} if demanded is None else {"min.insync.replicas": str(demanded)}
        for spec in specs:
            wanted = {"partitions": str(spec.partitions), **in_sync, **configuration(spec)}
            is_now = {"partitions": str(existing.get(spec.name)), **found.get(spec.name, {})}
            for setting, value in wanted.items():
                if spec.name not in existing:
                    different.append(Difference(spec.name, setting, value, None))
                elif is_now.get(setting) != value:
                    different.append(Difference(spec.name, setting, value, is_now.get(setting, "")))
        return different

    def configure(self, differences: Iterable[Difference]) -> None:
        """Give topics the wanted configuration; all else about them stays as it is.

        Raises `BusUnavailable`, or `BusError` for the number of partitions, which is not configuration.
        """
        entries: dict[str, list[ConfigEntry]] = {}
        for each in differences:
            entry = ConfigEntry(each.setting, each.wanted, incremental_operation=AlterConfigOpType.SET)
            entries.setdefault(self._names.outer(each.topic), []).append(entry)
        resources = [
            ConfigResource(ResourceType.TOPIC, topic, incremental_configs=changes) for topic, changes in entries.items()
        ]
        if not resources:
            return
        with translated("cannot configure topics"):
            altered = self._admin.incremental_alter_configs(resources, request_timeout=self._settings.request_timeout_s)
        for resource, future in altered.items():
            with translated(f"cannot configure topic {resource.name}"):
                future.result()

    def examined(self) -> Examined:
        """A look at the cluster from outside, as the same user."""
        return Examined(self._settings, self._settings.request_timeout_s)

    def permit(self, accesses: Iterable[Access], administrator: str = "") -> Granted:
        """Give each user what it may do, and take away what else was said of it; other users stay as they are.

        `administrator` is a user who may do all, where the cluster has no superuser. Safe to repeat.
        Raises `BusUnavailable`, or `BusError` where the cluster has no authorizer or refuses.
        """
        return permit(self._admin, accesses, self._names, self._settings.request_timeout_s, administrator)

    def delete_topics(self, topics: Collection[str]) -> None:
        """Delete topics with all that they hold, and what groups committed there; returns when they are gone.

        What does not exist is none. Raises `BusUnavailable`.
        """
        existing = self._topics()
        doomed = [self._names.outer(topic) for topic in topics if topic in existing]
        if not doomed:
            return
        with translated("cannot delete topics"):
            deleted = self._admin.delete_topics(doomed, request_timeout=self._settings.request_timeout_s)
        for topic, future in deleted.items():
            with translated(f"cannot delete topic {topic}", ignore=(KafkaError.UNKNOWN_TOPIC_OR_PART,)):
                future.result()
        for _ in range(100):  # brokers learn of it a moment later
            if not self._topics().keys() & set(topics):
                return
            self._admin.poll(0.1)
        raise BusUnavailable(f"Kafka: topics {', '.join(sorted(topics))} were deleted, but are still there")

    def partitions(self, topic: str) -> int:
        return self._topics().get(topic, 0)

    def identity(self, topic: str) -> str:
        self._all_of(topic)
        with translated(f"cannot describe topic {topic}"):
            wait = self._settings.request_timeout_s
            cluster = self._admin.describe_cluster(request_timeout=wait).result()
            [found] = self._admin.describe_topics(
                TopicCollection([self._names.outer(topic)]), request_timeout=wait
            ).values()
            return f"{cluster.cluster_id}/{found.result().topic_id}"

    def end_offsets(self, topic: str) -> Mapping[Partition, int]:
        return self._bounds(self._all_of(topic))

    def begin_offsets(self, topic: str) -> Mapping[Partition, int]:
        return self._begins(self._all_of(topic))

    def read(self, partition: Partition, start: int, end: int) -> Sequence[Record]:
        self._check([partition])
        with closing(KafkaReader(self._settings)) as reader:
            return reader.range(partition, start, end)

    def follow(self, starts: Mapping[Partition, int]) -> KafkaReader:
        self._check(starts)
        reader = KafkaReader(self._settings)
        reader.start(starts)
        return reader

    def producer(self) -> KafkaProducer:
        return KafkaProducer(self._settings, self.partitions)

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        *,
        on_assigned: _Callback | None = None,
        on_revoked: _Callback | None = None,
    ) -> KafkaConsumer:
        existing = self._topics()
        for topic in topics:
            if topic not in existing:
                raise no_topic(topic)
        return KafkaConsumer(self._settings, group, topics, on_assigned, on_revoked, self._begins)

    def close(self) -> None:
        """Producers and consumers are closed by who asked for them; what the bus holds has nothing to lose."""

    def _check(self, partitions: Iterable[Partition]) -> None:
        existing = self._topics()
        for topic, number in partitions:
            if not 0 <= number < existing.get(topic, 0):
                raise BusError(f"Kafka: there is no partition {topic}[{number}]")

    def _all_of(self, topic: str) -> list[Partition]:
        count = self.partitions(topic)
        if not count:
            raise no_topic(topic)
        return [Partition(topic, n) for n in range(count)]

    def _begins(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        return self._bounds(partitions, latest=False)

    def _bounds(self, partitions: Iterable[Partition], *, latest: bool = True) -> dict[Partition, int]:
        which = OffsetSpec.latest() if latest else OffsetSpec.earliest()  # type: ignore[no-untyped-call]
        asked = dict.fromkeys(self._names.places(partitions), which)
        with translated("cannot read the bounds of topics"):
            bounds = self._admin.list_offsets(asked, request_timeout=self._settings.request_timeout_s)
            return {self._names.partition(place): future.result().offset for place, future in bounds.items()}

    @cached_property
    def _admin(self) -> AdminClient:
        return AdminClient(self._settings.client(), logger=log)

    def _replicas(self) -> tuple[int, int]:
        """How many brokers hold a topic, and how many of them must have a message before it counts as stored."""
        with translated("cannot count the brokers"):
            brokers = len(self._admin.list_topics(timeout=self._settings.request_timeout_s).brokers)
        replicas = self._settings.replication_factor or min(brokers, _REPLICAS)
        return replicas, self._settings.min_insync_replicas or max(replicas - 1, 1)

    def _topics(self) -> dict[str, int]:
        # All topics and never one by its name: a broker may create a topic that it is asked for.
        with translated(f"cannot list the topics of {self._settings.bootstrap_servers}"):
            try:
                admin = self._admin
                try:
                    topics = admin.list_topics(timeout=self._settings.request_timeout_s).topics
                finally:
                    admin.poll(0)  # lets the client log, and its log often names the cause
            except KafkaException as error:
                if trouble := self._settings.trouble():
                    raise BusUnavailable(f"Kafka at {self._settings.bootstrap_servers}: {trouble}") from error
                raise
        found = ((self._names.inner(name), topic) for name, topic in topics.items())
        return {name: len(topic.partitions) for name, topic in found if name and topic.error is None}

    def _configurations(self, topics: Iterable[str]) -> dict[str, dict[str, str]]:
        resources = {ConfigResource(ResourceType.TOPIC, self._names.outer(topic)): topic for topic in topics}
        if not resources:
            return {}
        with translated("cannot read the configuration of topics"):
            described = self._admin.describe_configs(list(resources), request_timeout=self._settings.request_timeout_s)
            return {
                resources[resource]: {name: entry.value or "" for name, entry in future.result().items()}
                for resource, future in described.items()
            }


def configuration(spec: TopicSpec) -> dict[str, str]:
    """A topic's properties as Kafka names them."""
    return {
        "cleanup.policy": "delete",
        "retention.ms": "-1" if spec.retention_days is None else str(spec.retention_days * _DAY_MS),
        "retention.bytes": str(-1 if spec.retention_bytes is None else spec.retention_bytes),
        # The bus's own clock, as the port promises, and not the producer's.
        "message.timestamp.type": "LogAppendTime",
    }
