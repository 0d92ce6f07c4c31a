"""`MemoryBus`: the messaging port inside one process. Deterministic, and safe between threads."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from tradeloop.common.bus.port import NO_NOTES, BusError, MessageTooLarge, Partition, Record, TopicSpec, partition_for
from tradeloop.common.packed import Packed

_Callback = Callable[[Collection[Partition]], None]
_partition_of = lru_cache(maxsize=4096)(partition_for)

_HANDED = 256
"""How many records of a partition keep the object that was published, where objects are handed over."""


class MemoryBus:
    """Topics in memory, kept for ever and packed. `max_message_bytes` refuses what Kafka would refuse.

    One that hands over gives its readers the objects that were published, while they are new, beside their bytes.
    """

    longest_step_s = 300.0

    def __init__(self, max_message_bytes: int = 1_000_000, hands_over: bool = False) -> None:
        self._lock = threading.RLock()
        self._arrived = threading.Condition(self._lock)
        self._logs: dict[str, list[_Log]] = {}
        self._groups: dict[str, _Group] = {}
        self._max_message_bytes = max_message_bytes
        self._handed = _HANDED if hands_over else 0
        self._name = f"memory-{secrets.token_hex(8)}"

    def create_topics(self, topics: Iterable[TopicSpec]) -> None:
        with self._lock:
            for spec in topics:
                if spec.name not in self._logs:
                    self._logs[spec.name] = [
                        _Log(Partition(spec.name, n), self._handed) for n in range(spec.partitions)
                    ]

    def partitions(self, topic: str) -> int:
        return len(self._logs.get(topic, ()))

    def identity(self, topic: str) -> str:
        with self._lock:
            self._topic(topic)
            return f"{self._name}/{list(self._logs).index(topic)}"

    def end_offsets(self, topic: str) -> Mapping[Partition, int]:
        with self._lock:
            return {Partition(topic, n): log.end for n, log in enumerate(self._topic(topic))}

    def begin_offsets(self, topic: str) -> Mapping[Partition, int]:
        with self._lock:
            return {Partition(topic, n): log.begin for n, log in enumerate(self._topic(topic))}

    def read(self, partition: Partition, start: int, end: int) -> Sequence[Record]:
        with self._lock:
            return self._log(partition).slice(start, end)

    def follow(self, starts: Mapping[Partition, int]) -> MemoryReader:
        with self._lock:
            return MemoryReader(self, starts)

    def drop_before(self, partition: Partition, offset: int) -> None:
        """Forget the records before an offset, as a server's retention does in time."""
        with self._lock:
            self._log(partition).drop_before(offset)

    def held_bytes(self, topic: str) -> int:
        """The memory that a topic takes, but for its newest records, of which there is a bounded number."""
        with self._lock:
            return sum(log.held_bytes for log in self._topic(topic))

    def producer(self) -> MemoryProducer:
        return MemoryProducer(self)

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        *,
        on_assigned: _Callback | None = None,
        on_revoked: _Callback | None = None,
    ) -> MemoryConsumer:
        with self._lock:
            for topic in topics:
                self._topic(topic)
            consumer = MemoryConsumer(self, group, tuple(topics), on_assigned, on_revoked)
            consumer._group.members.append(consumer)
            consumer._group.generation += 1
            self._arrived.notify_all()
            return consumer

    def close(self) -> None:
        """Nothing is held open."""

    def _topic(self, topic: str) -> list[_Log]:
        try:
            return self._logs[topic]
        except KeyError:
            raise BusError(f"topic {topic} does not exist") from None

    def _log(self, partition: Partition) -> _Log:
        logs = self._topic(partition.topic)
        if not 0 <= partition.number < len(logs):
            raise BusError(f"{partition.topic} has no partition {partition.number}")
        return logs[partition.number]

    def _append(self, topic: str, key: str, value: bytes, headers: Mapping[str, str], message: object | None) -> None:
        if len(value) > self._max_message_bytes:
            raise MessageTooLarge(f"{topic}: a message of {len(value)} bytes; the limit is {self._max_message_bytes}")
        with self._lock:
            logs = self._topic(topic)
            number = _partition_of(key, len(logs))
            log = logs[number]
            log.append(key, value, headers, message)
            waits = False
            for reader in log.readers:
                waits |= reader._has_news(log.partition)
            if waits:
                self._arrived.notify_all()


class _Log:
    """A partition: the records it still holds, and who reads it."""

    def __init__(self, partition: Partition, handed: int) -> None:
        self.begin = self.end = 0
        self.partition = partition
        self.readers: list[MemoryConsumer | MemoryReader] = []
        self._stored: Packed[tuple[str, bytes, dict[str, str]]] = Packed()
        """The key, value and headers of each record from `begin` on."""
        self._messages: deque[object | None] = deque(maxlen=handed)
        """The objects of the newest records, as many as are handed over."""

    @property
    def held_bytes(self) -> int:
        return self._stored.held_bytes

    def append(self, key: str, value: bytes, headers: Mapping[str, str], message: object | None) -> None:
        self._stored.append((key, value, dict(headers)))
        self._messages.append(message)
        self.end += 1

    def slice(self, start: int, end: int) -> list[Record]:
        """The records with `start <= offset < end` that it holds."""
        first = max(start, self.begin)
        topic, number = self.partition
        stored = self._stored[first - self.begin : max(end - self.begin, 0)]
        messages, packed = self._messages, self.end - len(self._messages)
        return [
            Record(
                topic,
                number,
                offset,
                key,
                value,
                MappingProxyType(headers),
                0,
                messages[offset - packed] if offset >= packed else None,
            )
            for offset, (key, value, headers) in enumerate(stored, first)
        ]

    def drop_before(self, offset: int) -> None:
        dropped = min(max(offset - self.begin, 0), self.end - self.begin)
        self._stored.drop(dropped)
        self.begin += dropped


@dataclass
class _Group:
    """A consumer group: who is in it, and what it committed."""

    members: list[MemoryConsumer] = field(default_factory=list)
    committed: dict[Partition, int] = field(default_factory=dict)
    notes: dict[Partition, str] = field(default_factory=dict)
    generation: int = 0


class MemoryProducer:
    """Appends at once."""

    def __init__(self, bus: MemoryBus) -> None:
        self._bus = bus

    def publish(
        self, topic: str, key: str, value: bytes, headers: Mapping[str, str], message: object | None = None
    ) -> None:
        self._bus._append(topic, key, value, headers, message)

    def hasten(self) -> None:
        """Nothing waits."""

    def flush(self, timeout_s: float = 30.0) -> None:
        """Everything is stored already."""

    def close(self) -> None:
        """Nothing is held open."""


class MemoryReader:
    """Follows logs."""

    def __init__(self, bus: MemoryBus, starts: Mapping[Partition, int]) -> None:
        self._bus, self._next_offset = bus, dict(starts)
        self._logs = {partition: bus._log(partition) for partition in starts}
        for log in self._logs.values():
            log.readers.append(self)
        self._waits = False

    def poll(self, max_records: int = 500, timeout_s: float = 0.0) -> Sequence[Record]:
        return _poll(self, max_records, timeout_s)

    def close(self) -> None:
        with self._bus._lock:
            for log in self._logs.values():
                log.readers.remove(self)
            self._logs.clear()

    def _has_news(self, partition: Partition) -> bool:
        return self._waits

    def _next(self, max_records: int) -> list[Record]:
        taken: list[Record] = []
        for partition, log in self._logs.items():
            start = max(self._next_offset[partition], log.begin)
            records = log.slice(start, start + max_records - len(taken))
            self._next_offset[partition] = start + len(records)
            taken += records
        return taken


def _poll(reader: MemoryReader | MemoryConsumer, max_records: int, timeout_s: float) -> Sequence[Record]:
    """The next records, waited for if there are none."""
    with reader._bus._lock:
        records = reader._next(max_records)
        if not records and timeout_s > 0:
            reader._waits = True
            records = reader._bus._arrived.wait_for(lambda: reader._next(max_records), timeout_s)
            reader._waits = False
        return records


class MemoryConsumer:
    """A group member. Partition n of a topic goes to member n modulo the number of members that read the topic."""

    def __init__(
        self,
        bus: MemoryBus,
        group: str,
        topics: tuple[str, ...],
        on_assigned: _Callback | None,
        on_revoked: _Callback | None,
    ) -> None:
        self._bus, self._topics = bus, topics
        self._on_assigned, self._on_revoked = on_assigned, on_revoked
        self._group = bus._groups.setdefault(group, _Group())
        self._generation = 0
        self._positions: dict[Partition, int] = {}
        self._logs: dict[Partition, _Log] = {}
        self._paused: set[Partition] = set()
        self._ready: dict[Partition, None] = {}
        """Partitions that may have records not yet delivered, the one that has waited longest first."""
        self._waits = False

    def poll(self, max_records: int = 500, timeout_s: float = 0.0) -> Sequence[Record]:
        return _poll(self, max_records, timeout_s)

    def commit(self, offsets: Mapping[Partition, int], notes: Mapping[Partition, str] = NO_NOTES) -> None:
        with self._bus._lock:
            owned = offsets.keys() & self._positions.keys()
            self._group.committed.update((p, offsets[p]) for p in owned)
            self._group.notes.update((p, notes.get(p, "")) for p in owned)

    def committed(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        with self._bus._lock:
            return {p: self._group.committed[p] for p in partitions if p in self._group.committed}

    def notes(self, partitions: Collection[Partition]) -> Mapping[Partition, str]:
        with self._bus._lock:
            return {p: note for p in partitions if (note := self._group.notes.get(p))}

    def assignment(self) -> frozenset[Partition]:
        return frozenset(self._positions)

    def seek(self, partition: Partition, offset: int) -> None:
        if partition not in self._positions:
            raise BusError(f"{partition.topic}[{partition.number}] is not assigned to this consumer")
        self._positions[partition] = offset
        self._ready[partition] = None

    def pause(self, partitions: Collection[Partition]) -> None:
        self._paused.update(self._positions.keys() & set(partitions))

    def resume(self, partitions: Collection[Partition]) -> None:
        self._paused.difference_update(partitions)

    def close(self) -> None:
        with self._bus._lock:
            if self in self._group.members:
                self._group.members.remove(self)
                self._group.generation += 1
                self._bus._arrived.notify_all()
                self._revoke()

    def _next(self, max_records: int) -> list[Record]:
        self._rebalance()
        return self._take(max_records)

    def _has_news(self, partition: Partition) -> bool:
        """Note a new record; whether somebody waits for it."""
        self._ready[partition] = None
        return self._waits

    def _take(self, max_records: int) -> list[Record]:
        """As many records as fit; a partition that has more to give goes to the end of the line."""
        taken: list[Record] = []
        if not self._ready:
            return taken
        for partition in list(self._ready):
            if partition in self._paused:
                continue
            if len(taken) >= max_records:
                break
            log = self._logs[partition]
            position = max(self._positions[partition], log.begin)
            chunk = log.slice(position, position + max_records - len(taken))
            taken.extend(chunk)
            self._positions[partition] = position + len(chunk)
            del self._ready[partition]
            if position + len(chunk) < log.end:
                self._ready[partition] = None
        return taken

    def _rebalance(self) -> None:
        """As Kafka's range assignor does it: everything is revoked first, then taken once its owners let go."""
        group = self._group
        if self._generation == group.generation:
            return
        self._revoke()
        wanted = [
            Partition(topic, n)
            for topic in self._topics
            for n in range(self._bus.partitions(topic))
            if self._reads(topic, n)
        ]
        if any(partition in other._positions for other in group.members for partition in wanted):
            return
        for partition in wanted:
            log = self._logs[partition] = self._bus._log(partition)
            log.readers.append(self)
            self._positions[partition] = group.committed.get(partition, 0)
            self._ready[partition] = None
        try:
            if self._on_assigned:
                self._on_assigned(sorted(wanted))
        except BaseException:
            self._release()
            raise
        self._generation = group.generation

    def _reads(self, topic: str, number: int) -> bool:
        readers = [member for member in self._group.members if topic in member._topics]
        return self in readers and readers.index(self) == number % len(readers)

    def _revoke(self) -> None:
        try:
            if self._positions and self._on_revoked:
                self._on_revoked(sorted(self._positions))
        finally:
            self._release()

    def _release(self) -> None:
        for log in self._logs.values():
            log.readers.remove(self)
        self._positions.clear()
        self._logs.clear()
        self._ready.clear()
        self._paused.clear()
        self._bus._arrived.notify_all()
