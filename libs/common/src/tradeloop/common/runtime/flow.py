"""Which partitions are read: not those with too much that waits, nor the retry topics that hold nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable

from tradeloop.common.bus.port import Bus, Consumer, LogPosition, Partition, Record
from tradeloop.common.runtime.pending import Pending
from tradeloop.common.runtime.policy import RunPolicy


class Flow:
    """The pauses of a member of a group."""

    def __init__(self, bus: Bus, consumer: Consumer, policy: RunPolicy) -> None:
        self._bus, self._consumer, self._policy = bus, consumer, policy
        self._paused: set[Partition] = set()
        """Partitions that are paused because too many of their messages are pending."""
        self._idle: set[Partition] = set()
        """Partitions of the retry topics that hold nothing, half of all: paused, since a broker looks into each one
        that is read whenever any of them has news."""
        self._bytes: dict[LogPosition, int] = {}
        """The sizes of messages that were pending when they were handled; some of them may be finished."""
        self._held_bytes = 0

    def hold(self, record: Record) -> None:
        """Note a message that waits for others."""
        self._bytes[record.position] = len(record.value)
        self._held_bytes += len(record.value)

    def regulate(self, pending: Pending, delayed: Collection[Record]) -> None:
        """Pause each partition with too much that is pending; resume it when half of that is finished."""
        policy = self._policy
        many = len(pending) + len(delayed) >= policy.max_pending
        if not (self._paused or many or self._held_bytes >= policy.max_pending_bytes):
            return
        self._bytes = {position: size for position, size in self._bytes.items() if position in pending}
        self._held_bytes = sum(self._bytes.values())
        counts, sizes = pending.by_partition.copy(), Counter[Partition]()
        counts.update(record.position.partition for record in delayed)
        for position, size in self._bytes.items():
            sizes[position.partition] += size
        for record in delayed:
            sizes[record.position.partition] += len(record.value)
        full = {
            partition: max(count / policy.max_pending, sizes[partition] / policy.max_pending_bytes)
            for partition, count in counts.items()
        }
        paused = {p for p, share in full.items() if share >= 1 or (share > 0.5 and p in self._paused)}
        self._consumer.pause(paused - self._paused)
        self._consumer.resume(self._paused - paused - self._idle)
        self._paused = paused

    def rest(self, retries: Iterable[Partition], reached: Callable[[Partition], int]) -> None:
        """Pause the partitions of retry topics that hold nothing more, and go on with those that others wrote to."""
        mine = set(retries)
        ends: dict[Partition, int] = {}
        for topic in {partition.topic for partition in mine}:
            ends |= self._bus.end_offsets(topic)
        done = {partition for partition in mine if reached(partition) >= ends[partition]}
        self.wake(self._idle - done)
        self._consumer.pause(done - self._idle)
        self._idle |= done

    def wake(self, partitions: Collection[Partition]) -> None:
        """Read partitions that held nothing."""
        self._consumer.resume(self._idle.intersection(partitions) - self._paused)
        self._idle.difference_update(partitions)

    def wake_topic(self, topic: str) -> None:
        """Read a topic that something was written to."""
        self.wake({partition for partition in self._idle if partition.topic == topic})

    def resume(self) -> None:
        """Read everything."""
        self._consumer.resume(self._paused | self._idle)
        self.forget()

    def forget(self) -> None:
        """Partitions that are gone are not paused when they come back."""
        self._paused.clear()
        self._idle.clear()
        self._bytes.clear()
        self._held_bytes = 0
