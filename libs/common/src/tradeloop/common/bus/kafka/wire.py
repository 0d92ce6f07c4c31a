"""Between the port's words and the client's: names, partitions, records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import cast

from confluent_kafka import Message, TopicPartition

from tradeloop.common.bus.port import NO_NOTES, Partition, Record

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Names:
    """Topics as the cluster knows them: with a prefix that only this adapter sees."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def outer(self, name: str) -> str:
        """The cluster's name of a topic or group."""
        return self._prefix + name

    def inner(self, name: str) -> str | None:
        """The port's name of a topic of the cluster; None when it belongs to another prefix."""
        return name[len(self._prefix) :] if name.startswith(self._prefix) else None

    def place(self, partition: Partition) -> TopicPartition:
        """A partition for the client."""
        return TopicPartition(self.outer(partition.topic), partition.number)

    def places(self, partitions: Iterable[Partition]) -> list[TopicPartition]:
        return [self.place(partition) for partition in partitions]

    def offsets(
        self, offsets: Mapping[Partition, int], notes: Mapping[Partition, str] = NO_NOTES
    ) -> list[TopicPartition]:
        """Partitions with an offset in each, and a note where there is one."""
        return [
            TopicPartition(self.outer(each.topic), each.number, offset, metadata=notes.get(each, ""))
            for each, offset in offsets.items()
        ]

    def partition(self, place: TopicPartition) -> Partition:
        """A partition of the client, of a topic with this prefix."""
        return Partition(place.topic[len(self._prefix) :], place.partition)


def record_of(message: Message, partition: Partition, offset: int) -> Record:
    """A message as the port has it.

    What other programs may have written, bytes that are no text or nothing at all, becomes readable text.
    """
    pairs = cast("Sequence[tuple[str, bytes | None]]", message.headers() or ())
    raw, value = message.key(), message.value() or b""
    try:
        key = raw.decode()  # type: ignore[union-attr]
        headers = {name: text.decode() for name, text in pairs} if pairs else _NO_HEADERS  # type: ignore[union-attr]
    except (AttributeError, UnicodeDecodeError):
        key, headers = _text(raw), {name: _text(text) for name, text in pairs}
    return Record(partition.topic, partition.number, offset, key, value, headers, message.timestamp()[1])


def _text(raw: str | bytes | None) -> str:
    return raw.decode(errors="backslashreplace") if isinstance(raw, bytes) else raw or ""
