"""Reading back takes bounded memory, however large the records are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tradeloop.common.bus.memory import MemoryBus
from tradeloop.common.bus.port import LogPosition, Partition, Record, TopicSpec
from tradeloop.common.runtime.held import LIMIT, limit_of
from tradeloop.common.runtime.readback import blocks_backwards, read_on, records_of

COUNT = 1_000


class Watched(MemoryBus):
    """A bus that remembers how much was read at once."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.partition = Partition("topic", 0)
        self.at_once: list[tuple[int, int]] = []
        self.create_topics([TopicSpec("topic", 1)])
        producer = self.producer()
        for n in range(COUNT):
            producer.publish("topic", "key", b"%09d" % n + b"x" * (size - 9), {})
        producer.flush()

    def read(self, partition: Partition, start: int, end: int) -> Sequence[Record]:
        records = super().read(partition, start, end)
        self.at_once.append((len(records), sum(len(record.value) for record in records)))
        return records


@pytest.mark.parametrize("size", [100, 100_000])
def test_H5_large_records_are_read_a_few_at_once(size: int) -> None:
    bus = Watched(size)
    expected = list(range(COUNT))
    forwards = [record.offset for record in records_of(bus, bus.partition)]
    onwards = [position.offset for _, position in read_on(bus, LogPosition(bus.partition, 0), "key")]
    backwards = [record.offset for block in blocks_backwards(bus, bus.partition) for record in reversed(block)]
    assert forwards == onwards == expected
    assert backwards == expected[::-1]
    assert max(total for _, total in bus.at_once) <= 128 * 100_000
    if size == 100:
        assert len(bus.at_once) == 3 * 4, "small records are read many at once: 128, 256, 512, and the rest"
    else:
        assert {count for count, _ in bus.at_once} > {128, 83}


def test_H5_a_queue_keeps_fewer_of_what_is_larger() -> None:
    assert limit_of(1) == limit_of(100) == LIMIT
    assert limit_of(500 * 8) == 25
    assert limit_of(10_000_000) == 8
