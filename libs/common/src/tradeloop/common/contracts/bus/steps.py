"""The steps that the checks of a bus are made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager

from tradeloop.common.bus.port import (
    Bus,
    BusError,
    Consumer,
    Partition,
    Producer,
    Reader,
    Record,
    TopicSpec,
    partition_for,
)
from tradeloop.common.clock import SystemClock
from tradeloop.common.contracts.steps import fresh, refused

PATIENCE_S = 30.0
"""How long something that must happen may take: a bound for what hangs, not a measure of speed."""


def new_topic(bus: Bus, partitions: int = 1) -> str:
    topic = fresh("topic")
    bus.create_topics([TopicSpec(topic, partitions)])
    return topic


def key_in(number: int, partitions: int) -> str:
    return next(key for n in range(1000) if partition_for(key := f"key-{n}", partitions) == number)


@contextmanager
def writing(bus: Bus) -> Iterator[Producer]:
    with closing(bus.producer()) as producer:
        yield producer
        producer.flush()


def send(bus: Bus, topic: str, *values: str, key: str = "k") -> None:
    with writing(bus) as producer:
        for value in values:
            producer.publish(topic, key, value.encode(), {})


@contextmanager
def reading(bus: Bus, *topics: str, group: str | None = None) -> Iterator[Consumer]:
    with closing(bus.consumer(group or fresh("group"), topics)) as consumer:
        yield consumer


def take(consumer: Consumer | Reader, count: int, max_records: int = 500) -> list[Record]:
    """The next records, `count` of them or more."""
    clock = SystemClock()
    deadline = clock.monotonic() + PATIENCE_S
    records: list[Record] = []
    while len(records) < count:
        batch = consumer.poll(max_records, timeout_s=0.2)
        assert len(batch) <= max_records, f"{len(batch)} records where {max_records} were asked for"
        records += batch
        assert clock.monotonic() < deadline, f"only {len(records)} of {count} records came within {PATIENCE_S:g} s"
    return records


def settle(
    one: Consumer, other: Consumer, settled: Callable[[], bool], got: tuple[list[Record], list[Record]] | None = None
) -> tuple[list[Record], list[Record]]:
    """Poll two members in turn until `settled`; what each of them read."""
    clock = SystemClock()
    deadline = clock.monotonic() + PATIENCE_S
    got = got or ([], [])
    while not settled():
        for member, records in zip((one, other), got, strict=True):
            records += member.poll(timeout_s=0.05)
        assert clock.monotonic() < deadline, f"the group did not come to rest within {PATIENCE_S:g} s"
    return got


def texts(records: Collection[Record]) -> list[str]:
    return [record.value.decode() for record in records]


def after(records: Collection[Record]) -> Mapping[Partition, int]:
    """The offsets to commit when these records were handled."""
    return {Partition(r.topic, r.partition): r.offset + 1 for r in records}


def refuses(call: Callable[[], object], what: str) -> None:
    refused(BusError, call, what)
