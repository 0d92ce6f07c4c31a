"""Reading topics back without any consumer group: old messages in either direction, and new ones as they come."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Generic, TypeVar, overload

import structlog
from pydantic import TypeAdapter, ValidationError

from tradeloop.common.bus.port import Bus, BusError, LogPosition, Partition, Record, partition_for
from tradeloop.common.errors import UserError
from tradeloop.common.messages import Message
from tradeloop.common.messages.topics import event_id, topic_of
from tradeloop.common.packed import Packed
from tradeloop.common.runtime.headers import ID

log = structlog.get_logger(__name__)

M = TypeVar("M", bound=Message)

_FIELDS: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_FIRST_BLOCK, _BLOCK = 128, 2_048
"""Records that are read at once: at first, where the newest ones often suffice, and at most."""
_BLOCK_BYTES = 8 << 20
"""Bytes that are read at once, as far as records tell how large the next ones are."""


class Contradiction(BusError):
    """Two messages of one id have different contents. Redelivery may repeat a message, never change it."""


class MissingTopic(BusError, UserError):
    """A topic does not exist: the fault of no message, so a service stops, and a command says how to mend it."""


def partition_of(bus: Bus, topic: str, key: str) -> Partition:
    """The partition in which the messages of a key stand. Raises `MissingTopic`."""
    (partition,) = partitions_of(bus, topic, (key,)).values()
    return partition


def partitions_of(bus: Bus, topic: str, keys: Iterable[str]) -> Mapping[str, Partition]:
    """The partition of each of some keys: the bus is asked once. Raises `MissingTopic`."""
    count = bus.partitions(topic)
    if not count:
        raise MissingTopic(
            f"topic {topic} does not exist: create the topics with `tradeloop topics apply`, then start the services"
        )
    return {key: Partition(topic, partition_for(key, count)) for key in keys}


def message_of(record: Record, kind: type[M]) -> M:
    """The message of a record: the object itself where the bus hands it over. Raises pydantic's `ValidationError`."""
    handed = record.message
    return handed if isinstance(handed, kind) else kind.model_validate_json(record.value)


def decoded(record: Record, kind: type[M]) -> M | None:
    """The message of a record; None, with a line in the log, for one that is no message of this type.

    Its consumers dead-letter such a record, so nothing was decided on it.
    """
    try:
        return message_of(record, kind)
    except ValidationError:
        log.warning("not readable", topic=record.topic, partition=record.partition, offset=record.offset)
        return None


def of_kind(records: Iterable[Record], kind: type[M]) -> Iterator[M]:
    """The messages of one type among records of several topics."""
    topic = topic_of(kind).name
    for record in records:
        if record.topic == topic and (message := decoded(record, kind)) is not None:
            yield message


def blocks_backwards(bus: Bus, partition: Partition, end: int | None = None) -> Iterator[Sequence[Record]]:
    """The records of a partition in blocks, the last block first, in order within each.

    They end before the offset `end`; at the partition's own end where it is None.
    """
    begin = bus.begin_offsets(partition.topic)[partition]
    end = bus.end_offsets(partition.topic)[partition] if end is None else end
    block = _FIRST_BLOCK
    while end > begin:
        start = max(begin, end - block)
        records = bus.read(partition, start, end)
        yield records
        end, block = start, _next(block, records)


def backwards(bus: Bus, kind: type[M], key: str) -> Iterator[M]:
    """The messages of a key, the last one first. What cannot be decoded is left out."""
    for block in blocks_backwards(bus, partition_of(bus, topic_of(kind).name, key)):
        for record in reversed(block):
            if record.key == key and (message := decoded(record, kind)) is not None:
                yield message


def forwards(bus: Bus, kind: type[M], key: str) -> Iterator[tuple[Record, M]]:
    """The records and messages of a key, the first one first. What cannot be decoded is left out."""
    for record in records_of(bus, partition_of(bus, topic_of(kind).name, key)):
        if record.key == key and (message := decoded(record, kind)) is not None:
            yield record, message


def records_of(bus: Bus, partition: Partition) -> Iterator[Record]:
    """Every record that a partition holds now, in order, a block in memory at a time."""
    for block in _blocks(bus, partition, bus.begin_offsets(partition.topic)[partition]):
        yield from block


def read_on(bus: Bus, position: LogPosition, key: str) -> Iterator[tuple[Record, LogPosition]]:
    """The records of a key from a position on, as far as its partition goes now, each with where it stands."""
    for block in _blocks(bus, position.partition, position.offset):
        for record in block:
            if record.key == key:
                yield record, LogPosition(position.partition, record.offset)


def _blocks(bus: Bus, partition: Partition, start: int) -> Iterator[Sequence[Record]]:
    """The records of a partition from an offset on, as far as it goes now."""
    end, block = bus.end_offsets(partition.topic)[partition], _FIRST_BLOCK
    while start < end:
        stop = min(start + block, end)
        records = bus.read(partition, start, stop)
        yield records
        start, block = stop, _next(block, records)


def _next(block: int, records: Sequence[Record]) -> int:
    """How many records to read next: more and more, unless they are large."""
    size = sum(len(record.value) for record in records)
    return max(1, min(2 * block, _BLOCK, block * _BLOCK_BYTES // max(size, 1)))


def all_records(bus: Bus, topic: str) -> Iterator[Record]:
    """Every record that a topic holds now, one partition after the other."""
    for number in range(bus.partitions(topic)):
        yield from records_of(bus, Partition(topic, number))


class Messages(Sequence[M], Generic[M]):
    """Every message of a type that a bus holds now, each id once, in order for each key.

    They stay encoded and packed: whoever iterates decodes one after the other, anew in each pass, which takes time
    instead of memory.
    """

    def __init__(self, bus: Bus, kind: type[M], without: Collection[str] = ()) -> None:
        """`without` names vectors of the message, which are left empty here: the large ones that are not needed.

        Raises `Contradiction` for two messages of one id that differ. One that is not readable raises pydantic's
        ValidationError here or when it is come to.
        """
        self._kind = kind
        self._encoded: Packed[bytes] = Packed()
        seen: dict[bytes, bytes] = {}
        """Digests of contents by those of ids."""
        for record in all_records(bus, topic_of(kind).name):
            identity = record.headers.get(ID) or event_id(kind.model_validate_json(record.value))
            key, digest = _digest(identity.encode()), _digest(record.value)
            if key not in seen:
                seen[key] = digest
                self._encoded.append(_emptied(record.value, without) if without else record.value)
            elif seen[key] != digest:
                raise Contradiction(f"{record.topic} has two versions of {identity}, one of them: {record.value!r}")

    def __len__(self) -> int:
        return len(self._encoded)

    def __iter__(self) -> Iterator[M]:
        return map(self._kind.model_validate_json, self._encoded)

    @overload
    def __getitem__(self, place: int) -> M: ...
    @overload
    def __getitem__(self, place: slice) -> list[M]: ...
    def __getitem__(self, place: int | slice) -> M | list[M]:
        if isinstance(place, slice):
            return [self._kind.model_validate_json(encoded) for encoded in self._encoded[place]]
        return self._kind.model_validate_json(self._encoded[place])


def _digest(value: bytes) -> bytes:
    return blake2b(value, digest_size=12).digest()


def _emptied(encoded: bytes, vectors: Collection[str]) -> bytes:
    return _FIELDS.dump_json(_FIELDS.validate_json(encoded) | dict.fromkeys(vectors, ()))


def all_messages(bus: Bus, kind: type[M]) -> list[M]:
    """`Messages`, as a list."""
    return list(Messages(bus, kind))


class Tail:
    """The records of one key on each of some topics, from the ends of the topics on.

    It reads without a group: whoever only looks on commits nothing, and does not share partitions with others who
    look on. Raises `MissingTopic`; every call may raise `BusUnavailable`.
    """

    def __init__(self, bus: Bus, keys: Mapping[str, str]) -> None:
        """`keys` gives the key to follow on each topic."""
        self._keys = keys
        partitions = [partition_of(bus, topic, key) for topic, key in keys.items()]
        self._reader = bus.follow({each: bus.end_offsets(each.topic)[each] for each in partitions})

    def new(self) -> list[Record]:
        """The records that arrived since the last call, at most a block, in order within each topic."""
        return [record for record in self._reader.poll(_BLOCK) if record.key == self._keys[record.topic]]

    def close(self) -> None:
        """Release the reader."""
        self._reader.close()
