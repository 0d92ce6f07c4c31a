"""A bus in memory that stores what is published as late, and in as many orders, as Kafka may."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from tradeloop.common.bus.memory import MemoryBus, MemoryProducer
from tradeloop.common.bus.port import BusUnavailable, Partition, Record, partition_for


class ScatteredBus(MemoryBus):
    """Its partitions store messages in order, but none waits for another one; a producer that dies loses the rest.

    What goes first follows from a seed. Whoever reads back is told when records were stored: one after the other.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = np.random.default_rng(seed)
        self.newest: ScatteredProducer
        """The producer that was made last."""
        self._times: dict[Partition, list[int]] = {}
        self._count = 0

    def read(self, partition: Partition, start: int, end: int) -> Sequence[Record]:
        times = self._times.get(partition, ())
        return [record._replace(timestamp_ms=times[record.offset]) for record in super().read(partition, start, end)]

    def stored(self, partition: Partition) -> None:
        """Note the time of the next record of a partition."""
        self._count += 1
        self._times.setdefault(partition, []).append(self._count)

    def producer(self) -> ScatteredProducer:
        self.newest = ScatteredProducer(self, self._generator)
        return self.newest


class ScatteredProducer(MemoryProducer):
    """Keeps messages for a while, partition by partition."""

    def __init__(self, bus: ScatteredBus, generator: np.random.Generator) -> None:
        super().__init__(bus)
        self._scattered, self._generator = bus, generator
        self._waiting: dict[Partition, deque[tuple[str, bytes, Mapping[str, str], object | None]]] = {}
        self._dead = False

    def publish(
        self, topic: str, key: str, value: bytes, headers: Mapping[str, str], message: object | None = None
    ) -> None:
        self._check()
        partition = Partition(topic, partition_for(key, self._bus.partitions(topic)))
        self._waiting.setdefault(partition, deque()).append((key, value, headers, message))
        self._store_some()

    def hasten(self) -> None:
        self._store_some()

    def flush(self, timeout_s: float = 30.0) -> None:
        self._check()
        while self._waiting:
            self._store_some()

    def die(self) -> int:
        """Store nothing more, as with its process; how many messages are lost."""
        lost = sum(map(len, self._waiting.values()))
        self._dead = True
        self._waiting.clear()
        return lost

    def _check(self) -> None:
        if self._dead:
            raise BusUnavailable("this process is dead")

    def _store_some(self) -> None:
        """Let one partition store some of what it has to, or nothing."""
        if not self._waiting:
            return
        partition = list(self._waiting)[self._generator.integers(len(self._waiting))]
        waiting = self._waiting[partition]
        for _ in range(self._generator.integers(len(waiting) + 1)):
            super().publish(partition.topic, *waiting.popleft())
            self._scattered.stored(partition)
        if not waiting:
            del self._waiting[partition]
