"""A queue of messages that wait for others, bounded in memory: what is beyond the bound stays on the bus."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tradeloop.common.bus.port import LogPosition
from tradeloop.common.runtime.pending import Pending

M = TypeVar("M")

ReadOn = Callable[[LogPosition, int], Sequence[tuple[int, M, LogPosition]]]
"""Reads from a position on: so many messages at most, each with its event time in microseconds. It may raise
`Unavailable`."""

LIMIT = 256
"""Messages that one queue keeps in memory."""
_LIMIT_VALUES, _FEWEST = 100_000, 8
"""Numbers in the messages that one queue keeps, some megabytes; and messages that it keeps however large they are."""


def limit_of(values: int) -> int:
    """How many messages a queue keeps that have so many numbers each."""
    return max(_FEWEST, min(LIMIT, _LIMIT_VALUES // values))


class Queue(Generic[M]):
    """Messages of one stream in the order of their event times, each position pending until its message is taken.

    A message that is not later than the newest one is dropped: its time is here already, or gone by. When the queue is
    full, it pins the position from which it will read on, and lets newer messages pass by: so that whoever waits for
    long keeps neither memory nor a partition's other messages.
    """

    def __init__(self, pending: Pending, read_on: ReadOn[M] | None = None, limit: int = LIMIT) -> None:
        """A queue that cannot `read_on` has no bound."""
        self._pending, self._read_on, self._limit = pending, read_on, limit
        self._waiting: deque[tuple[int, M, LogPosition | None]] = deque()
        self._newest_us = -1
        self._left: LogPosition | None = None
        """The first position that was let pass by; None when everything is here."""
        self._left_until = -1
        """The last offset that was let pass by."""
        self._strays: list[tuple[int, M, LogPosition]] = []
        """Messages from elsewhere, such as a retry topic, that came meanwhile."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __getitem__(self, place: int) -> tuple[int, M]:
        return self._waiting[place][:2]

    @property
    def first_us(self) -> int | None:
        """The event time of the first message, or None."""
        return self._waiting[0][0] if self._waiting else None

    @property
    def overflows(self) -> bool:
        """Whether more messages wait on the bus than here."""
        return self._left is not None

    def put(self, time_us: int, message: M, position: LogPosition | None) -> bool:
        """Add a message; whether it was new. One without a position was read back, and pins nothing."""
        if self._left is not None and position is not None:
            if position.partition == self._left.partition:
                self._left_until = max(self._left_until, position.offset)
            else:
                self._strays.append((time_us, message, position))
                self._pending.hold(position)
            return True
        if time_us <= self._newest_us:
            return False
        if position is not None and self._read_on is not None and len(self._waiting) >= self._limit:
            self._left, self._left_until = position, position.offset
            self._pending.hold(position)
            return True
        self._append(time_us, message, position)
        return True

    def take(self, count: int = 1) -> None:
        """Let go of the first messages."""
        for _ in range(count):
            position = self._waiting.popleft()[2]
            if position is not None:
                self._pending.release(position)

    def drop_until(self, time_us: int) -> None:
        """Let go of every message up to an event time, and take none of them in any more."""
        self._newest_us = max(self._newest_us, time_us)
        while self._waiting and self._waiting[0][0] <= time_us:
            self.take()

    def fill(self) -> None:
        """Read on what was let pass by, when half of the queue is free. May raise `Unavailable`."""
        if self._left is None or self._read_on is None or len(self._waiting) > self._limit // 2:
            return
        left = self._left
        read = self._read_on(left, self._limit - len(self._waiting))
        for time_us, message, position in read:
            if time_us > self._newest_us:
                self._append(time_us, message, position)
        ahead = read[-1][2].offset if read else self._left_until
        self._left = LogPosition(left.partition, ahead + 1) if ahead < self._left_until else None
        if self._left is not None:
            self._pending.hold(self._left)
        self._pending.release(left)
        if self._left is None:
            strays, self._strays = self._strays, []
            for stray in strays:
                self.put(*stray)
                self._pending.release(stray[2])

    def _append(self, time_us: int, message: M, position: LogPosition | None) -> None:
        self._newest_us = time_us
        self._waiting.append((time_us, message, position))
        if position is not None:
            self._pending.hold(position)
