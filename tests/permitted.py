"""A bus in memory that permits a service what Kafka will: the rights that the catalogue of topics gives it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import Access, BusError, Consumer, Partition, Producer, Reader, Record, TopicSpec
from tradeloop.common.messages.topics import accesses

ACCESS: Mapping[str, Access] = {access.user: access for access in accesses()}


class Permitted:
    """A bus as the user of a service has it. Raises `BusError` for what it may not do."""

    def __init__(self, bus: MemoryBus, service: str) -> None:
        self._bus, self._access = bus, ACCESS[service]
        self.longest_step_s = bus.longest_step_s

    def create_topics(self, topics: Iterable[TopicSpec]) -> None:
        self._bus.create_topics(topics)  # `tradeloop topics apply` has made them where permissions are given

    def partitions(self, topic: str) -> int:
        return self._bus.partitions(self._seen(topic))

    def identity(self, topic: str) -> str:
        return self._bus.identity(self._seen(topic))

    def end_offsets(self, topic: str) -> Mapping[Partition, int]:
        return self._bus.end_offsets(self._seen(topic))

    def begin_offsets(self, topic: str) -> Mapping[Partition, int]:
        return self._bus.begin_offsets(self._seen(topic))

    def read(self, partition: Partition, start: int, end: int) -> Sequence[Record]:
        self._check("read", partition.topic, self._access.reads)
        return self._bus.read(partition, start, end)

    def follow(self, starts: Mapping[Partition, int]) -> Reader:
        for partition in starts:
            self._check("read", partition.topic, self._access.reads)
        return self._bus.follow(starts)

    def producer(self) -> Producer:
        return _PermittedProducer(self._bus.producer(), lambda topic: self._check("write", topic, self._access.writes))

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        *,
        on_assigned: Callable[[Collection[Partition]], None] | None = None,
        on_revoked: Callable[[Collection[Partition]], None] | None = None,
    ) -> Consumer:
        self._check("join", group, {self._access.group})
        for topic in topics:
            self._check("read", topic, self._access.reads)
        return self._bus.consumer(group, topics, on_assigned=on_assigned, on_revoked=on_revoked)

    def close(self) -> None:
        self._bus.close()

    def _seen(self, topic: str) -> str:
        self._check("see", topic, self._access.sees | self._access.reads | self._access.writes)
        return topic

    def _check(self, what: str, name: str, permitted: Collection[str]) -> None:
        if name not in permitted:
            raise BusError(f"{self._access.user} may not {what} {name}: the catalogue of topics does not say so")


class _PermittedProducer:
    def __init__(self, producer: Producer, check: Callable[[str], None]) -> None:
        self._producer, self._check = producer, check
        self.hasten, self.flush, self.close = producer.hasten, producer.flush, producer.close

    def publish(
        self, topic: str, key: str, value: bytes, headers: Mapping[str, str], message: object | None = None
    ) -> None:
        self._check(topic)
        self._producer.publish(topic, key, value, headers, message)
