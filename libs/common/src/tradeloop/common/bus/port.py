"""The messaging port: topics of partitions, consumer groups, committed offsets.

Adapters: `memory.MemoryBus` (one process, deterministic) and `kafka.KafkaBus`. Both pass
`tradeloop.common.testing.check_bus`. Delivery is at least once, ordered within a partition.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

from tradeloop.common.errors import Unavailable

PARTITIONS = 12
"""How many partitions a topic has unless it says otherwise: equal counts co-partition topics of equal keys."""


class BusError(Exception):
    """Messaging failed."""


class BusUnavailable(BusError, Unavailable):
    """The bus cannot be reached, or did not confirm in time. Nothing is known to be lost: try again."""


class MessageTooLarge(BusError):
    """The bus refuses the message for its size. Trying again is useless."""


class Partition(NamedTuple):
    """One partition of a topic."""

    topic: str
    number: int


class LogPosition(NamedTuple):
    """Where a record stands."""

    partition: Partition
    offset: int


_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Record(NamedTuple):
    """A message as the bus holds it. `timestamp_ms` is when the bus took it, milliseconds since the epoch."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    headers: Mapping[str, str] = _NO_HEADERS
    timestamp_ms: int = 0
    message: object | None = None
    """The object that `value` encodes, where the bus has it still and hands it over: it need not be decoded."""

    @property
    def position(self) -> LogPosition:
        """Where it stands."""
        return LogPosition(Partition(self.topic, self.partition), self.offset)


NO_NOTES: Mapping[Partition, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """The properties of a topic that a bus needs to create it."""

    name: str
    partitions: int = PARTITIONS
    retention_days: int | None = 7
    """How long messages are kept, if `retention_bytes` suffices for them; None is for ever."""
    retention_bytes: int | None = None
    """Bytes that a partition may take, as compressed, before its oldest messages go; None is without bound."""


@dataclass(frozen=True, slots=True)
class Access:
    """The rights of a user of a bus, where the bus knows users. Nothing else is permitted."""

    user: str
    group: str
    """The consumer group that it may be a member of."""
    reads: frozenset[str]
    writes: frozenset[str]
    sees: frozenset[str]
    """Topics of which it may know that they are there, beside those."""


class Producer(Protocol):
    """Sends messages. Not shared between threads."""

    def publish(
        self, topic: str, key: str, value: bytes, headers: Mapping[str, str], message: object | None = None
    ) -> None:
        """Hand a message over; the key alone chooses its partition. Delivery is certain only after `flush`.

        Within a partition messages are stored in their order; one of another partition may be stored before, or alone.
        One that closely follows another may wait for more, until `hasten` or `flush`. `message` is the object that
        `value` encodes, which never changes: a bus that does not leave the process may spare its readers the decoding.
        Raises `MessageTooLarge` for this message alone, or `BusError` for a topic that does not exist.
        """
        ...

    def hasten(self) -> None:
        """Send what waits for more: nothing follows for now. Raises `BusUnavailable`, when it has to wait."""
        ...

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until everything published so far is stored.

        Raises `BusUnavailable` when that did not happen in time, `BusError` when a message was refused;
        `MessageTooLarge` where a server's own limit refused it, perhaps with small ones that went out with it. A
        failure is reported once; what was not stored must be published again.
        """
        ...

    def close(self) -> None:
        """Release resources. Does not flush."""
        ...


class Reader(Protocol):
    """Reads partitions on and on, without any group. Not shared between threads."""

    def poll(self, max_records: int = 500, timeout_s: float = 0.0) -> Sequence[Record]:
        """The next records, in order within each partition; empty when none came in time. Raises `BusUnavailable`."""
        ...

    def close(self) -> None:
        """Release resources."""
        ...


class Consumer(Protocol):
    """Reads messages as a member of a consumer group. Not shared between threads."""

    def poll(self, max_records: int = 500, timeout_s: float = 0.0) -> Sequence[Record]:
        """The next records of the assigned partitions, in order within each; empty when none came in time.

        Rebalances happen inside this call. Raises `BusUnavailable`.
        """
        ...

    def commit(self, offsets: Mapping[Partition, int], notes: Mapping[Partition, str] = NO_NOTES) -> None:
        """Store the offset from which the group would resume: the one *after* the last record that was handled.

        A note, at most 1000 characters, is kept beside it until the next commit, whose note replaces it, or none does.
        Raises `BusUnavailable`; a commit for a partition that was lost meanwhile is dropped, its new owner repeats.
        """
        ...

    def committed(self, partitions: Collection[Partition]) -> Mapping[Partition, int]:
        """Committed positions; a partition without one is left out. Raises `BusUnavailable`."""
        ...

    def notes(self, partitions: Collection[Partition]) -> Mapping[Partition, str]:
        """The notes of the last commits, whoever made them; a partition without one is left out.

        Raises `BusUnavailable`.
        """
        ...

    def assignment(self) -> frozenset[Partition]:
        """The partitions that this member reads now."""
        ...

    def seek(self, partition: Partition, offset: int) -> None:
        """Go on from an offset of an assigned partition."""
        ...

    def pause(self, partitions: Collection[Partition]) -> None:
        """Deliver nothing of these partitions until they are resumed or revoked."""
        ...

    def resume(self, partitions: Collection[Partition]) -> None:
        """Deliver these partitions again."""
        ...

    def close(self) -> None:
        """Leave the group. Commits nothing by itself."""
        ...


class Bus(Protocol):
    """A source of producers and consumers, and of the topics themselves.

    A partition may lose its oldest records to retention; whoever stands there goes on behind them.
    """

    longest_step_s: float
    """How long a member of a group may go without a poll, before its partitions may go to others."""

    def create_topics(self, topics: Iterable[TopicSpec]) -> None:
        """Create the topics that do not exist; those that exist stay as they are. Raises `BusUnavailable`."""
        ...

    def partitions(self, topic: str) -> int:
        """How many partitions a topic has; 0 when it does not exist. Raises `BusUnavailable`."""
        ...

    def identity(self, topic: str) -> str:
        """Names the topic for ever: one that is made anew under the same name, here or in another bus, has another.

        At most 120 characters. Offsets of one mean nothing in the other. Raises `BusUnavailable`, or `BusError` for
        a topic that does not exist.
        """
        ...

    def end_offsets(self, topic: str) -> Mapping[Partition, int]:
        """The offset that the next message of each partition will get.

        Raises `BusUnavailable`, or `BusError` for a topic that does not exist.
        """
        ...

    def begin_offsets(self, topic: str) -> Mapping[Partition, int]:
        """The first offset that each partition still holds; its end offset when it holds nothing.

        Raises `BusUnavailable`, or `BusError` for a topic that does not exist.
        """
        ...

    def read(self, partition: Partition, start: int, end: int) -> Sequence[Record]:
        """The records with `start <= offset < end` that the bus still holds, in order, without any group.

        What is not yet there is not waited for. Raises `BusUnavailable`, or `BusError` for a partition that does
        not exist.
        """
        ...

    def follow(self, starts: Mapping[Partition, int]) -> Reader:
        """A reader of partitions, from an offset of each on that is at most its end.

        What the bus no longer holds is passed over. Raises `BusUnavailable`, or `BusError` for a partition that does
        not exist.
        """
        ...

    def producer(self) -> Producer:
        """A new producer."""
        ...

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        *,
        on_assigned: Callable[[Collection[Partition]], None] | None = None,
        on_revoked: Callable[[Collection[Partition]], None] | None = None,
    ) -> Consumer:
        """A new member of a group. A group without a committed position starts at the beginning.

        Topics of equal partition counts are co-partitioned: partition n of each goes to the same member.
        `on_assigned` may seek and pause; when it raises, nothing is owned and the next `poll` calls it again. It is
        told so, with nothing, when the other members have all partitions.
        `on_revoked` runs while the partitions are still owned, so what was handled can be committed; it may name
        partitions that `on_assigned` gives back at once. Raises `BusError` for a topic that does not exist.
        """
        ...

    def close(self) -> None:
        """Close what the bus itself holds open."""
        ...


def partition_for(key: str, partitions: int) -> int:
    """The partition of a key: murmur2, as the Java client and librdkafka's `murmur2_random` compute it."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """Austin Appleby's MurmurHash2, 32 bit, with the seed Kafka uses (0x9747b28c)."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(data)) & mask
    whole = len(data) // 4 * 4
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    tail = data[whole:]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15
