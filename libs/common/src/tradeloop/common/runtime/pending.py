"""Messages that a service took in and waits with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from tradeloop.common.bus.port import LogPosition, Partition


class Pending(Collection[LogPosition]):
    """The positions of messages that wait, counted: several may wait for the same message."""

    def __init__(self, positions: Iterable[LogPosition] = ()) -> None:
        self._count: dict[LogPosition, int] = {}
        self.by_partition: Counter[Partition] = Counter()
        """The number of pending messages of each partition; kept, since the run loop asks after every batch."""
        for position in positions:
            self.hold(position)

    def hold(self, position: LogPosition) -> None:
        before = self._count.get(position, 0)
        self._count[position] = before + 1
        if not before:
            self.by_partition[position.partition] += 1

    def release(self, position: LogPosition) -> None:
        left = self._count[position] - 1
        if left:
            self._count[position] = left
            return
        del self._count[position]
        self.by_partition[position.partition] -= 1
        if not self.by_partition[position.partition]:
            del self.by_partition[position.partition]

    def __iter__(self) -> Iterator[LogPosition]:
        return iter(self._count)

    def __len__(self) -> int:
        return len(self._count)

    def __contains__(self, position: object) -> bool:
        return position in self._count
